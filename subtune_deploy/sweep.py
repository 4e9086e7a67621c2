"""Every candidate fork of a backbone, built, checked and timed on targets; resumes where it stopped."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby, product
from pathlib import Path
from typing import Any

from .backbone import Backbone, identity
from .backends import get_backend
from .backends.base import Target
from .bases import Bases
from .build import BuildOptions, build
from .bundle import Bundle, open_bundle
from .compiling import compile_bundle
from .costs import CandidateFork
from .environment import describe
from .errors import BundleError, CheckFailed, InputError, SubtuneError, Unavailable
from .export import PROGRAM
from .manifest import MANIFEST
from .measure import ADAPTIVE, Progress, Protocol
from .records import to_plain
from .results import LINES, Result, append_result, read_results
from .run_folder import CACHE, KEPT, open_run
from .spec import Pruning, format_layers
from .tasks import candidate_task, own_classes
from .timing import time_bundle


@dataclass(frozen=True)
class Candidate:
    """A graph with a task for each of `forks`, each with weights of its own. Raises InputError where two are thinned
    differently, since a result tells one way."""

    forks: tuple[CandidateFork, ...]

    def __post_init__(self) -> None:
        if len(ways := {str(fork.prune or "not pruned") for fork in self.forks if fork.layers}) > 1:
            raise InputError(
                f"forks that are {' and '.join(sorted(ways))} cannot be measured in one graph",
                "prune all forks alike, or none",
            )

    @classmethod
    def alike(
        cls,
        layers: tuple[int, ...],
        tasks: int = 1,
        prune: Pruning | None = None,
        classes: int | None = None,
    ) -> Candidate:
        """So many tasks on one fork. `classes`: of each, None for as many as the base; a smaller head is cheaper."""
        return cls((CandidateFork(layers, prune, classes),) * tasks)

    @property
    def layers(self) -> tuple[int, ...]:
        """Blocks that any task tunes."""
        return tuple(sorted({layer for fork in self.forks for layer in fork.layers}))

    @property
    def tasks(self) -> int:
        """Beside the base."""
        return len(self.forks)

    @property
    def prune(self) -> Pruning | None:
        """How all that is tuned is thinned."""
        return next((fork.prune for fork in self.forks if fork.layers), None)

    def __str__(self) -> str:
        """`13-14 x2 of 10 classes`, `none x1 + 15 x2`."""
        return " + ".join(
            " ".join(
                filter(
                    None,
                    (
                        f"{format_layers(fork.layers)} x{count}",
                        str(fork.prune or ""),
                        f"of {fork.classes} classes" if fork.classes else "",
                    ),
                )
            )
            for fork, count in ((fork, len(list(same))) for fork, same in groupby(self.forks))
        )


@dataclass(frozen=True)
class SweepOptions:
    """How candidates are built and timed. `keep`: their bundles stay, in the run's folder `bundles`."""

    build: BuildOptions = field(default_factory=BuildOptions)
    protocol: Protocol = ADAPTIVE
    hot: bool = False
    keep: bool = False


@dataclass(frozen=True)
class Step:
    """Where a sweep stands: `done` of `total`, and how long the rest may take, in seconds.

    `outcome` is None when work on the candidate begins.
    """

    candidate: Candidate
    target: str
    done: int
    total: int
    seconds_left: float | None = None
    outcome: Result | SubtuneError | None = None


Job = tuple[Candidate, Target]
BASES = "base"
"""In the cache: the backbone's own engines."""
_ONCE = "loads", 1
"""Which older runs do not say."""
LONGEST = 100
"""Letters in the name of a candidate's folder, before what tells longer ones apart."""


def candidates(
    blocks: int,
    span: tuple[int, int] | None = None,
    forks: Iterable[Sequence[int]] = (),
    tasks: Iterable[int] = (1,),
    prunings: Iterable[Pruning | None] = (None,),
    classes: int | None = None,
) -> tuple[Candidate, ...]:
    """All runs of span[0]..span[1] consecutive blocks out of `blocks`, and `forks`, for each task count.

    The order is fixed: by task count, then runs by length and place, then `forks` as given, each as `prunings`
    go; none twice.
    """
    low, high = span or (1, 0)
    runs = [
        tuple(range(first, first + length))
        for length in range(low, high + 1)
        for first in range(1, blocks - length + 2)
    ]
    every = [*runs, *(tuple(sorted(set(fork))) for fork in forks)]
    each = product(tasks, every, tuple(prunings))
    return tuple(
        dict.fromkeys(Candidate.alike(layers, count, pruning, classes) for count, layers, pruning in each)
    )


def sweep(
    backbone: Backbone,
    chosen: Sequence[Candidate],
    targets: Sequence[Target],
    run: Path,
    options: SweepOptions | None = None,
    *,
    told: Callable[[Step], None] = lambda step: None,
    progress: Progress | None = None,
    bases: Bases | None = None,
) -> tuple[Result, ...]:
    """Measure what the run has not measured yet; the results of `chosen` on `targets`, in their order.

    `told` hears when work on a candidate begins and ends. One that fails is told, left out, and tried again by
    the next call. `bases`: the caller's, for several calls; else this one's, in the run's cache. Raises InputError
    as `open_run` does; Unavailable; CheckFailed at the end if some failed.
    """
    options, targets = options or SweepOptions(), _distinct(targets)
    chosen = tuple(dict.fromkeys(canonical(backbone, each.forks) for each in chosen))
    for target in targets:
        get_backend(target.backend)  # told before the first candidate is built
        if target.precision == "int8":
            raise InputError(
                f"{target.name} is in int8, for which a sweep has no pictures to calibrate with",
                "sweep in another precision; compile takes --calibration",
            )
    jobs = [(candidate, target) for candidate in chosen for target in targets]
    with open_run(run, _description(backbone, targets, options)):
        finished = _finished(backbone, run)
        left = [(each, target) for each, target in jobs if (each, target.name) not in finished]
        failed = []
        sources = any(target.backend == "torch" for target in targets)
        work = _Work(
            backbone, run, options, sources, progress, bases or Bases(run / CACHE / BASES), bases is None
        )
        for step in work.steps(left, len(jobs)):
            told(step)
            if isinstance(step.outcome, Result):
                finished[step.candidate, step.target] = step.outcome
            elif step.outcome is not None:
                failed.append(f"{step.candidate} on {step.target} ({step.outcome.message})")
    if failed:
        what = f"{len(failed)} of {len(jobs)} failed: {'; '.join(failed)}"
        raise CheckFailed(what, "the others are kept; sweep again to try these again")
    return tuple(finished[candidate, target.name] for candidate, target in jobs)


@dataclass(frozen=True)
class _Work:
    """How one candidate after the other becomes a line of results."""

    backbone: Backbone
    run: Path
    options: SweepOptions
    sources: bool
    progress: Progress | None
    bases: Bases
    own: bool

    def steps(self, left: Sequence[Job], total: int) -> Iterable[Step]:
        self._tidy(left)
        start, done = time.monotonic(), total - len(left)
        seconds_left: float | None = None
        for index, (candidate, target) in enumerate(left):
            yield Step(candidate, target.name, done + index, total, seconds_left)
            outcome = self._attempt(candidate, target)
            seconds_left = (time.monotonic() - start) / (index + 1) * (len(left) - index - 1)
            yield Step(candidate, target.name, done + index + 1, total, seconds_left, outcome)
            self._tidy(left[index + 1 :])

    def _attempt(self, candidate: Candidate, target: Target) -> Result | SubtuneError:
        try:
            return self._measured(candidate, target)
        except Unavailable:
            raise
        except SubtuneError as error:
            return error

    def _measured(self, candidate: Candidate, target: Target) -> Result:
        bundle = self._bundle(candidate)
        if target.name not in bundle.manifest.engines:
            bundle = compile_bundle(bundle, target, make=self.bases.maker(bundle))
        options, look = self.options, self.bases.looker(bundle)
        result = time_bundle(
            bundle, target.name, options.protocol, hot=options.hot, progress=self.progress, look=look
        )
        append_result(self.run / LINES, result)
        return result

    def _bundle(self, candidate: Candidate) -> Bundle:
        """As it was built before, whole or not at all; or built now."""
        folder = self._folder(candidate)
        if (folder / MANIFEST).is_file() and (not self.sources or (folder / PROGRAM).is_file()):
            with contextlib.suppress(BundleError):  # spoilt: it is built again
                return open_bundle(folder)
        if folder.parent == self.run / CACHE:
            shutil.rmtree(folder, ignore_errors=True)  # ours, whatever became of it
        tasks = [
            candidate_task(
                self.backbone, f"task{n}", fork.layers, seed=n, classes=fork.classes, prune=fork.prune
            )
            for n, fork in enumerate(candidate.forks, start=1)
        ]
        return build(self.backbone, tasks, folder, self.options.build, sources=self.sources)

    def _tidy(self, left: Sequence[Job]) -> None:
        """The cache holds only what is still needed; a killed process may have left more."""
        needed = {self._folder(candidate) for candidate, _ in left}
        if self.own and not left:
            self.bases.remove()
        for folder in (self.run / CACHE).glob("*"):
            if folder not in needed | {self.bases.folder}:
                shutil.rmtree(folder, ignore_errors=True)

    def _folder(self, candidate: Candidate) -> Path:
        name = str(candidate).replace(" ", "_")
        if len(name) > LONGEST:
            name = f"{name[:LONGEST]}_{hashlib.sha256(name.encode()).hexdigest()[:16]}"
        kept = self.run / KEPT / name
        return kept if self.options.keep or kept.exists() else self.run / CACHE / name


def _distinct(targets: Sequence[Target]) -> tuple[Target, ...]:
    """Each once. Results go by the names of targets, so two recipes of one name are refused."""
    found: dict[str, Target] = {}
    for target in targets:
        if found.setdefault(target.name, target) != target:
            raise InputError(f"two recipes are named {target.name!r}", "give each recipe a name of its own")
    return tuple(found.values())


def _finished(backbone: Backbone, run: Path) -> dict[tuple[Candidate, str], Result]:
    """What the run has by now."""

    def key(result: Result) -> tuple[Candidate, str]:
        heads = result.classes or dict.fromkeys(result.forks)
        forks = (
            CandidateFork(tuple(layers), result.prune, heads[task]) for task, layers in result.forks.items()
        )
        return canonical(backbone, forks), result.target

    return {key(result): result for result in read_results(run)} if (run / LINES).is_file() else {}


def canonical(backbone: Backbone, forks: Iterable[CandidateFork]) -> Candidate:
    """The one form of a graph: in no order of tasks, and nothing said twice. Raises InputError as `Candidate` does."""

    def plain(fork: CandidateFork) -> CandidateFork:
        layers, classes = tuple(sorted(set(fork.layers))), own_classes(backbone, fork.classes)
        return CandidateFork(layers, fork.prune if layers else None, classes)

    return Candidate(tuple(sorted(map(plain, forks), key=lambda fork: (fork.layers, fork.classes or 0))))


def _description(backbone: Backbone, targets: Sequence[Target], options: SweepOptions) -> dict[str, Any]:
    """What must stay the same from one call to the next, see `open_run`."""
    return {
        **identity(backbone),
        "build": to_plain(options.build),
        "protocol": {
            key: value for key, value in to_plain(options.protocol).items() if (key, value) != _ONCE
        },
        "inputs": "hot" if options.hot else "fresh",
        "targets": {target.name: to_plain(target) for target in targets},
        "host": describe(),
    }
