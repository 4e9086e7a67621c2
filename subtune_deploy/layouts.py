"""Values that pack streams, and the fx nodes that repack them: concatenations and splits, each made once."""

from __future__ import annotations

import operator
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from .plan import Streams
from .topology import Carry


@dataclass(frozen=True)
class Value:
    """An fx node (or a tuple of them, for a structured value) that packs `streams` in this order."""

    node: Any
    streams: Streams


@dataclass
class Layouts:
    """Repacks values in `graph`. No batch size appears in what it writes, so a dynamic batch stays dynamic."""

    graph: fx.Graph
    made: dict[Hashable, Any] = field(default_factory=dict)

    def pick(self, values: Sequence[Value], wanted: Streams, carry: Carry) -> Any:
        """Exactly the streams `wanted`, in that order; `values[i]` is where `wanted[i]` can be found."""
        if carry is None or values[0].streams == wanted:
            return values[0].node
        key = (wanted, tuple(id(value.node) for value in values))
        if key not in self.made:
            parts = [self._one(value, stream, carry) for value, stream in zip(values, wanted, strict=True)]
            self.made[key] = parts[0] if len(parts) == 1 else self._pack(parts, carry)
        return self.made[key]

    def _one(self, value: Value, stream: str, carry: Carry) -> Any:
        if len(value.streams) == 1:
            return value.node
        key = (id(value.node), stream)
        if key not in self.made:
            index = value.streams.index(stream)
            self.made[key] = self._split(value.node, carry, index, len(value.streams))
        return self.made[key]

    def _split(self, node: Any, carry: Carry, index: int, count: int) -> Any:
        """Stream `index` of `count`."""
        if isinstance(carry, (tuple, list)):
            parts = [self._item(node, position) for position in range(len(carry))]
            split = (self._split(part, item, index, count) for part, item in zip(parts, carry, strict=True))
            return type(carry)(split)
        if carry is None:
            return node
        if carry == "size":
            return self.graph.call_function(operator.floordiv, (node, count))
        apart = self.graph.call_method("unflatten", (node, carry, (count, -1)))
        return self.graph.call_method("select", (apart, carry, index))

    def _pack(self, parts: Sequence[Any], carry: Carry) -> Any:
        if isinstance(carry, (tuple, list)):
            items = [[self._item(part, position) for part in parts] for position in range(len(carry))]
            return type(carry)(self._pack(item, inner) for item, inner in zip(items, carry, strict=True))
        if carry is None:
            return parts[0]
        if carry == "size":
            return self._sum(parts)
        return self.graph.call_function(torch.cat, (list(parts), carry))

    def _sum(self, parts: Sequence[Any]) -> Any:
        """Packed, the batch is as long as the streams' batches together."""
        total = parts[0]
        for part in parts[1:]:
            total = self.graph.call_function(operator.add, (total, part))
        return total

    def _item(self, value: Any, position: int) -> Any:
        if isinstance(value, (tuple, list)):
            return value[position]
        return self.graph.call_function(operator.getitem, (value, position))
