"""What a backend is told (`Target`) and what it must do: two small protocols, and three that some have besides.

    compile(source, folder, role, target)    source/graph.onnx -> folder/<engine files of the role>
    load(folder, role, target) -> Engine     engine.run(batch) -> {output name: array}
    load_streams(..., streams)               engines for several callers at once (`Streaming`)
    interpret, examine                       what can be known of an engine where its device is not (`Inspectable`)

A backend is a module of this package with the attributes of `Backend`; its library is imported by its
functions, never by the module. Role "graph" answers every task, role "base" is the untouched backbone alone,
against which added latency is measured.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from ..environment import multiplies_int8_exactly
from ..errors import BundleError, InputError, Unavailable
from ..spec import Pruning

ROLES = ("graph", "base")

Batch = npt.NDArray[np.float32]
Shape = tuple[int | None, ...]
"""Of a batch (N, C, H, W); None where any length is taken."""

Progress = Callable[[str, float, float], None]
"""Told (what is done, how much of it, of how much)."""


def silent(what: str, done: float, total: float) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True)
class Rate:
    """One datasheet number, with where it was read."""

    value: float
    unit: str
    source: str


@dataclass(frozen=True)
class Target:
    """A recipe: which backend, at which precision, with how many threads (0: the backend's own choice).

    `options` go to the backend as they are. `datasheet` holds peak rates for the cost model. `keep`: units, or one
    task's versions of them, that an int8 graph leaves in float32 (`block13`, `block13.birds`). `weight_bits`: of
    the weights of an int8 graph, 8 or 7 (0: 7 on a CPU if this one needs it). `width_multiple`: what widths of pruned
    layers are best rounded up to; those between are hardly faster, or slower.
    """

    name: str
    backend: str
    precision: str
    description: str
    threads: int = 0
    options: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    datasheet: Mapping[str, Rate] = field(default_factory=dict)
    not_run_on_hardware: bool = False
    keep: tuple[str, ...] = ()
    weight_bits: int = 0
    width_multiple: int = Pruning.round_to


def provider(target: Target) -> str:
    """The execution provider that a target asks ONNX Runtime for."""
    return str(target.options.get("provider", "cpu"))


def eight_bits_on_cpu(target: Target) -> bool:
    """Whether an engine's answers hang on the CPU: x86 must have VNNI to multiply by weights of 8 bits."""
    return target.precision == "int8" and target.weight_bits == 8 and provider(target) == "cpu"


def check_weight_bits(target: Target) -> None:
    """Raise Unavailable where this CPU, asked to multiply by weights of 8 bits, would answer wrongly."""
    if eight_bits_on_cpu(target) and not multiplies_int8_exactly():
        raise Unavailable(
            f"target {target.name}: this CPU has no VNNI, without which products with 8-bit weights overflow",
            "compile it on this machine, with weight_bits = 7 or none in its recipe",
        )


def fewest_pictures(target: Target) -> int:
    """Of one call of an engine whose batch is open: where the recipe's profile begins, else 1."""
    return int(str(target.options.get("profile", "1")).split()[0])


PROVIDER_OPTION = "provider."
"""How options begin that go to the provider as they are."""


def provider_options(target: Target) -> dict[str, str]:
    """Of the execution provider, without what their names begin with, as the text that it takes."""
    return {
        key.removeprefix(PROVIDER_OPTION): as_text(value)
        for key, value in target.options.items()
        if key.startswith(PROVIDER_OPTION)
    }


def as_text(value: str | int | float | bool) -> str:
    """An option as ONNX Runtime reads it."""
    return str(int(value)) if isinstance(value, bool) else str(value)


def arithmetic(target: Target) -> str:
    """In what it multiplies and adds: the target's precision, or "tf32" where products of fp32 may be rounded to ten
    bits, or "fp16 sums" where those of fp16 may be summed in fp16.

    TensorRT rounds where the recipe asks, ONNX Runtime's providers for GPUs unless it forbids. Compilers for GPUs are
    free to sum in fp16, which is faster there.
    """
    options, other = target.options, provider(target) != "cpu"
    rounded = options.get("provider.use_tf32", True) if other else options.get("tf32", False)
    if target.precision == "fp32" and rounded not in (False, "0"):
        return "tf32"
    if target.precision == "fp16" and (other or target.backend.startswith("tensorrt")):
        return "fp16 sums"
    return target.precision


_PATHS = re.compile(r"(_paths?|_dir|_folder|timing_cache)$", re.IGNORECASE)
"""How options end that name files or folders: timing_cache, OpenVINO's CACHE_DIR, provider.trt_engine_cache_path."""


def without_paths(target: Target) -> Target:
    """The target as a bundle carries it. Paths are of one machine: only a recipe that is given there may name them,
    for a bundle from elsewhere could name any file to be read, written, or loaded as code."""
    options = {key: value for key, value in target.options.items() if not _PATHS.search(key)}
    return replace(target, options=options)


@dataclass(frozen=True)
class Availability:
    """Whether a backend works on this machine.

    `ok`: engines can be compiled. `runs`: they can be run here as well. `detail` and `remedy`, a line each, say
    what is missing for either; empty where nothing is.
    """

    ok: bool
    version: str
    detail: str
    remedy: str
    runs: bool = True


class Engine(Protocol):
    """A compiled graph, ready to run.

    `shape` is that of the batches it takes. `threads` is what the library says it uses (0: its own choice).
    Engines may live side by side.
    """

    @property
    def outputs(self) -> tuple[str, ...]: ...

    @property
    def shape(self) -> Shape: ...

    @property
    def threads(self) -> int: ...

    def run(self, batch: Batch) -> dict[str, npt.NDArray[Any]]:
        """Answer a batch float32 (N, C, H, W): by output name, arrays that are yours. Raises InputError."""
        ...


@runtime_checkable
class Bounded(Protocol):
    """An engine for any number of images within bounds: the fewest and the most of one call."""

    @property
    def batches(self) -> tuple[int, int]: ...


class Backend(Protocol):
    """A compiler and runtime for ONNX graphs (torch: for exported programs)."""

    name: str

    def probe(self) -> Availability:
        """Whether the library can be imported here and has the device it needs; never raises."""
        ...

    def compile(
        self, source: Path, folder: Path, role: str, target: Target, progress: Progress = silent
    ) -> None:
        """Write engine files of `role` into `folder`, from the graphs in `source`. Needs no device."""
        ...

    def load(self, folder: Path, role: str, target: Target) -> Engine:
        """Open what `compile` wrote. Raises BundleError (the files), Unavailable, TargetError (options)."""
        ...


@runtime_checkable
class Streaming(Protocol):
    """A backend whose engines for several callers at once can share their weights."""

    def load_streams(self, folder: Path, role: str, target: Target, streams: int) -> tuple[Engine, ...]:
        """As `load`, an engine for each of so many callers, with `target.threads` threads each (at least 1)."""
        ...


@runtime_checkable
class Inspectable(Protocol):
    """A backend whose compiler may be where its device is not: what it was given and what it made can be looked at."""

    def interpret(self, source: Path, role: str, target: Target) -> Engine:
        """An engine that executes, on the CPU, the network that the compiler's own parser makes of a graph."""
        ...

    def examine(self, source: Path, folder: Path, role: str, target: Target) -> dict[str, Any]:
        """Facts of the engine file in `folder`, fit for JSON. Raises BundleError where one is wrong."""
        ...


Axis: TypeAlias = Callable[[Target, int], Mapping[str, Target]]
"""A recipe, and how many cores can be used -> recipes that differ in one setting, by what is special about them."""


@runtime_checkable
class Tunable(Protocol):
    """A backend whose engines run with settings that do not change their files. `SETTINGS`: what there is to choose."""

    SETTINGS: tuple[Axis, ...]


def thread_counts(target: Target, cores: int) -> dict[str, Target]:
    """All cores, half of them, and one."""
    counts = sorted({cores, max(1, cores // 2), 1}, reverse=True)
    return {f"{n} thread{'s' if n > 1 else ''}": replace(target, threads=n) for n in counts}


def shared_by(key: str, values: Mapping[str, str | int | float | bool]) -> Axis:
    """An option of how threads share the work, `values` by what is special about them; of one thread there is none."""

    def axis(target: Target, cores: int) -> dict[str, Target]:
        if (target.threads or cores) == 1:
            return {}
        return {word: replace(target, options={**target.options, key: each}) for word, each in values.items()}

    return axis


def check_batch(batch: Batch, shape: Shape) -> Batch:
    """`batch` in contiguous memory if it fits the engine's `shape`; otherwise InputError."""
    # Part of each run: words are put together for an error alone.
    if getattr(batch, "dtype", None) != np.float32:
        raise _unfit(str(getattr(batch, "dtype", type(batch).__name__)), "float32", shape)
    if not (batch.shape == shape or _fits(batch.shape, shape)) or batch.size == 0:
        raise _unfit(str(batch.shape), spelt(shape), shape)
    return np.ascontiguousarray(batch)


def _fits(given: tuple[int, ...], shape: Shape) -> bool:
    return len(given) == len(shape) and all(b in (a, None) for a, b in zip(given, shape, strict=True))


def _unfit(given: str, taken: str, shape: Shape) -> InputError:
    hint = f"give float32 of shape {spelt(shape)}"
    return InputError(f"the batch is {given}, the engine takes {taken}", hint)


def spelt(shape: Shape) -> str:
    """`"Nx3x224x224"`."""
    return "x".join("N" if length is None else str(length) for length in shape)


class GraphError(BundleError):
    """A graph that a target's compiler does not take. `report`: each node that it cannot take and why, a line each."""

    def __init__(self, message: str, hint: str, report: Sequence[str] = ()) -> None:
        super().__init__(message, hint)
        self.report = tuple(
            "".join(letter if letter.isprintable() else "?" for letter in line) for line in report
        )


EXPORT_AGAIN = "export the bundle again, to a disk with space: subtune-deploy export"
COMPILE_AGAIN = "compile it again: subtune-deploy compile DIR --target NAME"


def source_file(source: Path, name: str) -> Path:
    """`source/name`, which a compiler is about to read; BundleError if it is not there."""
    if not (source / name).is_file():
        raise BundleError(f"{source} has no {name}", EXPORT_AGAIN)
    return source / name


def engine_file(folder: Path, name: str) -> Path:
    """`folder/name`, which an engine is about to be loaded from; BundleError if it is not there."""
    if not (folder / name).is_file():
        raise BundleError(f"engine file {folder / name} is missing", COMPILE_AGAIN)
    return folder / name


def not_compiled(path: Path, error: Exception) -> BundleError:
    """The error for a graph that the backend's library cannot compile, with the library's last line."""
    return BundleError(f"{path} cannot be compiled: {_last_line(error)}", EXPORT_AGAIN)


def not_loaded(path: Path, error: Exception) -> BundleError:
    """The error for an engine file that the backend's library refuses, with the library's last line."""
    return BundleError(f"{path} cannot be loaded: {_last_line(error)}", COMPILE_AGAIN)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
