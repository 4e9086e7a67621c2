"""What samples of latency say: medians, intervals, paired ratios. Pure functions of arrays of seconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .errors import InputError

CONFIDENCE = 0.95
RESAMPLES = 1000


@dataclass(frozen=True)
class Interval:
    """A median and the interval that holds the true one with the confidence asked for."""

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half the interval relative to the value: 0.01 is "within 1 %"."""
        return (self.high - self.low) / 2 / self.value


@dataclass(frozen=True)
class Ratio(Interval):
    """Median of candidate / base over neighbours in time; 1.17 means 17 % slower."""


def median(samples: Sequence[float]) -> float:
    """The middle of the samples, or the mean of the two middle ones."""
    return float(np.median(_checked(samples)))


def percentile(samples: Sequence[float], percent: float) -> float:
    """The value below which `percent` % of the samples lie, between neighbours linearly."""
    return float(np.percentile(_checked(samples), percent))


def bootstrap_median(
    samples: Sequence[float], *, confidence: float = CONFIDENCE, block: int = 1, seed: int = 0
) -> Interval:
    """Median with its percentile-bootstrap interval (1,000 resamples).

    `block` > 1 draws runs of neighbours instead of single samples (circular block bootstrap, Politis and
    Romano 1992), for series whose neighbours resemble each other.
    """
    values = _checked(samples)
    rng = np.random.default_rng(seed)
    medians = [float(np.median(_resample(values, block, rng))) for _ in range(RESAMPLES)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(medians, [tail, 1 - tail])
    return Interval(float(np.median(values)), float(low), float(high))


def order_statistic_interval(samples: Sequence[float], *, confidence: float = CONFIDENCE) -> Interval:
    """Median with the interval between two samples, free of any assumption but independence.

    The number of samples below the true median is binomial (n, 1/2). With too few samples for the confidence
    (fewer than six for 95 %) the interval is unbounded: 0 to infinity.
    """
    values = np.sort(_checked(samples))
    below = _ranks_below(len(values), (1 - confidence) / 2)
    if below == 0:
        return Interval(float(np.median(values)), 0.0, math.inf)
    return Interval(float(np.median(values)), float(values[below - 1]), float(values[-below]))


def paired_ratio(base: Sequence[float], candidate: Sequence[float], *, seed: int = 0) -> Ratio:
    """Median of candidate[i] / base[i], taken one after the other, with a 95 % bootstrap interval.

    Disturbances outlast a sample, so runs of about n^(1/3) neighbours are resampled.
    """
    if len(base) != len(candidate):
        raise InputError(
            f"{len(base)} samples cannot be paired with {len(candidate)}", "measure both in one run"
        )
    ratios = (_checked(candidate) / _checked(base)).tolist()
    found = bootstrap_median(ratios, block=round(len(ratios) ** (1 / 3)), seed=seed)
    return Ratio(found.value, found.low, found.high)


def _resample(
    values: npt.NDArray[np.float64], block: int, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    starts = rng.integers(0, len(values), size=-(-len(values) // block))
    places = (starts[:, None] + np.arange(block)) % len(values)
    return np.asarray(values[places.ravel()[: len(values)]])


def _ranks_below(count: int, tail: float) -> int:
    """The largest k with P(Binomial(count, 1/2) < k) <= tail."""
    steps = np.log(np.arange(count, 0, -1) / np.arange(1, count + 1))
    mass = np.exp(np.concatenate([[0.0], np.cumsum(steps)]) - count * math.log(2))
    return int(np.searchsorted(np.cumsum(mass), tail, side="right"))


def _checked(samples: Sequence[float]) -> npt.NDArray[np.float64]:
    values = np.asarray(samples, dtype=np.float64)
    if values.ndim != 1 or not len(values) or not (np.isfinite(values).all() and (values > 0).all()):
        raise InputError("samples must be positive and finite, and at least one", "measure again, for longer")
    return values
