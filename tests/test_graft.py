"""A pack put into a bundle: the new task answers rightly, all others the same bits as before, or nothing changes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_tensorfile import forged
from tiny_bundle import tree
from tiny_factories import network
from tiny_networks import random_tasks

from subtune_deploy.backbone import Backbone
from subtune_deploy.build import BuildOptions, build
from subtune_deploy.bundle import Bundle, engine_target, open_bundle, save_manifest, seal
from subtune_deploy.compiling import check_engine, compile_bundle
from subtune_deploy.errors import (
    BundleError,
    CheckFailed,
    CheckpointError,
    InputError,
    ModelError,
    TaskError,
    Unavailable,
)
from subtune_deploy.graft import changed_weights, graft
from subtune_deploy.manifest import SIGNATURE
from subtune_deploy.pack import save_pack, write_pack
from subtune_deploy.parity import References, run_all
from subtune_deploy.plan import Plan, make_plan
from subtune_deploy.runtime import load_engine
from subtune_deploy.sources import packed
from subtune_deploy.targets import load_target
from subtune_deploy.tasks import Task, candidate_task, owners

CHAIN = "tiny_factories:chain"
LABELS = ("heron", "jay", "wren")


def task(backbone: Backbone, name: str, layers: tuple[int, ...], seed: int, **options: Any) -> Task:
    return candidate_task(backbone, name, layers, seed=seed, **options)


def write(path: Path, backbone: Backbone, new: Task) -> Path:
    tensors, about = packed(backbone, new)
    save_pack(path, about, tensors)
    return path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Tasks birds (blocks 3 and 4) and signs (block 1), engine cpu."""
    backbone = network()
    tasks = [
        replace(task(backbone, "birds", (3, 4), 1, classes=3), labels=LABELS),
        task(backbone, "signs", (1,), 2),
    ]
    bundle = build(backbone, tasks, tmp_path_factory.mktemp("graft") / "b")
    return compile_bundle(bundle, load_target("cpu"))


@pytest.fixture
def bundle(built: Bundle, tmp_path: Path) -> Bundle:
    shutil.copytree(built.path, tmp_path / "bundle")
    return open_bundle(tmp_path / "bundle")


@pytest.fixture
def cats(tmp_path: Path) -> Path:
    """A pack of a third task, on block 4."""
    backbone = network()
    new = replace(task(backbone, "cats", (4,), 7, classes=2), labels=("tom", "tabby"), notes=("a note",))
    return write(tmp_path / "cats.pack", backbone, new)


def answers(bundle: Bundle) -> dict[str, np.ndarray]:
    """Of the compiled engine cpu, on the stored inputs and on fresh ones."""
    fresh = np.random.default_rng(1).standard_normal((7, 3, 12, 12)).astype(np.float32)
    inputs = np.concatenate([References.load(bundle.path).inputs, fresh])
    return run_all(load_engine(bundle, "cpu"), inputs, bundle.manifest.batch)


def differing(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> list[str]:
    """Outputs of both that are not the same bits."""
    return [name for name in one if name in two and one[name].tobytes() != two[name].tobytes()]


# what comes out


def test_a_task_is_added_and_all_others_answer_the_same_bits(bundle: Bundle, cats: Path) -> None:
    before, said = answers(bundle), []
    grafted = graft(bundle.path, cats, model=CHAIN, say=said.append)
    assert grafted == open_bundle(bundle.path)
    grafted.verify_hashes()
    assert [entry.name for entry in grafted.manifest.tasks] == ["base", "birds", "signs", "cats"]
    added = grafted.manifest.tasks[-1]
    assert (added.layers, added.labels, added.notes) == ((4,), ("tom", "tabby"), ("a note",))
    assert differing(before, answers(grafted)) == []
    assert {f["task"] for f in grafted.manifest.parity if f["engine"] == "cpu"} == {
        "base",
        "birds",
        "signs",
        "cats",
    }
    assert "unchanged bit for bit: base, birds, signs" in said


def test_a_task_is_replaced_where_it_was_and_only_it_moves(bundle: Bundle, tmp_path: Path) -> None:
    backbone = network()
    pack = write(tmp_path / "birds.pack", backbone, task(backbone, "birds", (3, 4), 8, classes=3))
    before = answers(bundle)
    grafted = graft(bundle.path, pack, model=CHAIN)
    assert [entry.name for entry in grafted.manifest.tasks] == ["base", "birds", "signs"]
    assert grafted.manifest.tasks[1].labels is None
    assert differing(before, answers(grafted)) == ["birds"]


def test_a_task_that_is_shipped_and_grafted_elsewhere_answers_the_same_bits(
    bundle: Bundle, tmp_path: Path
) -> None:
    backbone = network()
    other = compile_bundle(
        build(backbone, [task(backbone, "x", (2,), 4)], tmp_path / "o"), load_target("cpu")
    )
    grafted = graft(other.path, write_pack(bundle, "birds", tmp_path), tmp_path / "new", model=CHAIN)
    assert differing(answers(other), answers(grafted)) == []
    ours, theirs = answers(bundle)["birds"], answers(grafted)["birds"]
    assert (
        np.abs(ours - theirs).max() < 1e-6 * np.abs(ours).max()
    )  # packed with other streams, rounded otherwise
    assert grafted.manifest.tasks[-1] == bundle.manifest.tasks[1]


def test_every_engine_is_compiled_again_for_its_own_target(bundle: Bundle, cats: Path) -> None:
    target = replace(load_target("openvino-cpu"), name="mine", threads=1)
    bundle = compile_bundle(bundle, target)
    grafted = graft(bundle.path, cats, model=CHAIN)
    assert list(grafted.manifest.engines) == ["cpu", "mine"]
    assert engine_target(grafted, "mine") == target
    for name in grafted.manifest.engines:
        assert check_engine(grafted, engine_target(grafted, name), grafted.path / name)


def test_another_folder_leaves_the_old_bundle_alone(bundle: Bundle, cats: Path, tmp_path: Path) -> None:
    before = tree(bundle.path)
    grafted = graft(bundle.path, cats, tmp_path / "new", model=CHAIN, name="kittens")
    assert tree(bundle.path) == before
    assert grafted.path == tmp_path / "new"
    assert grafted.manifest.tasks[-1].name == "kittens"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "cats.pack", "new"]


def test_grafting_again_is_the_same_as_exporting_all_at_once(
    bundle: Bundle, cats: Path, tmp_path: Path
) -> None:
    backbone = network()
    new = task(backbone, "cats", (4,), 7, classes=2)
    tasks = [task(backbone, "birds", (3, 4), 1, classes=3), task(backbone, "signs", (1,), 2), new]
    at_once = build(backbone, tasks, tmp_path / "at_once")
    grafted = graft(bundle.path, cats, model=CHAIN)
    assert grafted.manifest.plan == open_bundle(at_once.path).manifest.plan
    assert not changed_weights(at_once.path / "graph.onnx", grafted.path / "graph.onnx")


def test_the_pictures_that_parity_was_checked_on_are_kept(tmp_path: Path, cats: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "own.png")
    backbone = network()
    old = build(backbone, [task(backbone, "one", (2,), 1)], tmp_path / "b", pictures=[tmp_path / "own.png"])
    before = References.load(old.path)
    after = References.load(graft(old.path, cats, model=CHAIN).path)
    assert np.array_equal(before.inputs, after.inputs)
    assert before.kinds == after.kinds
    assert set(after.answers) == {"base", "one", "cats"}


@pytest.mark.parametrize(("old", "new"), [((3, 4), (1,)), ((4,), ()), ((), (2,)), ((2, 4), (1, 3))])
def test_streams_that_ran_alone_are_not_rounded_otherwise(
    tmp_path: Path, old: tuple[int, ...], new: tuple[int, ...]
) -> None:
    backbone, cpu = network(), load_target("cpu")
    before = compile_bundle(build(backbone, [task(backbone, "birds", old, 1)], tmp_path / "b"), cpu)
    pack = write(tmp_path / "p", backbone, task(backbone, "signs", new, 2))
    grafted = graft(before.path, pack, tmp_path / "new", model=CHAIN)
    assert differing(answers(before), answers(grafted)) == []


def test_a_task_that_others_were_packed_with_leaves_them_a_smaller_batch_only_if_that_is_taken(
    tmp_path: Path,
) -> None:
    backbone, cpu = network(), load_target("cpu")
    tasks = [task(backbone, "birds", (1,), 1), task(backbone, "signs", (2,), 2)]
    bundle = compile_bundle(build(backbone, tasks, tmp_path / "b" / "bundle"), cpu)
    pack = write(tmp_path / "p", backbone, task(backbone, "birds", (3, 4), 9))
    before = answers(bundle)
    hint = refuse(CheckFailed, "the same bits as before: base, relative error", bundle, pack)
    assert "--rounding" in hint
    assert "--name" in hint
    beside = graft(bundle.path, pack, tmp_path / "beside", model=CHAIN, name="birds2")
    assert differing(before, answers(beside)) == []
    said: list[str] = []
    after = answers(
        graft(bundle.path, pack, tmp_path / "rounded", model=CHAIN, rounding=True, say=said.append)
    )
    assert any(line.startswith("rounded otherwise than before: base, relative") for line in said)
    for name in ("base", "signs"):
        assert np.abs(before[name] - after[name]).max() < 1e-6 * np.abs(before[name]).max()


def test_one_task_after_the_other_is_grafted(tmp_path: Path) -> None:
    backbone, cpu = network(), load_target("cpu")
    bundle = compile_bundle(build(backbone, [task(backbone, "t0", (3, 4), 1)], tmp_path / "b"), cpu)
    for number, layers in enumerate([(1,), (2, 3), (1, 3)], start=1):
        before = answers(bundle)
        pack = write(tmp_path / "p", backbone, task(backbone, f"t{number}", layers, 10 + number))
        bundle = graft(bundle.path, pack, model=CHAIN)
        assert differing(before, answers(bundle)) == []
    assert [entry.name for entry in bundle.manifest.tasks] == ["base", "t0", "t1", "t2", "t3"]


@pytest.mark.parametrize("seed", range(40))
def test_a_task_that_runs_apart_leaves_the_steps_of_all_others_as_they_are(seed: int) -> None:
    backbone = network("dense" if seed % 2 else "branching")
    tasks = random_tasks(backbone, seed)
    new = task(backbone, "new", (1 + seed % 4, 1 + seed % 3), 99, siamese=seed % 5 == 0)
    before, after = (
        make_plan(
            backbone.topology,
            owners(each),
            siamese=[one.name for one in each if one.siamese],
            merge="never" if seed % 7 == 0 else "always",
            apart=["new"],
        )
        for each in (tasks, [*tasks, new])
    )
    assert [step for step in after.steps if "new" not in step.streams] == list(before.steps)
    assert all(step.streams == ("new",) for step in after.steps if "new" in step.streams)
    assert Plan.from_json(json.loads(json.dumps(after.to_json()))) == after


@pytest.mark.parametrize(
    ("topology", "options"),
    [
        ("chain", BuildOptions(batch=None)),
        ("chain", BuildOptions(batch=4, merge="never")),
        ("chain", BuildOptions(lowering="grouped")),
        ("branching", BuildOptions()),
        ("dense", BuildOptions(merge="always")),
        ("tokens", BuildOptions()),
    ],
)
def test_others_are_unchanged_however_the_graph_is_made(
    tmp_path: Path, topology: str, options: BuildOptions
) -> None:
    backbone, cpu = network(topology), load_target("cpu")
    tasks = [task(backbone, "birds", (3, 4), 1), task(backbone, "pairs", (2,), 2, siamese=True)]
    old = compile_bundle(build(backbone, tasks, tmp_path / "b", options), cpu)
    pack = write(tmp_path / "p", backbone, task(backbone, "cats", (2, 3), 5, classes=2))
    grafted = graft(old.path, pack, tmp_path / "new", model=f"tiny_factories:{topology}")
    assert differing(answers(old), answers(grafted)) == []
    for part in ("batch", "merge", "lowering"):
        assert getattr(grafted.manifest, part) == getattr(old.manifest, part)


def test_a_siamese_task_is_grafted_too(bundle: Bundle, tmp_path: Path) -> None:
    backbone = network()
    pack = write(tmp_path / "p", backbone, task(backbone, "pairs", (4,), 5, siamese=True))
    before = answers(bundle)
    grafted = graft(bundle.path, pack, model=CHAIN)
    assert grafted.manifest.tasks[-1].siamese
    assert differing(before, answers(grafted)) == []


# what is refused, and leaves the bundle as it was


def refuse(kind: type[Exception], complaint: str, bundle: Bundle, pack: Path, **options: Any) -> str:
    """`graft` must raise; the hint. The folder above the bundle is as it was."""
    before = tree(bundle.path.parent)
    with pytest.raises(kind, match=complaint) as caught:
        graft(bundle.path, pack, **{"model": CHAIN, **options})
    assert tree(bundle.path.parent) == before
    assert isinstance(caught.value, (InputError, CheckFailed, Unavailable))
    assert "\n" not in caught.value.message + caught.value.hint
    return caught.value.hint


def test_a_pack_of_another_backbone_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    other = network("dense")
    pack = write(tmp_path / "p", other, task(other, "x", (1,), 1))
    refuse(CheckpointError, "another backbone: tiny_factories:dense, the bundle's is", bundle, pack)


def test_a_pack_for_another_version_of_the_base_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    other = network(seed=6)
    pack = write(tmp_path / "p", other, task(other, "x", (1,), 1))
    hint = refuse(CheckpointError, "was tuned on other weights of tiny_factories:chain", bundle, pack)
    assert "seed 5" in hint


def test_a_librarys_pack_under_another_name_is_refused(bundle: Bundle, cats: Path) -> None:
    cats.write_bytes(
        forged(cats.read_bytes(), lambda header: header["__metadata__"].update(model="timm:resnet50"))
    )
    save_manifest(bundle.path, replace(bundle.manifest, model="resnet50"))
    refuse(CheckpointError, "another backbone: timm:resnet50", open_bundle(bundle.path), cats)


def test_the_same_code_in_another_folder_is_no_other_backbone(bundle: Bundle, cats: Path) -> None:
    cats.write_bytes(
        forged(cats.read_bytes(), lambda header: header["__metadata__"].update(model="nets/mine.py:chain"))
    )
    assert graft(bundle.path, cats, model=CHAIN).manifest.tasks[-1].name == "cats"


def test_a_pack_for_other_pictures_is_refused(bundle: Bundle, cats: Path) -> None:
    def change(header: dict[str, dict[str, str]]) -> None:
        given = json.loads(header["__metadata__"]["input"])
        header["__metadata__"]["input"] = json.dumps({**given, "shape": [3, 16, 16], "mean": [0.5, 0.5, 0.5]})

    cats.write_bytes(forged(cats.read_bytes(), change))
    refuse(CheckpointError, r"shape \(3, 16, 16\), not \(3, 12, 12\), mean \(0.5", bundle, cats)


def test_weights_and_labels_that_disagree_are_refused(bundle: Bundle, cats: Path) -> None:
    content = cats.read_bytes()
    labels = forged(content, lambda header: header["__metadata__"].update(labels='["tom"]'))
    siamese = forged(content, lambda header: header["__metadata__"].update(siamese="true"))
    for forgery, complaint in (
        (labels, "2 classes and 1 labels"),
        (siamese, "2 classes, siamese"),
        (content[:-1], "cut"),
    ):
        cats.write_bytes(forgery)
        refuse(CheckpointError, complaint, bundle, cats)


def test_names_that_clash_are_refused(bundle: Bundle, cats: Path, tmp_path: Path) -> None:
    refuse(TaskError, "'base' is unfit", bundle, cats, name="base")
    refuse(TaskError, "'a b' is unfit", bundle, cats, name="a b")
    twin = write_pack(bundle, "birds", tmp_path / "twin.pack")
    refuse(TaskError, "jays equals birds in every weight", bundle, twin, name="jays")


def test_a_bundle_without_weights_is_refused(bundle: Bundle, cats: Path) -> None:
    shutil.rmtree(bundle.path / "weights")
    seal(bundle.path, bundle.manifest)
    refuse(BundleError, "not the weights they were made from", bundle, cats)


def test_an_altered_bundle_is_refused(bundle: Bundle, cats: Path) -> None:
    (bundle.path / "cpu" / "graph.onnx").write_bytes(b"")
    refuse(BundleError, "altered: cpu/graph.onnx", bundle, cats)


def test_code_is_not_run_unasked_and_must_be_that_network(bundle: Bundle, cats: Path) -> None:
    refuse(ModelError, "not run unasked", bundle, cats, model=None)
    refuse(CheckpointError, "architecture|not of this model", bundle, cats, model="tiny_factories:wider")


def test_code_that_became_another_network_is_noticed_by_its_answers(bundle: Bundle, cats: Path) -> None:
    for rounding in (False, True):
        refuse(
            CheckFailed,
            "same bits as before: base,",
            bundle,
            cats,
            model="tiny_factories:flipped",
            rounding=rounding,
        )


def test_a_folder_inside_the_bundle_is_refused(bundle: Bundle, cats: Path) -> None:
    refuse(BundleError, "inside the bundle", bundle, cats, out=bundle.path / "new")


# engines that cannot be compiled here


def another_engine(bundle: Bundle, keep: Sequence[str] = (), **changed: str) -> Bundle:
    """The bundle with its engine once more, as `gpu`, its recipe changed."""
    shutil.copytree(bundle.path / "cpu", bundle.path / "gpu")
    path = bundle.path / "gpu" / "target.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "name": "gpu", "keep": keep, **changed}))
    files = tuple(name.replace("cpu/", "gpu/") for name in bundle.manifest.engines["cpu"].files)
    entry = replace(bundle.manifest.engines["cpu"], files=files, **changed)
    seal(bundle.path, replace(bundle.manifest, engines={**bundle.manifest.engines, "gpu": entry}))
    return open_bundle(bundle.path)


@pytest.fixture
def away(bundle: Bundle) -> Bundle:
    """The bundle with an engine of a backend that this machine has not."""
    return another_engine(bundle, backend="tensorrt")


def test_an_engine_that_cannot_be_compiled_here_is_told_before_anything_is_done(
    away: Bundle, cats: Path
) -> None:
    said: list[str] = []
    hint = refuse(Unavailable, "engines cannot be compiled again here: gpu", away, cats, say=said.append)
    assert said == []
    assert "--without gpu" in hint


def test_an_engine_can_be_left_out(away: Bundle, cats: Path) -> None:
    grafted = graft(away.path, cats, model=CHAIN, without=["gpu"])
    assert list(grafted.manifest.engines) == ["cpu"]
    assert not (away.path / "gpu").exists()
    refuse(BundleError, "no engine 'gpus' to leave out", grafted, cats, without=["gpus"])


# interrupted


@pytest.mark.parametrize(
    "stage", ["making", "task cats", "stand-alone", "exporting", "checking", "unchanged", "compiling"]
)
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_graft_leaves_the_old_bundle_whole(
    bundle: Bundle, cats: Path, stage: str, error: type[BaseException]
) -> None:
    def stop(line: str) -> None:
        if stage in line:
            raise error

    before = tree(bundle.path.parent)
    with pytest.raises(error):
        graft(bundle.path, cats, model=CHAIN, say=stop)
    assert tree(bundle.path.parent) == before
    assert sorted(path.name for path in bundle.path.parent.iterdir()) == ["bundle", "cats.pack"]


def test_a_bundle_that_changed_meanwhile_is_not_overwritten(bundle: Bundle, cats: Path) -> None:
    def meddle(line: str) -> None:
        if line.startswith("unchanged"):
            save_manifest(bundle.path, replace(bundle.manifest, measurements=({"target": "cpu"},)))

    with pytest.raises(BundleError, match="changed by someone else meanwhile"):
        graft(bundle.path, cats, model=CHAIN, say=meddle)
    assert open_bundle(bundle.path).manifest.measurements == ({"target": "cpu"},)


# what a refit would be given


def test_only_the_replaced_tasks_weights_change_in_the_graph(bundle: Bundle, tmp_path: Path) -> None:
    backbone = network()
    pack = write(tmp_path / "p", backbone, task(backbone, "birds", (3, 4), 8, classes=3))
    grafted = graft(bundle.path, pack, tmp_path / "new", model=CHAIN)
    changed = changed_weights(bundle.path / "graph.onnx", grafted.path / "graph.onnx")
    assert changed
    assert all("birds" in name for name in changed), sorted(changed)
    assert changed_weights(bundle.path / "base.onnx", grafted.path / "base.onnx") == {}


def test_graphs_of_other_shapes_are_not_compared(bundle: Bundle, cats: Path, tmp_path: Path) -> None:
    grafted = graft(bundle.path, cats, tmp_path / "new", model=CHAIN)
    with pytest.raises(CheckFailed, match="has not the weights"):
        changed_weights(bundle.path / "graph.onnx", grafted.path / "graph.onnx")


# what a new bundle does not inherit


def test_a_signature_is_said_to_be_gone_and_measurements_are_left_behind(bundle: Bundle, cats: Path) -> None:
    (bundle.path / SIGNATURE).write_bytes(b"signed")
    save_manifest(bundle.path, replace(bundle.manifest, measurements=({"target": "cpu"},)))
    said: list[str] = []
    grafted = graft(bundle.path, cats, model=CHAIN, say=said.append)
    assert not (grafted.path / SIGNATURE).exists()
    assert grafted.manifest.measurements == ()
    assert any("sign it again" in line for line in said)


def test_an_engine_that_keeps_units_for_its_weights_is_left_out_or_refused(
    bundle: Bundle, cats: Path
) -> None:
    int8 = another_engine(bundle, precision="int8", keep=("block2",))
    hint = refuse(
        InputError, "engine gpu keeps units in float32 that were found for other weights", int8, cats
    )
    assert "--without gpu" in hint


def test_an_int8_engine_needs_its_calibration_data_again(bundle: Bundle, cats: Path) -> None:
    int8 = another_engine(bundle, precision="int8")
    hint = refuse(InputError, "engine gpu is int8", int8, cats)
    assert "--calibrate" in hint
    assert "--without gpu" in hint
    assert list(graft(int8.path, cats, model=CHAIN, without=["gpu"]).manifest.engines) == ["cpu"]
