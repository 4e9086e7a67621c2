"""The acceptance tool, on a machine where it can judge nothing: it must say so, and what each step lacks."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tiny_cli import write_network

from subtune_deploy.backends.base import Availability, Target
from subtune_deploy.backends.tensorrt.cuda import probe_cuda
from subtune_deploy.errors import CheckFailed
from subtune_deploy.measure import ADAPTIVE, PAPER, Protocol

TOOL = Path(__file__).parents[1] / "tools" / "gpu_acceptance"

pytestmark = pytest.mark.skipif(not probe_cuda(), reason="this machine has a GPU: run tools/gpu_acceptance")


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("gpu_acceptance", str(TOOL))
    spec = importlib.util.spec_from_loader("gpu_acceptance", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_acceptance"] = module  # dataclasses look their module up
    loader.exec_module(module)
    return module


def test_without_a_gpu_it_names_what_is_missing_and_leaves_with_3(tmp_path: Path) -> None:
    done = run("--out", tmp_path / "out")
    assert done.returncode == 3, done.stderr
    first, *_, last = done.stdout.splitlines()
    assert first.startswith(f"missing: {probe_cuda()}; ")  # with its remedy
    assert last.startswith("not judged: ")
    assert not (tmp_path / "out").exists()


def test_it_is_a_command_with_help() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert "0 accepted; 1 refused" in done.stdout
    assert TOOL.stat().st_mode & 0o111
    assert TOOL.read_text().startswith("#!/usr/bin/env python3\n")


def test_a_step_that_is_unknown_is_usage() -> None:
    assert run("--step", "tensorrt fp64").returncode == 2


def test_every_variant_that_was_promised_is_a_step(tool: ModuleType) -> None:
    names = list(tool.steps())
    assert names[0] == "export"
    for library in ("tensorrt_rtx", "tensorrt"):
        for what in (
            "fp32",
            "tf32",
            "fp16",
            "bf16",
            "int8",
            "cuda graph",
            "one stream",
            "dynamic batch",
            "refit",
        ):
            assert f"{library} {what}" in names
    assert {"onnxruntime cuda", "onnxruntime tensorrt", "onnxruntime tensorrt_rtx"} <= set(names)


@pytest.fixture(scope="module")
def plan(tool: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Of a tiny network, with its export step done."""
    folder = tmp_path_factory.mktemp("acceptance")
    write_network(folder)
    plan = tool.Plan(folder / "out", f"{folder / 'net.py'}:Net", "3-4")
    status, record = step(plan, "export")
    assert (status, record["outcome"]) == (0, "passed"), record
    return plan


def step(plan: Any, name: str) -> tuple[int, Any]:
    """Exit status and record of one step, run by the command."""
    done = run("--out", plan.folder, "--model", plan.model, "--layers", plan.layers, "--step", name)
    return done.returncode, json.loads((plan.folder / "step.json").read_text())


def test_export_makes_three_bundles_of_different_graphs(plan: Any) -> None:
    graphs = {(plan.folder / name / "graph.onnx").read_bytes() for name in ("one", "any", "other")}
    assert len(graphs) == 3


@pytest.mark.parametrize("name", ["tensorrt_rtx fp32", "tensorrt fp32", "onnxruntime cuda"])
def test_a_step_for_which_something_is_missing_says_what(plan: Any, name: str) -> None:
    status, record = step(plan, name)
    assert (status, record["outcome"]) == (3, "missing")
    assert record["reason"]
    assert record["hint"]


@pytest.mark.parametrize(
    ("name", "capability", "library", "reason"),
    [
        ("tensorrt_rtx fp32", "9.0", "cuda-bindings", "GPUs of capability 7.5, .*, not 9.0"),
        ("tensorrt_rtx fp32", "8.9", "cuda-bindings", None),
        ("tensorrt fp32", "9.0", "cuda-bindings", None),
        ("tensorrt cuda graph", "9.0", "pycuda", "no CUDA graphs"),
        ("tensorrt fp32", "9.0", "pycuda", None),
    ],
)
def test_a_gpu_that_a_library_is_not_for_is_missing_and_not_a_failure(
    tool: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    capability: str,
    library: str,
    reason: str | None,
) -> None:
    here = SimpleNamespace(library=library, device=lambda: SimpleNamespace(capability=capability))
    monkeypatch.setattr(tool, "probe", lambda name: Availability(True, "1", "", ""))
    monkeypatch.setattr(tool, "open_cuda", lambda: here)
    found = tool.lacked(name, name.split()[0])
    assert (found is None) == (reason is None)
    assert reason is None or re.search(reason, found[0])


def test_modules_that_the_export_needs_are_asked_for_first(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, "EXPORT", ("torch", "no_such_module"))
    assert ("no_such_module cannot be found", "pip install -e '.[export]' in the checkout") in tool.missing()


def cpu() -> Target:
    return Target("cpu", "onnxruntime", "fp32", "what runs on any machine, in the place of a GPU")


def test_engines_are_timed_with_both_protocols(tool: ModuleType) -> None:
    assert tool.PROTOCOLS == (ADAPTIVE, PAPER)


def test_an_accepted_engine_was_checked_and_timed(
    tool: ModuleType, plan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = (Protocol(seconds=0.5), Protocol("paper", warmup=2, rounds=20, repeats=3))
    monkeypatch.setattr(tool, "PROTOCOLS", short)
    facts = json.loads(json.dumps(tool.accept_engine(cpu, plan)))
    assert {(figure["task"], figure["by"]) for figure in facts["parity"]} == {
        ("base", "engine"),
        ("task", "engine"),
    }
    adaptive, paper = facts["results"]
    assert (adaptive["protocol"]["name"], paper["protocol"]["name"]) == ("adaptive", "paper")
    assert len(paper["samples"]["graph"]) == len(paper["samples"]["base"]) == 60


def test_an_engine_that_takes_what_it_should_refuse_is_refused_itself(tool: ModuleType, plan: Any) -> None:
    # ONNX Runtime on the CPU has no profile, so it takes any batch: every size is right, and then one too many.
    with pytest.raises(CheckFailed, match="17 pictures was taken"):
        tool.accept_dynamic(cpu, plan)


def test_the_weights_to_refit_are_the_task_s_own(tool: ModuleType, plan: Any) -> None:
    one, other = (tool.forked_weights(plan.folder / name) for name in ("one", "other"))
    assert one.keys() == other.keys()
    assert {name.split(".")[1] for name in one} == {"task"}
    assert all((one[name] != other[name]).any() for name in one)


def test_a_crash_is_a_failed_step(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crash = tmp_path / "crash"
    crash.write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    monkeypatch.setattr(tool, "__file__", str(crash))
    record = tool.run_apart("export", tool.Plan(tmp_path, "resnet50", "13-14"))
    assert record.outcome == "failed"
    assert "Segmentation fault" in record.reason


@pytest.mark.parametrize(
    ("outcomes", "accepted", "verdict"),
    [
        (["passed", "passed", "missing"], True, "accepted: 2 of 3 steps passed, 1 were missing something"),
        (["passed", "failed", "passed"], False, "refused: 1 of 3 steps failed (tensorrt fp32)"),
        (["passed", "missing", "missing"], False, "refused: no engine ran on the device"),
    ],
)
def test_the_verdict_is_one_line(tool: ModuleType, outcomes: list[str], accepted: bool, verdict: str) -> None:
    names = ("export", "tensorrt fp32", "tensorrt fp16")
    records = [tool.Record(name, outcome) for name, outcome in zip(names, outcomes, strict=True)]
    judged, told = tool.judge(records)
    assert judged is accepted
    assert told.startswith(verdict)
    assert "\n" not in told
