"""Sweeps: every candidate once, in a fixed order, whatever interrupts them."""

from __future__ import annotations

import json
import random
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import filelock
import pytest
from tiny_cli import Ran, cli, write_network
from tiny_forks import CONTEXT, forked

from subtune_deploy.backbone import trace
from subtune_deploy.bundle import open_bundle
from subtune_deploy.costs import CandidateFork
from subtune_deploy.errors import InputError
from subtune_deploy.measure import Protocol
from subtune_deploy.models import load_model
from subtune_deploy.results import read_results
from subtune_deploy.spec import Pruning, format_layers
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
    assert candidates(3, forks=[(2,)]) == (Candidate.alike((2,)),)
    assert len(candidates(16, (1, 3))) == 16 + 15 + 14


def test_candidates_come_whole_or_pruned_as_asked() -> None:
    found = candidates(3, (1, 1), [], (1, 2), (None, Pruning(0.5), Pruning(0.25, "global")))
    ways = ["", " pruned 0.5 local l1", " pruned 0.25 global l1"]
    assert [str(each) for each in found] == [
        f"{n} x{k}{way}" for k in (1, 2) for n in (1, 2, 3) for way in ways
    ]
    assert candidates(3, (1, 1), prunings=[Pruning(0.5)])[1] == Candidate.alike((2,), 1, Pruning(0.5))


def test_a_graph_may_have_unlike_forks_but_is_thinned_in_one_way() -> None:
    thin = Pruning(0.5)
    found = Candidate((CandidateFork((2,), thin, 10), CandidateFork((2,), thin, 10), CandidateFork(())))
    assert (found.layers, found.tasks, found.prune) == ((2,), 3, thin)
    assert str(found) == "2 x2 pruned 0.5 local l1 of 10 classes + none x1"
    with pytest.raises(InputError, match="cannot be measured in one graph"):
        Candidate((CandidateFork((2,), thin), CandidateFork((3,))))


def test_unlike_forks_are_measured_in_one_graph_and_never_twice(place: Path, tmp_path: Path) -> None:
    backbone = trace(load_model(f"{place}/net.py:Net", str(place / "base.pt")))
    thin = Pruning(0.5, round_to=1)
    forks = CandidateFork((3, 4), thin, 3), CandidateFork(()), CandidateFork((4,), thin)
    options, run = SweepOptions(protocol=Protocol(seconds=0.2)), tmp_path / "run"
    (found,) = sweep(backbone, [Candidate(forks)], [load_target("cpu")], run, options)
    assert found.forks == {"task1": (), "task2": (3, 4), "task3": (4,)}
    assert found.classes == {"task1": 5, "task2": 3, "task3": 5}
    assert found.prune == thin
    (again,) = sweep(backbone, [Candidate(forks[::-1])], [load_target("cpu")], run, options)
    assert again.started == found.started
    assert len(read_results(run)) == 1
    assert "loads" not in json.loads((run / "run.json").read_text())["protocol"], (
        "as in older runs, which go on"
    )


def test_many_unlike_forks_have_a_folder_all_the_same(place: Path, tmp_path: Path) -> None:
    backbone = trace(load_model(f"{place}/net.py:Net", str(place / "base.pt")))
    many = Candidate(tuple(CandidateFork((4,), None, classes) for classes in range(2, 14)))
    options = SweepOptions(protocol=Protocol(seconds=0.2), keep=True)
    sweep(backbone, [many], [load_target("cpu")], tmp_path / "run", options)
    (folder,) = (tmp_path / "run" / "bundles").iterdir()
    assert len(folder.name) < 150


def test_pruned_forks_are_measured_beside_whole_ones_and_never_twice(place: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert swept(place, run, "--layers", "3-4", "--keep").status == 0
    pruned = ("--layers", "3-4", "--prune", "0.5", "--prune", "0.75", "--prune-round-to", "1", "--keep")
    ran = swept(place, run, *pruned)
    assert ran.status == 0, ran.err
    once = (run / "results.jsonl").read_bytes()
    assert swept(place, run, *pruned).status == 0
    assert (run / "results.jsonl").read_bytes() == once
    found = read_results(run)
    assert [each.prune for each in found] == [None, *(Pruning(ratio, round_to=1) for ratio in (0.5, 0.75))]
    assert [each.fork for each in found][1] == "3-4 pruned 0.5 local l1 rounded to 1"
    assert {each.forked for each in found} == {"3-4"}
    sizes = [each.graph.engine_bytes for each in found]
    assert sizes[0] > sizes[1] > sizes[2]
    assert "3-4 pruned 0.75 local l1 rounded to 1" in ran.out
    shown = cli("results", run, "--format", "csv").out.splitlines()
    assert [line.split(",")[1:4] for line in shown[2:]] == [
        ["3-4", "1", "pruned 0.5 local l1 rounded to 1"], ["3-4", "1", "pruned 0.75 local l1 rounded to 1"]
    ]  # fmt: skip
    (measured,) = open_bundle(run / "bundles" / "3-4_x1_pruned_0.5_local_l1_rounded_to_1").manifest.tasks[1:]
    assert measured.prune == Pruning(0.5, round_to=1)


def test_heads_of_other_classes_are_candidates_of_their_own(place: Path, tmp_path: Path) -> None:
    """The base has 5 classes: to ask for these is to ask for nothing new."""
    run = tmp_path / "run"
    for asked in ((), ("--classes", "5"), ("--classes", "40"), ("--classes", "40")):
        ran = swept(place, run, "--layers", "3-4", "--keep", *asked)
        assert ran.status == 0, ran.err
    found = read_results(run)
    assert [each.classes for each in found] == [{"task1": 5}, {"task1": 40}]
    (task,) = open_bundle(run / "bundles" / "3-4_x1_of_40_classes").manifest.tasks[1:]
    assert task.classes == 40
    assert (
        found[1].graph.engine_bytes - found[0].graph.engine_bytes >= 35 * 9 * 4
    )  # of 8 features and the bias


def test_a_fork_that_cannot_be_pruned_is_told_and_the_others_are_kept(place: Path, tmp_path: Path) -> None:
    ran = swept(place, tmp_path / "run", "--layers", "4", "--prune", "0.05", "--prune", "0.5",
                "--prune-round-to", "1")  # fmt: skip
    assert ran.status == 1
    assert "1 of 2 failed: 4 x1 pruned 0.05" in ran.err
    assert "removes nothing from block 4 (blocks.3)" in ran.err
    assert [each.prune for each in read_results(tmp_path / "run")] == [Pruning(0.5, round_to=1)]


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
    graph = run / "bundles" / "4_x1" / "graph.onnx"
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
    assert swept(place, run, "--layers", "4", "--layers", "3").status == 0
    assert graph.exists(), "what was kept stays"
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
    (run / "bundles").mkdir()
    in_the_way = run / "bundles" / "2_x1"
    in_the_way.write_text("a file where a bundle is to be built")
    ran = swept(place, run, "--span", "1")
    assert ran.status == 1
    assert "1 of 4 failed: 2 x1 on cpu" in ran.err
    assert [fork for fork, *_ in measured(run)] == ["1", "3", "4"]
    in_the_way.unlink()
    assert swept(place, run, "--span", "1").status == 0
    assert [fork for fork, *_ in measured(run)] == ["1", "3", "4", "2"]


def test_a_spoilt_bundle_in_the_cache_is_built_again(place: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    swept(place, run, "--layers", "1")
    spoilt = run / "cache" / "2_x1" / "manifest.json"
    spoilt.parent.mkdir(parents=True)
    spoilt.write_text("{")
    assert swept(place, run, "--layers", "2").status == 0
    assert [fork for fork, *_ in measured(run)] == ["1", "2"]


def test_a_target_given_twice_is_measured_once_and_two_of_one_name_are_refused(
    place: Path, tmp_path: Path
) -> None:
    assert swept(place, tmp_path / "run", "--layers", "4", "--target", "cpu", "--target", "cpu").status == 0
    assert measured(tmp_path / "run") == [("4", 1, "cpu")]
    (tmp_path / "mine.toml").write_text(
        'name = "cpu"\nbackend = "onnxruntime"\nprecision = "fp32"\ndescription = ""\n'
    )
    ran = swept(
        place, tmp_path / "run", "--layers", "4", "--target", "cpu", "--target", tmp_path / "mine.toml"
    )
    assert ran.status == 2
    assert "two recipes are named 'cpu'" in ran.err


def test_bad_spans_forks_and_counts_are_refused_before_anything_is_made(place: Path, tmp_path: Path) -> None:
    bad = ("--span 0", "--span 3-2", "--span 5", "--span x", "--layers 9", "--tasks 0", "--tasks 1,,2", "--tasks many",
           "--tasks ²", "--target abacus", "--target cpu-int8", "--prune 1", "--prune-norm l2",
           "--prune 0.5 --prune-norm l3", "--protocol paper --seconds 5")  # fmt: skip
    for arguments in bad:
        ran = swept(place, tmp_path / "run", *arguments.split())
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


FORKS = candidates(4, (1, 3), [(1, 3), (1, 4), (2, 4)], (1, 2))


def sweep_tiny(place: Path, run: Path, told: Connection) -> None:
    """What the processes do that are killed."""
    backbone = trace(load_model(f"{place}/net.py:Net", str(place / "base.pt")))
    options = SweepOptions(protocol=Protocol(seconds=0.2))
    sweep(backbone, FORKS, [load_target("cpu")], run, options, told=lambda step: told.send(step.done))


def test_killed_at_any_moment_twenty_times_it_ends_as_if_never_interrupted(
    place: Path, tmp_path: Path
) -> None:
    run, moments, seen = tmp_path / "run", random.Random(0), []

    def started() -> tuple[Any, Connection]:
        here, there = CONTEXT.Pipe()
        return forked(sweep_tiny, place, run, there), here

    process, told = started()
    for _ in range(3):  # one candidate begins and ends, the next begins
        told.recv()
    start = time.monotonic()
    told.recv()
    one = time.monotonic() - start
    process.kill()
    process.join()
    for kill in range(KILLS):
        process, told = started()
        if kill % 4:  # every fourth is killed while it starts
            told.recv()
        time.sleep(moments.uniform(0, one))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "it had nothing left to do"
        lines = (run / "results.jsonl").read_bytes().split(b"\n")
        assert all(json.loads(line) for line in lines[:-1])
        assert lines[: len(seen)] == seen, "a finished line was lost or changed"
        seen = lines[:-1]
    process, told = started()
    process.join()
    assert process.exitcode == 0
    found = measured(run)
    assert found == [(format_layers(each.layers), each.tasks, "cpu") for each in FORKS]
    assert len(found) == 2 * (4 + 3 + 2 + 3)
    assert (run / "results.jsonl").read_bytes().endswith(b"}\n")
    assert {path.name for path in run.iterdir()} <= {"run.json", "results.jsonl", "cache", "lock"}
    assert not list((run / "cache").iterdir())


def test_a_process_killed_before_the_run_was_described_leaves_a_folder_that_can_be_used(
    place: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "lock").touch()
    (run / ".subtune-tmp-1-0123abcd").write_text('{"schema"')
    assert swept(place, run, "--layers", "4").status == 0
    assert {path.name for path in run.iterdir()} == {"run.json", "results.jsonl", "cache", "lock"}


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"schema": 1}', '{"schema": 1, "host": [], "targets": {}}', '{"schema": 9}']
)
def test_a_description_that_cannot_be_understood_is_told(place: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    ran = swept(place, tmp_path, "--layers", "4")
    assert ran.status == 2
    assert "hint: give another folder" in ran.err
