"""Accuracy against added latency: which forks no other one beats in both, the knee, and the choice under limits.

    best = front(points)                               # cheapest first
    choose(points, max_added=0.10).fork                # "13-14"

Dominance is exact, on the values; what intervals leave open is told beside it (`open_rivals`), and which predicted
points have to be measured before a choice stands (`undecided`). Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from .errors import InputError
from .stats import Interval


@dataclass(frozen=True)
class Point:
    """One fork: `accuracy` 0..1 and `added` latency relative to the base, each with its 95 % interval.

    `predicted`: the latency comes from a model, it was not measured.
    """

    fork: str
    accuracy: Interval
    added: Interval
    predicted: bool = False


def dominates(one: Point, other: Point) -> bool:
    """Whether `one` is at least as good in both and better in one."""
    mine, its = (one.accuracy.value, -one.added.value), (other.accuracy.value, -other.added.value)
    return mine != its and mine[0] >= its[0] and mine[1] >= its[1]


def front(points: Sequence[Point]) -> tuple[Point, ...]:
    """Points that none dominates, cheapest first; equals in both stand there together. Raises InputError (NaN)."""
    _check(points)
    found: list[Point] = []
    for point in sorted(points, key=lambda each: (each.added.value, -each.accuracy.value)):
        if not found or not dominates(found[-1], point):
            found.append(point)
    return tuple(found)


def open_rivals(points: Sequence[Point]) -> dict[str, tuple[str, ...]]:
    """Of dominated forks, those that intervals do not show to be worse, and than which of the front.

    A fork is shown to be worse where one of the front has its whole intervals on the better side of both.
    """
    best = front(points)
    found = {}
    for point in points:
        rivals = [each for each in best if dominates(each, point)]
        if rivals and not any(_surely(each, point) for each in best):
            found[point.fork] = tuple(each.fork for each in rivals)
    return found


def _surely(one: Point, other: Point) -> bool:
    return one.accuracy.low >= other.accuracy.high and one.added.high <= other.added.low


def knee(best: Sequence[Point]) -> Point | None:
    """Of a front, the point farthest above the line from its cheapest to its most accurate; None if none is above.

    Both axes are taken from 0 to 1 of the front's range.
    """
    if len(best) < 3:
        return None
    first, last = best[0], best[-1]
    width, height = last.added.value - first.added.value, last.accuracy.value - first.accuracy.value
    if not width or not height:
        return None

    def above(point: Point) -> float:
        right = (point.added.value - first.added.value) / width
        return (point.accuracy.value - first.accuracy.value) / height - right

    found = max(best, key=above)
    return found if above(found) > 0 else None


def choose(
    points: Sequence[Point], *, max_added: float | None = None, min_accuracy: float | None = None
) -> Point:
    """The most accurate fork within `max_added`; the cheapest of at least `min_accuracy`; with both, the most accurate
    that keeps them; with neither, the knee, or the most accurate where there is none.

    Of equals the cheaper, or the more accurate. Raises InputError, naming the nearest, where none keeps the limits.
    """
    best = front(points)
    if max_added is None and min_accuracy is None:
        return knee(best) or best[-1]
    within = [each for each in best if max_added is None or each.added.value <= max_added]
    if not within:
        raise InputError(
            f"no fork adds at most {max_added:.1%}: the cheapest, {best[0].fork}, adds {best[0].added.value:.1%}",
            "raise --max-added",
        )
    kept = [each for each in within if min_accuracy is None or each.accuracy.value >= min_accuracy]
    if not kept:
        where = "" if max_added is None else f" within {max_added:.1%} of added latency"
        raise InputError(
            f"no fork has an accuracy of {min_accuracy:.1%}{where}: the nearest, {within[-1].fork}, has "
            f"{within[-1].accuracy.value:.1%}",
            "lower --min-accuracy" if max_added is None else "lower --min-accuracy, or raise --max-added",
        )
    return kept[0] if max_added is None else kept[-1]


def undecided(points: Sequence[Point], **limits: float | None) -> Point | None:
    """The predicted point to measure next before `choose` may be trusted under these limits; None if none is needed.

    A predicted point matters if it would be chosen were it as cheap as its interval allows and all other predicted
    ones as dear; without limits, if it would then be on the front. What is likely to be chosen comes first; then,
    within a limit of latency, the most accurate, else the cheapest: if it holds what is predicted of it, the others
    need not be measured. Raises what `choose` does of the points where not even the cheapest values keep the limits.
    """
    cheap, dear = ([_at(each, place) for each in points] for place in ("low", "high"))
    first = likely(points, **limits)
    open_ones = [
        point
        for index, point in enumerate(points)
        if point.predicted and _matters([*dear[:index], cheap[index], *dear[index + 1 :]], index, limits)
    ]
    if not open_ones:
        return None
    if any(limits.values()) and first in open_ones:
        return first
    if limits.get("max_added") is None:
        return min(open_ones, key=lambda each: each.added.value)
    return max(open_ones, key=lambda each: each.accuracy.value)


def likely(points: Sequence[Point], **limits: float | None) -> Point:
    """As `choose`; where no value keeps the limits, what it chooses of points as cheap as their intervals allow.

    Raises what `choose` does of the points where those keep them neither.
    """
    try:
        return choose(points, **limits)
    except InputError as error:
        try:
            chosen = choose([_at(each, "low") for each in points], **limits)
        except InputError:
            raise error from None
        return next(each for each in points if each.fork == chosen.fork)


def _matters(points: Sequence[Point], index: int, limits: Mapping[str, float | None]) -> bool:
    if all(limit is None for limit in limits.values()):
        return points[index] in front(points)
    try:
        return choose(points, **limits) == points[index]
    except InputError:  # it does not keep the limits even so
        return False


def _at(point: Point, place: str) -> Point:
    """With its latency at one end of the interval; what was measured stays."""
    if not point.predicted:
        return point
    value = getattr(point.added, place)
    return replace(point, added=Interval(value, value, value))


def check_interval(fork: str, what: str, each: Interval) -> None:
    """Raise InputError unless the number lies in its interval; NaN does not."""
    if not each.low <= each.value <= each.high:
        raise InputError(
            f"{what} of fork {fork} is {each.value}, from {each.low} to {each.high}",
            "give a number within its interval",
        )


def check_added(fork: str, each: Interval) -> None:
    """Raise InputError where so much less than the base's latency leaves none."""
    if each.value <= -1:
        raise InputError(
            f"fork {fork} adds {each.value:.0%} of the base's latency",
            "measure it again: a ratio of two times is above 0",
        )


def _check(points: Sequence[Point]) -> None:
    if not points:
        raise InputError("there is no fork to choose from", "give forks with both accuracy and latency")
    for point in points:
        check_interval(point.fork, "accuracy", point.accuracy)
        check_interval(point.fork, "added latency", point.added)
        if not point.predicted:  # a prediction may be as vague as it likes
            check_added(point.fork, point.added)
