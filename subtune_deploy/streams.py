"""Engines that several callers ask at once -> pictures per second, raw windows and calls.

    measure_streams(load, batches, seconds=10).ratio("graph")     # load: by name, an engine for each stream

A stream is a caller in a thread of its own that asks for its next batch as soon as it has an answer (a closed loop).
Engines take turns in short windows of one process, as in `measure`, and are loaded several times, as in `loads`.

A window begins when every stream has answered once. Past its time it ends with the first call to end, but each stream
goes on until all have ended one: also calls that are cut, which count by the part inside, ran beside all others from
their beginning to their end. Python runs one thread at a time, but ONNX Runtime and OpenVINO let go of it while they
compute. What is left to Python is the wrapping of each answer, which a server in Python has to pay too, and the
runner's own few microseconds between two calls, which are told (`between`). The torch backend calls each operator from
Python: there callers wait for one another inside their calls.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from threading import Event

from .backends.base import Batch, Engine
from .errors import InputError
from .loads import FEW, only_what_is_new_collected
from .measure import FEWEST, LOADS, Clock, Progress, no_garbage_collection, order
from .stats import Interval, Ratio, median, median_over_loads, ratio_over_loads

Call = tuple[float, float]
"""When it began and when its answer was there, in seconds."""
Crowd = Mapping[str, Sequence[Engine]]
"""By name, the base's first: an engine for each stream."""

ROUNDS = 8
"""Of windows in each load's part of the time, if calls are short enough."""


@dataclass(frozen=True)
class Window:
    """What streams answered in so many seconds; `busy`: the part of their time that they spent in calls, 0..1."""

    calls: float
    seconds: float
    busy: float


def bounds(streams: Sequence[Sequence[Call]], until: float) -> tuple[float, float]:
    """From when every stream has answered once to when the first of them answers what it asked then, past `until`."""
    start = max(calls[0][1] for calls in streams)
    return start, min(
        next(after for before, after in calls if before >= start and after >= until) for calls in streams
    )


def counted(streams: Sequence[Sequence[Call]], start: float, end: float) -> Window:
    """From the calls of each stream, in order."""
    inside = [
        (min(after, end) - max(before, start), after - before)
        for calls in streams
        for before, after in calls
        if after > start and before < end
    ]
    busy = sum(part for part, _ in inside) / (len(streams) * (end - start))
    return Window(sum(part / whole for part, whole in inside), end - start, busy)


@dataclass(frozen=True)
class Streamed:
    """Raw windows by engine, index i of each from round i; the first engine is the base.

    `rates`: pictures per second. `calls`: seconds of those that began in a window. `loads`: rounds of each load.
    `between`: the part of the streams' time that passed between calls, in the median window.
    """

    rates: Mapping[str, tuple[float, ...]]
    calls: Mapping[str, tuple[float, ...]]
    loads: tuple[int, ...]
    between: float

    def rate(self, name: str) -> Interval:
        """Pictures per second, with the 95 % interval of its loads, or of the windows of one."""
        return median_over_loads(self.rates[name], self.loads)

    def ratio(self, name: str) -> Ratio:
        """The base's pictures per second over this engine's, from neighbouring windows: 1.3 takes 30 % longer."""
        return ratio_over_loads(self.rates[name], next(iter(self.rates.values())), self.loads)


def measure_streams(
    load: Callable[[], Crowd],
    batches: Sequence[Sequence[Batch]],
    seconds: float,
    *,
    loads: int = LOADS,
    clock: Clock = time.perf_counter,
    progress: Progress | None = None,
) -> Streamed:
    """Run what `load` gives by turns, all streams of an engine at once, each on its own `batches` in turn.

    `seconds` are shared by so many loads; each has at least two rounds, and each window two calls of every stream.
    What takes longer to load than that is loaded once. Raises InputError (no such time), and what loads and engines do,
    when all streams have stopped.
    """
    if not 0 < seconds < float("inf"):
        raise InputError(f"the time to measure is {seconds} s", "give a positive number of seconds")
    stage, rounds, start = _Stage(batches, clock), list[int](), clock()
    with only_what_is_new_collected(), no_garbage_collection(), stage.threads:
        crowd = load()
        loads = 1 if clock() - start > seconds else loads
        while len(rounds) < loads:
            rounds.append(stage.rounds(crowd or load(), seconds / loads, FEW if loads > 1 else FEWEST))
            crowd = {}
            gc.collect()  # of a library whose engines refer to themselves
            if progress is not None:
                progress(len(rounds) / loads)
    windows = stage.windows
    size = len(batches[0][0])
    rates = {name: tuple(size * w.calls / w.seconds for w in found) for name, found in windows.items()}
    calls = {name: tuple(taken) for name, taken in stage.calls.items()}
    between = 1 - median([w.busy for found in windows.values() for w in found])
    return Streamed(rates, calls, tuple(rounds), max(0.0, between))


@dataclass
class _Stage:
    """A thread and inputs for each stream, and what was seen so far."""

    batches: Sequence[Sequence[Batch]]
    clock: Clock
    windows: dict[str, list[Window]] = field(default_factory=dict)
    calls: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.inputs: list[Iterator[Batch]] = [cycle(each) for each in self.batches]
        self.threads, self.failed = ThreadPoolExecutor(len(self.inputs)), Event()

    def rounds(self, crowd: Crowd, seconds: float, fewest: int) -> int:
        """How many there were, an even number, after one to warm up."""
        names, turn, length = list(crowd), 0, seconds / (ROUNDS * len(crowd))
        for name in names:
            self._window(crowd[name], self.clock() + length)
        start = self.clock()
        while turn < fewest or turn % 2 or self.clock() - start < seconds:
            for name in order(names, turn):
                until = self.clock() + length
                self._keep(name, self._window(crowd[name], until), until)
            turn += 1
        return turn

    def _keep(self, name: str, streams: Sequence[Sequence[Call]], until: float) -> None:
        start, end = bounds(streams, until)
        self.windows.setdefault(name, []).append(counted(streams, start, end))
        taken = [after - before for calls in streams for before, after in calls if start <= before < end]
        self.calls.setdefault(name, []).extend(taken)

    def _window(self, engines: Sequence[Engine], until: float) -> list[list[Call]]:
        calls: list[list[Call]] = [[] for _ in engines]
        over = [False for _ in engines]
        with self._stopping():
            running = [
                self.threads.submit(self._stream, number, engine, calls, over, until)
                for number, engine in enumerate(engines)
            ]
            errors = [error for each in running if (error := each.exception())]
        if errors:
            raise errors[0]
        return calls

    def _stream(
        self, number: int, engine: Engine, calls: list[list[Call]], over: list[bool], until: float
    ) -> None:
        """Ask until all streams have ended a call past `until` that began after all had answered once."""
        with self._stopping():
            while not (all(over) or self.failed.is_set()):
                begun, batch = all(calls), next(self.inputs[number])
                before = self.clock()
                engine.run(batch)
                after = self.clock()
                calls[number].append((before, after))
                over[number] = over[number] or (begun and after >= until)

    @contextmanager
    def _stopping(self) -> Iterator[None]:
        """All streams stop if the block fails, here or in one of them: they wait for one another."""
        try:
            yield
        except BaseException:
            self.failed.set()
            raise
