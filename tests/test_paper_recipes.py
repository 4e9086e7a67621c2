"""The recipes of benchmarks/paper: all parse, their trials can be built, and what they leave can be read."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from subtune_deploy.errors import InputError, Unavailable
from subtune_deploy.executors import Here
from subtune_deploy.tuning.documents import Active, Greedy, Profile

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmarks" / "paper"))

from making import BESIDE, EACH, make, read_data  # noqa: E402
from recipes import PACKAGED, Published, Recipe, Run, names, read_recipe, read_values  # noqa: E402
from showing import draw, page  # noqa: E402

BLOCKS = {
    "resnet50": 16,
    "resnet18": 8,
    "vit_b_16": 12,
    "timm:tf_efficientnet_lite0": 16,
    "timm:vit_base_patch16_224_miil.in21k": 12,
    "benchmarks/paper/networks.py:dino_resnet50": 16,
    "benchmarks/paper/networks.py:robustbench_standard": 12,
}
CLASSES = 10


def test_there_is_a_recipe_for_each_figure_and_table_of_sections_2_3_and_b() -> None:
    figures = ["1_left", "1_middle", "1_right", 2, 3, 4, 5, 8, 9, 10, 11, 13, 14, 15, 16, 17]
    assert names() == (*(f"figure{each}" for each in figures), "table1", "table2", "table4")
    told = (ROOT / "benchmarks" / "paper" / "README.md").read_text()
    for elsewhere in ("figure7.py", "figure18.py", "figure19.py", "table 5 is in `table1`", "table 3 is"):
        assert elsewhere in told


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("reduced", [False, True], ids=["full", "reduced"])
def test_a_recipe_builds_its_forks(name: str, reduced: bool) -> None:
    runs = read_recipe(name).runs(reduced)
    assert runs
    assert len({run.name for run in runs}) == len(runs)  # documents go by their names
    for run in runs:
        forks = run.chosen(BLOCKS[run.model])
        assert forks or run.kind == "greedy"
        assert run.settings.device == ("cpu" if reduced else "auto")


@pytest.mark.parametrize("name", names())
def test_a_reduced_recipe_needs_no_network_and_has_the_pictures_it_asks_for(name: str) -> None:
    for run in read_recipe(name).runs(reduced=True):
        assert (run.model, run.weights, run.augment) == ("timm:tf_efficientnet_lite0", PACKAGED, "none")
        assert run.data in ("digits", "sklearn-digits")
        assert run.train is not None
        assert max((run.examples or 0, *run.schedule)) <= run.train <= 1000
        assert run.folds <= (run.examples or run.train) / CLASSES


@pytest.mark.parametrize("name", names())
def test_what_was_published_is_told_with_its_place(name: str) -> None:
    said = read_recipe(name).published
    assert said.source
    assert said.says or said.rows
    assert all(len(row) == len(said.columns) for row in said.rows)


def test_what_the_paper_trains_longer_or_at_several_rates() -> None:
    """Section 3 has 50 epochs whatever the number of pictures; section 3.2 tunes over rates, of linear probing too."""
    assert {(run.examples, run.epochs) for run in read_recipe("figure4").runs()} == {
        (examples, 50) for examples in (100, 500, 1000, 2500, 5000, 10000)
    }
    assert {run.lr for run in read_recipe("table2").runs()} == {1e-3, 5e-4, 1e-4, 5e-5, 1e-5}
    for name in ("table2", "figure5", "figure1_middle"):
        for run in read_recipe(name).runs():
            assert run.settings.probe_lr == run.settings.lr == run.lr
    assert {run.settings.probe_lr for run in read_recipe("table1").runs()} == {None}


def test_each_makes_a_run_of_every_combination() -> None:
    runs = recipe(run=({"each": {"examples": [100, 500], "data": ["torchvision:DTD", "digits"]}},)).runs()
    assert [run.name for run in runs] == [
        "100 examples DTD",
        "100 examples digits",
        "500 examples DTD",
        "500 examples digits",
    ]
    assert (runs[1].examples, runs[1].data) == (100, "digits")


def test_values_that_are_given_replace_those_of_every_run() -> None:
    one = recipe(run=({"each": {"examples": [100, 500]}}, {"seeds": 5}))
    found = one.runs(given=read_values(["examples=7", "data=photos/", "lr=1e-3"]))
    assert [(run.examples, run.data, run.lr) for run in found] == [(7, "photos/", 1e-3)] * 2
    with pytest.raises(InputError, match="'epochs' sets nothing"):
        read_values(["epochs"])


def test_reduced_runs_that_are_the_same_become_one() -> None:
    one = recipe(run=({"each": {"data": ["torchvision:CIFAR10", "torchvision:CIFAR100"]}},))
    assert (len(one.runs()), len(one.runs(reduced=True))) == (2, 1)
    other = recipe(run=one.run, reduced={"each": {"data": ["digits", "sklearn-digits"]}})
    assert [run.name for run in other.runs(reduced=True)] == ["digits", "sklearn-digits"]


def test_a_misspelt_recipe_and_a_misspelt_key_are_told() -> None:
    with pytest.raises(InputError, match="there is no recipe 'figure6'"):
        read_recipe("figure6")
    with pytest.raises(InputError, match="unknown key 'epoch'"):
        recipe(run=({"epoch": 3},)).runs()


def test_cifar_10_c_is_read_as_it_was_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBTUNE_DATA", str(tmp_path))
    run = Run(data="CIFAR-10-C", corruption="fog:5", train=1000, test=9000)
    with pytest.raises(Unavailable, match="CIFAR-10-C cannot be read"):
        read_data(run)
    (tmp_path / "CIFAR-10-C").mkdir()
    mild = np.zeros((EACH, 2, 2, 3), np.uint8)
    np.save(tmp_path / "CIFAR-10-C" / "fog.npy", np.concatenate([mild, mild + 255]))
    np.save(tmp_path / "CIFAR-10-C" / "labels.npy", (np.arange(2 * EACH) % 10).astype(np.uint8))
    data = read_data(run)
    assert (len(data.train), len(data.test)) == (1000, 9000)
    assert all(
        np.asarray(picture).min() == 255 for picture in data.train.pictures
    )  # the worst severity alone


def test_a_recipe_takes_the_pictures_that_a_file_lists(tmp_path: Path) -> None:
    (tmp_path / "some.txt").write_text("3\n1\n4\n")
    given = read_values([f"train={tmp_path / 'some.txt'}"])
    (run,) = recipe(run=({**tiny(tmp_path), "test": None},)).runs(given=given)
    data = read_data(run)
    assert (data.train.labels.tolist(), len(data.test)) == ([1, 1, 0], 21)


@pytest.mark.parametrize(
    "name", [name for name in names() if any(run.vtab for run in read_recipe(name).runs())]
)
def test_recipes_of_vtab_say_whose_pictures_they_train_on(name: str) -> None:
    assert any("VTAB's protocol has its own" in line for line in read_recipe(name).differs)


def test_runs_leave_documents_tables_and_pictures(tmp_path: Path) -> None:
    common = tiny(tmp_path)
    every = recipe(
        picture="profile",
        run=(
            {**common, "name": "profile", "span": [1, 1], "forks": ["none", "all"]},
            {**common, "name": "greedy", "kind": "greedy", "folds": 2, "forks": ["all"], "prefixes": True},
            {**common, "name": "active", "kind": "active", "forks": ["1"], "schedule": [6, 12]},
        ),
    )
    documents = make(every.runs(), tmp_path / "runs", Here(), say=lambda text: None)
    kinds = {name: type(each) for name, each in documents.items()}
    assert kinds == {"profile": Profile, "greedy": Greedy, f"greedy{BESIDE}": Profile, "active": Active}
    chosen, beside = documents["greedy"], documents[f"greedy{BESIDE}"]
    assert isinstance(chosen, Greedy)
    assert isinstance(beside, Profile)
    assert [len(row.layers) for row in beside.rows[1:]] == [*range(1, len(chosen.order) + 1)]
    pictures = draw("tiny", every, documents, tmp_path)
    assert [path.name for path in pictures] == ["tiny_profile.svg"]
    text = page(every, "the command", documents, pictures)
    for part in (
        "# tiny",
        "`the command`",
        "![tiny_profile](tiny_profile.svg)",
        "| accuracy, % |",
        "page 1",
        "6/12 of 12 pictures to train on",
    ):
        assert part in text
    assert "None" not in text
    assert "Reduced" not in text
    assert "**Reduced:** not the paper's network" in page(
        every, "the command", documents, pictures, reduced=True
    )


def test_runs_that_are_done_are_not_trained_again(tmp_path: Path) -> None:
    one = recipe(run=({**tiny(tmp_path), "span": [1, 1]},))
    first = make(one.runs(), tmp_path / "runs", Here(), say=lambda text: None)
    (lines,) = (tmp_path / "runs").rglob("trials.jsonl")
    before = lines.read_bytes()
    assert make(one.runs(), tmp_path / "runs", Here(), say=lambda text: None) == first
    assert lines.read_bytes() == before


def recipe(**fields: Any) -> Recipe:
    """A recipe that says little but `fields`."""
    return Recipe(
        **{"title": "tiny", "picture": "none", "published": Published("page 1", ("it works",)), **fields}
    )


def tiny(folder: Path) -> dict[str, Any]:
    """Keys of a run that trains in a moment."""
    random = np.random.default_rng(0)
    labels = np.arange(24) % 2
    images = (random.integers(0, 120, (24, 12, 12, 3)) + 120 * labels[:, None, None, None]).astype(np.uint8)
    np.savez(folder / "tiny.npz", images=images, labels=labels)
    return {
        "model": "tiny_factories:chain",
        "weights": "random", "data": str(folder / "tiny.npz"), "train": 12, "test": 8, "seeds": 1, "epochs": 1,
        "batch_size": 4, "augment": "none", "device": "cpu",
    }  # fmt: skip
