"""Classifiers of other widths: a task brings its own number of classes, a Siamese one twice the features.

A head is a linear layer or a convolution, or a module that holds such layers and norms one after another.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

from .errors import CheckpointError, ModelError

MATRICES = (nn.Linear, nn.Conv2d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)
SIAMESE = 2
"""A Siamese head reads the base's features and the task's own, so it is twice as wide."""


def conform(module: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """A copy of `module` with the weights of `state`, linear, convolution and norm layers as wide as these.

    Names missing from `state` keep their values. Raises CheckpointError where a layer cannot take the shape.
    """
    result = copy.deepcopy(module)
    for name, tensor in state.items():
        path, _, attribute = name.rpartition(".")
        _put(result.get_submodule(path), attribute, tensor, name)
    for path, layer in _layers(result):
        _declare_widths(layer)
        if any(
            tensor.dim() == 1 and len(tensor) != _widths(layer)[1] for tensor in layer.state_dict().values()
        ):
            raise CheckpointError(
                f"the tensors of {path or 'the head'} have lengths that do not agree",
                "give weight and bias together",
            )
    return result.eval()


def _put(layer: nn.Module, attribute: str, tensor: Tensor, name: str) -> None:
    own: Tensor = getattr(layer, attribute)
    like = own.dim() == tensor.dim() and own.shape[2:] == tensor.shape[2:]
    if own.shape != tensor.shape and not (like and isinstance(layer, MATRICES + NORMS)):
        raise CheckpointError(
            f"{name} has shape {tuple(tensor.shape)}, which its {type(layer).__name__} cannot take",
            f"the base's has shape {tuple(own.shape)}; keep the kind of layer",
        )
    value = tensor.detach().to(own.dtype).clone()
    is_parameter = isinstance(own, nn.Parameter)
    setattr(layer, attribute, nn.Parameter(value, requires_grad=False) if is_parameter else value)


def _declare_widths(layer: nn.Module) -> None:
    """Make a layer's attributes agree with its weight."""
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, nn.Conv2d):
        layer.out_channels, layer.in_channels = layer.weight.shape[0], layer.weight.shape[1] * layer.groups
    elif isinstance(layer, nn.LayerNorm) and layer.weight is not None:
        layer.normalized_shape = tuple(layer.weight.shape)
    elif isinstance(layer, nn.GroupNorm) and layer.weight is not None:
        layer.num_channels = layer.weight.shape[0]
    elif isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)) and layer.running_mean is not None:
        layer.num_features = layer.running_mean.shape[0]


def _layers(head: nn.Module) -> list[tuple[str, nn.Module]]:
    """(path, layer) of the layers with widths, in order of registration."""
    found = [(path, layer) for path, layer in head.named_modules() if isinstance(layer, MATRICES + NORMS)]
    return [(path, layer) for path, layer in found if layer.state_dict()]


def _checked_layers(head: nn.Module) -> list[tuple[str, nn.Module]]:
    found = _layers(head)
    if not any(isinstance(layer, MATRICES) for _, layer in found):
        raise ModelError(
            f"the head is a {type(head).__name__}, which holds neither a linear layer nor a convolution",
            "give a model whose classifier is one of these",
        )
    return found


def _widths(layer: nn.Module) -> tuple[int, int]:
    """(in, out)"""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels, layer.out_channels
    width = next(iter(layer.state_dict().values())).shape[0]
    return width, width


def classes_of(head: nn.Module) -> int:
    """Number of outputs of a head. Raises ModelError for one that is of neither kind."""
    return _widths(_checked_layers(head)[-1][1])[1]


def is_siamese(base: nn.Module, own: nn.Module) -> bool:
    """Whether `own` reads twice the features that the base's head reads.

    Raises CheckpointError where it reads any other number, or where its layers do not fit each other.
    """
    base_widths, own_widths = ([_widths(layer) for _, layer in _checked_layers(head)] for head in (base, own))
    features, given = base_widths[0][0], own_widths[0][0]
    if given not in (features, SIAMESE * features) or not _fit(base_widths, own_widths):
        raise CheckpointError(
            f"wrong head shape: it reads {given} features where the backbone gives {features}",
            f"a head reads {features} features, or {SIAMESE * features} for a Siamese task",
        )
    return given != features


def _fit(base: list[tuple[int, int]], own: list[tuple[int, int]]) -> bool:
    """Whether layers that fit each other in the base's head do so in the task's."""
    steps = zip(pairwise(base), pairwise(own), strict=True)
    return all(one[1] == two[0] or was[1] != then[0] for (was, then), (one, two) in steps)


def feature_axis(head: nn.Module) -> int:
    """Axis of the features in the head's input: 1 for convolutions, the last one for linear layers."""
    return 1 if any(isinstance(module, nn.Conv2d) for module in head.modules()) else -1


def resized_state(head: nn.Module, classes: int, siamese: bool) -> dict[str, Tensor]:
    """The head's state cut or repeated to `classes` outputs and, where Siamese, twice the features."""
    state = head.state_dict()
    layers = _layers(head)
    times = SIAMESE if siamese else 1
    for path, layer in layers:
        out = classes if layer is layers[-1][1] else None
        for name in layer.state_dict():
            full = f"{path}.{name}" if path else name
            state[full] = _resized(state[full], layer, times, out)
        if isinstance(layer, MATRICES):
            times = 1
    return state


def _resized(tensor: Tensor, layer: nn.Module, times: int, out: int | None) -> Tensor:
    if tensor.dim() == 0:
        return tensor
    if not isinstance(layer, MATRICES):
        return _repeat(tensor, 0, times * tensor.shape[0])
    rows = tensor if out is None else _repeat(tensor, 0, out)
    return rows if rows.dim() == 1 else _repeat(rows, 1, times * rows.shape[1])


def _repeat(tensor: Tensor, axis: int, size: int) -> Tensor:
    return tensor.index_select(axis, torch.arange(size, device=tensor.device) % tensor.shape[axis])
