"""Resizing: along each axis a matrix of how much of each old place goes to each new one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .step import Operation, Step


def _resize(step: Step, x: Tensor, shape: Tensor | None = None) -> Tensor:
    lengths = step.attributes["shape"] if shape is None else shape.tolist()
    scales = step.attributes["scales"] if shape is None else ()
    for axis, old in enumerate(x.shape):
        scale = scales[axis] if scales else lengths[axis] / old
        new = int(np.float32(old) * np.float32(scale)) if scales else lengths[axis]
        if new != old or scale != 1:
            matrix = _shares(step, old, new, scale)
            x = torch.movedim(torch.movedim(x, axis, -1) @ matrix.T, -1, axis)
    return x


def _shares(step: Step, old: int, new: int, scale: float) -> Tensor:
    """(new, old): the share of each old place in each new one."""
    target = torch.arange(new, dtype=torch.float32)
    transform = step.choose(_COORDINATES, "coordinate_transformation")
    places = transform(target, old, new, scale)
    if new == 1 and step.attributes["selector_for_single_pixel"] == "UPPER":
        places = torch.zeros(1)
    taps = step.choose(_TAPS, "resize_mode")(step, places)
    matrix = torch.zeros(new, old)
    for index, share in taps:
        inside = (index >= 0) & (index < old)
        kept = share * inside if step.attributes["exclude_outside"] else share
        matrix[torch.arange(new), index.clamp(0, old - 1).long()] += kept
    return matrix / matrix.sum(1, keepdim=True)


_COORDINATES: dict[str, Callable[[Tensor, int, int, float], Tensor]] = {
    "ALIGN_CORNERS": lambda x, old, new, scale: x * ((old - 1) / max(new - 1, 1)),
    "ASYMMETRIC": lambda x, old, new, scale: x / scale,
    "HALF_PIXEL": lambda x, old, new, scale: (x + 0.5) / scale - 0.5,
}

_ROUNDINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "HALF_UP": lambda x: (x + 0.5).floor(),
    "HALF_DOWN": lambda x: (x - 0.5).ceil(),
    "FLOOR": torch.floor,
    "CEIL": torch.ceil,
}

Taps = list[tuple[Tensor, Tensor]]
"""Places to read from, and the share of each."""


def _nearest(step: Step, places: Tensor) -> Taps:
    return [(step.choose(_ROUNDINGS, "nearest_rounding")(places), torch.ones_like(places))]


def _linear(step: Step, places: Tensor) -> Taps:
    left = places.floor()
    return [(left, 1 - (places - left)), (left + 1, places - left)]


def _cubic(step: Step, places: Tensor) -> Taps:
    a, left = step.attributes["cubic_coeff"], places.floor()
    return [(left + offset, _keys(a, (places - left - offset).abs())) for offset in (-1, 0, 1, 2)]


def _keys(a: float, x: Tensor) -> Tensor:
    """Keys' cubic convolution kernel at distances x of at most 2."""
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x <= 1, near, far)


_TAPS = {"NEAREST": _nearest, "LINEAR": _linear, "CUBIC": _cubic}

RESIZING: dict[str, Operation] = {"RESIZE": _resize}
