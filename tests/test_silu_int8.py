"""int8 of networks with SiLU and squeeze-and-excitation: each CPU compiler gets what it makes one operator of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tiny_forms import FUSED, INTEGER
from tiny_networks import SIZE, backbone

from subtune_deploy.backbone import trace
from subtune_deploy.backends import get_backend
from subtune_deploy.backends.onnxruntime import open_literally
from subtune_deploy.export import export
from subtune_deploy.models import load_model
from subtune_deploy.parity import relative_errors, run_all
from subtune_deploy.plan import make_plan
from subtune_deploy.precision import converted, int8_form
from subtune_deploy.quantization import Form, quantized
from subtune_deploy.spec import INPUT
from subtune_deploy.targets import load_target
from subtune_deploy.tasks import candidate_task, owners

TASKS = {"birds": (3,), "signs": (2, 3)}
TARGETS = ("cpu-int8", "openvino-cpu-int8")
BLOCKS = 4


def inputs(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, *SIZE)).astype(np.float32)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nothing packed: what one task does the others cannot notice."""
    folder = tmp_path_factory.mktemp("source")
    export_to(folder, "gated")
    return folder


def export_to(folder: Path, topology: str) -> None:
    network = backbone(topology, blocks=BLOCKS, width=8)
    tasks = [candidate_task(network, name, fork, seed=i) for i, (name, fork) in enumerate(TASKS.items(), 1)]
    plan = make_plan(network.topology, owners(tasks), merge="never")
    export(network, tasks, plan).save(folder, program=False)


def run(path: Path) -> dict[str, np.ndarray]:
    return run_all(open_literally(path), inputs(3), 1)


def int8(source: Path, folder: Path, form: Form, keep: tuple[str, ...] = ()) -> ir.Graph:
    folder.mkdir(exist_ok=True)
    converted(source, folder, "int8", inputs(16, seed=1), form=form, keep=keep)
    return ir.load(folder / "graph.onnx").graph


def readers(graph: ir.Graph, name: str) -> set[str]:
    """Operators that read what convolutions called so (`.conv.0`) answer."""
    nodes = [each for each in graph if each.op_type == "Conv" and f"{name}/" in str(each.name)]
    assert len(nodes) >= BLOCKS
    return {use.node.op_type for node in nodes for use in node.outputs[0].uses()}


def made_of(graph: ir.Graph, operator: str) -> set[str]:
    """Operators that read what `operator` answers."""
    return {use.node.op_type for node in graph if node.op_type == operator for use in node.outputs[0].uses()}


def test_for_openvino_nothing_stands_between_a_convolution_and_its_activation(
    source: Path, tmp_path: Path
) -> None:
    graph = int8(source, tmp_path, FUSED)
    assert readers(graph, ".conv.0") == {"Sigmoid", "Mul"}
    assert readers(graph, ".gate.fc2") == {"Sigmoid"}
    assert readers(graph, ".project.0") == {"QuantizeLinear"}  # a sum of 8 bits reads it
    unread = [name for name, value in graph.initializers.items() if not value.uses()]
    assert unread == []


def test_for_onnx_runtime_the_activation_is_of_integers_too(source: Path, tmp_path: Path) -> None:
    graph = int8(source, tmp_path, INTEGER)
    assert readers(graph, ".conv.0") == {"QuantizeLinear"}
    assert made_of(graph, "Sigmoid") == {"QuantizeLinear"}
    (tmp_path / "engine").mkdir()
    get_backend("onnxruntime").compile(tmp_path, tmp_path / "engine", "graph", load_target("cpu-int8"))
    found = [node.op_type for node in ir.load(tmp_path / "engine" / "graph.onnx").graph]
    activations = sum(node.op_type == "Sigmoid" for node in ir.load(source / "graph.onnx").graph)
    assert activations >= 3 * BLOCKS
    assert "Sigmoid" not in found
    assert "Mul" not in found
    assert found.count("QLinearSigmoid") == found.count("QLinearMul") == activations
    assert found.count("QLinearGlobalAveragePool") >= BLOCKS


def test_pooling_is_of_integers_between_convolutions_and_in_float_before_a_head(tmp_path: Path) -> None:
    network = trace(load_model("mobilenet_v3_small", input_size=(3, 64, 64)))
    tasks = [candidate_task(network, "birds", (11,), seed=1)]
    export(network, tasks, make_plan(network.topology, owners(tasks))).save(tmp_path, program=False)
    calibration = np.random.default_rng(1).standard_normal((2, 3, 64, 64)).astype(np.float32)
    converted(tmp_path, tmp_path, "int8", calibration, form=INTEGER)
    pooled = {
        str(node.name): node.inputs[0].producer().op_type == "DequantizeLinear"
        for node in ir.load(tmp_path / "graph.onnx").graph
        if node.op_type == "GlobalAveragePool"
    }
    assert len(pooled) == 11
    assert [name for name, rounded in pooled.items() if not rounded] == ["op_avgpool/GlobalAveragePool"]


def test_openvino_makes_convolution_and_activation_one_operator(source: Path, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")

    def apart(form: Form) -> int:
        """Operators that are no convolution, pooling or product."""
        int8(source, tmp_path / str(form.fuses), form)
        compiled = openvino.Core().compile_model(tmp_path / str(form.fuses) / "base.onnx", "CPU")
        kinds = [
            node.get_rt_info()["layerType"].astype(str) for node in compiled.get_runtime_model().get_ops()
        ]
        return kinds.count("Subgraph") + kinds.count("Swish") + kinds.count("Eltwise")

    assert apart(FUSED) <= BLOCKS + 1  # products with what is pooled; the input's rounding
    assert apart(INTEGER) >= 3 * BLOCKS


@pytest.mark.parametrize("name", TARGETS)
def test_every_task_answers_as_in_float(source: Path, tmp_path: Path, name: str) -> None:
    batch, target = inputs(3), load_target(name)
    int8(source, tmp_path, int8_form(target))
    backend, plain = get_backend(target.backend), load_target(name.removesuffix("-int8"))
    engines = {}
    for each, place, recipe in (("int8", tmp_path, target), ("fp32", source, plain)):
        folder = tmp_path / each
        folder.mkdir()
        backend.compile(place, folder, "graph", recipe)
        engines[each] = run_all(backend.load(folder, "graph", recipe), batch, 1)
    for task, answer in engines["fp32"].items():
        assert 0 < relative_errors(engines["int8"][task], answer).max() <= 0.1


def test_a_rounding_that_is_an_activation_too_stays(tmp_path: Path) -> None:
    """ReLU goes into the rounding behind it, which is there for it alone where all readers are in float32."""
    export_to(tmp_path, "chain")
    int8(tmp_path, tmp_path / "int8", FUSED, keep=("block1",))
    wanted, got = (run(folder / "graph.onnx") for folder in (tmp_path, tmp_path / "int8"))
    for task, answer in wanted.items():
        assert relative_errors(got[task], answer).max() <= 0.02


@pytest.mark.parametrize("keep", [(), ("last",)])
def test_for_openvino_what_a_kept_unit_alone_reads_is_not_rounded(keep: tuple[str, ...]) -> None:
    """Seen between two convolutions."""
    weights = np.random.default_rng(3).standard_normal((2, 3, 3, 1, 1)).astype(np.float32)
    kernels = [
        ir.Value(
            name=f"w{i}",
            const_value=ir.tensor(each),
            type=ir.TensorType(ir.DataType.FLOAT),
            shape=ir.Shape(each.shape),
        )
        for i, each in enumerate(weights)
    ]
    given = ir.Value(name=INPUT, shape=ir.Shape((1, *SIZE)), type=ir.TensorType(ir.DataType.FLOAT))
    first = ir.node("Conv", [given, kernels[0]], name="first.base/Conv")
    last = ir.node("Conv", [first.outputs[0], kernels[1]], name="last.base/Conv")
    for node, name in ((first, "middle"), (last, "answer")):
        node.outputs[0].name, node.outputs[0].shape = name, ir.Shape((1, *SIZE))
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        [given], last.outputs, nodes=[first, last], initializers=kernels, opset_imports={"": 18}, name="g"
    )
    found = quantized(ir.Model(graph, ir_version=9), inputs(4), FUSED, keep).graph
    assert readers_of(found, "first") == ({"Conv"} if keep else {"QuantizeLinear"})


def readers_of(graph: ir.Graph, unit: str) -> set[str]:
    (node,) = (each for each in graph if str(each.name).startswith(unit) and each.op_type == "Conv")
    return {use.node.op_type for use in node.outputs[0].uses()}
