"""The few CUDA functions that a runner needs: on PyCUDA where it is installed, else on cuda-bindings.

The device is the first that the process sees; CUDA_VISIBLE_DEVICES in the environment chooses another. Beyond
the errors for what is missing, nothing here has run on hardware yet.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ...errors import CheckFailed, Unavailable

INSTALL = "pip install cuda-bindings"
NEEDS_GPU = "use a machine with an NVIDIA GPU and its driver; nvidia-smi shows what is there"
FAILED = "free memory of the GPU, look at nvidia-smi, and try again in a new process"


@dataclass(frozen=True)
class Device:
    """`capability` is the compute capability, as in "8.6"."""

    name: str
    capability: str


@dataclass(frozen=True)
class Buffer:
    """Memory of the device (its address) and as many bytes of page-locked memory of the host."""

    device: int
    host: npt.NDArray[np.uint8]
    owner: Any = None


class Graph(Protocol):
    """Work that was captured from a stream, to be begun there at once, again and again."""

    def launch(self) -> None: ...

    def free(self) -> None: ...


class Cuda(Protocol):
    """One GPU. Streams and events are the library's own objects; what was made here is freed here.

    All but `device` and `current` are called inside `current()`. Raises CheckFailed where a call fails.
    """

    library: str

    def device(self) -> Device: ...

    def current(self) -> AbstractContextManager[None]:
        """Inside, the calling thread uses this GPU."""
        ...

    def allocate(self, size: int) -> Buffer:
        """Memory for `size` bytes on both sides."""
        ...

    def upload(self, buffer: Buffer, size: int, stream: Any) -> None:
        """Begin to copy the first `size` bytes to the device."""
        ...

    def download(self, buffer: Buffer, size: int, stream: Any) -> None:
        """Begin to copy the first `size` bytes to the host."""
        ...

    def free(self, buffer: Buffer) -> None: ...

    def stream(self) -> Any: ...

    def handle(self, stream: Any) -> int:
        """The number by which C libraries know a stream."""
        ...

    def synchronize(self, stream: Any) -> None:
        """Wait until all that was begun in `stream` is done."""
        ...

    def free_stream(self, stream: Any) -> None: ...

    def event(self) -> Any: ...

    def record(self, event: Any, stream: Any) -> None: ...

    def seconds(self, start: Any, end: Any) -> float:
        """From one recorded event to another, both of them past."""
        ...

    def free_event(self, event: Any) -> None: ...

    def capture(self, stream: Any, work: Callable[[], None]) -> Graph:
        """What `work` begins in `stream`; it does not run yet."""
        ...


def open_cuda() -> Cuda:
    """CUDA on this machine. Raises Unavailable: no library, no driver, one that is too old, no device."""
    return _open_pycuda() if importlib.util.find_spec("pycuda") else _open_bindings()


def probe_cuda() -> str:
    """Empty if a GPU can be used, else what is missing, in one line."""
    try:
        open_cuda()
    except Unavailable as error:
        return error.message
    return ""


class BindingsCuda:
    """On cuda.bindings.runtime (12.8 and later), whose functions return (status, *values)."""

    library = "cuda-bindings"

    def __init__(self, api: Any) -> None:
        self.api = api

    def device(self) -> Device:
        found = self.do("cudaGetDeviceProperties", 0)
        return Device(found.name.decode(errors="replace").rstrip("\0"), f"{found.major}.{found.minor}")

    def current(self) -> AbstractContextManager[None]:
        return nullcontext()  # the runtime gives each thread the first device by itself

    def allocate(self, size: int) -> Buffer:
        host = self.do("cudaMallocHost", size)
        try:
            device = self.do("cudaMalloc", size)
        except CheckFailed:
            self.do("cudaFreeHost", host)
            raise
        return Buffer(int(device), np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(int(host))))

    def upload(self, buffer: Buffer, size: int, stream: Any) -> None:
        kind = self.api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.do("cudaMemcpyAsync", buffer.device, buffer.host.ctypes.data, size, kind, stream)

    def download(self, buffer: Buffer, size: int, stream: Any) -> None:
        kind = self.api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.do("cudaMemcpyAsync", buffer.host.ctypes.data, buffer.device, size, kind, stream)

    def free(self, buffer: Buffer) -> None:
        self.do("cudaFree", buffer.device)
        self.do("cudaFreeHost", buffer.host.ctypes.data)

    def stream(self) -> Any:
        return self.do("cudaStreamCreateWithFlags", self.api.cudaStreamNonBlocking)

    def handle(self, stream: Any) -> int:
        return int(stream)

    def synchronize(self, stream: Any) -> None:
        self.do("cudaStreamSynchronize", stream)

    def free_stream(self, stream: Any) -> None:
        self.do("cudaStreamDestroy", stream)

    def event(self) -> Any:
        return self.do("cudaEventCreate")

    def record(self, event: Any, stream: Any) -> None:
        self.do("cudaEventRecord", event, stream)

    def seconds(self, start: Any, end: Any) -> float:
        return float(self.do("cudaEventElapsedTime", start, end)) / 1000

    def free_event(self, event: Any) -> None:
        self.do("cudaEventDestroy", event)

    def capture(self, stream: Any, work: Callable[[], None]) -> Graph:
        mode = self.api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.do("cudaStreamBeginCapture", stream, mode)
        try:
            work()
        except BaseException:  # or the stream could not be used again
            self.api.cudaStreamEndCapture(stream)
            raise
        graph = self.do("cudaStreamEndCapture", stream)
        try:
            return BindingsGraph(self, self.do("cudaGraphInstantiate", graph, 0), stream)
        finally:
            self.do("cudaGraphDestroy", graph)

    def do(self, function: str, *arguments: Any) -> Any:
        """What a function answers. Raises CheckFailed with its name and the error's."""
        status, *values = getattr(self.api, function)(*arguments)
        if status != self.api.cudaError_t.cudaSuccess:
            raise CheckFailed(f"{function} failed: {error_name(self.api, status)}", FAILED)
        return values[0] if values else None


@dataclass(frozen=True)
class BindingsGraph:
    """See `Graph`."""

    cuda: BindingsCuda
    executable: Any
    stream: Any

    def launch(self) -> None:
        self.cuda.do("cudaGraphLaunch", self.executable, self.stream)

    def free(self) -> None:
        self.cuda.do("cudaGraphExecDestroy", self.executable)


class PyCuda:
    """On pycuda.driver, in the primary context of the device, which TensorRT uses too."""

    library = "pycuda"

    def __init__(self, driver: Any) -> None:
        self.driver = driver
        self._context: Any = None

    def device(self) -> Device:
        found = self.driver.Device(0)
        major, minor = found.compute_capability()
        return Device(found.name(), f"{major}.{minor}")

    @contextmanager
    def current(self) -> Iterator[None]:
        try:
            if self._context is None:
                self._context = self.driver.Device(0).retain_primary_context()
            self._context.push()
            try:
                yield
            finally:
                self.driver.Context.pop()
        except self.driver.Error as error:
            raise CheckFailed(f"CUDA failed: {error}", FAILED) from error

    def allocate(self, size: int) -> Buffer:
        owner = self.driver.mem_alloc(size)
        return Buffer(int(owner), self.driver.pagelocked_empty(size, np.uint8), owner)

    def upload(self, buffer: Buffer, size: int, stream: Any) -> None:
        self.driver.memcpy_htod_async(buffer.owner, buffer.host[:size], stream)

    def download(self, buffer: Buffer, size: int, stream: Any) -> None:
        self.driver.memcpy_dtoh_async(buffer.host[:size], buffer.owner, stream)

    def free(self, buffer: Buffer) -> None:
        buffer.owner.free()
        buffer.host.base.free()  # type: ignore[union-attr]  # PagelockedHostAllocation

    def stream(self) -> Any:
        return self.driver.Stream()

    def handle(self, stream: Any) -> int:
        return int(stream.handle)

    def synchronize(self, stream: Any) -> None:
        stream.synchronize()

    def free_stream(self, stream: Any) -> None:
        """PyCUDA frees streams and events with their last reference."""

    def event(self) -> Any:
        return self.driver.Event()

    def record(self, event: Any, stream: Any) -> None:
        event.record(stream)

    def seconds(self, start: Any, end: Any) -> float:
        return float(start.time_till(end)) / 1000

    def free_event(self, event: Any) -> None:
        """See `free_stream`."""

    def capture(self, stream: Any, work: Callable[[], None]) -> Graph:
        raise Unavailable(
            "PyCUDA has no CUDA graphs", "set cuda_graph = false, or put cuda-bindings in the place of pycuda"
        )


def error_name(api: Any, status: Any) -> str:
    """As in cudaErrorMemoryAllocation."""
    _, name = api.cudaGetErrorName(status)
    return name.decode() if isinstance(name, bytes) else str(name)


def _open_bindings() -> BindingsCuda:
    try:
        api = importlib.import_module("cuda.bindings.runtime")
    except ModuleNotFoundError as error:
        raise Unavailable("neither cuda-bindings nor PyCUDA is installed", INSTALL) from error
    except ImportError as error:
        again = f"{INSTALL} --force-reinstall"
        raise Unavailable(f"cuda-bindings cannot be imported: {error}", again) from error
    try:
        status, count = api.cudaGetDeviceCount()
    except RuntimeError as error:  # before 12.9 a missing driver was an exception
        raise Unavailable(f"no NVIDIA driver is installed ({error})", NEEDS_GPU) from error
    if status == api.cudaError_t.cudaErrorInsufficientDriver:
        raise _driver_missing(api, error_name(api, status))
    if status != api.cudaError_t.cudaSuccess:
        raise Unavailable(f"CUDA finds no GPU: {error_name(api, status)}", NEEDS_GPU)
    if not count:
        raise Unavailable("CUDA finds no GPU", NEEDS_GPU)
    return BindingsCuda(api)


def _driver_missing(api: Any, name: str) -> Unavailable:
    """CUDA has one status for no driver and for an old one."""
    _, version = api.cudaDriverGetVersion()
    if not version:
        return Unavailable(f"no NVIDIA driver is installed ({name})", NEEDS_GPU)
    supports = f"{version // 1000}.{version % 1000 // 10}"
    return Unavailable(
        f"the NVIDIA driver, made for CUDA {supports}, is too old for this cuda-bindings ({name})",
        f"update the driver, or pip install 'cuda-bindings<{version // 1000 + 1}'",
    )


def _open_pycuda() -> PyCuda:
    try:
        driver = importlib.import_module("pycuda.driver")
    except ImportError as error:  # it is linked with the driver's own library
        raise Unavailable(f"PyCUDA cannot be imported: {error}", NEEDS_GPU) from error
    try:
        driver.init()
        count = driver.Device.count()
    except driver.Error as error:
        raise Unavailable(f"PyCUDA finds no GPU: {error}", NEEDS_GPU) from error
    if not count:
        raise Unavailable("PyCUDA finds no GPU", NEEDS_GPU)
    return PyCuda(driver)
