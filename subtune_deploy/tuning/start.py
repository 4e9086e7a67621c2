"""What a fork starts from: copies of the blocks that it tunes, thinner or anew where that is asked for, and new heads.

Everything random comes from the seed and the unit's name, so that it does not depend on what else is trained.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..backbone import Backbone
from ..data.dataset import derived
from ..errors import LayersError
from ..heads import features_of, resized_state
from ..pruning import prune
from ..spec import format_layers
from ..versions import Version, version_of
from ..widths import MATRICES, conform
from .settings import Fork


def layers_of(backbone: Backbone, fork: Fork) -> tuple[int, ...]:
    """The blocks that the fork tunes. Raises LayersError for those that the backbone has not."""
    known = tuple(block.index for block in backbone.blocks)
    if fork.layers == "all":
        return known
    if unknown := sorted(set(fork.layers) - set(known)):
        raise LayersError(
            f"blocks {format_layers(unknown)} are outside 1..{len(known)}", "see the block table"
        )
    return fork.layers


def units_of(backbone: Backbone, fork: Fork) -> tuple[str, ...]:
    """The units that are trained: blocks and heads, or all that hold parameters or are modules. Raises LayersError."""
    blocks = {f"block{index}" for index in layers_of(backbone, fork)}
    if fork.layers != "all":
        return tuple(unit for unit in backbone.units if unit in blocks or unit in backbone.heads)
    learnt = (nn.Module, nn.Parameter)
    return tuple(unit for unit in backbone.units if isinstance(version_of(backbone, {}, unit), learnt))


def parameters(version: Version) -> Iterator[nn.Parameter]:
    """What of it can be trained."""
    if isinstance(version, nn.Module):
        yield from version.parameters()
    elif isinstance(version, nn.Parameter):
        yield version


def start(backbone: Backbone, fork: Fork, classes: int, seed: int) -> dict[str, Version]:
    """The fork's own weights by unit before training. Changes torch's random state.

    Raises LayersError, and what `pruning.prune` does.
    """
    units = units_of(backbone, fork)
    thin = {}
    if fork.prune and fork.prune.when == "before":
        thin = prune(backbone, layers_of(backbone, fork), fork.prune)
    versions: dict[str, Version] = {}
    for unit in units:
        torch.manual_seed(derived(seed, "start", unit))
        version = copy.deepcopy(version_of(backbone, thin, unit))
        if unit in backbone.heads:
            version = _new_head(backbone, unit, version, classes, fork.siamese)
        elif fork.init == "random":
            _draw_anew(version)
        versions[unit] = version
    return versions


def check_fork(backbone: Backbone, fork: Fork, classes: int) -> None:
    """Begin it, and thin it, as a training would: what cannot be is told before anything is trained.

    Raises LayersError, and what `pruning.prune` does.
    """
    layers_of(backbone, fork)
    if fork.prune is None:
        return
    with own_random_state():
        begun = start(backbone, fork, classes, seed=0)
    if fork.prune.when == "after":
        thinned(backbone, fork, begun)


@contextmanager
def own_random_state() -> Iterator[None]:
    """The caller's comes back."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices=devices):
        yield


def thinned(backbone: Backbone, fork: Fork, trained: Mapping[str, Version]) -> dict[str, Version]:
    """What a fork that is pruned after training goes on with. Raises what `pruning.prune` does."""
    assert fork.prune
    return {**trained, **prune(backbone, layers_of(backbone, fork), fork.prune, trained)}


def _new_head(backbone: Backbone, unit: str, head: Version, classes: int, siamese: bool) -> nn.Module:
    """As many outputs as there are classes, drawn anew; what comes before the last layer stays."""
    base = version_of(backbone, {}, unit)
    assert isinstance(head, nn.Module)  # a head is called, so it is a module
    assert isinstance(base, nn.Module)
    new = conform(head, resized_state(head, classes, siamese, features_of(base)))
    last = [layer for layer in new.modules() if isinstance(layer, MATRICES)][-1]
    last.reset_parameters()
    return new


def _draw_anew(version: Version) -> None:
    """Layers as their kind starts; parameters that belong to none, from a normal distribution as large as they."""
    for module in version.modules() if isinstance(version, nn.Module) else ():
        if callable(reset := getattr(module, "reset_parameters", None)):
            reset()
        else:
            _redraw(module.parameters(recurse=False))
    if isinstance(version, Tensor):
        _redraw([version])


def _redraw(parameters: Iterable[Tensor]) -> None:
    with torch.no_grad():
        for parameter in parameters:
            parameter.normal_(std=float(parameter.square().mean().sqrt()))
