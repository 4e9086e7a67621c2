"""What must be measured before a choice stands: against measuring everything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_joint import brute
from tiny_documents import profile, row
from tiny_results import result

from subtune_deploy.choice import Choice, Settled, decide, settle
from subtune_deploy.errors import CheckFailed, InputError
from subtune_deploy.joint import Forks, Option, multiset
from subtune_deploy.latency_model import Anchor, anchor
from subtune_deploy.pareto import front
from subtune_deploy.stats import Interval
from subtune_deploy.tuning.documents import Profile

BLOCKS = 4
NUMBER = st.integers(1, 8).map(lambda n: n / 8)
FORK = st.tuples(NUMBER, NUMBER, st.integers(0, 3), st.integers(0, 3))
"""Accuracy, true added latency, and by how many eighths the interval goes below and above it."""
LIMITS = st.sampled_from(
    [{}, {"max_added": 3 / 8}, {"min_accuracy": 0.5}, {"max_added": 0.5, "min_accuracy": 0.25}]
)


def timed(layers: tuple[int, ...], added: float) -> Anchor:
    return anchor(result(added, 0.0, layers=layers))


def decided(
    forks: list[tuple[float, float, int, int]], confirm: bool, limits: dict[str, float]
) -> tuple[Profile, Callable[[], Choice], Callable[[], Choice]]:
    """(the profile, the choice from predictions that are confirmed, the choice from measuring all)"""
    rows = [row((n,), (accuracy,)) for n, (accuracy, *_) in enumerate(forks, start=1)]
    made = profile(*rows)
    true = {(n,): added for n, (_, added, _, _) in enumerate(forks, start=1)}
    doubt = {(n,): (low / 8, high / 8) for n, (_, _, low, high) in enumerate(forks, start=1)}

    def predict(layers: tuple[int, ...], prune: object) -> Interval:
        low, high = doubt[layers]
        return Interval(true[layers] + (high - low) / 2, true[layers] - low, true[layers] + high)

    def measure(layers: tuple[int, ...], prune: object) -> tuple[Anchor, Callable[..., Interval]]:
        return timed(layers, true[layers]), predict

    predicted = lambda: decide(made, [], predict, measure if confirm else None, **limits)  # noqa: E731
    return made, predicted, lambda: decide(made, [timed(*each) for each in true.items()], **limits)


@given(st.lists(FORK, min_size=1, max_size=BLOCKS), LIMITS)
def test_predictions_that_were_confirmed_choose_as_measuring_all_does(
    forks: list[tuple[float, float, int, int]], limits: dict[str, float]
) -> None:
    _, confirmed, exhaustive = decided(forks, True, limits)
    try:
        expected = exhaustive()
    except InputError:
        with pytest.raises(InputError):
            confirmed()
        return
    found = confirmed()
    assert not found.chosen.predicted
    assert (found.chosen.accuracy.value, found.chosen.added.value) == pytest.approx(
        (expected.chosen.accuracy.value, expected.chosen.added.value)
    )
    if not limits:
        best = [(each.fork, each.predicted) for each in front(found.points)]
        assert best == [(each.fork, False) for each in front(expected.points)]


def test_only_what_can_change_the_choice_is_measured() -> None:
    forks = [(0.5, 1 / 8, 0, 0), (0.7, 3 / 8, 1, 1), (0.8, 5 / 8, 1, 1), (0.6, 2 / 8, 1, 1)]
    _, confirmed, _ = decided(forks, True, {"max_added": 4 / 8})
    found = confirmed()  # 2 likely keeps the limit, then 4 is no better; 3 might keep it too
    assert [str(each) for each in found.confirmed] == ["2", "3"]
    assert found.chosen.fork == "2"
    _, confirmed, _ = decided(forks, True, {"min_accuracy": 0.65})
    assert [str(each) for each in confirmed().confirmed] == ["2"]  # and it is cheaper than 3 can be


def test_without_confirmation_nothing_is_measured_and_the_choice_says_so() -> None:
    _, predicted, _ = decided([(0.5, 0.1, 1, 1), (0.7, 0.3, 1, 1)], False, {"min_accuracy": 0.6})
    assert predicted().chosen.predicted
    assert predicted().confirmed == ()


@pytest.mark.parametrize("most", [0, 1, 2, 3])
def test_no_more_is_measured_than_is_allowed(most: int) -> None:
    """Three forks, each of which might be the cheapest: two measurements settle it; what is chosen is measured."""
    rows = [row((n,), (0.9,)) for n in (1, 2, 3)]
    true = {(1,): 0.5, (2,): 0.4, (3,): 0.6}

    def predict(layers: tuple[int, ...], prune: object) -> Interval:
        return Interval(0.5, 0.45 if layers == (3,) else 0.3, 0.7)

    asked = list[tuple[int, ...]]()

    def measure(layers: tuple[int, ...], prune: object) -> tuple[Anchor, Callable[..., Interval]]:
        asked.append(layers)
        return timed(layers, true[layers]), predict

    choice = decide(profile(*rows), [], predict, measure, min_accuracy=0.5, most=most)
    assert len(asked) == len(choice.confirmed) == (2 if most >= 2 else 1)
    assert choice.left == (None if most >= 2 else "2")
    assert not next(point for point in choice.points if point.fork == choice.chosen.fork).predicted
    assert choice.chosen.fork == ("2" if most >= 2 else "1")


def test_where_nothing_is_likely_to_keep_the_limit_the_cheapest_is_measured_all_the_same() -> None:
    """Predicted above the limit, it lies below; no measurement was left for it."""

    def predict(layers: tuple[int, ...], prune: object) -> Interval:
        return Interval(0.5, 0.3, 0.7)

    def measure(layers: tuple[int, ...], prune: object) -> tuple[Anchor, Callable[..., Interval]]:
        return timed(layers, 0.35), predict

    choice = decide(profile(row((1,), (0.9,))), [], predict, measure, max_added=0.4, most=0)
    assert (choice.chosen.fork, choice.left) == ("1", None)


SETS = st.lists(st.lists(st.tuples(NUMBER, NUMBER, NUMBER), min_size=1, max_size=3), min_size=1, max_size=3)
"""By task, of each fork: accuracy, true added latency, and by how much of an eighth a set with it is told too cheap."""


class Tasks:
    """Options of some tasks; a set takes the sum of its forks, and is predicted to take less."""

    def __init__(self, forks: list[list[tuple[float, float, float]]]) -> None:
        self.true, self.error, self.measured = dict[str, float](), dict[str, float](), list[Forks]()
        self.options: dict[str, list[Option]] = {}
        for task, rows in enumerate(forks):
            for fork, (accuracy, added, error) in enumerate(rows):
                name = f"{task}.{fork}"
                self.true[name], self.error[name] = added, error / 8
                self.options.setdefault(f"task{task}", []).append(Option(name, accuracy))

    def takes(self, forks: Forks) -> float:
        return sum(self.true[str(fork)] for fork in forks)

    def measure(self, forks: Forks) -> Anchor:
        self.measured.append(forks)
        return timed((1,), self.takes(forks))

    def settled(self, max_added: float, **how: Any) -> Settled:
        def price(forks: Forks) -> float:
            return self.takes(forks) - sum(self.error[str(fork)] for fork in forks)

        return settle(self.options, price, self.measure, max_added, **how)


@given(SETS, NUMBER)
def test_a_set_that_was_measured_is_the_best_of_all(forks: list, max_added: float) -> None:
    """However much too cheap sets were told to be; none is measured twice."""
    tasks = Tasks(forks)
    within = [each for each in brute(tasks.options, tasks.takes, {}) if each.added <= max_added + 1e-9]
    if not within:
        with pytest.raises(InputError):
            tasks.settled(max_added)
        return
    found = tasks.settled(max_added)
    assert found.best.accuracy == pytest.approx(max(each.accuracy for each in within))
    assert found.measured is not None
    assert found.best.added == pytest.approx(tasks.takes(found.best.forks))
    assert found.best.added <= max_added + 1e-9
    assert found.left is None
    assert len(tasks.measured) == len(found.confirmed) == len({multiset(each) for each in tasks.measured})


@pytest.mark.parametrize("most", [0, 1, 2])
def test_of_sets_no_more_are_measured_than_allowed(most: int) -> None:
    """Two of the three are told too cheap."""
    tasks = Tasks([[(0.5, 0.2, 0.0), (0.7, 0.5, 4.0), (0.6, 0.4, 4.0)]])
    found = tasks.settled(0.25, most=most)
    assert len(tasks.measured) == most
    assert found.left is not None
    assert found.measured is None
    assert found.best == found.left  # predicted only
    assert tasks.settled(0.25, most=3).best.forks == ("0.0",)


def test_what_was_measured_before_is_not_measured_again() -> None:
    tasks = Tasks([[(0.5, 0.2, 0.0), (0.7, 0.5, 4.0)]])
    before = {multiset(("0.1",)): timed((1,), 0.5), multiset(("0.0",)): timed((1,), 0.2)}
    found = tasks.settled(0.25, known=before)
    assert (found.best.forks, found.measured, tasks.measured) == (("0.0",), before[multiset(("0.0",))], [])


def test_a_fork_that_cannot_be_measured_is_left_out_and_told() -> None:
    rows, true = [row((n,), (accuracy,)) for n, accuracy in ((1, 0.9), (2, 0.8))], {(1,): 0.2, (2,): 0.3}

    def predict(layers: tuple[int, ...], prune: object) -> Interval:
        return Interval(true[layers], 0.1, 0.4)

    def measure(layers: tuple[int, ...], prune: object) -> tuple[Anchor, Callable[..., Interval]]:
        if layers == (1,):
            raise CheckFailed("1 of 1 failed: 1 on cpu (parity)", "sweep again")
        return timed(layers, true[layers]), predict

    choice = decide(profile(*rows), [], predict, measure, max_added=0.35)
    assert (choice.chosen.fork, choice.chosen.predicted) == ("2", False)
    assert choice.failed == {"1": "1 of 1 failed: 1 on cpu (parity)"}
    assert [point.fork for point in choice.points] == ["2"]
    with pytest.raises(CheckFailed, match="1 of 1 failed"):  # where no other is left
        decide(profile(rows[0]), [], predict, measure, max_added=0.35)


def test_what_was_measured_of_a_part_bounds_no_set() -> None:
    """Alone the fork took more than it was told to; two of them take what was told."""
    tasks = Tasks([[(0.5, 0.1, 0.0)], [(0.5, 0.1, 0.0)]])
    before = {multiset(("0.0",)): timed((1,), 0.28)}
    found = tasks.settled(0.25, known=before, floor=lambda fork: 0.1)
    assert found.best.added == pytest.approx(0.2)
    assert found.together.exact


def test_a_set_that_was_measured_cheaper_than_its_parts_is_not_overlooked() -> None:
    """By their prices the two most accurate forks are beyond the budget; together they were measured within."""
    tasks = Tasks([[(0.5, 0.1, 0.0), (0.9, 0.3, 0.0)]] * 2)
    before = {multiset(("0.1", "1.1")): timed((1,), 0.45)}
    found = tasks.settled(0.5, known=before, floor=lambda fork: tasks.true[str(fork)])
    assert found.best.forks == ("0.1", "1.1")
    assert (found.best.added, found.together.exact, tasks.measured) == (pytest.approx(0.45), True, [])
