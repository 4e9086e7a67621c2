"""Dominance against brute force, knees and choices by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from subtune_deploy.errors import InputError
from subtune_deploy.pareto import Point, choose, dominates, front, knee, open_rivals, undecided
from subtune_deploy.stats import Interval


def point(fork: str, accuracy: float, added: float, width: float = 0.0, slack: float = 0.0) -> Point:
    return Point(
        fork,
        Interval(accuracy, accuracy - width, accuracy + width),
        Interval(added, added - slack, added + slack),
    )


POINTS = (
    point("16", 0.80, 0.05),
    point("15-16", 0.90, 0.10),
    point("14-16", 0.93, 0.20),
    point("1-3", 0.94, 0.90),
    point("1", 0.75, 0.95),
    point("14", 0.89, 0.12),
)


def named(points: tuple[Point, ...]) -> list[str]:
    return [each.fork for each in points]


def test_the_front_by_hand() -> None:
    assert named(front(POINTS)) == ["16", "15-16", "14-16", "1-3"]


NUMBERS = st.integers(0, 5).map(lambda n: n / 8)


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=12))
def test_the_front_is_what_brute_force_leaves(pairs: list[tuple[float, float]]) -> None:
    points = [point(str(i), *pair) for i, pair in enumerate(pairs)]
    left = {p.fork for p in points if not any(dominates(other, p) for other in points)}
    found = front(points)
    assert set(named(found)) == left
    assert [p.added.value for p in found] == sorted(p.added.value for p in found)


def test_equals_stand_together_and_neither_dominates() -> None:
    twins = point("2", 0.9, 0.1), point("3", 0.9, 0.1)
    assert not dominates(*twins)
    assert named(front(twins)) == ["2", "3"]
    assert dominates(point("4", 0.9, 0.05), twins[0])
    assert dominates(point("4", 0.95, 0.1), twins[0])


def test_what_intervals_leave_open_is_told() -> None:
    """Block 14 may be as good as 15-16 where accuracies are known to 2 points; with 0.4 points it may not."""
    wide = [point(p.fork, p.accuracy.value, p.added.value, 0.02, 0.03) for p in POINTS]
    assert open_rivals(wide)["14"] == ("15-16",)
    assert "1" not in open_rivals(wide)
    narrow = [point(p.fork, p.accuracy.value, p.added.value, 0.004, 0.005) for p in POINTS]
    assert open_rivals(narrow) == {}


def test_the_knee_by_hand() -> None:
    """From (5 %, 80 %) to (90 %, 94 %): 15-16 stands 0.714 - 0.059 above, 14-16 0.929 - 0.176: the more."""
    found = knee(front(POINTS))
    assert found is not None
    assert found.fork == "14-16"


def test_a_straight_hollow_or_short_front_has_no_knee() -> None:
    straight = [point(str(i), i / 8, i / 8) for i in range(3)]
    assert knee(front(straight)) is None
    hollow = [point("a", 0.0, 0.0), point("b", 0.1, 0.5), point("c", 1.0, 1.0)]
    assert knee(front(hollow)) is None
    assert knee(front(straight[:2])) is None
    assert knee(front([point("a", 0.5, 0.5)] * 3)) is None


@pytest.mark.parametrize(
    "limits, fork",
    [
        ({"max_added": 0.10}, "15-16"),
        ({"max_added": 0.5}, "14-16"),
        ({"min_accuracy": 0.85}, "15-16"),
        ({"min_accuracy": 0.94}, "1-3"),
        ({"max_added": 0.30, "min_accuracy": 0.85}, "14-16"),
        ({}, "14-16"),
    ],
)
def test_choices_by_hand(limits: dict[str, float], fork: str) -> None:
    assert choose(POINTS, **limits).fork == fork


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=12), NUMBERS)
def test_no_other_fork_within_the_limit_is_better(pairs: list[tuple[float, float]], limit: float) -> None:
    points = [point(str(i), *pair) for i, pair in enumerate(pairs)]
    within = [p for p in points if p.added.value <= limit]
    if within:
        found = choose(points, max_added=limit)
        assert found in within
        assert found.accuracy.value == max(p.accuracy.value for p in within)


def test_without_a_knee_it_is_the_most_accurate() -> None:
    assert choose(POINTS[:2]).fork == "15-16"


def test_limits_that_nothing_keeps_name_the_nearest() -> None:
    with pytest.raises(InputError, match=r"at most 1\.0%: the cheapest, 16, adds 5\.0%"):
        choose(POINTS, max_added=0.01)
    with pytest.raises(InputError, match=r"accuracy of 99\.0%: the nearest, 1-3, has 94\.0%"):
        choose(POINTS, min_accuracy=0.99)
    with pytest.raises(InputError, match=r"within 10\.0% of added latency: the nearest, 15-16") as caught:
        choose(POINTS, max_added=0.1, min_accuracy=0.92)
    assert caught.value.hint == "lower --min-accuracy, or raise --max-added"


@pytest.mark.parametrize("bad", [float("nan"), 2.0])
def test_a_number_outside_its_interval_is_refused(bad: float) -> None:
    broken = Point("13", Interval(bad, 0.8, 0.9), Interval(0.1, 0.1, 0.1))
    with pytest.raises(InputError, match="accuracy of fork 13"):
        front([*POINTS, broken])
    with pytest.raises(InputError, match="no fork to choose from"):
        choose([])


def test_where_no_prediction_may_keep_the_limit_the_nearest_is_told_by_its_value() -> None:
    vague = [replace(point("4", 0.9, 0.05, slack=0.03), predicted=True)]
    with pytest.raises(InputError, match=r"the cheapest, 4, adds 5\.0%"):
        undecided(vague, max_added=0.01)
    assert undecided(vague, max_added=0.04) == vague[0]


def test_what_was_measured_takes_time_and_what_is_predicted_may_be_vague() -> None:
    nothing = point("4", 0.9, -1.5, slack=0.1)
    with pytest.raises(InputError, match="fork 4 adds -150%"):
        front([nothing])
    vague = replace(point("4", 0.9, 0.1, slack=1.5), predicted=True)
    assert undecided([vague], max_added=0.2) == vague
