"""Means over all positions become the operator for it, and others stay: structure and numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_networks import backbone

from subtune_deploy.export import export
from subtune_deploy.plan import make_plan
from subtune_deploy.pooling import pool_means
from subtune_deploy.tasks import candidate_task, owners

SHAPES = {3: (2, 3, 5), 4: (2, 3, 5, 7), 5: (2, 3, 4, 5, 6)}


def model(rank: int, axes: list[int], keepdims: int = 1, *, known: bool = True) -> onnx.ModelProto:
    mean = helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=keepdims, name="mean")
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPES[rank] if known else None)
    graph = helper.make_graph(
        [mean],
        "g",
        [given],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array(axes, np.int64), "axes")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def run(proto: onnx.ModelProto, rank: int) -> np.ndarray:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    given = np.random.default_rng(1).normal(3, 1, SHAPES[rank]).astype(np.float32)
    return session.run(None, {"x": given})[0]


@pytest.mark.parametrize(
    "rank, axes", [(4, [2, 3]), (4, [-1, -2]), (4, [3, -2]), (5, [2, 3, 4]), (5, [-3, -1, -2])]
)
def test_a_mean_over_all_positions_becomes_pooling(rank: int, axes: list[int]) -> None:
    proto = model(rank, axes)
    changed = ir.from_proto(proto)
    assert pool_means(changed.graph) == 1
    after = ir.to_proto(changed)
    assert [(node.op_type, node.name) for node in after.graph.node] == [("GlobalAveragePool", "mean")]
    assert [value.name for value in after.graph.output] == ["y"]
    np.testing.assert_allclose(run(after, rank), run(proto, rank), rtol=1e-6)


@pytest.mark.parametrize(
    "proto",
    [
        model(3, [2]),  # of tokens' channels, as in a layer norm
        model(4, [2]),
        model(4, [1, 2, 3]),
        model(4, [1, 2]),
        model(4, [2, 3], keepdims=0),
        model(5, [2, 3]),
        model(4, [2, 3], known=False),
    ],
    ids=["of tokens", "one axis", "channels too", "channels", "another shape", "frames stay", "unknown rank"],
)
def test_any_other_mean_stays(proto: onnx.ModelProto) -> None:
    changed = ir.from_proto(proto)
    assert pool_means(changed.graph) == 0
    assert [node.op_type for node in changed.graph] == ["ReduceMean"]


@pytest.mark.parametrize("batch", [1, None])
def test_squeeze_and_excitation_pools_in_what_is_exported(tmp_path: Path, batch: int | None) -> None:
    network = backbone("gated", blocks=3)
    tasks = [candidate_task(network, "birds", (2,), seed=1)]
    export(network, tasks, make_plan(network.topology, owners(tasks)), batch=batch).save(
        tmp_path, program=False
    )
    for file, versions in (("graph.onnx", 4), ("base.onnx", 3)):
        nodes = [node.op_type for node in ir.load(tmp_path / file).graph]
        assert nodes.count("GlobalAveragePool") == versions
