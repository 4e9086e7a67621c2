"""Units that an int8 graph leaves in float32: structure, numbers, recipes, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from tiny_bundle import write_graphs
from tiny_cli import cli, write_network
from tiny_forms import FORMS
from tiny_networks import SIZE, backbone

from subtune_deploy.backends.base import Target
from subtune_deploy.bundle import engine_target, open_bundle
from subtune_deploy.errors import InputError, TargetError
from subtune_deploy.export import export
from subtune_deploy.grouped import groupable
from subtune_deploy.manifest import RECIPE as RECIPE_FILE
from subtune_deploy.parity import References, relative_errors
from subtune_deploy.plan import make_plan
from subtune_deploy.precision import converted
from subtune_deploy.quantization import belongs, versions
from subtune_deploy.runtime import Bundle, load_engine
from subtune_deploy.targets import check_target, load_target
from subtune_deploy.tasks import candidate_task, owners
from subtune_deploy.timing import identify

KEEP = ("block2", "block3.birds")
KEPT = ("block2.base", "block3.birds")

every_form = pytest.mark.parametrize("form", FORMS)

Answers = dict[str, np.ndarray]


def inputs(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, *SIZE)).astype(np.float32)


def run(path: Path, batch: np.ndarray) -> Answers:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"input": batch}), strict=True))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Birds and signs on block 3, nothing packed: what one does the others cannot notice."""
    folder = tmp_path_factory.mktemp("source")
    network = backbone("chain", blocks=4, width=6)
    tasks = [
        candidate_task(network, name, (3,), seed=seed) for seed, name in enumerate(("birds", "signs"), 1)
    ]
    plan = make_plan(network.topology, owners(tasks), merge="never")
    export(network, tasks, plan, batch=1).save(folder, program=False)
    return folder


@pytest.fixture(scope="module")
def made(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, tuple[str, ...]], Path]:
    """By form, and by what is kept."""
    every = versions(ir.load(source / "graph.onnx"))
    found = {}
    for name, form in FORMS.items():
        for keep in ((), KEEP, ("block3.birds",), ("block3.base",), every):
            folder = found[name, keep] = tmp_path_factory.mktemp("made")
            converted(source, folder, "int8", inputs(16, seed=1), form=form, keep=keep)
    return found


# structure


@every_form
def test_kept_units_have_float_weights_and_all_others_are_quantised(
    source: Path, made: dict[tuple[str, tuple[str, ...]], Path], form: str
) -> None:
    graph = ir.load(made[form, KEEP] / "graph.onnx").graph
    float_units, int8_units = set(), set()
    for node in graph:
        if node.op_type not in ("Conv", "Gemm"):
            continue
        weight = node.inputs[1]
        assert weight is not None
        unit = ".".join(str(node.name).split("/")[0].split(".")[:2])
        producer = weight.producer()
        (float_units if producer is None else int8_units).add(unit)
        assert producer is None or producer.op_type == "DequantizeLinear"
    assert float_units == set(KEPT)
    assert int8_units == set(versions(ir.load(source / "graph.onnx"))) - set(KEPT)
    assert {"block3.signs", "block3.base"} <= int8_units


@every_form
def test_weights_and_biases_of_kept_units_are_not_touched(
    source: Path, made: dict[tuple[str, tuple[str, ...]], Path], form: str
) -> None:
    before, after = (ir.load(f / "graph.onnx").graph.initializers for f in (source, made[form, KEEP]))
    names = [name for name in before if name.startswith(("block2.", "block3.birds.")) and name in after]
    assert len([name for name in names if name.endswith(".weight")]) == 4
    assert any(name.endswith(".bias") for name in names)
    for name in names:
        old, new = before[name].const_value, after[name].const_value
        assert old is not None
        assert new is not None
        np.testing.assert_array_equal(old.numpy(), new.numpy())
    assert "block3.signs.conv1.weight" not in after


@every_form
def test_the_backbone_alone_keeps_what_it_has_of_them(
    made: dict[tuple[str, tuple[str, ...]], Path], form: str
) -> None:
    names = ir.load(made[form, KEEP] / "base.onnx").graph.initializers
    assert {"block2.base.conv1.weight", "block3.base.conv1.weight_quantized"} <= set(names)


def test_versions_that_run_as_one_operator_are_kept_in_the_backbone_alone_too(tmp_path: Path) -> None:
    """Else added latency would be that of float32 over int8."""
    network = backbone("chain", blocks=4, width=6)
    tasks = [candidate_task(network, name, (3,), seed=seed) for seed, name in enumerate(("a", "b"), 1)]
    plan = make_plan(network.topology, owners(tasks), grouped=groupable(network, tasks))
    export(network, tasks, plan, batch=1).save(tmp_path, program=False)
    (tmp_path / "out").mkdir()
    converted(tmp_path, tmp_path / "out", "int8", inputs(16, seed=1), keep=("block3.grouped",))
    kept, others = (
        [
            name
            for name in ir.load(tmp_path / "out" / "base.onnx").graph.initializers
            if name.startswith(block)
        ]
        for block in ("block3.base.", "block2.base.")
    )
    assert kept
    assert not any(name.endswith("_quantized") for name in kept)
    assert any(name.endswith("weight_quantized") for name in others)


# numbers


@every_form
@pytest.mark.parametrize("file", ["graph.onnx", "base.onnx"])
def test_with_everything_kept_it_answers_as_in_float32(
    source: Path, made: dict[tuple[str, tuple[str, ...]], Path], form: str, file: str
) -> None:
    every = versions(ir.load(source / "graph.onnx"))
    wanted, batch = run(source / file, inputs(1)), inputs(1)
    for task, answer in run(made[form, every] / file, batch).items():
        assert relative_errors(answer, wanted[task]).max() <= 1e-5
    for task, answer in run(made[form, ()] / file, batch).items():
        assert relative_errors(answer, wanted[task]).max() > 1e-3


@every_form
@pytest.mark.parametrize(
    "unit, moved", [("block3.birds", {"birds"}), ("block3.base", {"base"})], ids=["birds", "base"]
)
def test_a_kept_fork_moves_its_own_task_alone(
    made: dict[tuple[str, tuple[str, ...]], Path], form: str, unit: str, moved: set[str]
) -> None:
    plain, kept = (run(made[form, keep] / "graph.onnx", inputs(1)) for keep in ((), (unit,)))
    assert {task for task in plain if not np.array_equal(plain[task], kept[task])} == moved


def test_a_unit_is_named_as_a_whole_or_by_version() -> None:
    for units, wanted in {
        ("block1",): True,
        ("block1.birds",): True,
        ("block1.birds.conv",): True,
        ("block1.bird",): False,
        ("block",): False,
        ("block13",): False,
        ("",): False,
        (): False,
    }.items():
        assert belongs("block1.birds.conv/Conv_2", units) is wanted


# recipes


RECIPE = """
name = "mixed"
backend = "{backend}"
precision = "{precision}"
description = "int8, block 2 and one fork in float32"
keep = ["block2", "block3.task1"]
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kept_units")
    write_network(folder)
    network = ("--model", f"{folder}/net.py:Net", "--weights", folder / "base.pt")
    ran = cli("export", *network, "--layers", "3", "--tasks", 2, "-o", folder / "bundle")
    assert ran.status == 0, ran.err
    noise = np.random.default_rng(1).standard_normal((16, 3, 32, 32), np.float32)
    photographs = References.load(folder / "bundle").inputs
    np.save(folder / "calibration.npy", np.concatenate([noise, photographs]))
    return folder


def recipe(folder: Path, backend: str = "onnxruntime", precision: str = "int8") -> Path:
    path = folder / "mixed.toml"
    path.write_text(RECIPE.format(backend=backend, precision=precision))
    return path


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_recipe_that_keeps_units_is_compiled_verified_and_run(
    place: Path, tmp_path: Path, backend: str
) -> None:
    ran = cli(
        "compile", place / "bundle", "--target", recipe(tmp_path, backend),
        "--calibrate", place / "calibration.npy",
    )  # fmt: skip
    assert ran.status == 0, ran.err
    assert cli("verify", place / "bundle", "--deep").status == 0
    bundle = open_bundle(place / "bundle")
    assert engine_target(bundle, "mixed").keep == ("block2", "block3.task1")
    assert identify(bundle, "mixed")["keep"] == ("block2", "block3.task1")
    assert cli("compile", place / "bundle", "--target", "cpu").status == 0
    assert '"keep"' not in (place / "bundle" / "cpu" / RECIPE_FILE).read_text()  # unknown to older versions
    names = set(ir.load(place / "bundle" / "mixed" / "source" / "graph.onnx").graph.initializers)
    assert {"block2.base.conv1.weight", "block3.task1.conv1.weight"} <= names
    assert {"block1.base.conv1.weight_quantized", "block3.task2.conv1.weight_quantized"} <= names
    batch = np.random.default_rng(2).standard_normal((1, 3, 32, 32), np.float32)
    assert set(load_engine(bundle, "mixed").run(batch)) == {"base", "task1", "task2"}
    assert set(Bundle.open(place / "bundle", "mixed").run(batch)) == {"base", "task1", "task2"}


@pytest.mark.parametrize(
    "backend, precision", [("openvino", "bf16"), ("tensorrt_rtx", "fp16"), ("onnxruntime", "fp32")]
)
def test_units_are_kept_of_int8_alone(tmp_path: Path, backend: str, precision: str) -> None:
    with pytest.raises(TargetError, match=f"keep leaves .* of an int8 graph .* is {precision}") as caught:
        load_target(str(recipe(tmp_path, backend, precision)))
    assert "take keep out" in caught.value.hint


def test_keep_is_a_list_of_names(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    path.write_text(path.read_text().replace('["block2", "block3.task1"]', '"block2"'))
    with pytest.raises(TargetError, match="keep is 'block2'"):
        load_target(str(path))
    with pytest.raises(InputError, match="keep leaves units"):
        check_target(Target("mine", "openvino", "fp32", "", keep=("block2",)))


@pytest.mark.parametrize(
    "unit, hint", [("block33", "block3"), ("block3.brids", "block3.birds"), ("", "known: ")]
)
def test_a_unit_that_the_graph_has_not_is_refused(source: Path, tmp_path: Path, unit: str, hint: str) -> None:
    with pytest.raises(InputError, match=f"keep names '{unit}', which the graph has not") as caught:
        converted(source, tmp_path, "int8", inputs(1), keep=("block2", unit))
    assert hint in caught.value.hint
    assert not list(tmp_path.iterdir())


def test_a_graph_without_units_has_none_to_keep(tmp_path: Path) -> None:
    write_graphs(tmp_path)
    assert versions(ir.load(tmp_path / "graph.onnx")) == ()


def test_one_line_says_what_is_wrong(place: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path)
    path.write_text(path.read_text().replace("block3.task1", "block3.task9"))
    ran = cli("compile", place / "bundle", "--target", path, "--calibrate", place / "calibration.npy")
    assert (ran.status, ran.out) == (2, "")
    assert "keep names 'block3.task9'" in ran.err
    assert "block3.task1" in ran.err
