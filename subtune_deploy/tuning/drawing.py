"""What all pictures share: colours that the colour-blind can tell apart, stages, axes, and how they are written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ..errors import InputError, Unavailable
from ..staging import checked_place, replaced_file
from .documents import Active, Greedy, Profile, Row

Document: TypeAlias = "Profile | Greedy | Active"

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#000000", "#999999")
"""Okabe and Ito's, the yellow left out: it is faint on white."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
GREY = "0.45"
LINES = 4
"""Of a legend that a figure has room for."""
MAP = "cividis"
"""Of heat maps: even in lightness, the same to all eyes."""

_STYLE = {
    "font.size": 8.5,
    "axes.titlesize": 9,
    "figure.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "svg.hashsalt": "subtune-deploy",
}


@contextmanager
def drawn(
    path: Path, rows: int = 1, columns: int = 1, **how: Any
) -> Iterator[tuple[Figure, list[list[Axes]]]]:
    """A figure with a grid of places to draw in, written to `path` when the block ends well.

    `how`: `size` (inches) and what matplotlib's `Figure.subplots` takes. Raises InputError unless the name ends
    in .svg, .png or .pdf; Unavailable without matplotlib; BundleError.
    """
    check_picture(path)
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=how.pop("size"), layout="constrained")
        yield figure, figure.subplots(rows, columns, squeeze=False, **how).tolist()
        with replaced_file(path) as pending:
            form = path.suffix[1:]
            stamp = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}  # no date
            figure.savefig(pending, format=form, dpi=200, metadata=stamp.get(form))


def check_picture(path: Path) -> None:
    """Whether a picture can be written there; see `drawn`."""
    checked_place(path)
    if path.suffix not in (".svg", ".png", ".pdf"):
        raise InputError(f"{path.name} is no name of a picture", "let it end in .svg, .png or .pdf")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise Unavailable(
            "pictures need matplotlib, which is not installed", "pip install 'subtune-deploy[figures]'"
        ) from error


def stages(shapes: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The stage of each block, from 0: a new one begins where the resolution changes."""
    found: list[int] = []
    for index, shape in enumerate(shapes):
        changed = index > 0 and _resolution(shape) != _resolution(shapes[index - 1])
        found.append((found[-1] if found else 0) + changed)
    return tuple(found)


def stage_names(shapes: Sequence[Sequence[int]]) -> tuple[str, ...]:
    """`"stage 1, 56×56"`, ...; nothing where all blocks are of one stage."""
    found: dict[int, str] = {}
    for stage, shape in zip(stages(shapes), shapes, strict=True):
        found[stage] = f"stage {stage + 1}, {'×'.join(map(str, _resolution(shape)))}"
    return tuple(found.values()) if len(found) > 1 else ()


def boundaries(shapes: Sequence[Sequence[int]]) -> tuple[float, ...]:
    """Where, on an axis of blocks numbered from 1, one stage ends and the next begins."""
    numbered = enumerate(pairwise(stages(shapes)), start=1)
    return tuple(index + 0.5 for index, (before, after) in numbered if after != before)


def _resolution(shape: Sequence[int]) -> tuple[int, ...]:
    """Height and width of (C, H, W) or (H, W, C); of (tokens, C), tokens."""
    if len(shape) != 3:
        return tuple(shape[:1])
    return tuple(shape[:2] if shape[0] == shape[1] else shape[1:])


def colour(index: int) -> str:
    """The colour of a stage or a line; they come round again."""
    return COLOURS[index % len(COLOURS)]


def marker(index: int) -> str:
    """The marker of a line; lines whose colours come round again have others."""
    return MARKERS[(index + index // len(COLOURS)) % len(MARKERS)]


def in_percent(place: Axes, which: Literal["x", "y"] = "y") -> None:
    """Shares as percentages, all with as many digits as one of them needs."""
    axis = place.xaxis if which == "x" else place.yaxis

    def told(share: float, _: object) -> str:
        ticks = [100 * float(each) for each in axis.get_majorticklocs()]
        digits = next(
            n for n in range(6) if n == 5 or all(abs(each - round(each, n)) < 1e-6 for each in ticks)
        )
        return f"{100 * share:.{digits}f}%"

    axis.set_major_formatter(told)


def legend_below(figure: Figure, handles: Iterable[Any]) -> None:
    """One legend for all places, under them, as wide as the figure allows; for a long one the figure grows."""
    listed = list(handles)
    if listed:
        longest = max(len(str(handle.get_label())) for handle in listed)
        columns = max(1, int(figure.get_figwidth() / (0.75 + 0.06 * longest)))
        lines = -(-len(listed) // columns)
        figure.set_figheight(figure.get_figheight() + 0.17 * max(0, lines - LINES))
        figure.legend(handles=listed, loc="outside lower center", ncols=min(columns, len(listed)))


def key(label: str, colour: str, **how: Any) -> Any:
    """An entry of a legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, label=label, **how)


def is_plain(row: Row) -> bool:
    """Neither Siamese, nor pruned, nor from scratch."""
    return not row.siamese and row.init == "pretrained" and row.prune is None


def caption(about: Document) -> str:
    """`"resnet50 on digits, 1,000 examples, 3 seeds"`"""
    count = (
        about.data.get("train") if isinstance(about, Active) else about.examples or about.data.get("train")
    )
    parts = (
        f"{about.model} on {about.data.get('source', 'data')}",
        f"pool of {count:,}" if isinstance(about, Active) else f"{count:,} examples",
        f"{len(about.seeds)} seeds" if len(about.seeds) > 1 else "",
    )
    return ", ".join(filter(None, parts))
