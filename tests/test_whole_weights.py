"""Weights of an int8 graph that have one scale for all they hold: by operator, and where versions run as one."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper
from tiny_forms import BITS, COARSER, FORMS, constants
from tiny_networks import SIZE, backbone

from subtune_deploy.backends import onnxruntime, openvino
from subtune_deploy.backends.base import Target
from subtune_deploy.backends.tensorrt import TensorRT
from subtune_deploy.bias_correction import LARGEST
from subtune_deploy.export import export
from subtune_deploy.grouped import groupable
from subtune_deploy.parity import relative_errors
from subtune_deploy.plan import make_plan
from subtune_deploy.precision import converted
from subtune_deploy.tasks import candidate_task, owners

TOLERANCE = 0.04 * COARSER
CPU = {"onnxruntime": onnxruntime, "openvino": openvino}
RTX = "tensorrt_rtx"

every_form = pytest.mark.parametrize("form", FORMS)

Answers = dict[str, np.ndarray]


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def answers(backend: str, source: Path, batch: np.ndarray, precision: str = "int8") -> Answers:
    """As the backend compiles and opens the graph; of TensorRT-RTX, the network that its parser made."""
    if backend == RTX:
        target = Target("rtx", RTX, precision, "", options={"capabilities": "8.9"})
        return TensorRT(RTX).interpret(source, "graph", target).run(batch)
    target, folder = Target("cpu", backend, precision, ""), source / backend
    folder.mkdir(exist_ok=True)
    CPU[backend].compile(source, folder, "graph", target)
    return CPU[backend].load(folder, "graph", target).run(batch)


def errors(source: Path, out: Path, backend: str, batch: np.ndarray) -> dict[str, float]:
    wanted = answers("onnxruntime", source, batch, "fp32")
    got = answers(backend, out, batch)
    return {task: relative_errors(got[task], wanted[task]).max() for task in wanted}


def held(folder: Path) -> dict[str, np.ndarray]:
    return constants(folder / "graph.onnx")


# by operator


@dataclass(frozen=True)
class Case:
    """Operators, their weights, and the shape of the input."""

    nodes: list[NodeProto]
    weights: dict[str, np.ndarray]
    shape: tuple[int, ...] = (2, 3, 6, 4)

    def write(self, folder: Path) -> None:
        graph = helper.make_graph(
            self.nodes,
            "one",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, self.shape)],
            [helper.make_tensor_value_info("base", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(array, name) for name, array in self.weights.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.save(onnx.shape_inference.infer_shapes(model), folder / "graph.onnx")


def product(*inputs: str) -> list[NodeProto]:
    return [helper.make_node("MatMul", inputs, ["base"], name="block1.base/MatMul")]


def transposed(*inputs: str, groups: int) -> list[NodeProto]:
    return [helper.make_node("ConvTranspose", inputs, ["base"], group=groups, strides=[2, 2])]


IMAGE = (2, 4, 6, 6)
THERE_AND_BACK = [
    helper.make_node("Conv", ["input", "w", "b"], ["inner"], pads=[1] * 4),
    helper.make_node("ConvTranspose", ["inner", "w", "c"], ["base"], pads=[1] * 4),
]
FEATURES_THERE_AND_BACK = [
    helper.make_node("GlobalAveragePool", ["input"], ["pooled"]),
    helper.make_node("Flatten", ["pooled"], ["features"]),
    helper.make_node("Gemm", ["features", "w", "b"], ["inner"], transB=1),
    helper.make_node("Gemm", ["inner", "w", "c"], ["base"]),
]
PRODUCTS = {
    "stacked matrices": Case(product("input", "w"), {"w": floats(3, 4, 5)}),
    "matrices in a stack of stacks": Case(product("input", "w"), {"w": floats(1, 3, 4, 5)}),
    "a matrix on the left": Case(product("w", "input"), {"w": floats(5, 6)}),
    "stacked matrices on the left": Case(product("w", "input"), {"w": floats(3, 5, 6)}),
}
TRANSPOSED = {
    "in two groups": Case(
        transposed("input", "w", "b", groups=2), {"w": floats(4, 3, 3, 3), "b": floats(6)}, IMAGE
    ),
    "in groups, no bias": Case(transposed("input", "w", groups=2), {"w": floats(4, 3, 3, 3)}, IMAGE),
    "depthwise": Case(
        transposed("input", "w", "b", groups=4), {"w": floats(4, 1, 3, 3), "b": floats(4)}, IMAGE
    ),
    "depthwise, two channels each": Case(
        transposed("input", "w", "b", groups=4), {"w": floats(4, 2, 3, 3), "b": floats(8)}, IMAGE
    ),
}
BOTH_WAYS = {
    "a convolution's, there and back": Case(
        THERE_AND_BACK, {"w": floats(6, 4, 3, 3), "b": floats(6), "c": floats(4)}, IMAGE
    ),
    "a matrix, there and back": Case(
        FEATURES_THERE_AND_BACK, {"w": floats(6, 4), "b": floats(6), "c": floats(4)}, IMAGE
    ),
}
CASES = {**PRODUCTS, **TRANSPOSED, **BOTH_WAYS}
every_case = pytest.mark.parametrize("case", CASES)


def quantised(case: Case, folder: Path, form: str) -> np.ndarray:
    """Into folder/out; what comes back are inputs that the ranges were taken from."""
    case.write(folder)
    batch = floats(*case.shape, seed=1)
    (folder / "out").mkdir()
    converted(folder, folder / "out", "int8", batch, form=FORMS[form], roles=("graph",))
    return batch


@every_case
@every_form
def test_such_a_weight_has_one_scale(tmp_path: Path, case: str, form: str) -> None:
    quantised(CASES[case], tmp_path, form)
    found, wanted = held(tmp_path / "out"), CASES[case].weights["w"]
    scale = found["w_scale"]
    assert (scale.shape, found["w_zero_point"].shape) == ((), ())
    assert np.abs(found["w_quantized"]).max() == LARGEST[BITS]
    np.testing.assert_allclose(found["w_quantized"] * scale, wanted, atol=scale / 2 * 1.001)


@every_case
@every_form
@pytest.mark.parametrize("backend", CPU)
def test_every_backend_answers_rightly(tmp_path: Path, case: str, form: str, backend: str) -> None:
    batch = quantised(CASES[case], tmp_path, form)
    assert 0 < errors(tmp_path, tmp_path / "out", backend, batch)["base"] <= TOLERANCE


@pytest.mark.parametrize("case", PRODUCTS)  # our interpreter knows no transposed convolutions
def test_so_does_the_network_of_tensorrt_rtx(tmp_path: Path, case: str) -> None:
    pytest.importorskip(RTX)
    batch = quantised(CASES[case], tmp_path, "signed")
    assert 0 < errors(tmp_path, tmp_path / "out", RTX, batch)["base"] <= TOLERANCE


OTHERS = {
    "a matrix on the right": Case(product("input", "w"), {"w": floats(4, 5)}),
    "a transposed convolution": Case(
        transposed("input", "w", "b", groups=1), {"w": floats(4, 5, 3, 3), "b": floats(5)}, IMAGE
    ),
}


@pytest.mark.parametrize("case", OTHERS)
@every_form
def test_others_have_a_scale_for_each_output_channel(tmp_path: Path, case: str, form: str) -> None:
    quantised(OTHERS[case], tmp_path, form)
    assert held(tmp_path / "out")["w_scale"].shape == (5,)


# versions that run as one


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Attention of three versions as one: their matrices are stacked."""
    folder = tmp_path_factory.mktemp("source")
    network = backbone("tokens", blocks=4, width=8)
    tasks = [candidate_task(network, name, (3,), seed=seed) for seed, name in enumerate(("a", "b"), 1)]
    plan = make_plan(network.topology, owners(tasks), grouped=groupable(network, tasks))
    export(network, tasks, plan, batch=2).save(folder, program=False)
    return folder


def stacked(folder: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """By weight of the matrix products of the versions, its type and the shape of its scale, if it has one."""
    found = {}
    for node in ir.load(folder / "graph.onnx").graph:
        weight = (
            node.inputs[1]
            if node.op_type == "MatMul" and str(node.name).startswith("block3.grouped")
            else None
        )
        producer = None if weight is None else weight.producer()
        if (
            producer is not None
            and producer.op_type == "DequantizeLinear"
            and producer.inputs[0].is_initializer()
        ):
            weight, scale = producer.inputs[0], producer.inputs[1]
            found[weight.name.removesuffix("_quantized")] = str(weight.dtype), scale.shape.numpy()
        elif weight is not None and weight.is_initializer():
            found[weight.name] = str(weight.dtype), None
    return found


@every_form
def test_versions_as_one_answer_rightly_wherever_they_run(source: Path, tmp_path: Path, form: str) -> None:
    converted(source, tmp_path, "int8", floats(16, *SIZE, seed=1), form=FORMS[form])
    assert list(stacked(tmp_path).values()) == [("INT8", ())] * 4
    backends = [*CPU, *([RTX] if form == "signed" and find_spec(RTX) else [])]
    for backend in backends:
        for error in errors(source, tmp_path, backend, floats(2, *SIZE)).values():
            assert 0 < error <= TOLERANCE


@every_form
def test_versions_as_one_that_are_kept_stay_as_they_are(source: Path, tmp_path: Path, form: str) -> None:
    keep = ("block3.grouped",)
    converted(source, tmp_path, "int8", floats(16, *SIZE, seed=1), form=FORMS[form], keep=keep)
    weights, before, after = stacked(tmp_path), held(source), held(tmp_path)
    assert list(weights.values()) == [("FLOAT", None)] * 4
    for name in weights:
        np.testing.assert_array_equal(after[name], before[name])
    for error in errors(source, tmp_path, "onnxruntime", floats(2, *SIZE)).values():
        assert 0 < error <= TOLERANCE
