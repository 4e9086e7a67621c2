"""Sweeps: every candidate once, in a fixed order, whatever interrupts them."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import random
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import filelock
import pytest
from tiny_cli import Ran, cli, write_network

from subtune_deploy.backbone import trace
from subtune_deploy.measure import Protocol
from subtune_deploy.models import load_model
from subtune_deploy.results import read_results
from subtune_deploy.spec import format_layers
from subtune_deploy.sweep import Candidate, SweepOptions, candidates, sweep
from subtune_deploy.targets import load_target

KILLS = 20


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    write_network(folder)
    return folder


def swept(place: Path, run: Path, *arguments: object) -> Ran:
    network = ("--model", f"{place}/net.py:Net", "--weights", place / "base.pt")
    return cli("sweep", *network, "--seconds", 0.2, "-o", run, *arguments)


def measured(run: Path) -> list[tuple[str, int, str]]:
    return [(found.fork, found.tasks, found.target) for found in read_results(run)]


def test_candidates_come_in_a_fixed_order_and_once() -> None:
    found = candidates(4, (1, 2), [(1, 4), (3, 2)], (1, 8))
    forks = ["1", "2", "3", "4", "1-2", "2-3", "3-4", "1,4"]
    assert [str(each) for each in found] == [f"{fork} x{count}" for count in (1, 8) for fork in forks]
    assert candidates(3, forks=[(2,)]) == (Candidate((2,), 1),)
    assert len(candidates(16, (1, 3))) == 16 + 15 + 14


def test_each_candidate_is_a_line_with_all_that_a_release_needs(place: Path, tmp_path: Path) -> None:
    ran = swept(place, tmp_path / "run", "--span", "2", "--layers", "1,4", "--tasks", "1,2", "--json")
    forks = ["1-2", "2-3", "3-4", "1,4"]
    wanted = [(fork, count, "cpu") for count in (1, 2) for fork in forks]
    assert measured(tmp_path / "run") == wanted
    assert [each["layers"] for each in ran.document["results"][:4]] == [[1, 2], [2, 3], [3, 4], [1, 4]]
    lines = [json.loads(line) for line in (tmp_path / "run" / "results.jsonl").read_text().splitlines()]
    assert lines == ran.document["results"]
    for line in lines:
        assert line["samples"].keys() == {"base", "graph"}
        assert len(line["samples"]["base"]) == len(line["samples"]["graph"]) >= 2
        assert (
            0 < line["graph"]["p50"] <= line["graph"]["p95"] <= line["graph"]["p99"] <= line["graph"]["worst"]
        )
        assert line["graph"]["peak_rss_bytes"] > line["graph"]["engine_bytes"] > 0
        assert line["host"]["cores"]
        assert line["conditions"]["seconds"] > 0
    assert lines[0]["graph"]["engine_bytes"] > lines[0]["base"]["engine_bytes"]
    assert "[8/8] 1,4 x2 on cpu: " in ran.err
    assert "0 s left" in ran.err
    assert not list((tmp_path / "run" / "cache").iterdir())


def test_nothing_is_measured_twice_and_a_run_can_grow(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    run = tmp_path / "run"
    swept(place, run, "--layers", "4", "--keep")
    once = (run / "results.jsonl").read_bytes()
    graph = run / "cache" / "4_x1" / "graph.onnx"
    made = graph.stat().st_mtime_ns
    assert swept(place, run, "--layers", "4", "--keep").status == 0
    assert (run / "results.jsonl").read_bytes() == once
    grown = swept(
        place, run, "--layers", "4", "--layers", "2", "--target", "cpu", "--target", "openvino-cpu", "--keep"
    )
    assert grown.status == 0, grown.err
    assert (run / "results.jsonl").read_bytes().startswith(once)
    assert measured(run) == [(fork, 1, target) for fork in ("4", "2") for target in ("cpu", "openvino-cpu")]
    assert graph.stat().st_mtime_ns == made, "the export was not taken from the cache"
    assert not (graph.parent / "program.pt2").exists(), "no target asked for what only torch reads"
    assert swept(place, run, "--layers", "4", "--target", "torch-cpu", "--keep").status == 0
    assert (graph.parent / "program.pt2").exists()
    assert swept(place, run, "--layers", "4").status == 0
    assert not list((run / "cache").iterdir()), "without --keep the cache holds only what is still needed"


def test_a_run_in_use_is_refused(place: Path, tmp_path: Path) -> None:
    swept(place, tmp_path / "run", "--layers", "4")
    with filelock.FileLock(tmp_path / "run" / "lock"):
        ran = swept(place, tmp_path / "run", "--layers", "3")
    assert ran.status == 2
    assert "is in use by another process" in ran.err
    assert len(measured(tmp_path / "run")) == 1


def test_what_was_measured_differently_is_never_mixed(place: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    swept(place, run, "--layers", "4")
    before = (run / "results.jsonl").read_bytes()
    for arguments, told in (
        (["--precision", "0.5"], "protocol was"),
        (["--merge", "never"], "build was"),
        (["--hot"], "inputs was fresh, is hot"),
        (["--weights", "random"], "weights was"),
    ):
        ran = swept(place, run, "--layers", "3", *arguments)
        assert ran.status == 2
        assert told in ran.err
    description = json.loads((run / "run.json").read_text())
    description["host"]["libraries"]["onnxruntime"] = "0.1"
    (run / "run.json").write_text(json.dumps(description))
    ran = swept(place, run, "--layers", "3")
    assert ran.status == 2
    assert "onnxruntime 0.1 / " in ran.err
    assert (run / "results.jsonl").read_bytes() == before


def test_a_folder_with_other_things_is_left_alone(place: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    ran = swept(place, tmp_path, "--layers", "4")
    assert ran.status == 2
    assert "holds other things" in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    assert "is a file" in swept(place, tmp_path / "thesis.tex", "--layers", "4").err


def test_a_candidate_that_fails_does_not_stop_the_others_and_is_tried_again(
    place: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    swept(place, run, "--layers", "1")
    spoilt = run / "cache" / "2_x1" / "manifest.json"
    spoilt.parent.mkdir(parents=True)
    spoilt.write_text("{")
    ran = swept(place, run, "--span", "1")
    assert ran.status == 1
    assert "1 of 4 failed: 2 x1 on cpu" in ran.err
    assert [fork for fork, *_ in measured(run)] == ["1", "3", "4"]
    assert swept(place, run, "--span", "1").status == 0
    assert [fork for fork, *_ in measured(run)] == ["1", "3", "4", "2"]


def test_bad_spans_forks_and_counts_are_refused_before_anything_is_made(place: Path, tmp_path: Path) -> None:
    for arguments in (["--span", "0"], ["--span", "3-2"], ["--span", "5"], ["--span", "x"], ["--layers", "9"],
                      ["--tasks", "0"], ["--tasks", "1,,2"], ["--tasks", "many"], ["--target", "abacus"]):  # fmt: skip
        ran = swept(place, tmp_path / "run", *arguments)
        assert ran.status == 2, arguments
        assert len(ran.err.splitlines()) <= 3
        assert not (tmp_path / "run").exists()


def test_two_runs_are_compared(place: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        swept(place, tmp_path / name, "--layers", "1-4")
    ran = cli("bench", "--compare", tmp_path / "a", tmp_path / "b")
    assert ran.status == 0, ran.err
    assert ran.row("1-4")[1:3] == ["1", "cpu"]
    (change,) = cli("bench", "--compare", tmp_path / "a", tmp_path / "b", "--json").document["changes"]
    assert change["verdict"] in ("slower", "faster", "no difference shown")
    shown = cli("results", tmp_path / "a", "--format", "csv")
    assert shown.out.splitlines()[0].startswith("model,layers,tasks,")
    assert cli("results", tmp_path / "a", tmp_path / "b", "--format", "markdown").out.count("| 1-4 |") == 2


def sweep_tiny(place: Path, run: Path, begun: Connection) -> None:
    """What the processes do that are killed."""
    backbone = trace(load_model(f"{place}/net.py:Net", str(place / "base.pt")))
    options = SweepOptions(protocol=Protocol(seconds=0.2))
    sweep(backbone, candidates(4, (1, 3)), [load_target("cpu")], run, options, told=begun.send)


def killed(context: Any, *arguments: Path, after: Callable[[Connection], None]) -> None:
    here, there = context.Pipe()
    process = context.Process(target=sweep_tiny, args=(*arguments, there))
    process.start()
    there.close()
    with contextlib.suppress(EOFError):  # it found nothing left to do
        here.recv()  # it has begun on a candidate
        after(here)
    process.kill()
    process.join()


def test_killed_at_any_moment_twenty_times_it_ends_as_if_never_interrupted(
    place: Path, tmp_path: Path
) -> None:
    run, moments, seen = tmp_path / "run", random.Random(0), []
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "subtune_deploy.sweep", "subtune_deploy.models"])
    start = time.monotonic()
    killed(context, place, run, after=lambda told: told.recv())  # one candidate is done
    one = time.monotonic() - start
    for _ in range(KILLS):
        killed(context, place, run, after=lambda _: time.sleep(moments.uniform(0, one)))
        lines = (run / "results.jsonl").read_bytes().split(b"\n")
        assert all(json.loads(line) for line in lines[:-1])
        assert lines[: len(seen)] == seen, "a finished line was lost or changed"
        seen = lines[:-1]
    last = context.Process(target=sweep_tiny, args=(place, run, context.Pipe()[1]))
    last.start()
    last.join()
    assert last.exitcode == 0
    found = measured(run)
    assert found == [(format_layers(each.layers), 1, "cpu") for each in candidates(4, (1, 3))]
    assert len(found) == 4 + 3 + 2
    assert (run / "results.jsonl").read_bytes().endswith(b"}\n")
    assert {path.name for path in run.iterdir()} <= {"run.json", "results.jsonl", "cache", "lock"}
    assert not list((run / "cache").iterdir())
