"""HardSigmoid and HardSwish of 8 bits, as sums: of these ONNX Runtime has integer operators, of those it has none.

HardSigmoid(x) = clip(a x + b, 0, 1) = a clip(x + b/a, 0, 1/a). What is rounded in unsigned steps s from 0 on, 255 of
which are 1 at most, is clipped by that alone: so is the sum x + b/a in steps of s/a, which readers take for steps of s.
HardSwish(x) = x HardSigmoid(x), a = 1/6, b = 1/2.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from .folding import initializer

LARGEST_STEP = 1 / 255 * (1 + 1e-6)
"""Of a rounding that ends at 1."""


def split_hard_swish(graph: ir.Graph, nodes: Collection[ir.Node]) -> None:
    """Make a HardSigmoid and a product of each HardSwish among these nodes, in place."""
    for node in nodes:
        if node.op_type == "HardSwish":
            (given,), (answer,) = node.inputs, node.outputs
            name = f"{node.name or answer.name}/gate"
            gate = ir.node("HardSigmoid", [given], {"alpha": 1 / 6, "beta": 0.5}, name=name)
            (share,) = gate.outputs
            share.name, share.type, share.shape = f"{answer.name}/gate", answer.type, answer.shape
            product = ir.node("Mul", [given, share], name=node.name)
            ir.convenience.replace_nodes_and_values(
                graph, node, [node], [gate, product], node.outputs, product.outputs
            )


def as_sums(graph: ir.Graph, excluded: Collection[str] = ()) -> None:
    """Make a sum of each HardSigmoid that is rounded on both sides, in place, but of the nodes named `excluded`."""
    for node in list(graph):
        slope = node.attributes.get_float("alpha", 0.2) if node.op_type == "HardSigmoid" else 0.0
        if slope <= 0 or node.name in excluded or not _is_rounded(node):
            continue
        (answer,) = node.outputs
        (rounding,) = (use.node for use in answer.uses())
        offset = _offset(graph, str(answer.name), node.attributes.get_float("beta", 0.5) / slope)
        total = ir.node("Add", [node.inputs[0], offset.outputs[0]], name=node.name)
        ir.convenience.replace_nodes_and_values(
            graph, node, [node], [offset, total], node.outputs, total.outputs
        )
        step = np.float32(_number(rounding.inputs[1]) / slope)
        rounding.replace_input_with(1, initializer(graph, f"{answer.name}/step", np.asarray(step)))


def _is_rounded(node: ir.Node) -> bool:
    """On both sides, and behind it in unsigned steps from 0 to 1 at most."""
    given = node.inputs[0] and node.inputs[0].producer()
    readers = [use.node for use in node.outputs[0].uses()]
    if node.outputs[0].is_graph_output() or given is None or given.op_type != "DequantizeLinear":
        return False
    if [reader.op_type for reader in readers] != ["QuantizeLinear"] or len(readers[0].inputs) < 3:
        return False
    _, step, zero = readers[0].inputs
    unsigned = zero is not None and zero.dtype is ir.DataType.UINT8
    return unsigned and _number(zero) == 0 and _number(step) <= LARGEST_STEP


def _number(value: ir.Value | None) -> float:
    assert value is not None
    assert value.const_value is not None
    return float(value.const_value.numpy())


def _offset(graph: ir.Graph, name: str, value: float) -> ir.Node:
    """A constant of 8 bits: one step, which is as large as it is, above the middle or below."""
    eight = np.uint8(128 + np.sign(value))
    inputs = [
        initializer(graph, f"{name}/{part}", np.asarray(array))
        for part, array in (
            ("offset", eight),
            ("size", np.float32(abs(value) or 1)),
            ("middle", np.uint8(128)),
        )
    ]
    made = ir.node("DequantizeLinear", inputs, name=f"{name}/offset")
    made.outputs[0].name, made.outputs[0].shape = f"{name}/offset_output", ir.Shape(())
    made.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    return made
