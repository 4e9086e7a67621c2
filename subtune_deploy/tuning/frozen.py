"""The network that nobody trains: a copy on the device, its batch-norms folded into the convolutions before them.

A frozen batch-norm scales and shifts by constants, which the convolution can do by itself, forwards and backwards.
Tuned units have their own modules, in which nothing is folded.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..backbone import Backbone
from ..tracing import FAKE, plain_attention

CONVOLUTIONS = {"Conv1d", "Conv2d", "Conv3d", "Conv2dSame"}
NORMS = {"BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "BatchNormAct2d"}
"""PyTorch's, and timm's, in whose norm the children are what follows. Another class may do anything."""
LIBRARIES = ("torch.nn.modules.", "timm.layers.")


def frozen(backbone: Backbone, device: torch.device) -> nn.Module:
    """A copy of the model in eval mode, without gradients, that answers the same but for rounding."""
    network = copy.deepcopy(backbone.model).eval().requires_grad_(False)
    for convolution, norm in _pairs(backbone, network):
        _replace(network, convolution, fuse_conv_bn_eval(convolution, norm))
        _replace(network, norm, nn.Sequential(*norm.children()))
    return network.to(device).to(memory_format=torch.channels_last)


def _pairs(backbone: Backbone, network: nn.Module) -> list[tuple[Any, Any]]:
    """Convolutions of a block whose values one batch-norm of the same block reads, and nothing else.

    Around blocks the graph has a batch-norm's parts as nodes of their own.
    """
    blocks = [list(network.get_submodule(block.name).modules()) for block in backbone.blocks]
    norms = [[part for part in parts if _is_one(part, NORMS) and _is_constant(part)] for parts in blocks]
    watch, found = _watched(backbone, network, list(chain(*norms))), []
    for parts, mine in zip(blocks, norms, strict=True):
        convolutions = {id(part.weight): part for part in parts if _is_one(part, CONVOLUTIONS)}
        made_by = {norm: convolutions.get(watch.weight_of(norm) or 0) for norm in mine}
        found += [(convolution, norm) for norm, convolution in made_by.items() if convolution is not None]
    return found


def _is_one(part: nn.Module, names: Set[str]) -> bool:
    """Exactly of one of these classes."""
    return type(part).__name__ in names and type(part).__module__.startswith(LIBRARIES)


def _is_constant(norm: nn.Module) -> bool:
    """Without statistics of its own it takes those of each batch, in eval mode too."""
    return norm.running_mean is not None


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Which weights convolutions used, and how often each tensor was read; by id, so all are held."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.weights, self.reads, self.held = dict[int, int](), Counter[int](), list[Any]()
        self.inputs: dict[nn.Module, list[int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace != "aten":  # others only ask, as for a tensor's device
            return result
        self.held.append((args, kwargs, result))
        self.reads.update(id(each) for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor))
        if func.overloadpacket is torch.ops.aten.convolution:
            self.weights[id(result)] = id(args[1])
        return result

    def enters(self, norm: nn.Module, given: tuple[Any, ...]) -> None:
        self.inputs.setdefault(norm, []).append(id(given[0]) if given else 0)

    def weight_of(self, norm: nn.Module) -> int | None:
        """Of the convolution whose values `norm` alone reads, if both run once and nothing else looks at them."""
        given = self.inputs.get(norm, [])
        weight = self.weights.get(given[0]) if len(given) == 1 else None
        if weight is None:
            return None
        touched = (given[0], weight, *map(id, (*norm.parameters(), *norm.buffers())))
        return weight if all(self.reads[each] <= 1 for each in touched) else None


def _watched(backbone: Backbone, network: nn.Module, norms: Sequence[nn.Module]) -> _Watch:
    """One run for shapes."""
    watch = _Watch()
    hooks = [norm.register_forward_pre_hook(watch.enters) for norm in norms]
    with plain_attention(), FAKE, torch.no_grad(), watch:
        network(torch.empty(1, *backbone.input.shape))
    for hook in hooks:
        hook.remove()
    return watch


def _replace(network: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Wherever the network holds it."""
    for parent in list(network.modules()):
        for name in [name for name, child in parent._modules.items() if child is old]:
            setattr(parent, name, new)
