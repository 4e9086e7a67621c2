"""Layers that move values without computing: shapes, slices, gathers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...errors import ParityError
from .step import Operation, Step, unknown


def _constant(step: Step) -> Tensor:
    return step.weights["weights"].reshape(step.attributes["shape"])


def _shape(step: Step, x: Tensor) -> Tensor:
    return torch.tensor(x.shape, dtype=step.dtype)


def _concatenation(step: Step, *inputs: Tensor) -> Tensor:
    return torch.cat(inputs, step.attributes["axis"])


# Shuffle: transpose, reshape, transpose


def _shuffle(step: Step, x: Tensor, wanted: Tensor | None = None) -> Tensor:
    x = x.permute(step.attributes["first_transpose"][: x.ndim])
    lengths = step.attributes["reshape_dims"] if wanted is None else wanted.tolist()
    if lengths is not None:
        x = x.reshape(_filled_in(step, lengths, x))
    return x.permute(step.attributes["second_transpose"][: x.ndim])


def _filled_in(step: Step, lengths: Sequence[int], x: Tensor) -> tuple[int, ...]:
    """A zero stands for the length of the same axis, where the layer says so."""
    if not step.attributes["zero_is_placeholder"]:
        return tuple(lengths)
    return tuple(length or x.shape[axis] for axis, length in enumerate(lengths))


def _squeeze(step: Step, x: Tensor, axes: Tensor | None = None) -> Tensor:
    if axes is None:
        return x.squeeze()
    return x.squeeze([axis % x.ndim for axis in axes.reshape(-1).tolist()])


def _unsqueeze(step: Step, x: Tensor, axes: Tensor) -> Tensor:
    for axis in sorted(axis % step.rank for axis in axes.reshape(-1).tolist()):
        x = x.unsqueeze(axis)
    return x


# Slice, with all that a stride of zero (broadcast) and places outside (padding) can mean


def _slice(
    step: Step,
    x: Tensor,
    start: Tensor | None = None,
    size: Tensor | None = None,
    stride: Tensor | None = None,
    fill: Tensor | None = None,
    axes: Tensor | None = None,
) -> Tensor:
    named = step.attributes["axes"] if axes is None else axes.tolist()
    chosen = [axis % x.ndim for axis in named] if named else range(x.ndim)
    given = {"start": start, "shape": size, "stride": stride}
    rows = zip(
        chosen,
        *(step.attributes[name] if value is None else value.tolist() for name, value in given.items()),
        strict=True,
    )
    for axis, first, count, apart in rows:
        x = _along(step, x, axis, first + apart * torch.arange(count), fill)
    return x


def _along(step: Step, x: Tensor, axis: int, places: Tensor, fill: Tensor | None) -> Tensor:
    length = x.shape[axis]
    if len(places) == length and torch.equal(places, torch.arange(length)):
        return x
    inside = (places >= 0) & (places < length)
    picked = x.index_select(axis, step.choose(_OUTSIDE, "mode")(places, length))
    if step.attributes["mode"] == "FILL" and not inside.all():
        shape = [-1 if each == axis else 1 for each in range(x.ndim)]
        outside = torch.zeros((), dtype=x.dtype) if fill is None else fill.reshape(())
        picked = torch.where(inside.reshape(shape), picked, outside)
    return picked


def _reflected(places: Tensor, length: int) -> Tensor:
    period = max(2 * (length - 1), 1)
    turned = places % period
    return torch.where(turned < length, turned, period - turned)


_OUTSIDE: dict[str, Callable[[Tensor, int], Tensor]] = {
    "STRICT_BOUNDS": lambda places, length: places,
    "CLAMP": lambda places, length: places.clamp(0, length - 1),
    "FILL": lambda places, length: places.clamp(0, length - 1),
    "WRAP": lambda places, length: places % length,
    "REFLECT": _reflected,
}


def _padding(step: Step, x: Tensor) -> Tensor:
    """Of the last two axes; a negative width takes away."""
    before, behind = step.attributes["pre_padding_nd"], step.attributes["post_padding_nd"]
    return torch.nn.functional.pad(x, [before[1], behind[1], before[0], behind[0]])


# Gather, scatter


def _gather(step: Step, x: Tensor, indices: Tensor) -> Tensor:
    return step.choose(_GATHERS, "mode")(step, x, indices.long())  # type: ignore[no-any-return]


def _gather_slices(step: Step, x: Tensor, indices: Tensor) -> Tensor:
    axis, alike = step.attributes["axis"], step.attributes["num_elementwise_dims"]
    if alike:
        raise unknown(step, f"num_elementwise_dims {alike}")
    picked = x.index_select(axis, _counted(indices, x.shape[axis]).reshape(-1))
    return picked.reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


def _gather_elements(step: Step, x: Tensor, indices: Tensor) -> Tensor:
    axis = step.attributes["axis"]
    return x.gather(axis, _counted(indices, x.shape[axis]))


def _gather_nd(step: Step, x: Tensor, indices: Tensor) -> Tensor:
    alike = step.attributes["num_elementwise_dims"]
    if alike:
        raise unknown(step, f"num_elementwise_dims {alike}")
    return x[tuple(_counted(each, x.shape[axis]) for axis, each in enumerate(indices.unbind(-1)))]


_GATHERS = {"DEFAULT": _gather_slices, "ELEMENT": _gather_elements, "ND": _gather_nd}


def _counted(indices: Tensor, length: int) -> Tensor:
    """Negative indices count from behind."""
    return torch.where(indices < 0, indices + length, indices)


def _scatter(step: Step, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    return step.choose(_SCATTERS, "mode")(step, x.clone(), indices.long(), updates)  # type: ignore[no-any-return]


def _scatter_elements(step: Step, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    axis = step.attributes["axis"]
    return x.scatter_(axis, _counted(indices, x.shape[axis]), updates)


def _scatter_nd(step: Step, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    x[tuple(_counted(each, x.shape[axis]) for axis, each in enumerate(indices.unbind(-1)))] = updates
    return x


_SCATTERS = {"ELEMENT": _scatter_elements, "ND": _scatter_nd}


# Made from little


def _fill(
    step: Step, shape: Tensor | None = None, first: Tensor | None = None, apart: Tensor | None = None
) -> Tensor:
    """first + apart * index, with one `apart` per axis; a constant everywhere comes as a slice with stride zero."""
    step.choose({"LINSPACE": None}, "operation")
    lengths = step.attributes["shape"] if shape is None else shape.tolist()
    start = torch.as_tensor(step.attributes["alpha"] if first is None else first)
    rises = torch.as_tensor(step.attributes["beta"] if apart is None else apart).reshape(-1)
    indices = torch.meshgrid(*(torch.arange(length) for length in lengths), indexing="ij")
    filled = sum((rise * index for rise, index in zip(rises, indices, strict=True)), start)
    return filled.to(step.dtype)


def _one_hot(step: Step, indices: Tensor, values: Tensor, depth: Tensor) -> Tensor:
    axis, count = step.attributes["axis"] % step.rank, int(depth)
    shape = [-1 if each == axis else 1 for each in range(step.rank)]
    hot = _counted(indices, count).unsqueeze(axis) == torch.arange(count).reshape(shape)
    return torch.where(hot, values[1], values[0])


def _topk(step: Step, x: Tensor, count: Tensor | None = None) -> tuple[Tensor, Tensor]:
    (axis,) = step.axes()
    largest = step.choose({"MAX": True, "MIN": False}, "op")
    order = x.argsort(dim=axis, descending=largest, stable=True)  # of equals the first, as the API promises
    indices = order.narrow(axis, 0, step.attributes["k"] if count is None else int(count))
    return x.gather(axis, indices), indices.to(_INDICES[step.attributes.get("indices_type", "INT32")])


_INDICES = {"INT32": torch.int32, "INT64": torch.int64}
"""Older versions answer INT32, and have no such attribute."""


def _assertion(step: Step, condition: Tensor) -> tuple[()]:
    if not condition.all():
        raise ParityError(
            f"layer {step.name!r} asserts: {step.attributes['message']}", "export the bundle again"
        )
    return ()


REARRANGING: dict[str, Operation] = {
    "ASSERTION": _assertion,
    "CONCATENATION": _concatenation,
    "CONSTANT": _constant,
    "FILL": _fill,
    "GATHER": _gather,
    "ONE_HOT": _one_hot,
    "PADDING": _padding,
    "SCATTER": _scatter,
    "SHAPE": _shape,
    "SHUFFLE": _shuffle,
    "SLICE": _slice,
    "SQUEEZE": _squeeze,
    "TOPK": _topk,
    "UNSQUEEZE": _unsqueeze,
}
