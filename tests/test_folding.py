"""Batch-norm folding where several nodes share a weight, and behind products over tokens."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper
from tiny_networks import backbone

from subtune_deploy.export import export
from subtune_deploy.folding import fold_batch_norms
from subtune_deploy.plan import make_plan
from subtune_deploy.tasks import candidate_task, owners

PICTURE = (1, 3, 5, 5)


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


def run(proto: onnx.ModelProto, shape: tuple[int, ...] = PICTURE) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    random = np.random.default_rng(1)
    feeds = {i.name: random.normal(size=shape).astype(np.float32) for i in session.get_inputs()}
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


# products over tokens

TOKENS = (2, 3, 4)


def tokens(
    after: list[NodeProto],
    *,
    uses: int = 1,
    view: tuple[int, ...] = (6, 5),
    given: tuple[int, ...] = TOKENS,
    weight: tuple[int, ...] = (5, 4),
) -> onnx.ModelProto:
    """`given` times one transposed `weight`, seen as `view`, normed; `after` reads `n0` and answers `y0`."""
    random = np.random.default_rng(0)
    channels = view[1]
    arrays = {
        "w": random.normal(size=weight),
        "scale": random.uniform(0.5, 2, channels),
        "shift": random.normal(size=channels),
        "mean": random.normal(size=channels),
        "var": random.uniform(0.5, 2, channels),
    }
    weights = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()]
    shapes = {"view": view, "back": (2, 3, 5), "kept": (0, 5, 1)}
    nodes = [helper.make_node("Transpose", ["w"], ["wt"])]
    for i in range(uses):
        last = f"n{i}" if after and i == 0 else f"y{i}"
        nodes.append(helper.make_node("MatMul", [f"x{i}", "wt"], [f"p{i}"]))
        nodes.append(helper.make_node("Reshape", [f"p{i}", "view"], [f"v{i}"]))
        nodes.append(
            helper.make_node(
                "BatchNormalization", [f"v{i}", "scale", "shift", "mean", "var"], [last], epsilon=1e-3
            )
        )
    graph = helper.make_graph(
        [*nodes, *after],
        "g",
        [helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, given) for i in range(uses)],
        [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, None) for i in range(uses)],
        [
            *weights,
            *(numpy_helper.from_array(np.array(shape, np.int64), name) for name, shape in shapes.items()),
        ],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return onnx.shape_inference.infer_shapes(made)


def folded(proto: onnx.ModelProto, shape: tuple[int, ...] = TOKENS) -> tuple[int, list[str]]:
    """(how many batch-norms went, operators that are left), with the answers compared."""
    model = ir.from_proto(proto)
    count = fold_batch_norms(model.graph)
    after = ir.to_proto(model)
    onnx.checker.check_model(after)
    for before, now in zip(run(proto, shape), run(after, shape), strict=True):
        np.testing.assert_allclose(now, before, rtol=1e-4, atol=1e-5)
    return count, [node.op_type for node in after.graph.node]


def reshape(source: str, shape: str) -> NodeProto:
    return helper.make_node("Reshape", [source, shape], ["y0"])


@pytest.mark.parametrize("uses", [1, 2])
def test_a_product_takes_in_the_batch_norm_behind_its_view(uses: int) -> None:
    assert folded(tokens([], uses=uses)) == (uses, ["MatMul", "Add", "Reshape"] * uses)


def test_a_view_that_is_seen_otherwise_again_is_left_out() -> None:
    assert folded(tokens([reshape("n0", "back")])) == (1, ["MatMul", "Add", "Reshape"])


def test_a_view_stays_where_the_next_one_takes_its_first_axis_over() -> None:
    assert folded(tokens([reshape("n0", "kept")])) == (1, ["MatMul", "Add", "Reshape", "Reshape"])


def test_a_view_stays_for_those_who_need_it() -> None:
    readers = [helper.make_node("Relu", ["n0"], ["r"]), helper.make_node("Add", ["n0", "r"], ["y0"])]
    assert folded(tokens(readers)) == (1, ["MatMul", "Add", "Reshape", "Relu", "Add"])


def test_a_batch_norm_over_anything_but_the_products_columns_stays() -> None:
    count, operators = folded(tokens([], view=(5, 6)))
    assert count == 0
    assert operators == ["Transpose", "MatMul", "Reshape", "BatchNormalization"]


def test_a_product_with_a_vector_has_no_columns_and_stays() -> None:
    given = (2, 3, 4, 4)
    assert folded(tokens([], view=(6, 4), given=given, weight=(4,)), given)[0] == 0


@pytest.mark.parametrize("read", ["p0", "v0"])
def test_a_product_that_something_else_reads_too_stays(read: str) -> None:
    readers = [helper.make_node("ReduceSum", [read], ["s"]), helper.make_node("Add", ["n0", "s"], ["y0"])]
    assert folded(tokens(readers))[0] == 0


@pytest.mark.parametrize("batch", [1, 2, None])
def test_no_batch_norm_is_left_in_a_network_of_such_products(batch: int | None, tmp_path: Path) -> None:
    network = backbone("normed", blocks=4)
    tasks = [candidate_task(network, "birds", (2,), seed=1), candidate_task(network, "signs", (2, 3), seed=2)]
    products = {"always": {1: 1, 2: 3, 3: 2, 4: 1}, "never": {1: 1, 2: 3, 3: 3, 4: 3}}
    bases = []
    for merge, streams in products.items():
        plan = make_plan(network.topology, owners(tasks), merge=merge)
        export(network, tasks, plan, batch=batch).save(tmp_path, program=False)
        graph = onnx.load(tmp_path / "graph.onnx").graph
        found = Counter(node.op_type for node in graph.node)
        assert found["MatMul"] == 2 * sum(streams.values())
        assert found["BatchNormalization"] == 0
        held = [each.raw_data for each in graph.initializer if len(each.raw_data) > 100]
        assert len(set(held)) == len(held) >= 2 * 7  # two of each version: no stream has its own copy
        bases.append((tmp_path / "base.onnx").read_bytes())
    assert bases[0] == bases[1]
