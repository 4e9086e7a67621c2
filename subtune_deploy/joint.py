"""Forks for several tasks on one budget: the highest mean accuracy of which all forks together add no more latency.

    tasks = {"birds": [Option((13, 14), 0.95), Option((16,), 0.91)], "signs": [Option((15, 16), 0.88)]}
    found = choose_together(tasks, price, max_added=0.30)
    found.best.forks                                   # ((13, 14), (15, 16)), in the order of the tasks
    found.exact                                        # whether no set within the budget is better, for sure

`price` is asked for any number of forks, one alone or one for each task; whose they are makes no difference to it, and
two tasks may have equal forks: each has its own weights. Of prices of which nothing is known, all sets are looked at.
`floor` lets branch and bound leave most of them out: what a fork adds to any others at the least. 0 is sound where a
further fork never makes a set cheaper, the fork's own price where a set costs no less than its forks one by one. No
option is left out for being beaten by another of its task: whether it is worse beside others is for the price to say.

Beyond `limit`, the sets that are best by the sum of floors are priced, and in the best of them one fork is exchanged at
a time while that helps; `bound` is then what no set within the budget can exceed. Pure.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, islice
from operator import mul

import numpy as np
import numpy.typing as npt

from .errors import InputError

LIMIT = 20_000
"""Sets, also of some tasks alone, that are looked at for the front, and again for the best."""
SUMS = 2_000
"""Sums of floors that are kept; of more, neighbours become one with the better of both numbers."""
EQUAL = 1e-9
"""Accuracies, and latencies, that differ by no more are the same."""

Forks = tuple[Hashable, ...]
Price = Callable[[Forks], float]
Floor = Callable[[Hashable], float]
Vector = npt.NDArray[np.float64]
Worth = Callable[[Vector, Vector], bool]
"""Of accuracies at most with added latencies at least, whether one of these is worth looking for."""


class BudgetError(InputError):
    """No set keeps the budget."""


Multiset = frozenset[tuple[Hashable, int]]


def multiset(forks: Forks) -> Multiset:
    """What a price goes by: which forks, how often, in any order."""
    return frozenset(Counter(forks).items())


@dataclass(frozen=True)
class Option:
    """A fork that a task can have, and its accuracy, 0..1."""

    fork: Hashable
    accuracy: float


@dataclass(frozen=True)
class Choice:
    """A fork for each task, their mean `accuracy`, and the `added` latency of all together relative to the base."""

    forks: Forks
    accuracy: float
    added: float


@dataclass(frozen=True)
class Together:
    """`best` within the budget, `exact` if that is certain; no set within it has a mean accuracy above `bound`.

    `front`: sets that none beats in both, cheapest first, one of equals; all of them if `front_exact`.
    """

    best: Choice
    exact: bool
    bound: float
    front: tuple[Choice, ...]
    front_exact: bool


def choose_together(
    tasks: Mapping[str, Sequence[Option]],
    price: Price,
    *,
    max_added: float = math.inf,
    weights: Mapping[str, float] | None = None,
    floor: Floor | None = None,
    slack: float = 0.0,
    limit: int = LIMIT,
) -> Together:
    """The set of the highest mean accuracy that adds at most `max_added`, of equals the cheaper; and the front.

    `weights`: of tasks in the mean, 1 where not given. `slack`: how much less a whole set may cost than its parts
    and floors make of it, as one that was measured. Raises BudgetError, naming the nearest, where no set is within.
    """
    search = _Search(tasks, price, _shares(tasks, weights or {}), floor, slack)
    search.begin(limit)
    front_exact = search.explore(search.adds_to_front, limit)
    exact = front_exact
    if not exact:
        search.exchange(max_added, limit)
        exact = search.explore(partial(search.is_better, max_added), limit)
    best = search.best(max_added)
    if best is None:
        raise BudgetError(_too_dear(tasks, search.front[0], max_added), "raise --max-added")
    bound = best.accuracy if exact else max(best.accuracy, search.bound(max_added))
    return Together(best, exact, bound, tuple(search.front), front_exact)


def choose_apart(
    tasks: Mapping[str, Sequence[Option]],
    price: Price,
    max_added: float,
    weights: Mapping[str, float] | None = None,
) -> Choice | None:
    """What each task takes by itself for an equal part of the budget, and what that costs together; None where one
    can have nothing for it. For comparison."""
    search = _Search(tasks, price, _shares(tasks, weights or {}), None)
    part, picked = max_added / len(tasks) + EQUAL, []
    for options in tasks.values():
        within = [each for each in options if search.price((each.fork,)) <= part]
        if not within:
            return None
        picked.append(min(within, key=lambda each: (-each.accuracy, search.price((each.fork,)))))
    return search.take(tuple(picked))


def _shares(tasks: Mapping[str, Sequence[Option]], weights: Mapping[str, float]) -> list[float]:
    """Each task's part of the mean. Raises InputError for what cannot be chosen from."""
    if not tasks:
        raise InputError("there is no task to choose for", "give one at least")
    for name, options in tasks.items():
        if not options or not all(0 <= each.accuracy <= 1 for each in options):  # NaN too
            raise InputError(
                f"task {name} has no fork, or one without an accuracy", "give shares between 0 and 1"
            )
    if unknown := [name for name in weights if name not in tasks]:
        raise InputError(f"there is no task {unknown[0]} to weigh", f"the tasks: {', '.join(tasks)}")
    given = [weights.get(name, 1.0) for name in tasks]
    if not all(0 < each < math.inf for each in given):
        raise InputError(f"the tasks weigh {given}", "give numbers above 0")
    return [each / sum(given) for each in given]


def _too_dear(tasks: Mapping[str, Sequence[Option]], nearest: Choice, max_added: float) -> str:
    named = ", ".join(f"{name} {fork}" for name, fork in zip(tasks, nearest.forks, strict=True))
    return (
        f"no forks together add at most {max_added:.1%}: the cheapest found, {named}, add {nearest.added:.1%}"
    )


@dataclass(frozen=True)
class _Sums:
    """Of the last tasks, the best sums: parts of the mean accuracy and floors, both ascending, and whose they are."""

    accuracies: Vector
    floors: Vector
    options: tuple[tuple[Option, ...], ...]


class _Search:
    """`front` holds the best of all sets that were priced, cheapest first."""

    def __init__(
        self,
        tasks: Mapping[str, Sequence[Option]],
        price: Price,
        shares: Sequence[float],
        floor: Floor | None,
        slack: float = 0.0,
    ) -> None:
        self.slack = slack
        self.options, self.shares, self.ask, self.sound = [*tasks.values()], shares, price, floor is not None
        self.front: list[Choice] = []
        self.prices: dict[Multiset, float] = {}
        self.sums = self._sums(floor or (lambda fork: self.price((fork,))))

    def price(self, forks: Forks) -> float:
        """Asked once for each set. Raises InputError for what is no number."""
        key = multiset(forks)
        if key not in self.prices:
            self.prices[key] = self.ask(forks)
            if not math.isfinite(self.prices[key]):
                named = ", ".join(map(str, forks))
                raise InputError(f"forks {named} add {self.prices[key]}", "give a price that is a number")
        return self.prices[key]

    def begin(self, limit: int) -> None:
        """Take the sets that are best where floors are prices."""
        for options in islice(self.sums[0].options, max(1, limit)):
            self.take(options)

    def take(self, options: tuple[Option, ...]) -> Choice:
        """Price a set, and keep it where it is of the front."""
        forks = tuple(each.fork for each in options)
        found = Choice(forks, self._mean(options), self.price(forks))
        if self.adds_to_front(np.array([found.accuracy]), np.array([found.added])):
            left = [
                e for e in self.front if e.added < found.added - EQUAL or e.accuracy > found.accuracy + EQUAL
            ]
            self.front = sorted((*left, found), key=lambda each: each.added)
        return found

    def explore(self, worth: Worth, limit: int) -> bool:
        """Take all sets that come to something that is `worth` it; whether `limit` sufficed."""
        if not self.sound and sum(accumulate(map(len, self.options), mul)) > limit:
            return False
        return self._visit((), worth, iter(range(limit)))

    def _visit(self, chosen: tuple[Option, ...], worth: Worth, left: Iterator[int]) -> bool:
        if len(chosen) == len(self.options):
            self.take(chosen)
            return True
        for option in self.options[len(chosen)]:
            more = (*chosen, option)
            if next(left, None) is None:
                return False
            if worth(*self._reach(more)) and not self._visit(more, worth, left):
                return False
        return True

    def _reach(self, options: tuple[Option, ...]) -> tuple[Vector, Vector]:
        """What the set can come to with the tasks that are left: accuracies at most, added latencies at least."""
        rest = self.sums[len(options)]
        whole = len(options) == len(self.options)
        least = self.price(tuple(each.fork for each in options)) if self.sound or whole else -math.inf
        return self._mean(options) + rest.accuracies, least + rest.floors - (0 if whole else self.slack)

    def adds_to_front(self, accuracies: Vector, added: Vector) -> bool:
        """Whether one of these is not beaten yet."""
        known = np.array([-math.inf, *(each.accuracy for each in self.front)])
        upto = np.searchsorted([each.added for each in self.front], added + EQUAL, "right")
        return bool((accuracies > known[upto] + EQUAL).any())

    def is_better(self, max_added: float, accuracies: Vector, added: Vector) -> bool:
        """Whether one of these is within the budget, and better than the best so far."""
        best, within = self.best(max_added), added <= max_added + EQUAL
        if best is None:
            return bool(within.any())
        cheaper = (accuracies >= best.accuracy - EQUAL) & (added < best.added - EQUAL)
        return bool((within & ((accuracies > best.accuracy + EQUAL) | cheaper)).any())

    def exchange(self, max_added: float, limit: int) -> None:
        """Exchange one fork of the best set, or of the cheapest where none is within the budget, while that helps."""
        left, before = iter(range(limit)), None
        while before != (now := self.best(max_added) or self.front[0]):
            before = now
            whole = self._options(now)
            for place, options in enumerate(self.options):
                for option in islice(options, sum(1 for _ in islice(left, len(options)))):
                    self.take((*whole[:place], option, *whole[place + 1 :]))

    def _options(self, choice: Choice) -> tuple[Option, ...]:
        """Behind its forks."""
        return tuple(
            max((each for each in options if each.fork == fork), key=lambda each: each.accuracy)
            for fork, options in zip(choice.forks, self.options, strict=True)
        )

    def best(self, max_added: float) -> Choice | None:
        """Of the front, within the budget."""
        return max(
            (each for each in self.front if each.added <= max_added + EQUAL),
            key=lambda each: each.accuracy,
            default=None,
        )

    def bound(self, max_added: float) -> float:
        """Of mean accuracy: by the floors, where they hold, or with the best of each."""
        within = self.sums[0].floors <= max_added + self.slack + EQUAL if self.sound else np.array(True)
        return float(np.where(within, self.sums[0].accuracies, 0.0).max())

    def _mean(self, options: Sequence[Option]) -> float:
        return sum(share * each.accuracy for share, each in zip(self.shares, options, strict=False))

    def _sums(self, floor: Floor) -> list[_Sums]:
        """For each place, of the tasks from there on."""
        found = [_Sums(np.zeros(1), np.zeros(1), ((),))]
        for share, options in zip(reversed(self.shares), reversed(self.options), strict=True):
            rest = found[-1]
            accuracies = np.array([share * each.accuracy for each in options])[:, None] + rest.accuracies
            floors = np.array([floor(each.fork) for each in options])[:, None] + rest.floors
            found.append(_best_sums(accuracies.ravel(), floors.ravel(), options, rest.options))
        return found[::-1]


def _best_sums(
    accuracies: Vector, floors: Vector, options: Sequence[Option], rest: Sequence[tuple[Option, ...]]
) -> _Sums:
    """Those that no other beats; of too many, groups of neighbours as one that is as good as any of them."""
    order = np.lexsort((-accuracies, floors))
    before = np.maximum.accumulate(np.concatenate([[-math.inf], accuracies[order][:-1]]))
    kept = order[accuracies[order] > before]
    groups = np.array_split(kept, min(len(kept), SUMS))
    last = [group[-1] for group in groups]
    sets = tuple((options[i // len(rest)], *rest[i % len(rest)]) for i in last)
    return _Sums(accuracies[last], floors[[group[0] for group in groups]], sets)
