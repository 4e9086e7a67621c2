"""Several loads: the logic, with engines whose duration the test sets; and a real engine that is loaded again."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_measure import BATCHES, Clock, OnDevice, TimedEngine
from tiny_bundle import TARGETS, make_bundle
from tiny_factories import network as tiny

from subtune_deploy import loads, timing
from subtune_deploy.build import build
from subtune_deploy.bundle import add_engine
from subtune_deploy.compiling import compile_bundle
from subtune_deploy.errors import InputError
from subtune_deploy.footprint import Footprint
from subtune_deploy.loads import measure_loads
from subtune_deploy.measure import ADAPTIVE, LOADS, PAPER, Measurement, Protocol, measure
from subtune_deploy.stats import paired_ratio, ratio_over_loads
from subtune_deploy.targets import load_target
from subtune_deploy.tasks import candidate_task
from subtune_deploy.timing import time_bundle

SIX = Protocol(warmup=0, seconds=6, loads=6)


@dataclass
class SelfReferring(TimedEngine):
    """Counting references alone would never let it go."""

    def __post_init__(self) -> None:
        self.itself = self


def loader(clock: Clock, ratios: Callable[[int], float], loaded: list[int]) -> Callable[[], dict]:
    """A base of 10 ms and an engine whose ratio to it is decided when it is loaded."""

    def load() -> dict[str, TimedEngine]:
        ratio = ratios(len(loaded))
        loaded.append(len(loaded))
        return {
            "base": TimedEngine(clock, lambda _: 0.01),
            "graph": TimedEngine(clock, lambda _: 0.01 * ratio),
        }

    return load


def test_what_loads_differ_by_is_in_the_interval() -> None:
    """Each load of these holds still, at another ratio: one alone would be sure of what is wrong."""
    clock, loaded = Clock(), list[int]()
    ratios = (1.2, 1.3, 1.1, 1.25, 1.15, 1.4)
    found = measure_loads(loader(clock, lambda n: ratios[n % 6], loaded), BATCHES, SIX, clock=clock)
    assert len(loaded) == len(found.loads) == 6
    assert sum(found.loads) == len(found.samples["base"]) == len(found.samples["graph"])
    ratio = found.ratio("graph")
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((1.225, 1.1, 1.4))
    assert not found.settled
    first = slice(found.loads[0])
    one = paired_ratio(found.samples["base"][first], found.samples["graph"][first])
    assert one.half_width == pytest.approx(0, abs=1e-9)


def test_loads_that_agree_end_it_at_once_and_others_go_on_while_there_is_time() -> None:
    clock, loaded, minute = Clock(), list[int](), Protocol(warmup=0, seconds=60, loads=6)
    found = measure_loads(loader(clock, lambda n: 1.2, loaded), BATCHES, minute, clock=clock)
    assert found.settled
    assert len(loaded) == LOADS
    assert clock.now - 100 < 30
    clock, loaded = Clock(), list[int]()
    straying = loader(clock, lambda n: 2.0 if n == 2 else 1.2, loaded)
    found = measure_loads(straying, BATCHES, minute, clock=clock)
    assert found.settled
    assert len(loaded) == 9, "of nine loads the interval leaves out one at each end"
    assert found.ratio("graph").high == pytest.approx(1.2)


def test_each_load_has_its_part_of_the_time_and_slow_engines_one_quadruple() -> None:
    clock, loaded = Clock(), list[int]()
    found = measure_loads(loader(clock, lambda n: 1 + n / 10, loaded), BATCHES, SIX, clock=clock)
    assert clock.now - 100 == pytest.approx(SIX.seconds, rel=0.05)
    assert min(found.loads) > 30
    quick = Protocol(warmup=0, seconds=0.006, loads=6)
    found = measure_loads(loader(clock, lambda n: 1 + n / 10, loaded), BATCHES, quick, clock=clock)
    assert found.loads == (2,) * 6


@pytest.mark.parametrize("spread", [0.004, 0.008, 0.015])
def test_stopping_where_loads_agree_still_holds_the_truth_as_often_as_it_says(
    spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loads differ by about as much as is asked for, so that luck decides when it stops."""
    rng, held, counts = np.random.default_rng(0), 0, set[int]()

    def one_quadruple(engines: dict[str, TimedEngine], **_: object) -> Measurement:
        samples = {name: (engine.duration(0),) * 2 for name, engine in engines.items()}
        clock.now += 1
        return Measurement(SIX, samples, settled=False)

    monkeypatch.setattr(loads, "measure", one_quadruple)
    for _ in range(1000):
        clock = Clock()
        load = loader(clock, lambda _: rng.lognormal(0, spread), [])
        found = measure_loads(load, BATCHES, Protocol(seconds=20, loads=6), clock=clock)
        held += found.ratio("graph").low <= 1 <= found.ratio("graph").high
        counts.add(len(found.loads))
    assert held >= 930
    assert min(counts) == 6
    assert counts <= {6, 9, 12, 15, 18, 21}
    assert len(counts) > 1


def test_what_loads_for_longer_than_there_is_time_is_loaded_once() -> None:
    clock, loaded = Clock(), list[int]()
    load = loader(clock, lambda n: 1.2, loaded)

    def slow() -> dict[str, TimedEngine]:
        clock.now += 60
        return load()

    found = measure_loads(slow, BATCHES, SIX, clock=clock)
    assert loaded == [0]
    assert found.loads == ()
    assert len(found.samples["base"]) >= 200
    assert found.protocol == SIX


def test_what_latency_is_known_by_is_of_loads_too() -> None:
    """Both engines take another time after each load, in proportion: the ratio is sure, the latencies are not."""
    clock, loaded = Clock(), list[int]()

    def load() -> dict[str, TimedEngine]:
        base = (0.010, 0.012, 0.011, 0.013, 0.014, 0.009)[len(loaded) % 6]
        loaded.append(0)
        return {
            "base": TimedEngine(clock, lambda _: base),
            "graph": TimedEngine(clock, lambda _: 1.5 * base),
        }

    found = measure_loads(load, BATCHES, SIX, clock=clock)
    assert found.ratio("graph").half_width == pytest.approx(0, abs=1e-9)
    base = found.interval("base")
    assert (base.value, base.low, base.high) == pytest.approx((0.0115, 0.009, 0.014))
    assert found.settled, "as what was asked for is how many times the base"


def test_with_one_load_it_is_measure() -> None:
    clock, loaded = Clock(), list[int]()
    once = Protocol(warmup=0, seconds=2)
    found = measure_loads(loader(clock, lambda n: 1.2, loaded), BATCHES, once, clock=clock)
    clock, again = Clock(), list[int]()
    assert found == measure(loader(clock, lambda n: 1.2, again)(), BATCHES, once, clock=clock)
    assert found.loads == ()
    assert loaded == [0]
    few = Protocol("few", rounds=4)
    assert measure_loads(loader(clock, lambda n: 1.2, loaded), BATCHES, few, clock=clock).loads == ()


def test_an_engine_is_let_go_before_the_next_one_is_loaded() -> None:
    clock, alive = Clock(), list[weakref.ref[TimedEngine]]()

    def load() -> dict[str, TimedEngine]:
        assert not any(each() for each in alive)
        engines = {name: SelfReferring(clock, lambda _: 0.01) for name in ("base", "graph")}
        alive.extend(map(weakref.ref, engines.values()))
        return dict(engines)

    measure_loads(load, BATCHES, SIX, clock=clock)
    assert len(alive) == 12


def test_progress_goes_from_nothing_to_all() -> None:
    clock, told = Clock(), list[float]()
    measure_loads(loader(clock, lambda n: 1 + n / 10, []), BATCHES, SIX, clock=clock, progress=told.append)
    assert told == sorted(told)
    assert told[0] < 0.1
    assert 0.9 < told[-1] <= 1


def test_seconds_of_a_device_are_joined_load_by_load() -> None:
    clock = Clock()

    def load() -> dict[str, TimedEngine]:
        return {"base": OnDevice(clock, lambda _: 0.01), "graph": OnDevice(clock, lambda _: 0.012)}

    found = measure_loads(load, BATCHES, SIX, clock=clock)
    assert len(found.device["graph"]) == sum(found.loads)
    ratio = found.device_ratio("graph")
    assert ratio is not None
    assert ratio.value == pytest.approx(1.2)


def test_of_six_loads_the_interval_is_from_the_least_to_the_greatest_and_of_one_as_before() -> None:
    rng = np.random.default_rng(0)
    base, other = rng.lognormal(0, 0.01, 60), 1.1 * rng.lognormal(0, 0.01, 60)
    parts = [paired_ratio(base[n : n + 10], other[n : n + 10]).value for n in range(0, 60, 10)]
    found = ratio_over_loads(base, other, [10] * 6)
    assert (found.value, found.low, found.high) == (np.median(parts), min(parts), max(parts))
    assert (
        ratio_over_loads(base, other, ()) == ratio_over_loads(base, other, [60]) == paired_ratio(base, other)
    )


@pytest.mark.parametrize(("loads", "rounds"), [(0, 0), (2, 0), (5, 0), (6, 10), (-1, 0)])
def test_so_few_loads_have_no_interval_and_rounds_that_are_counted_have_one(loads: int, rounds: int) -> None:
    with pytest.raises(InputError, match=f"{loads} loads of"):
        Protocol(rounds=rounds, loads=loads)
    assert PAPER.loads == 1


def test_engines_that_are_loaded_cannot_be_loaded_again() -> None:
    clock = Clock()
    with pytest.raises(InputError, match="engines are loaded already, not 6 times"):
        measure({"base": TimedEngine(clock, lambda _: 0.1)}, BATCHES, ADAPTIVE, clock=clock)


def test_an_engine_whose_profile_begins_above_one_picture_is_timed_with_its_fewest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = add_engine(make_bundle(tmp_path / "bundle"), TARGETS["onnxruntime"])
    recipe, load = replace(TARGETS["onnxruntime"], options={"profile": "2 4 8"}), timing.load_engine
    sizes = set[int]()

    def opened(*of: Any) -> Any:
        engine = load(*of)
        return SimpleNamespace(threads=1, run=lambda batch: (sizes.add(len(batch)), engine.run(batch))[1])

    monkeypatch.setattr(timing, "engine_target", lambda *of: recipe)
    monkeypatch.setattr(timing, "load_engine", opened)
    time_bundle(bundle, "cpu", Protocol(seconds=0.1), look=lambda *of: Footprint(1, None, None))
    assert sizes == {2}


def test_a_bundle_is_timed_over_several_loads_of_its_engines(tmp_path: Path) -> None:
    network = tiny()
    bundle = build(
        network, [candidate_task(network, "birds", (2,), seed=1)], tmp_path / "bundle", sources=False
    )
    bundle = compile_bundle(bundle, load_target("cpu"))
    result = time_bundle(bundle, "cpu", Protocol(seconds=5, loads=6))
    assert len(result.loads) >= 6
    assert not any("one load was measured" in each for each in result.warnings)
    assert sum(result.loads) == len(result.samples["base"])
    assert result.ratio == ratio_over_loads(result.samples["base"], result.samples["graph"], result.loads)
    assert time_bundle(bundle, "cpu", Protocol(seconds=0.3)).loads == ()
    hasty = time_bundle(bundle, "cpu", Protocol(seconds=1e-6, loads=6))
    assert hasty.loads == ()
    assert any("one load was measured" in each for each in hasty.warnings)
