"""What samples of latency say: medians, intervals, paired ratios. Pure functions of arrays of seconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from .errors import InputError

CONFIDENCE = 0.95
NORMAL = 1.96
"""Standard deviations in half a 95 % interval."""
RESAMPLES = 1000
STUDENT = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060)
"""Half a 95 % interval in standard errors, from one degree of freedom on."""
CHUNK = 1 << 16
"""Values that are resampled at once: few enough for the cache, also of a long series."""


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
    """Candidate / base from neighbours in time; 1.17 means 17 % slower."""


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
    rows = max(1, CHUNK // len(values))
    counts = (min(rows, RESAMPLES - done) for done in range(0, RESAMPLES, rows))
    medians = np.concatenate([np.median(_resample(values, count, block, rng), axis=1) for count in counts])
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
    """How many times longer the candidate took: median over quadruples, with its 95 % interval.

    Samples are of rounds that alternate in order (base first, candidate first, ...). A quadruple is two rounds
    and the geometric mean of their two ratios: which engine ran first cancels out. An odd last round is left out.
    The interval holds two others. One is a bootstrap of runs of about n^(1/3) quadruples, since disturbances
    outlast a sample; few runs make it too narrow, which is corrected. The other is that of order statistics. One
    alone misses the truth too often where quadruples are few, or depend on each other. Up to three rounds are one
    quadruple, whose interval has no width.
    """
    quadruples = _quadruples(base, candidate)
    block = round(len(quadruples) ** (1 / 3))
    found = bootstrap_median(quadruples, block=block, seed=seed)
    wider = _stretch(len(quadruples) / block)
    low, high = ((end / found.value) ** wider * found.value for end in (found.low, found.high))
    exact = order_statistic_interval(quadruples)
    if exact.high < math.inf:
        low, high = min(low, exact.low), max(high, exact.high)
    return Ratio(found.value, low, high)


def ratio_over_loads(base: Sequence[float], candidate: Sequence[float], loads: Sequence[int]) -> Ratio:
    """The same where both engines were loaded anew now and then; `loads`: rounds of each load, in order.

    What is loaded once keeps its place in memory, and samples of it resemble each other more than those of two loads
    (Kalibera and Jones 2013): a load is one observation. The median of theirs, with the interval of order statistics;
    of six it is from the least to the greatest. Without `loads`, or with one, as `paired_ratio`.
    """
    if len(loads) < 2:
        return paired_ratio(base, candidate)
    ratios = [median(_quadruples(base[part], candidate[part])) for part in _parts(loads)]
    found = order_statistic_interval(ratios)
    return Ratio(found.value, found.low, found.high)


def median_over_loads(samples: Sequence[float], loads: Sequence[int]) -> Interval:
    """The median of the loads' medians, with its interval; of one load, or without `loads`, of the samples."""
    parts = [median(samples[part]) for part in _parts(loads)] if len(loads) > 1 else samples
    return order_statistic_interval(parts)


def _parts(loads: Sequence[int]) -> list[slice]:
    return [slice(end - rounds, end) for rounds, end in zip(loads, accumulate(loads), strict=True)]


def medians(samples: Sequence[float], repeats: int) -> list[float]:
    """The samples in `repeats` equal runs, one after the other: the median of each."""
    values = _checked(samples)
    if len(values) % repeats:
        raise InputError(f"{len(values)} samples are not {repeats} equal runs", "measure again")
    return [float(each) for each in np.median(values.reshape(repeats, -1), axis=1)]


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean of at least two values with Student's 95 % interval.

    Its quantile from a table, and from nine degrees of freedom on by the expansion of Cornish and Fisher, which is
    within 0.2 % there. Raises InputError for fewer than two, or where one is not finite.
    """
    found, degrees = np.asarray(values, dtype=np.float64), len(values) - 1
    if degrees < 1 or not np.isfinite(found).all():
        raise InputError(f"{len(values)} values have no interval", "give two finite numbers or more")
    t = STUDENT[degrees - 1] if degrees <= len(STUDENT) else _student(degrees)
    middle, half = float(found.mean()), t * float(found.std(ddof=1)) / math.sqrt(len(found))
    return Interval(middle, middle - half, middle + half)


def share_interval(share: float, count: int) -> Interval:
    """A share 0..1 of `count`, with Wilson's 95 % interval (1927), which also of none or all of them has a width."""
    more = NORMAL**2 / count
    middle = (share + more / 2) / (1 + more)
    half = NORMAL / (1 + more) * math.sqrt((share * (1 - share) + more / 4) / count)
    return Interval(share, max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half)))


def _student(degrees: int, z: float = 1.959964) -> float:
    """Cornish and Fisher's expansion around the normal quantile `z`."""
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)


def quotient(first: Interval, second: Interval) -> Ratio:
    """`second` over `first`, two independent estimates, with an interval from theirs.

    On logarithms, by the method of variance estimates recovery (Zou and Donner 2008): neither interval need
    be symmetric. It knows nothing of what changed between the two moments of measuring.
    """
    (a, a_low, a_high), (b, b_low, b_high) = (
        [
            math.log(x) if 0 < x < math.inf else math.copysign(math.inf, x - 1)
            for x in (i.value, i.low, i.high)
        ]
        for i in (first, second)
    )
    below, above = math.hypot(b - b_low, a_high - a), math.hypot(b_high - b, a - a_low)
    return Ratio(math.exp(b - a), math.exp(b - a - below), math.exp(b - a + above))


def _quadruples(base: Sequence[float], candidate: Sequence[float]) -> list[float]:
    """Ratios of two rounds each, or of the only one."""
    if len(base) != len(candidate):
        raise InputError(
            f"{len(base)} samples cannot be paired with {len(candidate)}", "measure both in one run"
        )
    logs = np.log(_checked(candidate)) - np.log(_checked(base))
    even = len(logs) // 2 * 2
    return [float(q) for q in np.exp((logs[0:even:2] + logs[1:even:2]) / 2 if even else logs)]


def _resample(
    values: npt.NDArray[np.float64], rows: int, block: int, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """So many rows, each as long as `values` and put together from runs of it."""
    starts = rng.integers(0, len(values), size=(rows, -(-len(values) // block), 1))
    places = ((starts + np.arange(block)) % len(values)).reshape(rows, -1)
    return np.asarray(values[places[:, : len(values)]])


def _stretch(blocks: float) -> float:
    """By how much the percentile bootstrap's 95 % interval of so few blocks is too narrow.

    Student's t over the normal quantile, times sqrt(b / (b - 1)) (Hesterberg 2015, "What teachers should know
    about the bootstrap"), written as a fraction that is within 3 % of it from five blocks on.
    """
    few = max(blocks, 2.0)
    return few / (few - 1.75)


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
