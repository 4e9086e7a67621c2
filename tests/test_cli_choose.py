"""The command `choose`, on the kept sweep of ResNet-50, with a datasheet, and on bad input."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_cli import Ran, cli
from tiny_documents import STAGES, profile, row

from subtune_deploy.documents import write_document
from subtune_deploy.latency_model import anchor
from subtune_deploy.pareto import choose as choose_one
from subtune_deploy.results import read_results
from subtune_deploy.spec import Pruning
from subtune_deploy.tradeoff import join
from subtune_deploy.tuning.documents import Profile

SWEEP = Path(__file__).parents[1] / "benchmarks" / "results" / "resnet50_sweep"
BLOCKS = tuple(f"layer{n}.{i}" for n, count in enumerate(STAGES["resnet50"], start=1) for i in range(count))
LATE = Pruning(0.5)


def of_resnet50(gains: dict[tuple[int, ...], float], **other: Any) -> Profile:
    """A profile by hand: the head alone reads 70 %."""
    rows = [row(layers, (0.7 + gain, 0.705 + gain, 0.695 + gain)) for layers, gain in gains.items()]
    ends = row((), (0.7, 0.7, 0.7)), row(range(1, 17), (0.9, 0.9, 0.9), fork="all")
    made = profile(*ends, *rows, model="resnet50")
    return replace(made, **{"input": (3, 224, 224), "blocks": BLOCKS, **other})


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Birds gain from early forks, signs from the last ones alone."""
    birds = of_resnet50({(16,): 0.02, (15, 16): 0.04, (13, 14): 0.15, (8, 9): 0.2})
    write_document(tmp_path / "birds.json", birds)
    write_document(tmp_path / "signs.json", of_resnet50({(16,): 0.05, (15, 16): 0.055, (14,): 0.06}))
    return tmp_path


def choose(files: Path, *arguments: object) -> Ran:
    tasks = [word for name in ("birds", "signs") for word in ("--task", f"{name}={files / name}.json")]
    return cli("choose", *tasks, *arguments)


def test_two_tasks_on_one_budget_at_measured_rates(files: Path) -> None:
    """An equal part, 20 %, pays for 15-16 at most; together birds can have 13-14."""
    asked = ("--run", SWEEP, "--max-added", "40%")
    document = choose(files, *asked, "--json").document
    best, apart = document["best"], document["apart"]
    assert {name: task["fork"] for name, task in best["tasks"].items()} == {"birds": "13-14", "signs": "16"}
    assert best["accuracy"] == document["bound"] == pytest.approx((0.85 + 0.75) / 2)
    assert 0.30 < best["added"] <= 0.4
    assert 0 < best["deviation"] < 0.05
    assert {name: task["fork"] for name, task in apart["tasks"].items()} == {
        "birds": "15-16", "signs": "15-16"
    }  # fmt: skip
    assert apart["accuracy"] < best["accuracy"]
    assert document["exact"]
    assert document["front_exact"]
    assert document["front"][0]["tasks"]["birds"]["fork"] == "none"
    assert document["held_out"]["calibrated"]["count"] == 35
    assert document["left_out"] == ["birds all", "signs all"]
    shown = choose(files, *asked)
    assert shown.row("birds")[1:] == ["13-14", "85.0", "±", "1.2", "%"]
    assert "by this model none is better" in shown.out
    assert "apart, each for an equal part of 40.0%: birds 15-16, signs 15-16" in shown.out
    assert "for more: " in shown.out
    assert "35 measurements that were held out" in shown.err


def test_a_task_of_more_classes_has_a_dearer_head(files: Path) -> None:
    """2,048 features more for each class: 20,480 weights for 10 classes, 20 million for 10,000."""
    added = []
    for classes in (10, 10_000):
        made = of_resnet50({}, data={"source": "birds", "test": 500, "classes": classes})
        write_document(files / "birds.json", made)
        ran = choose(files, "--run", SWEEP, "--max-added", "200%", "--json")
        best = next(each for each in ran.document["front"] if each["tasks"]["signs"]["fork"] == "none")
        added.append(best["added"])
    assert added[1] > added[0] + 0.001


def test_one_task_gets_what_pareto_chooses(files: Path) -> None:
    """But for the latencies, which `pareto` takes as measured."""
    mine = of_resnet50({(16,): 0.02, (15, 16): 0.04, (13, 14): 0.15, (8, 9): 0.2})
    points, _ = join(mine, list(map(anchor, read_results(SWEEP))))
    task = ("--task", f"birds={files / 'birds.json'}", "--run", SWEEP, "--max-added", "40%")
    found = cli("choose", *task, "--json").document
    assert found["best"]["tasks"]["birds"]["fork"] == choose_one(points, max_added=0.4).fork == "13-14"
    assert found["apart"] == {key: found["best"][key] for key in ("tasks", "accuracy", "added")}


def test_weights_and_a_datasheet(files: Path) -> None:
    asked = ("--target", "a100-sxm4-80gb", "--max-added", "30%")
    plain = choose(files, *asked)
    assert plain.status == 0, plain.err
    assert "predicted from a datasheet, not run on that device" in plain.err
    heavy = choose(files, *asked, "--weight", "signs=100", "--json").document
    assert heavy["best"]["tasks"]["signs"]["fork"] == "14"
    assert "deviation" not in heavy["best"]


def test_pruned_forks_have_their_own_price(files: Path) -> None:
    thin = row((8, 9), (0.88, 0.88, 0.88), fork=f"8-9 {LATE}", prune=LATE)
    whole = of_resnet50({(16,): 0.02, (8, 9): 0.2})
    write_document(files / "birds.json", replace(whole, rows=(*whole.rows, thin)))
    found = choose(files, "--run", SWEEP, "--max-added", "62%", "--json").document
    assert found["best"]["tasks"]["birds"]["fork"] == f"8-9 {LATE}"


def test_bad_input_is_one_line(files: Path) -> None:
    def task(name: str, **other: Any) -> str:
        write_document(files / f"{name}.json", of_resnet50({(16,): 0.05}, **other))
        return f"{name}={files / name}.json"

    run = ("--run", SWEEP, "--max-added", "30%")
    for arguments, says in {
        (*run, "--task", task("a", model="resnet18")): "of a is of model resnet18, not resnet50",
        (*run, "--task", task("b", input=(3, 64, 64))): "of b is of input 3x64x64, not 3x224x224",
        (*run, "--task", task("c", weights="other")): "of c is of weights other, not random",
        (*run, "--task", task("d", blocks=BLOCKS[::-1])): "of d is of blocks layer4.2 to layer1.0 (16), not",
        (*run, "--task", "birds=twice.json"): "names 'birds' twice",
        (*run, "--task", "cats=none.json"): "no file none.json",
        (*run, "--weight", "cats=2"): "no task cats",
        (*run, "--weight", "birds=much"): "much",
        ("--max-added", "30%"): "nothing says what forks cost",
        ("--run", SWEEP, "--max-added", "0.3"): "is no percentage",
        ("--run", SWEEP, "--max-added", "0%"): "no forks together add at most 0.0%: the cheapest found, birds none",
        ("--target", "cpu", "--max-added", "30%"): "no datasheet number",
        (*run, "--model", "resnet18"): "is of model resnet50, not resnet18",
    }.items():  # fmt: skip
        ran = choose(files, *arguments)
        assert ran.status == 2, arguments
        assert says in ran.err, ran.err
        assert "hint: " in ran.err
        assert len(ran.err.splitlines()) <= 3
