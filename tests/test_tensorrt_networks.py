"""Real networks through the real compiler, TensorRT-RTX, without a GPU: what it was given answers as ONNX Runtime does.

ResNet-50 forked at 13-14, EfficientNet-Lite0, a ViT-B/16 of four layers and an eight-task graph, with random weights
and small pictures.
benchmarks/tensorrt_builds.py does the same at full size, with a table.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from subtune_deploy.backbone import trace
from subtune_deploy.backends.base import Target
from subtune_deploy.backends.onnxruntime import open_literally
from subtune_deploy.backends.tensorrt import RTX
from subtune_deploy.bundle import open_bundle
from subtune_deploy.errors import ParityError
from subtune_deploy.graft import graft
from subtune_deploy.models import load_model
from subtune_deploy.pack import save_pack, write_pack
from subtune_deploy.parity import TOLERANCES, References, check, relative_errors, run_all
from subtune_deploy.proof import SAME_GRAPH
from subtune_deploy.sources import packed
from subtune_deploy.tasks import candidate_task

pytest.importorskip("tensorrt_rtx")
sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
builds = importlib.import_module("tensorrt_builds")

SMALL = (3, 64, 64)
TARGET = Target("rtx", "tensorrt_rtx", "fp32", "", options={"capabilities": "8.6 8.9 12.0"})
AGAINST_ONNX_RUNTIME = {"fp32": 2e-5, "fp16": SAME_GRAPH["fp16"], "int8": SAME_GRAPH["int8"]}
"""Relative errors. Both run the same graph; in fp32 they are nearer than what `compile` asks for."""
AGAINST_THE_MODEL = {"fp32": TOLERANCES["fp32"], "fp16": 0.05, "bf16": 0.2, "int8": 0.5}
"""Wider than parity's: untrained weights and pictures of 64 pixels leave little to tell answers apart by."""


@dataclass(frozen=True)
class Case:
    network: Any
    variants: Mapping[str, tuple[str, int | None]]


CASES = {
    "ResNet-50": Case(
        builds.Network(builds.plain("resnet50", SMALL), (13, 14)),
        {name: (name, 1) for name in ("fp32", "fp16", "bf16", "int8")},
    ),
    "EfficientNet-Lite0": Case(
        builds.Network(builds.plain(builds.LITE0, SMALL), (15, 16)),
        {"fp32": ("fp32", None), "fp16": ("fp16", None)},  # of any batch
    ),
    "ViT": Case(
        builds.Network(builds.plain("tiny_factories:short_vit"), (4,)),
        {"fp32": ("fp32", 1), "bf16": ("bf16", 1)},
    ),
    "eight tasks": Case(
        builds.Network(builds.plain("resnet18", SMALL), (5, 6), 8),
        {"fp32": ("fp32", 1), "fp16": ("fp16", 1)},
    ),
}


@dataclass(frozen=True)
class Made:
    name: str
    folder: Path
    records: Mapping[str, dict[str, Any]]


@pytest.fixture(scope="module", params=CASES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """One network at a time, for they are large."""
    case, folder = CASES[request.param], tmp_path_factory.mktemp("networks")
    found = builds.measured(request.param, case.network, folder, case.variants, more=1)
    return Made(request.param, folder, {record["variant"]: record for record in found})


def test_a_parsed_network_answers_as_onnx_runtime_and_as_the_stand_alone_models(made: Made) -> None:
    for precision, record in made.records.items():
        assert record["against_model"] < AGAINST_THE_MODEL[precision], (made.name, precision)
        if precision == "bf16":  # ONNX Runtime lacks operators in it
            assert record["against_onnxruntime"] is None
        else:
            assert record["against_onnxruntime"] < AGAINST_ONNX_RUNTIME[precision], (made.name, precision)


def test_every_weight_lies_in_the_engine_that_of_each_task_too(made: Made) -> None:
    tasks = {f"task{number}" for number in range(1, CASES[made.name].network.tasks + 1)}
    for precision, record in made.records.items():
        assert set(record["weights"]["by_version"]) - {"constants"} == {"base", *tasks}
        assert record["weights"]["share"] == 1.0
        if precision != "int8":  # of which some engines hold what the graph leaves to be quantised
            assert record["engine_bytes"] < 1.1 * record["graph_bytes"]  # so shared weights are there once


@pytest.mark.parametrize("made", ["ResNet-50"], indirect=True)
def test_one_weight_of_a_fork_that_is_wrong_is_caught_for_that_task_alone(made: Made, tmp_path: Path) -> None:
    bundle, tolerance = open_bundle(made.folder / "batch_1"), TOLERANCES["fp32"]
    references = References.load(bundle.path)
    perturbed(bundle.path / "graph.onnx", tmp_path / "graph.onnx", "block13.task1.")
    parsed, lone = RTX.interpret(tmp_path, "graph", TARGET), RTX.interpret(bundle.path, "base", TARGET)
    with pytest.raises(ParityError, match="task task1 differs from its stand-alone model"):
        check(parsed, lone, references, batch=1, precision="fp32")
    answers = run_all(parsed, references.inputs, 1)
    errors = {task: relative_errors(answers[task], references.answers[task]).max() for task in answers}
    assert {task for task, error in errors.items() if error > tolerance} == {"task1"}


def perturbed(path: Path, out: Path, start: str) -> None:
    """The graph with one number of one convolution whose name begins so changed."""
    model = onnx.load(path)
    tensor = next(
        each for each in model.graph.initializer if each.name.startswith(start) and len(each.dims) == 4
    )
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] += 1
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, out)


@pytest.mark.parametrize("made", ["ResNet-50"], indirect=True)
def test_a_pack_is_small_and_grafting_one_moves_no_other_output_by_a_bit(made: Made, tmp_path: Path) -> None:
    bundle = open_bundle(made.folder / "batch_1")
    assert write_pack(bundle, "task1", tmp_path).stat().st_size < 40e6
    backbone = trace(load_model("resnet50", input_size=SMALL))
    tensors, about = packed(backbone, candidate_task(backbone, "task2", (13, 14), seed=2))
    save_pack(tmp_path / "task2.pack", about, tensors)
    grafted = graft(bundle.path, tmp_path / "task2.pack", tmp_path / "grafted")
    fresh = np.random.default_rng(1).standard_normal((4, *SMALL)).astype(np.float32)
    inputs = np.concatenate([References.load(bundle.path).inputs, fresh])
    before, after = (
        run_all(open_literally(each.path / "graph.onnx"), inputs, 1) for each in (bundle, grafted)
    )
    assert set(after) - set(before) == {"task2"}
    assert {name for name in before if before[name].tobytes() != after[name].tobytes()} == set()
