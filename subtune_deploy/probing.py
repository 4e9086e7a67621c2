"""What flows through a traced graph: shapes, how they carry the batch, multiply-adds, changes in place.

The graph runs on fake tensors, at two batch sizes; nothing is computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.utils.flop_counter import FlopCounterMode

from .errors import ModelError
from .models import Model
from .topology import Carry
from .tracing import FAKE, PROBE_BATCHES, plain_attention


@dataclass(frozen=True)
class Shape:
    """Of a tensor; apart from tuples of integers, which are values in their own right."""

    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Seen:
    """What one probing run saw of a node: shapes or integers, multiply-adds, arguments changed in place."""

    value: Any
    macs: int
    mutated: tuple[fx.Node, ...]


class _Prober(fx.Interpreter):
    """Runs the graph on fake tensors: shapes and counts without arithmetic."""

    def __init__(self, graph: fx.Graph, network: nn.Module) -> None:
        super().__init__(network, graph=graph)
        self.seen: dict[fx.Node, Seen] = {}

    def run_node(self, n: fx.Node) -> Any:
        before = {source: _version(self.env[source]) for source in n.all_input_nodes}
        with FlopCounterMode(display=False) as counter:
            result = super().run_node(n)
        mutated = tuple(source for source, version in before.items() if _version(self.env[source]) != version)
        self.seen[n] = Seen(_shapes(result), counter.get_total_flops() // 2, mutated)
        return result


def probe(graph: fx.Graph, model: Model, batch: int) -> dict[fx.Node, Seen]:
    prober = _Prober(graph, model.module)
    with input_errors(model), plain_attention(), FAKE, torch.no_grad():
        prober.run(torch.empty(batch, *model.input.shape))
    return {node: Seen(seen.value, seen.macs // batch, seen.mutated) for node, seen in prober.seen.items()}


@contextmanager
def input_errors(model: Model) -> Iterator[None]:
    """What a network raises on an input that it was not built for."""
    try:
        yield
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise ModelError(
            f"{model.name} cannot be compiled: what it computes depends on values, at {error.func}",
            "take the branch on values out of its forward",
        ) from error
    except Exception as error:  # whatever a network's own code raises
        size = "x".join(map(str, model.input.shape))
        raise ModelError(
            f"{model.name} does not run on input {size}: {(str(error) or repr(error)).splitlines()[0]}",
            "give the size that the model was built for with --input-size CxHxW",
        ) from error


def _version(value: Any) -> int:
    return value._version if isinstance(value, torch.Tensor) else 0


def _shapes(value: Any) -> Any:
    """Tensors become their shapes, inside lists, tuples and dicts too; anything else is kept."""
    if isinstance(value, torch.Tensor):
        return Shape(tuple(value.shape))
    if isinstance(value, list):
        return list(map(_shapes, value))
    if isinstance(value, tuple):
        return tuple(map(_shapes, value))
    if isinstance(value, dict):
        return {key: _shapes(item) for key, item in value.items()}
    return value


def carry_of(small: Any, large: Any) -> Carry:
    """How a value carries the batch, from what was seen of it at the two batch sizes."""
    first, second = PROBE_BATCHES
    if small == large:
        return None
    if isinstance(small, Shape):
        differing = [axis for axis, (a, b) in enumerate(zip(small.sizes, large.sizes, strict=True)) if a != b]
        grown = small.sizes[differing[0]] * second == large.sizes[differing[0]] * first
        return differing[0] if len(differing) == 1 and grown else "opaque"
    if isinstance(small, (list, tuple)):
        inner = [carry_of(a, b) for a, b in zip(small, large, strict=True)]
        return inner if isinstance(small, list) else tuple(inner)
    return "size" if isinstance(small, int) and small * second == large * first else "opaque"
