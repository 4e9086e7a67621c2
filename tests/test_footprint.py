"""Memory of an engine: its own, in a process of its own."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_bundle import TARGETS, WEIGHTS, make_bundle, manifest, write_program

from subtune_deploy import footprint as footprint_module
from subtune_deploy.backends.base import ROLES
from subtune_deploy.bundle import Bundle, add_engine, open_bundle, seal
from subtune_deploy.errors import BundleError, CheckFailed, InputError, Unavailable
from subtune_deploy.footprint import Footprint, engine_bytes, footprint

MIB = 1 << 20

told = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system may not say")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return add_engine(make_bundle(tmp_path / "bundle"), TARGETS["onnxruntime"])


def peak(found: Footprint) -> int:
    assert found.peak_rss_bytes is not None
    return found.peak_rss_bytes


@told
def test_the_peak_is_above_the_start_and_both_are_those_of_a_small_process(bundle: Bundle) -> None:
    found = footprint(bundle.path, "cpu", "graph")
    assert found.start_rss_bytes is not None
    assert found.start_rss_bytes > 10 * MIB  # Python and numpy
    assert found.start_rss_bytes + 20 * MIB < peak(found) < 300 * MIB  # onnxruntime, which comes later


@told
def test_memory_that_was_held_for_a_moment_counts(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(f"len(b'x' * {300 * MIB})")  # at the start of its process
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    found = footprint(bundle.path, "cpu", "base")
    assert peak(found) > 300 * MIB
    assert found.start_rss_bytes is not None
    assert found.start_rss_bytes < 200 * MIB  # by then it had been given back


@pytest.mark.parametrize("safe", ["", "1"])
def test_nothing_is_run_of_the_folder_where_it_is_asked(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, safe: str
) -> None:
    """As of a bundle from somewhere, with a file that is called as a library is."""
    for name in ("numpy", "json", "subtune_deploy"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONSAFEPATH", safe)
    assert footprint(bundle.path, "cpu", "graph").engine_bytes
    assert not (tmp_path / "ran").exists()


@told
def test_a_big_weight_is_seen_and_only_in_the_role_that_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(WEIGHTS, "birds", np.ones((1 << 22, 4), np.float32))  # 64 MiB, in role graph alone
    heavy = add_engine(make_bundle(tmp_path / "heavy"), TARGETS["onnxruntime"])
    graph, base = (footprint(heavy.path, "cpu", role) for role in ROLES)
    assert 64 * MIB < graph.engine_bytes < 65 * MIB
    assert base.engine_bytes < MIB
    assert 64 * MIB < peak(graph) - peak(base) < 400 * MIB


@told
def test_the_memory_of_the_process_that_asks_is_not_counted(bundle: Bundle) -> None:
    before = footprint(bundle.path, "cpu", "graph")
    ballast = np.ones(500 * MIB, np.uint8)
    during = footprint(bundle.path, "cpu", "graph")
    assert ballast.all()
    assert abs(peak(during) - peak(before)) < 30 * MIB


@pytest.mark.parametrize(
    "backend, batch, files",
    [
        ("onnxruntime", 4, ("{}.onnx",)),
        ("openvino", None, ("{}.xml", "{}.bin")),
    ],
)
def test_engine_bytes_are_those_of_the_role(
    tmp_path: Path, backend: str, batch: int | None, files: tuple[str, ...]
) -> None:
    target = TARGETS[backend]
    made = add_engine(make_bundle(tmp_path / "bundle", batch), target)
    for role in ROLES:
        sizes = [(made.path / target.name / name.format(role)).stat().st_size for name in files]
        assert footprint(made.path, target.name, role).engine_bytes == sum(sizes)


def test_the_graphs_that_an_engine_was_compiled_from_are_not_part_of_it(bundle: Bundle) -> None:
    plain = engine_bytes(bundle, "cpu", "graph")
    (bundle.path / "cpu" / "source").mkdir()
    (bundle.path / "cpu" / "source" / "graph.onnx").write_bytes(bytes(1000))
    entry = bundle.manifest.engines["cpu"]
    kept = replace(entry, files=(*entry.files, "cpu/source/graph.onnx"))
    sealed = seal(bundle.path, replace(bundle.manifest, engines={"cpu": kept}))
    assert engine_bytes(Bundle(bundle.path, sealed), "cpu", "graph") == plain


def test_one_program_of_torch_serves_both_roles(tmp_path: Path) -> None:
    write_program(tmp_path)
    seal(tmp_path, manifest())
    made = add_engine(open_bundle(tmp_path), TARGETS["torch"])
    size = (tmp_path / "torch-cpu" / "program.pt2").stat().st_size
    assert footprint(made.path, "torch-cpu", "base").engine_bytes == size


def test_what_is_wrong_with_the_bundle_is_told_as_if_it_were_loaded_here(
    bundle: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match="no engine for target 'cpi'") as caught:
        footprint(bundle.path, "cpi", "graph")
    assert "did you mean cpu?" in caught.value.hint
    with pytest.raises(BundleError, match="does not exist"):
        footprint(tmp_path / "nowhere", "cpu", "graph")
    with pytest.raises(InputError, match="role 'grahp' is unknown"):
        footprint(bundle.path, "cpu", "grahp")
    with (bundle.path / "cpu" / "graph.onnx").open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(BundleError, match="altered"):
        footprint(bundle.path, "cpu", "graph")


def test_a_backend_that_is_not_here_is_unavailable(bundle: Bundle) -> None:
    recipe = bundle.path / "cpu" / "target.json"
    recipe.write_text(recipe.read_text().replace('"onnxruntime"', '"tensorrt"'))
    entry = replace(bundle.manifest.engines["cpu"], backend="tensorrt")
    seal(bundle.path, replace(bundle.manifest, engines={"cpu": entry}))
    with pytest.raises(Unavailable, match="backend tensorrt") as caught:
        footprint(bundle.path, "cpu", "graph")
    assert caught.value.hint


@pytest.mark.skipif(os.name != "posix", reason="a shell script")
@pytest.mark.parametrize(
    "script, message, hint",
    [
        ("kill -9 $$", "engine cpu was killed, most likely because memory ran out", "free memory"),
        ("kill -SEGV $$", "engine cpu ended: Segmentation fault", "compile it again"),
        ("exec sleep 60", "engine cpu took over 1 s", "free memory"),
        (
            "echo Traceback: >&2; echo MemoryError >&2; exit 1",
            "failed: MemoryError",
            "subtune_deploy.footprint",
        ),
        ("exit 0", "failed: it said nothing", "subtune_deploy.footprint"),
    ],
)
def test_a_process_that_does_not_get_there_is_a_failed_check(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str, hint: str
) -> None:
    python = (
        tmp_path / "python"
    )  # in place of the real one, which nobody can make run out of memory in a test
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr("subtune_deploy.footprint.SECONDS", 1)
    with pytest.raises(CheckFailed, match=message) as caught:
        footprint(bundle.path, "cpu", "graph")
    assert hint in caught.value.hint


def test_an_engine_whose_profile_begins_above_one_picture_gets_its_fewest(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, sizes = footprint_module.load_engine(bundle, "cpu"), set[int]()
    recipe = replace(TARGETS["onnxruntime"], options={"profile": "2 4 8"})
    asked = SimpleNamespace(run=lambda batch: (sizes.add(len(batch)), engine.run(batch)))
    monkeypatch.setattr(footprint_module, "engine_target", lambda *of: recipe)
    monkeypatch.setattr(footprint_module, "load_engine", lambda *of: asked)
    footprint_module._measured(bundle.path, "cpu", "graph")
    assert sizes == {2}
