"""The options of a TensorRT recipe, for the two libraries: what is read, what is refused, and why."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from subtune_deploy.backends.base import Target
from subtune_deploy.backends.tensorrt.settings import ONLY, READERS, RTX, STANDARD, Settings, read
from subtune_deploy.errors import TargetError
from subtune_deploy.targets import list_targets


def settings(name: str, **options: Any) -> Settings:
    return read(Target("mine", name, "fp32", "", options=options), name)


def test_nothing_given_leaves_every_choice_to_the_library_but_tf32() -> None:
    assert settings(RTX) == settings(STANDARD) == Settings()
    assert Settings().tf32 is False
    assert Settings().profile is None
    assert Settings().auxiliary_streams is None


def test_every_option_is_read() -> None:
    both = {
        "auxiliary_streams": 0,
        "workspace_mib": 1024,
        "optimization_level": 5,
        "profiling_verbosity": "detailed",
        "tf32": True,
        "profile": "1 4 16",
        "refit": True,
        "cuda_graph": True,
    }
    expected = Settings(
        auxiliary_streams=0,
        workspace_mib=1024,
        optimization_level=5,
        profiling_verbosity="detailed",
        tf32=True,
        profile=(1, 4, 16),
        refit=True,
        cuda_graph=True,
    )
    rtx = settings(RTX, capabilities="8.6 8.9 12.0", **both)
    assert rtx == dataclasses.replace(expected, capabilities=("8.6", "8.9", "12.0"))
    standard = settings(STANDARD, hardware_compatibility="ampere_plus", timing_cache="a/b.cache", **both)
    assert standard == dataclasses.replace(
        expected, hardware_compatibility="ampere_plus", timing_cache="a/b.cache"
    )
    assert set(READERS) == {field.name for field in dataclasses.fields(Settings)}


def test_auto_leaves_the_number_of_auxiliary_streams_to_the_library() -> None:
    assert settings(RTX, auxiliary_streams="auto").auxiliary_streams is None


@pytest.mark.parametrize("name", [STANDARD, RTX])
@pytest.mark.parametrize("option", ONLY)
def test_an_option_of_the_other_library_is_refused_with_the_reason(name: str, option: str) -> None:
    owner, reason = ONLY[option]
    value = {"hardware_compatibility": "none", "timing_cache": "t.cache"}[option]
    if name == owner:
        settings(name, **{option: value})
        return
    with pytest.raises(TargetError, match=f"{name} takes no option '{option}'") as caught:
        settings(name, **{option: value})
    assert caught.value.hint == reason


@pytest.mark.parametrize(
    ("option", "value", "hint"),
    [
        ("capabilities", "", "8.6 8.9"),
        ("capabilities", 8.9, "8.6 8.9"),
        ("capabilities", "sm_89", "8.6 8.9"),
        ("capabilities", "8.6,8.9", "8.6 8.9"),
        ("capabilities", "8.9 8.9", "8.6 8.9"),
        ("profile", "1 4", "1 4 16"),
        ("profile", "4 1 16", "rising order"),
        ("profile", "1 16 4", "rising order"),
        ("profile", "0 1 4", "1 4 16"),
        ("profile", "1 4 x", "1 4 16"),
        ("profile", 4, "1 4 16"),
        ("auxiliary_streams", -1, "0 for a single stream"),
        ("auxiliary_streams", True, "0 for a single stream"),
        ("auxiliary_streams", "two", "0 for a single stream"),
        ("workspace_mib", 0, "MiB"),
        ("workspace_mib", 0.5, "MiB"),
        ("workspace_mib", "1 GB", "MiB"),
        ("optimization_level", 6, "0 (quick to build) to 5"),
        ("profiling_verbosity", "detail", "detailed"),
        ("tf32", "true", "true or false"),
        ("tf32", 1, "true or false"),
        ("refit", "yes", "true or false"),
        ("cuda_graph", 0, "true or false"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_what_does(option: str, value: Any, hint: str) -> None:
    with pytest.raises(TargetError, match=f"target mine: option {option} is") as caught:
        settings(RTX, **{option: value})
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("option", "value", "hint"),
    [
        ("hardware_compatibility", "ampere", "ampere_plus"),
        ("hardware_compatibility", True, "none"),
        ("timing_cache", "", "path"),
        ("timing_cache", 3, "path"),
    ],
)
def test_a_value_of_standard_tensorrt_that_does_not_fit_is_refused(
    option: str, value: Any, hint: str
) -> None:
    with pytest.raises(TargetError, match=f"target mine: option {option} is") as caught:
        settings(STANDARD, **{option: value})
    assert hint in caught.value.hint


def test_an_unknown_option_is_answered_with_a_close_one() -> None:
    with pytest.raises(TargetError, match="unknown option 'workspace'") as caught:
        settings(RTX, workspace=1024)
    assert "workspace_mib" in caught.value.hint


def test_the_recipes_of_the_package_have_settings() -> None:
    ours = [target for target in list_targets() if target.backend in (STANDARD, RTX)]
    assert {"rtx", "rtx-fp16", "rtx-bf16", "rtx-int8", "a100-sxm4-80gb", "h100-sxm", "l4", "rtx-4090"} <= {
        target.name for target in ours
    }
    for target in ours:
        read(target, target.backend)
        assert target.not_run_on_hardware
        assert all("read 20" in rate.source for rate in target.datasheet.values())


def test_the_generic_recipe_is_one_engine_for_three_generations() -> None:
    recipes = {target.name: target for target in list_targets()}
    assert read(recipes["rtx"], RTX).capabilities == ("8.6", "8.9", "12.0")


@pytest.mark.parametrize(
    ("name", "capability"),
    [("a100-sxm4-80gb", "8.0"), ("h100-sxm", "9.0"), ("l4", "8.9"), ("jetson-agx-orin", "8.7")],
)
def test_every_recipe_for_one_gpu_names_its_capability(name: str, capability: str) -> None:
    """Or it would build an engine for whatever GPU is there, under the other's name."""
    ours = [target for target in list_targets() if target.name.startswith(name)]
    assert len(ours) > 1
    assert {read(target, STANDARD).capabilities for target in ours} == {(capability,)}


def test_half_precision_has_twice_the_rate_of_tf32_on_the_data_centre_gpus() -> None:
    recipes = {target.name: target for target in list_targets()}
    for name in ("a100-sxm4-80gb", "h100-sxm"):
        single, half = recipes[name], recipes[f"{name}-fp16"]
        assert read(single, STANDARD).tf32
        assert half.datasheet["compute"].value == pytest.approx(
            2 * single.datasheet["compute"].value, rel=0.01
        )
        assert half.datasheet["bandwidth"] == single.datasheet["bandwidth"]
