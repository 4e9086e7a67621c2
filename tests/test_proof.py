"""The proof passes what is right, and each kind of wrong network or engine is named."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from tiny_cli import cli
from tiny_networks import backbone
from tiny_parsed import records

from subtune_deploy.backends.base import ROLES, Target
from subtune_deploy.backends.onnxruntime import open_literally
from subtune_deploy.backends.tensorrt import RTX
from subtune_deploy.backends.tensorrt.interpreter import open_interpreter
from subtune_deploy.build import BuildOptions, build
from subtune_deploy.bundle import Bundle, open_bundle, seal
from subtune_deploy.compiling import compile_bundle
from subtune_deploy.errors import BundleError, ParityError
from subtune_deploy.parity import TOLERANCES, References, run_all
from subtune_deploy.precision import converted
from subtune_deploy.proof import prove
from subtune_deploy.tasks import candidate_task

TARGET = Target("rtx", "tensorrt_rtx", "fp32", "", options={"capabilities": "8.6 8.9"})
TASKS = ("near", "far", "spread")


def built(folder: Path, topology: str = "chain", batch: int | None = 1, width: int = 4) -> Bundle:
    """Three tasks of equal numbers of classes."""
    network = backbone(topology, width=width)
    forks = dict(zip(TASKS, ((3, 4), (1,), (2, 4)), strict=True))
    tasks = [
        candidate_task(network, name, fork, seed=seed) for seed, (name, fork) in enumerate(forks.items(), 1)
    ]
    return build(network, tasks, folder, BuildOptions(batch=batch))


def compiled(source: Path, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for role in ROLES:
        RTX.compile(source, folder, role, TARGET)
    return folder


def proven(bundle: Bundle, folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    references = References.load(bundle.path)
    return prove(bundle.path, folder, TARGET, RTX, references, bundle.manifest.batch)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return built(tmp_path_factory.mktemp("chain") / "b", width=24)


@pytest.fixture
def changed(bundle: Bundle, tmp_path: Path) -> Callable[[Callable[[onnx.ModelProto], None]], Bundle]:
    """A copy of the bundle whose graph was edited behind its back; references as they were."""

    def change(edit: Callable[[onnx.ModelProto], None]) -> Bundle:
        for name in ("base.onnx", "references.npz"):
            (tmp_path / name).write_bytes((bundle.path / name).read_bytes())
        model = onnx.load(bundle.path / "graph.onnx")
        edit(model)
        onnx.save(model, tmp_path / "graph.onnx")
        return replace(bundle, path=tmp_path)

    return change


@pytest.mark.parametrize(
    "topology, batch", [("chain", None), ("dense", 1), ("branching", 1), ("tokens", None)]
)
def test_a_right_network_is_proven(tmp_path: Path, topology: str, batch: int | None) -> None:
    bundle = built(tmp_path / "b", topology, batch)
    figures, facts = proven(bundle, compiled(bundle.path, tmp_path / "engines"))
    against = {
        name: {f["task"] for f in figures if f["against"] == name} for name in {f["against"] for f in figures}
    }
    every = {"base", *TASKS}
    assert against == {"stand-alone model": every, "base engine": {"base"}, "ONNX Runtime": every}
    assert all(figure["by"] == "parsed network" for figure in figures)
    assert max(figure["error"] for figure in figures) < 2e-5
    assert set(ROLES) < set(facts)


@pytest.mark.skipif(RTX.probe().runs, reason="its device is here: the engine itself answers")
def test_compile_and_verify_deep_say_whether_another_build_gives_the_same_engine(
    bundle: Bundle, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(bundle.path, tmp_path / "b"))
    facts = compile_bundle(open_bundle(folder), TARGET).manifest.engines[TARGET.name].facts
    assert {type(facts[role]["deterministic"]) for role in ROLES} == {
        bool
    }  # several outputs come in any order
    assert facts["base"]["deterministic"] is True
    verified = cli("verify", folder, "--deep")
    assert verified.status == 0, verified.err
    assert len(re.findall(r"^  (graph|base): .*deterministic (yes|no)\b", verified.out, re.M)) == 2
    assert re.search(r"^  base: .*deterministic yes\b", verified.out, re.M)


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_a_graph_of_another_precision_is_proven_within_its_tolerance(
    bundle: Bundle, tmp_path: Path, precision: str
) -> None:
    references, target = References.load(bundle.path), replace(TARGET, precision=precision)
    source = tmp_path / "source"
    source.mkdir()
    converted(bundle.path, source, precision, references.inputs)
    figures, facts = prove(source, compiled(source, tmp_path / "engines"), target, RTX, references, 1)
    errors = {
        name: max(figure["error"] for figure in figures if figure["against"] == name)
        for name in {figure["against"] for figure in figures}
    }
    assert 1e-4 < errors["stand-alone model"] < TOLERANCES[precision], "rounded, but not more than is allowed"
    assert errors.get("ONNX Runtime", 0) <= {"fp16": 2e-3, "bf16": 0, "int8": 1e-6}[precision]
    assert facts["ONNX Runtime"].startswith("not compared" if precision == "bf16" else "compared")
    found = facts["graph"]["weights"]
    assert (found["share"], set(found["by_version"])) == (1, {"base", *TASKS})


def weight(model: onnx.ModelProto, ending: str) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name.endswith(ending))


def perturb(model: onnx.ModelProto) -> None:
    tensor = weight(model, "block3.near.conv1.weight")
    values = numpy_helper.to_array(tensor).copy()
    values[0, 0, 0, 0] += 0.5
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def swap(model: onnx.ModelProto) -> None:
    names = {"near": "far", "far": "near"}
    for node in model.graph.node:
        for index, name in enumerate(node.output):
            node.output[index] = names.get(name, name)


def drop_relu(model: onnx.ModelProto) -> None:
    node = next(
        node for node in model.graph.node if node.op_type == "Relu" and node.name.startswith("block1.far")
    )
    for other in model.graph.node:
        for index, name in enumerate(other.input):
            if name == node.output[0]:
                other.input[index] = node.input[0]
    model.graph.node.remove(node)


@pytest.mark.parametrize(
    "edit, task", [(perturb, "near"), (swap, "near"), (drop_relu, "far")], ids=["weight", "branches", "node"]
)
def test_a_wrong_network_is_caught_and_the_task_named(
    changed: Callable[..., Bundle], tmp_path: Path, edit: Callable[[onnx.ModelProto], None], task: str
) -> None:
    wrong = changed(edit)
    with pytest.raises(ParityError, match=f"task {task} differs from its stand-alone model"):
        proven(wrong, compiled(wrong.path, tmp_path / "engines"))


def test_a_parser_that_misreads_the_graph_is_caught_by_onnx_runtime(
    bundle: Bundle, changed: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where stored answers agree with the misread network."""
    misread = changed(drop_relu).path
    original = type(RTX).interpret
    monkeypatch.setattr(
        type(RTX), "interpret", lambda self, _, role, target: original(self, misread, role, target)
    )
    stored = References.load(bundle.path)
    answers = run_all(open_literally(misread / "graph.onnx"), stored.inputs, 1)
    agreeing = References(stored.inputs, stored.kinds, answers)
    with pytest.raises(ParityError, match="task far differs from its ONNX Runtime"):
        prove(bundle.path, compiled(bundle.path, tmp_path / "engines"), TARGET, RTX, agreeing, 1)


@pytest.mark.parametrize("edit, moved", [(perturb, {"near"}), (drop_relu, {"far"}), (swap, {"near", "far"})])
def test_only_the_tasks_that_were_touched_move(
    bundle: Bundle,
    changed: Callable[..., Bundle],
    edit: Callable[[onnx.ModelProto], None],
    moved: set[str],
) -> None:
    inputs = References.load(bundle.path).inputs[:1]
    before, after = (
        open_interpreter(records(path / "graph.onnx")).run(inputs)
        for path in (bundle.path, changed(edit).path)
    )
    assert {task for task in before if not np.array_equal(before[task], after[task])} == moved


def test_an_engine_of_another_graph_is_caught_by_its_weights(
    bundle: Bundle, changed: Callable[..., Bundle], tmp_path: Path
) -> None:
    engines = compiled(changed(perturb).path, tmp_path / "engines")
    with pytest.raises(BundleError, match=r"weights of near.*block3\.near\.conv1\.weight"):
        proven(bundle, engines)


def test_an_engine_cut_short_is_caught(bundle: Bundle, tmp_path: Path) -> None:
    engines = compiled(bundle.path, tmp_path / "engines")
    whole = (engines / "graph.engine").read_bytes()
    (engines / "graph.engine").write_bytes(whole[:-100])
    with pytest.raises(BundleError, match=r"graph\.engine"):
        proven(bundle, engines)


def normalised(path: Path) -> None:
    """The input goes through a layer type first that TensorRT takes and our interpreter lacks."""
    model = onnx.load(path)
    for node in model.graph.node:
        node.input[:] = ["normal" if name == "input" else name for name in node.input]
    model.graph.node.insert(0, helper.make_node("LRN", ["input"], ["normal"], size=3))
    onnx.save(model, path)


@pytest.mark.skipif(RTX.probe().runs, reason="its device is here: the engine itself answers")
def test_an_engine_whose_network_cannot_be_executed_here_is_kept_and_says_so(
    bundle: Bundle, tmp_path: Path
) -> None:
    folder = tmp_path / "b"
    shutil.copytree(bundle.path, folder)
    for role in ROLES:
        normalised(folder / f"{role}.onnx")
    inputs, kinds = References.load(folder).inputs, References.load(folder).kinds
    References(inputs, kinds, run_all(open_literally(folder / "graph.onnx"), inputs, 1)).save(folder)
    seal(folder, replace(bundle.manifest, files={}))
    entry = compile_bundle(open_bundle(folder), TARGET).manifest.engines[TARGET.name]
    assert not entry.ran
    assert entry.facts["parsed network"].startswith("not executed: layer")
    (tmp_path / "rtx.toml").write_text(
        'name = "rtx"\nbackend = "tensorrt_rtx"\nprecision = "fp32"\ndescription = ""\n'
        '[options]\ncapabilities = "8.6 8.9"\n'
    )
    made = cli("compile", folder, "--target", tmp_path / "rtx.toml")
    assert made.status == 0, made.err
    assert "no answers were compared" in made.out
    verified = cli("verify", folder, "--deep")
    assert verified.status == 0
    assert f"{TARGET.name}: no answers were compared" in verified.out
    assert "not yet run on hardware" in verified.out
