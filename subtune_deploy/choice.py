"""The fork to deploy: accuracies of a profile, latencies measured or predicted, and what must be measured to be sure.

choice = decide(profile, timed, predictor.added, measure, max_added=0.10)
choice.chosen.fork, choice.confirmed               # "13-14", and what had to be measured for that
settled = settle(tasks, price, measure, 0.30)       # the same for a set of forks of several tasks
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from . import joint
from .errors import CheckFailed
from .joint import (
    EQUAL,
    BudgetError,
    Floor,
    Forks,
    Multiset,
    Option,
    Price,
    Together,
    choose_together,
    multiset,
)
from .latency_model import Anchor, Predict
from .pareto import Point, choose, likely, undecided
from .spec import Pruning
from .tradeoff import join
from .tuning.documents import Profile

FAILURES = 3
"""Forks that may fail while they are measured; what fails more often is not the forks' fault."""


@dataclass(frozen=True)
class Choice:
    """`lacking`: forks of the profile without a latency. `confirmed`: what had to be measured first, in order.

    `left`: the fork that was to be measured next when no more was allowed, None where that did not happen. `failed`:
    forks that could not be measured, and why; they are left out.
    """

    points: tuple[Point, ...]
    chosen: Point
    lacking: tuple[str, ...]
    confirmed: tuple[Anchor, ...] = ()
    left: str | None = None
    failed: Mapping[str, str] = field(default_factory=dict)


Measure = Callable[[tuple[int, ...], Pruning | None], tuple[Anchor, Predict]]
"""Of a fork: what it takes, and what is predicted of all others now that this is known."""


def decide(
    profile: Profile,
    measured: Sequence[Anchor],
    predict: Predict | None = None,
    measure: Measure | None = None,
    *,
    max_added: float | None = None,
    min_accuracy: float | None = None,
    most: int = sys.maxsize,
) -> Choice:
    """As `pareto.choose` chooses. With `measure`, predicted forks that could change the choice are measured first, as
    many as `most`, and beyond that what is chosen. Some of which `measure` raises CheckFailed are left out, while there
    are others.

    Raises what `choose`, `join` and `measure` do.
    """
    limits = {"max_added": max_added, "min_accuracy": min_accuracy}
    rows = {row.fork: (row.layers, row.prune) for row in profile.rows}
    known, confirmed, left, failed = list(measured), list[Anchor](), None, dict[str, str]()
    points, lacking = join(profile, known, predict)
    while measure is not None and (point := undecided(points, **limits)) is not None:
        if len(confirmed) + len(failed) >= most:
            left, point = point.fork, likely(points, **limits)
            if not point.predicted:
                break
        try:
            found, predict = measure(*rows[point.fork])
            known.append(found)
            confirmed.append(found)
        except CheckFailed as error:
            if len(failed) == FAILURES or len(points) == 1:
                raise
            failed[point.fork] = error.message
            profile = _without(profile, point.fork)
        points, lacking = join(profile, known, predict)
    else:
        left = None
    return Choice(tuple(points), choose(points, **limits), lacking, tuple(confirmed), left, failed)


def _without(profile: Profile, fork: str) -> Profile:
    return replace(profile, rows=tuple(row for row in profile.rows if row.fork != fork))


@dataclass(frozen=True)
class Settled:
    """`best` costs what `measured` says, or, if that is None, what is predicted. `together`: the last search.

    `confirmed`: what was measured, in order. `left`: the set that was to be measured next when no more was allowed.
    """

    best: joint.Choice
    measured: Anchor | None
    together: Together
    confirmed: tuple[Anchor, ...]
    left: joint.Choice | None = None


def settle(
    tasks: Mapping[str, Sequence[Option]],
    price: Price,
    measure: Callable[[Forks], Anchor],
    max_added: float,
    *,
    weights: Mapping[str, float] | None = None,
    floor: Floor | None = None,
    known: Mapping[Multiset, Anchor] | None = None,
    most: int = sys.maxsize,
) -> Settled:
    """What `choose_together` finds is measured, and chosen again, until the best has been measured.

    A set costs what was measured of it, now or as `known`, or else `price`, which may have learnt meanwhile; one that
    is predicted to exceed `max_added` is not looked at. No more than `most` are measured now; then the best of those,
    or else the best by predictions. Raises what `choose_together` and `measure` do.
    """
    measured, within, new, found = dict(known or {}), list[joint.Choice](), list[Anchor](), None

    def costs(forks: Forks) -> float:
        whole = len(forks) == len(tasks)  # a part must not cost more than its bounds allow for
        known = measured.get(multiset(forks)) if whole else None
        return price(forks) if known is None else known.added.value

    while True:
        best = max(within, key=lambda each: each.accuracy, default=None)
        shown = measured[multiset(best.forks)] if best else None
        try:
            found = choose_together(
                tasks,
                costs,
                max_added=max_added,
                weights=weights,
                floor=floor,
                slack=_slack(tasks, price, measured),
            )
        except BudgetError:  # all of them, or all others
            if best is None or found is None:
                raise
            return Settled(best, shown, found, tuple(new))
        if best is not None and best.accuracy >= found.best.accuracy - EQUAL:
            return Settled(best, shown, found, tuple(new))
        key = multiset(found.best.forks)
        if key not in measured and len(new) >= most:
            return Settled(best or found.best, shown, found, tuple(new), found.best)
        if key not in measured:
            new.append(measure(found.best.forks))
            measured[key] = new[-1]
        if (added := measured[key].added.value) <= max_added + EQUAL:
            within.append(replace(found.best, added=added))


def _slack(tasks: Mapping[str, Sequence[Option]], price: Price, measured: Mapping[Multiset, Anchor]) -> float:
    """By how much, at most, a whole set was measured to add less than its price."""
    offered = {option.fork for options in tasks.values() for option in options}
    sets = ((tuple(Counter(dict(key)).elements()), each.added.value) for key, each in measured.items())
    whole = ((forks, added) for forks, added in sets if len(forks) == len(tasks) and offered >= {*forks})
    return max((0.0, *(price(forks) - added for forks, added in whole)))
