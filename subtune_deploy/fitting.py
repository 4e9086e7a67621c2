"""A model of latency fitted to some results of a run, and held against those that it did not see.

fit = fit_results(base, graphs, results, count=10)     # graphs: what each result's plan asks, `Work` by layer
score_fit(fit, graphs, results)                        # Score(total=0.011, added=0.026, rank=0.992, ...)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .calibrated import Calibrated, Works, uncalibrated
from .errors import InputError
from .results import Result

Vector = npt.NDArray[np.float64]

TO_DEVIATION = 2 * 1.96
"""Of the width of a 95 % interval."""


@dataclass(frozen=True)
class Fit:
    """`learnt`: indices of the results that were fitted, the most telling first; `left`: of all others."""

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


def fit_results(base: Works, graphs: Sequence[Works], results: Sequence[Result], count: int) -> Fit:
    """Learn from the `count` most telling of `results`, whose plans ask `graphs`; `base`: of the backbone alone.

    Raises InputError where there are no more results than that, or one is of no use.
    """
    if not 1 <= count < len(results):
        raise InputError(
            f"{len(results)} results to fit {count} of",
            "give more results, or a smaller --measurements: some are held out",
        )
    _check(results)
    model, learnt, left = uncalibrated(base), [], list(range(len(results)))
    for _ in range(count):
        index = model.most_telling(graphs, left)
        ratio = results[index].ratio
        model = model.learn(graphs[index], ratio.value, (ratio.high - ratio.low) / TO_DEVIATION)
        learnt.append(index)
        left.remove(index)
    return Fit(model, tuple(learnt), tuple(left))


def score_fit(fit: Fit, graphs: Sequence[Works], results: Sequence[Result]) -> Score:
    """How well `fit` predicts what it did not learn from."""
    found = [fit.model.predict(graphs[index]) for index in fit.left]
    return score(
        [each.ratio for each in found],
        [results[index].ratio.value for index in fit.left],
        [each.deviation for each in found],
    )


def score_macs(fit: Fit, base: Works, graphs: Sequence[Works], results: Sequence[Result]) -> Score:
    """How well a line does: added latency in proportion to added multiply-adds, fitted to what `fit` learnt from."""
    alone = sum(work.macs for work in base)
    share = np.array([sum(work.macs for work in graph) / alone - 1 for graph in graphs])
    added = np.array([each.added for each in results])
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


def _check(results: Sequence[Result]) -> None:
    for each in results:
        if not each.ratio.low > 0 or not np.isfinite(each.ratio.high):
            raise InputError(
                f"fork {each.fork} is {each.ratio.value:g} times the base, {each.ratio.low:g} to {each.ratio.high:g}",
                "measure it again: a ratio of two times is above 0",
            )
