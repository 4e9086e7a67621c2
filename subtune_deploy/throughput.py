"""A compiled bundle -> its pictures per second for a batch size and a number of callers, beside the lone base's.

    time_streams(bundle, "cpu", batch=16, streams=2).ratio.value     # a picture takes so many times what the base takes

How callers are run and counted is told in `streams`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, ClassVar

from .backends.base import ROLES, Bounded
from .bundle import Bundle
from .conditions import noise_warnings, watch
from .documents import Document
from .environment import describe, usable_cores
from .errors import CheckFailed, InputError
from .measure import Progress, fresh_batches
from .runtime import engine_errors, load_engine, load_streams
from .spec import Pruning
from .stats import Ratio, percentile
from .streams import Crowd, Streamed, measure_streams
from .timing import identify, one_load

SIZES = (1, 4, 16, 64)
BUFFERS = 2
"""Of input for each stream, at least: large batches outgrow the cache with so few."""
LONG = 0.02
"""Of the streams' time between calls: then the runner is no longer a small part of what is measured."""


@dataclass(frozen=True)
class Served:
    """One engine under load: pictures per second with their 95 % interval; seconds of a call, of all streams."""

    rate: float
    low: float
    high: float
    p50: float
    p95: float
    p99: float


@dataclass(frozen=True)
class Throughput:
    """An engine with all tasks and the lone base's, asked for `batch` pictures at once by each of `streams` callers.

    `threads`: of each stream. `ratio`: the base's pictures per second over those with all tasks. `seconds`: that it was
    to take. `windows`: raw pictures per second by engine, index i of each from round i; `loads`: rounds of each load.
    `between`: the part of the streams' time that passed between calls. The rest is as in `results.Result`.
    """

    model: str
    weights: str
    input_shape: tuple[int, ...]
    layers: tuple[int, ...]
    forks: Mapping[str, tuple[int, ...]]
    prune: Pruning | None
    classes: Mapping[str, int]
    merge: Any
    most: int
    grouped: tuple[str, ...]
    target: str
    backend: str
    precision: str
    options: Mapping[str, Any]
    keep: tuple[str, ...]
    batch: int
    streams: int
    threads: int
    seconds: float
    ratio: Ratio
    base: Served
    graph: Served
    between: float
    started: str
    host: Mapping[str, Any]
    conditions: Mapping[str, Any]
    warnings: tuple[str, ...]
    windows: Mapping[str, tuple[float, ...]]
    loads: tuple[int, ...]


@dataclass(frozen=True)
class Throughputs(Document):
    """What the command `throughput` leaves."""

    kind: ClassVar[str] = "throughput"
    results: tuple[Throughput, ...]


def batch_limits(bundle: Bundle, target: str) -> tuple[int, int | None]:
    """The fewest and the most pictures of one call, None for any number. Raises what `load_engine` does."""
    fixed = bundle.manifest.batch
    engine = None if fixed else load_engine(bundle, target)
    return engine.batches if isinstance(engine, Bounded) else (fixed or 1, fixed)


def fitting_batches(bundle: Bundle, target: str, sizes: Sequence[int] | None = None) -> tuple[int, ...]:
    """`sizes`, which the engine must take; without, those of `SIZES` that it takes, or the fewest.

    Raises InputError, and what `load_engine` does.
    """
    low, high = batch_limits(bundle, target)
    fits = [size for size in sizes or SIZES if low <= size <= (high or size)]
    if sizes is None or len(fits) == len(sizes):
        return tuple(fits) or (low,)
    other = next(size for size in sizes if size not in fits)
    taken = f"batches of {low}" if low == high else f"{low} to {high} pictures at once"
    hint = "export with --batch dynamic for other sizes" if bundle.manifest.batch else "give one of these"
    raise InputError(f"engine {target} of {bundle.path} takes {taken}, not {other}", hint)


def time_streams(
    bundle: Bundle,
    target: str,
    batch: int,
    streams: int,
    *,
    seconds: float = 10.0,
    progress: Progress | None = None,
) -> Throughput:
    """Pictures per second of the engine for `target` and of the lone base's, by turns.

    Raises BundleError, Unavailable, InputError; CheckFailed for an engine that fails, also where memory runs out.
    """
    host, started, threads = describe(), datetime.now(timezone.utc), set[int]()

    def load() -> Crowd:
        crowd = {role: load_streams(bundle, target, role, streams) for role in reversed(ROLES)}
        threads.add(crowd["graph"][0].threads)
        return crowd

    with watch() as seen, _failures_told(target, batch, streams):
        spec = bundle.manifest.input
        batches = [
            fresh_batches(spec, batch, seed=seed, fewest=BUFFERS, among=streams) for seed in range(streams)
        ]
        found = measure_streams(load, batches, seconds, progress=progress)
    warnings = noise_warnings(host, [1 / rate for rate in found.rates["base"]], seen.conditions)
    if len(found.loads) == 1:
        warnings.append(one_load(seconds))
    if streams > (cores := usable_cores()):
        warnings.append(f"{streams} streams on {cores} cores wait for one another inside their calls")
    if found.between > LONG:
        warnings.append(f"{found.between:.0%} of the streams' time passed between calls: give a larger batch")
    fields = {
        **identify(bundle, target), "batch": batch, "streams": streams, "threads": max(threads),
        "seconds": seconds, "ratio": found.ratio("graph"), **{role: _served(found, role) for role in ROLES},
        "between": found.between, "started": started.isoformat(timespec="seconds"), "host": host,
        "conditions": seen.conditions, "warnings": tuple(warnings), "windows": found.rates, "loads": found.loads,
    }  # fmt: skip
    return Throughput(**fields)


def _served(found: Streamed, role: str) -> Served:
    rate, calls = found.rate(role), found.calls[role]
    percentiles = {f"p{percent}": percentile(calls, percent) for percent in (50, 95, 99)}
    return Served(rate.value, rate.low, rate.high, **percentiles)


@contextmanager
def _failures_told(target: str, batch: int, streams: int) -> Iterator[None]:
    """At which load an engine failed; the libraries say in many ways that memory ran out."""
    try:
        with engine_errors(target):
            yield
    except CheckFailed as error:
        raise CheckFailed(
            f"{error.message} (batch {batch}, streams {streams})",
            "if memory ran out, give a smaller --batch or fewer --streams",
        ) from error
