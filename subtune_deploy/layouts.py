"""Values that pack streams, and the fx nodes that repack them: concatenations and splits, each made once."""

from __future__ import annotations

import operator
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from .packing import stretches
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
            homes = dict(zip(wanted, values, strict=True))
            cut = stretches([value.streams for value in values], wanted)
            parts = [self._range(homes[stretch[0]], stretch, carry) for _, stretch in cut]
            self.made[key] = parts[0] if len(parts) == 1 else self._pack(parts, carry)
        return self.made[key]

    def _range(self, value: Value, run: Streams, carry: Carry) -> Any:
        if value.streams == run:
            return value.node
        key = (id(value.node), run)
        if key not in self.made:
            first = value.streams.index(run[0])
            self.made[key] = self._split(value.node, carry, first, len(run), len(value.streams))
        return self.made[key]

    def _split(self, node: Any, carry: Carry, first: int, length: int, count: int) -> Any:
        """`length` streams from `first` on, of `count`."""
        if isinstance(carry, (tuple, list)):
            items = [(self._item(node, position), inner) for position, inner in enumerate(carry)]
            return type(carry)(self._split(item, inner, first, length, count) for item, inner in items)
        if carry is None:
            return node
        if carry == "size":
            one = self.graph.call_function(operator.floordiv, (node, count))
            return one if length == 1 else self.graph.call_function(operator.mul, (one, length))
        apart = self.graph.call_method("unflatten", (node, carry, (count, -1)))
        assert isinstance(carry, int)  # the plan never packs what is opaque
        if length == 1:
            return self.graph.call_method("select", (apart, carry, first))
        chosen = self.graph.call_method("narrow", (apart, carry, first, length))
        return self.graph.call_method("flatten", (chosen, carry, carry + 1))

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
