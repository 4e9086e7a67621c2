"""Active learning (paper, section B.4.1): pictures whose answer is least sure are labelled next.

The training pictures are the pool; their labels count as unknown until they are chosen. The margin of a picture is
the difference between the probabilities of its two likeliest classes; those with the smallest are labelled. Against
it stands random choice, from the same first pictures. Every training starts from the pretrained weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..backends.base import Progress, silent
from ..data.dataset import generator, subset
from ..errors import CheckFailed, InputError, WorkerDied
from ..executors import Executor, Here
from ..lines import append_line, read_lines
from ..records import to_plain, to_record
from ..run_folder import open_run
from .chunks import chunks
from .documents import Active, Labelled
from .profile import about
from .settings import Fork, resolved
from .study import FREE, Sent, Study, description, room
from .train import Say, TunedTask, answers, check_data, family, train_together, unheard

SCHEDULE = (100, 500, 1000, 2500, 5000, 10_000)
"""How many pictures are labelled, step by step: the paper's."""

LINES = "active.jsonl"
"""In a run's folder: what was learnt on which pictures."""

FAILED = (
    "the others are kept: leave these out, or with another -o give a lower --lr, or a smaller --batch-size"
)

Indices = tuple[int, ...]
Told = Callable[[int, int, "Learnt | None"], object]


@dataclass(frozen=True)
class Job:
    """Forks to be trained on the pictures `labelled`; `wanted`: how many to label next, by margin."""

    forks: tuple[Fork, ...]
    seed: int
    labelled: Indices
    wanted: int


@dataclass(frozen=True)
class Learnt:
    """What came of one fork on the pictures that `digest` stands for; `chosen`: what it would label next."""

    fork: str
    seed: int
    digest: str
    examples: int
    accuracy: float
    chosen: Indices


def active(
    study: Study,
    forks: Sequence[Fork],
    *,
    schedule: Sequence[int] = SCHEDULE,
    seeds: Sequence[int] = (0, 1, 2),
    source: str = "",
    run: Path | None = None,
    executor: Executor | None = None,
    told: Told = lambda done, total, learnt: None,
    say: Say = unheard,
    progress: Progress = silent,
) -> Active:
    """Train each fork on growing sets of pictures, chosen by margin and at random, for each seed.

    The `schedule` goes as far as the pool. `told` hears how many of all trainings are done, and what has just been
    learnt, `say` what a person should know. A call that was killed goes on, where it had a folder `run`, without
    repeating a training.

    Raises InputError (data, schedule, forks, one that memory is too small for, another run's folder); Unavailable;
    CheckFailed where a training diverged, at the end of its step, so that the others of the step are kept.
    """
    sizes = _as_far_as_it_goes(schedule, len(study.data.train))
    if not (forks and seeds):
        raise InputError(f"{len(forks)} forks and {len(seeds)} seeds were given", "give at least one of each")
    check_data(study.data.train, study.data.test)
    what = {**description(study, "active"), "schedule": list(sizes)}
    with open_run(run.absolute(), what, LINES) if run else nullcontext() as folder:
        learner = _Learner(study, executor or Here(), folder, told, say, progress)
        arms = [
            _Arm(fork, strategy, seed, at_random(len(study.data.train), sizes[0], seed))
            for strategy in ("margin", "random")
            for seed in seeds
            for fork in dict.fromkeys(forks)
        ]
        rows = list(_rounds(learner, arms, sizes))
    rows.sort(key=lambda row: ([str(fork) for fork in forks].index(row.fork), row.strategy, row.seed))
    shared = {**about(study, source, study.config), "settings": _settings(study, sizes)}
    return Active(**shared, schedule=sizes, seeds=tuple(seeds), rows=tuple(rows))


def _settings(study: Study, sizes: Indices) -> dict[str, Any]:
    """How forks were trained; of what differs from step to step, one value for each."""
    steps = [resolved(study.config, family(study.backbone), size) for size in sizes]
    found = {key: [getattr(step, key) for step in steps] for key in to_plain(steps[0]) if key not in FREE}
    return {key: values if len(set(values)) > 1 else values[0] for key, values in found.items()}


def at_random(pool: int, count: int, seed: int) -> Indices:
    """Sorted indices of `count` pictures, drawn whatever their class; the fewer are among the more."""
    return tuple(sorted(generator(seed).permutation(pool)[:count].tolist()))


def margins(answers: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Class scores (N, classes) -> (N,) difference of the two highest probabilities, 0..1."""
    probabilities = torch.from_numpy(answers).double().softmax(1).numpy()
    second, first = np.sort(probabilities, axis=1)[:, -2:].T
    return np.asarray(first - second)


def _as_far_as_it_goes(schedule: Sequence[int], pool: int) -> Indices:
    if not schedule or list(schedule) != sorted(set(schedule)) or schedule[0] < 2:
        raise InputError(
            f"schedule {','.join(map(str, schedule))} does not grow from 2 or more",
            "give numbers as in 100,500,1000",
        )
    sizes = tuple(size for size in schedule if size <= pool)
    if not sizes:
        raise InputError(
            f"the pool has {pool} pictures where the schedule begins with {schedule[0]}",
            "give more pictures, or begin with fewer, as in --schedule 10,20,40",
        )
    return sizes


@dataclass(frozen=True)
class _Arm:
    """One way of choosing for one fork and seed, and what it has had labelled so far."""

    fork: Fork
    strategy: str
    seed: int
    labelled: Indices


def _rounds(learner: _Learner, arms: Sequence[_Arm], sizes: Indices) -> Iterable[Labelled]:
    """Step by step: train, count, choose; all arms of a step at once, so that they can run side by side."""
    pool = len(learner.study.data.train)
    same = 1 + (len(sizes) > 1 and sizes[-1] == pool)  # steps at which both ways have the same pictures
    learner.expect(len(arms) * len(sizes) - len(arms) // 2 * same)
    for size, following in zip(sizes, (*sizes[1:], sizes[-1]), strict=True):
        found = learner.learn(arms, following - size)
        yield from (
            Labelled(str(arm.fork), arm.strategy, arm.seed, size, found[arm].accuracy) for arm in arms
        )
        arms = [
            replace(
                arm,
                labelled=at_random(pool, following, arm.seed)
                if arm.strategy == "random"
                else tuple(sorted(arm.labelled + found[arm].chosen)),
            )
            for arm in arms
        ]


@dataclass
class _Learner:
    """Trains what was not trained yet, and keeps it."""

    study: Study
    executor: Executor
    folder: Path | None
    told: Told
    say: Say
    progress: Progress
    done: int = 0
    total: int = 0
    known: dict[tuple[str, int, str], Learnt] = field(default_factory=dict)

    def expect(self, total: int) -> None:
        """Read what the folder has; `total`: trainings in all."""
        self.total = total
        path = self.folder / LINES if self.folder else None
        if path and path.is_file():
            read = (to_record(Learnt, document, place) for place, document in read_lines(path))
            self.known = {(each.fork, each.seed, each.digest): each for each in read}

    def learn(self, arms: Sequence[_Arm], wanted: int) -> dict[_Arm, Learnt]:
        """One step of all arms: what each learnt on what it has labelled. Raises CheckFailed at its end."""
        keys = {arm: (str(arm.fork), arm.seed, digest(arm.labelled)) for arm in arms}
        self.done += len({key for key in keys.values() if key in self.known})
        self.told(self.done, self.total, None)
        left = [arm for arm in arms if keys[arm] not in self.known]
        jobs, failures = _jobs(self.study, room(self.study.config, self.executor), left, wanted), list[str]()
        with closing(self.executor.run(_learn, Sent(self.study, self.progress), jobs)) as outcomes:
            for _, outcome in outcomes:
                if isinstance(outcome, WorkerDied):  # the other jobs of the step are not to blame
                    failures.append(outcome.message)
                    continue
                if isinstance(outcome, Exception):
                    raise outcome
                self._keep(outcome)
                failures += outcome.failures
        if failures:
            raise CheckFailed("; ".join(failures), FAILED)
        return {arm: self.known[key] for arm, key in keys.items()}

    def _keep(self, ended: _Ended) -> None:
        for text in ended.said:
            self.say(text)
        for learnt in ended.learnt:
            if self.folder:
                append_line(self.folder / LINES, to_plain(learnt))
            self.known[learnt.fork, learnt.seed, learnt.digest] = learnt
            self.done += 1
            self.told(self.done, self.total, learnt)


def _jobs(study: Study, limit: int, arms: Iterable[_Arm], wanted: int) -> list[Job]:
    """Arms that have the same pictures train together, within `limit` bytes; only by margin is something chosen."""
    together: dict[tuple[int, Indices], list[_Arm]] = {}
    for arm in arms:
        together.setdefault((arm.seed, arm.labelled), []).append(arm)
    return [
        Job(
            tuple(forks),
            seed,
            labelled,
            wanted if any(arm.strategy == "margin" for arm in group) else 0,
        )
        for (seed, labelled), group in together.items()
        for forks in _fitting(study, limit, group)
    ]


def _fitting(study: Study, limit: int, group: Sequence[_Arm]) -> list[list[Fork]]:
    """Their forks in groups that fit into memory together."""
    pictures = len(group[0].labelled)
    batch = resolved(study.config, family(study.backbone), pictures).largest(pictures)
    return chunks(study.backbone, [*dict.fromkeys(arm.fork for arm in group)], batch, limit)


def digest(labelled: Indices) -> str:
    """Stands for a set of pictures."""
    return hashlib.sha256(repr(labelled).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class _Ended:
    """What a job comes back with. `failures`: which forks learnt nothing, and why."""

    learnt: tuple[Learnt, ...]
    failures: tuple[str, ...]
    said: tuple[str, ...]


def _learn(sent: Sent, job: Job) -> _Ended:
    """One job, wherever it runs."""
    study, said = sent.study, list[str]()
    pool, config = study.data.train, replace(study.config, seed=job.seed)
    train = subset(pool, np.array(job.labelled))
    tuned = train_together(
        study.backbone, job.forks, train, study.data.test, config, progress=sent.progress, say=said.append
    )
    found = [*zip(job.forks, tuned, strict=True)]
    learnt = (_learnt(study, fork, each, job) for fork, each in found if not each.failure)
    where = f"seed {job.seed} on {len(job.labelled)} pictures"
    failures = (f"{fork} {where}: {each.failure}" for fork, each in found if each.failure)
    return _Ended(tuple(learnt), tuple(failures), tuple(said))


def _learnt(study: Study, fork: Fork, tuned: TunedTask, job: Job) -> Learnt:
    chosen = _least_sure(study, tuned, job) if job.wanted else ()
    return Learnt(str(fork), job.seed, digest(job.labelled), len(job.labelled), tuned.accuracy, chosen)


def _least_sure(study: Study, tuned: TunedTask, job: Job) -> Indices:
    pool = study.data.train
    rest = np.setdiff1d(np.arange(len(pool)), job.labelled)
    found = answers(study.backbone, tuned.task, subset(pool, rest), study.config)
    order = np.argsort(margins(np.asarray(found)), kind="stable")
    return tuple(rest[order[: job.wanted]].tolist())
