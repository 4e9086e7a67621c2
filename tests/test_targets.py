"""Recipes: those that come with the package, a user's own, and what is wrong with a malformed one."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from subtune_deploy.backends.base import arithmetic
from subtune_deploy.errors import TargetError
from subtune_deploy.targets import (
    Rate,
    Target,
    in_base_units,
    list_targets,
    load_target,
    recipes_folder,
)

OWN = """
name = "mine"
backend = "onnxruntime"
precision = "fp32"
description = "two threads"
threads = 2
not_run_on_hardware = true
[options]
"session.intra_op.allow_spinning" = false
[datasheet.compute]
value = 1.5
unit = "TMAC/s"
source = "a page"
[datasheet.launch]
value = 5
unit = "us"
source = "a page"
"""


def write(folder: Path, text: str) -> str:
    path = folder / "own.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_the_recipes_of_the_package_are_well_formed_and_named_as_their_files() -> None:
    targets = {target.name: target for target in list_targets()}
    assert {"cpu", "openvino-cpu", "openvino-cpu-bf16", "torch-cpu"} <= set(targets)
    assert sorted(targets) == sorted(path.stem for path in recipes_folder().glob("*.toml"))
    assert (targets["cpu"].backend, targets["cpu"].precision) == ("onnxruntime", "fp32")
    assert targets["openvino-cpu-bf16"].precision == "bf16"
    assert all(target.description for target in targets.values())


def test_a_recipe_is_found_by_name_or_by_the_path_of_its_file(tmp_path: Path) -> None:
    assert load_target("cpu") in list_targets()
    assert load_target(write(tmp_path, OWN)) == Target(
        name="mine",
        backend="onnxruntime",
        precision="fp32",
        description="two threads",
        threads=2,
        options={"session.intra_op.allow_spinning": False},
        datasheet={"compute": Rate(1.5, "TMAC/s", "a page"), "launch": Rate(5.0, "us", "a page")},
        not_run_on_hardware=True,
    )


def test_datasheet_numbers_have_base_units(tmp_path: Path) -> None:
    sheet = load_target(write(tmp_path, OWN)).datasheet
    assert in_base_units("compute", sheet["compute"]) == 1.5e12
    assert in_base_units("launch", sheet["launch"]) == pytest.approx(5e-6)


def test_the_recipe_shown_in_the_readme_is_valid(tmp_path: Path) -> None:
    readme = (recipes_folder() / "README.md").read_text(encoding="utf-8")
    shown = re.search(r"```toml\n(.*?)```", readme, re.DOTALL)
    assert shown is not None
    assert set(load_target(write(tmp_path, shown[1])).datasheet) == {"compute", "bandwidth", "launch"}


def test_an_unknown_name_is_answered_with_a_close_one() -> None:
    with pytest.raises(TargetError) as caught:
        load_target("openvino-cpu-bf17")
    assert "openvino-cpu-bf16" in caught.value.hint


@pytest.mark.parametrize(
    ("old", "new", "message", "hint"),
    [
        ("threads = 2", "thread = 2", "unknown key 'thread'", "threads"),
        ("threads = 2", 'threads = "two"', "threads is 'two'", "a whole number"),
        ("threads = 2", "threads = true", "threads is True", "a whole number"),
        ("threads = 2", "threads = -1", "threads is -1", "0"),
        ("threads = 2", "weight_bits = 7", "weight_bits is of an int8 graph, the precision is fp32", "take"),
        ("threads = 2", "width_multiple = 0", "width_multiple is 0", "or 1"),
        ('name = "mine"', "", "key 'name' is missing", "backend"),
        ('name = "mine"', 'name = "../mine"', "name is '../mine'", "letters"),
        ('"onnxruntime"', '"onnxruntim"', "backend is 'onnxruntim'", "onnxruntime"),
        ('"fp32"', '"bf16"', "precision is 'bf16'", "onnxruntime has fp32"),
        ('"fp32"', '"float32"', "precision is 'float32'", "onnxruntime has fp32"),
        ('"TMAC/s"', '"TFLOPS"', "datasheet.compute.unit is 'TFLOPS'", "two FLOP"),
        ('"us"', '"seconds"', "datasheet.launch.unit is 'seconds'", "us or ms"),
        ("datasheet.launch", "datasheet.lunch", "unknown key 'datasheet.lunch'", "launch"),
        ("value = 1.5", "value = -1.5", "datasheet.compute.value is -1.5", "positive"),
        ("value = 1.5", "value = nan", "datasheet.compute.value is nan", "positive"),
        ('source = "a page"\n[', 'source = " "\n[', "datasheet.compute.source is empty", "where"),
        ('source = "a page"\n[', "[", "key 'datasheet.compute.source' is missing", "unit"),
        ("= false", "= [1]", "options.session.intra_op.allow_spinning is [1]", "bool"),
        ("threads = 2", "threads = ", "not TOML", "engines/README.md"),
    ],
)
def test_a_malformed_recipe_is_refused(tmp_path: Path, old: str, new: str, message: str, hint: str) -> None:
    assert old in OWN
    with pytest.raises(TargetError) as caught:
        load_target(write(tmp_path, OWN.replace(old, new, 1)))
    assert message in caught.value.message
    assert "own.toml" in caught.value.message
    assert hint in caught.value.hint


def test_a_file_that_is_missing_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="there is no recipe"):
        load_target(str(tmp_path / "none.toml"))
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TargetError, match="is not TOML"):
        load_target(str(tmp_path / "bytes.toml"))
    with pytest.raises(TargetError, match="cannot be read"):
        load_target(str(tmp_path) + "/")


def test_every_recipe_is_installed_with_the_package() -> None:
    root = Path(__file__).parent.parent
    listed = (root / "pyproject.toml").read_text()
    for recipe in (root / "engines").glob("*.toml"):
        assert f'"engines/{recipe.name}" = "subtune_deploy/recipes/{recipe.name}"' in listed


@pytest.mark.parametrize(
    ("name", "options", "found"),
    [("a100-sxm4-80gb", {}, "tf32"), ("a100-sxm4-80gb-fp16", {}, "fp16 sums"), ("rtx-fp16", {}, "fp16 sums"),
     ("rtx", {}, "fp32"), ("cpu", {}, "fp32"),
     ("onnxruntime-cuda", {}, "fp32"), ("onnxruntime-cuda", {"provider.use_tf32": True}, "tf32"),
     ("onnxruntime-tensorrt", {}, "fp16 sums"), ("cpu", {"provider": "tensorrt"}, "tf32"),
     ("openvino-cpu-bf16", {}, "bf16")],
)  # fmt: skip
def test_how_products_and_sums_are_rounded(name: str, options: dict[str, str | bool], found: str) -> None:
    target = load_target(name)
    assert arithmetic(replace(target, options={**target.options, **options})) == found
