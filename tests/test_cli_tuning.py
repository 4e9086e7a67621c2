"""tune, profile, greedy and active, on a network and pictures small enough that each takes a second or two."""

from __future__ import annotations

import json
import shutil
import socket
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from tiny_cli import Ran, cli, write_calibration, write_network
from tiny_results import result

from subtune_deploy import checkpoint
from subtune_deploy.documents import read_document
from subtune_deploy.errors import CheckpointError
from subtune_deploy.lines import read_lines
from subtune_deploy.results import append_result
from subtune_deploy.tuning.documents import Active, Greedy, Profile, read_profile
from subtune_deploy.tuning.trials import read_trials

QUICK = ("--epochs", 2, "--batch-size", 8, "--lr", 0.01)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """net.py, base.pt, and `shades`: twelve dark and twelve light pictures."""
    folder = tmp_path_factory.mktemp("place")
    write_network(folder)
    random = np.random.default_rng(0)
    for label, value in (("dark", 60), ("light", 190)):
        (folder / "shades" / label).mkdir(parents=True)
        for index in range(12):
            pixels = value + random.integers(-50, 50, (32, 32, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "shades" / label / f"{index:02}.png")
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def network(place: Path) -> tuple[object, ...]:
    return "--model", f"{place}/net.py:Net", "--weights", place / "base.pt"


def learn(place: Path, command: str, *arguments: object, data: object = None) -> Ran:
    return cli(command, *network(place), "--data", data or place / "shades", *QUICK, *arguments)


# profile


def test_a_profile_is_a_table_a_document_a_picture_and_a_folder_to_go_on_from(
    place: Path, here: Path
) -> None:
    arguments = ("--span", "1-2", "--layers", "none", "--layers", "all", "--seeds", 2, "-o", "found")
    ran = learn(place, "profile", *arguments)
    assert ran.status == 0, ran.err
    found = read_profile(here / "found.json")
    forks = ["none", "all", "1", "2", "3", "4", "1-2", "2-3", "3-4"]
    assert [row.fork for row in found.rows] == forks
    assert (found.seeds, found.data["source"]) == ((0, 1), str(place / "shades"))
    assert ran.row("2-3")[1:3] == [f"{found.rows[7].accuracy:.1%}", f"{found.rows[7].std:.1%}"]
    assert ran.out.splitlines()[-1].startswith("best: ")
    assert (here / "found.svg").read_text().startswith("<?xml")
    assert len(read_trials(here / "found.run")) == 18
    assert {path.name for path in here.iterdir()} == {"found.json", "found.svg", "found.run"}
    again = learn(place, "profile", *arguments, "--json")
    assert again.document == json.loads((here / "found.json").read_text())
    assert "[" not in again.err.partition("document:")[0].partition("trial")[2]
    assert len(read_trials(here / "found.run")) == 18


def test_without_a_list_a_profile_is_of_single_blocks_and_the_ending_chooses_the_picture(
    place: Path, here: Path
) -> None:
    ran = learn(place, "profile", "--seeds", 1, "--examples", 6, "-o", "a.png")
    assert ran.status == 0, ran.err
    assert [row.fork for row in read_profile(here / "a.json").rows] == ["1", "2", "3", "4"]
    assert read_profile(here / "a.json").examples == 6
    with Image.open(here / "a.png") as picture:
        assert picture.format == "PNG"


def test_pairs_siamese_heads_and_blocks_begun_anew(place: Path, here: Path) -> None:
    ran = learn(
        place, "profile", "--pairs", "--siamese", "--scratch", "--seeds", 1, "--epochs", 1, "-o", "a.json"
    )
    assert ran.status == 0, ran.err
    forks = [row.fork for row in read_profile(here / "a.json").rows]
    assert forks[:6] == ["1-2", "1,3", "1,4", "2-3", "2,4", "3-4"]
    assert forks[6:8] == ["1-2 siamese", "1,3 siamese"]
    assert forks[-1] == "3-4 from scratch"
    assert "best: " in (here / "a.svg").read_text()


@pytest.mark.skipif(find_spec("torch_pruning") is None, reason="torch-pruning is not installed")
def test_pruned_forks_beside_the_full_one(place: Path, here: Path) -> None:
    words = (
        "--layers",
        "2-3",
        "--prune",
        0.25,
        "--prune",
        0.5,
        "--prune-round-to",
        1,
        "--seeds",
        1,
        "-o",
        "a",
    )
    ran = learn(place, "profile", *words)
    assert ran.status == 0, ran.err
    rows = read_profile(here / "a.json").rows
    assert [row.prune and row.prune.ratio for row in rows] == [None, 0.25, 0.5]
    assert rows[0].parameters > rows[1].parameters > rows[2].parameters
    assert "local, L1" in (here / "a.svg").read_text()


@pytest.mark.skipif(find_spec("torch_pruning") is None, reason="torch-pruning is not installed")
def test_every_block_thinned_is_drawn_beside_itself_unthinned(place: Path, here: Path) -> None:
    ran = learn(place, "profile", "--prune", 0.5, "--prune-round-to", 1, "--seeds", 1, "-o", "a")
    assert ran.status == 0, ran.err
    assert len(read_profile(here / "a.json").rows) == 8
    picture = (here / "a.svg").read_text()
    assert all(
        f"<!-- {word} -->" in picture
        for word in ("SubTuning", "pruned 0.5 local l1 rounded to 1", "tuned block")
    )


@pytest.mark.skipif(find_spec("torch_pruning") is None, reason="torch-pruning is not installed")
def test_forks_that_cannot_be_pruned_are_left_out_aloud(place: Path, here: Path) -> None:
    """Of eight channels none can go where multiples of eight stay."""
    words = ("--span", "3-4", "--prune", 0.5, "--seeds", 1)
    ran = learn(place, "profile", *words, "-o", "a")
    assert ran.status == 0, ran.err
    left_out = [line for line in ran.err.splitlines() if line.startswith("left out: ")]
    assert [line.split(": ")[1] for line in left_out] == [
        f"{fork} pruned 0.5 local l1" for fork in ("1-3", "2-4", "1-4")
    ]
    assert all("removes nothing from blocks" in line for line in left_out)
    assert "3 forks, 1 seeds" in ran.err
    assert [row.fork for row in read_profile(here / "a.json").rows] == ["1-3", "2-4", "1-4"]
    named = learn(place, "profile", *words, "--layers", "2-4", "-o", "b")
    assert (named.status, named.out) == (2, "")
    assert "removes nothing from blocks 2-4" in named.err.splitlines()[-2]
    assert not (here / "b.run").exists()


def test_a_profile_without_those_that_diverge_is_written_and_its_command_fails(
    place: Path, here: Path
) -> None:
    ran = learn(place, "profile", "--layers", "none", "--layers", 2, "--seeds", 1, "--lr", 1e30, "-o", "a")
    assert ran.status == 1
    assert [row.fork for row in read_profile(here / "a.json").rows] == ["none"]
    assert ran.row("none")
    assert "left out: 2: training diverged in epoch 1" in ran.err
    error, hint = ran.err.splitlines()[-2:]
    assert error == "error: 1 forks could not be trained: 2"
    assert "--lr" in hint
    assert "--batch-size" in hint


def test_two_processes_find_what_one_does(place: Path, here: Path) -> None:
    for name, where in (("one", "here"), ("two", "processes:2")):
        ran = learn(place, "profile", "--seeds", 1, "--executor", where, "--cpus", 1, "-o", name)
        assert ran.status == 0, ran.err
    one, two = (read_profile(here / f"{name}.json") for name in ("one", "two"))
    for mine, other in zip(one.rows, two.rows, strict=True):
        assert mine.accuracy == pytest.approx(other.accuracy)


def test_without_matplotlib_the_numbers_are_kept(
    place: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    ran = learn(place, "profile", "--layers", 2, "--seeds", 1, "-o", "a")
    assert ran.status == 0
    assert "no picture: pictures need matplotlib, which is not installed; pip install" in ran.err
    assert (here / "a.json").is_file()
    assert not (here / "a.svg").exists()


def test_a_list_says_which_pictures_are_trained_on(place: Path, here: Path) -> None:
    (here / "some.txt").write_text("0 1 2 12 13 14")
    ran = learn(place, "profile", "--layers", 4, "--seeds", 1, "--train", "some.txt", "-o", "a")
    assert ran.status == 0, ran.err
    assert (read_profile(here / "a.json").data["train"], read_profile(here / "a.json").data["test"]) == (
        6,
        18,
    )


# greedy


def test_greedy_tells_its_rounds_and_the_fork_that_it_chose(place: Path, here: Path) -> None:
    ran = learn(place, "greedy", "--folds", 3, "--eps", 0, "--seeds", 2, "-o", "g")
    assert ran.status == 0, ran.err
    found = read_document(Greedy, here / "g.json")
    assert ran.row("1")[1:4] == ["4", "0", str(found.rounds[0].best)]
    assert f"chosen in this order: {', '.join(map(str, found.order))}; fork " in ran.out
    assert "the head alone, in the same cross-validation: " in ran.out
    assert "of 4 test pictures" in ran.out
    assert "round 1" in (here / "g.svg").read_text()
    assert learn(
        place, "greedy", "--folds", 3, "--eps", 0, "--seeds", 2, "-o", "g", "--json"
    ).document == json.loads((here / "g.json").read_text())


@pytest.fixture
def sweep(place: Path, tmp_path: Path) -> Path:
    """Latencies of the single blocks of this network: 40, 30, 20, 10 %."""
    path = tmp_path / "results.jsonl"
    for layer in (1, 2, 3, 4):
        found = result(0.5 - 0.1 * layer, layers=(layer,), input_shape=(3, 32, 32))
        append_result(path, replace(found, model=f"{place}/net.py:Net", forks={"task1": (layer,)}))
    return path


def test_greedy_keeps_to_a_latency_that_a_sweep_measured(place: Path, here: Path, sweep: Path) -> None:
    words = ("--latency", sweep, "--max-added", "25%", "--folds", 2, "--eps", 0, "--seeds", 1, "-o", "g")
    ran = learn(place, "greedy", *words)
    assert ran.status == 0, ran.err
    found = read_document(Greedy, here / "g.json")
    assert set(found.order) <= {3, 4}
    assert [left.layer for left in found.rounds[0].left_out] == [1, 2]
    assert ran.row("1")[1:3] == ["2", "2"]
    assert "added latency: " in ran.out


def test_greedy_keeps_to_a_latency_that_is_predicted(place: Path, here: Path) -> None:
    """Of a device on which block 1 adds 80 %, block 4 20 %: a stream takes 20 % in each block that it runs through."""
    found = write_calibration(place, here / "found.json", fixed=0)
    words = ("--calibration", found, "--max-added", "50%", "--folds", 2, "--eps", 0, "--seeds", 1, "-o", "g")
    ran = learn(place, "greedy", *words)
    assert ran.status == 0, ran.err
    document = read_document(Greedy, here / "g.json")
    assert document.order
    assert set(document.order) <= {3, 4}
    first = document.rounds[0]
    assert [left.layer for left in first.left_out] == [1, 2]
    costs = {each.layer: each.cost for each in (*first.scores, *first.left_out)}
    assert all(each.predicted and not each.estimated for each in costs.values())
    assert [costs[layer].added for layer in (1, 2, 3, 4)] == pytest.approx([0.8, 0.6, 0.4, 0.2], abs=0.02)
    assert "as it is predicted" in ran.out


# active


def test_active_learning_as_a_table_of_its_schedule(place: Path, here: Path) -> None:
    ran = learn(
        place, "active", "--layers", 3, "--layers", "all", "--schedule", "6,12,500", "--seeds", 1, "--epochs", 1,
        "-o", "a",
    )  # fmt: skip
    assert ran.status == 0, ran.err
    found = read_document(Active, here / "a.json")
    assert found.schedule == (6, 12)
    assert ran.out.splitlines()[0].split() == ["fork", "chosen", "6", "12"]
    assert [line.split()[:3] for line in ran.out.splitlines()[1:5]] == [
        ["3", "by", "margin"], ["3", "at", "random"], ["all", "by", "margin"], ["all", "at", "random"],
    ]  # fmt: skip
    assert "block 3, by margin" in (here / "a.svg").read_text()


# tune


@pytest.mark.parametrize(
    "words, told, blocks",
    [
        (("--layers", "none"), "blocks none", set()),
        (("--layers", "2,4", "--siamese"), "blocks 2,4 siamese", {"1", "3"}),
        (("--layers", "3", "--init", "random"), "blocks 3 from scratch", {"2"}),
        (("--layers", "all"), "everything", {"0", "1", "2", "3"}),
    ],
)
def test_each_way_to_tune_leaves_a_checkpoint_of_what_differs(
    place: Path, here: Path, words: tuple[str, ...], told: str, blocks: set[str]
) -> None:
    ran = learn(place, "tune", *words, "-o", "task.safetensors")
    assert ran.status == 0, ran.err
    assert ran.out.startswith(f"task: {told}, ")
    with safe_open(here / "task.safetensors", framework="pt") as file:
        names = list(file.keys())
        assert {name.split(".")[1] for name in names if name.startswith("blocks")} == blocks
        assert file.get_tensor("fc.weight").shape == (2, 16 if "--siamese" in words else 8)
    assert {path.name for path in here.iterdir()} == {"task.safetensors"}


def test_a_training_whose_checkpoint_cannot_be_written_is_not_lost(
    place: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *others: object) -> None:
        raise CheckpointError(f"{path} cannot be written: no space left on device", "free some space")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_state", full)
        assert learn(place, "tune", "--layers", 3, "-o", "task.safetensors").status == 2
    assert {path.name for path in here.iterdir()} == {"task.safetensors.partial"}
    assert learn(place, "tune", "--layers", 3, "-o", "task.safetensors").status == 0
    assert {path.name for path in here.iterdir()} == {"task.safetensors"}


# Pictures that are not as they should be


def test_unreadable_pictures_among_good_ones_are_skipped_counted_and_named(place: Path, here: Path) -> None:
    shutil.copytree(place / "shades", here / "data")
    (here / "data" / "dark" / "99.png").write_bytes(b"no picture")
    ran = learn(place, "profile", "--layers", 2, "--seeds", 1, "-o", "a", data=here / "data")
    assert ran.status == 0
    (line,) = [line for line in ran.err.splitlines() if line.startswith("skipped: ")]
    assert "99.png" in line
    assert read_profile(here / "a.json").data["skipped"] == 1


COUNTED = """
import numpy as np
class Pictures(list):
    classes = 3
def make():
    return Pictures([(np.zeros((8, 8), np.uint8), index % 3) for index in range(12)])
"""


def make_data(folder: Path) -> None:
    """Data of every bad kind."""
    (folder / "empty").mkdir()
    for label in ("a", "b"):
        (folder / "broken" / label).mkdir(parents=True)
        (folder / "broken" / label / "1.png").write_bytes(b"no picture")
    (folder / "one" / "only").mkdir(parents=True)
    pixels = np.zeros((6, 8, 8, 3), np.uint8)
    labels = np.array([0, 1, 0, 1, 0, 1])
    split = {"x_test": pixels, "y_test": labels}
    np.savez(folder / "outside.npz", x_train=pixels, y_train=labels - 1, **split)
    np.savez(folder / "alike.npz", x_train=pixels, y_train=labels * 0, x_test=pixels, y_test=labels * 0)
    np.savez(folder / "huge.npz", images=pixels, labels=np.array([0, 1, 0, 1, 0, 1_000_000]))
    (folder / "mine.py").write_text(COUNTED)


PROFILE = "profile {n} --seeds 1 -o {h}/x"
GREEDY = "greedy {n} --seeds 1 --data {s} -o {h}/x"
ACTIVE = "active {n} --layers 1 --seeds 1 --data {s} -o {h}/x"

CASES = {
    "no pictures at all": (f"{PROFILE} --data {{h}}/empty", "0 class folders where at least 2", "class folders"),
    "one class": (f"{PROFILE} --data {{h}}/one", "1 class folders where at least 2", "class folders"),
    "one class in an archive": (f"{PROFILE} --data {{h}}/alike.npz", "class", ""),
    "no readable picture": (f"{PROFILE} --data {{h}}/broken", "readable pictures", "were skipped"),
    "a label out of range": (f"{PROFILE} --data {{h}}/outside.npz", "label", ""),
    "a label much larger than the others": (f"{PROFILE} --data {{h}}/huge.npz", "label 1000000 makes", "from 0 on"),
    "a data set of three classes without names": (f"{PROFILE} --data {{h}}/mine.py:make", "are 3", "a name for each"),
    "no such data": (f"{PROFILE} --data nowhere", "nowhere", ""),
    "an unknown corruption": (f"{PROFILE} --data {{s}} --corruption fgo:5", "fgo", "fog"),
    "a severity beyond five": (f"{PROFILE} --data {{s}} --corruption fog:6", "6", "5"),
    "more examples than there are": (f"{PROFILE} --data {{s}} --examples 900", "900 pictures are wanted", "ask for"),
    "one picture to train on": (f"{PROFILE} --data {{s}} --train 1", "'--train': 1 is not in the range", "--help"),
    "a list that is not there": (f"{PROFILE} --data {{s}} --train none.txt", "there is no file none.txt", "a number"),
    "a span beyond the blocks": (f"{PROFILE} --data {{s}} --span 5", "span '5' does not fit 4 blocks", "--span 1-3"),
    "blocks beyond the last": (f"{PROFILE} --data {{s}} --layers 5", "outside 1..4", "1 to 4"),
    "a ratio of one": (f"{PROFILE} --data {{s}} --layers 2 --prune 1.0", "not between 0 and 1", "0.5"),
    "a ratio below zero": (f"{PROFILE} --data {{s}} --layers 2 --prune -0.5", "not between 0 and 1", "0.5"),
    "a way to prune without a ratio": (f"{PROFILE} --data {{s}} --prune-norm l2", "goes with --prune", "0.5"),
    "tune with a ratio of two": (
        "tune {n} --data {s} --layers 2 --prune 2 -o {h}/x.pt", "not between 0 and 1", "0.5"
    ),
    "tune the head pruned": ("tune {n} --data {s} --layers none --prune 0.5 -o {h}/x.pt", "pruned", "--layers"),
    "a seed below zero": (f"{PROFILE} --data {{s}} --seed -1", "seed -1 is below 0", "0 or more"),
    "a rate that is none": (f"{PROFILE} --data {{s}} --lr 0", "learning rate is 0", "1e-3"),
    "an unknown executor": (f"{PROFILE} --data {{s}} --executor rya", "executor 'rya' is unknown", "processes:N"),
    "no processes": (f"{PROFILE} --data {{s}} --executor processes:0", "no number of processes", "processes:4"),
    "a place in no folder": ("profile {n} --data {s} -o {h}/none/x", "does not exist", "existing folder"),
    "folds larger than a class": (f"{GREEDY} --folds 11", "11 folds of data whose smallest class", "2 to"),
    "a parameter budget that nothing meets": (f"{GREEDY} --max-parameters 100", "no fork is within 100", "raise"),
    "a parameter budget of nothing": (f"{GREEDY} --max-parameters 0", "allows nothing", "above 0"),
    "a latency budget that nothing meets": (
        f"{GREEDY} --latency {{h}}/results.jsonl --max-added 5%", "the nearest, block 4,", "raise"
    ),
    "a limit without latencies": (f"{GREEDY} --max-added 5%", "one was given", "sweep's folder"),
    "a calibration without a limit": (f"{GREEDY} --calibration {{s}}", "one was given", "or neither"),
    "two kinds of latency": (
        f"{GREEDY} --latency {{s}} --calibration {{s}} --max-added 5%", "both of --latency and", "one of them"
    ),
    "no calibration": (f"{GREEDY} --calibration {{h}}/results.jsonl --max-added 5%", "results.jsonl", ""),
    "a limit that is no percentage": (
        f"{GREEDY} --latency {{h}}/results.jsonl --max-added 0.05", "is no percentage", "10%"
    ),
    "latencies of no sweep": (f"{GREEDY} --latency {{s}} --max-added 5%", "holds no results", "sweep"),
    "an eps below zero": (f"{GREEDY} --eps -1", "eps is -1", "0.001"),
    "a schedule of words": (f"{ACTIVE} --schedule few,many", "is no list of numbers", "100,500"),
    "a schedule that shrinks": (f"{ACTIVE} --schedule 9,5", "does not grow", "100,500"),
    "a pool that is too small": (f"{ACTIVE} --schedule 100", "the pool has 20 pictures", "fewer"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_told_in_two_lines(place: Path, here: Path, sweep: Path, case: str) -> None:
    make_data(here)
    given = " ".join(map(str, network(place)))
    command, error, hint = CASES[case]
    ran = cli(*command.format(n=given, h=here, s=place / "shades").split())
    first, second = [line for line in ran.err.splitlines() if line.startswith(("error: ", "hint: "))]
    assert (ran.status, ran.out) == (2, "")
    assert error in first
    assert hint in second
    assert not list(here.glob("x.json")) + list(here.glob("x.svg"))


def test_a_run_of_other_settings_is_refused_and_stays(place: Path, here: Path) -> None:
    words = ("--layers", 2, "--seeds", 1, "-o", "a")
    assert learn(place, "profile", *words).status == 0
    before = (here / "a.run" / "trials.jsonl").read_bytes()
    ran = learn(place, "profile", *words, "--weight-decay", 0.5)
    assert ran.status == 2
    assert "weight_decay was None, is 0.5" in ran.err
    assert (here / "a.run" / "trials.jsonl").read_bytes() == before


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
def test_an_unreachable_cluster_is_told_with_status_3(place: Path, here: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    ran = learn(place, "profile", "--layers", 2, "--seeds", 1, "--executor", f"ray:{address}", "-o", "a")
    assert (ran.status, ran.out) == (3, "")
    first, second = ran.err.splitlines()[-2:]
    assert first.startswith("error: ")
    assert address in first
    assert second.startswith("hint: ")


def test_forks_that_do_not_fit_into_memory_together_are_trained_in_turns(place: Path, here: Path) -> None:
    """In batches of seven block 1 takes 0.70 MB by itself, blocks 2 and 3 together 0.54 MB."""
    words = ("--layers", 1, "--layers", 2, "--layers", 3, "--seeds", 1)
    assert learn(place, "profile", *words, "-o", "a").status == 0
    assert learn(place, "profile", *words, "--memory-bytes", 710_000, "-o", "b").status == 0
    assert [jobs_of(here / f"{name}.run") for name in "ab"] == [[3], [1, 2]]
    together, apart = (read_document(Profile, here / f"{name}.json") for name in "ab")
    for one, other in zip(together.rows, apart.rows, strict=True):
        assert one.accuracy == pytest.approx(other.accuracy)
    ran = learn(place, "profile", *words, "--memory-bytes", 100, "-o", "c")
    error, hint = ran.err.splitlines()[-2:]
    assert (ran.status, ran.out) == (2, "")
    assert error == "error: training fork 1 takes about 0.7 MB in batches of 7, where 0.0 MB may be taken"
    assert hint == "hint: give a smaller --batch-size, or more with --memory-bytes"


def jobs_of(run: Path) -> list[int]:
    """How many forks each job of the run had."""
    documents: list[Any] = [document for _, document in read_lines(run / "cache" / "jobs.jsonl")]
    return [len(each["trials"]) for each in documents]
