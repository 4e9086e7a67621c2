"""ONNX Runtime: on the CPU, or on an NVIDIA GPU through one of its other execution providers.

For the CPU `compile` saves the graph after the portable fusions (extended level), `load` adds those that depend on
the machine. On five networks that answered bit for bit, and as fast, as the original file at full optimisation.
For a GPU `compile` keeps the graph as it is, since fused operators of the CPU may be unknown to other providers.

ONNX Runtime runs on the CPU, and says nothing, where a provider cannot start: `load` looks, and refuses. The
providers for GPUs have not yet been run on hardware.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import re
import shutil
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy.typing as npt

from ..errors import BundleError, SubtuneError, TargetError, Unavailable, did_you_mean
from ..spec import INPUT
from . import probe_library
from .base import (
    PROVIDER_OPTION,
    Availability,
    Axis,
    Batch,
    Engine,
    Progress,
    Shape,
    Target,
    as_text,
    check_batch,
    check_weight_bits,
    engine_file,
    not_compiled,
    not_loaded,
    provider,
    provider_options,
    shared_by,
    silent,
    source_file,
    thread_counts,
)

name = "onnxruntime"


@dataclass(frozen=True)
class Provider:
    """What does the work in ONNX Runtime: its name there, a name it may have as a plugin, what to install for it."""

    name: str
    plugin: str
    install: str


CPU = "cpu"
PROVIDERS = {
    CPU: Provider("CPUExecutionProvider", "", "pip install onnxruntime"),
    "cuda": Provider(
        "CUDAExecutionProvider",
        "",
        "pip uninstall onnxruntime, then pip install 'onnxruntime-gpu[cuda,cudnn]'",
    ),
    "tensorrt": Provider(
        "TensorrtExecutionProvider",
        "",
        "pip uninstall onnxruntime, then pip install onnxruntime-gpu and the version of tensorrt that it was built for",
    ),
    "tensorrt_rtx": Provider(
        "NvTensorRTRTXExecutionProvider", "nv_tensorrt_rtx", "pip install onnxruntime-ep-nv-tensorrt-rtx"
    ),
}
"""By the value of a recipe's option `provider`."""

PROVIDER = PROVIDERS[CPU].name

PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"
"""The module that brings TensorRT-RTX's provider to the ordinary ONNX Runtime."""

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

NEEDS = "it needs an NVIDIA GPU, its driver (see nvidia-smi), and libraries of the right version"

HIDING = "MatMulAddFusion"
"""An optimization that makes one operator of a product and its bias, before products of integers are looked for: these
would stay in float, their weights unpacked at each run. What is in float still gets it when the engine is opened."""

_PLACE = re.compile(r"^\S+\.(cc|h):\d+ .*?\) (?=[A-Z])")
_FILE_ERRORS = ("InvalidGraph", "InvalidProtobuf", "NoModel", "NoSuchFile")
"""Of the library's exceptions those that blame the file, whatever the provider."""


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
    """Whether onnxruntime can be imported and has its CPU provider. Other providers show when an engine is loaded."""
    return probe_library(name)


def compile(source: Path, folder: Path, role: str, target: Target, progress: Progress = silent) -> None:
    """Write `<role>.onnx`, and `<role>.onnx.data` beside it if the source keeps its weights outside too."""
    import onnxruntime

    graph = source_file(source, f"{role}.onnx")
    chosen, options, levels = _provider(target), _session_options(target), onnxruntime.GraphOptimizationLevel
    beside = Path(f"{graph}.data")  # a single file cannot exceed 2 GB
    options.graph_optimization_level = levels.ORT_ENABLE_EXTENDED if chosen == CPU else levels.ORT_DISABLE_ALL
    if chosen == CPU:
        options.optimized_model_filepath = str(folder / graph.name)
        if beside.exists():
            entry = "session.optimized_model_external_initializers_file_name"
            options.add_session_config_entry(entry, beside.name)
    left_out = [HIDING] if target.precision == "int8" else []
    try:
        _session(graph, options, providers=[PROVIDER], disabled_optimizers=left_out)
    except Exception as error:  # its exceptions share no base class
        raise not_compiled(graph, error) from error
    if chosen != CPU:
        for path in (graph, beside):
            if path.exists():
                shutil.copyfile(path, folder / path.name)


def load(folder: Path, role: str, target: Target) -> Engine:
    """Open `<role>.onnx` at full optimisation. Raises Unavailable where the target's provider does not run."""
    import onnxruntime

    path, chosen = engine_file(folder, f"{role}.onnx"), _provider(target)
    check_weight_bits(target)
    options = _session_options(target)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    arguments = _arguments(chosen, options, _provider_options(target, chosen))
    try:
        session = _session(path, options, **arguments)
    except Exception as error:
        raise _not_opened(path, chosen, error) from error
    _check_provider(session, chosen)
    return _engine(path, session)


def load_streams(folder: Path, role: str, target: Target, streams: int) -> tuple[Engine, ...]:
    """One session, which any number of threads may run at once: each caller is a thread of its own in it, and all share
    the others of its pool."""
    threads = streams * (target.threads - 1) + 1
    engine = load(folder, role, replace(target, threads=threads))
    assert isinstance(engine, OnnxRuntimeEngine)
    return (replace(engine, threads=target.threads),) * streams


def open_literally(path: Path) -> Engine:
    """The ONNX file `path` on the CPU, operator by operator as it is written. Raises BundleError."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = _session(path, options, providers=[PROVIDER])
    except Exception as error:  # its exceptions share no base class
        raise not_compiled(path, error) from error
    return _engine(path, session)


def _engine(path: Path, session: Any) -> Engine:
    inputs = session.get_inputs()
    if [each.name for each in inputs] != [INPUT]:
        raise BundleError(
            f"{path} does not take the one input {INPUT!r}", "give a graph that this tool exported"
        )
    shape = tuple(length if isinstance(length, int) else None for length in inputs[0].shape)
    outputs = tuple(each.name for each in session.get_outputs())
    return OnnxRuntimeEngine(session, outputs, shape, session.get_session_options().intra_op_num_threads)


def _provider(target: Target) -> str:
    """The key in PROVIDERS of what the recipe asks for."""
    chosen = provider(target)
    if chosen not in PROVIDERS:
        raise TargetError(
            f"target {target.name}: provider {chosen!r} is unknown", did_you_mean(chosen, PROVIDERS)
        )
    if chosen == CPU and target.precision == "fp16":  # it would compute in fp32 and not say so
        raise TargetError(
            f"target {target.name}: ONNX Runtime computes no fp16 on the CPU", "use fp32, or another provider"
        )
    return chosen


def _of_cpu(axis: Axis) -> Axis:
    """There is nothing to choose for other providers."""
    return lambda target, cores: axis(target, cores) if _provider(target) == CPU else {}


SETTINGS = (
    _of_cpu(thread_counts),
    _of_cpu(shared_by("session.dynamic_block_base", {"blocks by cost": "4"})),
)
"""For `Tunable`. Spinning is not among them: threads that spin slow down whatever is run by turns with them."""


def _provider_options(target: Target, chosen: str) -> dict[str, str]:
    found = provider_options(target)
    if chosen == CPU and found:
        raise TargetError(
            f"target {target.name}: the CPU provider has no options such as {min(found)!r}",
            "take them out, or name the provider they are for",
        )
    return found


def _session_options(target: Target) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what matters is raised
    options.intra_op_num_threads = target.threads
    for key, value in target.options.items():
        if key == "provider" or key.startswith(PROVIDER_OPTION):
            continue
        if key not in OPTIONS:
            known = (*OPTIONS, "provider")
            raise TargetError(f"target {target.name}: unknown option {key!r}", did_you_mean(key, known))
        options.add_session_config_entry(key, as_text(value))
    return options


def _arguments(chosen: str, options: Any, own: dict[str, str]) -> dict[str, Any]:
    """How a session is told its provider: by name, or, for a plugin, by its devices in `options`."""
    import onnxruntime

    if chosen == CPU:
        return {"providers": [PROVIDER]}
    if not hasattr(onnxruntime, "get_ep_devices"):
        version = onnxruntime.__version__
        raise Unavailable(
            f"onnxruntime {version} is too old for providers", "pip install 'onnxruntime>=1.23'"
        )
    _preload()
    if chosen == "tensorrt":
        _preload_tensorrt()
    if chosen == "tensorrt_rtx":
        _register_plugin()
    wanted, available = PROVIDERS[chosen], onnxruntime.get_available_providers()
    if wanted.name in available:
        return {"providers": [(wanted.name, own), PROVIDER]}
    names = (wanted.name, wanted.plugin)
    devices = [each for each in onnxruntime.get_ep_devices() if each.ep_name in names]
    if not devices:
        raise Unavailable(
            f"this onnxruntime has no {wanted.name} for a device here, but {', '.join(available)}",
            wanted.install,
        )
    options.add_provider_for_devices(devices[:1], own)  # NVIDIA's takes one, not all
    return {}


@cache
def _register_plugin() -> None:
    """Once per process; without the module, or its libraries, the provider is simply not there."""
    import onnxruntime

    if importlib.util.find_spec(PLUGIN) is None:
        return
    plugin = importlib.import_module(PLUGIN)
    try:
        onnxruntime.register_execution_provider_library(plugin.get_ep_name(), plugin.get_library_path())
    except Exception as error:  # its exceptions share no base class
        raise Unavailable(
            f"{PLUGIN} cannot be loaded: {_reason(error)}", f"{NEEDS}: {PROVIDERS['tensorrt_rtx'].install}"
        ) from error


@cache
def _preload_tensorrt() -> None:
    """Have the libraries of the package `tensorrt` found: they lie on no path of the loader, its own module loads them.

    Where it is not installed, the system's may be found, or the session tells.
    """
    with contextlib.suppress(ImportError, OSError):
        importlib.import_module("tensorrt_libs")


@cache
def _preload() -> str:
    """Have the CUDA libraries of the nvidia packages found; the first complaint about one that is not, or nothing."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)  # what matters is raised, or shows in the session's providers
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        onnxruntime.preload_dlls()
    return printed.getvalue().partition("\n")[0]


def _session(path: Path, options: Any, **arguments: Any) -> Any:
    """Without the library's own second try on the CPU, which it prints about."""
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), options, enable_fallback=0, **arguments)


def _not_opened(path: Path, chosen: str, error: Exception) -> SubtuneError:
    if chosen == CPU or type(error).__name__ in _FILE_ERRORS:
        return not_loaded(path, error)
    wanted = PROVIDERS[chosen]
    return Unavailable(f"{wanted.name} did not start: {_reason(error)}", f"{NEEDS}: {wanted.install}")


def _reason(error: Exception) -> str:
    """The last line, without the place in the library's source."""
    return _PLACE.sub("", str(error).strip().splitlines()[-1])


def _check_provider(session: Any, chosen: str) -> None:
    wanted, got = PROVIDERS[chosen], session.get_providers()[0]
    if got not in (wanted.name, wanted.plugin):
        said = f" ({_preload()})" if _preload() else ""
        raise Unavailable(
            f"{wanted.name} did not start{said}: onnxruntime would run on {got} instead, and not say so",
            f"{NEEDS}: {wanted.install}",
        )
