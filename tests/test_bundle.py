"""Bundles: round trip, strict reading, hashes, engines, and nothing half-written under a final name."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_bundle import TARGETS, make_bundle, manifest, tree, write_graphs, write_program

from subtune_deploy import bundle as bundle_module
from subtune_deploy.backends.base import Target
from subtune_deploy.bundle import (
    Bundle,
    Checked,
    add_engine,
    engine_target,
    open_bundle,
    save_manifest,
    seal,
)
from subtune_deploy.errors import BundleError, ParityError, TargetError, Unavailable

CPU = TARGETS["onnxruntime"]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "bundle")


def write_and_raise(path: Path, failure: BaseException) -> None:
    path.write_text("new")
    raise failure


def edit(bundle: Bundle, change: Callable[[dict[str, Any]], object]) -> None:
    path = bundle.path / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


# reading


def test_a_manifest_survives_the_round_trip(bundle: Bundle) -> None:
    assert replace(bundle.manifest, files={}) == manifest()
    assert set(bundle.manifest.files) == {"graph.onnx", "base.onnx"}
    document = json.loads((bundle.path / "manifest.json").read_text())
    assert document["schema"] == 3
    assert list(document)[-1] == "sha256"
    assert document["tasks"][1]["labels"] == ["heron", "jay", "wren"]


def test_an_untouched_bundle_verifies(bundle: Bundle) -> None:
    open_bundle(bundle.path).verify_hashes()
    add_engine(bundle, CPU).verify_hashes()


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("none", "does not exist"),
        ("bundle/graph.onnx", "is a file, not a bundle"),
        (".", "is not a bundle: it holds no manifest.json"),
    ],
)
def test_what_is_not_a_bundle_is_named(bundle: Bundle, tmp_path: Path, path: str, complaint: str) -> None:
    with pytest.raises(BundleError, match=complaint) as caught:
        open_bundle(tmp_path / path)
    assert "subtune-deploy export" in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2", b"\xff\xfe", b"[" * 100_000, b"nonsense"])
def test_a_manifest_that_is_not_json_is_refused(bundle: Bundle, content: bytes) -> None:
    (bundle.path / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError, match="is not JSON") as caught:
        open_bundle(bundle.path)
    assert "\n" not in caught.value.message


def set_at(*keys: Any) -> Callable[[dict[str, Any]], object]:
    """set_at("tasks", 1, "classes", 4): what it changes in a manifest."""

    def change(document: Any) -> None:
        for key in keys[:-2]:
            document = document[key]
        document[keys[-2]] = keys[-1]

    return change


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (set_at("schema", 1), "schema version is 1, this version reads 3"),
        (set_at("schema", None), "schema version is None"),
        (lambda d: d.pop("schema"), "it has no schema version"),
        (lambda d: d.pop("plan"), "missing: plan"),
        (lambda d: [d.pop(key) for key in ("files", "engines")], "missing: engines, files"),
        (lambda d: d["tasks"][0].pop("layers"), r"key 'tasks\[0\].layers' is missing"),
        (set_at("models", "x"), "unknown key 'models'"),
        (set_at("tasks", 1, "classes", "three"), r"tasks\[1\].classes is 'three'"),
        (set_at("tasks", 1, "classes", 4), "task birds has 4 classes"),
        (set_at("tasks", 1, "layers", [9]), r"task birds tuned \[9\]"),
        (set_at("tasks", 1, "name", "base"), "tasks are"),
        (set_at("tasks", 0, "name", "birds"), "tasks are"),
        (set_at("tasks", 1, "name", "../x"), "task name '../x' is unfit"),
        (set_at("tasks", []), r"tasks are \[\]"),
        (set_at("input", "shape", [3, 8]), "input.shape"),
        (set_at("input", "shape", [3, 0, 8]), "input is"),
        (set_at("input", "mean", [0.5]), "input is"),
        (set_at("input", "std", [0.5, 0, 0.5]), "input is"),
        (set_at("input", "crop", 0), "input is"),
        (set_at("batch", 0), "batch is 0"),
        (set_at("batch", True), "batch is True"),
        (set_at("files", "/etc/passwd", "0" * 64), "'/etc/passwd' is no path inside"),
        (set_at("files", "../graph.onnx", "0" * 64), "'../graph.onnx' is no path inside"),
        (set_at("files", "a/../../b", "0" * 64), "is no path inside"),
        (set_at("files", "a//b", "0" * 64), "is no path inside"),
        (set_at("files", "./a", "0" * 64), "is no path inside"),
        (set_at("files", "C:\\a", "0" * 64), "is no path inside"),
        (set_at("files", "", "0" * 64), "is no path inside"),
        (set_at("files", "manifest.json", "0" * 64), "is no path inside"),
        (set_at("files", "a", "0" * 63), "the hash of 'a'"),
        (
            set_at(
                "engines", "cpu", {"backend": "b", "precision": "p", "versions": {}, "files": ["graph.onnx"]}
            ),
            "engine 'cpu' has no folder of its name with a target.json",
        ),
        (
            set_at(
                "engines",
                "cpu",
                {
                    "backend": "b",
                    "precision": "p",
                    "versions": {},
                    "files": ["cpu/target.json", "graph.onnx"],
                },
            ),
            "engine 'cpu' claims the file 'cpu/target.json'",
        ),
        (
            set_at("engines", "../cpu", {"backend": "b", "precision": "p", "versions": {}, "files": []}),
            "engine '../cpu' has no folder of its name",
        ),
        (set_at("files", "a\ud800", "0" * 64), "is no path inside"),
        (set_at("files", "model.sig", "0" * 64), "is no path inside"),
        (
            set_at("tasks", 1, "labels", ["heron", "jay", "robin"]),
            "was edited or damaged after it was written",
        ),
    ],
)
def test_a_malformed_manifest_is_refused(
    bundle: Bundle, change: Callable[[dict[str, Any]], object], complaint: str
) -> None:
    edit(bundle, change)
    with pytest.raises(BundleError, match=complaint) as caught:
        open_bundle(bundle.path)
    assert "manifest.json" in caught.value.message


def test_links_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    (bundle.path / "linked.bin").symlink_to("/etc/hostname")
    with pytest.raises(BundleError, match=r"linked\.bin is a link"):
        open_bundle(bundle.path)
    (bundle.path / "linked.bin").unlink()
    (bundle.path / "folder").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(BundleError, match="folder is a link"):
        open_bundle(bundle.path)


def test_files_that_were_altered_lost_or_added_are_named(bundle: Bundle) -> None:
    content = bytearray((bundle.path / "graph.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (bundle.path / "graph.onnx").write_bytes(content)
    (bundle.path / "base.onnx").unlink()
    (bundle.path / "deep").mkdir()
    (bundle.path / "deep" / "extra.bin").write_text("x")
    with pytest.raises(BundleError) as caught:
        open_bundle(bundle.path).verify_hashes()
    for part in ("altered: graph.onnx", "missing: base.onnx", "not in the manifest: deep/extra.bin"):
        assert part in caught.value.message


# engines


def test_an_engine_is_added_with_its_recipe_versions_and_hashes(bundle: Bundle) -> None:
    updated = add_engine(bundle, CPU)
    assert updated == open_bundle(bundle.path)
    entry = updated.manifest.engines["cpu"]
    assert (entry.backend, entry.precision) == ("onnxruntime", "fp32")
    assert set(entry.versions) == {"onnxruntime", "subtune-deploy"}
    assert set(entry.files) == {"cpu/graph.onnx", "cpu/base.onnx", "cpu/target.json"}
    assert engine_target(updated, "cpu") == CPU


def test_several_engines_live_in_one_bundle(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    write_graphs(folder)
    write_program(folder)
    seal(folder, manifest())
    bundle = open_bundle(folder)
    for target in TARGETS.values():
        bundle = add_engine(bundle, target)
    assert set(bundle.manifest.engines) == {"cpu", "openvino-cpu", "torch-cpu"}
    bundle.verify_hashes()


def test_the_parity_check_sees_the_engine_before_it_is_there_and_its_figures_are_kept(bundle: Bundle) -> None:
    seen = []

    def check(folder: Path) -> Checked:
        seen.append((sorted(tree(folder)), (bundle.path / "cpu").exists()))
        return Checked([{"task": "birds", "relative_error": 1e-7}], {"bytes": 3}, ran=False)

    updated = add_engine(bundle, CPU, check)
    assert seen == [(["base.onnx", "graph.onnx", "target.json"], False)]
    assert updated.manifest.parity == ({"task": "birds", "relative_error": 1e-7, "engine": "cpu"},)
    entry = updated.manifest.engines["cpu"]
    assert (entry.facts, entry.ran) == ({"bytes": 3}, False)


def test_compiling_again_replaces_the_engine_and_what_was_found_out_about_it(bundle: Bundle) -> None:
    first = add_engine(bundle, CPU, lambda _: Checked([{"task": "birds"}]))
    others = {"target": "other", "added": 0.2}
    save_manifest(first.path, replace(first.manifest, measurements=({"target": "cpu", "added": 0.1}, others)))
    second = add_engine(
        open_bundle(first.path), replace(CPU, threads=2), lambda _: Checked([{"task": "base"}])
    )
    assert second.manifest.parity == ({"task": "base", "engine": "cpu"},)
    assert second.manifest.measurements == (others,)
    assert engine_target(second, "cpu").threads == 2
    second.verify_hashes()


def test_of_two_who_compile_at_once_neither_loses_its_entry(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, other = bundle_module._with_engine, replace(CPU, name="other")
    second = threading.Thread(target=add_engine, args=(bundle, other))

    def late(*arguments: Any) -> Any:  # the manifest was read and is not yet written
        if not second.ident:
            second.start()
            second.join(timeout=1)
        return entered(*arguments)

    monkeypatch.setattr(bundle_module, "_with_engine", late)
    add_engine(bundle, CPU)
    second.join(timeout=60)
    assert set(open_bundle(bundle.path).manifest.engines) == {"cpu", "other"}
    open_bundle(bundle.path).verify_hashes()


def test_a_bundle_that_somebody_holds_is_not_waited_for_for_ever(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_module, "PATIENCE", 0.1)
    with bundle_module.held(bundle.path), pytest.raises(BundleError, match="is held by another process"):
        add_engine(bundle, CPU)
    assert tree(bundle.path).keys() == {"manifest.json", "graph.onnx", "base.onnx"}


def test_where_no_lock_can_be_made_nothing_is_compiled(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(BundleError, match=r"no folder for locks can be made"):
        add_engine(bundle, CPU)


def test_without_a_home_no_lock_can_be_made(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")  # as pathlib does

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(BundleError, match="Could not determine home directory") as caught:
        add_engine(bundle, CPU)
    assert "XDG_CACHE_HOME" in caught.value.hint


def test_a_refused_engine_leaves_the_bundle_as_it_was(bundle: Bundle) -> None:
    add_engine(bundle, CPU)
    before = tree(bundle.path)

    def refuse(folder: Path) -> Checked:
        raise ParityError("task birds differs", "look into it")

    with pytest.raises(ParityError):
        add_engine(open_bundle(bundle.path), CPU, refuse)
    assert tree(bundle.path) == before
    with pytest.raises(TargetError):
        add_engine(open_bundle(bundle.path), replace(CPU, options={"no.such": 1}))
    assert tree(bundle.path) == before
    with pytest.raises(Unavailable):
        add_engine(open_bundle(bundle.path), Target("standard", "tensorrt", "fp32", ""))
    assert tree(bundle.path) == before


def test_an_altered_graph_is_not_compiled_but_an_altered_engine_can_be_compiled_again(bundle: Bundle) -> None:
    built = add_engine(bundle, CPU)
    (bundle.path / "cpu" / "graph.onnx").write_bytes(b"damaged")
    add_engine(built, CPU).verify_hashes()
    (bundle.path / "base.onnx").write_bytes(b"damaged")
    with pytest.raises(BundleError, match=r"altered: base\.onnx"):
        add_engine(open_bundle(bundle.path), CPU)


def test_a_folder_of_other_things_is_not_replaced_by_an_engine(bundle: Bundle) -> None:
    (bundle.path / "cpu").mkdir()
    (bundle.path / "cpu" / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match=r"holds other things \(no target.json\)"):
        add_engine(bundle, CPU)
    assert (bundle.path / "cpu" / "notes.txt").read_text() == "mine"


def test_a_recipe_in_the_bundle_that_is_malformed_is_refused(bundle: Bundle) -> None:
    bundle = add_engine(bundle, CPU)
    path = bundle.path / "cpu" / "target.json"
    other = '{"name": "cpu", "backend": "openvino", "precision": "fp32", "description": ""}'
    unknown = other.replace("openvino", "abacus")
    for content, complaint in (
        ('{"name": 3}', "name is 3|is missing"),
        ("no json", "cannot be read"),
        (other, "not the recipe of"),
        (unknown, "abacus"),
    ):
        path.write_text(content)
        with pytest.raises(BundleError, match=complaint):
            engine_target(bundle, "cpu")
    path.unlink()
    with pytest.raises(BundleError, match="cannot be read"):
        engine_target(bundle, "cpu")


# what a hostile folder may hold


def test_a_pipe_in_a_bundle_is_refused_instead_of_waited_for(bundle: Bundle) -> None:
    os.mkfifo(bundle.path / "pipe")
    with pytest.raises(BundleError, match="pipe is not a plain file"):
        open_bundle(bundle.path)


def test_a_huge_manifest_is_refused_before_it_is_read(bundle: Bundle) -> None:
    with (bundle.path / "manifest.json").open("r+b") as file:
        file.truncate(65 << 20)  # sparse: it takes no room
    with pytest.raises(BundleError, match="more than 64 MiB"):
        open_bundle(bundle.path)


def test_a_manifest_that_would_not_be_read_is_not_written(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(bundle.path)
    monkeypatch.setattr("subtune_deploy.manifest.LARGEST", (2 << 20) - 1)
    long = replace(bundle.manifest, measurements=({"samples": "x" * (2 << 20)},))
    with pytest.raises(BundleError, match="would have 2 MiB, of which 1 are read"):
        save_manifest(bundle.path, long)
    assert tree(bundle.path) == before


def test_an_error_names_ten_files_and_counts_the_others(bundle: Bundle) -> None:
    for number in range(30):
        (bundle.path / f"extra{number:02}").write_text("")
    with pytest.raises(BundleError, match="extra09 and 20 more"):
        open_bundle(bundle.path).verify_hashes()


def test_a_message_is_one_plain_line_of_bounded_length() -> None:
    error = BundleError("a\x1b[31mred\nname " + "x" * 5000, "hint")
    assert error.message.startswith("a?[31mred name x")
    assert len(error.message) < 2100
