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
from onnxscript.optimizer import optimize_ir
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
    perm: tuple[int, ...] | None = None,
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
    shapes = {"view": view, "seen/shape": (3, 2, 5), "kept": (0, 5, 1)}
    nodes = [helper.make_node("Transpose", ["w"], ["wt"], perm=perm)]
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
    initializers = model.graph.initializers.values()
    unread = {each.name for each in initializers if not (each.uses() or each.is_graph_output())}
    assert unread <= {"view", "seen/shape", "kept"}
    after = ir.to_proto(model)
    onnx.checker.check_model(after)
    for before, now in zip(run(proto, shape), run(after, shape), strict=True):
        np.testing.assert_allclose(now, before, rtol=1e-4, atol=1e-5)
    return count, [node.op_type for node in after.graph.node]


def reshape(source: str, shape: str, made: str = "y0") -> NodeProto:
    return helper.make_node("Reshape", [source, shape], [made])


@pytest.mark.parametrize("uses", [1, 2])
def test_a_product_takes_in_the_batch_norm_behind_its_view(uses: int) -> None:
    assert folded(tokens([], uses=uses)) == (uses, ["MatMul", "Add", "Reshape"] * uses)


def test_a_view_that_is_seen_otherwise_again_is_left_out() -> None:
    assert folded(tokens([reshape("n0", "seen/shape")])) == (1, ["MatMul", "Add", "Reshape"])


def test_a_shape_that_others_share_survives_the_optimiser() -> None:
    """Its rule for two reshapes calls the new shape after what is answered, which may be the name of the shared one."""
    turned = helper.make_node("Transpose", ["seen"], ["turned"], perm=[2, 1, 0])
    readers = [reshape("n0", "seen/shape", "seen"), turned, reshape("turned", "seen/shape")]
    model = ir.from_proto(tokens(readers))
    assert fold_batch_norms(model.graph) == 1
    optimize_ir(model)
    model.clone()  # which raises where a node reads what the graph does not hold
    assert [node.op_type for node in model.graph] == ["MatMul", "Add", "Reshape", "Transpose", "Reshape"]


def test_a_view_stays_where_the_next_one_takes_its_first_axis_over() -> None:
    assert folded(tokens([reshape("n0", "kept")])) == (1, ["MatMul", "Add", "Reshape", "Reshape"])


def test_a_view_stays_for_those_who_need_it() -> None:
    readers = [helper.make_node("Relu", ["n0"], ["r"]), helper.make_node("Add", ["n0", "r"], ["y0"])]
    assert folded(tokens(readers)) == (1, ["MatMul", "Add", "Reshape", "Relu", "Add"])


def test_stacked_weights_are_turned_as_the_graph_turns_them() -> None:
    assert folded(tokens([], weight=(2, 5, 4), perm=(0, 2, 1))) == (1, ["MatMul", "Add", "Reshape"])


def test_a_batch_norm_over_anything_but_the_products_columns_stays() -> None:
    count, operators = folded(tokens([], view=(5, 6)))
    assert count == 0
    assert operators == ["Transpose", "MatMul", "Reshape", "BatchNormalization"]
    assert folded(tokens([], view=(2, 5, 3)))[0] == 0


def test_a_product_with_a_vector_has_no_columns_and_stays() -> None:
    given = (2, 3, 4, 4)
    assert folded(tokens([], view=(6, 4), given=given, weight=(4,)), given)[0] == 0


@pytest.mark.parametrize("read, shape", [("p0", (2, 3, 5)), ("v0", (6, 5)), ("w", (5, 4)), ("wt", (4, 5))])
def test_what_something_else_reads_or_the_graph_answers_stays(read: str, shape: tuple[int, ...]) -> None:
    readers = [helper.make_node("ReduceSum", [read], ["s"]), helper.make_node("Add", ["n0", "s"], ["y0"])]
    assert folded(tokens(readers))[0] == 0
    answered = tokens([])
    answered.graph.output.append(helper.make_tensor_value_info(read, TensorProto.FLOAT, shape))
    count, _ = folded(answered)
    assert count == (1 if read == "w" else 0)  # which is answered as it was, and not read any more


def test_constants_that_others_share_stay_in_the_graph() -> None:
    readers = [helper.make_node("ReduceSum", ["scale"], ["s"]), helper.make_node("Add", ["n0", "s"], ["y0"])]
    assert folded(tokens(readers))[0] == 1
    proto = tokens([])
    proto.graph.node[-1].input[4] = "scale"  # of equal values the exporter keeps one
    proto.graph.initializer.remove(next(each for each in proto.graph.initializer if each.name == "var"))
    assert folded(proto)[0] == 1


OTHERS = {
    "a product with a bias": helper.make_node("Gemm", ["x0", "wt", "shift"], ["p0"]),
    "another operator": helper.make_node("Relu", ["x0"], ["p0"]),
}


@pytest.mark.parametrize("what", OTHERS)
def test_behind_anything_else_it_stays(what: str) -> None:
    proto = tokens([], view=(6, 5), given=(6, 4) if "bias" in what else (6, 5))
    proto.graph.node[1].CopyFrom(OTHERS[what])
    (shape,) = [tuple(d.dim_value for d in each.type.tensor_type.shape.dim) for each in proto.graph.input]
    assert folded(onnx.shape_inference.infer_shapes(proto), shape)[0] == 0
    proto.graph.node[3].input[0] = "p0"  # without a view
    assert folded(onnx.shape_inference.infer_shapes(proto), shape)[0] == 0


def test_computed_statistics_are_no_constants() -> None:
    proto = tokens([])
    proto.graph.node.insert(0, helper.make_node("Exp", ["var"], ["computed"]))
    proto.graph.node[-1].input[4] = "computed"
    assert folded(proto)[0] == 0


def test_streams_whose_batch_norms_differ_stay() -> None:
    proto = tokens([], uses=2)
    proto.graph.node[-1].attribute[0].f = 0.5
    assert folded(proto)[0] == 0


def test_a_convolution_and_a_product_do_not_share_what_is_folded() -> None:
    """Their columns lie along different axes of the weight."""
    random = np.random.default_rng(0)
    arrays = {"w": random.normal(size=(4, 3, 4)), "scale": random.uniform(0.5, 2, 4)} | {
        name: random.uniform(0.5, 2, 4) for name in ("shift", "mean", "var")
    }
    norm = ["scale", "shift", "mean", "var"]
    nodes = [
        helper.make_node("MatMul", ["x0", "w"], ["p"]),
        helper.make_node("Reshape", ["p", "view"], ["v"]),
        helper.make_node("BatchNormalization", ["v", *norm], ["y0"]),
        helper.make_node("Conv", ["x0", "w"], ["c"], pads=[1, 1]),
        helper.make_node("BatchNormalization", ["c", *norm], ["y1"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x0", TensorProto.FLOAT, (4, 3, 3))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y0", "y1")],
        [
            *(numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()),
            numpy_helper.from_array(np.array((12, 4), np.int64), "view"),
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    assert folded(onnx.shape_inference.infer_shapes(proto), (4, 3, 3))[0] == 0


def test_a_batch_norm_that_is_trained_stays() -> None:
    proto = tokens([])
    norm = proto.graph.node[-1]
    norm.attribute.append(helper.make_attribute("training_mode", 1))
    norm.output.extend(["mean1", "var1"])
    assert fold_batch_norms(ir.from_proto(proto).graph) == 0


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
