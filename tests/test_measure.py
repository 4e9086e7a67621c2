"""Measuring: the logic, with engines whose duration the test sets and a clock that they move."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from subtune_deploy.errors import InputError
from subtune_deploy.measure import FEWEST, PAPER, DeviceTimed, Measurement, Protocol, fresh_batches, measure
from subtune_deploy.spec import InputSpec
from subtune_deploy.stats import order_statistic_interval

BATCHES = [np.full((1, 3, 2, 2), value, np.float32) for value in (1.0, 2.0, 3.0)]
COLD = Protocol(warmup=0, seconds=60)
LOOKS = (200, 300, 450, 676)
"""Rounds after which the samples are looked at: each time half as many again, rounded up to an even number."""


@dataclass
class Clock:
    """Reading it takes `tick` seconds."""

    now: float = 100.0
    tick: float = 0.0

    def __call__(self) -> float:
        self.now += self.tick
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


@dataclass
class OnDevice(TimedEngine):
    """Its device works for half of the time that the host waits."""

    @property
    def device_seconds(self) -> float:
        return self.duration(self.runs - 1) / 2


@dataclass
class BusyWait:
    """An engine, and after each run of it so many seconds of reading the clock."""

    engine: TimedEngine
    clock: Clock
    seconds: float
    outputs: tuple[str, ...] = ("base",)
    threads: int = 1

    def run(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        answer = self.engine.run(batch)
        until = self.clock() + self.seconds
        while self.clock() < until:
            pass
        return answer


def three(clock: Clock) -> tuple[dict[str, TimedEngine], list[tuple[str, float]]]:
    log: list[tuple[str, float]] = []
    durations = {"a": 0.1, "b": 0.2, "c": 0.3}
    engines = {n: TimedEngine(clock, lambda _, d=d: d, log, n) for n, d in durations.items()}
    return engines, log


def noisy(seconds: float, spread: float, rng: np.random.Generator) -> Callable[[int], float]:
    return lambda _: seconds * rng.lognormal(0, spread)


def pair(clock: Clock, base: Callable[[int], float], other: Callable[[int], float]) -> dict[str, TimedEngine]:
    return {"base": TimedEngine(clock, base), "other": TimedEngine(clock, other)}


# The order of things


def test_engines_take_turns_there_and_back_each_beginning_in_turn_and_samples_are_raw_seconds() -> None:
    clock = Clock()
    engines, log = three(clock)
    found = measure(engines, BATCHES, Protocol(warmup=0, seconds=2), clock=clock)
    order = ["a", "b", "c", "c", "b", "a", "b", "c", "a", "a", "c", "b", "c", "a", "b", "b", "a", "c"]
    assert [name for name, _ in log] == order * 2
    assert list(found.samples) == ["a", "b", "c"]
    for samples, duration in zip(found.samples.values(), (0.1, 0.2, 0.3), strict=True):
        assert samples == pytest.approx((duration,) * FEWEST)


def test_every_run_gets_the_next_buffer() -> None:
    clock = Clock()
    engines, log = three(clock)
    measure(engines, BATCHES, Protocol(warmup=0, seconds=2), clock=clock)
    assert [batch for _, batch in log] == [1.0, 2.0, 3.0] * FEWEST


def test_hot_runs_each_engine_right_after_itself_on_one_batch_and_times_the_second_run() -> None:
    clock, log = Clock(), []
    engines = {
        name: TimedEngine(clock, lambda run, d=d: d if run % 2 else 5 * d, log, name)
        for name, d in {"a": 0.1, "b": 0.2}.items()
    }
    found = measure(engines, BATCHES, Protocol(warmup=0, seconds=6), hot=True, clock=clock)
    assert log == [(name, 1.0) for name in "aabbbbaabbaaaabb" * 3]
    assert found.samples["a"] == pytest.approx((0.1,) * FEWEST)
    assert found.samples["b"] == pytest.approx((0.2,) * FEWEST)


# Adaptive: until it holds still


def test_what_holds_still_settles_at_the_first_look() -> None:
    clock = Clock()
    found = measure(pair(clock, lambda _: 0.010, lambda _: 0.0117), BATCHES, COLD, clock=clock)
    assert found.settled
    assert len(found.samples["base"]) == len(found.samples["other"]) == LOOKS[0]
    assert clock.now - 100 == pytest.approx(LOOKS[0] * 0.0217)
    assert found.ratio("other").value == pytest.approx(1.17)
    assert found.latency("other") == pytest.approx(0.0117)


@pytest.mark.parametrize("spread", [0.05, 0.10])
def test_what_is_noisy_goes_on_until_every_interval_is_within_the_precision(spread: float) -> None:
    clock, rng = Clock(), np.random.default_rng(0)
    engines = pair(clock, noisy(0.010, spread, rng), noisy(0.012, spread, rng))
    found = measure(engines, BATCHES, Protocol(seconds=600), clock=clock)
    assert found.settled
    assert LOOKS[0] < len(found.samples["base"]) < 5000
    assert found.ratio("other").half_width <= 0.01
    assert all(found.interval(name).half_width <= 0.01 for name in engines)
    assert found.ratio("other").value == pytest.approx(1.2, rel=0.02)


def test_samples_are_looked_at_when_there_are_half_as_many_again() -> None:
    clock, rng = Clock(), np.random.default_rng(0)
    found = measure(pair(clock, noisy(0.010, 0.05, rng), noisy(0.012, 0.05, rng)), BATCHES, COLD, clock=clock)
    assert len(found.samples["base"]) in LOOKS[1:]


def test_a_wider_precision_is_reached_sooner() -> None:
    clock, rng = Clock(), np.random.default_rng(0)
    engines = pair(clock, noisy(0.010, 0.10, rng), noisy(0.012, 0.10, rng))
    found = measure(engines, BATCHES, Protocol(seconds=600, precision=0.05), clock=clock)
    assert len(found.samples["base"]) == LOOKS[0]
    assert found.settled
    assert found.ratio("other").half_width > 0.01


def test_what_is_too_noisy_for_the_cap_is_not_called_settled() -> None:
    clock, rng = Clock(), np.random.default_rng(0)
    engines = pair(clock, noisy(0.1, 0.5, rng), noisy(0.1, 0.5, rng))
    found = measure(engines, BATCHES, Protocol(seconds=40), clock=clock)
    assert not found.settled
    assert found.ratio("other").half_width > 0.01
    assert clock.now - 100 == pytest.approx(40 + 40 / 4, rel=0.2)


def test_a_median_that_is_not_known_is_not_settled_though_the_ratio_is() -> None:
    clock, rng = Clock(), np.random.default_rng(0)
    weather = [rng.lognormal(0, 0.5) for _ in range(1000)]
    both = lambda run: 0.1 * weather[run]  # noqa: E731
    found = measure(pair(clock, both, both), BATCHES, Protocol(warmup=0, seconds=40), clock=clock)
    assert found.ratio("other").half_width == pytest.approx(0)
    assert not found.settled


def test_a_ratio_that_is_not_known_is_not_settled_though_the_medians_are() -> None:
    """Of each engine's runs three in five are alike; of quadruples, which have four runs, one in eight."""
    clock, rng = Clock(), np.random.default_rng(0)
    mostly = lambda _: 0.1 if rng.random() < 0.6 else 0.1 * rng.lognormal(0, 0.3)  # noqa: E731
    found = measure(pair(clock, mostly, mostly), BATCHES, Protocol("few", rounds=100), clock=clock)
    assert all(found.interval(name).half_width <= 0.01 for name in found.samples)
    assert found.ratio("other").half_width > 0.01
    assert not found.settled


@pytest.mark.parametrize(("seconds", "rounds"), [(0.01, 12), (7.1, 12), (7.3, 14), (8.3, 14), (8.5, 16)])
def test_the_cap_ends_after_an_even_round_and_never_before_twelve(seconds: float, rounds: int) -> None:
    clock = Clock()
    engines, _ = three(clock)
    found = measure(engines, BATCHES, Protocol(warmup=0, seconds=seconds), clock=clock)
    assert [len(samples) for samples in found.samples.values()] == [rounds] * 3
    assert all(np.isfinite(found.interval(name).high) for name in engines)


def test_warm_up_rounds_are_not_among_the_samples_and_the_first_sample_is_of_the_first_engine() -> None:
    clock, log = Clock(), []
    engines = {
        name: TimedEngine(clock, lambda run: 5.0 if run < 3 else 0.01, log, name) for name in ("a", "b")
    }
    found = measure(engines, BATCHES, Protocol(warmup=3, seconds=1000), clock=clock)
    assert max(found.samples["a"] + found.samples["b"]) == pytest.approx(0.01)
    assert engines["a"].runs == 3 + len(found.samples["a"])
    assert [name for name, _ in log[6:10]] == ["a", "b", "b", "a"]


def test_warm_up_takes_a_quarter_of_the_time_at_most() -> None:
    clock = Clock()
    engine = TimedEngine(clock, lambda _: 1.0)
    found = measure({"x": engine}, BATCHES, Protocol(warmup=1000, seconds=20), clock=clock)
    assert engine.runs == 5 + 20
    assert len(found.samples["x"]) == 20


# The protocol of the paper


def paper_durations(run: int) -> float:
    """Warm-up runs are slow; of each ten, nine repeats have medians of 1 ms, the last has 11 ms."""
    repeat, position = divmod(run, 600)
    if position < 300:
        return 1.0
    return 0.011 if repeat % 10 == 9 else 0.001


def test_the_paper_is_300_and_300_rounds_ten_times_of_which_the_timed_ones_are_kept() -> None:
    clock = Clock()
    engines = pair(clock, paper_durations, lambda run: 2 * paper_durations(run))
    found = measure(engines, BATCHES, PAPER, clock=clock)
    assert [engine.runs for engine in engines.values()] == [(300 + 300) * 10] * 2
    assert [len(samples) for samples in found.samples.values()] == [300 * 10] * 2
    assert max(found.samples["base"]) < 0.1
    assert found.protocol == PAPER


def test_the_latency_of_the_paper_is_the_mean_of_ten_medians_not_the_median_of_all() -> None:
    clock = Clock()
    engines = pair(clock, paper_durations, lambda run: 2 * paper_durations(run))
    found = measure(engines, BATCHES, PAPER, clock=clock)
    assert found.latency("base") == pytest.approx((9 * 0.001 + 0.011) / 10)
    assert found.interval("base").low < found.latency("base") < found.interval("base").high
    assert found.latency("other") == pytest.approx(2 * found.latency("base"))
    assert found.ratio("other").value == pytest.approx(2)


def test_a_number_of_rounds_knows_no_cap_and_says_whether_it_was_enough() -> None:
    clock, rng = Clock(), np.random.default_rng(0)
    few = Protocol("few", warmup=2, rounds=20, seconds=0.001)
    still = measure(pair(clock, lambda _: 0.1, lambda _: 0.1), BATCHES, few, clock=clock)
    restless = measure(pair(clock, noisy(0.1, 0.5, rng), noisy(0.1, 0.5, rng)), BATCHES, few, clock=clock)
    assert [len(found.samples["base"]) for found in (still, restless)] == [20, 20]
    assert (still.settled, restless.settled) == (True, False)


# What the numbers withstand, and what they find


def test_a_host_that_slows_down_meanwhile_does_not_move_the_ratio() -> None:
    clock = Clock()

    def slowing(scale: float) -> Callable[[int], float]:
        return lambda _: scale * (1 + (clock.now - 100) / 10)

    found = measure(
        pair(clock, slowing(0.010), slowing(0.013)),
        BATCHES,
        Protocol(seconds=20, precision=1e-6),
        clock=clock,
    )
    assert max(found.samples["base"]) > 2 * min(found.samples["base"])
    assert found.ratio("other").value == pytest.approx(1.3, abs=1e-3)


@pytest.mark.parametrize("truth", [1.0, 1.2])
def test_an_advantage_of_the_second_place_cancels_exactly(truth: float) -> None:
    clock, log = Clock(), []

    def placed(seconds: float) -> Callable[[int], float]:
        return lambda _: seconds * (0.95 if len(log) % 2 == 0 else 1.0)  # the log already has this run

    engines = {
        "base": TimedEngine(clock, placed(0.010), log, "base"),
        "other": TimedEngine(clock, placed(0.010 * truth), log, "other"),
    }
    found = measure(engines, BATCHES, COLD, clock=clock)
    ratio = found.ratio("other")
    assert {round(sample, 6) for sample in found.samples["base"]} == {0.010, 0.0095}
    assert (ratio.low, ratio.value, ratio.high) == pytest.approx((truth,) * 3, rel=1e-9)


def test_of_three_engines_each_has_its_ratio_to_the_first() -> None:
    clock = Clock()
    engines, _ = three(clock)
    found = measure(engines, BATCHES, COLD, clock=clock)
    assert [found.ratio(name).value for name in "abc"] == pytest.approx([1, 2, 3])


@pytest.mark.parametrize("percent", [2, 5])
def test_a_busy_wait_inside_an_engine_is_found(percent: int) -> None:
    clock, rng = Clock(tick=2e-6), np.random.default_rng(percent)
    base = TimedEngine(clock, noisy(0.020, 0.02, rng))
    slower = BusyWait(base, clock, 0.020 * percent / 100)
    found = measure({"base": base, "slower": slower}, BATCHES, clock=clock)
    ratio = found.ratio("slower")
    assert found.settled
    assert 1 < ratio.low <= 1 + percent / 100 <= ratio.high


def test_an_engine_against_itself_is_one() -> None:
    clock, rng = Clock(), np.random.default_rng(1)
    engine = TimedEngine(clock, noisy(0.020, 0.02, rng))
    ratio = measure({"base": engine, "again": engine}, BATCHES, clock=clock).ratio("again")
    assert ratio.low <= 1 <= ratio.high
    assert ratio.value != 1


# Device, progress, collector


def test_seconds_of_a_device_are_kept_apart_from_those_of_the_host() -> None:
    clock = Clock()
    engines = {"gpu": OnDevice(clock, lambda run: 0.1 + run / 1000), "cpu": TimedEngine(clock, lambda _: 0.3)}
    assert [isinstance(engine, DeviceTimed) for engine in engines.values()] == [True, False]
    found = measure(engines, BATCHES, Protocol(warmup=1, seconds=2), clock=clock)
    assert list(found.device) == ["gpu"]
    assert found.device["gpu"] == pytest.approx([sample / 2 for sample in found.samples["gpu"]])
    assert found.samples["cpu"] == pytest.approx((0.3,) * len(found.device["gpu"]))


def test_without_a_device_no_device_seconds_are_made_up() -> None:
    clock = Clock()
    assert measure({"x": TimedEngine(clock, lambda _: 0.1)}, BATCHES, COLD, clock=clock).device == {}


@pytest.mark.parametrize(
    "protocol", [Protocol(warmup=0, seconds=1), Protocol("few", warmup=4, rounds=6, repeats=3)]
)
def test_progress_is_told_ten_times_a_second_at_most(protocol: Protocol) -> None:
    clock, told, moments = Clock(), [], []

    def progress(part: float) -> None:
        told.append(part)
        moments.append(clock.now)

    measure({"x": TimedEngine(clock, lambda _: 0.03)}, BATCHES, protocol, clock=clock, progress=progress)
    assert told == sorted(told)
    assert 5 <= len(told) <= 10
    assert 0 <= told[0] < 0.3
    assert 0.7 < told[-1] <= 1
    assert min(np.diff(moments)) >= 0.1


def test_the_collector_rests_while_samples_are_taken_and_runs_again_after_a_failure() -> None:
    clock, states = Clock(), []

    def duration(run: int) -> float:
        states.append(gc.isenabled())
        if run == 3:
            raise RuntimeError("the engine failed")
        return 0.1

    with pytest.raises(RuntimeError):
        measure({"x": TimedEngine(clock, duration)}, BATCHES, COLD, clock=clock)
    assert states == [False] * 4
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off() -> None:
    clock = Clock()
    gc.disable()
    try:
        measure({"x": TimedEngine(clock, lambda _: 0.1)}, BATCHES, COLD, clock=clock)
        assert not gc.isenabled()
    finally:
        gc.enable()


# What is refused


def test_measurements_that_would_say_nothing_are_refused() -> None:
    clock = Clock()
    engine = TimedEngine(clock, lambda _: 0.1)
    zeros = np.zeros((1, 3, 2, 2), np.float32)
    with pytest.raises(InputError, match="all zeros"):
        measure({"x": engine}, [*BATCHES, zeros], clock=clock)
    with pytest.raises(InputError, match="nothing to measure"):
        measure({"x": engine}, [], clock=clock)
    with pytest.raises(InputError, match="nothing to measure"):
        measure({}, BATCHES, clock=clock)
    assert engine.runs == 0


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan")])
def test_a_time_that_is_no_time_is_refused(seconds: float) -> None:
    with pytest.raises(InputError, match=f"the time to measure is {seconds} s"):
        Protocol(seconds=seconds)


@pytest.mark.parametrize("precision", [0.0, -0.01, float("nan")])
def test_a_precision_that_cannot_be_reached_is_refused(precision: float) -> None:
    with pytest.raises(InputError, match=f"precision {precision}"):
        Protocol(precision=precision)


def test_an_engine_that_takes_no_time_by_the_clock_is_refused() -> None:
    clock = Clock(tick=0.001)
    broken = Measurement(Protocol(), {"x": (0.0, 0.1)}, settled=False)
    with pytest.raises(InputError, match="positive and finite"):
        broken.latency("x")
    assert measure({"x": TimedEngine(clock, lambda _: 0.0)}, BATCHES, COLD, clock=clock).settled


# Inputs


def test_fresh_batches_are_random_reproducible_and_never_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subtune_deploy.measure.last_level_cache", lambda: 1 << 16)
    spec = InputSpec(shape=(3, 8, 8))
    batches = fresh_batches(spec, 2)
    assert {(batch.shape, batch.dtype) for batch in batches} == {((2, 3, 8, 8), np.dtype(np.float32))}
    assert all((batch != 0).mean() > 0.99 for batch in batches)
    assert len({batch.tobytes() for batch in batches}) == len(batches)
    assert all(map(np.array_equal, batches, fresh_batches(spec, 2)))
    assert not np.array_equal(batches[0], fresh_batches(spec, 2, seed=1)[0])
    assert np.std(batches) == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize(("cache", "count"), [(1 << 10, 8), (1 << 16, 85), (1 << 18, 256)])
def test_fresh_batches_outgrow_the_last_cache_within_8_to_256_buffers(
    monkeypatch: pytest.MonkeyPatch, cache: int, count: int
) -> None:
    monkeypatch.setattr("subtune_deploy.measure.last_level_cache", lambda: cache)
    batches = fresh_batches(InputSpec(shape=(3, 8, 8)), 2)
    assert len(batches) == count
    assert sum(batch.nbytes for batch in batches) > cache


def test_the_interval_of_an_engine_is_that_of_its_order_statistics() -> None:
    samples = tuple(0.02 + 0.001 * np.random.default_rng(0).random(99))
    found = Measurement(Protocol(), {"x": samples}, settled=True)
    assert found.interval("x") == order_statistic_interval(samples)
    assert found.interval("x").low < 0.0205 < found.interval("x").high
