"""Batch-norm folding where several nodes share a convolution's weight."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from subtune_deploy.folding import fold_batch_norms


def model(uses: int, *, other_norm: bool = False, extra_reader: bool = False) -> onnx.ModelProto:
    """`uses` convolutions with one weight, each followed by a batch-norm; outputs y0, y1, ..."""
    random = np.random.default_rng(0)
    arrays = {
        "w": random.normal(size=(4, 3, 3, 3)),
        "scale": random.uniform(0.5, 2, 4),
        "shift": random.normal(size=4),
    }
    arrays |= {
        "mean": random.normal(size=4),
        "var": random.uniform(0.5, 2, 4),
        "mean2": random.normal(size=4),
    }
    nodes = []
    for i in range(uses):
        mean = "mean2" if other_norm and i else "mean"
        nodes.append(helper.make_node("Conv", [f"x{i}", "w"], [f"c{i}"], pads=[1, 1, 1, 1]))
        nodes.append(
            helper.make_node(
                "BatchNormalization", [f"c{i}", "scale", "shift", mean, "var"], [f"y{i}"], epsilon=1e-3
            )
        )
    outputs = [f"y{i}" for i in range(uses)]
    if extra_reader:
        nodes.append(helper.make_node("Identity", ["w"], ["raw"]))
        outputs.append("raw")
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, [1, 3, 5, 5]) for i in range(uses)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def run(proto: onnx.ModelProto) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    random = np.random.default_rng(1)
    feeds = {i.name: random.normal(size=(1, 3, 5, 5)).astype(np.float32) for i in session.get_inputs()}
    return session.run(None, feeds)


@pytest.mark.parametrize("uses", [1, 2, 3])
def test_folding_keeps_the_answers_and_stores_one_weight(uses: int) -> None:
    proto = model(uses)
    answers = run(proto)
    folded = ir.from_proto(proto)
    assert fold_batch_norms(folded.graph) == uses
    after = ir.to_proto(folded)
    assert [node.op_type for node in after.graph.node] == ["Conv"] * uses
    assert len({node.input[1] for node in after.graph.node}) == 1
    assert [value.name for value in after.graph.output] == [value.name for value in proto.graph.output]
    for before, now in zip(answers, run(after), strict=True):
        np.testing.assert_allclose(now, before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("why", ["other_norm", "extra_reader"])
def test_a_weight_that_others_read_differently_is_left_alone(why: str) -> None:
    proto = model(2, **{why: True})
    kept = ir.from_proto(proto)
    assert fold_batch_norms(kept.graph) == 0
    assert len(ir.to_proto(kept).graph.node) == len(proto.graph.node)
