"""A backbone cut in two where training begins: the prefix is all that no tuned weight can change.

What crosses the cut depends on the picture alone, so it is computed once and kept where it fits into memory.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn

from ..backbone import Backbone
from ..backends.base import Progress
from ..spec import InputSpec
from ..topology import Carry, Topology
from .data import Dataset, prepare_batch

CHUNK = 50
"""Pictures that run through the prefix at a time."""

Fetch: TypeAlias = Callable[[Tensor], Sequence[Any]]
"""Indices of pictures, int64 (n,) -> the arguments of the suffix for them."""


@dataclass(frozen=True)
class Cut:
    """`suffix(*prefix(batch))` is the network's answer; `carries` says how what crosses carries the batch."""

    prefix: fx.GraphModule
    suffix: fx.GraphModule
    carries: tuple[Carry, ...]


def cut(backbone: Backbone, network: nn.Module, tuned: Collection[str]) -> Cut:
    """Cut `network`, a copy of `backbone.model`, before everything that depends on the units `tuned`."""
    after = _dependents(backbone.topology, tuned)
    nodes = [node for node in backbone.graph.nodes if node.op != "output"]
    crossing = [
        node for node in nodes if node.name not in after and any(user.name in after for user in node.users)
    ]
    (answer,) = backbone.topology.nodes[-1].inputs
    prefix, suffix = fx.Graph(), fx.Graph()
    copies = _copy(prefix, [node for node in nodes if node.name not in after], {})
    prefix.output(tuple(copies[node] for node in crossing))
    prefix.eliminate_dead_code(lambda node: node.op in {"placeholder", "output"})
    entries = {node: suffix.placeholder(f"{node.name}_value") for node in crossing}
    copies = _copy(suffix, [node for node in nodes if node.name in after], entries)
    suffix.output(next(copies[node] for node in nodes if node.name == answer))
    carry = {node.name: node.carry for node in backbone.topology.nodes}
    carries = tuple(carry[node.name] for node in crossing)
    return Cut(fx.GraphModule(network, prefix), fx.GraphModule(network, suffix), carries)


def _dependents(topology: Topology, tuned: Collection[str]) -> frozenset[str]:
    """Names of the nodes that use the weights of `tuned`, or anything computed with them."""
    found: set[str] = set()
    for node in topology.nodes:
        if node.unit in tuned or not found.isdisjoint(node.inputs):
            found.add(node.name)
    return frozenset(found)


def _copy(graph: fx.Graph, nodes: Iterable[fx.Node], known: dict[fx.Node, fx.Node]) -> dict[fx.Node, fx.Node]:
    copies = dict(known)
    for node in nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    return copies


def features(cut: Cut, data: Dataset, spec: InputSpec, limit: int, progress: Progress) -> Fetch:
    """What crosses the cut for each picture: kept where it fits into `limit` bytes, else computed on demand.

    While it is gathered, twice as much memory is needed.
    """
    compute = partial(_compute, cut, data, spec)
    if not all(map(_keeps, cut.carries)) or _bytes(compute(torch.tensor([0]))) * len(data) > limit:
        return compute
    pieces = []
    for indices in torch.split(torch.arange(len(data)), CHUNK):
        pieces.append(compute(indices))
        progress("features", int(indices[-1]) + 1, len(data))
    columns = zip(zip(*pieces, strict=True), cut.carries, strict=True)
    stored = [_join(values, carry, len(data)) for values, carry in columns]
    return partial(_look_up, stored, cut.carries)


def _compute(cut: Cut, data: Dataset, spec: InputSpec, indices: Tensor) -> Sequence[Any]:
    with torch.no_grad():
        values: tuple[Any, ...] = cut.prefix(prepare_batch(data, indices.tolist(), spec))
    return values


def _keeps(carry: Carry) -> bool:
    """Whether values can be stored for all pictures and picked for some."""
    return carry is None or carry == "size" or isinstance(carry, int)


def _bytes(values: Sequence[Any]) -> int:
    tensors = [value for value in values if isinstance(value, Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _join(values: Sequence[Any], carry: Carry, count: int) -> Any:
    """Values of chunks -> one for all `count` pictures; of a size, what one picture adds to it."""
    if isinstance(carry, int):
        return torch.cat(list(values), carry)
    return sum(values) // count if carry == "size" else values[0]


def _look_up(stored: Sequence[Any], carries: Sequence[Carry], indices: Tensor) -> Sequence[Any]:
    return [_pick(value, carry, indices) for value, carry in zip(stored, carries, strict=True)]


def _pick(value: Any, carry: Carry, indices: Tensor) -> Any:
    if isinstance(carry, int):
        return value.index_select(carry, indices)
    return value * len(indices) if carry == "size" else value
