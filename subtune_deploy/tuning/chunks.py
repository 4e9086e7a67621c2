"""Which forks fit into memory together: their weights, gradients and moments, and what one backward pass needs.

Forks that train together run one after the other on each batch, so that the activations of one are there at a time.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.autograd.graph import saved_tensors_hooks

from ..backbone import Backbone
from ..errors import InputError
from ..tracing import example
from ..versions import version_of
from .cut import dependents
from .settings import Fork
from .start import parameters, units_of

PICTURES = 2
"""In the run that is counted: as few as batch-norm takes."""

COPIES = 4
"""Of each trained weight: itself, its gradient, and two moments of AdamW."""


def chunks(backbone: Backbone, forks: Sequence[Fork], batch: int, limit: int) -> list[list[Fork]]:
    """Groups of `forks`, in their order, that train in batches of `batch` pictures within `limit` bytes.

    What is pruned counts as whole. Raises LayersError; InputError where a fork by itself takes more.
    """
    kept = activations(backbone)
    found: list[list[Fork]] = []
    room, largest = 0, 0
    for fork in forks:
        weights, active = _needs(backbone, fork, kept, batch)
        if weights + active > limit:
            raise InputError(
                f"training fork {fork} takes about {_megabytes(weights + active)} in batches of {batch}, where "
                f"{_megabytes(limit)} may be taken",
                "give a smaller --batch-size, or more with --memory-bytes",
            )
        if not found or weights + max(active, largest) > room:
            found.append([])
            room, largest = limit, 0
        found[-1].append(fork)
        room, largest = room - weights, max(largest, active)
    return found


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _needs(backbone: Backbone, fork: Fork, kept: dict[str, int], batch: int) -> tuple[int, int]:
    """(bytes of its weights while they are trained, of activations)"""
    units = units_of(backbone, fork)
    tensors = (each for unit in units for each in parameters(version_of(backbone, {}, unit)))
    weights = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return COPIES * weights, batch * sum(kept[node] for node in dependents(backbone.topology, units))


def activations(backbone: Backbone) -> dict[str, int]:
    """By node, the bytes that it keeps for one picture's backward pass, if all of its weights are trained."""
    run = _Keeping(copy.deepcopy(backbone.model).requires_grad_(), graph=backbone.graph)
    with torch.random.fork_rng(devices=[]):
        run.run(example(backbone.input.shape, PICTURES))
    return {name: -(-size // PICTURES) for name, size in run.sizes.items()}


class _Keeping(fx.Interpreter):
    """Counts what autograd keeps, each piece of memory once and weights not at all."""

    def __init__(self, network: nn.Module, graph: fx.Graph) -> None:
        super().__init__(network, graph=graph)
        self.sizes: dict[str, int] = {}
        self.known: dict[int, Tensor] = {_place(each): each for each in network.parameters()}

    def run_node(self, n: fx.Node) -> Any:
        new: dict[int, Tensor] = {}
        with torch.enable_grad(), saved_tensors_hooks(lambda each: self._keep(each, new), lambda each: each):
            result = super().run_node(n)
        self.sizes[n.name] = sum(each.untyped_storage().nbytes() for each in new.values())
        return result

    def _keep(self, tensor: Tensor, new: dict[int, Tensor]) -> Tensor:
        if _place(tensor) not in self.known:
            self.known[_place(tensor)] = new[_place(tensor)] = (
                tensor  # held, so that its place is not given again
            )
        return tensor


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
