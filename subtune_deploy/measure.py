"""Engines -> raw samples of latency, in seconds, interleaved in one process.

On a shared machine two separate runs of one engine can differ by tens of per cent; what runs side by side
meets the same disturbances, so ratios of neighbours hold still. Each round runs every engine once on the same
batch, in an order that turns round every time (A B, B A, ...), so that neither profits from its place.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from .backends.base import Batch, Engine
from .errors import InputError
from .stats import Interval, Ratio, order_statistic_interval, paired_ratio

Samples = dict[str, list[float]]
Clock = Callable[[], float]
Progress = Callable[[float], None]
"""Told, a few times a second, the part of the time cap that has passed (0..1)."""

PRECISION = 0.01
"""Half width of the interval, relative to the value, at which enough has been measured."""
FIRST_LOOK = 30
"""Rounds before the samples are looked at; then each time that there are half as many again."""


@dataclass(frozen=True)
class Measurement:
    """Raw samples of one engine in seconds, in the order taken, and their median latency."""

    samples: tuple[float, ...]
    median: Interval
    settled: bool


@dataclass(frozen=True)
class PairMeasurement:
    """Raw samples of base and candidate in seconds, pairs at one index; `settled` if within precision."""

    base: tuple[float, ...]
    candidate: tuple[float, ...]
    ratio: Ratio
    settled: bool

    @property
    def added(self) -> float:
        """Added latency relative to the base: 0.17 is 17 %."""
        return self.ratio.value - 1


def measure(
    engine: Engine,
    batches: Sequence[Batch],
    *,
    seconds: float,
    warmup: int = 10,
    clock: Clock = time.perf_counter,
    progress: Progress | None = None,
) -> Measurement:
    """Run one engine until its median is known within 1 %, for at most `seconds`."""
    samples = measure_interleaved(
        {"engine": engine},
        batches,
        seconds=seconds,
        warmup=warmup,
        settled=_median_settled,
        clock=clock,
        progress=progress,
    )
    taken = samples["engine"]
    return Measurement(tuple(taken), order_statistic_interval(taken), _median_settled(samples))


def measure_pair(
    base: Engine,
    candidate: Engine,
    batches: Sequence[Batch],
    *,
    seconds: float,
    warmup: int = 10,
    clock: Clock = time.perf_counter,
    progress: Progress | None = None,
) -> PairMeasurement:
    """Run both until candidate / base is known within 1 %, for at most `seconds`."""
    engines = {"base": base, "candidate": candidate}
    samples = measure_interleaved(
        engines,
        batches,
        seconds=seconds,
        warmup=warmup,
        settled=_ratio_settled,
        clock=clock,
        progress=progress,
    )
    ratio = paired_ratio(samples["base"], samples["candidate"])
    return PairMeasurement(
        tuple(samples["base"]), tuple(samples["candidate"]), ratio, _ratio_settled(samples)
    )


def measure_interleaved(
    engines: Mapping[str, Engine],
    batches: Sequence[Batch],
    *,
    seconds: float,
    warmup: int = 10,
    settled: Callable[[Samples], bool] | None = None,
    clock: Clock = time.perf_counter,
    progress: Progress | None = None,
) -> Samples:
    """Samples in seconds for every engine, index i of each taken in round i, on the same batch.

    Stops when `settled` says so (looked at now and then), or after the first even number of rounds that ends
    beyond `seconds`. Warm-up comes first: `warmup` rounds, or a quarter of `seconds` if that ends sooner.
    Raises InputError for no engines, no batches, or batches that are all zeros.
    """
    _check(engines, batches, seconds)
    _warm_up(engines, batches, warmup, seconds / 4, clock)
    samples: Samples = {name: [] for name in engines}
    start, told, look = clock(), 0.0, FIRST_LOOK
    with _no_garbage_collection():
        for turn in _turns():
            _round(engines, batches[turn // 2 % len(batches)], turn, samples, clock)
            passed = clock() - start
            if turn % 2 and passed >= seconds:
                break
            if turn + 1 >= look and settled is not None:
                if settled(samples):
                    break
                look = look * 3 // 2
            if progress is not None and passed >= told + 0.1:
                progress(min(1.0, passed / seconds))
                told = passed
    return samples


def _turns() -> Iterator[int]:
    turn = 0
    while True:
        yield turn
        turn += 1


def _round(engines: Mapping[str, Engine], batch: Batch, turn: int, samples: Samples, clock: Clock) -> None:
    for name in engines if turn % 2 == 0 else reversed(list(engines)):
        run = engines[name].run
        before = clock()
        run(batch)
        samples[name].append(clock() - before)


def _warm_up(
    engines: Mapping[str, Engine], batches: Sequence[Batch], rounds: int, seconds: float, clock: Clock
) -> None:
    start, scratch = clock(), {name: [0.0] for name in engines}
    for turn in range(rounds):
        _round(engines, batches[turn // 2 % len(batches)], turn, scratch, clock)
        if clock() - start >= seconds:
            return


def _median_settled(samples: Samples) -> bool:
    return order_statistic_interval(samples["engine"]).half_width <= PRECISION


def _ratio_settled(samples: Samples) -> bool:
    return paired_ratio(samples["base"], samples["candidate"]).half_width <= PRECISION


def _check(engines: Mapping[str, Engine], batches: Sequence[Batch], seconds: float) -> None:
    if not engines or not len(batches):
        raise InputError("nothing to measure", "give at least one engine and one batch")
    if not all(batch.any() for batch in batches):
        raise InputError(
            "a batch is all zeros, which some engines answer faster", "give random or real inputs"
        )
    if not 0 < seconds < float("inf"):
        raise InputError(f"the time to measure is {seconds} s", "give a positive number of seconds")


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Python's collector would otherwise land in somebody's sample."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
