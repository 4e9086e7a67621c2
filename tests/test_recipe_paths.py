"""Paths in a recipe are those of the machine it was given on: no bundle carries them, none that does is heeded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_graft import CHAIN, network, task, write
from tiny_bundle import TARGETS, make_bundle

import subtune_deploy.graft as graft_module
from subtune_deploy.backends.base import Target, without_paths
from subtune_deploy.build import build
from subtune_deploy.bundle import Bundle, add_engine, engine_target, open_bundle, seal
from subtune_deploy.compiling import compile_bundle
from subtune_deploy.runtime import load_engine
from subtune_deploy.targets import list_targets, load_target

OPENVINO = TARGETS["openvino"]


def with_options(bundle: Bundle, name: str, **options: Any) -> Bundle:
    """The bundle as somebody else may send it: its recipe says more than ours would."""
    path = bundle.path / name / "target.json"
    document = json.loads(path.read_text())
    document["options"].update(options)
    path.write_text(json.dumps(document))
    seal(bundle.path, replace(bundle.manifest, files={}))
    return open_bundle(bundle.path)


@pytest.mark.parametrize(
    "option",
    [
        "timing_cache",
        "CACHE_DIR",
        "provider.trt_engine_cache_path",
        "provider.trt_extra_plugin_lib_paths",
        "provider.nv_runtime_cache_path",
        "provider.trt_onnx_model_folder_path",
    ],
)
def test_options_that_name_files_are_left_out(option: str) -> None:
    kept = {"capabilities": "8.0", "tf32": True, "provider.trt_fp16_enable": True}
    target = Target("mine", "tensorrt", "fp32", "", options={option: "/somewhere", **kept})
    assert without_paths(target).options == kept


def test_no_recipe_of_ours_loses_anything() -> None:
    assert [without_paths(target) for target in list_targets()] == list(list_targets())


def test_a_path_does_not_go_into_the_bundle_and_works_where_it_was_given(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    target = replace(OPENVINO, options={"CACHE_DIR": str(cache)})
    bundle = add_engine(make_bundle(tmp_path / "b"), target)
    assert str(cache) not in (tmp_path / "b" / OPENVINO.name / "target.json").read_text()
    assert engine_target(bundle, OPENVINO.name) == OPENVINO


def test_a_path_in_a_bundle_from_elsewhere_is_neither_read_nor_written(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    bundle = add_engine(make_bundle(tmp_path / "b"), OPENVINO)
    bundle = with_options(bundle, OPENVINO.name, CACHE_DIR=str(outside))
    load_engine(bundle, OPENVINO.name)
    assert not outside.exists()


def test_graft_compiles_without_the_paths_of_the_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = network()
    bundle = build(backbone, [task(backbone, "birds", (4,), 1)], tmp_path / "b")
    bundle = compile_bundle(bundle, load_target("openvino-cpu"))
    with_options(bundle, "openvino-cpu", CACHE_DIR=str(tmp_path / "outside"), timing_cache="/etc/passwd")
    seen: list[Target] = []

    def compiled(bundle: Bundle, target: Target, **options: Any) -> Bundle:
        seen.append(target)
        return compile_bundle(bundle, target, **options)

    monkeypatch.setattr(graft_module, "compile_bundle", compiled)
    pack = write(tmp_path / "cats.pack", backbone, task(backbone, "cats", (3, 4), 2))
    graft_module.graft(bundle.path, pack, model=CHAIN)
    assert [dict(target.options) for target in seen] == [{}]
    assert not (tmp_path / "outside").exists()
