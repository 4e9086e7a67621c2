"""Fits and their scores, against SciPy and by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import multivariate_normal, spearmanr
from test_work import fork, works
from tiny_results import result

from subtune_deploy.calibrated import SPREAD, uncalibrated
from subtune_deploy.errors import InputError
from subtune_deploy.fitting import (
    SPREADS,
    Score,
    fit,
    fit_results,
    learn_most_telling,
    score,
    score_fit,
    score_macs,
)
from subtune_deploy.latency_model import anchor
from subtune_deploy.stats import Ratio

BASE = list(works({}).values())
FORKS = [(1,), (2,), (3,), (4,), (5,), (6,), (2, 3), (1, 6)]
GRAPHS = [list(works(fork("t", *blocks)).values()) for blocks in FORKS]
RESULTS = [
    anchor(result(sum(w.macs for w in graph) / 610 - 1, layers=blocks))
    for blocks, graph in zip(FORKS, GRAPHS, strict=True)
]
"""A machine whose latency is its multiply-adds."""


def test_a_score_by_hand() -> None:
    found = score([1.1, 1.4, 2.0], [1.2, 1.3, 2.0], [0.1, 0.04, 0.1])
    assert found.count == 3
    assert found.total == pytest.approx((0.1 / 1.2 + 0.1 / 1.3) / 3)
    assert found.added == pytest.approx(0.1 / 0.3)  # of 0.5, 0.33 and 0
    assert found.rank == 1
    assert found.within == pytest.approx(2 / 3)


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=3, max_size=9))
def test_the_rank_correlation_is_that_of_scipy(pairs: list[tuple[int, int]]) -> None:
    one, two = (list(map(float, each)) for each in zip(*pairs, strict=True))
    if len(set(one)) > 1 and len(set(two)) > 1:
        assert score(one, two).rank == pytest.approx(spearmanr(one, two).statistic)


def test_what_was_learnt_is_not_scored_and_the_rest_is_predicted() -> None:
    fit = fit_results(BASE, GRAPHS, RESULTS, 4)
    assert sorted((*fit.learnt, *fit.left)) == list(range(len(RESULTS)))
    assert len(fit.learnt) == 4
    found = score_fit(fit, GRAPHS, RESULTS)
    assert found.count == 4
    assert found.total < 0.02
    assert found.within is not None
    assert found.within > 0.9


def test_a_line_of_multiply_adds_is_exact_on_such_a_machine_and_wrong_on_another() -> None:
    fit = fit_results(BASE, GRAPHS, RESULTS, 4)
    assert score_macs(fit, BASE, GRAPHS, RESULTS) == Score(
        4, pytest.approx(0), pytest.approx(0), pytest.approx(1)
    )
    constant = [replace(each, ratio=Ratio(1.2 + 0.01 * i, 1.19, 1.3)) for i, each in enumerate(RESULTS)]
    assert score_macs(fit, BASE, GRAPHS, constant).added > 0.1


@pytest.mark.parametrize("count", [0, 8, 9])
def test_some_results_are_held_out(count: int) -> None:
    with pytest.raises(InputError, match=f"8 results to fit {count} of"):
        fit_results(BASE, GRAPHS, RESULTS, count)


@pytest.mark.parametrize("ratio", [Ratio(float("nan"), float("nan"), float("nan")), Ratio(-0.5, -1.0, 0.5)])
def test_a_ratio_that_cannot_be_is_refused(ratio: Ratio) -> None:
    with pytest.raises(InputError, match="fork 1 is"):
        fit_results(BASE, GRAPHS, [replace(RESULTS[0], ratio=ratio), *RESULTS[1:]], 4)


def test_unequal_counts_are_refused() -> None:
    with pytest.raises(InputError, match="2 predictions of 1"):
        score([1.0, 2.0], [1.0])
    with pytest.raises(InputError):
        score([], [])


def test_one_prediction_has_no_rank_and_equal_ones_neither() -> None:
    assert np.isnan(score([1.1], [1.2]).rank)
    assert np.isnan(score([1.1, 1.1], [1.2, 1.3]).rank)


def test_an_added_latency_of_nothing_is_missed_by_far_or_not_at_all() -> None:
    assert score([1.0], [1.0]).added == 0
    assert score([1.1], [1.0]).added == np.inf


def test_a_measurement_that_cannot_be_had_is_replaced_by_the_next_most_telling() -> None:
    asked = list[int]()

    def measured(index: int) -> Ratio | None:
        asked.append(index)
        return None if len(asked) == 1 else RESULTS[index].ratio

    _, learnt = learn_most_telling(BASE, GRAPHS, 3, measured)
    assert learnt == tuple(asked[1:])
    assert len(learnt) == 3
    _, learnt = learn_most_telling(BASE, GRAPHS, 3, lambda index: None)
    assert learnt == ()


@pytest.mark.parametrize(("noise", "expected"), [(0.0, SPREAD), (0.005, SPREAD), (0.06, 4 * SPREAD)])
def test_by_how_much_builds_differ_is_told_by_the_measurements(noise: float, expected: float) -> None:
    """Of a machine whose latency is its multiply-adds, but for a noise that no interval tells: the most frequent."""
    rng, found = np.random.default_rng(0), list[float]()
    for _ in range(20):
        true = [each.ratio.value * rng.lognormal(0, noise) for each in RESULTS]
        seen = [(graph, Ratio(r, 0.999 * r, 1.001 * r)) for graph, r in zip(GRAPHS, true, strict=True)]
        found.append(fit(BASE, seen).spread)
    assert max(SPREADS, key=found.count) == expected
    assert set(found) <= SPREADS.keys()


def test_the_spread_is_that_of_the_highest_evidence_which_is_a_gaussian_of_all_at_once() -> None:
    """Learnt one after the other, as by the joint density of all measurements before any was seen."""
    seen = [(graph, each.ratio) for graph, each in zip(GRAPHS, RESULTS, strict=True)]
    prior, chosen = uncalibrated(BASE), fit(BASE, seen)
    features = np.stack([prior.features(graph) for graph, _ in seen])
    ratios = np.array([ratio.value for _, ratio in seen])
    errors = np.array([(ratio.high - ratio.low) / 3.92 for _, ratio in seen])

    def evidence(spread: float) -> float:
        noise = np.diag(errors**2 + (spread * ratios) ** 2)
        whole = features @ prior.covariance @ features.T + noise
        return float(multivariate_normal(features @ prior.mean, whole).logpdf(ratios))

    assert chosen.evidence == pytest.approx(evidence(chosen.spread))
    assert chosen.spread == max(SPREADS, key=lambda spread: evidence(spread) + SPREADS[spread])


def test_more_doubt_is_said_with_every_prediction() -> None:
    seen = [(GRAPHS[0], RESULTS[0].ratio)]
    quiet = fit(BASE, seen)
    assert quiet.spread == SPREAD
    loud = [
        (graph, Ratio(r, r, r))
        for graph, r in zip(GRAPHS, (1.9, 1.1, 2.2, 1.05, 1.8, 1.1, 1.2, 2.5), strict=True)
    ]
    assert fit(BASE, loud).predict(GRAPHS[2]).deviation > 0.1
