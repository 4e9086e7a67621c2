"""HardSigmoid and HardSwish of 8 bits, as sums: of these ONNX Runtime has integer operators, of those it has none.

HardSigmoid(x) = clip(a x + b, 0, 1) = a clip(x + b/a, 0, 1/a). A sum that is rounded in 255 steps of 1/(255 a), from 0
on, is clipped by that alone, and to its readers a step is 1/255. HardSwish(x) = x HardSigmoid(x), a = 1/6, b = 1/2.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

STEPS = 255


def split_hard_swish(graph: ir.Graph, names: Collection[str]) -> None:
    """Make a HardSigmoid and a product of each HardSwish with one of these names, in place."""
    for node in list(graph):
        if node.op_type == "HardSwish" and node.name in names:
            (given,), (answer,) = node.inputs, node.outputs
            gate = ir.node("HardSigmoid", [given], {"alpha": 1 / 6, "beta": 0.5}, name=f"{node.name}/gate")
            product = ir.node("Mul", [given, gate.outputs[0]], name=node.name)
            _call(gate.outputs[0], f"{answer.name}/gate", answer)
            _call(product.outputs[0], str(answer.name), answer)
            ir.convenience.replace_nodes_and_values(
                graph, node, [node], [gate, product], node.outputs, product.outputs
            )


def as_sums(graph: ir.Graph) -> None:
    """Make a sum of each HardSigmoid between a DequantizeLinear and a QuantizeLinear of unsigned 8 bits, in place."""
    for node in list(graph):
        slope = node.attributes.get_float("alpha", 0.2) if node.op_type == "HardSigmoid" else 0.0
        if slope <= 0 or not _is_rounded(node):
            continue
        (rounding,) = (use.node for use in node.outputs[0].uses())
        offset = _offset(graph, node, node.attributes.get_float("beta", 0.5) / slope)
        total = ir.node("Add", [node.inputs[0], offset.outputs[0]], name=node.name)
        _call(total.outputs[0], str(node.outputs[0].name), node.outputs[0])
        ir.convenience.replace_nodes_and_values(
            graph, node, [node], [offset, total], node.outputs, total.outputs
        )
        zero = _constant(graph, f"{node.name}/zero", np.uint8(0))
        _set_steps(rounding, _constant(graph, f"{node.name}/step", np.float32(1 / slope / STEPS)), zero)
        for reader in [use.node for use in rounding.outputs[0].uses()]:
            _set_steps(reader, _constant(graph, f"{node.name}/share", np.float32(1 / STEPS)), zero)


def _is_rounded(node: ir.Node) -> bool:
    """On both sides, in unsigned 8 bits."""
    given = node.inputs[0] and node.inputs[0].producer()
    readers = [use.node for use in node.outputs[0].uses()]
    return (
        not node.outputs[0].is_graph_output()
        and given is not None
        and given.op_type == "DequantizeLinear"
        and [reader.op_type for reader in readers] == ["QuantizeLinear"]
        and readers[0].inputs[2] is not None
        and readers[0].inputs[2].dtype is ir.DataType.UINT8
    )


def _offset(graph: ir.Graph, node: ir.Node, value: float) -> ir.Node:
    """A constant of 8 bits: one step, which is as large as it is, above the middle or below."""
    eight = np.uint8(128 + np.sign(value))
    inputs = [
        _constant(graph, f"{node.name}/{name}", array)
        for name, array in (
            ("offset", eight),
            ("size", np.float32(abs(value) or 1)),
            ("middle", np.uint8(128)),
        )
    ]
    made = ir.node("DequantizeLinear", inputs, name=f"{node.name}/offset")
    made.outputs[0].name, made.outputs[0].shape = f"{node.name}/offset_output", ir.Shape(())
    made.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    return made


def _set_steps(node: ir.Node, step: ir.Value, zero: ir.Value) -> None:
    node.replace_input_with(1, step)
    node.replace_input_with(2, zero)


def _constant(graph: ir.Graph, name: str, array: npt.NDArray[np.generic] | np.generic) -> ir.Value:
    """The initializer of this name, made if it is not there."""
    if name not in graph.initializers:
        value = ir.tensor(np.asarray(array), name=name)
        graph.register_initializer(
            ir.Value(name=name, const_value=value, type=ir.TensorType(value.dtype), shape=value.shape)
        )
    return graph.initializers[name]


def _call(value: ir.Value, name: str, like: ir.Value) -> None:
    value.name, value.type, value.shape = name, like.type, like.shape
