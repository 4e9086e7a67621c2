"""A compiled bundle -> a `Result`: the engine with all tasks against the lone base, conditions recorded."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from .backends.base import ROLES, fewest_pictures
from .bundle import Bundle, engine_target
from .conditions import noise_warnings, watch
from .environment import describe
from .errors import CheckFailed
from .footprint import Look, engine_bytes, footprint
from .loads import measure_loads
from .measure import ADAPTIVE, Engines, Measurement, Progress, Protocol, fresh_batches
from .results import Result, Timing
from .runtime import engine_errors, load_engine
from .spec import BASE
from .stats import percentile


def time_bundle(
    bundle: Bundle,
    target: str,
    protocol: Protocol = ADAPTIVE,
    *,
    hot: bool = False,
    progress: Progress | None = None,
    look: Look = footprint,
) -> Result:
    """Latency of the engine for `target`, and what it adds to the base alone, as the protocol says.

    An engine for any number of pictures gets the fewest that it takes. `hot`: the flattered number, see `measure`.
    `look`: at the memory of a role's engine. Raises BundleError, Unavailable, CheckFailed for an engine that fails.
    """
    manifest, host, started = bundle.manifest, describe(), datetime.now(timezone.utc)
    pictures = manifest.batch or fewest_pictures(engine_target(bundle, target))
    batches, threads = fresh_batches(manifest.input, pictures), set[int]()

    def load() -> Engines:
        engines = {role: load_engine(bundle, target, role) for role in reversed(ROLES)}
        threads.add(engines["graph"].threads)
        return engines

    with watch() as seen, engine_errors(target):
        measured = measure_loads(load, batches, protocol, hot=hot, progress=progress)
    warnings = noise_warnings(host, measured.samples["base"], seen.conditions)
    if not measured.settled:
        warnings.append(_unsettled(protocol))
    if protocol.loads > 1 and not measured.loads:
        warnings.append(one_load(protocol.seconds))
    timings = {role: _timing(measured, bundle, target, role, warnings, look) for role in ROLES}
    return Result(
        **identify(bundle, target),
        threads=max(threads),
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
        device_ratio=measured.device_ratio("graph"),
        device=measured.device,
        loads=measured.loads,
    )


def identify(bundle: Bundle, target: str) -> dict[str, Any]:
    """The fields of a result that say which graph it is of, and by which recipe it was compiled. Raises BundleError."""
    manifest, recipe = bundle.manifest, engine_target(bundle, target)
    tasks = [task for task in manifest.tasks if task.name != BASE]
    plan = manifest.engines[target].facts.get("plan", manifest.plan)
    forks: Mapping[str, tuple[int, ...]] = {task.name: task.layers for task in tasks}
    prunings = {task.prune for task in tasks if task.layers}
    return {
        "model": manifest.model,
        "weights": manifest.weights,
        "input_shape": manifest.input.shape,
        "batch": manifest.batch,
        "layers": tuple(sorted({layer for layers in forks.values() for layer in layers})),
        "forks": forks,
        "prune": prunings.pop() if len(prunings) == 1 else None,
        "classes": {task.name: task.classes for task in tasks},
        "merge": plan.get("merge"),
        "most": plan.get("most", 0),
        "grouped": tuple(plan.get("grouped", ())),
        "target": target,
        "backend": recipe.backend,
        "precision": recipe.precision,
        "options": recipe.options,
        "keep": recipe.keep,
    }


def _timing(
    measured: Measurement, bundle: Bundle, target: str, role: str, warnings: list[str], look: Look
) -> Timing:
    samples, interval = measured.samples[role], measured.interval(role)
    memory = None
    try:
        memory = look(bundle.path, target, role).peak_rss_bytes
    except CheckFailed as error:  # latencies need not be measured again for that
        warnings.append(f"memory of {role} was not measured: {error.message}")
    return Timing(
        seconds=interval.value,
        low=interval.low,
        high=interval.high,
        **{f"p{percent}": percentile(samples, percent) for percent in (50, 95, 99)},
        worst=max(samples),
        engine_bytes=engine_bytes(bundle, target, role),
        peak_rss_bytes=memory,
    )


def one_load(seconds: float) -> str:
    """The warning where there was no time for several."""
    return (
        f"loading takes longer than {seconds:g} s, so that one load was measured: its interval does not "
        "hold what another one would differ by; give more --seconds"
    )


def _unsettled(protocol: Protocol) -> str:
    wide = f"an interval is wider than {protocol.precision:.1%} either way"
    more = "" if protocol.rounds else f", or give --seconds more than {protocol.seconds:g}"
    return f"{wide}: quieten the machine{more}"
