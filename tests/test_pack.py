"""Task packs: what they hold, that they are alike each time, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_tensorfile import corruptions, forged
from tiny_factories import network

from subtune_deploy.build import build
from subtune_deploy.bundle import Bundle, open_bundle, save_manifest
from subtune_deploy.checkpoint import fingerprint, read_state
from subtune_deploy.errors import BundleError, CheckpointError, InputError, TaskError
from subtune_deploy.pack import Pack, read_pack, refittable, write_pack
from subtune_deploy.sources import packed
from subtune_deploy.spec import TASK_FORMAT
from subtune_deploy.tasks import candidate_task, task_from_checkpoint, task_state

LABELS = ("heron", "jay", "wren")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    backbone = network()
    birds = replace(
        candidate_task(backbone, "birds", (3, 4), seed=1, classes=3), labels=LABELS, notes=("a note",)
    )
    return build(
        backbone, [birds, candidate_task(backbone, "signs", (1,), seed=2)], tmp_path_factory.mktemp("b") / "b"
    )


@pytest.fixture
def bundle(built: Bundle, tmp_path: Path) -> Bundle:
    shutil.copytree(built.path, tmp_path / "bundle")
    return open_bundle(tmp_path / "bundle")


@pytest.fixture
def pack(bundle: Bundle, tmp_path: Path) -> Path:
    return write_pack(bundle, "birds", tmp_path)


def test_a_pack_holds_the_blocks_and_the_head_of_one_task_and_says_where_they_belong(pack: Path) -> None:
    backbone, found = network(), read_pack(pack)
    assert pack.name == "birds.pack"
    assert {name.rsplit(".", 2)[0].split(".")[0] for name in found.tensors} == {"blocks", "head"}
    assert {name.split(".")[1] for name in found.tensors if name.startswith("blocks")} == {"2", "3"}
    about = found.about
    assert (about.task, about.layers, about.classes, about.labels) == ("birds", "3-4", 3, LABELS)
    assert (about.model, about.base) == ("tiny_factories:chain", fingerprint(backbone.model.state_dict()))
    assert about.input == backbone.input
    assert about.notes == ("a note",)


def test_a_pack_is_also_a_checkpoint_of_the_task(pack: Path) -> None:
    assert read_state(pack).metadata["format"] == TASK_FORMAT == "subtune-task"
    backbone = network()
    task = task_from_checkpoint(backbone, "birds", read_state(pack))
    expected = candidate_task(backbone, "birds", (3, 4), seed=1, classes=3)
    assert task.labels == LABELS
    assert fingerprint(task_state(backbone, task)[0]) == fingerprint(task_state(backbone, expected)[0])


def test_packs_of_one_task_are_the_same_bytes(bundle: Bundle, pack: Path, tmp_path: Path) -> None:
    assert write_pack(bundle, "birds", tmp_path / "again.pack").read_bytes() == pack.read_bytes()
    assert write_pack(bundle, "signs", tmp_path / "other.pack").read_bytes() != pack.read_bytes()


def test_reading_and_writing_packs_needs_no_torch(bundle: Bundle, tmp_path: Path) -> None:
    code = f"""
import sys
from subtune_deploy.bundle import open_bundle
from subtune_deploy.pack import read_pack, write_pack
print(read_pack(write_pack(open_bundle({str(bundle.path)!r}), "birds", {str(tmp_path)!r})).about.task)
print([name for name in ("torch", "onnx", "onnxruntime", "click") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["birds", "[]"]


@pytest.mark.parametrize(
    ("task", "complaint"),
    [("base", "the base is no task"), ("bird", "has no task 'bird'"), ("", "has no task")],
)
def test_only_tasks_are_shipped(bundle: Bundle, tmp_path: Path, task: str, complaint: str) -> None:
    with pytest.raises(TaskError, match=complaint):
        write_pack(bundle, task, tmp_path)


def test_an_altered_bundle_is_not_shipped_from(bundle: Bundle, tmp_path: Path) -> None:
    path = bundle.path / "weights" / "birds.safetensors"
    path.write_bytes(corruptions(path.read_bytes(), 1))
    with pytest.raises(BundleError, match=r"altered: weights/birds\.safetensors"):
        write_pack(bundle, "birds", tmp_path / "x.pack")
    assert not (tmp_path / "x.pack").exists()


def test_a_bundle_without_weights_says_so(bundle: Bundle, tmp_path: Path) -> None:
    shutil.rmtree(bundle.path / "weights")
    files = {
        name: digest for name, digest in bundle.manifest.files.items() if not name.startswith("weights/")
    }
    save_manifest(bundle.path, replace(bundle.manifest, files=files))
    with pytest.raises(BundleError, match="not the weights they were made from") as caught:
        write_pack(open_bundle(bundle.path), "birds", tmp_path)
    assert "the bundle that export wrote" in caught.value.hint


def test_a_pack_is_not_put_into_the_bundle_nor_where_no_folder_is(bundle: Bundle, tmp_path: Path) -> None:
    for place, complaint in (
        (bundle.path, "inside the bundle"),
        (tmp_path / "none" / "b.pack", "no existing folder"),
    ):
        with pytest.raises(BundleError, match=complaint):
            write_pack(bundle, "birds", place)
    bundle.verify_hashes()


# what is refused


def test_no_corruption_of_a_pack_goes_unnoticed(pack: Path) -> None:
    content = pack.read_bytes()
    for seed in range(400):
        pack.write_bytes(corruptions(content, seed))
        with pytest.raises(InputError) as caught:
            read_pack(pack)
        assert "\n" not in caught.value.message + caught.value.hint


def told(**values: object) -> Callable[[dict[str, dict[str, str]]], None]:
    """Other metadata; None takes an entry away."""

    def change(header: dict[str, dict[str, str]]) -> None:
        for key, value in values.items():
            del header["__metadata__"][key]
            if value is not None:
                header["__metadata__"][key] = value if isinstance(value, str) else json.dumps(value)

    return change


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (told(format="subtune-base"), "is no task pack"),
        (told(format=None), "is no task pack"),
        (told(schema="2"), "schema version 2, this version reads 1"),
        (told(schema=None), "schema version None"),
        (told(task="../../etc"), "task name '../../etc' is unfit"),
        (told(task="base"), "task name 'base' is unfit"),
        (told(base="abc"), "names no base"),
        (told(classes=4), "4 classes and 3 labels"),
        (told(classes=0), "0 classes"),
        (told(classes="three"), "metadata is malformed"),
        (told(classes=3.5), "classes is 3.5"),
        (told(labels=["heron"]), "3 classes and 1 labels"),
        (told(labels="[1, 2, 3]"), r"labels\[0\] is 1"),
        (told(labels="[" * 100_000), "malformed"),
        (told(layers="1-99999999999"), "is outside"),
        (told(layers="all"), "is not a list of blocks"),
        (told(input={"shape": [3]}), "input.shape"),
        (
            told(siamese=None, notes=None, labels=None, tool_version=None, model=None),
            "key 'model' is missing",
        ),
    ],
)
def test_a_forged_pack_is_refused(
    pack: Path, change: Callable[[dict[str, dict[str, str]]], None], complaint: str
) -> None:
    pack.write_bytes(forged(pack.read_bytes(), change))
    with pytest.raises(CheckpointError, match=complaint) as caught:
        read_pack(pack)
    assert "\n" not in caught.value.message


def test_the_bases_own_weights_are_no_pack(bundle: Bundle) -> None:
    with pytest.raises(CheckpointError, match="is no task pack"):
        read_pack(bundle.path / "weights" / "base.safetensors")


def test_a_program_is_no_pack(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(3)}, tmp_path / "birds.pack")
    with pytest.raises(CheckpointError, match="does not begin"):
        read_pack(tmp_path / "birds.pack")


# refit


@pytest.mark.parametrize(
    ("layers", "options", "expected"),
    [
        ((3, 4), {"classes": 3}, True),
        ((3, 4), {"classes": 4}, False),
        ((3, 4), {"classes": 3, "siamese": True}, False),
        ((3,), {"classes": 3}, False),
        ((2, 3), {"classes": 3}, False),
    ],
)
def test_a_task_can_be_refitted_where_units_and_shapes_agree(
    layers: tuple[int, ...], options: dict[str, int], expected: bool
) -> None:
    backbone = network()
    old = candidate_task(backbone, "birds", (3, 4), seed=1, classes=3)
    new = candidate_task(backbone, "birds", layers, seed=9, **options)
    one, two = (
        Pack(Path("x"), about, tensors) for tensors, about in (packed(backbone, old), packed(backbone, new))
    )
    assert refittable(one, two) is expected
