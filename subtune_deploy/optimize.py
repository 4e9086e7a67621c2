"""From pictures to a deployed task, within minutes: which blocks to fork is found, trained, built and checked.

    found = optimize(study, load_target("cpu"), Path("digits"), Goal(max_added=0.2), Effort(minutes=10))
    found.fork, found.accuracy, found.added            # "13-14", 0.97, Interval(0.17, ...)

What a fork would take is predicted from a few measurements, so that only forks within the limit are trained; which of
those decides is measured. Each stage keeps what it did in the folder: the same call goes on where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

from .backbone import Backbone
from .backends.base import Target
from .breakdown import breakdown
from .build import build
from .bundle import Bundle
from .calibrating import Growing, calibrate, possible, read_calibration, run_of
from .checkpoint import write_state
from .choice import Choice, decide
from .compiling import compile_bundle
from .documents import read_document, write_document
from .errors import CheckFailed, InputError
from .executors import Executor, Here
from .goal import Decision, Effort, Goal, Optimized
from .latency_model import Predict, anchor
from .measure import ADAPTIVE
from .pareto import front
from .predictor import Costing, Predictor
from .report import make_document, write_page
from .report_points import predictions
from .results import LINES, Result, append_result, read_results
from .stats import Interval
from .sweep import Candidate, Step, SweepOptions, candidates
from .tasks import Task, task_state
from .timing import time_bundle
from .tuning.documents import Profile
from .tuning.keep import forget
from .tuning.profile import profile
from .tuning.settings import Fork
from .tuning.study import REMEDY, Study
from .tuning.study import Step as Trained
from .tuning.train import tune
from .tuning.trials import lost

TRAINING = 0.6
"""Share of the minutes in which candidates are trained; the rest is for measuring, the final training and the build."""
SHARE, ALWAYS = 0.25, 10
"""Of all forks, what is timed at most to be sure of the choice; ten may be however few there are."""
ANSWER, PROFILE = "optimize.json", "profile.json"
BATCH = 6
"""Longer forks that are trained together."""


@dataclass(frozen=True)
class Listener:
    """Who hears what happens: decisions, forks timed, forks trained."""

    decided: Callable[[Decision], object] = lambda decision: None
    timed: Callable[[Step], None] = lambda step: None
    trained: Callable[[Trained], object] = lambda step: None


@dataclass
class _Journal:
    """Decisions, with the time that is left."""

    minutes: float
    listener: Listener
    entries: list[Decision] = field(default_factory=list)
    start: float = field(default_factory=time.monotonic)

    def __call__(self, stage: str, told: str) -> None:
        self.entries.append(Decision(stage, told, round(self.seconds, 1)))
        self.listener.decided(self.entries[-1])

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start


def optimize(
    study: Study,
    target: Target,
    out: Path,
    goal: Goal,
    effort: Effort | None = None,
    *,
    name: str = "task",
    source: str = "",
    executor: Executor | None = None,
    listener: Listener | None = None,
) -> Optimized:
    """A bundle in `out` with the fork that `goal` asks for, as far as `effort` finds it; `study.config` trains it.

    Raises InputError where nothing keeps the goal, naming the nearest, or `out` holds another undertaking; what its
    stages raise.
    """
    effort, listener = effort or Effort(), listener or Listener()
    journal = _Journal(effort.minutes, listener)
    out.mkdir(parents=True, exist_ok=True)
    growing, chosen = _calibrated(study, target, out, goal, effort, journal)
    found = _profiled(study, chosen, growing.predict, out, goal, effort, source, executor or Here(), journal)
    choice = _chosen(found, growing, goal, _most(chosen, growing), journal)
    fork = _fork_of(found, choice)
    task, accuracy = _tuned(study, fork, name, out, journal)
    bundle, result = _built(study.backbone, task, target, out, effort, journal)
    added = anchor(result).added
    done = Optimized(
        study.backbone.name, target.name, goal, choice.chosen.fork, accuracy, added, len(chosen),
        len(growing.found.anchors), len(found.rows), choice.left, bundle.path.name, tuple(journal.entries),
        goal.missed(accuracy, added), effort,
    )  # fmt: skip
    write_document(out / ANSWER, done)
    forget(_partial(out, name, fork))
    _report(growing, found, done, out)
    return done


def _report(growing: Growing, found: Profile, done: Optimized, out: Path) -> None:
    """The page on which the choice can be looked at, and read how it came about."""
    results = [each for each in read_results(run_of(growing.file)) if each.tasks == growing.tasks]
    predicted = predictions(found, results, growing.predictor, growing.found)
    graphs = [*map(anchor, results), *predicted.anchors]
    counted = breakdown(growing.predictor.costing.backbone, graphs)
    decided = {"title": "Decided", "lines": [*(each.told for each in done.decisions), *done.missed]}
    page = make_document(results, found, counted, [predicted])
    write_page(out / "report.html", page | {"notes": [decided, *page["notes"]]})


def _most(chosen: Sequence[Candidate], growing: Growing) -> int:
    """How many forks more may be timed to be sure of the choice, one aside, which is the choice."""
    return max(0, max(ALWAYS, int(SHARE * len(chosen))) - len(growing.found.anchors) - 1)


def _calibrated(
    study: Study, target: Target, out: Path, goal: Goal, effort: Effort, journal: _Journal
) -> tuple[Growing, list[Candidate]]:
    """What forks take, from a few that are measured now, or were when this stopped; and those that can be made."""
    how = "measured, the most telling ones"
    file, backbone, classes = out / "calibration.json", study.backbone, len(study.data.train.classes)
    costing, told = Costing(backbone), journal.listener.timed
    prunings = (None, *effort.prunings)
    every = candidates(len(backbone.blocks), effort.span, (), (goal.tasks,), prunings, classes)
    chosen, refused = possible(costing, every)
    if refused:
        named = ", ".join(map(str, refused))
        journal("cost", f"left out, since so much cannot be pruned there: {named}")
    if file.exists():
        predictor, found = read_calibration(file, backbone, classes=classes, costing=costing)
        if found.target != target:
            raise InputError(f"{file} is of target {found.target.name}", "give another --out, or that target")
        how = "had been measured"
    else:
        options = SweepOptions(protocol=replace(ADAPTIVE, seconds=effort.seconds))
        found = calibrate(
            backbone, chosen, target, run_of(file), options,
            count=min(effort.measurements, len(chosen)), told=told, costing=costing,
        )  # fmt: skip
        write_document(file, found)
        predictor = Predictor.of(backbone, found, classes, costing)
    growing = Growing(file, found, predictor, goal.tasks, told)
    doubts = sorted(_half(growing.predict(each.layers, each.prune)) for each in chosen)
    journal(
        "cost",
        f"{len(found.anchors)} of {len(chosen)} forks {how}: "
        f"{', '.join(map(str, found.anchors))}; all others are predicted, within ±{doubts[len(doubts) // 2]:.1%} of "
        f"the base's latency in the median; two builds of one graph are "
        f"taken to differ by {predictor.model.spread:.1%}",
    )
    return growing, chosen


def _half(interval: Interval) -> float:
    return (interval.high - interval.low) / 2


def _profiled(
    study: Study, chosen: Sequence[Candidate], predict: Predict, out: Path, goal: Goal, effort: Effort, source: str,
    executor: Executor, journal: _Journal,
) -> Profile:  # fmt: skip
    """Accuracy of the head alone, of single blocks, then of the most promising longer and thinner forks."""
    affordable = [each for each in chosen if goal.allows(predict(each.layers, each.prune))]
    if not affordable and not goal.allows(predict((), None)):
        cheapest = min(chosen, key=lambda each: predict(each.layers, each.prune).value)
        raise InputError(
            f"no fork is predicted to add at most {goal.max_added:.1%}: the cheapest, {cheapest}, adds "
            f"{predict(cheapest.layers, cheapest.prune).value:.1%}",
            "raise --max-added",
        )
    journal("cost", f"{len(affordable)} of {len(chosen)} forks may keep {goal}; the others are not trained")

    train = _Trainer(study, effort.examples, source, out / "profile.run", executor, journal.listener)
    singles = [each for each in affordable if len(each.layers) == 1 and not each.prune]
    begun, known = journal.seconds, [Fork(()), *map(_fork, singles)]
    found = train(known)
    each_takes = (journal.seconds - begun) / len(known)
    others, before = [each for each in affordable if each not in singles], _trained(out, goal, effort)
    if before:
        others = [each for each in others if _fork(each) in before]
    for batch in _batches(others, found):
        late = journal.seconds + each_takes * len(batch) > TRAINING * 60 * effort.minutes
        if late and len(known) > 1 and not before:
            break
        known, begun = known + batch, journal.seconds
        found = train(known)
        each_takes = (journal.seconds - begun) / len(batch)
    write_document(out / PROFILE, found)
    for fork, reason in train.failed.items():
        journal("accuracy", f"{fork} could not be trained, and is left out: {reason}")
    left = len(affordable) + 1 - len(known)
    why = f"; {left} more did not fit into {TRAINING:.0%} of {effort.minutes:g} min" if left else ""
    journal(
        "accuracy",
        f"{len(found.rows)} forks trained, the head alone, single blocks, then the most promising{why}",
    )
    return found


def _trained(out: Path, goal: Goal, effort: Effort) -> set[Fork]:
    """What had been trained when the same was asked before and answered: it is answered by no more."""
    if not (out / ANSWER).is_file():
        return set()
    answer = read_document(Optimized, out / ANSWER)
    if (answer.goal, answer.effort) != (goal, effort):
        return set()
    return {Fork(row.layers, prune=row.prune) for row in read_document(Profile, out / PROFILE).rows}


@dataclass
class _Trainer:
    """Forks become a profile; what fails once is left out from then on."""

    study: Study
    examples: int | None
    source: str
    run: Path
    executor: Executor
    listener: Listener
    failed: dict[Fork, str] = field(default_factory=dict)

    def __call__(self, some: Sequence[Fork]) -> Profile:
        """Raises CheckFailed without the head alone, which the others are compared with."""
        left = [each for each in some if each not in self.failed]
        found = profile(
            self.study, left, seeds=(self.study.config.seed,), examples=self.examples, source=self.source,
            run=self.run, executor=self.executor, told=self._heard,
        )  # fmt: skip
        if reason := self.failed.get(Fork(())):
            raise CheckFailed(f"the head alone could not be trained: {reason}", REMEDY)
        return found

    def _heard(self, step: Trained) -> None:
        self.failed |= lost(step.results)
        self.listener.trained(step)


def _batches(others: Sequence[Candidate], found: Profile) -> Iterator[list[Fork]]:
    """Longer and thinner forks in groups, those first whose blocks do best by themselves; whole before thin."""
    alone = {row.layers: row.accuracy for row in found.rows}

    def promise(each: Candidate) -> tuple[bool, float]:
        return each.prune is None, fmean(alone.get((layer,), 0.0) for layer in each.layers)

    best_first = sorted(others, key=promise, reverse=True)
    for start in range(0, len(best_first), BATCH):
        yield [_fork(each) for each in best_first[start : start + BATCH]]


def _fork(candidate: Candidate) -> Fork:
    return Fork(candidate.layers, prune=candidate.prune)


def _chosen(found: Profile, growing: Growing, goal: Goal, most: int, journal: _Journal) -> Choice:
    choice = decide(
        found,
        growing.known,
        growing.predict,
        growing,
        max_added=goal.max_added,
        min_accuracy=goal.min_accuracy,
        most=most,
    )
    for fork, why in choice.failed.items():
        journal("choice", f"{fork} could not be measured, and is left out: {why}")
    confirmed = ", ".join(map(str, choice.confirmed)) or "none"
    left = f"; no more are allowed, although {choice.left} could change it too" if choice.left else ""
    journal("choice", f"measured because they could have changed the choice: {confirmed}{left}")
    best = ", ".join(f"{p.fork} ({p.accuracy.value:.1%}, {p.added.value:+.1%})" for p in front(choice.points))
    journal("choice", f"not dominated in accuracy and added latency: {best}")
    point = choice.chosen
    head = next(row.accuracy for row in found.rows if not row.layers)
    journal(
        "choice",
        f"{point.fork}: {goal.rule}; {point.accuracy.value:.1%} right (the head alone {head:.1%}), "
        f"{point.added.value:+.1%} of latency",
    )
    return choice


def _fork_of(found: Profile, choice: Choice) -> Fork:
    row = next(row for row in found.rows if row.fork == choice.chosen.fork)
    return Fork(row.layers, prune=row.prune)


def _partial(out: Path, name: str, fork: Fork) -> Path:
    """Where the epochs of the last training are; another goal may have chosen another fork."""
    return out / f"{name}_{fork}.partial".replace(" ", "_")


def _tuned(study: Study, fork: Fork, name: str, out: Path, journal: _Journal) -> tuple[Task, float]:
    """The task itself, trained on all pictures, as a checkpoint; its epochs stay until the engine stands."""
    data, file = study.data, out / f"{name}.safetensors"
    tuned = tune(
        study.backbone, name, data.train, data.test, fork, study.config, keep=_partial(out, name, fork)
    )
    write_state(file, *task_state(study.backbone, tuned.task))
    journal(
        "tuning",
        f"fork {fork} trained on all {len(data.train)} pictures: {tuned.accuracy:.1%} of {len(data.test)} others "
        f"right, by which candidates were compared too; kept as {file.name}",
    )
    return tuned.task, tuned.accuracy


def _built(
    backbone: Backbone, task: Task, target: Target, out: Path, effort: Effort, journal: _Journal
) -> tuple[Bundle, Result]:
    """One graph with the base, checked; its engine, checked and timed."""
    bundle = compile_bundle(build(backbone, [task], out / "bundle"), target)
    worst = max(figure["error"] for figure in bundle.manifest.parity)
    journal(
        "build", f"every task of the engine answers as its stand-alone model does, error at most {worst:.1e}"
    )
    result = time_bundle(bundle, target.name, replace(ADAPTIVE, seconds=effort.seconds))
    append_result(out / LINES, result)
    journal(
        "build",
        f"the engine adds {result.added:+.1%} ({result.ratio.low - 1:+.1%} to {result.ratio.high - 1:+.1%})",
    )
    return bundle, result
