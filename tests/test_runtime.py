"""Running a bundle as an edge device does."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_bundle import SPEC, TARGETS, WEIGHTS, expected, make_bundle, pictures

from subtune_deploy.bundle import Bundle as Record
from subtune_deploy.bundle import add_engine, open_bundle, save_manifest
from subtune_deploy.errors import BundleError, CheckFailed, InputError, PictureError
from subtune_deploy.manifest import EngineEntry, Manifest
from subtune_deploy.pictures import load_picture
from subtune_deploy.records import to_plain, to_record
from subtune_deploy.runtime import Bundle, engine_files, load_engine, softmax

DOCUMENT = Path(__file__).parents[1] / "docs" / "runtime.md"


@pytest.fixture
def bundle(tmp_path: Path) -> Record:
    return add_engine(make_bundle(tmp_path / "bundle"), TARGETS["onnxruntime"])


@pytest.fixture
def photographs(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, array in zip(paths, pixels(3), strict=True):
        Image.fromarray(array).save(path)
    return paths


def pixels(count: int) -> list[np.ndarray]:
    return [np.random.default_rng(i).integers(0, 256, (20, 30, 3)).astype(np.uint8) for i in range(count)]


def edited(bundle: Record, change: Callable[[dict[str, Any]], None]) -> Path:
    """The bundle's folder with another manifest, which is well formed and fits its own digest."""
    document = to_plain(bundle.manifest)
    change(document)
    save_manifest(bundle.path, to_record(Manifest, document))
    return bundle.path


@dataclass
class Fake:
    """An engine of the tiny bundle that answers the mean of each image, in all classes."""

    outputs: tuple[str, ...] = ("base", "birds")
    threads: int = 1
    batches: tuple[int, int] = (1, 4)
    called: list[int] = field(default_factory=list)

    def run(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        self.called.append(len(batch))
        mean = batch.mean((1, 2, 3))[:, None]
        return {name: np.repeat(mean, len(WEIGHTS[name]), axis=1) for name in self.outputs}


# Imports


def imports(code: str, names: set[str]) -> list[str]:
    """Which of the modules `names` are loaded after `code`, in a process of its own."""
    code = f"import sys\n{code}\nprint(*sorted({names!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


def test_the_runtime_needs_neither_torch_nor_the_command_line_nor_a_backend_to_be_imported() -> None:
    heavy = {"torch", "click", "rich", "onnx", "onnxruntime", "openvino", "PIL", "scipy", "safetensors"}
    assert imports("import subtune_deploy.runtime", heavy) == []


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_running_a_bundle_never_imports_torch(tmp_path: Path, photographs: list[Path], backend: str) -> None:
    bundle = add_engine(make_bundle(tmp_path / "bundle"), TARGETS[backend])
    code = f"""
from subtune_deploy.records import to_plain, to_record
from subtune_deploy.runtime import Bundle
assert len(Bundle.open({str(bundle.path)!r}).top([{str(photographs[0])!r}])) == 1
"""
    assert imports(code, {"torch", "click", "rich", "onnx", "safetensors"}) == []


def test_the_runtime_needs_nothing_but_numpy_to_be_imported() -> None:
    """benchmarks/import_time.py says how long that takes."""
    code = "import sys, subtune_deploy.runtime; print(*{name.partition('.')[0] for name in sys.modules})"
    before = "import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    with_us, without = (
        set(
            subprocess.run(
                [sys.executable, "-c", each], capture_output=True, text=True, check=True
            ).stdout.split()
        )
        for each in (code, before)
    )
    assert with_us - without - sys.stdlib_module_names == {"numpy", "subtune_deploy"}


# Answers


def test_a_bundle_says_what_it_answers(bundle: Record) -> None:
    found = Bundle.open(bundle.path)
    assert found.target == "cpu"
    assert found.tasks == ("base", "birds")
    assert found.labels == {"base": None, "birds": ("heron", "jay", "wren")}
    assert found.input == SPEC


def test_scores_are_an_array_per_task(bundle: Record) -> None:
    batch = pictures(5)
    scores = Bundle.open(str(bundle.path), "cpu").run(batch)
    assert list(scores) == ["base", "birds"]
    for task, wanted in expected(batch).items():
        assert scores[task].shape == wanted.shape
        np.testing.assert_allclose(scores[task], wanted, rtol=1e-4, atol=1e-5)


def test_files_arrays_and_network_inputs_are_answered_alike(bundle: Record, photographs: list[Path]) -> None:
    found = Bundle.open(bundle.path)
    by_path = found.run(photographs)
    ready = np.stack([load_picture(path, SPEC) for path in photographs])
    for images in ([str(path) for path in photographs], pixels(3), tuple(pixels(3)), ready):
        scores = found.run(images)
        assert all(np.array_equal(scores[task], by_path[task]) for task in found.tasks)


@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_an_engine_of_fixed_batch_answers_any_number_of_images(
    tmp_path: Path, batch: int, count: int
) -> None:
    record = add_engine(make_bundle(tmp_path / "bundle", batch), TARGETS["onnxruntime"])
    images = pictures(count)
    for task, scores in Bundle.open(record.path).run(images).items():
        np.testing.assert_allclose(scores, expected(images)[task], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batches, calls", [((1, 4), [4, 4, 1]), ((2, 4), [4, 4, 2]), ((1, 9), [9])])
def test_the_bounds_of_an_engine_are_kept(bundle: Record, batches: tuple[int, int], calls: list[int]) -> None:
    engine, images = Fake(batches=batches), pictures(9)
    scores = Bundle(bundle, "cpu", engine).run(images)
    assert engine.called == calls
    np.testing.assert_allclose(scores["birds"][:, 2], images.mean((1, 2, 3)), rtol=1e-6)


def test_top_names_the_likeliest_classes_of_each_task(bundle: Record, photographs: list[Path]) -> None:
    found = Bundle.open(bundle.path).top(photographs)
    assert len(found) == 3
    for path, tasks in zip(photographs, found, strict=True):
        scores = expected(load_picture(path, SPEC)[None])
        assert list(tasks) == ["base", "birds"]
        birds = dict(zip(("heron", "jay", "wren"), softmax(scores["birds"][0]), strict=True))
        assert dict(tasks["birds"]) == pytest.approx(birds, rel=1e-4)
        assert [number for number, _ in tasks["base"]] == np.argsort(-scores["base"][0])[:5].tolist()
        shares = [share for _, share in tasks["base"]]
        assert len(shares) == 5
        assert shares == sorted(shares, reverse=True)
    json.dumps(found)
    (best,) = Bundle.open(bundle.path).top(photographs[:1], count=1)
    assert best == {task: guesses[:1] for task, guesses in found[0].items()}


def test_softmax_stands_large_scores() -> None:
    np.testing.assert_allclose(softmax(np.array([1e4, 1e4, 0.0], np.float32)), [0.5, 0.5, 0.0])


def test_both_roles_of_an_engine_load_from_the_bundle(bundle: Record) -> None:
    batch = pictures(2)
    for role, names in (("graph", ["base", "birds"]), ("base", ["base"])):
        found = load_engine(open_bundle(bundle.path), "cpu", role).run(batch)
        assert list(found) == names
        np.testing.assert_allclose(found["base"], expected(batch)["base"], rtol=1e-4, atol=1e-5)


def test_a_device_needs_the_manifest_and_its_engine_only(bundle: Record) -> None:
    for path in (*bundle.path.glob("*.onnx"), bundle.path / "cpu" / "base.onnx"):
        path.unlink()
    assert Bundle.open(bundle.path).run(pictures(1))["birds"].shape == (1, 3)


def test_an_engine_is_loaded_from_the_files_of_its_role_and_those_of_all_roles() -> None:
    names = (
        "graph.xml",
        "graph.bin",
        "base.xml",
        "base.bin",
        "program.pt2",
        "target.json",
        "source/graph.onnx",
    )
    entry = EngineEntry("openvino", "fp32", {}, tuple(f"t/{name}" for name in names))
    shared = ["t/program.pt2", "t/target.json"]
    assert engine_files(entry, "graph") == ["t/graph.xml", "t/graph.bin", *shared]
    assert engine_files(entry, "base") == ["t/base.xml", "t/base.bin", *shared]


def test_the_document_runs(bundle: Record, photographs: list[Path], tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL)
    bundle.path.rename(tmp_path / "street")
    for name, photograph in zip(("a.jpg", "b.jpg"), photographs, strict=False):
        photograph.rename(tmp_path / name)
    shown = (
        f"{code}\nassert {{task: len(each) for task, each in scores.items()}} == {{'base': 2, 'birds': 2}}"
    )
    environment = {**os.environ, "PYTHONPATH": str(DOCUMENT.parents[1])}
    subprocess.run([sys.executable, "-c", shown], cwd=tmp_path, env=environment, check=True)


# Threads


class Alone(Fake):
    """Counts its callers, as one request of a library does; they take long enough to meet."""

    inside = 0
    most_inside = 0

    def run(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        time.sleep(0.002)
        answer = super().run(batch)
        self.inside -= 1
        return answer


def test_one_call_at_a_time_enters_the_engine(bundle: Record) -> None:
    engine = Alone()
    shared = Bundle(bundle, "cpu", engine)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(shared.run, [pictures(3, seed) for seed in range(16)]))
    assert len(engine.called) == 16
    assert engine.most_inside == 1


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_answers_of_four_threads_are_those_of_one_and_never_mixed(tmp_path: Path, backend: str) -> None:
    record = add_engine(make_bundle(tmp_path / "bundle", batch=1), TARGETS[backend])
    shared = Bundle.open(record.path)
    images = [pictures(2, seed) for seed in range(16)]
    wanted = [shared.run(each) for each in images]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(shared.run, images * 25))
    for i, scores in enumerate(found):
        assert all(np.array_equal(scores[task], wanted[i % 16][task]) for task in shared.tasks)


def test_a_call_that_fails_leaves_the_engine_to_the_next(bundle: Record) -> None:
    found = Bundle.open(bundle.path)
    with pytest.raises(InputError):
        found.run(pictures(1)[:, :, :4])
    assert found.run(pictures(1))["birds"].shape == (1, 3)


# What is refused


@pytest.mark.parametrize(
    "images, told",
    [
        (np.ones((17, 3, 9, 9), np.float32), r"an array float32 \(17, 3, 9, 9\)"),
        (np.ones((3, 8, 8), np.float32), r"an array float32 \(3, 8, 8\)"),
        (np.ones((17, 3, 8, 8)), r"an array float64 \(17, 3, 8, 8\)"),
        (np.ones((20, 30, 3), np.uint8), r"an array uint8 \(20, 30, 3\)"),
        (np.float32(1) * np.ones((0, 3, 8, 8), np.float32), "without any"),
        (np.array(1.0, np.float32), r"an array float32 \(\)"),
        ([], "a list without any"),
        ("picture.jpg", "a str"),
        (Path("picture.jpg"), "a PosixPath|a WindowsPath"),
        (None, "a NoneType"),
    ],
)
def test_what_is_neither_pictures_nor_a_batch_is_refused(bundle: Record, images: Any, told: str) -> None:
    with pytest.raises(InputError, match=told) as caught:
        Bundle.open(bundle.path).run(images)
    assert "float32 of shape (n, 3, 8, 8), or a list of paths" in caught.value.hint


@pytest.mark.parametrize("picture", [np.ones((3, 8, 8), np.float32), 7, None])
def test_what_is_no_picture_is_refused(bundle: Record, picture: Any) -> None:
    with pytest.raises(PictureError, match="is no picture"):
        Bundle.open(bundle.path).run([*pixels(1), picture])


def test_a_picture_that_is_none_is_named(bundle: Record, photographs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("not a picture")
    with pytest.raises(PictureError, match=r"text\.jpg"):
        Bundle.open(bundle.path).run([photographs[0], tmp_path / "text.jpg"])


def test_an_engine_that_answers_no_number_is_not_believed(bundle: Record, photographs: list[Path]) -> None:
    class Broken(Fake):
        def run(self, batch: np.ndarray) -> dict[str, np.ndarray]:
            answers = super().run(batch)
            answers["birds"][1] = np.nan
            return answers

    found = Bundle(bundle, "cpu", Broken())
    with pytest.raises(CheckFailed, match=r"task birds answers no number for .*1\.png"):
        found.top(photographs)
    with pytest.raises(CheckFailed, match="task birds answers no number for image 2"):
        found.top(pictures(3))


def test_a_library_that_fails_is_told_in_its_last_line(bundle: Record) -> None:
    class Failing(Fake):
        def run(self, batch: np.ndarray) -> dict[str, np.ndarray]:
            raise RuntimeError("a long story\nout of memory")

    with pytest.raises(CheckFailed, match="engine cpu failed while it ran: out of memory"):
        Bundle(bundle, "cpu", Failing()).run(pictures(1))


def test_a_target_that_was_not_compiled_is_answered_with_those_that_were(bundle: Record) -> None:
    with pytest.raises(BundleError, match="no engine for target 'cpi'") as caught:
        Bundle.open(bundle.path, "cpi")
    assert "did you mean cpu?" in caught.value.hint
    bare = make_bundle(bundle.path.parent / "bare")
    for target in (None, "cpu"):
        with pytest.raises(BundleError, match="has no engine") as caught:
            Bundle.open(bare.path, target)
        assert "subtune-deploy compile" in caught.value.hint


def test_an_altered_engine_is_not_loaded(bundle: Record) -> None:
    with (bundle.path / "cpu" / "graph.onnx").open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(BundleError, match=r"altered: cpu/graph\.onnx"):
        Bundle.open(bundle.path)


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda d: d["tasks"][1].update(name="wrens"), "its outputs are base, birds"),
        (lambda d: d["tasks"].pop(), "its outputs are base, birds"),
        (
            lambda d: d["tasks"][1].update(classes=2, labels=None),
            r"task birds answers \(1, 3\), not \(1, 2\)",
        ),
        (lambda d: d["input"].update(shape=[3, 9, 9]), "it takes Nx3x8x8, not Nx3x9x9"),
        (lambda d: d["input"].update(shape=[3, 10**9, 10**9]), "it takes Nx3x8x8, not"),
        (lambda d: d["input"].update(shape=[3, 10**30, 8]), "."),
    ],
)
def test_an_engine_that_is_not_the_one_of_its_manifest_is_refused(
    bundle: Record, change: Callable[[dict[str, Any]], None], told: str
) -> None:
    path = edited(bundle, change)
    with pytest.raises(BundleError, match=f"engine cpu is not the one of its manifest: .*({told})") as caught:
        Bundle.open(path)
    assert "\n" not in caught.value.message


def test_a_batch_that_the_engine_does_not_take_costs_no_memory(tmp_path: Path) -> None:
    record = add_engine(make_bundle(tmp_path / "bundle", batch=2), TARGETS["onnxruntime"])
    for batch in (1, 10**9, 10**30):
        path = edited(record, lambda document, batch=batch: document.update(batch=batch))
        with pytest.raises(BundleError, match=r"it takes 2x3x8x8, not 1x3x8x8|batch is 10"):
            Bundle.open(path)


def test_an_engine_of_another_version_of_its_library_is_not_loaded(bundle: Record) -> None:
    here = bundle.manifest.engines["cpu"].versions["onnxruntime"]

    def version(value: str) -> Path:
        return edited(bundle, lambda d: d["engines"]["cpu"]["versions"].update(onnxruntime=value))

    Bundle.open(version(here.rpartition(".")[0] + ".999"))  # a patch release is taken for the same
    with pytest.raises(BundleError, match=f"compiled with onnxruntime 0.1.0, here is {here}") as caught:
        Bundle.open(version("0.1.0"))
    assert "pip install onnxruntime==0.1.0" in caught.value.hint


@pytest.mark.parametrize(
    "batch, told",
    [
        (np.ones((1, 3, 9, 9), np.float32), r"\(1, 3, 9, 9\), the engine takes Nx3x8x8"),
        (np.ones((1, 3, 8, 8)), "float64, the engine takes float32"),
        (np.ones((1, 8, 8, 3), np.uint8), "uint8, the engine takes float32"),
    ],
)
def test_a_batch_that_does_not_fit_the_engine_is_refused_by_it(
    bundle: Record, batch: np.ndarray, told: str
) -> None:
    for run in (Bundle.open(bundle.path).run, load_engine(bundle, "cpu").run):
        with pytest.raises(InputError, match=f"the batch is {told}"):
            run(batch)
