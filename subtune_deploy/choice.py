"""The fork to deploy: accuracies of a profile, latencies measured or predicted, and what must be measured to be sure.

choice = decide(profile, timed, predictor.added, measure, max_added=0.10)
choice.chosen.fork, choice.confirmed               # "13-14", and what had to be measured for that
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .latency_model import Anchor, Predict
from .pareto import Point, choose, likely, undecided
from .spec import Pruning
from .tradeoff import join
from .tuning.documents import Profile


@dataclass(frozen=True)
class Choice:
    """`lacking`: forks of the profile without a latency. `confirmed`: what had to be measured first, in order.

    `left`: the fork that was to be measured next when no more was allowed, None where that did not happen.
    """

    points: tuple[Point, ...]
    chosen: Point
    lacking: tuple[str, ...]
    confirmed: tuple[Anchor, ...] = ()
    left: str | None = None


Measure = Callable[[tuple[int, ...], Pruning | None], tuple[Anchor, Predict]]
"""Of a fork: what it takes, and what is predicted of all others now that this is known."""


def decide(
    profile: Profile,
    measured: Sequence[Anchor],
    predict: Predict | None = None,
    measure: Measure | None = None,
    *,
    max_added: float | None = None,
    min_accuracy: float | None = None,
    most: int = sys.maxsize,
) -> Choice:
    """As `pareto.choose` chooses. With `measure`, predicted forks that could change the choice are measured first, as
    many as `most`, and beyond that what is chosen.

    Raises what `choose`, `join` and `measure` do.
    """
    limits = {"max_added": max_added, "min_accuracy": min_accuracy}
    rows = {row.fork: (row.layers, row.prune) for row in profile.rows}
    known, confirmed, left = list(measured), list[Anchor](), None
    points, lacking = join(profile, known, predict)
    while measure is not None and (point := undecided(points, **limits)) is not None:
        if len(confirmed) >= most:
            left, point = point.fork, likely(points, **limits)
            if not point.predicted:
                break
        found, predict = measure(*rows[point.fork])
        known.append(found)
        confirmed.append(found)
        points, lacking = join(profile, known, predict)
    else:
        left = None
    return Choice(tuple(points), choose(points, **limits), lacking, tuple(confirmed), left)
