"""The weights kept in a bundle give back the backbone and the tasks that it was made from, exactly."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_factories import network
from torch import nn

from subtune_deploy.backbone import Backbone, trace
from subtune_deploy.build import build
from subtune_deploy.bundle import Bundle, open_bundle, save_manifest, seal
from subtune_deploy.checkpoint import fingerprint
from subtune_deploy.errors import BundleError, CheckpointError, InputError, ModelError, TaskError
from subtune_deploy.models import load_model
from subtune_deploy.pack import Pack, read_pack, stored_weights
from subtune_deploy.sources import packed, read_sources, unpacked, write_sources
from subtune_deploy.spec import Block
from subtune_deploy.tasks import Task, candidate_task, standalone, task_state
from subtune_deploy.tensorfile import StoredTensor

CHAIN = "tiny_factories:chain"


def same(backbone: Backbone, one: Task, two: Task) -> bool:
    """Everything about them, weights bit for bit."""
    states = [fingerprint(task_state(backbone, task)[0]) for task in (one, two)]
    plain = [replace(task, versions={}) for task in (one, two)]
    return states[0] == states[1] and plain[0] == plain[1] and list(one.versions) == list(two.versions)


def as_pack(backbone: Backbone, task: Task) -> Pack:
    tensors, about = packed(backbone, task)
    return Pack(Path("birds.pack"), about, tensors)


@pytest.mark.parametrize("topology", ["chain", "branching", "dense", "tokens"])
def test_a_task_comes_back_exactly(topology: str, tmp_path: Path) -> None:
    backbone = network(topology)
    tasks = [
        replace(
            candidate_task(backbone, "one", (2, 4), seed=1, classes=3), labels=("a", "b", "c"), notes=("x",)
        ),
        candidate_task(backbone, "two", (), seed=2),
        candidate_task(backbone, "three", (1,), seed=3, siamese=True),
    ]
    write_sources(tmp_path, backbone, tasks)
    for task in tasks:
        pack = read_pack(tmp_path / stored_weights(task.name))
        assert same(backbone, unpacked(backbone, pack), task)
    assert sorted(path.name for path in (tmp_path / "weights").iterdir()) == [
        "base.safetensors", "one.safetensors", "three.safetensors", "two.safetensors",
    ]  # fmt: skip


def test_a_bare_tensor_that_was_tuned_comes_back(tmp_path: Path) -> None:
    backbone = network("tokens")
    task = candidate_task(backbone, "one", (1,), seed=1)
    (unit,) = [unit for unit, place in backbone.units.items() if place == "position"]
    moved = replace(task, versions={**task.versions, unit: backbone.model.position.detach() + 1})
    assert torch.equal(unpacked(backbone, as_pack(backbone, moved)).versions[unit], moved.versions[unit])


def test_a_block_that_was_tuned_but_did_not_move_stays_forked(tmp_path: Path) -> None:
    backbone = network()
    task = candidate_task(backbone, "one", (1,), seed=1)
    unmoved = replace(task, versions={**task.versions, "block3": backbone.model.blocks[2]})
    assert set(unpacked(backbone, as_pack(backbone, unmoved)).versions) == {"block1", "block3", "head"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    backbone = network()
    tasks = [
        candidate_task(backbone, "birds", (3, 4), seed=1, classes=3),
        candidate_task(backbone, "a", (1,), seed=2),
    ]
    return build(backbone, tasks, tmp_path_factory.mktemp("sources") / "b")


@pytest.fixture
def bundle(built: Bundle, tmp_path: Path) -> Bundle:
    shutil.copytree(built.path, tmp_path / "bundle")
    return open_bundle(tmp_path / "bundle")


def test_the_backbone_comes_back_with_the_bundles_weights_and_not_the_factorys(bundle: Bundle) -> None:
    expected = network()
    backbone, tasks = read_sources(bundle, CHAIN)
    assert fingerprint(backbone.model.state_dict()) == fingerprint(expected.model.state_dict())
    assert fingerprint(backbone.model.state_dict()) != fingerprint(network(seed=0).model.state_dict())
    for field in ("name", "input", "labels", "weights", "blocks", "units", "heads", "topology"):
        assert getattr(backbone, field) == getattr(expected, field)
    assert [task.name for task in tasks] == ["birds", "a"]
    picture = torch.randn(2, 3, 12, 12)
    ours = candidate_task(expected, "birds", (3, 4), seed=1, classes=3)
    assert torch.equal(standalone(backbone, tasks[0])(picture), standalone(expected, ours)(picture))


def test_blocks_that_were_named_by_a_pattern_are_found_again(tmp_path: Path) -> None:
    backbone = network(pattern=r"blocks\.[13]")
    bundle = build(backbone, [candidate_task(backbone, "one", (2,), seed=1)], tmp_path / "b")
    again, (task,) = read_sources(bundle, CHAIN)
    assert [block.name for block in again.blocks] == ["blocks.1", "blocks.3"]
    assert set(task.versions) == {"block2", "head"}


@pytest.mark.parametrize(("model", "size"), [("squeezenet1_1", (3, 48, 48)), ("resnet18", (3, 40, 56))])
def test_a_librarys_model_needs_no_name_and_keeps_its_size(
    tmp_path: Path, model: str, size: tuple[int, int, int]
) -> None:
    backbone = trace(load_model(model, input_size=size, seed=3))
    bundle = build(backbone, [candidate_task(backbone, "one", (8,), seed=1)], tmp_path / "b")
    again, _ = read_sources(bundle)
    assert (again.input, again.blocks, again.labels) == (backbone.input, backbone.blocks, backbone.labels)
    assert again.weights == "random (seed 3)"


def test_code_that_a_bundle_names_is_not_run_unasked(bundle: Bundle) -> None:
    with pytest.raises(ModelError, match="which is not run unasked") as caught:
        read_sources(bundle)
    assert f"--model {CHAIN}" in caught.value.hint


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        ("tiny_factories:wider", "another architecture|not of this model"),
        ("tiny_factories:dense", "does not fit the model: 6 missing"),
        ("tiny_factories:nothing", "has no factory"),
        ("resnet18", "another architecture"),
        ("no_such_file.py:make", "does not exist"),
    ],
)
def test_the_code_of_another_network_is_refused(bundle: Bundle, model: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint) as caught:
        read_sources(bundle, model)
    assert "\n" not in caught.value.message


def test_other_blocks_than_the_bundle_says_are_refused(bundle: Bundle) -> None:
    blocks = bundle.manifest.blocks
    wrong = (*blocks[:-1], replace(blocks[-1], parameters=1))
    save_manifest(bundle.path, replace(bundle.manifest, blocks=wrong))
    with pytest.raises(BundleError, match="is not the network that"):
        read_sources(open_bundle(bundle.path), CHAIN)
    assert isinstance(blocks[0], Block)


def test_weights_of_another_base_under_a_right_hash_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    other = network(seed=9)
    write_sources(tmp_path, other, [])
    shutil.copy(tmp_path / "weights" / "base.safetensors", bundle.path / "weights")
    seal(bundle.path, bundle.manifest)
    with pytest.raises(BundleError, match="is not the network that"):
        read_sources(open_bundle(bundle.path), CHAIN)


def test_a_bundle_without_weights_or_with_altered_ones_is_refused(bundle: Bundle) -> None:
    path = bundle.path / "weights" / "base.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match="altered: weights/base"):
        read_sources(bundle, CHAIN)
    shutil.rmtree(path.parent)
    seal(bundle.path, bundle.manifest)
    with pytest.raises(BundleError, match="not the weights they were made from"):
        read_sources(open_bundle(bundle.path), CHAIN)


# packs that do not hold what they say


def zeros(*shape: int) -> StoredTensor:
    count = int(torch.Size(shape).numel())
    return StoredTensor("F32", shape, memoryview(bytearray(4 * count)))


@pytest.mark.parametrize(
    ("tensors", "about", "complaint"),
    [
        ({"blocks.2.conv1.weight": None}, {}, "1 missing"),
        ({"head.weight": None, "head.bias": None}, {}, "2 missing"),
        ({"blocks.2.conv9.weight": zeros(1)}, {}, "1 surplus"),
        ({"elsewhere.weight": zeros(1)}, {}, "1 surplus"),
        ({"blocks.2.conv1.weight": zeros(4, 4, 1, 1)}, {}, "instead of"),
        ({"head.weight": zeros(3, 5)}, {}, "wrong head shape"),
        ({"head.bias": zeros(4)}, {}, "lengths that do not agree"),
        ({"head.weight": zeros(3, 4, 1)}, {}, "cannot take"),
        ({"blocks.2.bn1.weight": StoredTensor("F32", (4,), memoryview(bytearray(b"\xff" * 16)))}, {}, "NaN"),
        ({}, {"classes": 4}, "it says blocks 3-4, 4 classes"),
        ({}, {"siamese": True}, "it says blocks 3-4, 3 classes, siamese"),
        ({}, {"layers": "3"}, "its weights are of blocks 3-4"),
        ({}, {"layers": "none"}, "its weights are of blocks 3-4"),
    ],
)
def test_weights_that_are_not_what_the_pack_says_are_refused(
    tensors: dict[str, StoredTensor | None], about: dict[str, object], complaint: str
) -> None:
    backbone = network()
    pack = as_pack(backbone, candidate_task(backbone, "birds", (3, 4), seed=1, classes=3))
    changed = {name: each for name, each in {**pack.tensors, **tensors}.items() if each is not None}
    with pytest.raises(CheckpointError, match=complaint) as caught:
        unpacked(backbone, replace(pack, tensors=changed, about=replace(pack.about, **about)))
    assert "birds.pack" in caught.value.message


def test_a_step_counter_out_of_place_does_no_harm() -> None:
    backbone = network()
    task = candidate_task(backbone, "birds", (3,), seed=1)
    pack = as_pack(backbone, task)
    counter = StoredTensor("I64", (), memoryview(bytearray(8)))
    for name in ("head.num_batches_tracked", "x.num_batches_tracked", "blocks.2.conv1.num_batches_tracked"):
        assert same(
            backbone, unpacked(backbone, replace(pack, tensors={**pack.tensors, name: counter})), task
        )


def test_coarser_weights_are_taken_as_they_are() -> None:
    backbone = network()
    task = candidate_task(backbone, "birds", (3,), seed=1)
    for kind in (torch.bfloat16, torch.float16, torch.float64):
        rounded = {
            unit: version.to(kind) if isinstance(version, nn.Module) else version
            for unit, version in candidate_task(backbone, "birds", (3,), seed=1).versions.items()
        }
        found = unpacked(backbone, as_pack(backbone, replace(task, versions=rounded)))
        weight = backbone.model.get_submodule("blocks.2.conv1").weight
        assert found.versions["block3"].conv1.weight.dtype == weight.dtype
        expected = task.versions["block3"].conv1.weight.to(kind).float()
        assert torch.equal(found.versions["block3"].conv1.weight, expected)


def test_a_task_is_renamed_or_its_new_name_refused() -> None:
    backbone = network()
    pack = as_pack(backbone, candidate_task(backbone, "birds", (3,), seed=1))
    assert unpacked(backbone, pack, "jays").name == "jays"
    for name in ("base", "input", "a/b", "é"):
        with pytest.raises(TaskError, match="unfit"):
            unpacked(backbone, pack, name)
