"""ONNX Runtime's providers for GPUs, refused for real where they are not here."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from tiny_bundle import write_graphs

from subtune_deploy.backends import onnxruntime as backend
from subtune_deploy.backends.base import Target
from subtune_deploy.errors import BundleError, TargetError, Unavailable
from subtune_deploy.targets import list_targets

GPU = [name for name in backend.PROVIDERS if name != "cpu"]
every_provider = pytest.mark.parametrize("provider", GPU)


def target(provider: str, precision: str = "fp32", **options: Any) -> Target:
    return Target("gpu", "onnxruntime", precision, "", options={"provider": provider, **options})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_graphs(tmp_path)
    return tmp_path


@pytest.fixture
def folder(source: Path) -> Path:
    (source / "engine").mkdir()
    return source / "engine"


@pytest.fixture(autouse=True)
def here() -> None:
    """These tests are about a machine that lacks the providers."""
    import onnxruntime

    if set(onnxruntime.get_available_providers()) & {row.name for row in backend.PROVIDERS.values()} != {
        "CPUExecutionProvider"
    }:
        pytest.skip("this onnxruntime has providers for GPUs")


@every_provider
def test_compiling_keeps_the_graph_as_it_is(source: Path, folder: Path, provider: str) -> None:
    backend.compile(source, folder, "graph", target(provider))
    assert (folder / "graph.onnx").read_bytes() == (source / "graph.onnx").read_bytes()


def test_compiling_for_the_cpu_does_not(source: Path, folder: Path) -> None:
    backend.compile(source, folder, "graph", target("cpu"))
    before, after = (
        {node.op_type for node in onnx.load(each / "graph.onnx").graph.node} for each in (source, folder)
    )
    assert before != after


def test_weights_beside_the_graph_come_along(tmp_path: Path) -> None:
    folder = tmp_path / "engine"
    folder.mkdir()
    write_graphs(tmp_path, external=True)
    backend.compile(tmp_path, folder, "graph", target("cuda"))
    assert (folder / "graph.onnx.data").read_bytes() == (tmp_path / "graph.onnx.data").read_bytes()


@every_provider
def test_a_damaged_graph_does_not_compile(source: Path, folder: Path, provider: str) -> None:
    (source / "graph.onnx").write_bytes(b"no graph")
    with pytest.raises(BundleError, match=r"graph\.onnx cannot be compiled"):
        backend.compile(source, folder, "graph", target(provider))
    assert not list(folder.iterdir())


@every_provider
def test_a_provider_that_is_not_here_is_refused_with_what_to_install(
    source: Path, provider: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Unavailable) as caught:
        backend.load(source, "graph", target(provider))
    assert f"no {backend.PROVIDERS[provider].name}" in caught.value.message
    assert "pip install" in caught.value.hint
    assert caught.value.exit_status == 3
    assert capfd.readouterr() == ("", "")


@every_provider
def test_a_missing_engine_is_told_before_a_missing_provider(folder: Path, provider: str) -> None:
    with pytest.raises(BundleError, match="missing"):
        backend.load(folder, "graph", target(provider))


@every_provider
def test_a_session_that_fell_back_to_the_cpu_is_refused(source: Path, provider: str) -> None:
    # A real session on the CPU: what the library hands out, without a word, where a provider cannot start.
    import onnxruntime

    session = onnxruntime.InferenceSession(str(source / "graph.onnx"), providers=["CPUExecutionProvider"])
    with pytest.raises(Unavailable, match="would run on CPUExecutionProvider instead"):
        backend._check_provider(session, provider)
    backend._check_provider(session, "cpu")


def test_a_misspelt_provider_is_answered_with_the_right_one(source: Path) -> None:
    with pytest.raises(TargetError, match="provider 'cudaa' is unknown") as caught:
        backend.load(source, "graph", target("cudaa"))
    assert "cuda" in caught.value.hint


def test_options_for_a_provider_need_that_provider(source: Path) -> None:
    with pytest.raises(TargetError, match="no options such as 'use_tf32'"):
        backend.load(source, "graph", target("cpu", **{"provider.use_tf32": False}))


def test_the_cpu_does_not_pretend_to_compute_fp16(source: Path, folder: Path) -> None:
    for call in (
        lambda: backend.load(source, "graph", target("cpu", "fp16")),
        lambda: backend.compile(source, folder, "graph", target("cpu", "fp16")),
    ):
        with pytest.raises(TargetError, match="no fp16 on the CPU"):
            call()


def test_options_of_a_provider_are_passed_as_text(source: Path) -> None:
    given = target(
        "cuda", **{"provider.use_tf32": False, "provider.device_id": 1, "session.set_denormal_as_zero": True}
    )
    assert backend._provider_options(given, "cuda") == {"use_tf32": "0", "device_id": "1"}


def test_recipes_say_that_nobody_has_run_them() -> None:
    recipes = {each.name: each for each in list_targets() if each.options.get("provider", "cpu") != "cpu"}
    assert sorted(recipes) == ["onnxruntime-cuda", "onnxruntime-tensorrt", "onnxruntime-tensorrt-rtx"]
    assert all(each.not_run_on_hardware for each in recipes.values())
    assert {str(each.options["provider"]) for each in recipes.values()} == set(GPU)


@dataclass(frozen=True)
class Device:
    """As ONNX Runtime lists them."""

    ep_name: str
    number: int


def test_a_plugin_gets_the_first_of_several_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVIDIA's takes no more than one."""
    import onnxruntime

    name = "NvTensorRTRTXExecutionProvider"
    devices = [Device("CPUExecutionProvider", 0), Device(name, 0), Device(name, 1)]
    monkeypatch.setattr(onnxruntime, "get_ep_devices", lambda: devices)
    options, added = SimpleNamespace(), list[Any]()
    options.add_provider_for_devices = lambda *given: added.append(given)
    assert backend._arguments("tensorrt_rtx", options, {"device_id": "0"}) == {}
    assert added == [([Device(name, 0)], {"device_id": "0"})]


def test_the_libraries_of_the_package_tensorrt_are_loaded_before_its_provider_looks_for_them(
    source: Path, tmp_path: Path
) -> None:
    (tmp_path / "tensorrt_libs.py").write_text("print('loaded')")
    code = (
        "from pathlib import Path\n"
        "from subtune_deploy.backends import onnxruntime as backend\n"
        "from subtune_deploy.backends.base import Target\n"
        "for each in ('cuda', 'tensorrt', 'tensorrt'):\n"
        "    try:\n"
        "        target = Target('gpu', 'onnxruntime', 'fp32', '', options={'provider': each})\n"
        f"        backend.load(Path({str(source)!r}), 'graph', target)\n"
        "    except Exception as error:\n"
        "        print(type(error).__name__)\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(__file__).parent.parent}"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["Unavailable", "loaded", "Unavailable", "Unavailable"]
