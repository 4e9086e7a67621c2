"""Batch-norm folded into the convolution or product before it, also where several nodes share the weights.

The exporter folds a convolution that is used once. In a multi-task graph a shared block may run for several
streams, and then neither the exporter nor a runtime folds it without storing its weights once per use. Products over
tokens, whose batch-norm sees tokens and pictures as one axis, as LeViT has them, nobody folds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir


@dataclass(frozen=True)
class _Pair:
    """A batch-norm that alone reads a convolution, or a product that `view` reshapes but for its last axis."""

    product: ir.Node
    view: ir.Node | None
    norm: ir.Node

    @property
    def constants(self) -> tuple[ir.Value | None, ...]:
        """What the folded weights depend on: weight, bias, scale, shift, mean, variance."""
        bias = self.product.inputs[2] if len(self.product.inputs) > 2 else None
        return (self.product.inputs[1], bias, *self.norm.inputs[1:5])

    @property
    def epsilon(self) -> float:
        attribute = self.norm.attributes.get("epsilon")
        return float(attribute.as_float()) if attribute else 1e-5


def fold_batch_norms(graph: ir.Graph) -> int:
    """Fold in place, wherever every use of a weight is followed by the same batch-norm.

    Returns how many batch-norm nodes went.
    """
    by_weight: dict[ir.Value, list[_Pair]] = {}
    for pair in _pairs(graph):
        by_weight.setdefault(pair.product.inputs[1], []).append(pair)
    folded = 0
    for weight, pairs in by_weight.items():
        alike = len({(pair.product.op_type, pair.constants, pair.epsilon) for pair in pairs}) == 1
        if alike and len(pairs) == len(weight.uses()) and not weight.is_graph_output():
            _fold(graph, pairs)
            folded += len(pairs)
    return folded


def _pairs(graph: ir.Graph) -> Iterator[_Pair]:
    for node in graph:
        plain = node.op_type == "BatchNormalization" and len(node.outputs) == 1  # more of one that is trained
        pair = _pair(node) if plain else None
        if pair and _is_constant(pair):
            yield pair


def _pair(norm: ir.Node) -> _Pair | None:
    """With the convolution or the product whose result the norm alone reads."""
    before = _sole(norm.inputs[0])
    view = before if before is not None and _keeps_channels(before) else None
    product = _sole(view.inputs[0]) if view else before
    if product is None or product.op_type != ("MatMul" if view else "Conv"):
        return None
    return _Pair(product, view, norm)


def _is_constant(pair: _Pair) -> bool:
    """All that the folded weights depend on; a product with a vector has no columns to scale."""
    weight, *others = [_array(value) for value in pair.constants if value is not None]
    return weight is not None and weight.ndim > 1 and all(each is not None for each in others)


def _sole(value: ir.Value | None) -> ir.Node | None:
    """What computes a value that has one reader."""
    if value is None or value.is_graph_output() or len(value.uses()) != 1:
        return None
    return value.producer()


def _keeps_channels(node: ir.Node) -> bool:
    """A reshape (..., C) -> (N, C)."""
    if node.op_type != "Reshape" or node.inputs[0] is None:
        return False
    before, after = node.inputs[0].shape, node.outputs[0].shape
    return bool(before and after) and len(after) == 2 and isinstance(after[1], int) and before[-1] == after[1]


def _fold(graph: ir.Graph, pairs: list[_Pair]) -> None:
    weight, bias, *norm = (_array(value) for value in pairs[0].constants)
    assert weight is not None
    scale, shift, mean, variance = (value for value in norm if value is not None)
    # As the exporter computes it for a convolution that is used once, operation for operation: the same bits,
    # whatever the plan, so that a task which is added later changes nothing for the others.
    factor = scale / np.sqrt(variance + pairs[0].epsilon)
    offset = ((np.zeros_like(mean) if bias is None else bias) - mean) * factor + shift
    shaped = factor if pairs[0].view else factor.reshape(-1, *[1] * (weight.ndim - 1))
    old = dict.fromkeys(value for value in pairs[0].constants if value is not None)
    source = next(iter(old))
    name = str(source.name)
    source.name = f"{name}_unfolded"
    new_weight = initializer(graph, name, (weight * shaped).astype(weight.dtype))
    new_bias = initializer(graph, f"{name.removesuffix('weight')}bias", offset.astype(weight.dtype))
    for pair in pairs:
        _rewire(graph, pair, new_weight, new_bias)
    for value in old:
        _drop(graph, value)


def _array(value: ir.Value | None) -> np.ndarray | None:
    """Of an initializer, or of one transposed."""
    if value is None:
        return None
    if value.is_initializer() and value.const_value is not None:
        return np.asarray(value.const_value.numpy())
    made = _transposition(value)
    array = _array(made.inputs[0]) if made else None
    axes = made.attributes.get("perm") if made else None
    return None if array is None else np.transpose(array, axes.as_ints() if axes else None)


def _transposition(value: ir.Value) -> ir.Node | None:
    """Of an initializer that nothing else reads. What one node alone reads the exporter has worked out already."""
    made = value.producer()
    if made is None or made.op_type != "Transpose" or made.inputs[0] is None:
        return None
    source = made.inputs[0]
    return made if source.is_initializer() and len(source.uses()) == 1 else None


def _drop(graph: ir.Graph, constant: ir.Value) -> None:
    """If nobody reads it any more, with what it is made of."""
    if constant.uses() or constant.is_graph_output():
        return
    if made := constant.producer():
        (source,) = made.inputs
        graph.remove(made, safe=True)
        assert source is not None
        _drop(graph, source)
    else:
        graph.initializers.pop(str(constant.name))


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
    product, view, norm = pair.product, pair.view, pair.norm
    if not view:
        new = [_like(product, "Conv", [product.inputs[0], weight, bias])]
    else:
        multiplied = _like(product, "MatMul", [product.inputs[0], weight])
        added = _like(product, "Add", [multiplied.outputs[0], bias])
        new = [multiplied, added, _like(view, "Reshape", [added.outputs[0], view.inputs[1]])]
    old = [node for node in (norm, view, product) if node]
    ir.convenience.replace_nodes_and_values(graph, norm, old, new, norm.outputs, new[-1].outputs)
    if view:
        _bypass(graph, new[-1])


def _bypass(graph: ir.Graph, view: ir.Node) -> None:
    """Reshapes of a reshape read what it reads. onnxscript's rule for them can lose a shape that several share."""
    result = view.outputs[0]
    for reader in [use.node for use in result.uses() if _sets_shape(use.node)]:
        reader.replace_input_with(0, view.inputs[0])
    if not result.uses() and not result.is_graph_output():
        graph.remove(view, safe=True)


def _sets_shape(node: ir.Node) -> bool:
    """A reshape to a known shape; a 0 in it would stand for what was there before."""
    shape = _array(node.inputs[1]) if node.op_type == "Reshape" else None
    return shape is not None and bool(shape.all())


def _like(node: ir.Node, op_type: str, inputs: list[ir.Value | None]) -> ir.Node:
    """What stands in the place of `node`: of its shape and origin, with its attributes, of which a product has none."""
    props = dict(node.metadata_props)
    new = ir.node(op_type, inputs, node.attributes, name=node.name, metadata_props=props)
    new.outputs[0].shape, new.outputs[0].type = node.outputs[0].shape, node.outputs[0].type
    return new
