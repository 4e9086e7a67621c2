"""What any fork of a backbone would take on a target, told from the few forks that were measured there.

predictor = Predictor.of(backbone, read_document(LatencyModel, path))
predictor.added([(13, 14)] * 8)                    # Interval(value=1.93, low=1.87, high=1.99)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

from .backbone import Backbone, architecture
from .calibrated import Calibrated, Predicted, Works
from .costs import CandidateFork, Candidates, Counted, count_costs, task_costs
from .fitting import fit
from .latency_model import Anchor, LatencyModel, Predict
from .plan import Merge, Plan
from .spec import Pruning
from .stats import NORMAL, Interval, Ratio
from .tasks import Task
from .work import plan_works

Forks = Sequence[Sequence[int]]

Compare: TypeAlias = Callable[[Plan, Plan], Ratio]
"""The latency of one plan relative to another's."""


def task_forks(anchor: Anchor) -> tuple[CandidateFork, ...]:
    """What the tasks of a graph that was measured have each."""
    heads = anchor.classes or (None,) * len(anchor.forks)
    return tuple(
        CandidateFork(fork, anchor.prune if fork else None, classes)
        for fork, classes in zip(anchor.forks, heads, strict=True)
    )


class Costing:
    """What graphs of one backbone ask of a machine; each is looked at once."""

    def __init__(self, backbone: Backbone, counted: Counted | None = None) -> None:
        self.backbone, self.counted = backbone, counted or count_costs(backbone)
        self._candidates = Candidates(backbone, self.counted)
        self._works: dict[tuple[Any, ...], Works] = {}

    @property
    def base(self) -> Works:
        """Of the backbone alone."""
        return self.together(())

    def works(self, forks: Forks, prune: Pruning | None = None, classes: int | None = None) -> Works:
        """Of a graph with a candidate task for each of `forks`, all thinned alike and with heads of so many classes,
        None for the base's. Raises what `prune` does."""
        return self.together([CandidateFork(tuple(fork), prune, classes) for fork in forks])

    def anchored(self, anchor: Anchor) -> Works:
        """Of a graph that was measured, lowered as it was then."""
        return self.together(task_forks(anchor), anchor.merge, anchor.grouped, anchor.most)

    def together(
        self,
        forks: Sequence[CandidateFork],
        merge: Merge = "always",
        grouped: tuple[str, ...] = (),
        most: int = 0,
    ) -> Works:
        """Of a graph with a task for each of `forks`, each with its own thinning and classes."""
        key = (tuple(forks), merge, grouped, most)
        if key not in self._works:
            self._works[key] = self._candidates.works(forks, merge=merge, grouped=grouped, most=most)
        return self._works[key]


@dataclass(frozen=True)
class Predictor:
    """A model fitted to what was `measured`, of tasks with `classes`, None for the base's."""

    costing: Costing
    measured: tuple[Anchor, ...]
    classes: int | None = None

    @classmethod
    def of(
        cls,
        backbone: Backbone,
        found: LatencyModel,
        classes: int | None = None,
        costing: Costing | None = None,
    ) -> Predictor:
        """Fitted to all that was measured, whatever classes that had; None predicts for as many as the first had.

        `costing`: of `backbone`, where it is there already. Raises InputError where another network was measured.
        """
        found.check_network(backbone.name, architecture(backbone))
        return cls(costing or Costing(backbone), found.anchors, classes or found.anchors[0].head)

    @cached_property
    def model(self) -> Calibrated:
        """Of latency, for any plan."""
        return fit(self.costing.base, [(self.costing.anchored(each), each.ratio) for each in self.measured])

    def learn(self, anchor: Anchor) -> Predictor:
        """With one measurement more."""
        return replace(self, measured=(*self.measured, anchor))

    def predict(self, forks: Forks, prune: Pruning | None = None) -> Predicted:
        """The ratio to the base of a graph with a task for each of `forks`. Raises what `prune` does."""
        return self.model.predict(self.costing.works(forks, prune, self.classes))

    def together(self, forks: Sequence[CandidateFork]) -> Predicted:
        """The same of tasks that each have a fork, a thinning and a head of their own."""
        return self.model.predict(self.costing.together(forks))

    def least_added(self, fork: CandidateFork, others: int) -> float:
        """What a task adds at the least beside up to so many `others`."""
        return self.model.least_added(self.costing.base, self.costing.together([fork]), others)

    def added(self, forks: Forks, prune: Pruning | None = None) -> Interval:
        """Its added latency relative to the base, with the interval that is to hold 95 %."""
        found = _with_interval(self.predict(forks, prune))
        return Interval(found.value - 1, found.low - 1, found.high - 1)

    def predicted(self, layers: Sequence[int], tasks: int = 1, prune: Pruning | None = None) -> Anchor:
        """What a measurement of so many tasks on one fork is expected to be."""
        ratio = _with_interval(self.predict([layers] * tasks, prune))
        heads = (self.classes,) * tasks if self.classes else ()
        return Anchor((tuple(layers),) * tasks, ratio, prune=prune, classes=heads)

    def of_tasks(self, tasks: int) -> Predict:
        """Added latency of so many tasks on one fork."""
        return lambda layers, prune: self.added([layers] * tasks, prune)

    def of_plans(self, tasks: Sequence[Task]) -> Compare:
        """Of plans of `tasks`, with the interval that is to hold 95 %."""
        topology, costs = self.costing.backbone.topology, task_costs(self.costing.backbone, tasks)

        def compare(plan: Plan, than: Plan) -> Ratio:
            works = (plan_works(topology, each, costs) for each in (plan, than))
            return _with_interval(self.model.compare(*works))

        return compare


def _with_interval(found: Predicted) -> Ratio:
    half = NORMAL * found.deviation
    return Ratio(found.ratio, found.ratio - half, found.ratio + half)
