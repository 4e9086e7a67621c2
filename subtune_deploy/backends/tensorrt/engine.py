"""An engine file -> an `Engine` that runs on the GPU. Not yet run on hardware.

Memory is allocated once, for the largest batch that the engine takes, page-locked on the host's side. A run copies
the pictures in, the engine works between two events, the answers are copied out. One run at a time: several
threads may share an engine, and wait for each other.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import BundleError, CheckFailed, SubtuneError
from ...spec import INPUT
from ..base import COMPILE_AGAIN, Batch, Target, engine_file
from . import messages
from .cuda import Buffer, Cuda, Graph, open_cuda
from .header import check
from .layout import Layout, Tensor, make_layout
from .refit import refit
from .settings import Settings

GPU_BUSY = "look at nvidia-smi: the GPU may be out of memory, or in trouble"


@dataclass
class Loaded:
    """The library's objects. Each needs those before it, so they are let go in the opposite order."""

    runtime: Any
    engine: Any
    context: Any = None

    def release(self) -> None:
        self.context = None
        self.engine = None
        self.runtime = None


@dataclass
class Replay:
    """The work of a run as a CUDA graph, which is launched at once instead of kernel by kernel; None: it is not."""

    graph: Graph | None = None

    def drop(self) -> None:
        if self.graph is not None:
            self.graph.free()
        self.graph = None


class TensorRTEngine:
    """A context with its memory; see `Engine`, and `DeviceTimed` of `measure`.

    `device_seconds` lie between the events around the engine's work in the last run, copies not among it.
    `auxiliary_streams`: how many streams beside the main one the engine uses.
    """

    threads = 0

    def __init__(self, api: Any, cuda: Cuda, loaded: Loaded, layout: Layout, *, capture: bool) -> None:
        """Inside `cuda.current()`. `capture`: launch as a CUDA graph that is made here."""
        self._api, self._cuda, self._loaded, self._layout, self._capture = api, cuda, loaded, layout, capture
        self.outputs = tuple(tensor.name for tensor in layout.outputs)
        self.batches, self.shape = layout.limits, layout.input.shape
        self.auxiliary_streams = int(loaded.engine.num_aux_streams)
        self.device_seconds = 0.0
        self._batch = 0
        self._lock = threading.Lock()
        with ExitStack() as stack:
            stack.callback(loaded.release)
            self._stream = _kept(stack, cuda.stream(), cuda.free_stream)
            self._start, self._end = (_kept(stack, cuda.event(), cuda.free_event) for _ in range(2))
            self._buffers = {tensor.name: self._allocate(stack, tensor) for tensor in layout.tensors}
            self._replay = Replay()
            stack.callback(self._replay.drop)
            self._resize(layout.limits[1])
            self._check_outputs()
            self.close = weakref.finalize(self, _close, cuda, stack.pop_all())

    def run(self, batch: Batch) -> dict[str, npt.NDArray[Any]]:
        batch = self._layout.check(batch)
        with self._lock, self._cuda.current():
            self._check_open()
            if len(batch) != self._batch:
                self._resize(len(batch))
            self._copy_in(batch)
            self._cuda.record(self._start, self._stream)
            self._work()
            self._cuda.record(self._end, self._stream)
            answers = self._copy_out(len(batch))
            self.device_seconds = self._cuda.seconds(self._start, self._end)
        return answers

    def refit(self, weights: Mapping[str, npt.NDArray[Any]]) -> None:
        """Other weights, by their names in the ONNX file, for an engine that was built with `refit`; see `refit`."""
        with self._lock, self._cuda.current():
            self._check_open()
            self._cuda.synchronize(self._stream)
            refit(self._api, self._loaded.engine, weights)
            self._batch = 0  # a captured graph may hold the old weights

    def _check_open(self) -> None:
        if not self.close.alive:
            raise CheckFailed("the engine was closed", "load it again")

    def _allocate(self, stack: ExitStack, tensor: Tensor) -> Buffer:
        buffer: Buffer = _kept(
            stack, self._cuda.allocate(tensor.size(self._layout.limits[1])), self._cuda.free
        )
        if not self._loaded.context.set_tensor_address(tensor.name, buffer.device):
            raise self._failed(f"the address of {tensor.name} was refused")
        return buffer

    def _resize(self, batch: int) -> None:
        """Another size of batch from now on; its graph is captured after a first, ordinary run."""
        self._batch = 0
        self._replay.drop()
        if not self._loaded.context.set_input_shape(INPUT, self._layout.input.sized(batch)):
            raise self._failed(f"a batch of {batch} was refused")
        if self._capture:
            self._enqueue()
            self._cuda.synchronize(self._stream)
            self._replay.graph = self._cuda.capture(self._stream, self._enqueue)
        self._batch = batch

    def _check_outputs(self) -> None:
        """That the engine writes as much as there is memory for."""
        for tensor in self._layout.outputs:
            shape = tuple(self._loaded.context.get_tensor_shape(tensor.name))
            if shape != tensor.sized(self._batch):
                raise BundleError(
                    f"engine output {tensor.name} is {shape}, not {tensor.sized(self._batch)}", COMPILE_AGAIN
                )

    def _copy_in(self, batch: Batch) -> None:
        buffer, tensor = self._buffers[INPUT], self._layout.input
        np.copyto(tensor.view(buffer.host, len(batch)), batch)
        self._cuda.upload(buffer, tensor.size(len(batch)), self._stream)

    def _work(self) -> None:
        if self._replay.graph is None:
            self._enqueue()
        else:
            self._replay.graph.launch()

    def _enqueue(self) -> None:
        if not self._loaded.context.execute_async_v3(self._cuda.handle(self._stream)):
            raise self._failed("it could not start")

    def _copy_out(self, batch: int) -> dict[str, npt.NDArray[Any]]:
        for tensor in self._layout.outputs:
            self._cuda.download(self._buffers[tensor.name], tensor.size(batch), self._stream)
        self._cuda.synchronize(self._stream)
        return {t.name: t.view(self._buffers[t.name].host, batch).copy() for t in self._layout.outputs}

    def _failed(self, what: str) -> CheckFailed:
        return failed(self._api, what)


def open_engine(api: Any, path: Path, target: Target, settings: Settings) -> TensorRTEngine:
    """Load the engine file `path` onto the GPU. Raises Unavailable (no GPU), BundleError (the file), CheckFailed."""
    cuda = open_cuda()
    check(path, api, cuda.device().capability, settings.capabilities)
    with cuda.current():
        loaded = deserialize(api, path)
        layout = read_layout(api, path, loaded.engine)
        own_graphs = hasattr(api, "CudaGraphStrategy")
        loaded.context = _context(api, loaded.engine, settings, own_graphs)
        try:
            return TensorRTEngine(api, cuda, loaded, layout, capture=settings.cuda_graph and not own_graphs)
        except SubtuneError as error:
            raise type(error)(f"target {target.name}: {error.message}", error.hint) from error


def refit_file(api: Any, path: Path, out: Path, weights: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write the engine file `path` with other weights to `out`, as refittable as before; raises as `refit` and
    `open_engine` do."""
    cuda = open_cuda()
    check(path, api, cuda.device().capability)
    with cuda.current():
        loaded = deserialize(api, path)
        refit(api, loaded.engine, weights)
        config = loaded.engine.create_serialization_config()
        config.clear_flag(api.SerializationFlag.EXCLUDE_WEIGHTS)
        refittable = getattr(api.SerializationFlag, "INCLUDE_REFIT", None)  # 10.13 has no choice
        if refittable is not None:
            config.set_flag(refittable)
        plan = loaded.engine.serialize_with_config(config)
        if plan is None:
            raise failed(api, "it could not be written")
        out.write_bytes(memoryview(plan))


def deserialize(api: Any, path: Path) -> Loaded:
    """The engine in the file `path`, without a context yet. Raises BundleError with the library's words."""
    plan = engine_file(path.parent, path.name).read_bytes()
    logger = messages.logger(api)
    logger.take()
    runtime = api.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise BundleError(f"{path} cannot be loaded: {messages.words(logger.take())}", COMPILE_AGAIN)
    return Loaded(runtime, engine)


def read_layout(api: Any, path: Path, engine: Any) -> Layout:
    """What a deserialized engine says of its inputs and outputs. Raises BundleError."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    shapes = {name: tuple(int(length) for length in engine.get_tensor_shape(name)) for name in names}
    inputs = [name for name in names if engine.get_tensor_mode(name) == api.TensorIOMode.INPUT]
    if odd := [name for name in names if engine.get_tensor_dtype(name) != api.float32]:
        raise BundleError(f"{path}: {', '.join(odd)} is not float32", COMPILE_AGAIN)
    return make_layout(
        path,
        {name: shapes[name] for name in inputs},
        {name: shapes[name] for name in names if name not in inputs},
        _limits(engine, shapes),
    )


def failed(api: Any, what: str) -> CheckFailed:
    """The error for an engine that the library could not run, with the library's words."""
    words = messages.words(messages.logger(api).take())
    return CheckFailed(f"the engine failed on the GPU: {what}: {words}", GPU_BUSY)


def _limits(engine: Any, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    length = shapes.get(INPUT, (0,))[0]
    if length != -1:
        return length, length
    smallest, _, largest = engine.get_tensor_profile_shape(INPUT, 0)
    return int(smallest[0]), int(largest[0])


def _context(api: Any, engine: Any, settings: Settings, own_graphs: bool) -> Any:
    """TensorRT-RTX makes CUDA graphs itself, and better: it knows when a kernel for this batch has replaced another."""
    if own_graphs:
        config = engine.create_runtime_config()
        eager = (
            api.DynamicShapesKernelSpecializationStrategy.EAGER
        )  # no kernel is exchanged while somebody measures
        config.dynamic_shapes_kernel_specialization_strategy = eager
        if settings.cuda_graph:
            config.cuda_graph_strategy = api.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        context = engine.create_execution_context(config)
    else:
        context = engine.create_execution_context()
    if context is None:
        raise failed(api, "it could not be prepared")
    return context


def _kept(stack: ExitStack, thing: Any, free: Any) -> Any:
    stack.callback(free, thing)
    return thing


def _close(cuda: Cuda, stack: ExitStack) -> None:
    """Last made, first freed: graph, memory, events, stream, then context, engine, runtime."""
    with cuda.current():
        stack.close()
