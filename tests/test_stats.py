"""Statistics against answers known beforehand, against scipy, and against simulated measurements."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats as scipy_stats
from scipy.signal import lfilter

from subtune_deploy.errors import InputError
from subtune_deploy.stats import (
    RESAMPLES,
    Interval,
    bootstrap_median,
    mean_interval,
    median,
    medians,
    order_statistic_interval,
    paired_ratio,
    percentile,
    quotient,
    share_interval,
)

SKEWED = np.random.default_rng(3).lognormal(-4, 0.3, 301).tolist()
"""Like latencies: positive, with a long tail to the right."""


def test_median_and_percentiles() -> None:
    assert median([3.0, 1.0, 2.0]) == 2.0
    assert median([4.0, 1.0, 2.0, 3.0]) == 2.5
    assert percentile([float(i) for i in range(1, 102)], 90) == 91.0


@pytest.mark.parametrize("percent", [0, 5, 50, 90, 95, 99, 100])
def test_percentiles_are_those_of_numpy_and_scipy(percent: float) -> None:
    found = percentile(SKEWED, percent)
    assert found == np.percentile(SKEWED, percent)
    assert found == pytest.approx(scipy_stats.scoreatpercentile(SKEWED, percent))


# One engine: the interval of a median


@pytest.mark.parametrize(
    ("count", "ranks"),
    # Conover, Practical Nonparametric Statistics: 95 % intervals of a median from binomial tables.
    [(6, (1, 6)), (10, (2, 9)), (20, (6, 15)), (25, (8, 18)), (50, (18, 33)), (100, (40, 61))],
)
def test_the_order_statistic_interval_is_that_of_the_tables(count: int, ranks: tuple[int, int]) -> None:
    interval = order_statistic_interval([float(i) for i in range(count, 0, -1)])
    assert (interval.low, interval.high) == ranks


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
@pytest.mark.parametrize("count", [8, 9, 17, 64, 301, 3000])
def test_the_order_statistic_interval_is_that_of_scipy(count: int, confidence: float) -> None:
    samples = np.random.default_rng(count).lognormal(-4, 0.3, count)
    interval = order_statistic_interval(samples.tolist(), confidence=confidence)
    theirs = scipy_stats.quantile_test(samples, p=0.5).confidence_interval(confidence)
    assert (interval.low, interval.high) == (theirs.low, theirs.high)
    low, high = (int(np.searchsorted(np.sort(samples), end)) for end in (interval.low, interval.high))
    below = scipy_stats.binom(count, 0.5)  # the number of samples below the true median
    assert below.cdf(high) - below.cdf(low) >= confidence > below.cdf(high - 1) - below.cdf(low + 1)


def test_too_few_samples_bound_nothing() -> None:
    interval = order_statistic_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (interval.low, interval.high) == (0.0, math.inf)
    assert interval.half_width == math.inf


def test_a_great_many_samples_are_no_trouble() -> None:
    interval = order_statistic_interval(np.linspace(1.0, 2.0, 100_001).tolist())
    assert interval.value == pytest.approx(1.5)
    assert interval.half_width == pytest.approx(1.96 / 2 / math.sqrt(100_000) / 1.5, rel=0.02)


def test_the_bootstrap_of_equal_samples_has_no_width() -> None:
    interval = bootstrap_median([0.25] * 40)
    assert (interval.value, interval.low, interval.high) == (0.25, 0.25, 0.25)
    assert interval.half_width == 0


def test_the_bootstrap_is_reproducible_and_agrees_with_theory() -> None:
    samples = np.random.default_rng(1).normal(10, 1, 400).tolist()
    interval = bootstrap_median(samples)
    assert interval == bootstrap_median(samples)
    assert interval != bootstrap_median(samples, seed=1)
    # A normal median's standard error is 1.2533 sigma / sqrt(n).
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * 1.2533 / 20, rel=0.3)


@pytest.mark.parametrize("confidence", [0.8, 0.95])
@pytest.mark.parametrize("count", [25, 301])
def test_the_bootstrap_is_that_of_scipy_within_the_error_of_its_draws(count: int, confidence: float) -> None:
    samples = SKEWED[:count]
    ours = bootstrap_median(samples, confidence=confidence)
    theirs = scipy_stats.bootstrap(
        (samples,),
        np.median,
        method="percentile",
        n_resamples=50_000,
        batch=2000,
        confidence_level=confidence,
        rng=np.random.default_rng(0),
    )
    for mine, other in zip((ours.low, ours.high), theirs.confidence_interval, strict=True):
        # A resampled median is a sample or the middle of two, so an end may miss by a step besides.
        near = np.sort(samples)[np.argsort(abs(np.sort(samples) - other))[:3]]
        assert mine == pytest.approx(other, abs=4 * draw_error(theirs, confidence) + np.ptp(near))


def draw_error(found: object, confidence: float) -> float:
    """Standard error of an end of the interval because only so many medians were drawn (normal theory)."""
    tail = (1 - confidence) / 2
    density = scipy_stats.norm.pdf(scipy_stats.norm.ppf(tail))
    return math.sqrt(tail * (1 - tail) / RESAMPLES) / density * found.standard_error


def test_runs_of_neighbours_give_a_series_with_memory_the_wider_interval_that_it_needs() -> None:
    series = np.exp(with_memory(np.random.default_rng(0), 0.05, 2000, memory=0.9)).tolist()
    alone, runs = bootstrap_median(series), bootstrap_median(series, block=50)
    # Theory for a mean: wider by sqrt((1 + 0.9) / (1 - 0.9)) = 4.4; a median is near it.
    assert 2.5 < runs.half_width / alone.half_width < 5.5


def test_medians_are_of_equal_runs_one_after_the_other() -> None:
    samples = [1.0, 2.0, 6.0, 6.0, 3.0, 4.0]
    assert medians(samples, 1) == [median(samples)] == [3.5]
    assert medians(samples, 2) == [2.0, 4.0]
    assert medians(samples, 3) == [1.5, 6.0, 3.5]
    assert medians(samples, 6) == samples
    with pytest.raises(InputError, match="7 samples are not 3 equal runs"):
        medians([1.0] * 7, 3)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 9, 10, 11, 30])
def test_the_interval_of_a_mean_is_students(count: int) -> None:
    values = np.random.default_rng(count).normal(10, 1, count)
    low, high = scipy_stats.t.interval(0.95, count - 1, loc=values.mean(), scale=scipy_stats.sem(values))
    found = mean_interval(values.tolist())
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(high - low, rel=0.003)


def test_one_value_has_no_interval() -> None:
    with pytest.raises(InputError, match="1 values have no interval"):
        mean_interval([0.9])


def test_of_what_is_no_number_there_is_no_mean_but_of_zero_there_is() -> None:
    with pytest.raises(InputError, match="have no interval"):
        mean_interval([0.1, float("nan")])
    assert mean_interval([0.0, 0.1, 0.2]).value == pytest.approx(0.1)


@pytest.mark.parametrize("right, count", [(0, 50), (50, 50), (1, 50), (450, 500), (1, 1)])
def test_the_interval_of_a_share_is_wilsons(right: int, count: int) -> None:
    expected = scipy_stats.binomtest(right, count).proportion_ci(method="wilson")
    found = share_interval(right / count, count)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-4)
    assert found.low <= found.value <= found.high
    assert found.high > found.low


# Two engines: the ratio of neighbours


def test_which_ran_first_cancels_within_two_rounds() -> None:
    """A B, B A: whoever runs second takes 5 % less."""
    base, candidate = [1.0, 0.95] * 20, [1.2 * 0.95, 1.2] * 20
    ratio = paired_ratio(base, candidate)
    assert (ratio.low, ratio.value, ratio.high) == pytest.approx((1.2,) * 3, rel=1e-12)
    assert abs(np.median(np.divide(candidate, base)) - 1.2) > 0.001  # what it would be round by round


def test_an_odd_last_round_is_left_out() -> None:
    base, candidate = [1.0] * 10, [1.2, 1.3] * 5
    assert paired_ratio([*base, 1.0], [*candidate, 9.0]) == paired_ratio(base, candidate)
    assert paired_ratio(base, candidate).value == pytest.approx(math.sqrt(1.2 * 1.3))


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_a_single_quadruple_is_a_ratio_without_an_interval(rounds: int) -> None:
    ratio = paired_ratio([0.5] * rounds, [0.6] * rounds)
    assert (ratio.low, ratio.value, ratio.high) == pytest.approx((1.2,) * 3)


def test_a_ratio_of_neighbours_ignores_a_disturbance_that_both_meet() -> None:
    slow_host = np.linspace(1.0, 3.0, 60)
    ratio = paired_ratio(slow_host.tolist(), (1.17 * slow_host).tolist())
    assert ratio.value == pytest.approx(1.17)
    assert ratio.half_width < 1e-9


def test_a_single_outlier_does_not_move_a_ratio() -> None:
    base, candidate = [1.0] * 50, [1.1] * 49 + [50.0]
    assert paired_ratio(base, candidate).value == pytest.approx(1.1)


@pytest.mark.parametrize("rounds", [12, 13, 40, 200])
def test_the_interval_of_a_ratio_holds_that_of_order_statistics_and_is_little_wider(rounds: int) -> None:
    candidate = np.random.default_rng(rounds).lognormal(0, 0.05, rounds)
    pairs = candidate[: rounds // 2 * 2].reshape(-1, 2)
    exact = order_statistic_interval(np.sqrt(pairs.prod(axis=1)).tolist())
    ratio = paired_ratio([1.0] * rounds, candidate.tolist())
    assert ratio.low <= exact.low * (1 + 1e-12)
    assert exact.high <= ratio.high * (1 + 1e-12)
    assert ratio.half_width < 2.5 * exact.half_width


def with_memory(rng: np.random.Generator, spread: float, count: int, *, memory: float) -> np.ndarray:
    """An AR(1) series of that standard deviation from its first value on."""
    shocks = rng.normal(0, spread * math.sqrt(1 - memory**2), count)
    shocks[0] = rng.normal(0, spread)
    return lfilter([1], [1, -memory], shocks)


def independent(rng: np.random.Generator, rounds: int) -> np.ndarray:
    return rng.normal(0, 0.05, rounds)


def lasting(rng: np.random.Generator, rounds: int) -> np.ndarray:
    return with_memory(rng, 0.05, rounds, memory=0.5)


Noise = Callable[[np.random.Generator, int], np.ndarray]


def simulated(rng: np.random.Generator, rounds: int, truth: float, noise: Noise) -> tuple[list[float], ...]:
    """Two engines on a host that both meet, which wanders by 20 %, each with noise of its own."""
    host = with_memory(rng, 0.2, rounds, memory=0.99)
    return tuple((scale * np.exp(host + noise(rng, rounds))).tolist() for scale in (0.02, 0.02 * truth))


@pytest.mark.parametrize("noise", [independent, lasting])
@pytest.mark.parametrize("rounds", [20, 100])
def test_an_engine_against_itself_is_seldom_found_to_differ(rounds: int, noise: Noise) -> None:
    """Were 5 % of all intervals wrong, 1,000 would hold more than 67 wrong ones for one seed in a hundred.

    A plain block bootstrap is wrong 8 % of the time at 100 rounds and 14 % at 20.
    """
    rng, series = np.random.default_rng(11), 1000
    found = [paired_ratio(*simulated(rng, rounds, 1.0, noise)) for _ in range(series)]
    wrong = sum(not ratio.low <= 1 <= ratio.high for ratio in found)
    assert wrong <= scipy_stats.binom.ppf(0.99, series, 0.05) == 67


def test_a_slow_down_of_two_percent_is_found_in_noise_of_two_percent() -> None:
    rng = np.random.default_rng(12)
    found = [
        paired_ratio(*simulated(rng, 100, 1.02, lambda rng, n: rng.normal(0, 0.02, n))) for _ in range(100)
    ]
    assert np.mean([ratio.low > 1 for ratio in found]) > 0.95
    assert np.mean([ratio.low <= 1.02 <= ratio.high for ratio in found]) >= 0.9
    assert np.median([ratio.value for ratio in found]) == pytest.approx(1.02, abs=0.002)


# Two measurements apart


def test_a_quotient_of_equal_intervals_widens_by_the_root_of_two() -> None:
    one = Interval(0.02, 0.02 / 1.01, 0.02 * 1.01)
    ratio = quotient(one, Interval(0.03, 0.03 / 1.01, 0.03 * 1.01))
    assert ratio.value == pytest.approx(1.5)
    assert (ratio.low, ratio.high) == pytest.approx((1.5 * 1.01 ** -math.sqrt(2), 1.5 * 1.01 ** math.sqrt(2)))
    assert quotient(one, one).value == 1


def test_a_quotient_takes_from_each_interval_the_side_that_matters() -> None:
    exact = Interval(1.0, 1.0, 1.0)
    above = quotient(exact, Interval(2.0, 1.9, 2.5))
    assert (above.value, above.low, above.high) == pytest.approx((2.0, 1.9, 2.5))
    below = quotient(Interval(2.0, 1.9, 2.5), exact)
    assert (below.value, below.low, below.high) == pytest.approx((1 / 2.0, 1 / 2.5, 1 / 1.9))


def test_a_quotient_with_what_is_unbounded_is_unbounded() -> None:
    ratio = quotient(Interval(1.0, 0.0, math.inf), Interval(2.0, 1.9, 2.1))
    assert (ratio.value, ratio.low, ratio.high) == (pytest.approx(2.0), 0.0, math.inf)


def test_a_quotient_holds_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(13)
    wrong = 0
    for _ in range(300):
        first, second = (order_statistic_interval(rng.lognormal(0, 0.1, 100) * s) for s in (1.0, 1.1))
        ratio = quotient(first, second)
        wrong += not ratio.low <= 1.1 <= ratio.high
    assert wrong <= scipy_stats.binom.ppf(0.99, 300, 0.05)


# What is refused


@pytest.mark.parametrize("samples", [[], [1.0, math.nan], [1.0, 0.0], [1.0, -2.0], [math.inf]])
def test_samples_that_cannot_be_latencies_are_refused(samples: list[float]) -> None:
    for function in (median, bootstrap_median, order_statistic_interval):
        with pytest.raises(InputError, match="positive and finite"):
            function(samples)


def test_unpaired_samples_are_refused() -> None:
    with pytest.raises(InputError, match="3 samples cannot be paired with 2"):
        paired_ratio([1.0] * 3, [1.0] * 2)
