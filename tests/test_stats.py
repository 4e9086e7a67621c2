"""Statistics against answers known beforehand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from subtune_deploy.errors import InputError
from subtune_deploy.stats import (
    bootstrap_median,
    median,
    order_statistic_interval,
    paired_ratio,
    percentile,
)


def test_median_and_percentiles() -> None:
    assert median([3.0, 1.0, 2.0]) == 2.0
    assert median([4.0, 1.0, 2.0, 3.0]) == 2.5
    assert percentile([float(i) for i in range(1, 102)], 90) == 91.0


@pytest.mark.parametrize(
    ("count", "ranks"),
    # Conover, Practical Nonparametric Statistics: 95 % intervals of a median from binomial tables.
    [(6, (1, 6)), (10, (2, 9)), (20, (6, 15)), (25, (8, 18)), (50, (18, 33)), (100, (40, 61))],
)
def test_the_order_statistic_interval_is_that_of_the_tables(count: int, ranks: tuple[int, int]) -> None:
    interval = order_statistic_interval([float(i) for i in range(count, 0, -1)])
    assert (interval.low, interval.high) == ranks


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


def holds(rng: np.random.Generator, memory: float) -> bool:
    """Whether the interval of a ratio that is truly 1.2 holds it, under noise that lasts."""
    noise, walk = [], 0.0
    for shock in rng.normal(0, 0.02, 200):
        walk = memory * walk + shock
        noise.append(walk)
    ratio = paired_ratio([1.0] * 200, (1.2 * np.exp(noise)).tolist())
    return ratio.low <= 1.2 <= ratio.high


@pytest.mark.parametrize(("memory", "least"), [(0.0, 0.90), (0.5, 0.82)])
def test_the_interval_of_a_ratio_holds_the_truth_about_as_often_as_it_says(
    memory: float, least: float
) -> None:
    rng = np.random.default_rng(5)
    assert np.mean([holds(rng, memory) for _ in range(80)]) >= least


def test_a_ratio_of_neighbours_ignores_a_disturbance_that_both_meet() -> None:
    slow_host = np.linspace(1.0, 3.0, 60)
    ratio = paired_ratio(slow_host.tolist(), (1.17 * slow_host).tolist())
    assert ratio.value == pytest.approx(1.17)
    assert ratio.half_width < 1e-9


def test_a_single_outlier_does_not_move_a_ratio() -> None:
    base, candidate = [1.0] * 50, [1.1] * 49 + [50.0]
    assert paired_ratio(base, candidate).value == pytest.approx(1.1)


@pytest.mark.parametrize("samples", [[], [1.0, math.nan], [1.0, 0.0], [1.0, -2.0], [math.inf]])
def test_samples_that_cannot_be_latencies_are_refused(samples: list[float]) -> None:
    for function in (median, bootstrap_median, order_statistic_interval):
        with pytest.raises(InputError, match="positive and finite"):
            function(samples)


def test_unpaired_samples_are_refused() -> None:
    with pytest.raises(InputError, match="3 samples cannot be paired with 2"):
        paired_ratio([1.0] * 3, [1.0] * 2)
