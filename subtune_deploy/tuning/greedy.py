"""Greedy-SubTuning (paper, section 2): blocks selected by cross-validated accuracy, then trained.

    study = Study(backbone, load_data("digits", train=500), TrainConfig(), folds=5)
    found = greedy(study, budget=budget_for(study, max_parameters=200_000))
    found.order, found.final.accuracy

Selection sees the training pictures alone; the test pictures judge the fork that was chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import isfinite
from pathlib import Path
from statistics import mean

from torch import nn

from ..backends.base import Progress, silent
from ..data.dataset import sample
from ..errors import InputError
from ..executors import Executor, Here
from ..predictor import Predictor
from ..tasks import candidate_task
from .budget import Added, Budget, Latency
from .documents import Greedy, LeftOut, Round, Score
from .profile import about, row
from .selection import Step, chosen, select
from .settings import Fork
from .study import Step as Trained
from .study import Study, check_trained, run_trials, settings_of
from .trials import Trial, TrialResult, lost


def greedy(
    study: Study,
    *,
    eps: float = 0.001,
    budget: Budget | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    examples: int | None = None,
    source: str = "",
    run: Path | None = None,
    executor: Executor | None = None,
    told: Callable[[Trained], object] = lambda step: None,
    say: Callable[[str], object] = lambda text: None,
    progress: Progress = silent,
) -> Greedy:
    """Select blocks by `study.folds`-fold cross-validation with the seed of its settings, then train the fork.

    `examples`: so many of the training pictures take part, drawn by that seed; none: all. The chosen fork is
    trained on them once for each of `seeds`, and counted on the test pictures. Rounds that the folder `run` has
    trials of are not trained again. A block with which a trial fails is not taken in that round, which `say` hears.

    Raises as `select`, `Budget.check` and `run_trials` do; CheckFailed where the head alone, all single blocks or
    the chosen fork cannot be trained.
    """
    budget = budget or Budget({block.index: block.parameters for block in study.backbone.blocks})
    budget.check()
    study = _prepared(study, examples, seeds)

    def train(trials: Sequence[Trial]) -> tuple[TrialResult, ...]:
        return run_trials(study, trials, run, executor or Here(), told=told, say=say, progress=progress)

    validate = _CrossValidation(train, study.folds, study.config.seed, say)
    added = Fraction(str(eps)) if isfinite(eps) else eps  # as it was written: 0.001 is a thousandth
    # Comes first, since it refuses eps.
    steps = select(sorted(budget.parameters), validate, added, budget.allows)
    (head,) = validate([frozenset()])
    assert head is not None
    fork = Fork(tuple(sorted(chosen(steps))))
    trained = train([Trial(fork, seed) for seed in seeds])
    check_trained(trained)
    return Greedy(
        **about(study, source, settings_of(study, None)),
        examples=examples,
        folds=study.folds,
        eps=eps,
        max_parameters=budget.max_parameters,
        max_added=budget.max_added,
        head=float(head),
        rounds=tuple(_documented(step, budget, validate) for step in steps),
        order=chosen(steps),
        seeds=tuple(seeds),
        final=row(study.backbone, fork, trained),
    )


def budget_for(
    study: Study,
    max_parameters: int | None = None,
    max_added: float | None = None,
    latency: Latency | None = None,
) -> Budget:
    """Limits on the forks of a study; what blocks and a head for its classes weigh is counted. Raises InputError."""
    backbone = study.backbone
    head = candidate_task(backbone, "head", (), seed=0, classes=len(study.data.train.classes))
    weights = (
        module.parameters() if isinstance(module, nn.Module) else (module,)
        for module in head.versions.values()
    )
    return Budget(
        {block.index: block.parameters for block in backbone.blocks},
        sum(each.numel() for some in weights for each in some),
        latency,
        max_parameters,
        max_added,
    )


def as_predicted(predictor: Predictor) -> Latency:
    """What a fork of one task is predicted to add."""
    return lambda fork: Added(predictor.added([sorted(fork)]).value, predicted=True)


def _prepared(study: Study, examples: int | None, seeds: Sequence[int]) -> Study:
    if study.folds < 2 or not seeds:
        raise InputError(
            f"{study.folds} folds and {len(seeds)} seeds were given", "give two folds or more, and a seed"
        )
    if examples is None:
        return study
    fewer = sample(study.data.train, examples, study.config.seed)
    return replace(study, data=study.data._replace(train=fewer))


@dataclass(frozen=True)
class _CrossValidation:
    """Mean accuracy over the folds, exact; those of each fold are `kept`. None where a trial failed, which `say` hears.

    Raises CheckFailed where the head alone or all single blocks fail: there is nothing to choose.
    """

    train: Callable[[Sequence[Trial]], tuple[TrialResult, ...]]
    folds: int
    seed: int
    say: Callable[[str], object]
    kept: dict[frozenset[int], tuple[Fraction, ...]] = field(default_factory=dict)

    def __call__(self, forks: Sequence[frozenset[int]]) -> list[Fraction | None]:
        layers = [tuple(sorted(fork)) for fork in forks]
        trials = [Trial(Fork(each), self.seed, fold=fold) for fold in range(self.folds) for each in layers]
        results = self.train(trials)
        failed = lost(results)
        if len(failed) == len(forks) and all(len(fork) <= 1 for fork in forks):
            check_trained(results)
        for each, reason in failed.items():
            self.say(f"left out in this round: {each}: {reason}")
        for place, fork in enumerate(forks):
            if Fork(layers[place]) not in failed:
                self.kept[fork] = tuple(map(_share, results[place :: len(forks)]))
        return [mean(self.kept[fork]) if fork in self.kept else None for fork in forks]


def _share(result: TrialResult) -> Fraction:
    return Fraction(round(result.accuracy * result.tested), result.tested)


def _documented(step: Step, budget: Budget, validate: _CrossValidation) -> Round:
    forks = {layer: frozenset({*step.chosen, layer}) for layer in (*dict(step.scores), *step.left_out)}
    scores = (
        Score(
            layer, float(accuracy), tuple(map(float, validate.kept[forks[layer]])), budget.cost(forks[layer])
        )
        for layer, accuracy in step.scores
    )
    left_out = (LeftOut(layer, budget.cost(forks[layer])) for layer in step.left_out)
    return Round(
        step.chosen, tuple(scores), tuple(left_out), step.best, float(step.accuracy), step.taken, step.failed
    )
