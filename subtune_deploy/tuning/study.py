"""Many trainings of forks of one backbone on one data set, wherever they run; each is kept as it ends.

study = Study(backbone, load_data("digits"), TrainConfig(epochs=5))
with open_executor("processes:2") as executor:
    results = run_trials(study, [Trial(Fork((9,))), Trial(Fork((10,)))], Path("runs/one"), executor)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence, Set
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch

from ..backbone import Backbone
from ..backends.base import Progress, silent
from ..data.dataset import Data, Dataset, folds, sample
from ..environment import describe
from ..errors import CheckFailed, InputError, SubtuneError, Unavailable, WorkerDied
from ..executors import Executor
from ..executors.travel import packed, unpacked
from ..run_folder import CACHE, open_run
from .chunks import chunks
from .jobs import Chunks, Job, planned
from .keep import SIZES, drop_damaged, facts, forget
from .settings import Resolved, TrainConfig, resolved
from .start import check_fork
from .train import TunedTask, check_data, family, train_together
from .trials import LINES, Trial, TrialResult, append_trials, failed, finished, read_trials

FREE = ("seed", *SIZES)
"""Settings that do not change what comes of a trial; it has a seed of its own."""
REMEDY = "the others are kept: give a lower --lr or a smaller --batch-size, with another -o; or run again"
"""For trials that failed."""


@dataclass(frozen=True)
class Study:
    """What all trials share. `folds`: how many parts the training pictures are cut into for cross-validation."""

    backbone: Backbone
    data: Data
    config: TrainConfig
    folds: int = 0


@dataclass(frozen=True)
class Step:
    """Where trials stand: `done` of `total`, and how long the rest may take, in seconds.

    `results`: those of the job that has just ended; none when the first one begins.
    """

    done: int
    total: int
    seconds_left: float | None = None
    results: tuple[TrialResult, ...] = ()


def datasets(study: Study, trial: Trial) -> tuple[Dataset, Dataset]:
    """(to train on, to test on): `examples` pictures drawn by the seed, tested on a fold of them or on the test set.

    Raises InputError where there are not so many pictures, or folds.
    """
    train = study.data.train
    if trial.examples is not None:
        train = sample(train, trial.examples, trial.seed)
    if trial.fold is None:
        return train, study.data.test
    if not 0 <= trial.fold < study.folds:
        raise InputError(f"there is no fold {trial.fold} of {study.folds}", "folds are counted from 0")
    return folds(train, study.folds, trial.seed)[trial.fold]


def settings_of(study: Study, examples: int | None) -> Resolved:
    """How trials on so many `examples` are trained, None: on all pictures.

    Those that hold out a fold are trained alike: what is selected by them is then trained on the whole sample.
    """
    return resolved(study.config, family(study.backbone), examples or len(study.data.train))


def description(study: Study, kind: str = "trials") -> dict[str, Any]:
    """What must stay the same from one call to the next in a run of this `kind`, see `open_run`."""
    same = facts(study.backbone, study.data.train, study.data.test, study.config)
    kept = {key: value for key, value in same.items() if key not in FREE}
    return {"kind": kind, **kept, "folds": study.folds}


def run_trials(
    study: Study,
    trials: Sequence[Trial],
    run: Path | None,
    executor: Executor,
    *,
    told: Callable[[Step], object] = lambda step: None,
    say: Callable[[str], object] = lambda text: None,
    progress: Progress = silent,
) -> tuple[TrialResult, ...]:
    """Train what the folder `run` has no outcome of yet; the outcomes of `trials`, in their order.

    Trials that differ in their fork alone are trained together. Without `run` nothing is kept; with it, a call
    that was killed is taken up after its last epoch by the next one. `told` hears when trials begin and end, `say`
    what a person should know; `progress` is told of jobs in this process alone.

    A trial that failed is told in its outcome; the others go on, and the next call tries it again.

    Raises InputError for data, forks and a folder of another study, before anything is trained; Unavailable.
    """
    _check_pictures(study, trials)
    with _folder(study, run) as folder:
        outcomes = _known(folder, trials, say)
        left = [trial for trial in dict.fromkeys(trials) if trial not in outcomes]
        _check_forks(study, left)
        work = _Work(Sent(study, progress), executor, folder and folder / CACHE, say)
        for step in work.steps(left, frozenset(outcomes)):
            if folder is not None:
                append_trials(folder / LINES, step.results)
            outcomes |= {result.trial: result for result in step.results}
            told(step)
    return tuple(outcomes[trial] for trial in trials)


def check_trained(results: Sequence[TrialResult]) -> None:
    """Raise CheckFailed, with all reasons, if some of these trials failed."""
    if failures := [result for result in results if result.failure]:
        what = "; ".join(f"{result.trial} ({result.failure})" for result in failures)
        raise CheckFailed(f"{len(failures)} of {len(results)} trials failed: {what}", REMEDY)


@dataclass(frozen=True)
class Sent:
    """A study as jobs get it: itself in this process, elsewhere rebuilt, once in each process."""

    study: Study
    progress: Progress = silent

    @cached_property
    def payload(self) -> bytes:
        """Bytes that hold the study."""
        study = self.study
        return packed(study.backbone, study.data, study.config, study.folds)

    def __reduce__(self) -> tuple[Callable[[bytes], Sent], tuple[bytes]]:
        return _received, (self.payload,)


@lru_cache(maxsize=1)
def _received(payload: bytes) -> Sent:
    return Sent(Study(*unpacked(payload)))


@dataclass(frozen=True)
class _Ended:
    """What a job comes back with."""

    results: tuple[TrialResult, ...]
    said: tuple[str, ...]


def _train(sent: Sent, job: Job) -> _Ended:
    """One job, wherever it runs."""
    study, said = sent.study, list[str]()
    train, test = datasets(study, job.trials[0])
    settings = settings_of(study, job.trials[0].examples)
    keep = job.keep if job.keep and job.keep.parent.is_dir() else None  # not seen from every machine
    if keep and drop_damaged(keep):
        said.append(f"{keep} could not be read: its {len(job.trials)} trainings begin anew")
    start = time.monotonic()
    tuned = train_together(
        study.backbone,
        [trial.fork for trial in job.trials],
        train,
        test,
        replace(settings, seed=job.trials[0].seed),
        keep=keep,
        progress=sent.progress,
        say=said.append,
    )
    seconds = (time.monotonic() - start) / len(job.trials)
    results = (
        _result(trial, each, (len(train), len(test)), seconds)
        for trial, each in zip(job.trials, tuned, strict=True)
    )
    return _Ended(tuple(results), tuple(said))


def _result(trial: Trial, tuned: TunedTask, sizes: tuple[int, int], seconds: float) -> TrialResult:
    if tuned.failure:
        return failed(trial, tuned.failure)
    trained, tested = sizes
    last = tuned.history[-1]
    return TrialResult(
        trial, tuned.accuracy, last.accuracy, tested, trained, tuned.parameters, seconds, _host()
    )


@lru_cache(maxsize=1)
def _host() -> str:
    host = describe()
    gpus = [str(gpu["name"]) for gpu in host["gpus"] or ()]
    return ", ".join([f"{host['cpu']}", *gpus])


@dataclass(frozen=True)
class _Work:
    """How trials become outcomes. `cache`: where the jobs that they are trained in are kept; or none."""

    sent: Sent
    executor: Executor
    cache: Path | None
    say: Callable[[str], object]

    def steps(self, left: Sequence[Trial], done: Set[Trial]) -> Iterator[Step]:
        """From before the first job on. Raises InputError where a trial does not fit into memory."""
        jobs = self._planned(left, _chunks(self.sent.study, self.executor), done)
        start, ended, total = time.monotonic(), 0, len(done) + len(left)
        yield Step(len(done), total)
        with closing(self._outcomes(jobs)) as outcomes:
            for job, outcome in outcomes:
                results = _results(job, outcome, self.say)
                ended += len(results)
                seconds = (time.monotonic() - start) / ended * (len(left) - ended)
                yield Step(len(done) + ended, total, seconds, results)
                # Whoever asks for the next step has this one on the disk.
                if isinstance(outcome, _Ended):
                    forget(job.keep)

    def _outcomes(self, jobs: Sequence[Job]) -> Generator[tuple[Job, _Ended | Exception], None, None]:
        """(job, its outcome), as they end. What no worker lived through is tried again in smaller jobs."""
        while jobs:
            died: list[Job] = []
            with closing(self.executor.run(_train, self.sent, jobs)) as outcomes:
                for index, outcome in outcomes:
                    if isinstance(outcome, WorkerDied) and len(jobs[index].trials) > 1:
                        self.say(f"{len(jobs[index].trials)} forks were trained together: {outcome.message}")
                        died.append(jobs[index])
                    else:
                        yield jobs[index], outcome
            jobs = self._smaller(died) if died else ()

    def _smaller(self, died: Sequence[Job]) -> tuple[Job, ...]:
        most = min(len(job.trials) for job in died) // 2
        self.say(f"from here on at most {most} of these train together")
        trials = [trial for job in died for trial in job.trials]
        return self._planned(
            trials, lambda some: [some[start : start + most] for start in range(0, len(some), most)]
        )

    def _planned(
        self, trials: Sequence[Trial], chunks: Chunks, done: Set[Trial] = frozenset()
    ) -> tuple[Job, ...]:
        return planned(self.cache, trials, chunks, self.executor.workers, self.say, done)


def _results(job: Job, outcome: _Ended | Exception, say: Callable[[str], object]) -> tuple[TrialResult, ...]:
    if isinstance(outcome, _Ended):
        for text in outcome.said:
            say(text)
        return outcome.results
    if not isinstance(outcome, SubtuneError) or isinstance(outcome, Unavailable):
        raise outcome
    return tuple(failed(trial, outcome.message) for trial in job.trials)


def _check_pictures(study: Study, trials: Sequence[Trial]) -> None:
    """Whether there are those that trials want."""
    for trial in {(each.seed, each.examples, each.fold): each for each in trials}.values():
        check_data(*datasets(study, trial))


def _check_forks(study: Study, trials: Sequence[Trial]) -> None:
    """Trained beside others, one that cannot be made would take them along."""
    for fork in dict.fromkeys(trial.fork for trial in trials):
        check_fork(study.backbone, fork, len(study.data.train.classes))


def _chunks(study: Study, executor: Executor) -> Chunks:
    """Which trials on the same pictures fit together into the memory of a worker."""
    limit = room(study.config, executor)

    def together(trials: Sequence[Trial]) -> list[list[Trial]]:
        pictures = len(datasets(study, trials[0])[0])
        batch = settings_of(study, trials[0].examples).largest(pictures)
        by = {trial.fork: trial for trial in trials}
        return [[by[fork] for fork in some] for some in chunks(study.backbone, list(by), batch, limit)]

    return together


def room(config: TrainConfig, executor: Executor) -> int:
    """Bytes that forks which train together may take: those that are given, or half of what a worker has."""
    return config.memory_bytes or _free(config.device, executor) // 2


def _free(device: str, executor: Executor) -> int:
    """Bytes for a worker where it trains: of a GPU as this process sees it, or of its host."""
    if device != "cpu" and executor.gpu and torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0] * executor.gpu)
    return executor.memory


@contextmanager
def _folder(study: Study, run: Path | None) -> Iterator[Path | None]:
    """The run's folder, held; or none."""
    if run is None:
        yield None
        return
    with open_run(run.absolute(), description(study), LINES) as folder:
        yield folder


def _known(
    folder: Path | None, trials: Sequence[Trial], say: Callable[[str], object]
) -> dict[Trial, TrialResult]:
    """Outcomes of `trials` that the folder has."""
    if folder is None or not (folder / LINES).is_file():
        return {}
    known = finished(read_trials(folder))
    found = {trial: known[trial] for trial in trials if trial in known}
    if others := {result.host for result in found.values()} - {_host()}:
        say(f"some of these trials ran on another host: {'; '.join(sorted(others))}")
    return found
