"""Thinner forks on their whole way: file, task, plan, graph, engine, pack, graft."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_factories import network
from tiny_networks import backbone as tiny
from tiny_prunable import NETWORKS, pictures, prunable
from torch import Tensor

from subtune_deploy.backbone import Backbone
from subtune_deploy.build import BuildOptions, build, plan_for
from subtune_deploy.bundle import open_bundle
from subtune_deploy.checkpoint import Checkpoint, read_state, write_state
from subtune_deploy.compiling import check_engine, compile_bundle
from subtune_deploy.errors import CheckpointError, SubtuneError
from subtune_deploy.graft import graft
from subtune_deploy.multitask import lower
from subtune_deploy.pack import read_pack, save_pack, write_pack
from subtune_deploy.sources import packed, read_sources, unpacked
from subtune_deploy.spec import Pruning
from subtune_deploy.targets import load_target
from subtune_deploy.tasks import (
    Task,
    candidate_task,
    standalone,
    task_from_checkpoint,
    task_of,
    task_state,
    tuned_blocks,
)
from subtune_deploy.versions import narrow_streams, thinner

HALF = Pruning(0.5, round_to=2)
THIRD = Pruning(0.3, "global", "l2", round_to=1)
OUTER = Pruning(0.5, round_to=2, outer=True)


def answers(backbone: Backbone, task: Task) -> Tensor:
    with torch.no_grad():
        given = torch.randn(2, *backbone.input.shape, generator=torch.Generator().manual_seed(1))
        result: Tensor = standalone(backbone, task)(given)
    return result


def through_a_file(backbone: Backbone, task: Task, folder: Path) -> Task:
    write_state(folder / "task.safetensors", *task_state(backbone, task))
    return task_from_checkpoint(backbone, task.name, read_state(folder / "task.safetensors"))


CASES = [(name, False) for name in NETWORKS] + [("resnet", True), ("bottlenecks", True), ("grouped", True)]


@pytest.mark.parametrize(("name", "outer"), CASES)
@pytest.mark.parametrize("siamese", [False, True])
def test_a_thin_task_comes_back_from_its_file_and_its_pack(
    name: str, outer: bool, siamese: bool, tmp_path: Path
) -> None:
    backbone = prunable(name)
    blocks = tuple(range(2 if name == "resnet" else 1, len(backbone.blocks) + 1))
    pruning = OUTER if outer else HALF
    task = candidate_task(backbone, "birds", blocks, seed=1, classes=3, siamese=siamese, prune=pruning)
    assert (task.siamese, task.classes, task.prune) == (siamese, 3, pruning)
    assert thinner(backbone, task.versions)
    assert narrow_streams(backbone, task.versions) is outer
    read = through_a_file(backbone, task, tmp_path)
    state, about = packed(backbone, task)
    save_pack(tmp_path / "birds.pack", about, state)
    from_pack = unpacked(backbone, read_pack(tmp_path / "birds.pack"))
    for other in (read, from_pack):
        assert torch.equal(answers(backbone, task), answers(backbone, other))
        assert (other.siamese, other.prune, tuned_blocks(backbone, other)) == (siamese, pruning, blocks)


@pytest.mark.parametrize("name", NETWORKS)
def test_tasks_of_different_widths_in_one_graph_answer_as_by_themselves(name: str) -> None:
    backbone = prunable(name)
    last = len(backbone.blocks)
    tasks = [
        candidate_task(backbone, "thin", (last,), seed=1, classes=3, prune=HALF),
        candidate_task(backbone, "thinner", (last - 1, last), seed=2, prune=Pruning(0.8, round_to=1)),
        candidate_task(backbone, "both", (1, last), seed=3, siamese=True, prune=Pruning(0.3, "global", round_to=1)),
        candidate_task(backbone, "whole", (last - 1,), seed=4),
    ]  # fmt: skip
    assert not any(narrow_streams(backbone, task.versions) for task in tasks)
    for merge in ("always", "never"):
        module = lower(backbone, tasks, plan_for(backbone, tasks, BuildOptions(merge=merge)))
        with torch.no_grad():
            together = module(pictures())[1:]
        for task, answer in zip(tasks, together, strict=True):
            with torch.no_grad():
                alone = standalone(backbone, task)(pictures())
            torch.testing.assert_close(answer, alone, rtol=1e-3, atol=1e-4)


def test_streams_of_another_width_are_packed_with_no_others() -> None:
    backbone = prunable("resnet")
    tasks = [
        candidate_task(backbone, "narrow", (4, 5), seed=1, prune=OUTER),
        candidate_task(backbone, "two", (4, 5), seed=2, prune=OUTER, siamese=True),
        candidate_task(backbone, "whole", (4,), seed=3),
    ]
    plan = plan_for(backbone, tasks, BuildOptions())
    assert plan.apart == ("narrow", "two")
    module = lower(backbone, tasks, plan)
    with torch.no_grad():
        for task, answer in zip(tasks, module(pictures())[1:], strict=True):
            torch.testing.assert_close(answer, standalone(backbone, task)(pictures()), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "options", [BuildOptions(), BuildOptions(None, "never"), BuildOptions(2, lowering="grouped")]
)
def test_thin_tasks_are_built_compiled_shipped_and_grafted(options: BuildOptions, tmp_path: Path) -> None:
    backbone = network()
    first = candidate_task(backbone, "first", (2, 3), seed=1, prune=HALF)
    second = candidate_task(backbone, "second", (3,), seed=2, prune=THIRD)
    bundle = compile_bundle(build(backbone, [first], tmp_path / "bundle", options), load_target("cpu"))
    build(backbone, [second], tmp_path / "other", options)
    pack = write_pack(open_bundle(tmp_path / "other"), "second", tmp_path / "second.pack")
    assert read_pack(pack).about.prune == THIRD
    both = graft(bundle.path, pack, model="tiny_factories:chain")
    check_engine(both, load_target("cpu"), both.path / "cpu", deep=True)
    assert [entry.prune for entry in both.manifest.tasks] == [None, HALF, THIRD]
    found = read_sources(both, "tiny_factories:chain")[1]
    for task, same in zip((first, second), found, strict=True):
        assert torch.equal(answers(backbone, task), answers(backbone, same))


def test_one_graph_of_vit_with_fewer_heads_agrees_in_the_engine(tmp_path: Path) -> None:
    backbone = prunable("vit")
    task = candidate_task(backbone, "birds", (1, 2), seed=1, prune=HALF)
    bundle = compile_bundle(build(backbone, [task], tmp_path / "b", sources=False), load_target("cpu"))
    figures = [each for each in bundle.manifest.parity if each["task"] == "birds"]
    assert figures
    assert all(np.isfinite(each["error"]) and each["error"] < 1e-4 for each in figures)


# Files that are not what they should be


def task_file(backbone: Backbone, **changes: Tensor) -> Checkpoint:
    task = candidate_task(backbone, "birds", (2, 3), seed=1, prune=HALF)
    state, metadata = task_state(backbone, task)
    return Checkpoint(Path("birds.pt"), {**state, **changes}, metadata)


WRONG = {
    "a layer that does not fit the next": ({"blocks.1.conv2.weight": torch.ones(16, 7, 1, 1)}, "does not fit"),
    "a norm that does not fit": ({"blocks.1.bn1.weight": torch.ones(7)}, "lengths that do not agree"),
    "all of another width, handed on": (
        {"blocks.1.conv2.weight": torch.ones(9, 8, 1, 1),
         **{f"blocks.1.bn2.{each}": torch.ones(9) for each in ("weight", "bias", "running_mean", "running_var")}},
        "does not fit",
    ),
    "wider than the base": ({"blocks.1.conv1.weight": torch.ones(17, 16, 3, 3)}, "differing in shape"),
    "another kernel": ({"blocks.1.conv1.weight": torch.ones(8, 16, 1, 1)}, "differing in shape"),
    "nothing left": ({"blocks.1.conv1.weight": torch.ones(0, 16, 3, 3)}, "differing in shape"),
    "a bare head": ({"head.weight": torch.ones(5, 9)}, "wrong head shape: it reads 9 features"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_shapes_that_do_not_belong_are_refused_in_one_line(
    case: str, capfd: pytest.CaptureFixture[str]
) -> None:
    changes, told = WRONG[case]
    backbone = tiny("chain", 4, 16)
    with pytest.raises(CheckpointError, match=told) as caught:
        task_from_checkpoint(backbone, "birds", task_file(backbone, **changes))
    assert "birds.pt" in caught.value.message
    assert "\n" not in caught.value.message + caught.value.hint
    assert capfd.readouterr().err == "", "torch's own log of shapes that do not fit"


def test_a_whole_checkpoint_of_a_narrower_network_is_not_taken_for_a_thin_task() -> None:
    backbone = tiny("chain", 4, 16)
    checkpoint = task_file(backbone)
    whole = {**backbone.model.state_dict(), **checkpoint.state}
    with pytest.raises(CheckpointError, match="differing in shape"):
        task_from_checkpoint(backbone, "birds", Checkpoint(Path("birds.pt"), whole, {}))


@pytest.mark.parametrize(
    "text", ["{", '{"ratio": 2}', '{"ratio": 0.5, "size": 3}', "[]", '"half"', "[" * 10_000]
)
def test_a_malformed_word_on_pruning_is_refused(text: str) -> None:
    backbone = tiny("chain", 4, 16)
    checkpoint = task_file(backbone)
    spoilt = replace(checkpoint, metadata={**checkpoint.metadata, "prune": text})
    with pytest.raises(CheckpointError, match=r"birds.pt: what it says of its pruning"):
        task_from_checkpoint(backbone, "birds", spoilt)
    plain = {key: each for key, each in checkpoint.metadata.items() if key != "prune"}
    assert task_from_checkpoint(backbone, "birds", replace(checkpoint, metadata=plain)).prune is None
    assert json.loads(checkpoint.metadata["prune"])["ratio"] == 0.5


def test_heads_must_read_what_narrower_streams_give() -> None:
    backbone = prunable("resnet")
    task = candidate_task(backbone, "birds", (4, 5), seed=1, prune=OUTER)
    with pytest.raises(CheckpointError, match="it reads 512 features where the backbone gives 256"):
        task_of(backbone, "birds", {**task.versions, "fc": backbone.model.fc})
    assert task.versions["fc"].in_features == 256


def test_a_candidate_that_cannot_be_pruned_is_an_error_like_any_other() -> None:
    with pytest.raises(SubtuneError, match="removes nothing"):
        candidate_task(tiny("chain", 4, 8), "birds", (2,), seed=1, prune=Pruning(0.5))
