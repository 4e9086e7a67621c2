"""OpenVINO on the CPU.

`compile` writes its intermediate representation, which any machine can do; the precision is chosen where the
engine is loaded, because only that machine knows what it has. OpenVINO answers a precision that the machine
lacks with another one and says nothing: `load` looks, and refuses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy.typing as npt

from ..errors import BundleError, TargetError, Unavailable
from ..spec import INPUT
from . import probe_library
from .base import (
    Availability,
    Batch,
    Engine,
    Progress,
    Shape,
    Target,
    check_batch,
    check_weight_bits,
    engine_file,
    not_compiled,
    not_loaded,
    shared_by,
    silent,
    source_file,
    thread_counts,
)

name = "openvino"

DEVICE = "CPU"
PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}
"""The type of what has no other: in int8 graphs that is what was not quantised."""
NAMES = ["subtune", "outputs"]
"""Where the representation keeps the names of its outputs, in order."""
SETTINGS = (
    thread_counts,
    shared_by("ENABLE_CPU_PINNING", {"threads pinned": True, "threads not pinned": False}),
    shared_by("ENABLE_HYPER_THREADING", {"with hyper-threads": True, "without hyper-threads": False}),
)
"""For `Tunable`. The hint stays at LATENCY: one caller waits for one answer."""


@dataclass(frozen=True)
class OpenVinoEngine:
    """A compiled model and one request; see `Engine`."""

    request: Any
    outputs: tuple[str, ...]
    shape: Shape
    threads: int

    def run(self, batch: Batch) -> dict[str, npt.NDArray[Any]]:
        answers = self.request.infer({0: check_batch(batch, self.shape)}, share_inputs=True)
        return dict(zip(self.outputs, answers.values(), strict=True))  # copies, in the order of the outputs


def probe() -> Availability:
    """Whether openvino can be imported and finds a CPU."""
    available = probe_library(name)
    if not available.ok:
        return available
    if DEVICE not in open_core().available_devices:
        return Availability(False, available.version, "openvino has no CPU plugin", "pip install openvino")
    return available


@cache
def open_core() -> Any:
    """The one Core of this process.

    Each has a stack of its own for signals, and gives back the one before when it goes: of several, the last to go
    leaves one that is freed, and the next Ctrl-C crashes (tests/test_backends.py, OpenVINO 2026.4).
    """
    import openvino

    return openvino.Core()


def compile(source: Path, folder: Path, role: str, target: Target, progress: Progress = silent) -> None:
    """Write `<role>.xml` and `<role>.bin`, weights in fp32."""
    import openvino

    path = source_file(source, f"{role}.onnx")
    names = _declared_outputs(path)
    try:
        model = open_core().read_model(path)
        _check_outputs(path, names, model)
        model.set_rt_info(",".join(names), NAMES)
        openvino.save_model(model, folder / f"{role}.xml", compress_to_fp16=False)
    except RuntimeError as error:
        raise not_compiled(path, error) from error


def load(folder: Path, role: str, target: Target) -> Engine:
    """Compile `<role>.xml` for this CPU. Raises Unavailable if the CPU lacks the target's precision, or VNNI for it."""
    path, core = engine_file(folder, f"{role}.xml"), open_core()
    engine_file(folder, f"{role}.bin")
    _check_precision(core, target)
    check_weight_bits(target)
    if not path.read_bytes().startswith(b"<?xml"):  # its other frontends would have a loud try
        raise not_loaded(path, ValueError("not an intermediate representation"))
    try:
        model = core.read_model(path)
        outputs = tuple(str(model.get_rt_info(NAMES).value).split(","))
    except RuntimeError as error:
        raise not_loaded(path, error) from error
    _check_input(path, model)
    compiled = _compile_model(core, model, target)
    shape = tuple(d.get_length() if d.is_static else None for d in compiled.inputs[0].get_partial_shape())
    threads = int(compiled.get_property("INFERENCE_NUM_THREADS"))
    return OpenVinoEngine(compiled.create_infer_request(), outputs, shape, threads)


def load_streams(folder: Path, role: str, target: Target, streams: int) -> tuple[Engine, ...]:
    """One compiled model with so many streams, each with its part of the threads, and a request for each.

    Hyper-threads count as cores, as for other backends; by itself OpenVINO would have fewer streams, and not say so.
    """
    options = {"ENABLE_HYPER_THREADING": True, **target.options, "NUM_STREAMS": streams}
    engine = load(folder, role, replace(target, threads=streams * target.threads, options=options))
    assert isinstance(engine, OpenVinoEngine)
    create = engine.request.get_compiled_model().create_infer_request
    requests = (engine.request, *(create() for _ in range(streams - 1)))
    return tuple(replace(engine, request=request, threads=target.threads) for request in requests)


def _compile_model(core: Any, model: Any, target: Target) -> Any:
    wanted = PRECISIONS[target.precision]
    properties = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": wanted, **target.options}
    if target.threads:
        properties["INFERENCE_NUM_THREADS"] = target.threads
    try:
        return core.compile_model(model, DEVICE, properties)
    except RuntimeError as error:
        reason = [line for line in str(error).splitlines() if line.strip()][-1]
        raise TargetError(f"target {target.name}: {reason}", "see the options of the recipe") from error


def _check_precision(core: Any, target: Target) -> None:
    has = core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")
    if target.precision.upper() not in has:
        raise Unavailable(
            f"target {target.name}: this CPU has no {target.precision} ({', '.join(has)})",
            "use an fp32 target, such as openvino-cpu",
        )


def _check_input(path: Path, model: Any) -> None:
    if len(model.inputs) != 1 or INPUT not in model.inputs[0].names:
        raise BundleError(
            f"{path} does not take the one input {INPUT!r}", "give a graph that this tool exported"
        )


def _declared_outputs(path: Path) -> list[str]:
    """The output names of an ONNX file, in its order; in OpenVINO a tensor may have others besides."""
    import onnx

    try:
        return [output.name for output in onnx.load(path, load_external_data=False).graph.output]
    except Exception as error:  # protobuf's, whose module depends on its version
        raise not_compiled(path, error) from error


def _check_outputs(path: Path, names: list[str], model: Any) -> None:
    for name, port in zip(names, model.outputs, strict=True):
        if name not in port.names:
            raise BundleError(f"openvino lost output {name!r} of {path}", "report it, with the model's name")
