"""Engines -> raw samples of latency, in seconds, interleaved in one process.

On a shared machine two separate runs of one engine can differ by tens of per cent; what runs side by side
meets the same disturbances, so ratios of neighbours hold still. Each round runs every engine once; the next
round runs them in the opposite order (A B, B A), so that neither profits from its place. Every run gets the next
of many buffers of input.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, runtime_checkable
from typing import Protocol as Interface

import numpy as np
import numpy.typing as npt

from .backends.base import Batch, Engine, Shape
from .environment import last_level_cache
from .errors import InputError
from .spec import BASE, InputSpec
from .stats import (
    Interval,
    Ratio,
    mean_interval,
    median_over_loads,
    medians,
    order_statistic_interval,
    ratio_over_loads,
)

Samples = Mapping[str, Sequence[float]]
"""Seconds by engine."""
Engines = Mapping[str, Engine]
"""By name, the base's first."""
Clock = Callable[[], float]
Progress = Callable[[float], None]
"""Told, a few times a second, the part of the work or of the time cap that has passed (0..1)."""

FIRST_LOOK = 200
"""Rounds before the samples are looked at, since fewer say nothing of the slowest in a hundred; then each time that
there are half as many again."""
FEWEST = 12
"""Rounds whatever the time: with fewer, an interval of order statistics has no bounds."""
COLD = 2
"""Rounds to warm up at least, of those that the protocol has."""
LOADS = 6
"""Loads at least where there are several, for the same reason."""
BATCHES = (8, 256)
"""So many buffers of input at least, and at most."""


@dataclass(frozen=True)
class Protocol:
    """When enough has been measured.

    With `rounds`, that many after `warmup` more, `repeats` times. Without, rounds until every median and every
    ratio is known within `precision` (half width of its 95 % interval over its value), for at most `seconds`, but
    at least 12 rounds. `loads`: so often at least, engines are loaded anew, see `loads.measure_loads`, and ratios alone
    must be known so well; 1, or 6 and more without `rounds`.
    """

    name: str = "adaptive"
    warmup: int = 10
    rounds: int = 0
    repeats: int = 1
    seconds: float = 20.0
    precision: float = 0.01
    loads: int = 1

    def __post_init__(self) -> None:
        if self.loads != 1 and (self.loads < LOADS or self.rounds):
            raise InputError(
                f"{self.loads} loads of {self.rounds or 'some'} rounds cannot be measured",
                f"give 1, or {LOADS} and more without a number of rounds",
            )
        if not self.rounds and not (0 < self.seconds < float("inf") and self.precision > 0):
            given = f"{self.seconds} s, precision {self.precision}"
            raise InputError(f"the time to measure is {given}", "give a positive number of each")
        if self.rounds % 2 or (self.rounds and self.warmup % 2):
            given = f"{self.warmup} rounds to warm up, {self.rounds} timed"
            raise InputError(
                f"{given}: one is odd", "rounds come in pairs of opposite orders: give even numbers"
            )


ADAPTIVE = Protocol(loads=LOADS)
ONCE = Protocol()
"""The same with engines as they happen to be loaded."""
PAPER = Protocol("paper", warmup=300, rounds=300, repeats=10)
"""Appendix A: 300 rounds to warm up, 300 timed, ten times; the mean of the ten medians."""


@runtime_checkable
class DeviceTimed(Interface):
    """An engine that also knows, from events around its last run, how long the device worked, in seconds."""

    @property
    def device_seconds(self) -> float: ...


@dataclass(frozen=True)
class Several:
    """Networks with an engine each, the base's among them, run one after the other as one `Engine`."""

    engines: Mapping[str, Engine]

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(self.engines)

    @property
    def shape(self) -> Shape:
        return self.engines[BASE].shape

    @property
    def threads(self) -> int:
        return self.engines[BASE].threads

    def run(self, batch: Batch) -> dict[str, npt.NDArray[Any]]:
        return {name: engine.run(batch)[BASE] for name, engine in self.engines.items()}


@dataclass(frozen=True)
class Measurement:
    """Raw samples in seconds by engine, index i of each taken in round i; the first engine is the base.

    `samples` are host to host: from before the call of `run` to its answer in memory. `device` holds the
    device's own work for engines that are `DeviceTimed`. `settled`: within the precision asked for. `loads`: rounds
    of each load where there were several.
    """

    protocol: Protocol
    samples: Mapping[str, tuple[float, ...]]
    settled: bool
    device: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    loads: tuple[int, ...] = ()

    def latency(self, name: str) -> float:
        """Seconds: the mean over the protocol's repeats, or the median over its loads, of their medians."""
        return self.interval(name).value

    def interval(self, name: str) -> Interval:
        """Latency in seconds with the 95 % interval that would hold if samples (repeats, loads) were independent."""
        if self.protocol.repeats > 1:
            return mean_interval(medians(self.samples[name], self.protocol.repeats))
        return median_over_loads(self.samples[name], self.loads)

    def ratio(self, name: str) -> Ratio:
        """Latency relative to the base, from neighbouring rounds."""
        return ratio_over_loads(next(iter(self.samples.values())), self.samples[name], self.loads)

    def device_ratio(self, name: str) -> Ratio | None:
        """The same of the device's own work, where both engines tell it."""
        base = self.device.get(next(iter(self.samples)))
        return ratio_over_loads(base, self.device[name], self.loads) if base and name in self.device else None


def measure(
    engines: Engines,
    batches: Sequence[Batch],
    protocol: Protocol = ONCE,
    *,
    hot: bool = False,
    clock: Clock = time.perf_counter,
    progress: Progress | None = None,
    fewest: int = FEWEST,
) -> Measurement:
    """Run all engines interleaved, on `batches` in turn, loaded as they are.

    Without a number of rounds, samples are looked at now and then; a cap in time ends after an even round, `fewest` at
    least. `hot` gives the flattered number instead: always the first batch, each engine right after itself.
    Raises InputError for no engines, no batches, batches that are all zeros, or a protocol of several loads.
    """
    _check(engines, batches, protocol)
    stage = _Stage(engines, batches[:1] if hot else batches, hot, clock, progress)
    with no_garbage_collection():
        _fixed(stage, protocol) if protocol.rounds else _until_settled(stage, protocol, fewest)
    samples = {name: tuple(taken) for name, taken in stage.samples.items()}
    device = {name: tuple(taken) for name, taken in stage.device.items() if taken}
    return Measurement(protocol, samples, settled(samples, protocol.precision), device)


def settled(samples: Samples, precision: float, loads: Sequence[int] = ()) -> bool:
    """Whether all ratios to the first engine are known within `precision` and, of one load, all medians.

    From one load to the next all engines together take more or less, as the machine does.
    """
    base, *others = samples.values()
    ratios = (ratio_over_loads(base, taken, loads).half_width for taken in others)
    medians = () if loads else (order_statistic_interval(taken).half_width for taken in samples.values())
    return max((*medians, *ratios), default=0.0) <= precision


def order(names: Sequence[str], turn: int) -> list[str]:
    """Who runs when: who begins changes with each pair of rounds, of which the second goes backwards."""
    first = turn // 2 % len(names)
    found = [*names[first:], *names[:first]]
    return found if turn % 2 == 0 else found[::-1]


def fresh_batches(
    spec: InputSpec, size: int, *, seed: int = 0, fewest: int = BATCHES[0], among: int = 1
) -> list[Batch]:
    """Normal random inputs (size, C, H, W), in so many buffers that together they outgrow the last cache.

    At least `fewest` and at most 256 of them, so a tiny input may still fit. `among`: so many callers have as many.
    """
    rng = np.random.default_rng(seed)
    count = 2 * last_level_cache() // (4 * size * int(np.prod(spec.shape)) * among)
    shape = (size, *spec.shape)
    return [rng.standard_normal(shape, dtype=np.float32) for _ in range(min(max(count, fewest), BATCHES[1]))]


class _Stage:
    """Engines, their inputs, and the samples so far."""

    def __init__(
        self,
        engines: Engines,
        batches: Sequence[Batch],
        hot: bool,
        clock: Clock,
        progress: Progress | None,
    ) -> None:
        self.engines, self.batches, self.hot, self.clock = engines, batches, hot, clock
        self.samples: dict[str, list[float]] = {name: [] for name in engines}
        self.device: dict[str, list[float]] = {name: [] for name in engines}
        self.turn, self.runs, self.told, self.tell = 0, 0, clock(), progress

    def round(self, *, keep: bool = True) -> None:
        """Every engine once."""
        for name in order(list(self.engines), self.turn):
            self._run(name, keep)
        self.turn += 1

    def _run(self, name: str, keep: bool) -> None:
        engine, batch = self.engines[name], self.batches[self.runs % len(self.batches)]
        self.runs += 1
        if self.hot:
            engine.run(batch)
        before = self.clock()
        engine.run(batch)
        after = self.clock()
        if keep:
            self.samples[name].append(after - before)
            if isinstance(engine, DeviceTimed):
                self.device[name].append(engine.device_seconds)

    def progress(self, part: float) -> None:
        if self.tell is not None and self.clock() >= self.told + 0.1:
            self.told = self.clock()
            self.tell(min(1.0, part))


def _fixed(stage: _Stage, protocol: Protocol) -> None:
    total = protocol.repeats * (protocol.warmup + protocol.rounds)
    for done in range(total):
        stage.round(keep=done % (protocol.warmup + protocol.rounds) >= protocol.warmup)
        stage.progress((done + 1) / total)


def _until_settled(stage: _Stage, protocol: Protocol, fewest: int) -> None:
    _warm_up(stage, protocol)
    start, look = stage.clock(), FIRST_LOOK
    while (passed := stage.clock() - start) < protocol.seconds or stage.turn < fewest:
        stage.round()
        stage.round()
        stage.progress(passed / protocol.seconds)
        if stage.turn >= look:
            if settled(stage.samples, protocol.precision):
                return
            look = look * 3 // 2


def _warm_up(stage: _Stage, protocol: Protocol) -> None:
    """All of its rounds, or as many as fit into a quarter of the time, but two: much is made ready in the first."""
    start = stage.clock()
    for done in range(protocol.warmup):
        if done >= COLD and stage.clock() - start >= protocol.seconds / 4:
            break
        stage.round(keep=False)
    stage.turn = 0


def _check(engines: Engines, batches: Sequence[Batch], protocol: Protocol) -> None:
    if protocol.loads != 1:
        raise InputError(f"engines are loaded already, not {protocol.loads} times", "call measure_loads")
    if not engines or not len(batches):
        raise InputError("nothing to measure", "give at least one engine and one batch")
    if not all(batch.any() for batch in batches):
        raise InputError(
            "a batch is all zeros, which some engines answer faster", "give random or real inputs"
        )


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Python's collector would otherwise land in somebody's sample."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
