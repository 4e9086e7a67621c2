"""What flows through a traced graph: shapes, how they carry the batch, multiply-adds, changes in place.

The graph runs on fake tensors, at two batch sizes; nothing is computed.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from .errors import ModelError, SubtuneError
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


class Prober(fx.Interpreter):
    """Runs the graph on fake tensors: shapes and counts without arithmetic."""

    def __init__(self, graph: fx.Graph, network: nn.Module) -> None:
        super().__init__(network, graph=graph)
        self.extra_traceback = False  # our own errors are one line
        self.seen: dict[fx.Node, Seen] = {}

    def run_node(self, n: fx.Node) -> Any:
        before = {source: _versions(self.env[source]) for source in n.all_input_nodes}
        with FlopCounterMode(display=False) as counter:
            result = super().run_node(n)
        touched = [source for source, versions in before.items() if _versions(self.env[source]) != versions]
        mutated = tuple(source for source in touched if self.env[source] is result) or tuple(touched)
        self._refuse_lost_writes(n, mutated, result)
        self.seen[n] = Seen(shapes_of(result), counter.get_total_flops() // 2, mutated)
        return result

    def _refuse_lost_writes(self, n: fx.Node, mutated: tuple[fx.Node, ...], result: Any) -> None:
        """What reads the written memory later must be able to read the result of `n` instead."""
        for source in mutated:
            for other, value in self.env.items():
                later = any(user not in self.seen and user is not n for user in other.users)
                if later and value is not result and _overlap(value, self.env[source]):
                    raise ModelError(
                        f"{n.target} changes {other.name} in place, which is read again after it",
                        "write this operation so that it returns a new tensor",
                    )


def probe(graph: fx.Graph, model: Model, batch: int) -> dict[fx.Node, Seen]:
    """What each node of `graph` does with `batch` pictures; multiply-adds are for one.

    Raises ModelError where the network does not run on its input size, or loses a write in place.
    """
    prober = Prober(graph, model.module)
    with input_errors(model), plain_attention(), FAKE, torch.no_grad():
        prober.run(torch.empty(batch, *model.input.shape))
    return {node: Seen(seen.value, seen.macs // batch, seen.mutated) for node, seen in prober.seen.items()}


@contextmanager
def input_errors(model: Model) -> Iterator[None]:
    """What a network raises on an input that it was not built for."""
    try:
        yield
    except SubtuneError:
        raise
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


def _versions(value: Any) -> list[int]:
    return [leaf._version for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def _overlap(one: Any, other: Any) -> bool:
    """Whether tensors in two values share memory, element by element."""
    pairs = itertools.product(tree_leaves(one), tree_leaves(other))
    return any(
        isinstance(a, torch.Tensor)
        and isinstance(b, torch.Tensor)
        and a.untyped_storage()._cdata == b.untyped_storage()._cdata
        and bool(np.intersect1d(_places(a), _places(b)).size)
        for a, b in pairs
    )


def _places(tensor: torch.Tensor) -> Any:
    """Indices of a tensor's elements in its storage."""
    places = np.full((), int(tensor.storage_offset()), dtype=np.int64)
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        places = np.add.outer(places, np.arange(size) * stride)
    return places.ravel()


def shapes_of(value: Any) -> Any:
    """Tensors become their shapes, inside lists, tuples and dicts too; anything else is kept."""
    if isinstance(value, torch.Tensor):
        return Shape(tuple(value.shape))
    if isinstance(value, list):
        return list(map(shapes_of, value))
    if hasattr(value, "_asdict") or dataclasses.is_dataclass(value):
        value = (
            value._asdict() if hasattr(value, "_asdict") else vars(value)
        )  # read by name, so never repacked
    if isinstance(value, tuple):
        return tuple(map(shapes_of, value))
    if isinstance(value, dict):
        return {key: shapes_of(item) for key, item in value.items()}
    return value


def elements_of(value: Any) -> int:
    """In all tensors of what `shapes_of` gave."""
    if isinstance(value, Shape):
        return math.prod(value.sizes)
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return sum(map(elements_of, items))


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
