"""Running a bundle as an edge device does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_bundle import SPEC, TARGETS, WEIGHTS, expected, make_bundle, manifest, pictures

from subtune_deploy.bundle import Bundle, add_engine, open_bundle
from subtune_deploy.errors import BundleError, CheckFailed, InputError, PictureError
from subtune_deploy.pictures import load_picture
from subtune_deploy.runtime import answers, load_engine, softmax


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return add_engine(make_bundle(tmp_path / "bundle"), TARGETS["onnxruntime"])


@pytest.fixture
def photographs(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for i, path in enumerate(paths):
        array = np.random.default_rng(i).integers(0, 256, (20, 30, 3)).astype(np.uint8)
        Image.fromarray(array).save(path)
    return paths


def test_the_runtime_needs_neither_torch_nor_the_command_line_nor_a_backend_to_be_imported() -> None:
    heavy = {"torch", "click", "rich", "onnx", "onnxruntime", "openvino", "PIL", "scipy"}
    code = f"import sys, subtune_deploy.runtime; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_running_a_bundle_never_imports_torch(bundle: Bundle, photographs: list[Path]) -> None:
    code = f"""
import sys
from pathlib import Path
from subtune_deploy.bundle import open_bundle
from subtune_deploy.runtime import answers, load_engine
bundle = open_bundle({str(bundle.path)!r})
found = answers(load_engine(bundle, "cpu"), bundle.manifest, [Path({str(photographs[0])!r})])
print(len(found), sorted({{"torch", "click", "rich", "onnx"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1 []"
    assert done.stderr == ""


def test_both_roles_of_an_engine_load_from_the_bundle(bundle: Bundle) -> None:
    batch = pictures(2)
    for role, names in (("graph", ["base", "birds"]), ("base", ["base"])):
        found = load_engine(open_bundle(bundle.path), "cpu", role).run(batch)
        assert list(found) == names
        np.testing.assert_allclose(found["base"], expected(batch)["base"], rtol=1e-4, atol=1e-5)


def test_answers_are_the_likeliest_classes_of_each_task(bundle: Bundle, photographs: list[Path]) -> None:
    found = answers(load_engine(bundle, "cpu"), bundle.manifest, photographs)
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


def test_a_graph_of_fixed_batch_answers_any_number_of_pictures(
    tmp_path: Path, photographs: list[Path]
) -> None:
    fixed = add_engine(make_bundle(tmp_path / "fixed", batch=2), TARGETS["onnxruntime"])
    free = add_engine(make_bundle(tmp_path / "free"), TARGETS["onnxruntime"])
    ours = answers(load_engine(fixed, "cpu"), fixed.manifest, photographs)
    theirs = answers(load_engine(free, "cpu"), free.manifest, photographs)
    for one, other in zip(ours, theirs, strict=True):
        assert dict(one["birds"]) == pytest.approx(dict(other["birds"]), rel=1e-4)


def test_softmax_stands_large_scores() -> None:
    np.testing.assert_allclose(softmax(np.array([1e4, 1e4, 0.0], np.float32)), [0.5, 0.5, 0.0])


def test_an_engine_that_answers_no_number_is_not_believed(photographs: list[Path]) -> None:
    class Broken:
        outputs = ("base", "birds")
        threads = 1

        def run(self, batch: np.ndarray) -> dict[str, np.ndarray]:
            return {name: np.full((1, len(WEIGHTS[name])), np.nan) for name in self.outputs}

    with pytest.raises(CheckFailed, match="task base answers no number"):
        answers(Broken(), manifest(), photographs[:1])


def test_a_picture_that_is_none_is_named(bundle: Bundle, photographs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("not a picture")
    with pytest.raises(PictureError, match=r"text\.jpg"):
        answers(load_engine(bundle, "cpu"), bundle.manifest, [photographs[0], tmp_path / "text.jpg"])


def test_a_target_that_was_not_compiled_is_answered_with_those_that_were(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="no engine for target 'cpi'") as caught:
        load_engine(bundle, "cpi")
    assert "did you mean cpu?" in caught.value.hint
    with pytest.raises(BundleError) as caught:
        load_engine(make_bundle(bundle.path.parent / "bare"), "cpu")
    assert "subtune-deploy compile" in caught.value.hint


def test_an_altered_engine_is_not_loaded(bundle: Bundle) -> None:
    with (bundle.path / "cpu" / "graph.onnx").open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(BundleError, match=r"altered: cpu/graph\.onnx"):
        load_engine(bundle, "cpu")


def test_a_device_needs_the_manifest_and_its_engine_only(bundle: Bundle) -> None:
    for path in bundle.path.glob("*.onnx"):
        path.unlink()
    assert load_engine(open_bundle(bundle.path), "cpu").run(pictures(1))["birds"].shape == (1, 3)


def test_an_engine_of_another_version_of_its_library_is_not_loaded(bundle: Bundle) -> None:
    path = bundle.path / "manifest.json"
    document = json.loads(path.read_text())
    versions = document["engines"]["cpu"]["versions"]
    here = versions["onnxruntime"]
    versions["onnxruntime"] = here.rpartition(".")[0] + ".999"  # a patch release is taken for the same
    path.write_text(json.dumps(document))
    load_engine(open_bundle(bundle.path), "cpu")
    versions["onnxruntime"] = "0.1.0"
    path.write_text(json.dumps(document))
    with pytest.raises(BundleError, match=f"compiled with onnxruntime 0.1.0, here is {here}") as caught:
        load_engine(open_bundle(bundle.path), "cpu")
    assert "pip install onnxruntime==0.1.0" in caught.value.hint


def test_a_picture_that_does_not_fit_the_engine_is_an_input_error(bundle: Bundle) -> None:
    with pytest.raises(InputError):
        load_engine(bundle, "cpu").run(np.ones((1, 3, 9, 9), np.float32))
