"""Algorithm 1 of the paper (pure): which blocks to tune, found one after the other.

steps = select(range(1, 17), evaluate, eps=0.001)
chosen(steps)                                       # (14, 2, 7): in the order in which they were chosen
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

from ..errors import InputError

Accuracy: TypeAlias = float | Fraction
"""0..1. Means of floats are not equal where as many answers are right; fractions are."""
Evaluate = Callable[[Sequence[frozenset[int]]], Sequence[Accuracy | None]]
"""Forks -> the accuracy of each, None where it cannot be trained. One round's candidates come together, so that they
can be trained together."""


@dataclass(frozen=True)
class Step:
    """One round, begun with the blocks `chosen`: accuracy with each block that was tried beside them.

    `left_out`: blocks not tried, since the fork with them is not allowed. `best` is None where no accuracy was
    above 0; `taken` says whether it beat the round before by more than eps. `failed`: blocks that were tried, but
    with which the fork could not be trained.
    """

    chosen: tuple[int, ...]
    scores: tuple[tuple[int, Accuracy], ...]
    left_out: tuple[int, ...]
    best: int | None
    accuracy: Accuracy
    taken: bool
    failed: tuple[int, ...] = ()


def select(
    layers: Iterable[int],
    evaluate: Evaluate,
    eps: Accuracy = 0.001,
    allowed: Callable[[frozenset[int]], bool] = lambda fork: True,
) -> tuple[Step, ...]:
    """Algorithm 1 as it is printed, line by line; the rounds, the one that ended it included.

    Two things follow from its lines. Of equal accuracies the first in the order of `layers` wins (line 9: >).
    The best so far starts at 0 (line 3), not at the head alone: the first round takes its best block if that
    is more than eps right, even if tuning it does worse than tuning nothing.

    Candidates that are not `allowed` are left out before they are evaluated. Raises InputError for eps below 0.
    """
    if not eps >= 0:
        raise InputError(f"eps is {eps}", "give the accuracy that a block must add, as in 0.001")
    steps: list[Step] = []
    pool, so_far = list(dict.fromkeys(layers)), list[int]()
    accuracy: Accuracy = 0  # not 0.0: fractions stay exact
    for _ in range(len(pool)):
        step = _round(
            [layer for layer in pool if layer not in so_far], so_far, accuracy + eps, evaluate, allowed
        )
        steps.append(step)
        if not step.taken or step.best is None:
            break
        so_far.append(step.best)
        accuracy = step.accuracy
    return tuple(steps)


def _round(
    rest: Sequence[int],
    so_far: Sequence[int],
    to_beat: Accuracy,
    evaluate: Evaluate,
    allowed: Callable[[frozenset[int]], bool],
) -> Step:
    forks = {layer: frozenset({*so_far, layer}) for layer in rest}
    tried = [layer for layer in rest if allowed(forks[layer])]
    accuracies = evaluate([forks[layer] for layer in tried]) if tried else ()
    known = dict(zip(tried, accuracies, strict=True))
    scores = tuple((layer, accuracy) for layer, accuracy in known.items() if accuracy is not None)
    best: int | None = None
    highest: Accuracy = 0
    for layer, accuracy in scores:
        if accuracy > highest:
            best, highest = layer, accuracy
    left_out = tuple(layer for layer in rest if layer not in tried)
    failed = tuple(layer for layer in tried if known[layer] is None)
    return Step(tuple(so_far), scores, left_out, best, highest, highest > to_beat, failed)


def chosen(steps: Sequence[Step]) -> tuple[int, ...]:
    """The blocks that were taken, in their order."""
    return tuple(step.best for step in steps if step.taken and step.best is not None)
