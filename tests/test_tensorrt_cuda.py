"""The CUDA layer, as far as a machine without a GPU can go: its errors are real ones."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from subtune_deploy.backends.tensorrt import cuda
from subtune_deploy.backends.tensorrt.cuda import BindingsCuda, BindingsGraph, Buffer, open_cuda, probe_cuda
from subtune_deploy.errors import CheckFailed, Unavailable

runtime = pytest.importorskip("cuda.bindings.runtime")

HAS_GPU = not probe_cuda()
without_gpu = pytest.mark.skipif(HAS_GPU, reason="this machine has a GPU")


def in_a_process(code: str, *paths: Path) -> str:
    start = f"import sys; sys.path[:0] = {[str(path) for path in paths]!r}\n"
    done = subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


OPEN = """
from subtune_deploy.backends.tensorrt.cuda import open_cuda
from subtune_deploy.errors import Unavailable
try:
    open_cuda()
except Unavailable as error:
    print(error.message, '|', error.hint, '|', error.exit_status)
"""


@without_gpu
def test_without_a_driver_cuda_is_unavailable_and_says_so() -> None:
    with pytest.raises(Unavailable, match="no NVIDIA driver is installed") as caught:
        open_cuda()
    assert "cudaErrorInsufficientDriver" in caught.value.message
    assert "nvidia-smi" in caught.value.hint
    assert caught.value.exit_status == 3


@without_gpu
def test_the_probe_is_that_message_in_one_line() -> None:
    assert probe_cuda().startswith("no NVIDIA driver is installed")
    assert "\n" not in probe_cuda()


def test_without_a_library_it_says_what_to_install() -> None:
    said = in_a_process("import sys; sys.modules['cuda'] = None; sys.modules['pycuda'] = None\n" + OPEN)
    assert said == "neither cuda-bindings nor PyCUDA is installed | pip install cuda-bindings | 3"


def test_a_library_that_is_broken_is_told_apart_from_one_that_is_missing(tmp_path: Path) -> None:
    (tmp_path / "cuda" / "bindings").mkdir(parents=True)
    (tmp_path / "cuda" / "bindings" / "runtime.py").write_text(
        "raise ImportError('libcudart.so.13: not found')"
    )
    for parent in ("cuda", "cuda/bindings"):
        (tmp_path / parent / "__init__.py").touch()
    said = in_a_process(OPEN, tmp_path)
    assert said == (
        "cuda-bindings cannot be imported: libcudart.so.13: not found | "
        "pip install cuda-bindings --force-reinstall | 3"
    )


def test_pycuda_goes_first_and_its_import_error_without_a_driver_is_told(tmp_path: Path) -> None:
    # PyCUDA is linked with libcuda, which comes with the driver: this is how it fails without one.
    (tmp_path / "pycuda").mkdir()
    (tmp_path / "pycuda" / "__init__.py").touch()
    reason = "libcuda.so.1: cannot open shared object file"
    (tmp_path / "pycuda" / "driver.py").write_text(f"raise ImportError({reason!r})")
    message, _, rest = in_a_process(OPEN, tmp_path).partition(" | ")
    assert message == f"PyCUDA cannot be imported: {reason}"
    assert rest.endswith("| 3")


@without_gpu
@pytest.mark.parametrize(
    "call",
    [
        lambda gpu: gpu.device(),
        lambda gpu: gpu.allocate(16),
        lambda gpu: gpu.stream(),
        lambda gpu: gpu.event(),
        lambda gpu: gpu.synchronize(0),
        lambda gpu: gpu.record(0, 0),
        lambda gpu: gpu.seconds(0, 0),
        lambda gpu: gpu.upload(Buffer(0, np.zeros(4, np.uint8)), 4, 0),
        lambda gpu: gpu.download(Buffer(0, np.zeros(4, np.uint8)), 4, 0),
        lambda gpu: gpu.capture(0, lambda: None),
        lambda gpu: BindingsGraph(gpu, 0, 0).launch(),
    ],
)
def test_a_call_that_fails_names_itself_and_the_error(call: Callable[[Any], object]) -> None:
    with pytest.raises(CheckFailed, match=r"^cuda\w+ failed: cudaError\w+$"):
        call(BindingsCuda(runtime))


def test_every_cuda_name_that_is_used_is_in_the_library() -> None:
    source = Path(cuda.__file__).read_text()
    names = set(re.findall(r'"(cuda[A-Z]\w+)"', source)) | set(re.findall(r"api\.(cuda\w+)", source))
    assert len(names) > 20
    assert {name for name in names if not hasattr(runtime, name)} == set()
    for holder, member in re.findall(r"api\.(cuda\w+)\.(cuda\w+)", source):
        assert hasattr(getattr(runtime, holder), member)


def test_importing_the_layer_imports_no_cuda_library() -> None:
    code = "import subtune_deploy.backends.tensorrt.cuda; print({'cuda', 'pycuda'} & set(sys.modules))"
    assert in_a_process(code) == "set()"
