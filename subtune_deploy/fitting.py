"""A model of latency fitted to some measurements, and held against those that it did not see.

fit = fit_results(base, graphs, anchors, count=10)     # graphs: what each one's plan asks, `Work` by layer
score_fit(fit, graphs, anchors)                        # Score(total=0.011, added=0.026, rank=0.992, ...)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
import numpy.typing as npt

from .calibrated import SPREAD, Calibrated, Works, uncalibrated
from .errors import InputError
from .latency_model import Anchor, check_ratio
from .stats import NORMAL, Ratio

Vector = npt.NDArray[np.float64]
SPREADS = {SPREAD * 2**step: -float(step) for step in range(4)}
"""By how much a ratio may differ from one build and hour to the next, and the log of how likely that is beforehand:
from a quiet machine on, each doubling a third as likely as the one before."""


@dataclass(frozen=True)
class Fit:
    """`learnt`: indices of the measurements that were fitted, the most telling first; `left`: of all others."""

    model: Calibrated
    learnt: tuple[int, ...]
    left: tuple[int, ...]


@dataclass(frozen=True)
class Score:
    """Predictions of `count` graphs against what was measured.

    `total`: mean error of the latency, relative to it. `added`: median error of added latency, relative to it; `rank`:
    Spearman's correlation. `within`: share of measurements that are at most two deviations off, where known.
    """

    count: int
    total: float
    added: float
    rank: float
    within: float | None = None


def fit_results(base: Works, graphs: Sequence[Works], anchors: Sequence[Anchor], count: int) -> Fit:
    """Learn from the `count` most telling of `anchors`, whose plans ask `graphs`; `base`: of the backbone alone.

    Raises InputError where there are no more than that, or one is of no use.
    """
    if not 1 <= count < len(anchors):
        raise InputError(
            f"{len(anchors)} results to fit {count} of",
            "give more results, or a smaller --measurements: some are held out",
        )
    for each in anchors:
        check_ratio(str(each), each.ratio)
    model, learnt = learn_most_telling(base, graphs, count, lambda index: anchors[index].ratio)
    return Fit(model, learnt, tuple(index for index in range(len(anchors)) if index not in learnt))


def learn_most_telling(
    base: Works, graphs: Sequence[Works], count: int, measured: Callable[[int], Ratio | None]
) -> tuple[Calibrated, tuple[int, ...]]:
    """Learn from up to `count` of `graphs`, each time from the one that leaves least doubt about all of them.

    `measured`: the ratio of the graph with this index, or None where it cannot be had: another one is taken then.
    Returns the model and the indices that it learnt from, in their order.
    """
    model, learnt, left = uncalibrated(base), dict[int, Ratio](), list(range(len(graphs)))
    while left and len(learnt) < count:
        index = model.most_telling(graphs, left)
        left.remove(index)
        if (ratio := measured(index)) is not None:
            model = _learn(model, graphs[index], ratio)
            learnt[index] = ratio
    return fit(base, [(graphs[index], ratio) for index, ratio in learnt.items()]), tuple(learnt)


def fit(base: Works, seen: Sequence[tuple[Works, Ratio]]) -> Calibrated:
    """A model that has learnt all measurements `seen`, with the spread of `SPREADS` that is likeliest after them.

    On a machine that others share, a graph can take more at one time than at another, and other graphs do not explain
    it: then predictions are given with that doubt, and what was measured counts for less.
    """
    start = uncalibrated(base)
    tried = [
        reduce(lambda known, each: _learn(known, *each), seen, replace(start, spread=s)) for s in SPREADS
    ]
    return max(tried, key=lambda model: model.evidence + SPREADS[model.spread])


def _learn(model: Calibrated, works: Works, ratio: Ratio) -> Calibrated:
    return model.learn(works, ratio.value, (ratio.high - ratio.low) / (2 * NORMAL))


def score_fit(fit: Fit, graphs: Sequence[Works], anchors: Sequence[Anchor]) -> Score:
    """How well `fit` predicts what it did not learn from."""
    found = [fit.model.predict(graphs[index]) for index in fit.left]
    return score(
        [each.ratio for each in found],
        [anchors[index].ratio.value for index in fit.left],
        [each.deviation for each in found],
    )


def score_macs(fit: Fit, base: Works, graphs: Sequence[Works], anchors: Sequence[Anchor]) -> Score:
    """How well a line does: added latency in proportion to added multiply-adds, fitted to what `fit` learnt from."""
    alone = sum(work.macs for work in base)
    share = np.array([sum(work.macs for work in graph) / alone - 1 for graph in graphs])
    added = np.array([each.ratio.value - 1 for each in anchors])
    learnt, left = list(fit.learnt), list(fit.left)
    slope = float(share[learnt] @ added[learnt] / (share[learnt] @ share[learnt]))
    return score(list(1 + slope * share[left]), list(1 + added[left]))


def score(predicted: Sequence[float], measured: Sequence[float], deviations: Sequence[float] = ()) -> Score:
    """Predictions against measurements, both ratios to the base. Raises InputError for none, or unequal counts."""
    if len(predicted) != len(measured) or not measured:
        raise InputError(f"{len(predicted)} predictions of {len(measured)} measurements", "give one for each")
    mine, true = np.array(predicted), np.array(measured)
    off, added = np.abs(mine - true), np.abs(true - 1)
    relative = np.divide(off, added, out=np.where(off > 0, np.inf, 0.0), where=added > 0)
    return Score(
        len(true),
        float((off / true).mean()),
        float(np.median(relative)),
        _rank_correlation(mine, true),
        float((off <= 2 * np.array(deviations)).mean()) if len(deviations) else None,
    )


def _rank_correlation(one: Vector, other: Vector) -> float:
    """Spearman's; NaN where all of one are equal."""
    if len(np.unique(one)) < 2 or len(np.unique(other)) < 2:
        return float("nan")
    return float(np.corrcoef(_ranks(one), _ranks(other))[0, 1])


def _ranks(values: Vector) -> Vector:
    """From 0; equals share the mean of theirs."""
    below, upto = (np.searchsorted(np.sort(values), values, side) for side in ("left", "right"))
    return np.asarray((below + upto - 1) / 2)
