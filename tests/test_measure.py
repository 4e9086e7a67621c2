"""Measuring: the logic, with engines whose duration the test sets and a clock that they move."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from subtune_deploy.errors import InputError
from subtune_deploy.measure import measure, measure_interleaved, measure_pair

BATCHES = [np.full((1, 3, 2, 2), value, np.float32) for value in (1.0, 2.0, 3.0)]


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class TimedEngine:
    """Answers at once, and moves the clock by the duration of its nth run."""

    clock: Clock
    duration: Callable[[int], float]
    log: list[tuple[str, float]] = field(default_factory=list)
    name: str = "engine"
    outputs: tuple[str, ...] = ("base",)
    threads: int = 1
    runs: int = 0

    def run(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        self.log.append((self.name, float(batch[0, 0, 0, 0])))
        self.clock.now += self.duration(self.runs)
        self.runs += 1
        return {"base": batch}


def three(clock: Clock) -> tuple[dict[str, TimedEngine], list[tuple[str, float]]]:
    log: list[tuple[str, float]] = []
    durations = {"a": 0.1, "b": 0.2, "c": 0.3}
    engines = {n: TimedEngine(clock, lambda _, d=d: d, log, n) for n, d in durations.items()}
    return engines, log


def test_engines_take_turns_there_and_back_and_samples_are_raw_seconds() -> None:
    clock = Clock()
    engines, log = three(clock)
    samples = measure_interleaved(engines, BATCHES, seconds=2.0, warmup=0, clock=clock)
    assert [name for name, _ in log] == ["a", "b", "c", "c", "b", "a"] * 2
    assert {
        name: values == pytest.approx([d] * 4)
        for (name, values), d in zip(samples.items(), (0.1, 0.2, 0.3), strict=True)
    } == {"a": True, "b": True, "c": True}


def test_both_orders_of_a_round_see_the_same_batch_and_batches_rotate() -> None:
    clock = Clock()
    engines, log = three(clock)
    measure_interleaved(engines, BATCHES, seconds=4.5, warmup=0, clock=clock)
    assert [value for name, value in log if name == "a"] == [1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 1.0, 1.0]


def test_it_stops_after_the_cap_and_after_a_whole_turn() -> None:
    clock = Clock()
    engines, _ = three(clock)
    samples = measure_interleaved(engines, BATCHES, seconds=0.01, warmup=0, clock=clock)
    assert [len(values) for values in samples.values()] == [2, 2, 2]


def test_warm_up_runs_are_not_among_the_samples() -> None:
    clock = Clock()
    engine = TimedEngine(clock, lambda n: 5.0 if n < 3 else 0.01)
    samples = measure_interleaved(
        {"x": engine}, BATCHES, seconds=1000.0, warmup=3, clock=clock, settled=lambda _: True
    )
    assert max(samples["x"]) == pytest.approx(0.01)
    assert engine.runs == 3 + len(samples["x"])


def test_warm_up_takes_a_quarter_of_the_time_at_most() -> None:
    clock = Clock()
    engine = TimedEngine(clock, lambda _: 1.0)
    measure_interleaved({"x": engine}, BATCHES, seconds=8.0, warmup=1000, clock=clock)
    assert engine.runs == 2 + 8


def test_a_pair_that_holds_still_settles_at_the_first_look() -> None:
    clock = Clock()
    found = measure_pair(
        TimedEngine(clock, lambda _: 0.010),
        TimedEngine(clock, lambda _: 0.0117),
        BATCHES,
        seconds=60,
        clock=clock,
    )
    assert found.settled
    assert found.added == pytest.approx(0.17)
    assert len(found.base) == len(found.candidate) == 30
    assert clock.now - 100 < 2


def test_a_noisy_pair_goes_on_until_the_interval_is_within_one_percent() -> None:
    clock, rng = Clock(), np.random.default_rng(0)
    found = measure_pair(
        TimedEngine(clock, lambda _: 0.010 * rng.lognormal(0, 0.05)),
        TimedEngine(clock, lambda _: 0.012 * rng.lognormal(0, 0.05)),
        BATCHES,
        seconds=600,
        clock=clock,
    )
    assert found.settled
    assert 30 < len(found.base) < 5000
    assert found.ratio.half_width <= 0.01
    assert found.ratio.value == pytest.approx(1.2, rel=0.02)


def test_a_pair_too_noisy_for_the_cap_is_not_called_settled() -> None:
    clock, rng = Clock(), np.random.default_rng(0)
    found = measure_pair(
        TimedEngine(clock, lambda _: 0.1 * rng.lognormal(0, 0.5)),
        TimedEngine(clock, lambda _: 0.1 * rng.lognormal(0, 0.5)),
        BATCHES,
        seconds=5,
        clock=clock,
    )
    assert not found.settled
    assert found.ratio.half_width > 0.01


def test_a_host_that_slows_down_meanwhile_does_not_move_the_ratio() -> None:
    clock = Clock()

    def slowing(scale: float) -> Callable[[int], float]:
        return lambda _: scale * (1 + (clock.now - 100) / 10)

    found = measure_pair(
        TimedEngine(clock, slowing(0.010)),
        TimedEngine(clock, slowing(0.013)),
        BATCHES,
        seconds=20,
        clock=clock,
    )
    assert found.added == pytest.approx(0.3, abs=0.01)


def test_one_engine_has_its_median_and_interval() -> None:
    clock, rng = Clock(), np.random.default_rng(0)
    found = measure(
        TimedEngine(clock, lambda _: 0.02 + 0.001 * rng.random()), BATCHES, seconds=60, clock=clock
    )
    assert found.settled
    assert found.median.low <= 0.0205 <= found.median.high
    assert found.median.value == np.median(found.samples)


def test_progress_is_told_now_and_then_as_part_of_the_cap() -> None:
    clock, told = Clock(), []
    engine = TimedEngine(clock, lambda _: 0.03)
    measure_interleaved({"x": engine}, BATCHES, seconds=1.0, warmup=0, clock=clock, progress=told.append)
    assert told == sorted(told)
    assert 5 <= len(told) <= 10
    assert 0 < told[0] < told[-1] <= 1


def test_the_collector_rests_while_samples_are_taken_and_runs_again_after_a_failure() -> None:
    clock, states = Clock(), []

    def duration(run: int) -> float:
        states.append(gc.isenabled())
        if run == 3:
            raise RuntimeError("the engine failed")
        return 0.1

    with pytest.raises(RuntimeError):
        measure_interleaved({"x": TimedEngine(clock, duration)}, BATCHES, seconds=60, warmup=0, clock=clock)
    assert states == [False] * 4
    assert gc.isenabled()


def test_measurements_that_would_say_nothing_are_refused() -> None:
    clock = Clock()
    engine = TimedEngine(clock, lambda _: 0.1)
    with pytest.raises(InputError, match="all zeros"):
        measure(engine, [np.zeros((1, 3, 2, 2), np.float32)], seconds=1, clock=clock)
    with pytest.raises(InputError, match="nothing to measure"):
        measure(engine, [], seconds=1, clock=clock)
    with pytest.raises(InputError, match="nothing to measure"):
        measure_interleaved({}, BATCHES, seconds=1, clock=clock)
    for seconds in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(InputError, match="the time to measure"):
            measure(engine, BATCHES, seconds=seconds, clock=clock)
