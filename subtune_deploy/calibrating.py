"""A few forks are measured so that all others can be predicted.

found = calibrate(backbone, candidates(16, (1, 3)), load_target("cpu"), Path("resnet50_cpu.run"))
write_document(Path("resnet50_cpu.json"), found)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from .backbone import Backbone, architecture
from .backends.base import Target
from .bases import Bases
from .costs import CandidateFork
from .documents import read_document, write_document
from .environment import describe
from .errors import CheckFailed, InputError
from .fitting import learn_most_telling
from .latency_model import Anchor, LatencyModel, Predict, anchor, latency_model
from .predictor import Costing, Predictor, task_forks
from .results import Result
from .run_folder import CACHE
from .spec import Pruning
from .stats import Ratio
from .sweep import BASES, Candidate, Step, SweepOptions, canonical, sweep
from .tasks import own_classes

MEASUREMENTS = 10

Told = Callable[[Step], None]


def calibrate(
    backbone: Backbone,
    chosen: Sequence[Candidate],
    target: Target,
    run: Path,
    options: SweepOptions | None = None,
    *,
    count: int = MEASUREMENTS,
    told: Told = lambda step: None,
    costing: Costing | None = None,
) -> LatencyModel:
    """Measure `count` of the candidates `chosen`, each time the one that tells most about all of them.

    What the run's folder has already is not measured again. A candidate that cannot be made or fails is told, and
    another one taken. `costing`: of `backbone`, where it is there already. Raises InputError where `chosen` has fewer
    than `count` that can be made, or the run was made differently; CheckFailed where all fail; Unavailable.
    """
    costing, results = costing or Costing(backbone), list[Result]()
    chosen, refused = possible(costing, chosen)
    for candidate, error in refused.items():
        told(Step(candidate, target.name, 0, count, outcome=error))
    if not 1 <= count <= len(chosen):
        raise InputError(
            f"{len(chosen)} candidates to measure {count} of", "give more forks, or a smaller --measurements"
        )
    measure = _Measuring(backbone, target, run, options or SweepOptions(), count, told)

    def measured(index: int) -> Ratio | None:
        result = measure(chosen[index], len(results))
        results.extend([result] if result else [])
        return result.ratio if result else None

    graphs = [costing.together(each.forks) for each in chosen]
    learn_most_telling(costing.base, graphs, count, measured)
    measure.bases.remove()
    if not results:
        raise CheckFailed(
            f"all {len(chosen)} candidates failed on {target.name}", "see what was said of each"
        )
    return latency_model(results, architecture(backbone), target)


def possible(
    costing: Costing, chosen: Sequence[Candidate]
) -> tuple[list[Candidate], dict[Candidate, InputError]]:
    """Candidates that can be made, and why the others cannot: a block in which nothing can be pruned.

    Raises that error where none can, and others.
    """
    kept, refused = list[Candidate](), dict[Candidate, InputError]()
    for each in chosen:
        try:
            costing.together(each.forks)
            kept.append(each)
        except InputError as error:
            if each.prune is None:
                raise
            refused[each] = error
    if refused and not kept:
        raise next(iter(refused.values()))
    return kept, refused


def run_of(file: Path) -> Path:
    """Where a calibration's measurements are kept."""
    return file.with_suffix(".run")


def read_calibration(
    file: Path,
    backbone: Backbone,
    *,
    across: bool = False,
    classes: int | None = None,
    costing: Costing | None = None,
) -> tuple[Predictor, LatencyModel]:
    """What `calibrate` left, of this backbone and this host, or `across` hosts, for tasks with so many `classes`.

    `costing`: of `backbone`, where it is there already. Raises InputError.
    """
    found = read_document(LatencyModel, file)
    predictor = Predictor.of(backbone, found, classes, costing)
    if not across:
        found.check_host(describe())
    return predictor, found


class Growing:
    """A calibration in a file, which grows by what is measured to be sure of a choice of forks for so many `tasks`.

    Calling it measures a fork, as those before were unless the run has it already, learns from it and writes the file.
    Returns what was measured and what is predicted now, see `choice.decide`. `measure` does that with any graph, see
    `choice.settle`. Raise what `sweep` does.
    """

    def __init__(
        self,
        file: Path,
        found: LatencyModel,
        predictor: Predictor,
        tasks: int,
        told: Told = lambda step: None,
    ) -> None:
        self.file, self.found, self.predictor, self.tasks, self.told = file, found, predictor, tasks, told

    @property
    def predict(self) -> Predict:
        """Added latency of a fork."""
        return self.predictor.of_tasks(self.tasks)

    @property
    def known(self) -> list[Anchor]:
        """Graphs of so many tasks, with as many classes as are predicted for, that were measured."""
        backbone = self.predictor.costing.backbone
        wanted = self.tasks, own_classes(backbone, self.predictor.classes)
        return [
            each
            for each in self.found.anchors
            if (len(each.forks), own_classes(backbone, each.head)) == wanted
        ]

    @property
    def graphs(self) -> dict[tuple[CandidateFork, ...], Anchor]:
        """All that were measured as `measure` does it, by what is asked of it, see `sweep.canonical`."""
        backbone = self.predictor.costing.backbone
        return {
            canonical(backbone, task_forks(each)).forks: each
            for each in self.found.anchors
            if (each.merge, each.grouped, each.most) == ("always", (), 0)
        }

    def __call__(self, layers: tuple[int, ...], prune: Pruning | None) -> tuple[Anchor, Predict]:
        found = self.measure(Candidate.alike(layers, self.tasks, prune, self.predictor.classes))
        return found, self.predict

    def measure(self, candidate: Candidate) -> Anchor:
        """What any graph takes."""
        options = SweepOptions(protocol=self.found.protocol, hot=self.found.inputs == "hot")
        backbone = self.predictor.costing.backbone
        (result,) = sweep(
            backbone, [candidate], [self.found.target], run_of(self.file), options, told=self.told
        )
        found = anchor(result)
        if found not in self.found.anchors:  # the run had it already, from before
            self.found = self.found.grown(result)
            write_document(self.file, self.found)
            self.predictor = self.predictor.learn(found)
        return found


class _Measuring:
    """One candidate after the other, told as steps of one undertaking."""

    def __init__(
        self, backbone: Backbone, target: Target, run: Path, options: SweepOptions, count: int, told: Told
    ) -> None:
        self.backbone, self.target, self.run, self.options = backbone, target, run, options
        self.count, self.told, self.start = count, told, time.monotonic()
        self.bases = Bases(run / CACHE / BASES)

    def __call__(self, candidate: Candidate, done: int) -> Result | None:
        def step(each: Step) -> None:
            left = (time.monotonic() - self.start) / done * (self.count - done) if done else None
            self.told(
                replace(each, done=done + (each.outcome is not None), total=self.count, seconds_left=left)
            )

        try:
            (result,) = sweep(
                self.backbone, [candidate], [self.target], self.run, self.options, told=step, bases=self.bases
            )
        except CheckFailed:  # `told` has heard why
            return None
        return result
