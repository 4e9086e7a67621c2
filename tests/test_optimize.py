"""From pictures to an engine in one call: real training, timing and builds of a small network."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_cli import Ran, cli, write_network
from tiny_studies import QUICK as QUICK_STUDY
from tiny_studies import study

from subtune_deploy import optimize
from subtune_deploy.bundle import open_bundle
from subtune_deploy.documents import read_document
from subtune_deploy.errors import CheckFailed
from subtune_deploy.executors import Here
from subtune_deploy.goal import Goal, Optimized
from subtune_deploy.latency_model import LatencyModel
from subtune_deploy.optimize import Listener, _Journal, _Trainer, _tuned
from subtune_deploy.runtime import Bundle
from subtune_deploy.stats import Interval
from subtune_deploy.tuning.documents import read_profile
from subtune_deploy.tuning.settings import Fork
from subtune_deploy.tuning.trials import read_trials

QUICK = ("--span", "1-2", "--measurements", 2, "--seconds", 0.2, "--epochs", 1, "--batch-size", 8)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("optimize")
    write_network(folder)
    rng, labels = np.random.default_rng(0), np.arange(48) % 2
    images = (rng.random((48, 32, 32, 3)) * 60 + 150 * labels[:, None, None, None]).astype(np.uint8)
    np.savez(folder / "pictures.npz", images=images, labels=labels)
    return folder


def optimized(place: Path, out: Path, *arguments: object) -> Ran:
    network = ("--model", f"{place}/net.py:Net", "--weights", place / "base.pt")
    return cli("optimize", *network, "--data", place / "pictures.npz", *QUICK, "-o", out, *arguments)


@pytest.fixture(scope="module")
def done(place: Path) -> tuple[Path, Ran]:
    out = place / "done"
    return out, optimized(place, out, "--max-added", "400%", "--name", "bright")


def test_a_task_is_deployed_that_keeps_the_goal(done: tuple[Path, Ran]) -> None:
    out, ran = done
    assert ran.status == 0, ran.err
    found = read_document(Optimized, out / "optimize.json")
    assert found.goal == Goal(max_added=4.0)
    assert (found.candidates, found.measured) == (
        7,
        len(read_document(LatencyModel, out / "calibration.json").anchors),
    )
    assert {entry.stage for entry in found.decisions} == {"cost", "accuracy", "choice", "tuning", "build"}
    assert found.decisions == tuple(sorted(found.decisions, key=lambda entry: entry.seconds))
    best = max(row.accuracy for row in read_profile(out / "profile.json").rows if row.layers)
    chosen = next(row for row in read_profile(out / "profile.json").rows if row.fork == found.fork)
    assert chosen.accuracy == best
    manifest = open_bundle(out / found.bundle).manifest
    assert [task.name for task in manifest.tasks] == ["base", "bright"]
    assert list(manifest.engines) == ["cpu"]
    assert f"fork: {found.fork}" in ran.out
    assert "of 7 forks" in ran.out
    for entry in found.decisions:
        assert entry.told in ran.err
    answers = Bundle.open(out / found.bundle).run(np.zeros((1, 3, 32, 32), np.float32))
    assert answers["bright"].shape == (1, 2)
    assert (out / "bright.safetensors").is_file()
    page = (out / "report.html").read_text()
    assert '"title":"Decided"' in page
    assert all(json.dumps(entry.told)[1:-1] in page for entry in found.decisions if "<" not in entry.told)
    assert '"status":"measured"' in page
    assert '"status":"predicted"' in page
    assert not list(out.glob("*.partial"))


def test_the_same_command_measures_and_trains_nothing_again(place: Path, done: tuple[Path, Ran]) -> None:
    out, first = done
    trials, anchors = len(read_trials(out / "profile.run")), (out / "calibration.json").read_bytes()
    again = optimized(place, out, "--max-added", "400%", "--name", "bright")
    assert again.status == 0, again.err
    assert len(read_trials(out / "profile.run")) == trials
    assert (out / "calibration.json").read_bytes() == anchors
    assert again.out.splitlines()[:2] == first.out.splitlines()[:2]  # fork and accuracy


def test_forks_that_no_minute_is_left_for_are_told(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimize, "TRAINING", 0.0)  # however fast this machine is
    recipe = tmp_path / "board.toml"
    recipe.write_text(
        'name = "board"\nbackend = "onnxruntime"\nprecision = "fp32"\ndescription = ""\nwidth_multiple = 4\n'
    )
    ran = optimized(place, tmp_path / "short", "--minutes", 0.1, "--prune", 0.1, "--target", recipe, "--json")
    document = ran.document
    told = " ".join(entry["told"] for entry in document["decisions"])
    assert "more did not fit into 0% of 0.1 min" in told
    assert document["trained"] < 8
    assert "left out, since so much cannot be pruned there: 1 x1 pruned 0.1 local l1 rounded to 4" in told
    assert document["candidates"] == 7
    assert document["goal"] == {"max_added": None, "min_accuracy": None, "tasks": 1}


def test_what_was_answered_is_not_answered_otherwise_because_there_is_time_now(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once more with more minutes, it trains more."""
    out = tmp_path / "short"
    monkeypatch.setattr(optimize, "TRAINING", 0.0)
    first = optimized(place, out, "--json").document
    monkeypatch.setattr(optimize, "TRAINING", 0.6)
    second = optimized(place, out, "--json").document
    assert second["trained"] == first["trained"] < 8
    assert (second["fork"], second["accuracy"]) == (first["fork"], first["accuracy"])
    assert "forks had been measured: " in second["decisions"][0]["told"]
    assert optimized(place, out, "--json", "--minutes", 11).document["trained"] == 8


def dear(out: Path, folder: Path) -> Path:
    """A calibration in which every fork was measured to add half of the base, and the head alone too."""
    document = json.loads((out / "calibration.json").read_text())
    runs = [list(range(first, first + n)) for n in (1, 2, 3) for first in range(1, 6 - n)]
    ratio = {"value": 1.5, "low": 1.499, "high": 1.501}
    anchors = [document["anchors"][0] | {"forks": [fork], "ratio": ratio} for fork in ([], *runs)]
    folder.mkdir()
    (folder / "calibration.json").write_text(json.dumps(document | {"anchors": anchors}))
    return folder


def test_bad_input_is_one_line(place: Path, tmp_path: Path, done: tuple[Path, Ran]) -> None:
    for out, arguments, says in (
        (dear(done[0], tmp_path / "dear"), ("--max-added", "0.1%"), "at most 0.1%"),
        (done[0], ("--target", "openvino-cpu"), "is of target cpu"),
        (tmp_path / "no", ("--max-added", "many"), "'many' is no percentage"),
        (tmp_path / "no", ("--span", "9"), "does not fit 4 blocks"),
        (tmp_path / "no", ("--name", "base"), "base"),
        (tmp_path / "no", ("--executor", "processes:1", "--gpus", "1"), "cannot give 1 GPUs"),
    ):
        ran = optimized(place, out, *arguments)
        assert (ran.status, ran.out) == (2, "")
        assert says in ran.err.splitlines()[-2]
    assert not (tmp_path / "no").exists()
    other = json.loads((done[0] / "calibration.json").read_text())
    (tmp_path / "moved").mkdir()
    host = other["host"] | {"cpu": "another CPU"}
    (tmp_path / "moved" / "calibration.json").write_text(json.dumps(other | {"host": host}))
    ran = optimized(place, tmp_path / "moved")
    assert (ran.status, "another host" in ran.err) == (2, True)


@pytest.mark.parametrize(
    "goal, told, rule",
    [
        (Goal(), "no limit", "the knee of these"),
        (Goal(0.1), "10.0% of added latency", "the most accurate that keeps 10.0% of added latency"),
        (Goal(min_accuracy=0.9), "an accuracy of 90.0%", "the cheapest that keeps an accuracy of 90.0%"),
        (Goal(0.1, 0.9), "10.0% of added latency and an accuracy of 90.0%", "the most accurate that keeps"),
    ],
)
def test_goals_in_words(goal: Goal, told: str, rule: str) -> None:
    assert str(goal) == told
    assert goal.rule.startswith(rule)
    assert goal.allows(Interval(0.12, 0.09, 0.15))
    assert goal.allows(Interval(0.5, 0.4, 0.6)) == (goal.max_added is None)


def test_a_goal_that_is_missed_is_told() -> None:
    added = Interval(0.27, 0.26, 0.28)
    assert Goal(0.25, 0.92).missed(0.9, added) == (
        "it adds 27.0% of latency, 25.0% at most were asked for",
        "90.0% are right, 92.0% at least were asked for",
    )
    assert Goal(0.265, 0.9).missed(0.9, added) == ()  # as far as the interval shows
    assert Goal().missed(0.1, added) == ()


def full(*given: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_the_chosen_fork_is_not_trained_for_nothing_where_its_checkpoint_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = _Journal(1, Listener())
    with monkeypatch.context() as patch:
        patch.setattr(optimize, "write_state", full)
        with pytest.raises(OSError, match="No space"):
            _tuned(study(), Fork((2,)), "task", tmp_path, journal)
    assert [path.name for path in tmp_path.iterdir()] == ["task_2.partial"]
    _tuned(study(), Fork((3,)), "task", tmp_path, journal)  # which another goal may choose
    _tuned(study(), Fork((2,)), "task", tmp_path, journal)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"task.safetensors", "task_2.partial", "task_3.partial"}  # until an engine stands


def test_the_chosen_fork_is_not_trained_anew_where_the_build_was_interrupted(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a full disk, say. The same command goes on before the last epoch."""
    out, seen = tmp_path / "out", list[int]()
    asked = ("--max-added", "400%", "--name", "bright", "--epochs", 2)
    with monkeypatch.context() as patch:
        patch.setattr(optimize, "compile_bundle", full)
        assert "No space left" in optimized(place, out, *asked).err
    (partial,) = out.glob("bright_*.partial")
    written = partial.stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(optimize, "forget", lambda file: seen.append(file.stat().st_mtime_ns))
        again = optimized(place, out, *asked)
    assert again.status == 0, again.err
    assert seen == [written]  # trained anew it would have been written anew


def test_a_fork_that_diverges_is_left_out_and_the_others_are_trained(tmp_path: Path) -> None:
    """Of three forks the blocks learn too fast; the head alone has a rate of its own."""
    trainer = _Trainer(study(replace(QUICK_STUDY, lr=1e30)), None, "", tmp_path / "run", Here(), Listener())
    found = trainer([Fork(()), Fork((2,)), Fork((3,))])
    assert [row.fork for row in found.rows] == ["none"]
    assert list(trainer.failed) == [Fork((2,)), Fork((3,))]
    assert all("diverged" in reason for reason in trainer.failed.values())
    known = len(read_trials(tmp_path / "run"))
    assert [row.fork for row in trainer([Fork(()), Fork((2,))]).rows] == ["none"]
    assert len(read_trials(tmp_path / "run")) == known  # none is tried again


def test_without_the_head_alone_there_is_nothing_to_compare_with(tmp_path: Path) -> None:
    wild = study(replace(QUICK_STUDY, probe_lr=1e30))
    trainer = _Trainer(wild, None, "", tmp_path / "run", Here(), Listener())
    with pytest.raises(CheckFailed, match=r"the head alone could not be trained: .*diverged"):
        trainer([Fork(()), Fork((2,))])
