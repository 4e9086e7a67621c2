"""Weights rounded to what int8 will hold, and biases that make up for it.

Rounding moves the mean of what an operator answers, and the mean is what later layers depend on most. It moves by
(rounded - weight) times the mean input, which calibration data tell, and goes into the bias at no cost (bias
correction: Nagel et al., Data-Free Quantization through Weight Equalization and Bias Correction, ICCV 2019, 4.2).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .backends.base import Batch
from .spec import INPUT

if TYPE_CHECKING:
    import onnx_ir as ir

LARGEST = {8: 127, 7: 64}
"""By bits, the largest of the integers that a weight may be; of 7 bits two times 64 times 255 are within 16."""

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class _Layer:
    """A convolution or matrix product whose weight and bias are constants."""

    node: ir.Node
    given: ir.Value
    weight: ir.Value
    bias: ir.Value

    @property
    def axes(self) -> list[int]:
        """Of the input, all but that of its channels."""
        return [0, *range(2, len(_array(self.weight).shape))]

    @property
    def channel_axis(self) -> int:
        """Of the weight, that of the output channels."""
        return 0 if self.node.op_type == "Conv" or integer(self.node, "transB", 0) else 1


def round_weights(
    model: ir.Model,
    feeds: Sequence[Batch],
    scratch: Path,
    kept: Collection[str] = (),
    whole: Collection[str] = (),
    bits: int = 8,
) -> None:
    """Change weights and biases of convolutions and matrix products (Gemm) in place, but of the nodes named `kept`.

    `feeds`: calibration data, float32, each a batch that the graph takes. `scratch`: an empty folder. A weight
    of several operators is rounded once; its bias gets the mean of their corrections. Weights named in `whole` have one
    scale. Where other weights go with an equal bias, which is then one value in the graph, it gets one of its own.
    `bits`: of weights, 8 or 7.
    """
    layers = [layer for layer in _layers(model.graph) if layer.node.name not in kept]
    layers = _with_own_biases(model.graph, layers)
    if not layers:
        return
    means = _means(model, layers, feeds, scratch)
    axes = {layer.weight: None if layer.weight.name in whole else layer.channel_axis for layer in layers}
    rounded = {weight: _rounded(_array(weight), axis, LARGEST[bits]) for weight, axis in axes.items()}
    shifts: dict[ir.Value, list[Floats]] = {}
    for layer in layers:
        change = rounded[layer.weight] - _array(layer.weight)
        shifts.setdefault(layer.bias, []).append(_shift(layer, change, means[layer.given]))
    for weight, array in rounded.items():
        _set(weight, array)
    for bias, found in shifts.items():
        _set(bias, _array(bias) - np.mean(found, axis=0))


def _layers(graph: ir.Graph) -> Iterator[_Layer]:
    for node in graph:
        if node.op_type not in ("Conv", "Gemm") or len(node.inputs) < 3:
            continue
        given, weight, bias = node.inputs[:3]
        if given is None or weight is None or bias is None:
            continue
        if weight.is_initializer() and bias.is_initializer() and _plain(node) and _only_bias(bias):
            yield _Layer(node, given, weight, bias)


def _with_own_biases(graph: ir.Graph, layers: Sequence[_Layer]) -> list[_Layer]:
    """A bias for each weight, if an operator with another weight reads it, too."""
    import onnx_ir as ir

    own: dict[tuple[ir.Value, ir.Value], ir.Value] = {}
    for layer in layers:
        bias, key = layer.bias, (layer.bias, layer.weight)
        if key in own or all(use.node.inputs[1] is layer.weight for use in bias.uses()):
            continue
        own[key] = ir.Value(
            name=f"{bias.name}/{len(own)}", const_value=bias.const_value, type=bias.type, shape=bias.shape
        )
        graph.register_initializer(own[key])
    found = [replace(layer, bias=own.get((layer.bias, layer.weight), layer.bias)) for layer in layers]
    for layer in found:
        layer.node.replace_input_with(2, layer.bias)
    return found


def _plain(node: ir.Node) -> bool:
    """Whether a matrix product is one without factors, of an input as it is."""
    factors = (node.attributes[name].as_float() for name in ("alpha", "beta") if name in node.attributes)
    return not integer(node, "transA", 0) and all(factor == 1 for factor in factors)


def _only_bias(value: ir.Value) -> bool:
    return all(use.idx == 2 and use.node.op_type in ("Conv", "Gemm") for use in value.uses())


def _means(
    model: ir.Model, layers: Sequence[_Layer], feeds: Sequence[Batch], scratch: Path
) -> dict[ir.Value, Floats]:
    """By input of a layer, its mean in each channel."""
    import onnx_ir as ir
    import onnxruntime

    path = scratch / "means.onnx"
    axes = {layer.given: layer.axes for layer in layers}
    ir.save(_telling_means(model, axes), path, external_data=f"{path.name}.data")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what matters is raised
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    sums: list[Floats] = [np.zeros(1)] * len(axes)
    for feed in feeds:
        answers = session.run(None, {INPUT: feed})
        sums = [total + np.asarray(answer, np.float64) for total, answer in zip(sums, answers, strict=True)]
    return {value: total / len(feeds) for value, total in zip(axes, sums, strict=True)}


def _telling_means(model: ir.Model, axes: dict[ir.Value, list[int]]) -> ir.Model:
    """A copy whose outputs are the means of these values over these axes."""
    import onnx_ir as ir

    copy = model.clone()
    values = {value.name: value for node in copy.graph for value in node.outputs}
    values |= {value.name: value for value in copy.graph.inputs}
    copy.graph.outputs.clear()
    for number, (value, over) in enumerate(axes.items()):
        constant = ir.Value(name=f"subtune/axes_{number}", const_value=ir.tensor(np.array(over, np.int64)))
        copy.graph.register_initializer(constant)
        node = ir.node(
            "ReduceMean", [values[value.name], constant], {"keepdims": 0}, name=f"subtune/mean_{number}"
        )
        node.outputs[0].name, node.outputs[0].type = (
            f"subtune/mean_{number}",
            ir.TensorType(ir.DataType.FLOAT),
        )
        copy.graph.append(node)
        copy.graph.outputs.append(node.outputs[0])
    return copy


def _rounded(weight: Floats, axis: int | None, largest: int) -> Floats:
    """What is left of a weight that had one scale for each index of `axis`, or one for all."""
    others = tuple(each for each in range(weight.ndim) if each != axis)
    scale = np.abs(weight).max(axis=others, keepdims=True).astype(np.float64) / largest
    scale[scale == 0] = 1
    return np.asarray((np.rint(weight / scale) * scale).astype(weight.dtype))


def _shift(layer: _Layer, change: Floats, mean: Floats) -> Floats:
    """By output channel, how much the mean answer moves when the weight changes by `change`."""
    if layer.node.op_type == "Gemm":
        return np.asarray((change if layer.channel_axis == 0 else change.T) @ mean)
    groups = integer(layer.node, "group", 1)
    summed = change.reshape(groups, len(change) // groups, change.shape[1], -1).sum(axis=3)
    return np.asarray(np.einsum("goi,gi->go", summed, mean.reshape(groups, -1)).reshape(-1))


def _array(value: ir.Value) -> Floats:
    assert value.const_value is not None
    return np.asarray(value.const_value.numpy())


def _set(value: ir.Value, array: Floats) -> None:
    import onnx_ir as ir

    value.const_value = ir.tensor(np.asarray(array, np.float32), name=value.name)


def integer(node: ir.Node, name: str, default: int) -> int:
    """An attribute of a node."""
    return node.attributes[name].as_int() if name in node.attributes else default
