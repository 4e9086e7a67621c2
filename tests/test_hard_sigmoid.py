"""HardSigmoid and HardSwish in 8 bits: sums that clip, held to the operators by structure and by numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from tiny_forms import INTEGER

from subtune_deploy.backbone import trace
from subtune_deploy.backends import get_backend
from subtune_deploy.backends.onnxruntime import open_literally
from subtune_deploy.export import export
from subtune_deploy.hard_sigmoid import as_sums, split_hard_swish
from subtune_deploy.models import load_model
from subtune_deploy.parity import relative_errors, run_all
from subtune_deploy.plan import make_plan
from subtune_deploy.precision import converted
from subtune_deploy.targets import load_target
from subtune_deploy.tasks import candidate_task, owners

SHAPE = (1, 4, 16, 16)
STEP = 8 / 255
"""Of the input, which reaches from -4 to 4."""
IN_A_BLOCK = [
    "block.0.2/HardSwish",
    "block.1.2/HardSwish",
    "block.2.scale_activation/HardSigmoid",
]


def graph(
    alpha: float,
    beta: float,
    *,
    kind: str = "uint8",
    told: bool = False,
    plain: bool = False,
    step: float = 1 / 255,
    zero: int | None = None,
) -> ir.Model:
    """An input of 8 bits, its hard sigmoid, and a rounding of that in steps of `step`.

    `told`: the hard sigmoid goes out, too; `plain`: its input is not rounded.
    """
    zeros = {"uint8": (128, 0), "int8": (0, -128)}[kind]
    scales = {"in": (STEP, zeros[0]), "out": (step, zeros[1] if zero is None else zero)}
    constants = {
        name: ir.tensor(np.array(value, type_), name=name)
        for key, (step, zero) in scales.items()
        for name, value, type_ in ((f"{key}_step", step, np.float32), (f"{key}_zero", zero, kind))
    }
    values = {
        name: ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=tensor.shape)
        for name, tensor in constants.items()
    }

    def node(operator: str, given: ir.Value, name: str, *others: ir.Value, **attributes: float) -> ir.Value:
        made = ir.node(operator, [given, *others], attributes, name=name)
        made.outputs[0].name, made.outputs[0].shape = name, ir.Shape(SHAPE)
        nodes.append(made)
        return made.outputs[0]

    nodes: list[ir.Node] = []
    x = ir.Value(name="x", shape=ir.Shape(SHAPE), type=ir.TensorType(ir.DataType.FLOAT))
    sides = {key: (values[f"{key}_step"], values[f"{key}_zero"]) for key in scales}
    given = node("DequantizeLinear", node("QuantizeLinear", x, "x_q", *sides["in"]), "x_d", *sides["in"])
    if plain:
        given = node("Relu", x, "x_r")
    gate = node("HardSigmoid", given, "gate", alpha=alpha, beta=beta)
    answer = node("DequantizeLinear", node("QuantizeLinear", gate, "y_q", *sides["out"]), "y", *sides["out"])
    outputs = [answer, gate] if told else [answer]
    for value in outputs:
        value.type = ir.TensorType(ir.DataType.FLOAT)
    found = ir.Graph(
        [x], outputs, nodes=nodes, initializers=list(values.values()), opset_imports={"": 18}, name="g"
    )
    return ir.Model(found, ir_version=9)


def run(model: ir.Model, given: np.ndarray, path: Path, *, optimized: bool = False) -> np.ndarray:
    ir.save(model, path / "model.onnx")
    options = onnxruntime.SessionOptions()
    if optimized:
        options.optimized_model_filepath = str(path / "optimized.onnx")
    else:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path / "model.onnx", options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": given})[0]


def operators(graph: ir.Graph) -> list[str]:
    return [node.op_type for node in graph]


@pytest.mark.parametrize("optimized", [False, True])
@pytest.mark.parametrize(("alpha", "beta"), [(1 / 6, 0.5), (0.2, 0.5), (0.3, 0.0), (0.5, -0.25), (2.0, 1.5)])
def test_a_sum_clips_as_the_hard_sigmoid_does(
    tmp_path: Path, alpha: float, beta: float, optimized: bool
) -> None:
    steps = np.random.default_rng(0).integers(-128, 128, SHAPE)
    given = (steps * STEP).astype(np.float32)
    model = graph(alpha, beta)
    as_sums(model.graph)
    assert "HardSigmoid" not in operators(model.graph)
    answer = run(model, given, tmp_path, optimized=optimized)
    wanted = np.clip(alpha * given + beta, 0, 1)
    assert wanted.min() < 0.01
    assert wanted.max() > 0.9
    assert np.abs(answer - wanted).max() <= 0.51 / 255
    assert all(value.uses() for value in model.graph.initializers.values())
    if optimized:
        assert "QLinearAdd" in operators(ir.load(tmp_path / "optimized.onnx").graph)


def test_a_small_gate_keeps_its_fine_steps(tmp_path: Path) -> None:
    given = (np.random.default_rng(0).integers(-128, 0, SHAPE) * STEP).astype(np.float32)
    model = graph(0.2, 0.02, step=0.02 / 255)
    as_sums(model.graph)
    wanted = np.clip(0.2 * given + 0.02, 0, 1)
    assert 0.01 < wanted.max() < 0.02
    assert np.abs(run(model, given, tmp_path) - wanted).max() <= 0.51 * 0.02 / 255


def test_unnamed_and_excluded_ones(tmp_path: Path) -> None:
    model = graph(0.2, 0.5)
    for node in model.graph:
        node.name = "gate" if node.op_type == "HardSigmoid" else None
    as_sums(model.graph, {"gate"})
    assert "HardSigmoid" in operators(model.graph)
    for node in model.graph:
        node.name = None
    as_sums(model.graph, {"gate"})
    assert "HardSigmoid" not in operators(model.graph)
    run(model, np.zeros(SHAPE, np.float32), tmp_path)


@pytest.mark.parametrize(
    "model",
    [
        graph(0.2, 0.5, kind="int8"),
        graph(0.2, 0.5, told=True),
        graph(0.2, 0.5, plain=True),
        graph(0.2, 0.5, step=1 / 200),
        graph(0.2, 0.5, zero=1),
        graph(-0.2, 0.5),
        graph(0.0, 0.5),
    ],
    ids=["signed", "read in float", "given float", "beyond one", "not from zero", "falling", "level"],
)
def test_what_no_sum_can_do_stays(model: ir.Model) -> None:
    before = operators(model.graph)
    as_sums(model.graph)
    assert operators(model.graph) == before


def test_a_hard_swish_is_a_product(tmp_path: Path) -> None:
    x = ir.Value(name="x", shape=ir.Shape(SHAPE), type=ir.TensorType(ir.DataType.FLOAT))
    first = ir.node("HardSwish", [x], name="first")
    second = ir.node("HardSwish", first.outputs, name="second")
    first.outputs[0].name, second.outputs[0].name = "middle", "y"
    second.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    model = ir.Model(
        ir.Graph([x], second.outputs, nodes=[first, second], opset_imports={"": 18}, name="g"), ir_version=9
    )
    given = np.random.default_rng(1).normal(0, 3, SHAPE).astype(np.float32)
    wanted = run(model, given, tmp_path)
    split_hard_swish(model.graph, [second])
    assert operators(model.graph) == ["HardSwish", "HardSigmoid", "Mul"]
    assert [value.name for value in model.graph.outputs] == ["y"]
    np.testing.assert_allclose(run(model, given, tmp_path), wanted, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MobileNetV3 with a task that forks its last block."""
    folder = tmp_path_factory.mktemp("mobilenet")
    network = trace(load_model("mobilenet_v3_small", input_size=(3, 64, 64)))
    tasks = [candidate_task(network, "birds", (11,), seed=1)]
    export(network, tasks, make_plan(network.topology, owners(tasks))).save(folder, program=False)
    return folder


def pictures(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, 64, 64)).astype(np.float32)


@pytest.mark.parametrize("units", [[], ["block9.base", "block11.birds"]], ids=["all", "but two"])
def test_a_network_has_no_hard_sigmoid_in_float_but_behind_products_and_in_kept_units(
    exported: Path, tmp_path: Path, units: list[str]
) -> None:
    converted(exported, tmp_path, "int8", pictures(8, 1), form=INTEGER, keep=units)
    engine = tmp_path / "engine"
    engine.mkdir()
    get_backend("onnxruntime").compile(tmp_path, engine, "graph", load_target("cpu-int8"))
    left = [
        str(node.name)
        for node in ir.load(tmp_path / "graph.onnx").graph
        if node.op_type in ("HardSigmoid", "HardSwish")
    ]
    assert left == [f"{unit}.{name}" for unit in units for name in IN_A_BLOCK] + ["op_classifier_1/HardSwish"]
    found = operators(ir.load(engine / "graph.onnx").graph)
    assert found.count("HardSigmoid") == sum(
        "HardSwish" in name for name in left
    )  # others are part of convolutions
    assert found.count("QLinearMul") >= 25 - len(left)
    batch = pictures(3, 2)
    wanted = run_all(open_literally(exported / "graph.onnx"), batch, 1)
    for folder in (tmp_path, engine):
        for task, answer in run_all(open_literally(folder / "graph.onnx"), batch, 1).items():
            assert 0 < relative_errors(answer, wanted[task]).max() <= 0.1
