"""What measured graphs ask of a machine beside the base: by block, counted on the traced backbone.

backbone = backbone_of(results[0])                 # random weights, at the size that was measured
breakdown(backbone, [anchor(each) for each in results])     # of all of them, as columns: plain values for a page
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from .backbone import Backbone, trace
from .errors import InputError
from .latency_model import Anchor
from .models import load_model
from .predictor import Costing
from .results import Result
from .sources import is_code
from .spec import format_layers, parse_layers
from .work import Work

COSTS = ("macs", "activations", "weights", "launches")
"""Of `Work`, in this order in every column."""

Tick = Callable[[str, float, float], None]
Costs = tuple[int, int, int, int]


@dataclass(frozen=True)
class Breakdown:
    """`columns`: a name, and the block's number where it is one; `base`: what each costs without any fork.

    `added`: by fork what each column costs more, {column: costs} where it is anything; `which`: for each result the
    index of its own. `shapes`: what each block answers for one picture.
    """

    columns: tuple[tuple[str, int | None], ...]
    base: tuple[Costs, ...]
    added: tuple[dict[int, Costs], ...]
    which: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]


def backbone_of(result: Result, model: str | None = None) -> Backbone:
    """The network that was measured, with random weights. Raises InputError, Unavailable where it cannot be made.

    `model`: where the network's code lies now; needed where it is not a library's, since results must not say by
    themselves which code is run.
    """
    if model is None and is_code(result.model):
        raise InputError(
            f"{result.model} is made by code, which results may not choose to run",
            f"give --model {result.model}",
        )
    channels, height, width = result.input_shape
    backbone = trace(load_model(model or result.model, input_size=(channels, height, width)))
    return replace(backbone, name=result.model)


def breakdown(backbone: Backbone, anchors: Sequence[Anchor], tick: Tick = lambda *_: None) -> Breakdown:
    """What each graph asks, measured or predicted; those that are the same on several targets are counted once.

    Raises LayersError for blocks that this backbone has not.
    """
    for layers in {layers for each in anchors for layers in each.forks if layers}:
        parse_layers(format_layers(layers), len(backbone.blocks))
    costing = Costing(backbone)
    base = [costs for _, _, costs in _columns(costing.base)]
    keys = {_graph(each): each for each in anchors}
    added = []
    for done, each in enumerate(keys.values()):
        tick(each.fork, done, len(keys))
        mine = [costs for _, _, costs in _columns(costing.anchored(each))]
        more = [_minus(one, alone) for one, alone in zip(mine, base, strict=True)]
        added.append({index: costs for index, costs in enumerate(more) if any(costs)})
    order = {key: index for index, key in enumerate(keys)}
    return Breakdown(
        tuple((name, block) for name, block, _ in _columns(costing.base)),
        tuple(base),
        tuple(added),
        tuple(order[_graph(each)] for each in anchors),
        tuple(block.output_shape for block in backbone.blocks),
    )


def _graph(each: Anchor) -> tuple[object, ...]:
    """What tells graphs apart."""
    return each.forks, each.prune, each.merge, each.grouped, each.most, each.classes


def _columns(works: Sequence[Work]) -> list[tuple[str, int | None, Costs]]:
    """Blocks one by one, what is between them together."""
    found = []
    for block, group in groupby(works, lambda work: _block(work.unit)):
        mine = list(group)
        found.append((block, _sum(mine)))
    last = len(found) - 1
    return [(_name(block, index, last), block, costs) for index, (block, costs) in enumerate(found)]


def _block(unit: str) -> int | None:
    number = unit.removeprefix("block")
    return int(number) if number != unit and number.isdigit() else None


def _name(block: int | None, index: int, last: int) -> str:
    if block is not None:
        return f"block {block}"
    return {0: "stem", last: "head"}.get(index, "between blocks")


def _sum(works: Sequence[Work]) -> Costs:
    macs, activations, weights, launches = (sum(getattr(work, name) for work in works) for name in COSTS)
    return macs, activations, weights, launches


def _minus(one: Costs, other: Costs) -> Costs:
    macs, activations, weights, launches = (left - right for left, right in zip(one, other, strict=True))
    return macs, activations, weights, launches
