"""A compiled bundle -> a `Result`: the engine with all tasks against the lone base, conditions recorded."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from functools import partial
from typing import Any

from .backends.base import ROLES
from .bundle import Bundle, Manifest
from .conditions import noise_warnings, watch
from .environment import describe
from .footprint import Footprint, footprint
from .measure import ADAPTIVE, Measurement, Progress, Protocol, fresh_batches, measure
from .results import Result, Timing
from .runtime import load_engine
from .spec import BASE
from .stats import paired_ratio, percentile


def time_bundle(
    bundle: Bundle,
    target: str,
    protocol: Protocol = ADAPTIVE,
    *,
    hot: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Latency of the engine for `target`, and what it adds to the base alone, as the protocol says.

    `hot`: the flattered number, see `measure`. Raises BundleError, Unavailable.
    """
    manifest, host, started = bundle.manifest, describe(), datetime.now(timezone.utc)
    engines = {role: load_engine(bundle, target, role) for role in reversed(ROLES)}
    batches = fresh_batches(manifest.input, manifest.batch or 1)
    with watch() as seen:
        measured = measure(engines, batches, protocol, hot=hot, progress=progress)
    warnings = noise_warnings(host, measured.samples["base"], seen.conditions)
    if not measured.settled:
        warnings.append(_unsettled(protocol))
    device, timings = measured.device, _timings(measured, bundle, target)
    return Result(
        **_identity(manifest, target),
        threads=engines["graph"].threads,
        protocol=protocol,
        inputs="hot" if hot else "fresh",
        ratio=measured.ratio("graph"),
        settled=measured.settled,
        base=timings["base"],
        graph=timings["graph"],
        started=started.isoformat(timespec="seconds"),
        host=host,
        conditions=seen.conditions,
        warnings=tuple(warnings),
        samples=measured.samples,
        device_ratio=paired_ratio(device["base"], device["graph"]) if device else None,
        device=device,
    )


def _identity(manifest: Manifest, target: str) -> dict[str, Any]:
    forks: Mapping[str, tuple[int, ...]] = {t.name: t.layers for t in manifest.tasks if t.name != BASE}
    return {
        "model": manifest.model,
        "weights": manifest.weights,
        "input_shape": manifest.input.shape,
        "batch": manifest.batch or 1,
        "layers": tuple(sorted({layer for layers in forks.values() for layer in layers})),
        "forks": forks,
        "merge": manifest.plan.get("merge"),
        "grouped": tuple(manifest.plan.get("grouped", ())),
        "target": target,
        "backend": manifest.engines[target].backend,
        "precision": manifest.engines[target].precision,
    }


def _timings(measured: Measurement, bundle: Bundle, target: str) -> dict[str, Timing]:
    with ThreadPoolExecutor(len(ROLES)) as pool:  # each starts a process, and nothing is timed any more
        memory = dict(zip(ROLES, pool.map(partial(footprint, bundle.path, target), ROLES), strict=True))
    return {role: _timing(measured, role, memory[role]) for role in ROLES}


def _timing(measured: Measurement, role: str, memory: Footprint) -> Timing:
    samples, interval = measured.samples[role], measured.interval(role)
    return Timing(
        seconds=measured.latency(role),
        low=interval.low,
        high=min(interval.high, max(samples)),
        **{f"p{percent}": percentile(samples, percent) for percent in (50, 95, 99)},
        worst=max(samples),
        engine_bytes=memory.engine_bytes,
        peak_rss_bytes=memory.peak_rss_bytes,
    )


def _unsettled(protocol: Protocol) -> str:
    wide = f"an interval is wider than {protocol.precision:.1%} either way"
    return f"{wide}: quieten the machine, or give --seconds more than {protocol.seconds:g}"
