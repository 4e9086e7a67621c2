"""Several callers at once: what is counted, with clocks of the test's own; and real engines, but not their speed."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from test_measure import BATCHES, Clock, TimedEngine
from tiny_cli import cli
from tiny_factories import network as tiny

from subtune_deploy import runtime, throughput
from subtune_deploy.build import BuildOptions, build
from subtune_deploy.bundle import Bundle, open_bundle
from subtune_deploy.compiling import compile_bundle
from subtune_deploy.documents import read_document
from subtune_deploy.errors import BundleError, CheckFailed, InputError
from subtune_deploy.runtime import load_engine, load_streams
from subtune_deploy.streams import Call, Crowd, Streamed, Window, bounds, counted, measure_streams
from subtune_deploy.targets import load_target
from subtune_deploy.tasks import candidate_task
from subtune_deploy.throughput import Throughputs, batch_limits, fitting_batches, time_streams

TARGETS = ("cpu", "openvino-cpu")
SECONDS = 60
"""That a thread is waited for which never comes if there is a defect."""
PAIR = [[batch] for batch in BATCHES[:2]]
"""Inputs of two streams."""


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """Of a tiny network with two tasks, for both CPU backends: any batch, and a batch of 2."""
    folder, network = tmp_path_factory.mktemp("throughput"), tiny()
    tasks = [candidate_task(network, name, (2,), seed=seed) for seed, name in enumerate(("one", "two"), 1)]
    made = {}
    for name, batch in (("dynamic", None), ("fixed", 2)):
        bundle = build(network, tasks, folder / name, BuildOptions(batch=batch))
        for target in TARGETS if batch is None else TARGETS[:1]:
            bundle = compile_bundle(bundle, load_target(target))
        made[name] = bundle
    return made


# What is counted


def within(streams: Sequence[Sequence[Call]], until: float) -> Window:
    return counted(streams, *bounds(streams, until))


def test_a_window_ends_with_the_first_call_past_its_time() -> None:
    """Which must have begun in it: the first call of the second stream, which ends late enough, has not."""
    streams = [[(0.0, 2.0), (2.0, 4.0), (4.0, 6.0), (6.0, 8.0)], [(0.0, 3.0), (3.0, 6.5), (6.5, 9.0)]]
    assert bounds(streams, until=2.5) == (3.0, 6.0)
    assert bounds(streams, until=6.25) == (3.0, 6.5)


def test_of_one_stream_all_but_the_first_call_counts() -> None:
    assert within([[(0.0, 3.0), (3.0, 4.0), (4.0, 5.0)]], until=5.0) == Window(2, 2.0, 1.0)


def test_calls_that_are_cut_count_by_the_part_inside() -> None:
    """From 2 to 6: of the first stream 2 whole calls; of the second a half, one whole, and three quarters of one."""
    streams = [[(0.0, 2.0), (2.0, 4.0), (4.0, 6.0)], [(0.0, 1.0), (1.0, 3.0), (3.0, 4.5), (4.5, 6.5)]]
    found = within(streams, until=6.0)
    assert (found.calls, found.seconds, found.busy) == (2 + 0.5 + 1 + 0.75, 4.0, 1.0)


def test_time_between_calls_is_told() -> None:
    found = within([[(0.0, 1.0), (1.5, 2.5), (3.0, 4.0)]], until=4.0)
    assert (found.calls, found.seconds, found.busy) == (2, 3.0, pytest.approx(2 / 3))


def test_calls_are_counted_alike_wherever_the_streams_begin() -> None:
    """Two streams of calls of 1 s answer two in a second, in phase or not, however the window cuts them."""
    for shift in (0.0, 0.3, 0.7):
        streams = [[(n + late, n + 1 + late) for n in range(6)] for late in (0.0, shift)]
        found = within(streams, until=5.0)
        assert found.calls / found.seconds == pytest.approx(2)


def timed(clock: Clock, **seconds: float | Callable[[int], float]) -> Crowd:
    """One stream of engines that take so long."""
    spans = {name: each if callable(each) else (lambda _, each=each: each) for name, each in seconds.items()}
    return {name: [TimedEngine(clock, span)] for name, span in spans.items()}


def test_pictures_per_second_and_their_ratio_are_those_of_the_engines() -> None:
    clock, batches = Clock(), [np.ones((4, 3, 2, 2), np.float32)]
    found = measure_streams(lambda: timed(clock, base=0.01, graph=0.013), [batches], 6, clock=clock)
    assert found.rate("base").value == pytest.approx(400)
    assert found.rate("graph").value == pytest.approx(4 / 0.013)
    assert found.ratio("graph").value == pytest.approx(1.3)
    assert set(np.round(found.calls["graph"], 9)) == {0.013}
    assert found.between == pytest.approx(0)
    assert len(found.loads) == 6
    assert sum(found.loads) == len(found.rates["base"]) == len(found.rates["graph"])


def test_the_first_call_of_a_window_does_not_count() -> None:
    """It finds the caches full of the other engine."""
    clock = Clock()

    @dataclass
    class Cold(TimedEngine):
        last: float = 0.0

        def run(self, batch: np.ndarray) -> dict[str, np.ndarray]:
            cold = self.clock.now != self.last
            self.clock.now += 0.05 if cold else 0.01
            self.last = self.clock.now
            return {"base": batch}

    crowd = {name: [Cold(clock, lambda _: 0)] for name in ("base", "graph")}
    found = measure_streams(lambda: crowd, [BATCHES], 6, clock=clock)
    assert set(np.round(found.rates["base"], 6)) == {100}
    assert max(found.calls["base"]) == pytest.approx(0.01)


def test_what_loads_differ_by_is_in_the_interval() -> None:
    clock, ratios = Clock(), iter((1.2, 1.3, 1.1, 1.25, 1.15, 1.4))
    found = measure_streams(
        lambda: timed(clock, base=0.01, graph=0.01 * next(ratios)), [BATCHES], 6, clock=clock
    )
    ratio = found.ratio("graph")
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((1.225, 1.1, 1.4))
    rate = found.rate("graph")
    assert (rate.low, rate.high) == pytest.approx((100 / 1.4, 100 / 1.1))


def test_slow_engines_have_two_rounds_of_each_load_and_slow_loads_are_one() -> None:
    clock = Clock()
    found = measure_streams(lambda: timed(clock, base=5, graph=7), [BATCHES], 1, clock=clock)
    assert found.loads == (2,) * 6

    def load() -> Crowd:
        clock.now += 100
        return timed(clock, base=0.5, graph=0.7)

    found = measure_streams(load, [BATCHES], 1, clock=clock)
    assert found.loads == (12,)
    assert found.rate("base").high < np.inf


def test_engines_take_turns_there_and_back() -> None:
    clock, log = Clock(), list[tuple[str, float]]()
    crowd = {name: [TimedEngine(clock, lambda _: 5, log, name)] for name in ("base", "graph")}
    measure_streams(lambda: crowd, [BATCHES], 1, clock=clock)
    names = [name for name, _ in log[::2]]  # each window is two calls
    warm, rounds = ["base", "graph"], ["base", "graph", "graph", "base"]
    assert names == [*warm, *rounds] * 6


# That callers are there at once


@dataclass
class Meeting:
    """Answers nobody before three callers were inside at once; `seen`: what it was given."""

    inside: list[int]
    met: threading.Event
    seen: list[int] = field(default_factory=list)
    outputs: tuple[str, ...] = ("base",)
    shape: tuple[int | None, ...] = (1, 3, 2, 2)
    threads: int = 1

    def run(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        self.seen.append(id(batch))
        self.inside.append(1)
        if len(self.inside) == 3:
            self.met.set()
        assert self.met.wait(timeout=SECONDS)
        self.inside.pop()
        return {"base": batch}


def test_callers_are_inside_at_once_each_with_its_own_inputs() -> None:
    inside, met = list[int](), threading.Event()
    engines = [Meeting(inside, met) for _ in range(3)]
    batches = [[np.full((1, 3, 2, 2), 10 * n + k + 1, np.float32) for k in range(2)] for n in range(3)]
    found = measure_streams(lambda: {"base": engines}, batches, 0.05, loads=1)
    assert found.rate("base").value > 0
    for engine, own in zip(engines, batches, strict=True):
        assert set(engine.seen) == {id(each) for each in own}


@dataclass
class Waiting:
    """Its second call waits until another engine has answered a hundred."""

    other: Failing
    outputs: tuple[str, ...] = ("base",)
    shape: tuple[int | None, ...] = (1, 3, 2, 2)
    threads: int = 1
    runs: int = 0

    def run(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        self.runs += 1
        deadline = time.monotonic() + SECONDS
        while self.runs == 2 and self.other.runs < 100:
            assert time.monotonic() < deadline, "the other stream has stopped"
        return {"base": batch}


def test_streams_go_on_until_all_have_ended_a_call() -> None:
    """Else the last one would run alone, and faster than it ran before."""
    quick = Failing(10**9)
    found = measure_streams(lambda: {"base": [quick, Waiting(quick)]}, PAIR, 1e-9, loads=1)
    assert found.rate("base").value > 0


@dataclass
class Failing:
    """Answers, and from its nth call on does not."""

    good: int
    outputs: tuple[str, ...] = ("base",)
    shape: tuple[int | None, ...] = (1, 3, 2, 2)
    threads: int = 1
    runs: int = 0

    def run(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        self.runs += 1
        if self.runs > self.good:
            raise RuntimeError("Failed to allocate memory")
        return {"base": batch}


@pytest.mark.parametrize("good", [0, 1, 50])
def test_one_stream_that_fails_ends_all_and_leaves_no_thread(good: int) -> None:
    """The other one would go on for an hour, or until it has answered ten million times."""
    before, other = threading.active_count(), Failing(10**7)
    with pytest.raises(RuntimeError, match="allocate"):
        measure_streams(lambda: {"base": [other, Failing(good)]}, PAIR, 10**6)
    assert other.runs <= other.good
    assert threading.active_count() == before


# Real engines


@pytest.mark.parametrize("target", TARGETS)
def test_two_callers_get_the_answers_of_one(bundles: dict[str, Bundle], target: str) -> None:
    bundle, rng = bundles["dynamic"], np.random.default_rng(0)
    batches = [rng.standard_normal((3, *bundle.manifest.input.shape), dtype=np.float32) for _ in range(20)]
    alone = load_engine(bundle, target)
    expected = [alone.run(batch) for batch in batches]
    engines, answers, start = load_streams(bundle, target, "graph", 2), [[], []], threading.Barrier(2)

    def ask(number: int) -> None:
        start.wait(timeout=SECONDS)
        for batch in batches if number else reversed(batches):
            answers[number].append(engines[number].run(batch))

    callers = [threading.Thread(target=ask, args=(number,)) for number in range(2)]
    for each in callers:
        each.start()
    for each in callers:
        each.join(timeout=SECONDS)
    for got in (answers[0][::-1], answers[1]):
        assert len(got) == len(expected)
        for mine, theirs in zip(got, expected, strict=True):
            assert list(mine) == list(theirs) == ["base", "one", "two"]
            for name in mine:
                np.testing.assert_allclose(mine[name], theirs[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("cores", "recipe", "streams", "threads"), [(8, 0, 2, 4), (8, 2, 2, 2), (8, 4, 4, 2), (2, 0, 3, 1)]
)
def test_streams_share_out_the_cores_and_the_weights(
    bundles: dict[str, Bundle],
    monkeypatch: pytest.MonkeyPatch,
    cores: int,
    recipe: int,
    streams: int,
    threads: int,
) -> None:
    bundle, recipes = bundles["dynamic"], {name: load_target(name) for name in TARGETS}
    monkeypatch.setattr(runtime, "usable_cores", lambda: cores)
    monkeypatch.setattr(runtime, "engine_target", lambda _, name: replace(recipes[name], threads=recipe))
    session, *others = load_streams(bundle, "cpu", "graph", streams)
    assert [each.session for each in others] == [session.session] * (streams - 1)
    assert session.threads == threads
    options = session.session.get_session_options()
    assert options.intra_op_num_threads == streams * (threads - 1) + 1
    compiled = [each.request for each in load_streams(bundle, "openvino-cpu", "graph", streams)]
    assert len({id(request) for request in compiled}) == streams
    assert int(compiled[0].get_compiled_model().get_property("NUM_STREAMS")) <= streams


def test_one_stream_is_the_engine_that_bench_times(
    bundles: dict[str, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "load_engine", lambda *given: given)
    assert load_streams(bundles["fixed"], "cpu", "base", 1) == ((bundles["fixed"], "cpu", "base"),)


def test_a_backend_that_shares_nothing_is_loaded_for_each(tmp_path: Path) -> None:
    network = tiny()
    bundle = build(network, [candidate_task(network, "one", (2,), seed=1)], tmp_path / "b")
    bundle = compile_bundle(bundle, load_target("torch-cpu"))
    one, two = load_streams(bundle, "torch-cpu", "graph", 2)
    assert one.module is not two.module
    found = time_streams(bundle, "torch-cpu", 1, 2, seconds=0.1)
    assert min(found.windows["graph"]) > 0


@pytest.mark.parametrize("target", TARGETS)
def test_a_result_says_what_was_measured(bundles: dict[str, Bundle], target: str) -> None:
    told = list[float]()
    found = time_streams(bundles["dynamic"], target, 3, 2, seconds=0.3, progress=told.append)
    assert (found.batch, found.streams, found.target) == (3, 2, target)
    assert set(found.forks) == {"one", "two"}
    assert found.threads >= 1
    assert len(found.windows["base"]) == len(found.windows["graph"]) == sum(found.loads) >= 12
    for served, role in ((found.base, "base"), (found.graph, "graph")):
        assert (
            min(found.windows[role]) <= served.low <= served.rate <= served.high <= max(found.windows[role])
        )
        assert 0 < served.p50 <= served.p95 <= served.p99
    assert 0 <= found.between < 1
    assert found.host["cores"]
    assert "seconds" in found.conditions
    assert told[-1] == 1.0


@pytest.mark.parametrize("error", [RuntimeError("it broke"), MemoryError("Unable to allocate 9 TiB")])
def test_a_failing_engine_is_one_line_that_names_the_load(
    bundles: dict[str, Bundle], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> Streamed:
        raise error

    monkeypatch.setattr(throughput, "measure_streams", fail)
    with pytest.raises(CheckFailed, match=rf"{error} \(batch 4, streams 2\)") as caught:
        time_streams(bundles["dynamic"], "cpu", 4, 2)
    assert "smaller --batch" in caught.value.hint


def test_which_batches_an_engine_takes(bundles: dict[str, Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    assert batch_limits(bundles["fixed"], "cpu") == (2, 2)
    assert batch_limits(bundles["dynamic"], "cpu") == (1, None)
    assert fitting_batches(bundles["dynamic"], "cpu") == (1, 4, 16, 64)
    assert fitting_batches(bundles["dynamic"], "cpu", (7, 3)) == (7, 3)
    assert fitting_batches(bundles["fixed"], "cpu") == (2,)
    with pytest.raises(InputError, match="takes batches of 2, not 8"):
        fitting_batches(bundles["fixed"], "cpu", (2, 8))

    class Profiled:
        batches = (2, 16)

    monkeypatch.setattr(throughput, "load_engine", lambda *_: Profiled())
    assert fitting_batches(bundles["dynamic"], "cpu") == (4, 16)
    with pytest.raises(InputError, match="takes 2 to 16 pictures at once, not 1"):
        fitting_batches(bundles["dynamic"], "cpu", (1, 2))


# The command


def test_the_command_measures_both_targets_and_leaves_a_document(
    bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    out = tmp_path / "t.json"
    ran = cli(
        "throughput",
        bundles["dynamic"].path,
        "--batch",
        "1,3",
        "--streams",
        "1,2",
        "--seconds",
        0.1,
        "-o",
        out,
    )
    assert ran.status == 0, ran.err
    found = read_document(Throughputs, out).results
    points = [(each.target, each.batch, each.streams) for each in found]
    assert points == [(t, batch, streams) for t in TARGETS for streams in (1, 2) for batch in (1, 3)]
    for each in found:
        assert ran.row(each.target, str(each.batch), str(each.streams))
    best = max((each for each in found if each.target == "cpu"), key=lambda each: each.graph.rate)
    assert f"with batch {best.batch}, streams {best.streams}" in ran.out
    assert f"throughput: {out}" in ran.out


def test_json_is_the_document(bundles: dict[str, Bundle], tmp_path: Path) -> None:
    given = ("--target", "cpu", "--streams", 1, "--seconds", 0.1, "-o", tmp_path / "t.json", "--json")
    document = cli("throughput", bundles["fixed"].path, *given).document
    (result,) = document["results"]
    assert (document["kind"], result["batch"]) == ("throughput", 2)
    assert read_document(Throughputs, tmp_path / "t.json").results[0].graph.rate == result["graph"]["rate"]


def test_what_was_done_before_an_engine_failed_is_kept(
    bundles: dict[str, Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = throughput.measure_streams

    def measure(load: Callable[[], Crowd], batches, seconds: float, **how: object) -> Streamed:
        if len(batches[0][0]) == 3:
            raise MemoryError("Unable to allocate 9 TiB")
        return real(load, batches, seconds, **how)

    monkeypatch.setattr(throughput, "measure_streams", measure)
    given = ("--target", "cpu", "--batch", "1,3,4", "--streams", "1", "--seconds", 0.1)
    ran = cli("throughput", bundles["dynamic"].path, *given, "-o", tmp_path / "t.json")
    assert ran.status == 1
    errors = [line for line in ran.err.splitlines() if not line.startswith("warning: ")]
    assert len(errors) == 2
    assert "Unable to allocate 9 TiB (batch 3, streams 1)" in errors[0]
    assert [each.batch for each in read_document(Throughputs, tmp_path / "t.json").results] == [1]
    assert ran.row("cpu", "1", "1")


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_what_cannot_be_written_is_told_all_the_same(
    bundles: dict[str, Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: tuple[str, ...]
) -> None:
    def full(*_: object) -> None:
        raise BundleError("t.json cannot be written: No space left on device", "free some space")

    monkeypatch.setattr("subtune_deploy.documents.write_document", full)
    given = ("--target", "cpu", "--batch", "1", "--streams", "1", "--seconds", 0.1, *form)
    ran = cli("throughput", bundles["dynamic"].path, *given, "-o", tmp_path / "t.json")
    assert ran.status == 2
    assert "No space left" in ran.err
    assert json.loads(ran.out)["results"][0]["batch"] == 1 if form else ran.row("cpu", "1", "1")


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_no_time_is_refused(seconds: float) -> None:
    with pytest.raises(InputError, match="the time to measure is"):
        measure_streams(dict, [[np.zeros((1, 1), np.float32)]], seconds)


@pytest.mark.parametrize(
    ("given", "says", "hint"),
    [
        (("--batch", "8"), "takes batches of 2, not 8", "--batch dynamic"),
        (("-o", "no/such/place.json"), "place.json lies in no existing folder", "another place"),
        (("--streams", ""), "streams '' is no list of counts", "--streams 1,2,4,8"),
        (("--batch", "none"), "batch 'none' is no list of counts", "--batch 1,2,4,8"),
        (("--streams", "0"), "streams '0' is no list of counts", "--streams 1,2,4,8"),
        (("--seconds", "0"), "0.0 is not in the range", "throughput --help"),
        (("--seconds", "nan"), "'nan' is not a finite number", "throughput --help"),
        (("--seconds", "inf"), "'inf' is not a finite number", "throughput --help"),
        (("--target", "openvino-cpu"), "has no engine for target 'openvino-cpu'", "compile"),
    ],
)
def test_bad_input_is_one_line(
    bundles: dict[str, Bundle], tmp_path: Path, given: tuple[str, ...], says: str, hint: str
) -> None:
    ran = cli("throughput", bundles["fixed"].path, "-o", tmp_path / "t.json", *given)
    error, told = ran.err.splitlines()
    assert (ran.status, ran.out) == (2, "")
    assert says in error
    assert hint in told
    assert not (tmp_path / "t.json").exists()
    assert open_bundle(bundles["fixed"].path).manifest.batch == 2
