"""ONNX Runtime on the CPU.

`compile` saves the graph after the portable fusions (extended level), `load` adds those that depend on the
machine. On five networks that answered bit for bit, and as fast, as the original file at full optimisation.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from ..errors import BundleError, TargetError, Unavailable, did_you_mean
from ..spec import INPUT
from . import probe_library
from .base import (
    Availability,
    Batch,
    Engine,
    Shape,
    Target,
    check_batch,
    engine_file,
    not_compiled,
    not_loaded,
    source_file,
)

name = "onnxruntime"

PROVIDER = "CPUExecutionProvider"

OPTIONS = (
    "session.disable_prepacking",
    "session.dynamic_block_base",
    "session.force_spinning_stop",
    "session.inter_op.allow_spinning",
    "session.intra_op.allow_spinning",
    "session.intra_op_thread_affinities",
    "session.set_denormal_as_zero",
    "session.use_device_allocator_for_initializers",
)
"""Session entries that a recipe may set; the library itself would take a misspelt one in silence."""


@dataclass(frozen=True)
class OnnxRuntimeEngine:
    """A session; see `Engine`."""

    session: Any
    outputs: tuple[str, ...]
    shape: Shape
    threads: int

    def run(self, batch: Batch) -> dict[str, npt.NDArray[Any]]:
        feed = {INPUT: check_batch(batch, self.shape)}
        return dict(zip(self.outputs, self.session.run(self.outputs, feed), strict=True))


def probe() -> Availability:
    """Whether onnxruntime can be imported and has its CPU provider."""
    return probe_library(name)


def compile(source: Path, folder: Path, role: str, target: Target) -> None:
    """Write `<role>.onnx`, and `<role>.onnx.data` beside it if the source keeps its weights outside too."""
    import onnxruntime

    graph = source_file(source, f"{role}.onnx")
    options = _options(target)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder / graph.name)
    if Path(f"{graph}.data").exists():  # a single file cannot exceed 2 GB
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", f"{graph.name}.data"
        )
    try:
        _open(graph, options)
    except Exception as error:  # its exceptions share no base class
        raise not_compiled(graph, error) from error


def load(folder: Path, role: str, target: Target) -> Engine:
    """Open `<role>.onnx` at full optimisation."""
    import onnxruntime

    options = _options(target)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    path = engine_file(folder, f"{role}.onnx")
    try:
        session = _open(path, options)
    except Exception as error:
        raise not_loaded(path, error) from error
    if session.get_providers()[0] != PROVIDER:
        raise Unavailable(
            f"onnxruntime runs on {session.get_providers()[0]}, not on {PROVIDER}", "reinstall it"
        )
    inputs = session.get_inputs()
    if [each.name for each in inputs] != [INPUT]:
        raise BundleError(
            f"{path} does not take the one input {INPUT!r}", "give a graph that this tool exported"
        )
    shape = tuple(length if isinstance(length, int) else None for length in inputs[0].shape)
    outputs = tuple(each.name for each in session.get_outputs())
    return OnnxRuntimeEngine(session, outputs, shape, session.get_session_options().intra_op_num_threads)


def _options(target: Target) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what matters is raised
    options.intra_op_num_threads = target.threads
    for key, value in target.options.items():
        if key not in OPTIONS:
            raise TargetError(f"target {target.name}: unknown option {key!r}", did_you_mean(key, OPTIONS))
        options.add_session_config_entry(key, str(int(value)) if isinstance(value, bool) else str(value))
    return options


def _open(path: Path, options: Any) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), options, providers=[PROVIDER])
