"""Batch-norm folded into the convolution before it, also where several nodes share the weights.

The exporter folds a convolution that is used once. In a multi-task graph a shared block may run for several
streams, and then neither the exporter nor a runtime folds it without storing its weights once per use.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir


@dataclass(frozen=True)
class _Pair:
    convolution: ir.Node
    norm: ir.Node

    @property
    def constants(self) -> tuple[ir.Value | None, ...]:
        """What the folded weights depend on: weight, bias, scale, shift, mean, variance."""
        bias = self.convolution.inputs[2] if len(self.convolution.inputs) > 2 else None
        return (self.convolution.inputs[1], bias, *self.norm.inputs[1:5])

    @property
    def epsilon(self) -> float:
        attribute = self.norm.attributes.get("epsilon")
        return float(attribute.as_float()) if attribute else 1e-5


def fold_batch_norms(graph: ir.Graph) -> int:
    """Fold in place, wherever every use of a convolution's weight is followed by the same batch-norm.

    Returns how many batch-norm nodes went.
    """
    by_weight: dict[ir.Value, list[_Pair]] = {}
    for pair in _pairs(graph):
        by_weight.setdefault(pair.convolution.inputs[1], []).append(pair)
    folded = 0
    for weight, pairs in by_weight.items():
        alike = len({(pair.constants, pair.epsilon) for pair in pairs}) == 1
        if alike and len(pairs) == len(weight.uses()):
            _fold(graph, pairs)
            folded += len(pairs)
    return folded


def _pairs(graph: ir.Graph) -> Iterator[_Pair]:
    for node in graph:
        before = (
            node.inputs[0].producer() if node.op_type == "BatchNormalization" and node.inputs[0] else None
        )
        if before is None or before.op_type != "Conv" or len(before.outputs[0].uses()) != 1:
            continue
        pair = _Pair(before, node)
        given = [value for value in pair.constants if value is not None]
        if all(value.const_value is not None and value.is_initializer() for value in given):
            yield pair


def _fold(graph: ir.Graph, pairs: list[_Pair]) -> None:
    weight, bias, *norm = (_array(value) for value in pairs[0].constants)
    assert weight is not None
    scale, shift, mean, variance = (value for value in norm if value is not None)
    # As the exporter computes it for a convolution that is used once, operation for operation: the same bits,
    # whatever the plan, so that a task which is added later changes nothing for the others.
    factor = scale / np.sqrt(variance + pairs[0].epsilon)
    offset = ((np.zeros_like(mean) if bias is None else bias) - mean) * factor + shift
    shaped = factor.reshape(-1, *[1] * (weight.ndim - 1))
    old = pairs[0].convolution.inputs[1]
    assert old is not None
    name = str(old.name)
    old.name = f"{name}_unfolded"
    new_weight = initializer(graph, name, (weight * shaped).astype(weight.dtype))
    new_bias = initializer(graph, f"{name.removesuffix('weight')}bias", offset.astype(weight.dtype))
    for pair in pairs:
        _rewire(graph, pair, new_weight, new_bias)
    if not old.uses():
        graph.initializers.pop(str(old.name))


def _array(value: ir.Value | None) -> np.ndarray | None:
    return None if value is None or value.const_value is None else value.const_value.numpy()


def initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """A new constant of the graph, of this name or, where that is taken, a longer one."""
    while name in graph.initializers:
        name += "_folded"
    value = ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(ir.DataType.from_numpy(array.dtype))
    )
    value.const_value = ir.tensor(array, name=name)
    graph.register_initializer(value)
    return value


def _rewire(graph: ir.Graph, pair: _Pair, weight: ir.Value, bias: ir.Value) -> None:
    old, norm = pair.convolution, pair.norm
    result = norm.outputs[0]
    node = ir.node("Conv", [old.inputs[0], weight, bias], attributes=dict(old.attributes), name=old.name)
    node.outputs[0].shape, node.outputs[0].type = result.shape, result.type
    node.metadata_props.update(old.metadata_props)
    graph.insert_after(norm, node)
    name = result.name
    result.replace_all_uses_with(node.outputs[0], replace_graph_outputs=True)
    graph.remove([norm, old], safe=True)
    node.outputs[0].name = name
