"""Graphs in fp16, bf16 and int8: structure, numbers, and what is refused."""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import tiny_forms
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from tiny_bundle import SPEC, WEIGHTS, expected, pictures, write_graphs
from tiny_forms import FUSED, INTEGER, constants
from tiny_networks import SIZE, backbone

from subtune_deploy import quantization
from subtune_deploy.backends.base import Target
from subtune_deploy.backends.onnxruntime import compile as compile_onnxruntime
from subtune_deploy.backends.tensorrt import TensorRT
from subtune_deploy.errors import BundleError, InputError, ModelError
from subtune_deploy.export import export
from subtune_deploy.parity import relative_errors
from subtune_deploy.plan import make_plan
from subtune_deploy.precision import PRECISIONS, carried, converted, int8_form
from subtune_deploy.quantization import Form
from subtune_deploy.targets import load_target
from subtune_deploy.tasks import candidate_task, owners

INT8 = {"int8": "signed", "int8 for ONNX Runtime": "integer", "int8 for OpenVINO": "fused"}
CPU_FORMS = [form for form in INT8 if form != "int8"]
FORMS = tuple(dict.fromkeys((*PRECISIONS, *INT8)))
TOLERANCES = {"fp16": 1e-2, "bf16": 5e-2, **dict.fromkeys(INT8, 0.2)}
PARSED = {"fp16": 2e-3, "bf16": 2e-2, "int8": 1e-5}
"""What the network that TensorRT parsed may differ by from the same file in ONNX Runtime."""
NARROW = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
FILES = ("graph.onnx", "base.onnx")
TASKS = {"birds": (3,), "signs": (3, 4)}

every_form = pytest.mark.parametrize("form", FORMS)
narrow_precisions = pytest.mark.parametrize("precision", list(NARROW))
int8_forms = pytest.mark.parametrize("form", list(INT8))
cpu_forms = pytest.mark.parametrize("form", CPU_FORMS)

Answers = dict[str, np.ndarray]


def inputs(count: int, seed: int = 0, shape: tuple[int, ...] = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)


def run(path: Path, batch: np.ndarray) -> Answers:
    """By ONNX Runtime; by ONNX's own reference where that has no kernels on a CPU, as for bfloat16."""
    if any(tensor.data_type == TensorProto.BFLOAT16 for tensor in onnx.load(path).graph.initializer):
        evaluator = ReferenceEvaluator(str(path))
        return dict(zip(evaluator.output_names, evaluator.run(None, {"input": batch}), strict=True))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    # At full optimisation, onnxruntime 1.32 crashes on an attention layer in float16 on a CPU.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"input": batch}), strict=True))


def form_of(form: str) -> Form:
    return tiny_forms.FORMS[INT8.get(form, "signed")]  # of other precisions it is not asked for


def convert(source: Path, out: Path, form: str, calibration: np.ndarray | None = None) -> None:
    converted(source, out, form.split()[0], calibration, form=form_of(form))


def export_to(folder: Path, topology: str = "chain", batch: int | None = None) -> Path:
    network = backbone(topology, blocks=5, width=6)
    tasks = [candidate_task(network, name, fork, seed=i) for i, (name, fork) in enumerate(TASKS.items(), 1)]
    export(network, tasks, make_plan(network.topology, owners(tasks)), batch=batch).save(
        folder, program=False
    )
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_to(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Attention, layer norm; always two pictures."""
    return export_to(tmp_path_factory.mktemp("tokens"), "tokens", batch=2)


@pytest.fixture(scope="module")
def made(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By form, the folder with both graphs."""
    folders = {form: tmp_path_factory.mktemp("made") for form in FORMS}
    for form, folder in folders.items():
        convert(source, folder, form, inputs(20, seed=1))
    return folders


# numbers


@every_form
@pytest.mark.parametrize("file", FILES)
def test_every_task_answers_within_the_tolerance_of_the_precision(
    source: Path, made: dict[str, Path], form: str, file: str
) -> None:
    batch = inputs(3)
    wanted, got = run(source / file, batch), run(made[form] / file, batch)
    assert list(got) == list(wanted) == (["base", *TASKS] if file == "graph.onnx" else ["base"])
    for task, answer in wanted.items():
        errors = relative_errors(got[task], answer)
        assert got[task].dtype == np.float32
        assert 0 < errors.max() <= TOLERANCES[form]


@every_form
def test_attention_and_layer_norm_are_converted_too(tokens: Path, tmp_path: Path, form: str) -> None:
    convert(tokens, tmp_path, form, inputs(16, seed=1))
    batch = inputs(2)
    wanted, got = run(tokens / "graph.onnx", batch), run(tmp_path / "graph.onnx", batch)
    for task, answer in wanted.items():
        assert relative_errors(got[task], answer).max() <= TOLERANCES[form]


@every_form
def test_a_weight_of_one_fork_moves_that_task_alone(made: dict[str, Path], tmp_path: Path, form: str) -> None:
    model = ir.load(made[form] / "graph.onnx")
    (name,) = [name for name in model.graph.initializers if name.startswith("block3.birds.conv1.weight")
               and not name.endswith(("_scale", "_zero_point"))]  # fmt: skip
    weight = model.graph.initializers[name]
    assert weight.const_value is not None
    moved = weight.const_value.numpy().copy()
    moved[0] = -moved[0]
    weight.const_value = ir.tensor(moved, dtype=weight.dtype)
    ir.save(model, tmp_path / "moved.onnx")
    before, after = run(made[form] / "graph.onnx", inputs(2)), run(tmp_path / "moved.onnx", inputs(2))
    assert not np.array_equal(before["birds"], after["birds"])
    for task in ("base", "signs"):
        np.testing.assert_array_equal(before[task], after[task])


@every_form
def test_a_task_of_other_weights_is_another_task(made: dict[str, Path], form: str) -> None:
    answers = run(made[form] / "graph.onnx", inputs(2))
    assert relative_errors(answers["birds"], answers["base"]).max() > 1e-3


# structure


@every_form
@pytest.mark.parametrize("file", FILES)
def test_the_graph_is_valid_and_keeps_its_interface(
    source: Path, made: dict[str, Path], form: str, file: str
) -> None:
    onnx.checker.check_model(made[form] / file, full_check=True)
    before, after = (ir.load(folder / file) for folder in (source, made[form]))
    for old, new in zip(
        (*before.graph.inputs, *before.graph.outputs),
        (*after.graph.inputs, *after.graph.outputs),
        strict=True,
    ):
        assert (old.name, old.dtype, old.shape) == (new.name, new.dtype, new.shape)
    assert dict(after.metadata_props) == dict(before.metadata_props)


@narrow_precisions
def test_narrow_graphs_differ_in_types_and_in_casts_at_the_border(
    source: Path, made: dict[str, Path], precision: str
) -> None:
    before, after = (ir.load(folder / "graph.onnx") for folder in (source, made[precision]))
    assert list(after.graph.initializers) == list(before.graph.initializers)
    floats = [v for v in before.graph.initializers.values() if v.dtype is ir.DataType.FLOAT]
    assert floats
    assert {after.graph.initializers[str(value.name)].dtype for value in floats} == {NARROW[precision]}
    border = {str(value.name) for value in (*after.graph.inputs, *after.graph.outputs)}
    casts = [node for node in after.graph if node.op_type == "Cast"]
    assert len(casts) - sum(node.op_type == "Cast" for node in before.graph) == len(border)
    inner = [value for node in after.graph for value in node.outputs if value.name not in border]
    assert ir.DataType.FLOAT not in {value.dtype for value in inner}


@int8_forms
def test_int8_weights_keep_their_names_and_are_signed_and_symmetric(made: dict[str, Path], form: str) -> None:
    graph = ir.load(made[form] / "graph.onnx").graph
    weights = {name: value for name, value in graph.initializers.items() if name.endswith("weight_quantized")}
    assert {"block3.birds.conv1.weight_quantized", "block3.signs.conv1.weight_quantized"} <= set(weights)
    for name, weight in weights.items():
        plain = name.removesuffix("_quantized")
        scale, zero = (graph.initializers[f"{plain}_{what}"].const_value for what in ("scale", "zero_point"))
        assert weight.dtype is ir.DataType.INT8
        assert scale is not None
        assert zero is not None
        assert not zero.numpy().any()
        assert scale.numpy().ndim == 1  # one for each output channel
        assert plain not in graph.initializers


def test_for_a_gpu_every_quantised_value_is_signed_and_symmetric(made: dict[str, Path]) -> None:
    graph = ir.load(made["int8"] / "graph.onnx").graph
    pairs = [node for node in graph if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert pairs
    for node in pairs:
        zero = node.inputs[2]
        assert zero is not None
        assert zero.const_value is not None
        assert zero.dtype is ir.DataType.INT8
        assert not zero.const_value.numpy().any()


def test_for_a_gpu_biases_stay_float32_and_only_what_enters_weighted_operators_is_quantised(
    made: dict[str, Path],
) -> None:
    graph = ir.load(made["int8"] / "graph.onnx").graph
    biases = [value for name, value in graph.initializers.items() if name.endswith(".bias")]
    assert biases
    assert {value.dtype for value in biases} == {ir.DataType.FLOAT}
    readers = {
        use.node.op_type
        for node in graph
        if node.op_type == "DequantizeLinear"
        for use in node.outputs[0].uses()
    }
    assert readers == {"Conv", "Gemm", "Add"}  # a shortcut, which enters a convolution too


@cpu_forms
def test_for_a_cpu_no_activation_stands_between_a_convolution_and_its_rounding(
    made: dict[str, Path], form: str
) -> None:
    signed_graph, graph = (ir.load(made[each] / "graph.onnx").graph for each in ("int8", form))
    assert "Relu" in {node.op_type for node in signed_graph}
    assert "Relu" not in {node.op_type for node in graph}
    readers = {use.node.op_type for node in graph if node.op_type == "Conv" for use in node.outputs[0].uses()}
    assert readers == {"QuantizeLinear"}


@cpu_forms
def test_for_a_cpu_sums_are_quantised_where_a_convolution_answers_into_them(
    made: dict[str, Path], tokens: Path, tmp_path: Path, form: str
) -> None:
    convert(tokens, tmp_path, form, inputs(4, seed=1))

    def sums(path: Path) -> set[str]:
        """Operators that make what sums read."""
        nodes = [node for node in ir.load(path).graph if node.op_type == "Add"]
        producers = [value.producer() for node in nodes for value in node.inputs if value is not None]
        return {producer.op_type for producer in producers if producer is not None}

    assert sums(made[form] / "graph.onnx") == {"DequantizeLinear"}
    assert "MatMul" in sums(tmp_path / "graph.onnx")
    assert "DequantizeLinear" not in sums(tmp_path / "graph.onnx")


@int8_forms
def test_both_files_share_all_that_the_prefix_is_made_of(made: dict[str, Path], form: str) -> None:
    ours, theirs = (constants(made[form] / file) for file in FILES)
    prefix = [name for name in theirs if name.startswith(("input", "stem", "block1.", "block2."))]
    bias = "block2.base.conv1.bias" + ("_quantized" if form in CPU_FORMS else "")
    assert {
        "input_scale",
        "block2.base.conv1.weight_scale",
        "block2.base.conv1.weight_quantized",
        bias,
    } <= set(prefix)
    for name in prefix:
        np.testing.assert_array_equal(ours[name], theirs[name])


@every_form
@pytest.mark.parametrize("count", [1, 3])
def test_a_symbolic_batch_stays_symbolic(made: dict[str, Path], form: str, count: int) -> None:
    graph = ir.load(made[form] / "graph.onnx").graph
    assert all(isinstance(value.shape[0], ir.SymbolicDim) for value in (*graph.inputs, *graph.outputs))  # type: ignore[index]
    assert all(len(answer) == count for answer in run(made[form] / "graph.onnx", inputs(count)).values())


@every_form
def test_a_fixed_batch_stays_fixed(tmp_path: Path, form: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    export_to(tmp_path, batch=4)
    convert(tmp_path, out, form, inputs(6, seed=1))  # not a multiple of four, and then fewer
    batch = inputs(4)
    wanted, got = run(tmp_path / "graph.onnx", batch), run(out / "graph.onnx", batch)
    for task, answer in wanted.items():
        assert relative_errors(got[task], answer).max() <= TOLERANCES[form]
    convert(tmp_path, out, form, inputs(1, seed=1))


@every_form
def test_weights_beside_the_graph_stay_beside_it(tmp_path: Path, form: str) -> None:
    inside, out = tmp_path / "inside", tmp_path / "out"
    for folder in (inside, out):
        folder.mkdir()
    write_graphs(tmp_path, external=True)
    convert(tmp_path, out, form, pictures(8, seed=1))
    assert {path.name for path in out.iterdir()} == {*FILES, *(f"{file}.data" for file in FILES)}
    write_graphs(inside)
    convert(inside, inside, form, pictures(8, seed=1))  # in place
    batch = pictures(2)
    for task, answer in run(inside / "graph.onnx", batch).items():
        np.testing.assert_array_equal(run(out / "graph.onnx", batch)[task], answer)
        assert relative_errors(answer, expected(batch)[task]).max() <= TOLERANCES[form]


def test_what_an_operator_takes_in_float32_alone_stays(tmp_path: Path) -> None:
    scales = numpy_helper.from_array(np.array([1, 1, 2.00006, 2.00006], np.float32), "scales")  # no half
    write_onnx(
        tmp_path, [helper.make_node("Resize", ["input", "", "scales"], ["large"]), mean("large")], scales
    )
    converted(tmp_path, tmp_path, "fp16", None)
    graph = ir.load(tmp_path / "graph.onnx").graph
    assert graph.initializers["scales"].dtype is ir.DataType.FLOAT
    assert run(tmp_path / "graph.onnx", pictures(1))["base"].shape == (1, 3, 1, 1)


def test_float32_that_is_computed_for_such_an_input_is_cast_back(tmp_path: Path) -> None:
    scales = numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")
    nodes = [
        helper.make_node("Mul", ["scales", "scales"], ["squared"]),
        helper.make_node("Resize", ["input", "", "squared"], ["large"]),
        mean("large"),
    ]
    write_onnx(tmp_path, nodes, scales)
    wanted = run(tmp_path / "graph.onnx", pictures(1))["base"]
    converted(tmp_path, tmp_path, "fp16", None)
    np.testing.assert_allclose(run(tmp_path / "graph.onnx", pictures(1))["base"], wanted, atol=1e-3)


@narrow_precisions
def test_casts_and_filled_shapes_follow(tmp_path: Path, precision: str) -> None:
    shape = numpy_helper.from_array(np.array([1, 3, 1, 1], np.int64), "shape")
    nodes = [
        mean("input", "pooled"),
        helper.make_node("Cast", ["shape"], ["sizes"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["sizes"], ["six"], keepdims=0),
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
        helper.make_node("Constant", [], ["two"], value_float=2.0),
        helper.make_node("Sum", ["pooled", "zeros", "six", "two"], ["base"]),
    ]
    write_onnx(tmp_path, nodes, shape)
    wanted = run(tmp_path / "graph.onnx", pictures(1))["base"]
    converted(tmp_path, tmp_path, precision, None)
    onnx.checker.check_model(tmp_path / "graph.onnx", full_check=True)
    np.testing.assert_allclose(run(tmp_path / "graph.onnx", pictures(1))["base"], wanted, rtol=1e-2)


def mean(given: str, named: str = "base") -> onnx.NodeProto:
    return helper.make_node("GlobalAveragePool", [given], [named])


def write_onnx(folder: Path, nodes: list[onnx.NodeProto], *weights: onnx.TensorProto) -> None:
    """graph.onnx and base.onnx of these nodes, from input (1, 3, 8, 8) to base."""
    given = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, *SPEC.shape])
    found = helper.make_tensor_value_info("base", TensorProto.FLOAT, [1, 3, 1, 1])
    graph = helper.make_graph(nodes, "made", [given], [found], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    for file in FILES:
        onnx.save(model, folder / file)


# TensorRT-RTX


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("topology", ["chain", "tokens"])
def test_tensorrt_rtx_takes_the_graph_for_what_it_is(
    tokens: Path, tmp_path: Path, topology: str, precision: str
) -> None:
    pytest.importorskip("tensorrt_rtx")
    source = tokens if topology == "tokens" else export_to(tmp_path, batch=2)
    out, batch = tmp_path / "out", inputs(2)
    out.mkdir()
    convert(source, out, precision, inputs(16, seed=1))
    target = Target("rtx", "tensorrt_rtx", precision, "", options={"capabilities": "8.9"})
    parsed = TensorRT("tensorrt_rtx").interpret(out, "graph", target).run(batch)
    for task, answer in run(out / "graph.onnx", batch).items():
        assert relative_errors(parsed[task], answer).max() <= PARSED[precision]
    if topology == "chain":  # the others take seconds
        TensorRT("tensorrt_rtx").compile(out, out, "graph", target)
        assert (out / "graph.engine").stat().st_size > 1000


# the same bytes, and nothing else


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


AGAIN = """
import sys, numpy as np, tiny_forms
from pathlib import Path
from subtune_deploy.precision import converted
source, out, precision, form = sys.argv[1:]
batch = np.random.default_rng(1).standard_normal((20, 3, 12, 12)).astype(np.float32)
converted(Path(source), Path(out), precision, batch, form=tiny_forms.FORMS[form])
"""


@every_form
def test_another_process_writes_the_same_bytes(
    source: Path, made: dict[str, Path], tmp_path: Path, form: str
) -> None:
    out = tmp_path / "again"
    out.mkdir()
    precision, rounded = form.split()[0], INT8.get(form, "signed")
    command = [sys.executable, "-c", AGAIN, str(source), str(out), precision, rounded]
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(Path(__file__).parent)}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert digests(out) == digests(made[form])
    assert found.stdout + found.stderr == ""


def test_int8_leaves_no_files_and_no_logger_behind(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch, out = tmp_path / "scratch", tmp_path / "out"
    for folder in (scratch, out):
        folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    before, handlers, level = digests(source), list(logging.root.handlers), logging.root.manager.disable
    converted(source, out, "int8", inputs(2))
    assert not list(scratch.iterdir())
    assert digests(source) == before
    assert set(digests(out)) == set(FILES)
    assert (logging.root.handlers, logging.root.manager.disable) == (handlers, level)


# what is refused


def with_weight(folder: Path, value: float) -> None:
    """The tiny graphs, the convolution's weights all `value`."""
    write_graphs(folder)
    for file in FILES:
        model = onnx.load(folder / file)
        (weight,) = [tensor for tensor in model.graph.initializer if tensor.name == "conv"]
        weight.CopyFrom(numpy_helper.from_array(np.full_like(WEIGHTS["conv"], value), "conv"))
        onnx.save(model, folder / file)


@pytest.mark.parametrize(
    "precision, value, told",
    [
        ("fp16", 7e4, "weight conv holds 70000, which is beyond the range of fp16"),
        ("fp16", -7e4, "weight conv holds -70000"),
        ("fp16", 1e-9, "weight conv reaches 1e-09, which fp16 takes for zero"),
        ("bf16", 3.4e38, "beyond the range of bf16"),
    ],
)
def test_a_weight_that_the_precision_cannot_hold_is_named(
    tmp_path: Path, precision: str, value: float, told: str
) -> None:
    with_weight(tmp_path, value)
    with pytest.raises(ModelError, match=told):
        converted(tmp_path, tmp_path, precision, None)


@pytest.mark.parametrize(
    "precision, value", [("fp16", 65504), ("fp16", -np.inf), ("bf16", 7e4), ("bf16", 1e-9)]
)
def test_what_the_precision_can_hold_is_not_refused(tmp_path: Path, precision: str, value: float) -> None:
    with_weight(tmp_path, value)
    converted(tmp_path, tmp_path, precision, None)


def test_int8_needs_calibration_data(source: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="int8 needs calibration data, none was given"):
        converted(source, tmp_path, "int8", None)


def test_calibration_data_of_another_shape_are_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"float32 of shape \(4, 3, 8, 8\), expected .* \(n, 3, 12, 12\)"):
        converted(source, tmp_path, "int8", pictures(4))


def test_an_unknown_precision_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="precision 'int4'"):
        converted(source, tmp_path, "int4", None)


@pytest.mark.parametrize("content", [b"", b"nonsense", None])
@every_form
def test_what_is_no_graph_is_refused(tmp_path: Path, content: bytes | None, form: str) -> None:
    if content is not None:
        (tmp_path / "graph.onnx").write_bytes(content)
    with pytest.raises(BundleError):
        convert(tmp_path, tmp_path, form, pictures(1))


def test_a_graph_with_another_input_is_refused(tmp_path: Path) -> None:
    write_graphs(tmp_path)
    model = onnx.load(tmp_path / "graph.onnx")
    model.graph.input[0].name = model.graph.node[0].input[0] = "picture"
    onnx.save(model, tmp_path / "graph.onnx")
    with pytest.raises(BundleError, match="does not take the one float32 input 'input'"):
        converted(tmp_path, tmp_path, "fp16", None)


# which targets need this


@pytest.mark.parametrize(
    "backend, precision, provider, wanted",
    [
        ("tensorrt", "fp32", None, False),
        ("tensorrt", "bf16", None, True),
        ("tensorrt_rtx", "fp16", None, True),
        ("tensorrt_rtx", "int8", None, True),
        ("onnxruntime", "fp32", None, False),
        ("onnxruntime", "int8", None, True),
        ("onnxruntime", "int8", "cuda", True),
        ("onnxruntime", "fp16", None, False),
        ("onnxruntime", "fp16", "cpu", False),
        ("onnxruntime", "fp16", "cuda", True),
        ("openvino", "bf16", None, False),
        ("openvino", "int8", None, True),
        ("torch", "fp32", None, False),
    ],
)
def test_the_precision_of_some_targets_travels_in_the_graph(
    backend: str, precision: str, provider: str | None, wanted: bool
) -> None:
    target = Target("a-target", backend, precision, "")
    assert carried(replace(target, options={"provider": provider}) if provider else target) is wanted


@pytest.mark.parametrize(
    "backend, provider, wanted",
    [
        ("tensorrt", None, quantization.SIGNED),
        ("tensorrt_rtx", None, quantization.SIGNED),
        ("onnxruntime", "cuda", quantization.SIGNED),
        ("onnxruntime", "cpu", INTEGER),
        ("onnxruntime", None, INTEGER),
        ("openvino", None, FUSED),
    ],
)
def test_each_compiler_gets_its_form_and_gpus_signed_activations_alone(
    backend: str, provider: str | None, wanted: Form
) -> None:
    target = Target("a-target", backend, "int8", "")
    assert int8_form(replace(target, options={"provider": provider}) if provider else target) == wanted


@pytest.mark.parametrize("name, backend", [("cpu-int8", "onnxruntime"), ("openvino-cpu-int8", "openvino")])
def test_the_int8_recipes(name: str, backend: str) -> None:
    target = load_target(name)
    assert (target.backend, target.precision, carried(target)) == (backend, "int8", True)


@pytest.mark.parametrize("keep", [(), ("block3",)])
def test_onnx_runtime_multiplies_integers_wherever_weights_are_int8(
    tokens: Path, tmp_path: Path, keep: tuple[str, ...]
) -> None:
    """Products with biases too: as one operator with its bias a product would stay in float."""
    (tmp_path / "engine").mkdir()
    converted(tokens, tmp_path, "int8", inputs(8, seed=1), form=INTEGER, keep=keep)
    compile_onnxruntime(tmp_path, tmp_path / "engine", "graph", load_target("cpu-int8"))
    nodes = onnx.load(tmp_path / "engine" / "graph.onnx").graph.node
    unpacked = {node.output[0] for node in nodes if node.op_type == "DequantizeLinear"}
    assert not [
        node.name for node in nodes if node.op_type in {"Gemm", "MatMul"} and node.input[1] in unpacked
    ]
    integers = [
        node.name for node in nodes if node.op_type in {"MatMulIntegerToFloat", "QLinearMatMul", "QGemm"}
    ]
    assert any(name.startswith("block2.") for name in integers)
    assert any(name.startswith("block3.birds.") for name in integers) == (not keep)
