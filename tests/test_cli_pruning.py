"""`export --prune`: thinner latency candidates, and pruned tasks from their checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_cli import Ran, cli, write_network

from subtune_deploy.backbone import Backbone, trace
from subtune_deploy.bundle import open_bundle
from subtune_deploy.checkpoint import write_state
from subtune_deploy.models import load_model
from subtune_deploy.spec import Pruning
from subtune_deploy.tasks import candidate_task, task_state

HALF = Pruning(0.5, round_to=1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pruning")
    write_network(folder)
    return folder


def network(place: Path) -> tuple[object, ...]:
    return "--model", f"{place}/net.py:Net", "--weights", place / "base.pt"


def export(place: Path, out: str, *arguments: object) -> Ran:
    return cli("export", *network(place), "-o", place / out, *arguments)


def backbone(place: Path) -> Backbone:
    return trace(load_model(f"{place}/net.py:Net", str(place / "base.pt")))


def test_a_pruned_candidate_is_exported_compiled_and_verified(place: Path) -> None:
    ways = ("--prune", "0.5", "--prune-scope", "global", "--prune-norm", "l2", "--prune-round-to", "2")
    whole, thin = export(place, "whole", "--layers", "2-3"), export(place, "thin", "--layers", "2-3", *ways)
    assert (whole.status, thin.status) == (0, 0), thin.err
    assert "fork 2-3 pruned 0.5 global l2 rounded to 2 of" in thin.err
    (entry,) = open_bundle(place / "thin").manifest.tasks[1:]
    assert entry.prune == Pruning(0.5, "global", "l2", round_to=2)
    sizes = [(place / name / "graph.onnx").stat().st_size for name in ("thin", "whole")]
    assert sizes[0] < sizes[1]
    assert cli("compile", place / "thin", "--target", "cpu").status == 0
    assert cli("verify", place / "thin").status == 0


def test_a_share_of_macs_is_asked_for_by_its_own_option(place: Path) -> None:
    ran = export(
        place, "macs", "--layers", "1", "--prune", "0.4", "--prune-of", "macs", "--prune-round-to", "1"
    )
    assert ran.status == 0, ran.err
    (entry,) = open_bundle(place / "macs").manifest.tasks[1:]
    assert entry.prune == Pruning(0.4, of="macs", round_to=1)


def test_the_folder_says_that_a_fork_was_pruned(
    place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = cli("export", *network(place), "--layers", "2", "--prune", "0.5", "--prune-round-to", "1")
    assert ran.status == 0, ran.err
    (folder,) = (tmp_path / "engines").iterdir()
    assert folder.name.endswith("net_Net_2_pruned_0.5_local_l1_rounded_to_1")


def test_a_pruned_task_is_told_from_its_checkpoint_alone(place: Path) -> None:
    write_state(
        place / "birds.safetensors",
        *task_state(backbone(place), candidate_task(backbone(place), "birds", (3,), seed=1, prune=HALF)),
    )
    ran = export(place, "real", "--task", f"birds={place}/birds.safetensors")
    assert ran.status == 0, ran.err
    assert "tuned blocks 3, 5 classes, pruned 0.5 local l1 rounded to 1" in ran.err
    (entry,) = open_bundle(place / "real").manifest.tasks[1:]
    assert entry.prune == HALF


@pytest.mark.parametrize(
    ("arguments", "told", "hint"),
    [
        ("--layers 2 --prune 1", "pruning ratio 1.0 is not between 0 and 1", "0.5"),
        ("--layers 2 --prune 0", "pruning ratio 0.0 is not between 0 and 1", "0.5"),
        ("--layers 2 --prune nan", "pruning ratio nan is not between 0 and 1", "0.5"),
        ("--layers 2 --prune half", "'half' is not a valid float", "export --help"),
        ("--layers 2 --prune 0.5 --prune-norm l3", "'l3' is not one of", "export --help"),
        ("--layers 2 --prune 0.5 --prune-round-to 0", "multiples of 0", "any width"),
        ("--layers 2 --prune-scope global", "--prune-scope goes with --prune", "--prune 0.5"),
        ("--layers none --prune 0.5", "no block is forked", "--layers 13-14"),
        ("--layers 2 --prune 0.5", "removes nothing from block 2 (blocks.1)", "--prune-round-to"),
        ("--layers 2 --prune 0.99 --prune-of macs --prune-round-to 1", "at most 8", "smaller ratio"),
        ("--task a={i}/net.py --prune 0.5", "--task and --prune were both given", "from its checkpoint"),
    ],
)
def test_bad_pruning_is_told_in_two_lines(place: Path, arguments: str, told: str, hint: str) -> None:
    ran = export(place, "bad", *arguments.format(i=place).split())
    assert ran.status == 2
    lines = [line for line in ran.err.splitlines() if not line.startswith("latency candidate")]
    assert len(lines) == 2
    assert told in lines[0]
    assert hint in lines[1]
    assert not (place / "bad").exists()


def test_widths_are_rounded_to_what_a_target_likes(place: Path) -> None:
    recipe = place / "board.toml"
    recipe.write_text(
        'name = "board"\nbackend = "onnxruntime"\nprecision = "fp32"\ndescription = "a board"\nwidth_multiple = 2\n'
    )
    ran = export(
        place, "board", "--layers", "2-3", "--prune", "0.4", "--prune-of", "macs", "--prune-round-to", recipe
    )
    assert ran.status == 0, ran.err
    (entry,) = open_bundle(place / "board").manifest.tasks[1:]
    assert entry.prune == Pruning(0.4, of="macs", round_to=2)


@pytest.mark.parametrize(("given", "said"), [("openvino-cpi", "openvino-cpu"), ("-8", "multiples of -8")])
def test_neither_a_number_nor_a_target(place: Path, given: str, said: str) -> None:
    ran = export(place, "nothing", "--layers", "2", "--prune", "0.5", "--prune-round-to", given)
    assert ran.status == 2
    assert said in ran.err
    assert "Traceback" not in ran.err
    assert not (place / "nothing").exists()
