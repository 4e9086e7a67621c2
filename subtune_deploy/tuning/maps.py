"""The paper's pictures that are grids of blocks: pairs (figures 3, 10), training sizes (4), order of selection (5).

    draw_pairs(read_profile(Path("pairs.json")), Path("pairs.svg"))

Formats and errors as in `figures`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from .documents import Greedy, Profile, Round
from .drawing import MAP, boundaries, caption, drawn, in_percent, is_plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FRAME = "#D55E00"
"""Of what is best or was chosen."""


def draw_pairs(profile: Profile, path: Path) -> None:
    """All pairs of blocks as a heat map, single blocks on its diagonal; the best is framed."""
    from matplotlib.patches import Rectangle

    rows = [row for row in profile.rows if len(row.layers) in (1, 2) and row.fork != "all" and is_plain(row)]
    if not rows:
        raise InputError("the profile has no pair to draw", "profile all pairs, as with --pairs")
    count = len(profile.blocks)
    shares = [[float("nan")] * count for _ in range(count)]
    for row in rows:
        shares[row.layers[-1] - 1][row.layers[0] - 1] = row.accuracy
    best = max(rows, key=lambda row: row.accuracy)
    side = 1.6 + 0.21 * max(count, 6)
    with drawn(path, size=(side + 0.7, side)) as (figure, ((place,),)):
        image = place.imshow(shares, cmap=MAP, extent=(0.5, count + 0.5, count + 0.5, 0.5))
        _plain_axes(place)
        place.set_xticks(range(1, count + 1))
        place.set_yticks(range(1, count + 1))
        for at in boundaries(profile.shapes):
            place.vlines(at, at, count + 0.5, color="white", linewidth=0.9)
            place.hlines(at, 0.5, at, color="white", linewidth=0.9)
        corner = (best.layers[0] - 0.5, best.layers[-1] - 0.5)
        place.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=FRAME, linewidth=1.8))
        place.set(xlabel="block", ylabel="second block", title=caption(profile))
        place.text(
            0.97,
            0.97,
            f"best: {best.fork}\n{best.accuracy:.1%}",
            ha="right",
            va="top",
            transform=place.transAxes,
        )
        bar = figure.colorbar(image, ax=place, shrink=0.85, label="accuracy")
        in_percent(bar.ax)
        bar.outline.set_visible(False)


def draw_sizes(profiles: Sequence[Profile], path: Path) -> None:
    """Single blocks by number of training pictures, as a heat map with the accuracies in percent (figure 4).

    Colours compare the blocks within a row.
    """
    chosen = sorted(profiles, key=_examples)
    singles = [
        {row.layers[0]: row for row in each.rows if len(row.layers) == 1 and is_plain(row)} for each in chosen
    ]
    blocks = sorted({block for row in singles for block in row})
    if not blocks:
        raise InputError("the profiles have no single block", "profile them with --span 1")
    with drawn(path, size=(1.5 + 0.36 * len(blocks), 1.3 + 0.3 * len(chosen))) as (_, ((place,),)):
        for line, rows in enumerate(singles):
            shares = [rows[block].accuracy if block in rows else float("nan") for block in blocks]
            low, high = (f(each for each in shares if each == each) for f in (min, max))
            for at, share in enumerate(shares):
                if share == share:
                    _draw_cell(place, at, line, f"{100 * share:.1f}", (share - low) / max(high - low, 1e-9))
        place.set_xticks(range(len(blocks)), [str(block) for block in blocks])
        place.set_yticks(range(len(chosen)), [f"{_examples(each):,}" for each in chosen])
        place.set(
            xlabel="tuned block", ylabel="examples", title=f"{chosen[0].model}, accuracy in %",
            xlim=(-0.5, len(blocks) - 0.5), ylim=(-0.5, len(chosen) - 0.5),
        )  # fmt: skip
        _plain_axes(place)


def _draw_cell(place: Axes, x: float, y: float, text: str, height: float) -> None:
    """A few letters on a ground whose colour is at `height`, 0..1, of the map."""
    import matplotlib
    from matplotlib.patches import Rectangle

    ground = matplotlib.colormaps[MAP](height)
    place.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=ground, edgecolor="white", linewidth=0.5))
    ink = "white" if height < 0.5 else "black"
    place.text(x, y, text, ha="center", va="center", color=ink, fontsize=6.5)


def _plain_axes(place: Axes) -> None:
    place.grid(visible=False)
    place.tick_params(length=0, labelsize=7)
    for spine in place.spines.values():
        spine.set_visible(False)


def _separate(place: Axes, ends: Sequence[float]) -> None:
    """A thin line between stages, beneath everything."""
    for at in ends:
        place.axvline(at, color="0.85", linewidth=0.7, zorder=0)


def _examples(profile: Profile) -> int:
    return profile.examples or int(profile.data["train"])


def draw_order(selections: Mapping[str, Greedy], path: Path) -> None:
    """Which blocks greedy selection took, and in which order, one line for each name (figure 5)."""
    if not selections:
        raise InputError("there is no selection to draw", "give what subtune-deploy greedy wrote")
    count = max(len(each.blocks) for each in selections.values())
    longest = max(len(each.order) for each in selections.values())
    names = max(map(len, selections))
    with drawn(path, size=(0.9 + 0.07 * names + 0.24 * count, 1.0 + 0.24 * len(selections))) as (
        _,
        ((place,),),
    ):
        for line, each in enumerate(selections.values()):
            for rank, block in enumerate(each.order):
                _draw_cell(place, block, line, str(rank + 1), 0.85 * rank / max(longest - 1, 1))
        first = next(iter(selections.values()))
        _plain_axes(place)
        place.set_xticks(range(1, count + 1))
        place.set_yticks(range(len(selections)), list(selections))
        _separate(place, boundaries(first.shapes))
        for line in range(1, len(selections)):
            place.axhline(line - 0.5, color="0.92", linewidth=0.7, zorder=0)
        place.set(
            xlabel="block, numbered as chosen", title=first.model,
            xlim=(0.5, count + 0.5), ylim=(len(selections) - 0.5, -0.5),
        )  # fmt: skip


def draw_greedy(greedy: Greedy, path: Path) -> None:
    """Cross-validated accuracy of every block that was tried, round by round; those taken are numbered."""
    import matplotlib

    shades = matplotlib.colormaps[MAP]
    with drawn(path, size=(1.6 + 0.26 * max(len(greedy.blocks), 8), 3.3)) as (figure, ((place,),)):
        for index, each in enumerate(greedy.rounds):
            _draw_round(place, each, index + 1, shades(0.85 * index / max(len(greedy.rounds) - 1, 1)))
        place.axhline(greedy.head, color="0.3", linestyle=(0, (4, 2)), linewidth=1, label="head alone")
        place.set_xticks(range(1, len(greedy.blocks) + 1))
        place.set_xlim(0.4, len(greedy.blocks) + 0.6)
        place.margins(y=0.12)
        place.grid(visible=False, axis="x")
        _separate(place, boundaries(greedy.shapes))
        place.set(xlabel="block tried", ylabel=f"accuracy, {greedy.folds}-fold cross-validation")
        in_percent(place)
        place.set_title(caption(greedy))
        figure.legend(loc="outside right upper")


def _draw_round(place: Axes, each: Round, number: int, shade: object) -> None:
    tried = {score.layer: score.accuracy for score in each.scores}
    x = range(min(tried, default=1), max(tried, default=0) + 1)
    y = [tried.get(layer, float("nan")) for layer in x]  # no line across what was not tried
    place.plot(x, y, marker="o", markersize=3.5, linewidth=0.8, color=shade, label=f"round {number}")
    if each.taken:
        assert each.best is not None
        place.plot(each.best, each.accuracy, "o", markersize=9, fillstyle="none", color=FRAME)
        place.annotate(
            str(number), (each.best, each.accuracy), xytext=(0, 7), textcoords="offset points",
            ha="center", color=FRAME, fontweight="bold",
        )  # fmt: skip
