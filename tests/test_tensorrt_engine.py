"""The runner of TensorRT engines: its arithmetic, and the real library as far as it goes without a GPU."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny_bundle import write_graphs

from subtune_deploy.backends.base import Target
from subtune_deploy.backends.tensorrt import RTX, STANDARD, refit
from subtune_deploy.backends.tensorrt import builder as builder_module
from subtune_deploy.backends.tensorrt import cuda as cuda_module
from subtune_deploy.backends.tensorrt import engine as engine_module
from subtune_deploy.backends.tensorrt.cuda import Device, probe_cuda
from subtune_deploy.backends.tensorrt.engine import Loaded, deserialize, open_engine
from subtune_deploy.backends.tensorrt.layout import Layout, Tensor, make_layout
from subtune_deploy.backends.tensorrt.settings import Settings
from subtune_deploy.errors import BundleError, InputError, TargetError, Unavailable

PATH = Path("graph.engine")


def layout(batch: int = -1, limits: tuple[int, int] = (2, 16)) -> Layout:
    return make_layout(PATH, {"input": (batch, 3, 8, 8)}, {"base": (batch, 300), "birds": (batch, 3)}, limits)


# memory


def test_a_tensor_s_size_is_that_of_its_float32() -> None:
    assert Tensor("base", (None, 300)).size(4) == 4 * 300 * 4
    assert Tensor("base", (2, 300)).size(2) == 2 * 300 * 4


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_a_smaller_batch_lies_at_the_start_of_the_same_memory(batch: int) -> None:
    tensor = Tensor("base", (None, 5))
    memory = np.zeros(tensor.size(4), np.uint8)
    answers = np.arange(batch * 5, dtype=np.float32).reshape(batch, 5)
    tensor.view(memory, batch)[:] = answers
    np.testing.assert_array_equal(memory[: 4 * answers.size].view(np.float32), answers.ravel())
    assert not memory[4 * answers.size :].any()
    assert tensor.view(memory, batch).shape == (batch, 5)


# shapes


def test_the_layout_names_inputs_outputs_and_what_is_dynamic() -> None:
    found = layout()
    assert found.input == Tensor("input", (None, 3, 8, 8))
    assert found.outputs == (Tensor("base", (None, 300)), Tensor("birds", (None, 3)))
    assert [tensor.name for tensor in found.tensors] == ["input", "base", "birds"]


@pytest.mark.parametrize("count", [2, 7, 16])
def test_a_batch_within_the_profile_is_taken(count: int) -> None:
    assert layout().check(np.ones((count, 3, 8, 8), np.float32)).shape[0] == count


@pytest.mark.parametrize("count", [1, 17])
def test_a_batch_beyond_the_profile_is_refused_with_its_limits(count: int) -> None:
    with pytest.raises(InputError, match=f"{count} pictures, the engine was built for 2 to 16"):
        layout().check(np.ones((count, 3, 8, 8), np.float32))


def test_an_engine_of_fixed_batch_takes_that_batch_alone() -> None:
    fixed = layout(4, (4, 4))
    assert fixed.check(np.ones((4, 3, 8, 8), np.float32)).shape[0] == 4
    with pytest.raises(InputError, match="4x3x8x8"):
        fixed.check(np.ones((3, 3, 8, 8), np.float32))


def test_another_type_is_refused() -> None:
    with pytest.raises(InputError, match="float64, the engine takes float32"):
        layout().check(np.ones((4, 3, 8, 8)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("inputs", "outputs", "told"),
    [
        ({}, {"base": (1, 3)}, "takes"),
        ({"picture": (1, 3, 8, 8)}, {"base": (1, 3)}, "picture"),
        ({"input": (1, 3, 8, 8), "mask": (1, 8)}, {"base": (1, 3)}, "mask"),
        ({"input": (1, 3, 8, 8)}, {}, "takes"),
        ({"input": (1, 3, -1, 8)}, {"base": (1, 3)}, "only the batch may be dynamic"),
        ({"input": (-1, 3, 8, 8)}, {"base": (-1, -1)}, "only the batch may be dynamic"),
        ({"input": (1, 3, 8, 8)}, {"base": ()}, "only the batch may be dynamic"),
    ],
)
def test_an_engine_that_is_not_one_of_ours_is_refused(inputs: Any, outputs: Any, told: str) -> None:
    with pytest.raises(BundleError, match=told):
        make_layout(PATH, inputs, outputs, (1, 1))


# refit


def test_weights_to_refit_are_known_by_their_names() -> None:
    known = ["block13.birds.conv1.weight", "head.birds.weight"]
    refit.check_names(["head.birds.weight"], known)
    with pytest.raises(InputError, match=r"no weight head\.bird\.weight and 1 more") as caught:
        refit.check_names(["head.bird.weight", "x"], known)
    assert "head.birds.weight" in caught.value.hint
    with pytest.raises(InputError, match="no weights were given"):
        refit.check_names([], known)


def test_weights_that_need_others_are_named() -> None:
    refit.check_complete([])
    with pytest.raises(InputError, match="need others with them: a, b, c and 1 more"):
        refit.check_complete(["d", "c", "b", "a"])


# the library


@pytest.fixture(scope="module")
def api() -> Any:
    return pytest.importorskip("tensorrt_rtx")


@pytest.fixture(scope="module")
def plan(api: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real engine of the tiny network."""
    folder = tmp_path_factory.mktemp("engine")
    write_graphs(folder)
    RTX.compile(folder, folder, "graph", Target("rtx", "tensorrt_rtx", "fp32", ""))
    return folder / "graph.engine"


@pytest.mark.skipif(not probe_cuda(), reason="this machine has a GPU")
def test_without_a_gpu_opening_is_unavailable(api: Any, plan: Path) -> None:
    with pytest.raises(Unavailable, match="no NVIDIA driver"):
        open_engine(api, plan, Target("rtx", "tensorrt_rtx", "fp32", ""), Settings())


@pytest.mark.skipif(not probe_cuda(), reason="this machine has a GPU")
def test_an_engine_that_the_library_does_not_take_is_a_bundle_error(api: Any, plan: Path) -> None:
    # Without a driver the library answers None to any engine, as it does with one to an engine it cannot use.
    with pytest.raises(BundleError, match=r"graph\.engine cannot be loaded") as caught:
        deserialize(api, plan)
    assert "\n" not in caught.value.message


def test_an_engine_for_another_gpu_is_refused_before_the_library_sees_it(
    api: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_graphs(tmp_path)
    target = Target("rtx", "tensorrt_rtx", "fp32", "", options={"capabilities": "8.6 8.9"})
    RTX.compile(tmp_path, tmp_path, "graph", target)
    elsewhere = SimpleNamespace(device=lambda: Device("another", "12.0"))
    monkeypatch.setattr(engine_module, "open_cuda", lambda: elsewhere)
    monkeypatch.setattr(engine_module, "deserialize", None)
    for take in (
        lambda: RTX.load(tmp_path, "graph", target),
        lambda: RTX.refit_file(tmp_path / "graph.engine", tmp_path / "out", {}),
    ):
        with pytest.raises(BundleError, match=r"for GPUs of capability 8\.6, 8\.9, this one has 12\.0"):
            take()


# standard TensorRT, whose engines do not say for which GPU they are

A100 = Target("a100", "tensorrt", "fp32", "", options={"capabilities": "8.0"})


@pytest.fixture
def l4(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with standard TensorRT and an L4, as far as can be had without either: nothing is built or loaded."""
    library = SimpleNamespace(__name__="tensorrt", __version__="10.16.1.11", Runtime=object)
    monkeypatch.setattr(type(STANDARD), "_api", lambda self: library)
    here = SimpleNamespace(device=lambda: Device("NVIDIA L4", "8.9"), current=nullcontext)
    monkeypatch.setattr(cuda_module, "open_cuda", lambda: here)
    monkeypatch.setattr(engine_module, "open_cuda", lambda: here)

    def reached(*_: object) -> None:
        raise NotImplementedError("the library was asked")

    monkeypatch.setattr(engine_module, "deserialize", reached)
    monkeypatch.setattr(builder_module, "parse", reached)


def standard_engine(folder: Path) -> None:
    """As trtexec reads it: the tag, a serialization version of 0, and the library's in bytes 24 to 27."""
    (folder / "graph.engine").write_bytes(b"ftrt" + bytes(20) + bytes([10, 16, 1, 11]) + bytes(1000))


@pytest.mark.usefixtures("l4")
def test_an_engine_of_standard_tensorrt_is_not_built_on_another_gpu_than_its_recipe_s(tmp_path: Path) -> None:
    write_graphs(tmp_path)
    with pytest.raises(
        TargetError, match=r"a100 is for GPUs of capability 8\.0, this one, NVIDIA L4, has 8\.9"
    ):
        STANDARD.compile(tmp_path, tmp_path, "graph", A100)
    for options in ({"capabilities": "8.0 8.9"}, {}):  # it is for this one, or for any
        with pytest.raises(NotImplementedError):
            STANDARD.compile(tmp_path, tmp_path, "graph", replace(A100, options=options))


@pytest.mark.usefixtures("l4")
def test_an_engine_of_standard_tensorrt_for_another_gpu_is_refused_before_it_is_loaded(
    tmp_path: Path,
) -> None:
    standard_engine(tmp_path)
    with pytest.raises(BundleError, match=r"for GPUs of capability 8\.0, this one has 8\.9"):
        STANDARD.load(tmp_path, "graph", A100)
    with pytest.raises(NotImplementedError):
        STANDARD.load(tmp_path, "graph", replace(A100, options={"capabilities": "8.9"}))


@pytest.mark.usefixtures("l4")
def test_the_facts_of_an_engine_of_standard_tensorrt_say_for_which_gpus_it_is(tmp_path: Path) -> None:
    standard_engine(tmp_path)
    write_graphs(tmp_path)
    facts = STANDARD.examine(tmp_path, tmp_path, "graph", A100)
    assert facts["capabilities"] == ["8.0"]
    assert "deterministic" not in facts  # its compiler times kernels, and may choose others each time


def test_junk_is_a_bundle_error_with_the_library_s_words(api: Any, tmp_path: Path) -> None:
    (tmp_path / "graph.engine").write_bytes(b"junk" * 100)
    with pytest.raises(BundleError, match="cannot be loaded: ") as caught:
        deserialize(api, tmp_path / "graph.engine")
    assert "it gave no reason" not in caught.value.message


def test_an_engine_that_is_missing_is_a_bundle_error(api: Any, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is missing"):
        deserialize(api, tmp_path / "graph.engine")


@pytest.mark.parametrize(
    ("dtype", "kind"), [("float32", "FLOAT"), ("float16", "HALF"), ("bfloat16", "BF16"), ("int8", "INT8")]
)
def test_weights_of_every_precision_become_the_library_s(api: Any, dtype: str, kind: str) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")  # comes with onnx, whose bfloat16 it is
    values = np.ones((2, 3), ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    weights = refit.as_weights(api, values)
    assert (weights.size, weights.dtype.name, weights.nbytes) == (6, kind, values.nbytes)


def test_every_name_that_the_runner_uses_is_in_the_library(api: Any) -> None:
    wanted = {
        api: "Runtime Refitter Weights float32 TensorIOMode CudaGraphStrategy "
        "DynamicShapesKernelSpecializationStrategy",
        api.Runtime: "deserialize_cuda_engine",
        api.ICudaEngine: "num_io_tensors get_tensor_name get_tensor_shape get_tensor_mode get_tensor_dtype "
        "get_tensor_profile_shape create_execution_context create_runtime_config num_aux_streams refittable "
        "create_serialization_config serialize_with_config",
        api.IExecutionContext: "set_tensor_address set_input_shape get_tensor_shape execute_async_v3",
        api.IRuntimeConfig: "cuda_graph_strategy dynamic_shapes_kernel_specialization_strategy",
        api.ISerializationConfig: "set_flag clear_flag",
        api.SerializationFlag: "EXCLUDE_WEIGHTS INCLUDE_REFIT",
        api.Refitter: "get_all_weights set_named_weights get_weights_prototype get_missing_weights refit_cuda_engine",
        api.TensorIOMode: "INPUT",
        api.CudaGraphStrategy: "WHOLE_GRAPH_CAPTURE",
        api.DynamicShapesKernelSpecializationStrategy: "EAGER",
    }
    missing = [
        f"{holder}.{name}"
        for holder, names in wanted.items()
        for name in names.split()
        if not hasattr(holder, name)
    ]
    assert missing == []


def test_objects_are_let_go_context_first() -> None:
    order: list[str] = []

    class Thing:
        def __init__(self, name: str) -> None:
            self.name = name

        def __del__(self) -> None:
            order.append(self.name)

    Loaded(Thing("runtime"), Thing("engine"), Thing("context")).release()
    assert order == ["context", "engine", "runtime"]
