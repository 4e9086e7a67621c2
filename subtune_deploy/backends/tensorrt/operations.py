"""What a layer of each type computes: one small function per type, in PyTorch on the CPU.

Floating values arrive here in float32, whatever the network's own type; the interpreter rounds the result once.
Integers stay integers. More layers are in `windows`, `rearranging` and `resizing`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name

from .step import Operation, Step, unknown

# Activations: x, alpha, beta

ACTIVATIONS: dict[str, Callable[[Tensor, float, float], Tensor]] = {
    "RELU": lambda x, a, b: x.relu(),
    "SIGMOID": lambda x, a, b: x.sigmoid(),
    "TANH": lambda x, a, b: x.tanh(),
    "LEAKY_RELU": lambda x, a, b: torch.where(x >= 0, x, a * x),
    "ELU": lambda x, a, b: torch.where(x >= 0, x, a * x.expm1()),
    "SELU": lambda x, a, b: b * torch.where(x > 0, x, a * x.expm1()),
    "SOFTSIGN": lambda x, a, b: F.softsign(x),
    "SOFTPLUS": lambda x, a, b: a * F.softplus(b * x),
    "CLIP": lambda x, a, b: x.clamp(a, b),
    "HARD_SIGMOID": lambda x, a, b: (a * x + b).clamp(0, 1),
    "SCALED_TANH": lambda x, a, b: a * (b * x).tanh(),
    "THRESHOLDED_RELU": lambda x, a, b: torch.where(x > a, x, torch.zeros_like(x)),
    "GELU_ERF": lambda x, a, b: F.gelu(x),
    "GELU_TANH": lambda x, a, b: F.gelu(x, approximate="tanh"),
}

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "EXP": torch.exp,
    "LOG": torch.log,
    "SQRT": torch.sqrt,
    "RECIP": torch.reciprocal,
    "ABS": torch.abs,
    "NEG": torch.neg,
    "SIN": torch.sin,
    "COS": torch.cos,
    "TAN": torch.tan,
    "SINH": torch.sinh,
    "COSH": torch.cosh,
    "ASIN": torch.asin,
    "ACOS": torch.acos,
    "ATAN": torch.atan,
    "ASINH": torch.asinh,
    "ACOSH": torch.acosh,
    "ATANH": torch.atanh,
    "CEIL": torch.ceil,
    "FLOOR": torch.floor,
    "ERF": torch.erf,
    "NOT": torch.logical_not,
    "SIGN": torch.sign,
    "ROUND": torch.round,
    "ISINF": torch.isinf,
    "ISNAN": torch.isnan,
}


def _divided(left: Tensor, right: Tensor) -> Tensor:
    """Integers are divided as in C."""
    return left / right if left.is_floating_point() else torch.div(left, right, rounding_mode="trunc")


ELEMENTWISE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "SUM": torch.add,
    "PROD": torch.mul,
    "MAX": torch.maximum,
    "MIN": torch.minimum,
    "SUB": torch.sub,
    "DIV": _divided,
    "POW": torch.pow,
    "FLOOR_DIV": torch.floor_divide,
    "AND": torch.logical_and,
    "OR": torch.logical_or,
    "XOR": torch.logical_xor,
    "EQUAL": torch.eq,
    "GREATER": torch.gt,
    "LESS": torch.lt,
}


def _prod(x: Tensor, axes: list[int], keepdim: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keepdim)
    return x


REDUCTIONS: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {
    "SUM": lambda x, axes, keep: x.sum(axes, keepdim=keep, dtype=x.dtype),
    "PROD": _prod,
    "MAX": lambda x, axes, keep: x.amax(axes, keepdim=keep),
    "MIN": lambda x, axes, keep: x.amin(axes, keepdim=keep),
    "AVG": lambda x, axes, keep: x.mean(axes, keepdim=keep),
}


def _activation(step: Step, x: Tensor) -> Tensor:
    function = step.choose(ACTIVATIONS, "type")
    return function(x, step.attributes["alpha"], step.attributes["beta"])  # type: ignore[no-any-return]


def _unary(step: Step, x: Tensor) -> Tensor:
    return step.choose(UNARY, "op")(x)  # type: ignore[no-any-return]


def _elementwise(step: Step, left: Tensor, right: Tensor) -> Tensor:
    return step.choose(ELEMENTWISE, "op")(left, right)  # type: ignore[no-any-return]


def _reduce(step: Step, x: Tensor) -> Tensor:
    return step.choose(REDUCTIONS, "op")(x, step.axes(), step.attributes["keep_dims"])  # type: ignore[no-any-return]


def _parametric_relu(step: Step, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


def _select(step: Step, condition: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(condition, yes, no)


def _cumulative(step: Step, x: Tensor, axis: Tensor) -> Tensor:
    along = int(axis)
    step.choose({"SUM": torch.cumsum}, "op")
    turned = x.flip(along) if step.attributes["reverse"] else x
    total = turned.cumsum(along, dtype=x.dtype)
    if step.attributes["exclusive"]:
        total = total - turned
    return total.flip(along) if step.attributes["reverse"] else total


# Linear algebra, normalisation


def _matrix_multiply(step: Step, left: Tensor, right: Tensor) -> Tensor:
    kinds = step.attributes["op0"], step.attributes["op1"]
    left, right = (
        x.transpose(-1, -2) if kind == "TRANSPOSE" else x
        for x, kind in zip((left, right), kinds, strict=True)
    )
    if kinds[0] == "VECTOR":
        left = left.unsqueeze(-2)
    if kinds[1] == "VECTOR":
        right = right.unsqueeze(-1)
    return (left @ right).squeeze(
        [axis for axis, kind in zip((-2, -1), kinds, strict=True) if kind == "VECTOR"]
    )


def _einsum(step: Step, *inputs: Tensor) -> Tensor:
    return torch.einsum(step.attributes["equation"], *inputs)


def _softmax(step: Step, x: Tensor) -> Tensor:
    axes = step.axes()
    exponential = (x - x.amax(axes, keepdim=True)).exp()
    return exponential / exponential.sum(axes, keepdim=True)


def _normalization(step: Step, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups, axes = step.attributes["num_groups"], step.axes()
    shape = x.shape
    if groups != 1:
        x = x.reshape(shape[0], groups, -1)
        axes = [2]
    centred = x - x.mean(axes, keepdim=True)
    variance = centred.square().mean(axes, keepdim=True)
    normal: Tensor = (centred / (variance + step.attributes["epsilon"]).sqrt()).reshape(shape)
    return normal * _per_channel(scale, shape, groups) + _per_channel(bias, shape, groups)


def _per_channel(values: Tensor, shape: Sequence[int], groups: int) -> Tensor:
    """The older layer takes one scale per group, the newer one per channel."""
    if groups != 1 and values.shape[1] == groups:
        return values.repeat_interleave(shape[1] // groups, dim=1)
    return values


def _scale(step: Step, x: Tensor) -> Tensor:
    for name, function in (("scale", torch.mul), ("shift", torch.add), ("power", torch.pow)):
        if name in step.weights:
            x = function(x, _aligned(step, step.weights[name], x))
    return x


def _aligned(step: Step, values: Tensor, x: Tensor) -> Tensor:
    axis = step.attributes["channel_axis"]
    shapes = {
        "UNIFORM": [1] * x.ndim,
        "CHANNEL": [-1 if each == axis else 1 for each in range(x.ndim)],
        "ELEMENTWISE": [1, *x.shape[1:]],
    }
    return values.reshape(step.choose(shapes, "mode"))


# Types


def _quantize(step: Step, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """Divide, round half to even, saturate."""
    if step.dtype is not torch.int8:
        raise unknown(step, f"output type {step.dtype}")
    steps = torch.round(x / _of_axis(step, scale, x)) + _zero(step, zero, x)
    return steps.clamp(-128, 127).to(torch.int8)


def _dequantize(step: Step, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    if x.dtype is not torch.int8:
        raise unknown(step, f"input type {x.dtype}")
    return (x.float() - _zero(step, zero, x)) * _of_axis(step, scale, x)


def _of_axis(step: Step, scale: Tensor, x: Tensor) -> Tensor:
    if scale.numel() == 1:
        return scale.reshape(())
    if scale.ndim != 1:
        raise unknown(step, "scales of blocks")
    axis = step.attributes["axis"]
    return scale.reshape([-1 if each == axis else 1 for each in range(x.ndim)])


def _zero(step: Step, zero: Tensor | None, x: Tensor) -> Tensor:
    return torch.zeros(()) if zero is None else _of_axis(step, zero.float(), x)


def _converted(step: Step, x: Tensor) -> Tensor:
    return x.to(step.dtype)


ARITHMETIC: dict[str, Operation] = {
    "ACTIVATION": _activation,
    "CAST": _converted,
    "CUMULATIVE": _cumulative,
    "DEQUANTIZE": _dequantize,
    "EINSUM": _einsum,
    "ELEMENTWISE": _elementwise,
    "IDENTITY": _converted,
    "MATRIX_MULTIPLY": _matrix_multiply,
    "NORMALIZATION": _normalization,
    "PARAMETRIC_RELU": _parametric_relu,
    "QUANTIZE": _quantize,
    "REDUCE": _reduce,
    "SCALE": _scale,
    "SELECT": _select,
    "SOFTMAX": _softmax,
    "UNARY": _unary,
}
