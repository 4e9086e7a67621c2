"""Layers as wide as the weights they are given: another number of classes, more features, channels taken away."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import Tensor, nn

from .attention import declare_heads, heads_of, replaced
from .errors import CheckpointError

MATRICES = (nn.Linear, nn.Conv2d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)
IN_PROJ = "in_proj_weight"


def conform(module: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """A copy of `module` with the weights of `state`, its layers as wide as these.

    Linear, convolution and norm layers may be of any width; other tensors, and heads of attention, may be fewer.
    Names missing from `state` keep their values. That layers fit each other is not looked at.
    Raises CheckpointError where a layer cannot take the shape.
    """
    result = _with_thin_attention(copy.deepcopy(module), state)
    for name, tensor in state.items():
        path, _, attribute = name.rpartition(".")
        _put(result.get_submodule(path), attribute, tensor, name)
    for path, layer in layers(result):
        _declare_widths(layer, path)
        if any(
            tensor.dim() == 1 and len(tensor) != widths(layer)[1] for tensor in layer.state_dict().values()
        ):
            raise CheckpointError(
                f"the tensors of {path or 'the head'} have lengths that do not agree",
                "give weight and bias together",
            )
    for path, each in result.named_modules():
        if heads_of(module.get_submodule(path)):
            declare_heads(each)
    return result.eval()


def _with_thin_attention(module: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """`module`, its attentions exchanged where `state` has fewer heads."""
    for name in state:
        path, _, attribute = name.rpartition(".")
        if attribute != IN_PROJ:
            continue
        thin = replaced(module.get_submodule(path), state[name])
        if not path:
            return thin
        outer, _, child = path.rpartition(".")
        setattr(module.get_submodule(outer), child, thin)
    return module


def _put(layer: nn.Module, attribute: str, tensor: Tensor, name: str) -> None:
    own: Tensor = getattr(layer, attribute)
    alike = own.dim() == tensor.dim() and own.shape[2:] == tensor.shape[2:]
    fits = alike if isinstance(layer, MATRICES + NORMS) else _bare(layer) and narrower(tensor, own)
    if own.shape != tensor.shape and not fits:
        raise CheckpointError(
            f"{name} has shape {tuple(tensor.shape)}, which its {type(layer).__name__} cannot take",
            f"the base's has shape {tuple(own.shape)}; keep the kind of layer",
        )
    value = tensor.detach().to(own.dtype).clone()
    is_parameter = isinstance(own, nn.Parameter)
    setattr(layer, attribute, nn.Parameter(value, requires_grad=False) if is_parameter else value)


def _bare(layer: nn.Module) -> bool:
    """Whether the layer takes its widths from its weights: torch's own layers are told theirs."""
    return isinstance(layer, nn.PReLU) or type(layer).__module__.partition(".")[0] != "torch"


def narrower(tensor: Tensor, base: Tensor) -> bool:
    """Whether `tensor` could be what is left of `base`: as many axes, none longer, none empty, kernels whole."""
    alike = tensor.dim() == base.dim() and (tensor.dim() < 4 or tensor.shape[2:] == base.shape[2:])
    return alike and all(1 <= size <= full for size, full in zip(tensor.shape, base.shape, strict=True))


def _declare_widths(layer: nn.Module, path: str) -> None:
    """Make a layer's attributes agree with its weight."""
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, nn.Conv2d):
        layer.groups = _groups(layer)
        layer.out_channels, layer.in_channels = layer.weight.shape[0], layer.weight.shape[1] * layer.groups
        _check_groups(layer.out_channels, layer.groups, path)
    elif isinstance(layer, nn.LayerNorm) and layer.weight is not None:
        layer.normalized_shape = tuple(layer.weight.shape)
    elif isinstance(layer, nn.GroupNorm) and layer.weight is not None:
        layer.num_channels = layer.weight.shape[0]
        _check_groups(layer.num_channels, layer.num_groups, path)
    elif isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)) and layer.running_mean is not None:
        layer.num_features = layer.running_mean.shape[0]


def _groups(layer: nn.Conv2d) -> int:
    """A depthwise convolution has a group for each channel, however many are left; others keep their groups."""
    depthwise = 1 < layer.groups == layer.in_channels
    return layer.weight.shape[0] * layer.groups // layer.out_channels if depthwise else layer.groups


def _check_groups(channels: int, groups: int, path: str) -> None:
    if groups < 1 or channels % groups:
        raise CheckpointError(
            f"{path or 'the head'} has {channels} channels in {groups} groups",
            "all groups must be equally wide",
        )


def layers(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """(path, layer) of the layers with widths, in order of registration."""
    found = [(path, layer) for path, layer in module.named_modules() if isinstance(layer, MATRICES + NORMS)]
    return [(path, layer) for path, layer in found if layer.state_dict()]


def widths(layer: nn.Module) -> tuple[int, int]:
    """(in, out) of a layer as found by `layers`."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels, layer.out_channels
    width = next(iter(layer.state_dict().values())).shape[0]
    return width, width
