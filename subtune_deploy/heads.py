"""Classifiers of other widths: a task brings its own number of classes, a Siamese one twice the features.

A head is a linear layer or a convolution, or a module that holds such layers and norms one after another.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from .errors import CheckpointError, ModelError
from .widths import MATRICES, layers, widths


def _checked_layers(head: nn.Module) -> list[tuple[str, nn.Module]]:
    found = layers(head)
    if not any(isinstance(layer, MATRICES) for _, layer in found):
        raise ModelError(
            f"the head is a {type(head).__name__}, which holds neither a linear layer nor a convolution",
            "give a model whose classifier is one of these",
        )
    return found


def classes_of(head: nn.Module) -> int:
    """Number of outputs of a head. Raises ModelError for one that is of neither kind."""
    return widths(_checked_layers(head)[-1][1])[1]


def features_of(head: nn.Module) -> int:
    """Number of features that a head reads. Raises ModelError for one that is of neither kind."""
    return widths(_checked_layers(head)[0][1])[0]


def is_siamese(base: nn.Module, own: nn.Module, features: int | None = None) -> bool:
    """Whether `own` reads the features that the base's head reads, and then the task's `features`.

    These are by default as many. Raises CheckpointError where it reads any other number, or where its layers do
    not fit each other.
    """
    alone, given = features or features_of(base), features_of(own)
    both = features_of(base) + alone
    base_widths, own_widths = ([widths(layer) for _, layer in _checked_layers(head)] for head in (base, own))
    if given not in (alone, both) or not _fit(base_widths, own_widths):
        raise CheckpointError(
            f"wrong head shape: it reads {given} features where the backbone gives {alone}",
            f"a head reads {alone} features, or {both} for a Siamese task",
        )
    return given == both


def _fit(base: list[tuple[int, int]], own: list[tuple[int, int]]) -> bool:
    """Whether layers that fit each other in the base's head do so in the task's."""
    steps = zip(pairwise(base), pairwise(own), strict=True)
    return all(one[1] == two[0] or was[1] != then[0] for (was, then), (one, two) in steps)


def feature_axis(head: nn.Module) -> int:
    """Axis of the features in the head's input: 1 for convolutions, the last one for linear layers."""
    return 1 if any(isinstance(module, nn.Conv2d) for module in head.modules()) else -1


def resized_state(
    head: nn.Module, classes: int, siamese: bool, features: int | None = None
) -> dict[str, Tensor]:
    """The head's state cut or repeated to `classes` outputs and, where Siamese, to the base's `features` as well.

    These are by default as many as the head reads.
    """
    state, found = head.state_dict(), layers(head)
    width: int | None = features_of(head)
    if siamese:
        width = features_of(head) + (features or features_of(head))
    for path, layer in found:
        out = classes if layer is found[-1][1] else None
        for name in layer.state_dict():
            full = f"{path}.{name}" if path else name
            state[full] = _resized(state[full], layer, width, out)
        if isinstance(layer, MATRICES):
            width = None
    return state


def _resized(tensor: Tensor, layer: nn.Module, width: int | None, out: int | None) -> Tensor:
    if tensor.dim() == 0:
        return tensor
    if not isinstance(layer, MATRICES):
        return tensor if width is None else _repeat(tensor, 0, width)
    rows = tensor if out is None else _repeat(tensor, 0, out)
    return rows if rows.dim() == 1 or width is None else _repeat(rows, 1, width)


def _repeat(tensor: Tensor, axis: int, size: int) -> Tensor:
    return tensor.index_select(axis, torch.arange(size, device=tensor.device) % tensor.shape[axis])
