"""The paper's pictures that are curves, from documents: profiles (figures 1, 2, 9, 13, 17), accuracy by labelled
pictures (1 right, 11), pruning (16). Those that are grids are drawn in `maps`.

    draw_profile(read_profile(Path("profile.json")), Path("profile.svg"))

Each writes SVG, PNG or PDF by the name's ending. Raises InputError for an ending that is none of these, or where
the document has nothing to draw; Unavailable without matplotlib.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ..errors import InputError
from ..spec import format_layers
from .documents import STRATEGIES, Active, Profile, Row, mean_and_std
from .drawing import (
    GREY,
    MARKERS,
    caption,
    colour,
    drawn,
    in_percent,
    is_plain,
    key,
    legend_below,
    stage_names,
    stages,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curves: TypeAlias = Mapping[str, Mapping[int, Sequence[float]]]
"""By name: accuracies over seeds, by number of pictures."""

ENDS = {"none": ("head alone", (0, (4, 2))), "all": ("full fine-tuning", (0, (1, 1.5)))}
"""The two ends of SubTuning, drawn as lines of these dashes."""

PERCENT = (*(n / 10 for n in range(1, 10)), 0.95, 0.97, 0.98, 0.99, 0.995, 0.999)
"""Ticks of an axis of log odds."""


def draw_profile(profile: Profile, path: Path) -> None:
    """Accuracy by place of the fork, one panel for each number of consecutive blocks; bars: ± one deviation.

    The colour is that of the stage, two colours where a fork lies in two. Where forks were trained in several
    ways (Siamese, from scratch, pruned), the colour is that of the way.
    """
    panels = _panels(profile)
    ways = list(dict.fromkeys(_way(row) for rows in panels.values() for row in rows))
    widths = [1.0 + 0.2 * max(4, len({row.layers for row in rows})) for rows in panels.values()]
    size = (sum(widths) + 0.4, 3.2)
    with drawn(path, 1, len(panels), size=size, sharey=True, width_ratios=widths) as (figure, (places,)):
        for place, (title, rows) in zip(places, panels.items(), strict=True):
            _place_forks(place, rows)
            _draw_ends(place, profile)
            if len(ways) == 1:
                _draw_by_stage(place, profile, rows)
            else:
                _draw_by_way(place, rows, ways)
            place.set(title=title, xlabel="tuned block" if title == "1 block" else "tuned blocks")
        places[0].set_ylabel("accuracy")
        in_percent(places[0])
        figure.suptitle(caption(profile))
        legend_below(figure, [*_colour_keys(profile, ways), *_ends(profile)])


def _colour_keys(profile: Profile, ways: Sequence[str]) -> list[Any]:
    if len(ways) == 1:
        names = enumerate(stage_names(profile.shapes))
        return [key(name, colour(i), marker="o", linestyle="") for i, name in names]
    return [key(way, colour(i), marker=MARKERS[i % len(MARKERS)]) for i, way in enumerate(ways)]


def _panels(profile: Profile) -> dict[str, list[Row]]:
    """Rows by the number of blocks in a run; other forks last."""
    found: dict[str, list[Row]] = {}
    for row in sorted(profile.rows, key=lambda row: (len(row.layers), row.layers)):
        if row.layers and row.fork != "all":
            found.setdefault(_kind(row), []).append(row)
    if not found:
        raise InputError("the profile has no fork to draw", "profile at least one, as with --span 1")
    return dict(sorted(found.items(), key=lambda item: item[0] == OTHERS))


OTHERS = "other forks"


def _kind(row: Row) -> str:
    low, high, count = row.layers[0], row.layers[-1], len(row.layers)
    if high - low + 1 != count:
        return OTHERS
    return "1 block" if count == 1 else f"{count} consecutive blocks"


def _way(row: Row) -> str:
    """How the fork was trained, as its spelling says it behind the blocks."""
    words = row.fork.partition(" ")[2]
    return {"": "SubTuning", "siamese": "Siamese SubTuning"}.get(words, words)


def _place_forks(place: Axes, rows: Sequence[Row]) -> None:
    names = list(dict.fromkeys(format_layers(row.layers) for row in rows))
    upright = len(names) > 6 and max(map(len, names)) > 2
    place.set_xticks(range(len(names)), names, rotation=90 if upright else 0)
    place.set_xlim(-0.6, len(names) - 0.4)
    place.grid(visible=False, axis="x")


def _positions(place: Axes, rows: Sequence[Row]) -> list[int]:
    names = [label.get_text() for label in place.get_xticklabels()]
    return [names.index(format_layers(row.layers)) for row in rows]


def _draw_by_stage(place: Axes, profile: Profile, rows: Sequence[Row]) -> None:
    stage, x = stages(profile.shapes), _positions(place, rows)
    _draw_bars(place, x, rows, color=GREY)
    place.plot(x, [row.accuracy for row in rows], color="0.75", linewidth=0.9, zorder=1.5)
    for at, row in zip(x, rows, strict=True):
        first, last = (colour(stage[row.layers[end] - 1]) for end in (0, -1))
        place.plot(at, row.accuracy, "o", markersize=6.8, color="white", zorder=3)
        place.plot(
            at, row.accuracy, "o", markersize=5.8, zorder=3.1, markeredgewidth=0, color=first,
            fillstyle="full" if first == last else "left", markerfacecoloralt=last,
        )  # fmt: skip


def _draw_by_way(place: Axes, rows: Sequence[Row], ways: Sequence[str]) -> None:
    for index, way in enumerate(ways):
        mine = [row for row in rows if _way(row) == way]
        x = [at + 0.08 * (index - (len(ways) - 1) / 2) for at in _positions(place, mine)]
        _draw_bars(place, x, mine, color=colour(index))
        place.plot(
            x, [row.accuracy for row in mine], color=colour(index), marker=MARKERS[index % len(MARKERS)],
            markersize=4.5, linewidth=0.9,
        )  # fmt: skip


def _draw_bars(place: Axes, x: Sequence[float], rows: Sequence[Row], **how: Any) -> None:
    place.errorbar(
        x, [row.accuracy for row in rows], [row.std or 0 for row in rows], fmt="none", elinewidth=0.9, **how
    )


def _draw_ends(place: Axes, profile: Profile) -> None:
    for row in profile.rows:
        if row.fork in ENDS:
            place.axhline(row.accuracy, color="0.3", linestyle=ENDS[row.fork][1], linewidth=1)


def _ends(profile: Profile) -> list[Any]:
    there = {row.fork for row in profile.rows}
    return [key(name, "0.3", linestyle=dash) for fork, (name, dash) in ENDS.items() if fork in there]


def draw_active(active: Active, path: Path) -> None:
    """Accuracy by labelled pictures, chosen by margin and at random (figure 11)."""
    points: dict[tuple[str, str], dict[int, list[float]]] = {}
    for row in active.rows:
        points.setdefault((row.fork, row.strategy), {}).setdefault(row.examples, []).append(row.accuracy)
    colours = {fork: colour(i) for i, fork in enumerate(dict.fromkeys(row.fork for row in active.rows))}
    curves = [
        _Curve(f"{_fork_name(fork)}, {STRATEGIES[strategy]}", found, colours[fork], strategy == "random")
        for (fork, strategy), found in points.items()
    ]
    _draw_curves(curves, path, caption(active), "labelled pictures")


def _fork_name(fork: str) -> str:
    return ENDS[fork][0] if fork in ENDS else f"block{'' if fork.isdecimal() else 's'} {fork}"


def draw_curves(curves: Curves, path: Path, *, title: str = "", label: str = "training pictures") -> None:
    """Accuracy, on an axis of log odds, by number of pictures; bars: ± one deviation over seeds."""
    made = [_Curve(name, points, colour(i), False) for i, (name, points) in enumerate(curves.items())]
    _draw_curves(made, path, title, label)


@dataclass(frozen=True)
class _Curve:
    name: str
    points: Mapping[int, Sequence[float]]
    colour: str
    dashed: bool


def _draw_curves(curves: Sequence[_Curve], path: Path, title: str, label: str) -> None:
    ticks = sorted({count for curve in curves for count in curve.points})
    if not ticks:
        raise InputError("there is no curve to draw", "give accuracies by number of pictures")
    with drawn(path, size=(4.6, 3.4)) as (_, ((place,),)):
        for index, curve in enumerate(curves):
            _draw_curve(place, curve, MARKERS[index % len(MARKERS)])
        _log_odds(place)
        place.set_xscale("log")
        place.set_xticks(ticks, [f"{count:,}" for count in ticks])
        place.set_xticks([], minor=True)
        place.set(xlabel=label, ylabel="accuracy", title=title)
        place.legend(loc="best")


def _draw_curve(place: Axes, curve: _Curve, marker: str) -> None:
    x = sorted(curve.points)
    found = [mean_and_std(curve.points[each]) for each in x]
    means = [_inside(mean) for mean, _ in found]
    low = [mean - _inside(mean - (std or 0)) for mean, (_, std) in zip(means, found, strict=True)]
    high = [_inside(mean + (std or 0)) - mean for mean, (_, std) in zip(means, found, strict=True)]
    place.errorbar(
        x, means, (low, high), color=curve.colour, marker=marker, markersize=4.5, elinewidth=0.9, label=curve.name,
        linestyle="--" if curve.dashed else "-", markerfacecolor="white" if curve.dashed else curve.colour,
    )  # fmt: skip


def _inside(share: float) -> float:
    """Log odds of 0 and 1 are infinite."""
    return min(max(share, 0.001), 0.9995)


def _log_odds(place: Axes) -> None:
    """Ticks are those of `PERCENT` that fall into view."""
    place.set_yscale("logit")
    low, high = place.get_ylim()
    ticks = [each for each in PERCENT if low <= each <= high]
    place.set_yticks(ticks, [f"{100 * each:g}%" for each in ticks])
    place.set_yticks([], minor=True)
    place.set_ylim(low, high)


def draw_pruning(
    profile: Profile, path: Path, added: Mapping[str, Mapping[str, float]] | None = None
) -> None:
    """Accuracy of pruned forks by the share of the full fork's parameters that they keep (figure 16).

    `added`: by the name of an engine, added latency (0.1 is 10 %) by fork as `profile` spells it; each engine
    has a panel of its own.
    """
    rows = [row for row in profile.rows if row.prune is not None]
    full = {row.layers: row for row in profile.rows if is_plain(row)}
    if not rows or not all(row.layers in full for row in rows):
        raise InputError("the profile lacks pruned forks, or those without pruning", "profile both")
    engines = dict(added or {})
    panels = 1 + len(engines)
    with drawn(path, 1, panels, size=(3.6 * panels, 3.3), sharey=True) as (figure, (places,)):
        series = _pruned_series(rows)
        for place, latencies in zip(places, (None, *engines.values()), strict=True):
            for index, each in enumerate(series.values()):
                _draw_pruned(place, each, full[each[0].layers], latencies, index)
        places[0].set(xlabel="parameters of the full fork", ylabel="accuracy")
        for place, engine in zip(places[1:], engines, strict=True):
            place.set(xlabel=f"added latency, {engine}")
        for place in places:
            place.set_xlim(left=0)
            place.locator_params(axis="x", nbins=6)
            in_percent(place, "x")
        in_percent(places[0])
        figure.suptitle(caption(profile))
        handles = [
            key(name, colour(i), marker=MARKERS[i % len(MARKERS)], markersize=4.5)
            for i, name in enumerate(series)
        ]
        handles.append(key("not pruned", "0.3", linestyle=(0, (4, 2)), marker="*", markersize=8))
        legend_below(figure, handles)


def _pruned_series(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by fork, scope and norm, from little pruned to much."""
    forks = {row.layers for row in rows}
    found: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.prune.ratio if row.prune else 0):
        assert row.prune is not None
        way = f"{row.prune.scope}, {row.prune.norm.upper()}"
        found.setdefault(f"{format_layers(row.layers)}: {way}" if len(forks) > 1 else way, []).append(row)
    return found


def _draw_pruned(
    place: Axes, rows: Sequence[Row], full: Row, added: Mapping[str, float] | None, index: int
) -> None:
    def x(row: Row) -> float | None:
        return row.parameters / full.parameters if added is None else added.get(row.fork)

    points = [(at, row) for row in rows if (at := x(row)) is not None]
    place.errorbar(
        [at for at, _ in points], [row.accuracy for _, row in points], [row.std or 0 for _, row in points],
        color=colour(index), marker=MARKERS[index % len(MARKERS)], markersize=4.5, elinewidth=0.9,
    )  # fmt: skip
    place.axhline(full.accuracy, color="0.3", linestyle=(0, (4, 2)), linewidth=1)
    if (whole := x(full)) is not None:
        place.plot(whole, full.accuracy, "*", color="0.3", markersize=8)
