"""What is asked of `optimize`, how far it may go, and what it leaves."""

from __future__ import annotations

from dataclasses import dataclass

from .documents import Document
from .spec import Pruning
from .stats import Interval


@dataclass(frozen=True)
class Goal:
    """What a task may cost and must reach: see `pareto.choose`. `tasks`: latency of so many such tasks."""

    max_added: float | None = None
    min_accuracy: float | None = None
    tasks: int = 1

    def allows(self, added: Interval) -> bool:
        """Whether a fork may keep the limit of latency."""
        return self.max_added is None or added.low <= self.max_added

    def missed(self, accuracy: float, added: Interval) -> tuple[str, ...]:
        """In words, which limits what was deployed does not keep: latency where its whole interval is beyond."""
        found = []
        if self.max_added is not None and added.low > self.max_added:
            found.append(f"it adds {added.value:.1%} of latency, {self.max_added:.1%} at most were asked for")
        if self.min_accuracy is not None and accuracy < self.min_accuracy:
            found.append(f"{accuracy:.1%} are right, {self.min_accuracy:.1%} at least were asked for")
        return tuple(found)

    @property
    def rule(self) -> str:
        """By which a fork is chosen, in words."""
        if self.max_added is not None:
            return f"the most accurate that keeps {self}"
        return "the knee of these" if self.min_accuracy is None else f"the cheapest that keeps {self}"

    def __str__(self) -> str:
        added = "" if self.max_added is None else f"{self.max_added:.1%} of added latency"
        accuracy = "" if self.min_accuracy is None else f"an accuracy of {self.min_accuracy:.1%}"
        return " and ".join(filter(None, (added, accuracy))) or "no limit"


@dataclass(frozen=True)
class Effort:
    """How far the search goes: `minutes` in all, over forks of `span` consecutive blocks, whole and by `prunings`.

    However few the minutes, the head and single blocks are trained. `measurements`: forks that are timed to predict
    all others, each for `seconds`; few, since what could change the choice is timed besides, up to a quarter of all.
    `examples`: how many pictures candidates are trained on, None for all.
    """

    minutes: float = 10.0
    span: tuple[int, int] = (1, 3)
    prunings: tuple[Pruning, ...] = ()
    measurements: int = 4
    seconds: float = 8.0
    examples: int | None = None


@dataclass(frozen=True)
class Decision:
    """What was decided in a `stage`, and why; `seconds` since the beginning."""

    stage: str
    told: str
    seconds: float


@dataclass(frozen=True)
class Optimized(Document):
    """What was deployed. `accuracy`: on the test pictures, by which candidates were compared too, which flatters it.
    `added`: latency of its engine beside the base's, measured.

    `effort`: as it was asked for; `candidates`: forks there were; `measured` and `trained`: of these; `left`: one that
    could have been better and was not measured, since enough were. `bundle`: a folder beside the document. `missed`:
    see `Goal.missed`.
    """

    kind = "optimize"

    model: str
    target: str
    goal: Goal
    fork: str
    accuracy: float
    added: Interval
    candidates: int
    measured: int
    trained: int
    left: str | None
    bundle: str
    decisions: tuple[Decision, ...]
    missed: tuple[str, ...] = ()
    effort: Effort | None = None
