"""A profile's accuracies and a sweep's latencies become points; the picture of the two.

profile, timed = read_document(Profile, path), latencies(run, profile, tasks=1)
points, lacking = join(profile, timed)                 # lacking: forks of the profile that were not timed
draw_tradeoff(profile, points, Path("pareto.svg"), chosen=choose(points))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import InputError
from .latency_model import Anchor, Predict, anchor
from .pareto import Point, front
from .precision_search import Found
from .results import Result, check_comparable, check_one_batch, nearest_heads, of_target, read_results
from .run_folder import check_blocks
from .stats import Interval, mean_interval, share_interval
from .tuning.documents import Profile, Row
from .tuning.drawing import (
    COLOURS,
    MARKERS,
    caption,
    colour,
    drawn,
    in_percent,
    key,
    legend_below,
    stage_names,
    stages,
)
from .tuning.settings import Fork

HEAD = "0.5"
"""Colour of the head alone."""

Key = tuple[tuple[int, ...], str]
"""What tells forks apart: the blocks, and how they were made thinner."""


def latencies(run: Path, profile: Profile, *, tasks: int = 1, target: str | None = None) -> list[Anchor]:
    """What `run` measured with so many tasks on one target, of the profile's network.

    Of each fork, with heads of the number of classes that comes nearest to the profile's. Raises InputError where there
    are none, or they are of another model, input or of several targets.
    """
    check_blocks(run, profile.blocks, "the profile")
    found = [each for each in read_results(run) if each.tasks == tasks]
    if not found:
        on = f" on {target}" if target else ""
        raise InputError(f"{run} has no result with {tasks} tasks{on}", "sweep with --tasks and --target so")
    found = nearest_heads(of_target(run, found, target), head_of(profile))
    for each in found:
        check_same(each, profile, run)
    check_comparable(found)
    check_one_batch(run, found)
    return [anchor(each) for each in found]


def head_of(profile: Profile) -> int | None:
    """Classes of its data, where it tells."""
    return profile.data.get("classes")


def other_heads(profile: Profile, measured: Sequence[Anchor]) -> str:
    """Says so where tasks were measured with another number of classes than the profile's have; else empty."""
    wanted = head_of(profile)
    others = {each.head for each in measured} - {wanted}
    if not others or wanted is None:
        return ""
    told = [f"{each:,} classes" for each in sorted(filter(None, others))]
    told += ["as many classes as the base has"] if None in others else []
    return f"timed with heads of {' and '.join(told)}, the profile has {wanted:,}: measure with --classes {wanted}"


def check_same(result: Result, profile: Profile, run: Path) -> None:
    """Raise InputError unless a result of `run` is of the profile's network, at the size that it was trained at."""
    if result.model != profile.model:
        raise InputError(
            f"{run} is of {result.model}, the profile of {profile.model}", "give both of one model"
        )
    if result.input_shape != profile.input:
        sizes = ("x".join(map(str, shape)) for shape in (result.input_shape, profile.input))
        raise InputError(
            "{} was measured on input {}, the profile is of {}".format(run, *sizes), "give both of one size"
        )
    if result.layers and max(result.layers) > len(profile.blocks):
        raise InputError(
            f"{run} has fork {result.fork}, the profile {len(profile.blocks)} blocks",
            "give both of one block table",
        )


def join(
    profile: Profile, measured: Sequence[Anchor], predict: Predict | None = None
) -> tuple[list[Point], tuple[str, ...]]:
    """Points of the forks that have both, and names of those of the profile that lack a latency.

    Of what was measured, graphs count whose tasks all have one fork. What was not timed is predicted by `predict`,
    where there is one. A Siamese head or blocks begun anew change no latency that a sweep of plain forks could tell:
    such rows are left out. Raises InputError where no fork has both.
    """
    timed = {which: each for each in measured if (which := _key(each))}
    points, lacking = list[Point](), list[str]()
    for which, row in _plain_rows(profile).items():
        if which in timed:
            points.append(Point(row.fork, _accuracy(row, profile), timed[which].added))
        elif predict is not None:
            added = predict(row.layers, row.prune)
            points.append(Point(row.fork, _accuracy(row, profile), added, predicted=True))
        else:
            lacking.append(row.fork)
    lacking += [row.fork for row in profile.rows if _plain(row) and not _of_blocks(row)]
    if not points:
        raise InputError(
            "no fork was both trained and timed", "profile and sweep the same forks, as with --span 1"
        )
    return points, tuple(lacking)


def accuracies(profile: Profile, measured: Sequence[Anchor]) -> list[Interval | None]:
    """Of the fork of each graph, by the same rule; None where it was not trained."""
    known = {which: _accuracy(row, profile) for which, row in _plain_rows(profile).items()}
    return [known.get(which) if (which := _key(each)) else None for each in measured]


def head_alone(profile: Profile) -> Interval | None:
    """Accuracy without any fork, where the profile has that row."""
    row = next((row for row in profile.rows if not row.layers and not row.siamese), None)
    return None if row is None else _accuracy(row, profile)


def predictable(profile: Profile) -> list[Row]:
    """Forks whose latency follows from their blocks."""
    return [*_plain_rows(profile).values()]


def _plain_rows(profile: Profile) -> dict[Key, Row]:
    rows = [row for row in profile.rows if _plain(row) and _of_blocks(row)]
    return {(row.layers, str(row.prune or "")): row for row in rows}


def _key(measured: Anchor) -> Key | None:
    """None where tasks have different forks: no row of a profile is of such a graph."""
    alike = set(measured.forks)
    return (alike.pop(), str(measured.prune or "")) if len(alike) == 1 else None


def _plain(row: Row) -> bool:
    return not row.siamese and row.init == "pretrained"


def _of_blocks(row: Row) -> bool:
    """Full fine-tuning tunes more than blocks: a fork of all of them leaves the stem as it is."""
    return not row.fork.startswith("all")


def candidates(profile: Profile) -> tuple[dict[Fork, Interval], tuple[str, ...]]:
    """Accuracies of the forks that a model of latency can price, and names of those that are left out.

    These are Siamese heads, blocks begun anew and, since it tunes more than blocks, full fine-tuning.
    """
    rows = predictable(profile)
    found = {Fork(row.layers, prune=row.prune): _accuracy(row, profile) for row in rows}
    if not found:
        raise InputError(
            "the profile has no fork that can be priced", "profile plain forks, as with --span 1"
        )
    return found, tuple(row.fork for row in profile.rows if row not in rows)


def check_profiles(
    profiles: Mapping[str, Profile], model: str, size: tuple[int, ...], blocks: Sequence[str]
) -> None:
    """Raises InputError unless all, by task, are of this network, and of the same weights of it."""
    weights = next(iter(profiles.values())).weights
    wanted = {"model": model, "input": tuple(size), "blocks": tuple(blocks), "weights": weights}
    for name, profile in profiles.items():
        for what, mine in wanted.items():
            if getattr(profile, what) != mine:
                told = (_short(getattr(profile, what)), _short(mine))
                raise InputError(
                    "the profile of {} is of {} {}, not {}".format(name, what, *told),
                    "all tasks of a graph share one network with its weights: profile them on it, and give the same "
                    "--model, --input-size and --blocks",
                )


def _short(value: Any) -> str:
    if not isinstance(value, tuple):
        return str(value)
    if all(isinstance(each, int) for each in value):
        return "x".join(map(str, value))
    return f"{value[0]} to {value[-1]} ({len(value)})" if value else "none"


def _accuracy(row: Row, profile: Profile) -> Interval:
    """Over several seeds, Student's interval; of one, or of equal ones, that of a share of so many test pictures."""
    if len(set(row.accuracies)) > 1:
        found = mean_interval(row.accuracies)
        return Interval(found.value, max(0.0, found.low), min(1.0, found.high))
    share, pictures = row.accuracy, int(profile.data.get("test", 0))
    return share_interval(share, pictures) if pictures else Interval(share, 0.0, 1.0)


def draw_tradeoff(profile: Profile, points: Sequence[Point], path: Path, chosen: Point | None = None) -> None:
    """Accuracy by added latency, a fork in the colour of the stage where it begins; the front as a line (figure 7)."""
    first = {row.fork: row.layers[0] for row in profile.rows if row.layers}
    place_of = stages(profile.shapes)

    def paint(point: Point) -> str:
        return colour(place_of[first[point.fork] - 1]) if point.fork in first else HEAD

    with drawn(path, size=(6.6, 4.4)) as (figure, ((place,),)):
        for point in points:
            place.errorbar(
                point.added.value, point.accuracy.value,
                xerr=_arms(point.added), yerr=_arms(point.accuracy), color=paint(point), marker=MARKERS[0],
                markersize=4.5, elinewidth=0.6, markerfacecolor="white" if point.predicted else paint(point),
            )  # fmt: skip
        best = front(points)
        place.plot([p.added.value for p in best], [p.accuracy.value for p in best], color="0.3", zorder=0)
        for point in best:
            place.annotate(
                point.fork,
                (point.added.value, point.accuracy.value),
                (4, 4),
                textcoords="offset points",
                fontsize=7,
                rotation=45,
            )
        if chosen:
            place.plot(chosen.added.value, chosen.accuracy.value, "*", color="black", markersize=12, zorder=5)
        place.set(xlabel="added latency", ylabel="accuracy", title=caption(profile))
        place.set_xlim(left=0)
        in_percent(place, "x")
        in_percent(place)
        handles = [
            key(name, colour(i), marker="o", linestyle="")
            for i, name in enumerate(stage_names(profile.shapes))
        ]
        if any(point.fork not in first for point in points):
            handles.append(key("the head alone", HEAD, marker="o", linestyle=""))
        if any(point.predicted for point in points):
            handles.append(key("predicted", "0.3", marker="o", linestyle="", markerfacecolor="white"))
        handles.append(key("not dominated", "0.3"))
        if chosen:
            handles.append(key(f"chosen: {chosen.fork}", "black", marker="*", markersize=9, linestyle=""))
        legend_below(figure, handles)


def draw_precisions(found: Found, path: Path) -> None:
    """Inputs that change their class by latency, both against fp32; those that nothing beats as a line.

    Hollow: beyond the tolerance, which is the dashed line. Raises what `drawn` does.
    """
    timed = [(each, each.ratio) for each in found.options if each.ratio]
    with drawn(path, size=(6.6, 4.4)) as (figure, ((place,),)):
        for each, ratio in timed:
            face = COLOURS[0] if each.within else "white"
            place.errorbar(
                ratio.value, each.changed, xerr=_arms(ratio), color=COLOURS[0], elinewidth=0.6, marker=MARKERS[0],
                markersize=4.5, markerfacecolor=face,
            )  # fmt: skip
            if each.name == found.name:
                place.plot(ratio.value, each.changed, "*", color="black", markersize=12, zorder=5)
            place.annotate(
                each.name, (ratio.value, each.changed), (4, 4), textcoords="offset points", fontsize=7
            )
        best = sorted((ratio.value, each.changed) for each, ratio in timed if each.front)
        place.plot(*zip(*best, strict=True), color="0.3", zorder=0)
        place.axhline(found.max_changed, color="0.6", linestyle="--", linewidth=0.8)
        place.set(xlabel="latency, times that of fp32", ylabel="inputs with another class than in fp32")
        in_percent(place)
        legend_below(
            figure,
            [
                key("not dominated", "0.3"),
                key("tolerance", "0.6", linestyle="--"),
                key(f"chosen: {found.name}", "black", marker="*", markersize=9, linestyle=""),
                key("beyond the tolerance", COLOURS[0], marker="o", linestyle="", markerfacecolor="white"),
            ],
        )


def _arms(interval: Interval) -> list[list[float]]:
    return [[interval.value - interval.low], [interval.high - interval.value]]


def told(point: Point) -> tuple[str, str, str]:
    """Cells of a table: fork, accuracy and added latency with half their intervals."""
    cells = (in_words(point.accuracy), in_words(point.added, "+"))
    return point.fork, cells[0], cells[1] + (" (predicted)" if point.predicted else "")


def in_words(interval: Interval, sign: str = "") -> str:
    """A share in per cent, with half its interval."""
    half = max(interval.high - interval.value, interval.value - interval.low)
    return f"{100 * interval.value:{sign}.1f} ± {100 * half:.1f} %"
