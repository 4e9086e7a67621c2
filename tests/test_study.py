"""Studies: every trial once, with the same outcome wherever it runs and whatever interrupts it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_jobs
from PIL import Image
from test_chunks import activation_bytes, alone, traced, weight_bytes
from tiny_studies import FORKS, QUICK, TRIALS, pictures, study

import subtune_deploy.tuning.study
from subtune_deploy.data.dataset import Data, Dataset
from subtune_deploy.errors import CheckFailed, InputError, LayersError, WorkerDied
from subtune_deploy.executors import Here, open_executor
from subtune_deploy.executors.cluster import Cluster
from subtune_deploy.executors.processes import Processes
from subtune_deploy.executors.remote import outcome
from subtune_deploy.spec import Pruning
from subtune_deploy.tuning.settings import Fork, TrainConfig
from subtune_deploy.tuning.study import (
    Sent,
    Step,
    Study,
    _chunks,
    check_trained,
    datasets,
    run_trials,
    settings_of,
)
from subtune_deploy.tuning.trials import Trial, TrialResult, append_trials, read_trials

LONG = replace(QUICK, epochs=60)
"""Long enough to be killed in its midst."""


def told(results: tuple[TrialResult, ...]) -> list[tuple[object, ...]]:
    """What must be the same from run to run: all but where it ran, and how long."""
    return [(r.trial, r.accuracy, r.train_accuracy, r.tested, r.trained, r.parameters) for r in results]


def lines(run: Path) -> list[Trial]:
    return [result.trial for result in read_trials(run)]


def test_each_trial_is_a_line_in_the_order_of_its_job(tmp_path: Path) -> None:
    steps: list[Step] = []
    found = run_trials(study(), TRIALS, tmp_path / "run", Here(), told=steps.append)
    assert tuple(result.trial for result in found) == TRIALS
    assert tuple(lines(tmp_path / "run")) == TRIALS
    assert [(step.done, step.total) for step in steps] == [(0, 8), (4, 8), (8, 8)]
    assert [len(step.results) for step in steps] == [0, 4, 4]
    assert steps[-1].seconds_left == 0
    for result in found:
        assert (result.tested, result.trained) == (12, 24)
        assert 0 <= result.accuracy <= 1
        assert result.seconds > 0
        assert result.host
    sizes = {str(result.trial.fork): result.parameters for result in found}
    assert sizes["none"] < sizes["2"] < sizes["3-4"] < sizes["all"]
    assert not list((tmp_path / "run" / "cache").glob("*.pt"))


def test_a_trial_depends_on_nothing_but_itself() -> None:
    together = run_trials(study(), TRIALS, None, Here())
    apart = [run_trials(study(), [trial], None, Here())[0] for trial in reversed(TRIALS)]
    assert told(tuple(reversed(apart))) == told(together)
    assert len({result.accuracy for result in together} | {r.train_accuracy for r in together}) > 2


def test_nothing_is_trained_twice_and_a_run_can_grow(tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = run_trials(study(), TRIALS[:3], run, Here())
    once = (run / "trials.jsonl").read_bytes()
    assert run_trials(study(), TRIALS[:3], run, Here()) == first
    assert (run / "trials.jsonl").read_bytes() == once
    grown = run_trials(study(), [TRIALS[6], TRIALS[0], TRIALS[0]], run, Here())
    assert [result.trial for result in grown] == [TRIALS[6], TRIALS[0], TRIALS[0]]
    assert (run / "trials.jsonl").read_bytes().startswith(once)
    assert len(lines(run)) == 4


def test_pictures_are_drawn_by_the_seed_and_folds_hold_each_of_them_out_once() -> None:
    shared = study(folds=4)
    some = [datasets(shared, Trial(FORKS[0], seed=1, examples=12, fold=fold)) for fold in range(4)]
    drawn, test = datasets(shared, Trial(FORKS[0], seed=1, examples=12))
    assert test is shared.data.test
    assert [len(train) + len(held_out) for train, held_out in some] == [12] * 4
    assert sorted(places(shared, *(held_out for _, held_out in some))) == sorted(places(shared, drawn))
    other, _ = datasets(shared, Trial(FORKS[0], seed=2, examples=12))
    assert sorted(places(shared, other)) != sorted(places(shared, drawn))


def places(shared: Study, *some: Dataset) -> list[int]:
    """Where pictures lie in the training set."""
    known = {picture.tobytes(): n for n, picture in enumerate(shared.data.train.pictures)}  # type: ignore[union-attr]
    return [known[picture.tobytes()] for each in some for picture in each.pictures]  # type: ignore[union-attr]


@pytest.mark.parametrize("text", ["processes:2", "ray"])
def test_the_outcome_is_the_same_wherever_it_runs_though_a_worker_is_killed(
    text: str, tmp_path: Path, two_cpus: None
) -> None:
    """The keep file of a job shows that it is in its midst; the job goes on where it was."""
    trials = TRIALS[:4]
    expected = run_trials(study(LONG), trials, None, Here(threads=1))
    with open_executor(text) as executor, killed_once(tmp_path / "run", text) as victims:
        assert executor.workers == 2
        found = run_trials(study(LONG), trials, tmp_path / "run", executor)
    assert victims, "no worker was killed in its midst"
    assert told(found) == told(expected)
    assert sorted(map(str, lines(tmp_path / "run"))) == sorted(map(str, trials))


def test_with_as_many_threads_the_outcome_is_the_same_wherever_it_runs() -> None:
    """On a network that is large enough that their number shows, to whatever PyTorch is set here."""
    network, config = traced("resnet18", 64), TrainConfig(epochs=1, batch_size=8, lr=1e-2)
    sent = Sent(replace(study(config), backbone=network))

    def losses(text: str, cpus: float) -> object:
        with open_executor(text, cpus=cpus) as executor:
            ((_, found),) = executor.run(tiny_jobs.losses, sent, [Fork((2,))])
        return found

    assert losses("here", 2) == losses("processes:1", 2)
    assert losses("here", 2) != losses("here", 1)


@pytest.fixture
def two_cpus(text: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Ray of this machine with two workers, if it is to be Ray."""
    if text != "ray":
        yield
        return
    ray = pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    ray.init("local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield
    ray.shutdown()


@contextmanager
def killed_once(run: Path, text: str) -> Iterator[list[int]]:
    """As soon as a training has been kept, one of the processes that train is killed."""
    workers = ray_workers if text == "ray" else own_children
    victims: list[int] = []
    done = threading.Event()

    def kill() -> None:
        while not done.is_set() and not list((run / "cache").glob("*.pt")):
            time.sleep(0.005)
        for worker in workers()[:1]:
            os.kill(worker, signal.SIGKILL)
            victims.append(worker)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield victims
    finally:
        done.set()
        thread.join()


def own_children() -> list[int]:
    return [process.pid for process in multiprocessing.active_children() if process.pid]


def ray_workers() -> list[int]:
    """Ray gives its workers the name of what they run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(b"ray::answer"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def test_a_run_that_is_killed_goes_on_after_its_last_epoch(tmp_path: Path) -> None:
    run, trials = tmp_path / "run", TRIALS[:2]
    process = multiprocessing.get_context("spawn").Process(target=long_run, args=(run,))
    process.start()
    while not list((run / "cache").glob("*.pt")) and process.is_alive():
        time.sleep(0.005)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (run / "trials.jsonl").exists()
    epochs: list[float] = []

    def progress(what: str, done: float, total: float) -> None:
        if what == "epochs":
            epochs.append(done)

    found = run_trials(study(LONG), trials, run, Here(), progress=progress)
    assert 1 < epochs[0] <= epochs[-1] == LONG.epochs
    assert told(found) == told(run_trials(study(LONG), trials, None, Here()))
    assert tuple(lines(run)) == trials


def long_run(run: Path) -> None:
    run_trials(study(LONG), TRIALS[:2], run, Here())


class Interrupted(Exception):  # noqa: N818 - not an error
    """Stands for whatever ends a process."""


@pytest.mark.parametrize("written", [False, True])
def test_a_training_is_forgotten_once_its_outcome_is_on_the_disk(
    written: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is interrupted right before its outcome is written, or right after; of two epochs the second is not kept."""
    trials, cache, epochs = TRIALS[:2], tmp_path / "cache", list[float]()
    interrupt_writing(trials, tmp_path, monkeypatch, written=written)
    assert len(list(cache.glob("*.pt"))) == 1
    found = run_trials(study(), trials, tmp_path, Here(), progress=counting(epochs))
    assert epochs == ([] if written else [2])
    assert told(found) == told(run_trials(study(), trials, None, Here()))
    assert not list(cache.glob("*.pt"))


def test_a_training_that_was_kept_and_cannot_be_read_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials, epochs, said = TRIALS[:2], list[float](), list[str]()
    interrupt_writing(trials, tmp_path, monkeypatch, written=False)
    (kept,) = (tmp_path / "cache").glob("*.pt")
    kept.write_bytes(kept.read_bytes()[:100])
    found = run_trials(study(), trials, tmp_path, Here(), progress=counting(epochs), say=said.append)
    assert epochs == [1, 2]
    assert f"{kept} could not be read: its 2 trainings begin anew" in said
    assert told(found) == told(run_trials(study(), trials, None, Here()))
    assert not kept.exists()


def interrupt_writing(
    trials: Sequence[Trial], run: Path, monkeypatch: pytest.MonkeyPatch, *, written: bool
) -> None:
    """Of outcomes, the first: right before it is `written`, or right after."""

    def append(path: Path, results: Sequence[TrialResult]) -> None:
        if written:
            append_trials(path, results)
        if results:
            raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(subtune_deploy.tuning.study, "append_trials", append)
        with pytest.raises(Interrupted):
            run_trials(study(), trials, run, Here())


def counting(epochs: list[float]) -> Callable[[str, float, float], None]:
    """Notes which epochs end."""

    def progress(what: str, done: float, total: float) -> None:
        if what == "epochs":
            epochs.append(done)

    return progress


def test_a_begun_job_that_fits_into_memory_no_more_goes_on_fork_by_fork(tmp_path: Path) -> None:
    trials, epochs, said = TRIALS[1:3], list[float](), list[str]()

    def stop(what: str, done: float, total: float) -> None:
        if (what, done) == ("epochs", 3):
            raise Interrupted

    def progress(what: str, done: float, total: float) -> None:
        if what == "epochs":
            epochs.append(done)

    config = replace(QUICK, epochs=4)
    with pytest.raises(Interrupted):
        run_trials(study(config), trials, tmp_path, Here(), progress=stop)
    less = replace(config, memory_bytes=max(alone(study().backbone, trial.fork) for trial in trials))
    found = run_trials(study(less), trials, tmp_path, Here(), progress=progress, say=said.append)
    assert epochs == [4, 4]
    assert said == ["2 forks do not fit into memory together any more: they go on in 2 groups"]
    assert told(found) == told(run_trials(study(config), trials, None, Here()))


class Cramped:
    """As if no worker lived through a job of more than `most` trials. `sizes`: of jobs that it was given."""

    workers, memory, gpu = 1, 1 << 30, 1.0

    def __init__(self, most: int) -> None:
        self.most, self.sizes = most, list[int]()

    def run(self, function, shared, jobs):
        for index, job in enumerate(jobs):
            self.sizes.append(len(job.trials))
            died = WorkerDied("its worker died 4 times, at last killed", "free memory")
            yield index, died if len(job.trials) > self.most else outcome(function, shared, job)


def test_what_no_worker_lives_through_is_tried_again_in_smaller_jobs(tmp_path: Path) -> None:
    trials, executor, said = TRIALS[:4], Cramped(1), list[str]()
    steps: list[Step] = []
    found = run_trials(study(), trials, tmp_path, executor, say=said.append, told=steps.append)
    assert executor.sizes == [4, 2, 2, 1, 1, 1, 1]
    assert told(found) == told(run_trials(study(), trials, None, Here()))
    assert [(step.done, step.total) for step in steps] == [(done, 4) for done in range(5)]
    assert said[:2] == [
        "4 forks were trained together: its worker died 4 times, at last killed",
        "from here on at most 2 of these train together",
    ]
    died = run_trials(study(), trials, None, Cramped(0))
    assert {result.failure for result in died} == {"its worker died 4 times, at last killed"}


def test_failures_are_told_kept_out_and_tried_again(tmp_path: Path) -> None:
    Image.new("RGB", (12, 12)).save(tmp_path / "last.png")
    good, run = study(), tmp_path / "run"
    train = good.data.train
    files = Dataset((*train.pictures[:-1], tmp_path / "last.png"), train.labels, train.classes)
    shared = replace(good, data=Data(files, good.data.test))
    first = run_trials(shared, TRIALS[:2], run, Here())
    times = os.stat(tmp_path / "last.png")
    (tmp_path / "last.png").rename(tmp_path / "gone.png")
    (tmp_path / "last.png").write_bytes(b"\0" * times.st_size)
    os.utime(tmp_path / "last.png", ns=(times.st_atime_ns, times.st_mtime_ns))
    found = run_trials(shared, [*TRIALS[:2], *TRIALS[4:6]], run, Here())
    assert found[:2] == first
    with pytest.raises(CheckFailed, match=r"2 of 4 trials failed: none seed 1 \(.*last\.png") as caught:
        check_trained(found)
    assert "run again" in caught.value.hint
    assert [bool(result.failure) for result in read_trials(run)] == [False, False, True, True]
    (tmp_path / "gone.png").rename(tmp_path / "last.png")
    again = run_trials(shared, [*TRIALS[:2], *TRIALS[4:6]], run, Here())
    assert again[:2] == first
    assert not any(result.failure for result in again)


def test_a_fork_that_diverges_fails_alone(tmp_path: Path) -> None:
    wild = study(replace(QUICK, lr=1e30, probe_lr=1e-2))
    found = run_trials(wild, TRIALS[:2], tmp_path / "run", Here())
    with pytest.raises(CheckFailed, match=r"1 of 2 trials failed: 2 seed 0 \(.*diverged"):
        check_trained(found)
    assert [bool(result.failure) for result in read_trials(tmp_path / "run")] == [False, True]


CHANGES: dict[str, Callable[[Study], Study]] = {
    "epochs was 2, is 3": lambda s: replace(s, config=replace(s.config, epochs=3)),
    "folds was 0, is 4": lambda s: replace(s, folds=4),
    "weights was": lambda s: study(seed=1),
    "training pictures was": lambda s: replace(s, data=s.data._replace(train=pictures(24, 3))),
    "test pictures was": lambda s: replace(s, data=s.data._replace(test=pictures(12, 3))),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_folder_of_another_study_is_refused(what: str, tmp_path: Path) -> None:
    run_trials(study(), TRIALS[:1], tmp_path, Here())
    with pytest.raises(InputError, match=what):
        run_trials(CHANGES[what](study()), TRIALS[:1], tmp_path, Here())
    assert len(lines(tmp_path)) == 1


def test_what_does_not_change_outcomes_may_change(tmp_path: Path) -> None:
    first = run_trials(study(), TRIALS[:1], tmp_path, Here())
    settings = replace(QUICK, cache_bytes=0, memory_bytes=1 << 30, seed=5)
    assert run_trials(study(settings), TRIALS[:1], tmp_path, Here()) == first
    (other,) = run_trials(study(replace(QUICK, cache_bytes=0)), TRIALS[:1], None, Here())
    assert told((other,)) == told(first)


def test_forks_share_what_a_worker_can_count_on_whatever_is_free_here() -> None:
    with pytest.raises(InputError, match=r"training fork none takes about .* where 0\.0 MB may be taken"):
        run_trials(study(), TRIALS[:1], None, Cluster(2, cpus=1, gpus=0, memory=200))
    given = study(replace(QUICK, memory_bytes=10_000_000))
    for executor in (Here(), Processes(1000), Cluster(1000, cpus=1, gpus=0, memory=200)):
        assert _chunks(given, executor)([*map(Trial, FORKS)]) == [[*map(Trial, FORKS)]]


def test_trials_of_another_host_are_taken_and_said(tmp_path: Path) -> None:
    run_trials(study(), TRIALS[:1], tmp_path, Here())
    path = tmp_path / "trials.jsonl"
    (result,) = read_trials(path)
    path.write_text(path.read_text().replace(f'"{result.host}"', '"a processor of long ago"'))
    said: list[str] = []
    run_trials(study(), TRIALS[:1], tmp_path, Here(), say=said.append)
    assert said == ["some of these trials ran on another host: a processor of long ago"]


@pytest.mark.parametrize(
    ("trial", "kind", "told"),
    [
        (Trial(FORKS[1], examples=25), InputError, "25"),
        (Trial(FORKS[1], fold=0), InputError, "there is no fold 0 of 0"),
        (Trial(Fork((1, 5))), LayersError, "outside 1..4"),
        (Trial(Fork((2,), prune=Pruning(0.1))), InputError, "removes nothing from block 2"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is(
    trial: Trial, kind: type[Exception], told: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=told):
        run_trials(study(), [TRIALS[0], trial], tmp_path / "run", Here())
    assert not (tmp_path / "run" / "trials.jsonl").exists()


@pytest.mark.parametrize(
    ("trial", "folds", "size", "batch"),
    [
        (Trial(Fork((3,)), examples=12), 0, None, 12),
        (Trial(Fork((3,)), fold=0), 4, None, 18),
        (Trial(Fork((3,)), examples=20), 0, 8, 7),
    ],
)
def test_memory_is_reckoned_for_the_batches_that_there_will_be(
    trial: Trial, folds: int, size: int | None, batch: int
) -> None:
    """Of so few pictures as there are, and of nearly equal size: not of 256, or 8, whatever there is."""
    shared = study(replace(QUICK, batch_size=size), folds)
    needed = weight_bytes(shared.backbone, trial.fork) + activation_bytes(shared.backbone, trial.fork, batch)

    def trained(memory: int) -> tuple[TrialResult, ...]:
        config = replace(shared.config, memory_bytes=memory)
        return run_trials(replace(shared, config=config), [trial], None, Here())

    assert len(trained(needed)) == 1
    with pytest.raises(InputError, match=f"in batches of {batch}, where"):
        trained(needed - 1)


def test_folds_are_trained_as_the_whole_sample_is() -> None:
    """By their own number, 804 of 1,005, they would be trained for 50 epochs."""
    shared, epochs = study(TrainConfig(), folds=5, train=1005), list[float]()

    def progress(what: str, done: float, total: float) -> None:
        if what == "epochs":
            epochs.append(done)

    (found,) = run_trials(shared, [Trial(Fork(), fold=0)], None, Here(), progress=progress)
    assert found.trained == 804
    assert epochs[-1] == settings_of(shared, None).epochs == 10


def test_folds_that_a_class_is_too_small_for_are_refused() -> None:
    with pytest.raises(InputError, match="class"):
        run_trials(study(folds=9), [Trial(FORKS[1], fold=0)], None, Here())


def test_a_defect_in_a_worker_is_not_taken_for_an_outcome(tmp_path: Path) -> None:
    data = study().data
    labels = data.test.labels
    nothing = Dataset((None,) * len(labels), labels, data.test.classes)  # type: ignore[arg-type]
    broken = replace(study(), data=data._replace(test=nothing))
    with pytest.raises(Exception, match=r".") as caught:
        run_trials(broken, TRIALS[:1], tmp_path / "run", Processes(1))
    assert not isinstance(caught.value, CheckFailed)
