"""Layers whose window slides over a picture: convolution and pooling."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name

from .step import Operation, Step


def padding(step: Step, size: Sequence[int], kernel: Sequence[int]) -> list[tuple[int, int, int]]:
    """Per spatial axis: zeros before, zeros behind, and what rounding up adds behind those.

    `kernel` is the extent of the window, its dilation included.
    """
    rows = zip(
        size,
        kernel,
        step.attributes["stride_nd"],
        step.attributes["pre_padding"],
        step.attributes["post_padding"],
        strict=True,
    )
    return [step.choose(_PADDING, "padding_mode")(*row) for row in rows]


def _same(size: int, kernel: int, stride: int) -> int:
    return max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)


def _rounded_up(size: int, kernel: int, stride: int, before: int, behind: int) -> tuple[int, int, int]:
    return before, behind, -(size + before + behind - kernel) % stride


_PADDING: dict[str, Callable[[int, int, int, int, int], tuple[int, int, int]]] = {
    "EXPLICIT_ROUND_DOWN": lambda size, kernel, stride, before, behind: (before, behind, 0),
    "EXPLICIT_ROUND_UP": _rounded_up,
    "SAME_UPPER": lambda s, k, d, *_: (_same(s, k, d) // 2, _same(s, k, d) - _same(s, k, d) // 2, 0),
    "SAME_LOWER": lambda s, k, d, *_: (_same(s, k, d) - _same(s, k, d) // 2, _same(s, k, d) // 2, 0),
}


def _padded(x: Tensor, widths: Sequence[tuple[int, int]], value: float) -> Tensor:
    """`widths`: before and behind, for the last axes of `x` in their order."""
    return F.pad(x, list(itertools.chain(*reversed(widths))), value=value)


_CONVOLUTIONS = {2: F.conv2d, 3: F.conv3d}
_MAXIMA = {2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGES = {2: F.avg_pool2d, 3: F.avg_pool3d}


def _convolution(step: Step, x: Tensor, kernel: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    size, groups = step.attributes["kernel_size_nd"], step.attributes["num_groups"]
    if kernel is None:
        shape = (step.attributes["num_output_maps"], x.shape[1] // groups, *size)
        kernel = step.weights["kernel"].reshape(shape)
    if bias is None:
        bias = step.weights.get("bias")
    dilation = step.attributes["dilation_nd"]
    extents = [(length - 1) * apart + 1 for length, apart in zip(size, dilation, strict=True)]
    widths = [(before, behind + more) for before, behind, more in padding(step, x.shape[2:], extents)]
    convolve = _CONVOLUTIONS[len(size)]
    stride = step.attributes["stride_nd"]
    return convolve(_padded(x, widths, 0.0), kernel, bias, stride=stride, dilation=dilation, groups=groups)


def _pooling(step: Step, x: Tensor) -> Tensor:
    widths = padding(step, x.shape[2:], step.attributes["window_size_nd"])
    return step.choose({"MAX": _largest, "AVERAGE": _average}, "type")(step, x, widths)  # type: ignore[no-any-return]


def _largest(step: Step, x: Tensor, widths: Sequence[tuple[int, int, int]]) -> Tensor:
    outside = -math.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
    size = step.attributes["window_size_nd"]
    whole = [(before, behind + more) for before, behind, more in widths]
    return _MAXIMA[len(size)](_padded(x, whole, outside), size, step.attributes["stride_nd"])


def _average(step: Step, x: Tensor, widths: Sequence[tuple[int, int, int]]) -> Tensor:
    """Sum over the window divided by what counts in it; what rounding up adds never counts."""
    size, stride = step.attributes["window_size_nd"], step.attributes["stride_nd"]
    counted = 0.0 if step.attributes["average_count_excludes_padding"] else 1.0
    inner = [(before, behind) for before, behind, _ in widths]
    outer = [(0, more) for _, _, more in widths]
    mean = _AVERAGES[len(size)]
    ones = _padded(_padded(torch.ones_like(x[:1, :1]), inner, counted), outer, 0.0)
    return mean(_padded(_padded(x, inner, 0.0), outer, 0.0), size, stride) / mean(ones, size, stride)


WINDOWS: dict[str, Operation] = {"CONVOLUTION": _convolution, "POOLING": _pooling}
