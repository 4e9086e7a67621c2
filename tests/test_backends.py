"""One contract for every backend, then what is particular to each."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from tiny_bundle import TARGETS, expected, pictures, write_graphs, write_program

from subtune_deploy.backends import KNOWN, base, get_backend, probe
from subtune_deploy.backends.base import ROLES, Engine, Target
from subtune_deploy.errors import BundleError, InputError, TargetError, Unavailable

BACKENDS = list(TARGETS)
every_backend = pytest.mark.parametrize("backend", BACKENDS)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    write_graphs(folder)
    write_program(folder)
    return folder


@pytest.fixture(scope="module")
def compiled(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Per backend, the folder in which both roles were compiled."""
    folders = {}
    for name, target in TARGETS.items():
        folders[name] = tmp_path_factory.mktemp(name)
        for role in ROLES:
            get_backend(name).compile(source, folders[name], role, target)
    return folders


def load(
    compiled: dict[str, Path], backend: str, role: str = "graph", target: Target | None = None
) -> Engine:
    return get_backend(backend).load(compiled[backend], role, target or TARGETS[backend])


# the contract


@every_backend
def test_a_backend_that_is_installed_says_its_version(backend: str) -> None:
    available = probe(backend)
    assert available.ok
    assert re.fullmatch(r"\d+\.\d+(\.\d+)?", available.version)


@every_backend
@pytest.mark.parametrize("count", [1, 2, 5])
def test_answers_are_those_of_numpy_at_any_batch(compiled: dict[str, Path], backend: str, count: int) -> None:
    engine, batch = load(compiled, backend), pictures(count)
    answers = engine.run(batch)
    assert list(answers) == ["base", "birds"] == list(engine.outputs)
    for name, wanted in expected(batch).items():
        assert answers[name].dtype == np.float32
        np.testing.assert_allclose(answers[name], wanted, rtol=1e-4, atol=1e-5)


@every_backend
def test_role_base_answers_the_base_alone(compiled: dict[str, Path], backend: str) -> None:
    engine, batch = load(compiled, backend, "base"), pictures(3)
    answers = engine.run(batch)
    assert list(answers) == ["base"] == list(engine.outputs)
    np.testing.assert_allclose(answers["base"], expected(batch)["base"], rtol=1e-4, atol=1e-5)


@every_backend
@pytest.mark.parametrize("shape", [(2, 3, 8, 9), (2, 1, 8, 8), (3, 8, 8), (0, 3, 8, 8)])
def test_another_shape_is_refused_with_the_one_expected(
    compiled: dict[str, Path], backend: str, shape: tuple[int, ...]
) -> None:
    with pytest.raises(InputError, match="Nx3x8x8"):
        load(compiled, backend).run(np.ones(shape, np.float32))


@every_backend
@pytest.mark.parametrize("dtype", ["float64", "uint8"])
def test_another_type_is_refused(compiled: dict[str, Path], backend: str, dtype: str) -> None:
    with pytest.raises(InputError, match=f"{dtype}, the engine takes float32"):
        load(compiled, backend).run(pictures(2).astype(dtype))


@every_backend
def test_the_memory_layout_of_the_batch_does_not_matter(compiled: dict[str, Path], backend: str) -> None:
    engine, batch = load(compiled, backend), pictures(2)
    plain = engine.run(batch)
    channels_last = np.ascontiguousarray(batch.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    read_only = batch.copy()
    read_only.setflags(write=False)
    for other in (channels_last, read_only):
        np.testing.assert_array_equal(engine.run(other)["birds"], plain["birds"])


@every_backend
def test_answers_stay_when_the_engine_runs_again(compiled: dict[str, Path], backend: str) -> None:
    engine = load(compiled, backend)
    first = engine.run(pictures(2))
    kept = {name: answer.copy() for name, answer in first.items()}
    engine.run(pictures(2, seed=1))
    for name, answer in first.items():
        np.testing.assert_array_equal(answer, kept[name])
        answer += 1  # an array that the caller owns can be written to


@every_backend
def test_two_engines_live_side_by_side(compiled: dict[str, Path], backend: str) -> None:
    graph, alone, batch = load(compiled, backend), load(compiled, backend, "base"), pictures(2)
    for _ in range(2):
        np.testing.assert_allclose(graph.run(batch)["base"], alone.run(batch)["base"], rtol=1e-4, atol=1e-5)


@every_backend
@pytest.mark.parametrize("threads", [1, 2])
def test_the_number_of_threads_is_the_target_s(compiled: dict[str, Path], backend: str, threads: int) -> None:
    target = Target("t", backend, "fp32", "", threads=threads)
    assert load(compiled, backend, target=target).threads == threads


@every_backend
def test_an_engine_that_is_missing_is_a_bundle_error(tmp_path: Path, backend: str) -> None:
    with pytest.raises(BundleError, match="missing"):
        get_backend(backend).load(tmp_path, "graph", TARGETS[backend])


@every_backend
@pytest.mark.parametrize("content", ["", "junk" * 50, "first half"])
def test_a_damaged_engine_is_a_bundle_error(
    compiled: dict[str, Path], tmp_path: Path, backend: str, content: str, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(compiled[backend], tmp_path, dirs_exist_ok=True)
    for path in tmp_path.iterdir():
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2] if content == "first half" else content.encode())
    with pytest.raises(BundleError) as caught:
        get_backend(backend).load(tmp_path, "graph", TARGETS[backend])
    assert "\n" not in caught.value.message
    assert capfd.readouterr() == ("", "")  # the error says it; the library need not say it too


@every_backend
def test_a_source_without_the_graph_is_a_bundle_error(tmp_path: Path, backend: str) -> None:
    with pytest.raises(BundleError, match="has no"):
        get_backend(backend).compile(tmp_path, tmp_path, "graph", TARGETS[backend])


@every_backend
def test_an_unknown_option_is_a_target_error(compiled: dict[str, Path], backend: str) -> None:
    with pytest.raises(TargetError):
        load(compiled, backend, target=Target("t", backend, "fp32", "", options={"NO_SUCH_OPTION": "1"}))


@every_backend
def test_nothing_is_printed(
    compiled: dict[str, Path], backend: str, capfd: pytest.CaptureFixture[str]
) -> None:
    load(compiled, backend).run(pictures(2))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_graph_of_fixed_batch_takes_that_batch_alone(tmp_path: Path, backend: str) -> None:
    write_graphs(tmp_path, batch=2)
    folder = tmp_path / "engine"
    folder.mkdir()
    get_backend(backend).compile(tmp_path, folder, "graph", TARGETS[backend])
    engine = get_backend(backend).load(folder, "graph", TARGETS[backend])
    np.testing.assert_allclose(engine.run(pictures(2))["birds"], expected(pictures(2))["birds"], rtol=1e-4)
    with pytest.raises(InputError, match="2x3x8x8"):
        engine.run(pictures(3))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_weights_beside_the_graph_are_found_and_the_engine_stands_alone(tmp_path: Path, backend: str) -> None:
    source, folder = tmp_path / "source", tmp_path / "engine"
    source.mkdir()
    folder.mkdir()
    write_graphs(source, external=True)
    get_backend(backend).compile(source, folder, "graph", TARGETS[backend])
    shutil.rmtree(source)
    engine = get_backend(backend).load(folder, "graph", TARGETS[backend])
    np.testing.assert_allclose(engine.run(pictures(2))["birds"], expected(pictures(2))["birds"], rtol=1e-4)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_graph_that_is_damaged_does_not_compile(tmp_path: Path, backend: str) -> None:
    (tmp_path / "graph.onnx").write_bytes(b"no graph")
    with pytest.raises(BundleError, match=r"graph\.onnx cannot be compiled"):
        get_backend(backend).compile(tmp_path, tmp_path, "graph", TARGETS[backend])


# the table


@pytest.mark.skipif(find_spec("tensorrt") is not None, reason="TensorRT is installed here")
def test_a_backend_that_is_not_installed_is_unavailable_and_says_what_to_install() -> None:
    with pytest.raises(Unavailable, match="backend tensorrt is not installed") as caught:
        get_backend("tensorrt")
    assert caught.value.exit_status == 3
    assert "pip install tensorrt" in caught.value.hint


def test_a_misspelt_backend_is_answered_with_the_right_one() -> None:
    with pytest.raises(InputError) as caught:
        get_backend("onnxruntim")
    assert "onnxruntime" in caught.value.hint


@every_backend
def test_a_library_that_is_not_installed_is_unavailable_and_says_how_to_install_it(backend: str) -> None:
    # In a process of its own, where Python finds this package and numpy but not the library.
    code = f"""
import sys
sys.modules[{backend!r}] = None
from subtune_deploy.backends import get_backend
from subtune_deploy.errors import Unavailable
try:
    get_backend({backend!r})
except Unavailable as error:
    print(error.message, '|', error.hint, '|', error.exit_status)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"backend {backend} is not installed | {KNOWN[backend].install} | 3"


def test_importing_the_table_imports_no_library() -> None:
    code = (
        "import sys, subtune_deploy.backends.onnxruntime, subtune_deploy.backends.openvino, "
        "subtune_deploy.backends.torch; "
        "print(sorted({'onnxruntime', 'openvino', 'torch', 'onnx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_error_of_a_library_is_told_in_its_last_line() -> None:
    error = base.not_loaded(Path("graph.xml"), RuntimeError("Exception from core.cpp:84:\n\nno weights\n\n"))
    assert error.message == "graph.xml cannot be loaded: no weights"


# ONNX Runtime


def test_onnxruntime_in_two_steps_answers_as_the_original_file_bit_for_bit(
    source: Path, compiled: dict[str, Path]
) -> None:
    import onnxruntime

    original = onnxruntime.InferenceSession(str(source / "graph.onnx"), providers=["CPUExecutionProvider"])
    engine, batch = load(compiled, "onnxruntime"), pictures(5)
    for name, wanted in zip(
        ("base", "birds"), original.run(["base", "birds"], {"input": batch}), strict=True
    ):
        np.testing.assert_array_equal(engine.run(batch)[name], wanted)


def test_onnxruntime_compiles_fused_operators(source: Path, compiled: dict[str, Path]) -> None:
    before = [node.op_type for node in onnx.load(source / "graph.onnx").graph.node]
    after = [node.op_type for node in onnx.load(compiled["onnxruntime"] / "graph.onnx").graph.node]
    assert "Relu" in before
    assert "Relu" not in after


def test_onnxruntime_keeps_outside_weights_outside(tmp_path: Path) -> None:
    folder = tmp_path / "engine"
    folder.mkdir()
    write_graphs(tmp_path, external=True)
    get_backend("onnxruntime").compile(tmp_path, folder, "graph", TARGETS["onnxruntime"])
    assert (folder / "graph.onnx.data").stat().st_size > 0


# OpenVINO


def test_openvino_refuses_a_precision_that_the_cpu_lacks(compiled: dict[str, Path]) -> None:
    import openvino

    has = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    for precision in ("bf16", "fp16"):
        target = Target("t", "openvino", precision, "")
        if precision.upper() in has:
            assert load(compiled, "openvino", target=target).outputs == ("base", "birds")
            continue
        with pytest.raises(Unavailable, match=f"this CPU has no {precision}"):
            load(compiled, "openvino", target=target)


def test_openvino_in_bf16_answers_roughly(compiled: dict[str, Path]) -> None:
    batch = pictures(2)
    try:
        engine = load(compiled, "openvino", target=Target("t", "openvino", "bf16", ""))
    except Unavailable as error:
        pytest.skip(error.message)
    answers, exact = engine.run(batch)["base"], expected(batch)["base"]
    assert answers.dtype == np.float32
    np.testing.assert_allclose(answers, exact, atol=0.03 * np.abs(exact).max())
    assert np.abs(answers - exact).max() > 1e-5  # or it ran in fp32


def test_openvino_takes_properties_of_its_device(compiled: dict[str, Path]) -> None:
    target = Target("t", "openvino", "fp32", "", options={"ENABLE_CPU_PINNING": False})
    assert load(compiled, "openvino", target=target).run(pictures(1))["base"].shape == (1, 300)


# torch


def test_torch_removes_what_a_role_does_not_need(compiled: dict[str, Path]) -> None:
    def convolutions(role: str) -> int:
        engine = load(compiled, "torch", role)
        return sum("conv2d" in str(node.target) for node in engine.module.graph.nodes)  # type: ignore[attr-defined]

    assert (convolutions("graph"), convolutions("base")) == (1, 1)


def test_torch_runs_with_the_target_s_threads_and_leaves_the_process_as_it_was(
    compiled: dict[str, Path],
) -> None:
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if "conv2d" in str(func) or "convolution" in str(func):
                seen.add(torch.get_num_threads())
            return func(*args, **(kwargs or {}))

    before = torch.get_num_threads()
    other = 1 if before > 1 else 2
    engine = load(compiled, "torch", target=Target("t", "torch", "fp32", "", threads=other))
    with Watch():
        engine.run(pictures(1))
    assert seen == {other}
    assert torch.get_num_threads() == before


def test_torch_refuses_a_program_without_the_base_alone(tmp_path: Path) -> None:
    import torch

    program = torch.export.export(torch.nn.Identity(), (torch.ones(2, 3),))
    torch.export.save(program, tmp_path / "program.pt2", extra_files={"outputs.json": '["base"]'})
    with pytest.raises(BundleError, match="base_alone"):
        get_backend("torch").load(tmp_path, "graph", TARGETS["torch"])


def test_ctrl_c_is_heard_after_engines_of_openvino_came_and_went(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    code = f"""
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from tiny_bundle import TARGETS
from subtune_deploy.backends import openvino
signal.signal(signal.SIGINT, signal.default_int_handler)
folder, target = Path({str(tmp_path)!r}), TARGETS["openvino"]
for role in ("graph", "base"):
    openvino.compile(Path({str(source)!r}), folder, role, target)
graph = openvino.load(folder, "graph", target)
base = openvino.load(folder, "base", target)
del graph, base
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("heard")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "heard"), done.stderr
