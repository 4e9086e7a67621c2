"""The fitted model: Bayes by hand and by brute force, and against a kept sweep of ResNet-50."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, median

import numpy as np
import pytest
from scipy.stats import spearmanr
from test_plan import chain, fork
from test_work import BLOCK, COSTS, HEAD, works

from subtune_deploy.backbone import trace
from subtune_deploy.calibrated import RATES, SPREAD, Calibrated, uncalibrated
from subtune_deploy.costs import count_costs
from subtune_deploy.models import load_model
from subtune_deploy.plan import candidate_owners, make_plan
from subtune_deploy.results import read_results
from subtune_deploy.spec import BASE
from subtune_deploy.work import Cost, plan_works

SWEEP = Path(__file__).parents[1] / "benchmarks" / "results" / "resnet50_sweep"
FORKS = [(1,), (3,), (6,), (2, 3), (4, 5, 6), (2, 5)]


def candidate(*blocks: int) -> list:
    return list(works(fork("birds", *blocks)).values())


@pytest.fixture
def model() -> Calibrated:
    return uncalibrated(list(works({}).values()))


def test_it_begins_with_what_is_plausible(model: Calibrated) -> None:
    """The base takes 1; blocks that cost the same are of one kind, and what computes nothing is of none."""
    assert model.predict(list(works({}).values())).ratio == pytest.approx(1, abs=1e-3)
    known = model.predict(list(works({}).values())).deviation
    assert SPREAD < known < SPREAD + 0.001, "nothing but the load is in doubt"
    assert model.kinds == (BLOCK, HEAD)
    assert len(model.mean) == len(RATES) + 2 * 2
    early, late = model.predict(candidate(1)), model.predict(candidate(6))
    assert 1 < late.ratio < early.ratio < 2.2
    assert early.added == early.ratio - 1
    assert early.deviation > 0.05


def test_one_observation_is_bayes_rule_by_hand(model: Calibrated) -> None:
    """Prior N(m, v) of a fork's ratio, seen with error e: the mean moves by v / (v + e^2) of what was off.

    A prediction is of a measurement, which differs from load to load besides, by a share of itself.
    """
    before = model.predict(candidate(3))
    after = model.learn(candidate(3), 2.0, 0.03).predict(candidate(3))
    variance, noise = before.deviation**2 - (before.ratio * SPREAD) ** 2, 0.03**2 + (2 * SPREAD) ** 2
    share = variance / (variance + noise)
    assert after.ratio == pytest.approx(before.ratio + share * (2.0 - before.ratio))
    assert after.deviation**2 == pytest.approx(variance * (1 - share) + (after.ratio * SPREAD) ** 2)


def test_the_order_of_measurements_is_of_no_importance(model: Calibrated) -> None:
    seen = [((1,), 1.9), ((6,), 1.2), ((2, 5), 1.8)]
    first, second = model, model
    for blocks, ratio in seen:
        first = first.learn(candidate(*blocks), ratio, 0.01)
    for blocks, ratio in reversed(seen):
        second = second.learn(candidate(*blocks), ratio, 0.01)
    np.testing.assert_allclose(first.mean, second.mean, atol=1e-9)
    np.testing.assert_allclose(first.covariance, second.covariance, atol=1e-9)


def test_the_most_telling_measurement_is_that_of_brute_force(model: Calibrated) -> None:
    """Each tried as if it came out as predicted; what is left counts relative to what a graph takes."""
    all_of_them = [candidate(*blocks) for blocks in FORKS]
    before = [model.predict(each).ratio for each in all_of_them]

    def variance(known: Calibrated, works: list) -> float:
        """Of what a graph takes, without what measurements of it differ by."""
        found = known.predict(works)
        return found.deviation**2 - (SPREAD * found.ratio) ** 2

    def left(index: int) -> float:
        learnt = model.learn(all_of_them[index], before[index], 0.0)
        return sum(variance(learnt, each) / ratio**2 for each, ratio in zip(all_of_them, before, strict=True))

    assert model.most_telling(all_of_them) == min(range(len(FORKS)), key=left)
    assert model.most_telling(all_of_them, [1, 2]) == min([1, 2], key=left)


def test_a_linear_machine_is_learnt(model: Calibrated) -> None:
    """A machine whose blocks take a fixed and a moving time: after enough forks it is known, another one as well.

    Each operator that packs takes as long as any other.
    """

    def truth(found: list) -> float:
        times = {BLOCK: (0.04, 0.1), HEAD: (0.01, 0.05)}
        uses = [use for work in found for use in work.uses]
        blocks = [use for use in uses if use.cost in times]
        packing = sum(use.runs for use in uses if not use.versions)
        return 0.002 * packing + sum(
            times[use.cost][0] * use.versions + times[use.cost][1] * use.streams for use in blocks
        )

    base = truth(list(works({}).values()))
    for blocks in FORKS:
        model = model.learn(candidate(*blocks), truth(candidate(*blocks)) / base, 0.0)
    eight = list(
        works({name: owners for n in range(4) for name, owners in fork(f"t{n}", 2, 4).items()}).values()
    )
    for found in (candidate(3, 4), candidate(5), eight):
        predicted = model.predict(found)
        assert predicted.ratio == pytest.approx(truth(found) / base, rel=0.01)
        assert abs(predicted.ratio - truth(found) / base) < 3 * predicted.deviation


def test_two_plans_are_compared_as_draws_from_what_is_known_are(model: Calibrated) -> None:
    """Of a plan and itself nothing is unknown but the spread of loads."""
    for blocks, ratio in (((1, 2, 3), 1.6), ((6,), 1.2)):
        model = model.learn(candidate(*blocks), ratio, 0.01)
    tasks = fork("birds", 2) | fork("signs", 2)
    apart, merged = (
        list(plan_works(chain(), make_plan(chain(), tasks, merge=merge), COSTS))
        for merge in ("never", "always")
    )
    same = model.compare(merged, merged)
    assert (same.ratio, same.deviation) == (1, SPREAD)
    found = model.compare(apart, merged)
    draws = np.random.default_rng(0).multivariate_normal(model.mean, model.covariance, 200_000)
    ratios = (draws @ model.features(apart)) / (draws @ model.features(merged))
    assert found.ratio == pytest.approx(np.median(ratios), rel=0.01)
    known = np.hypot(ratios.std(), SPREAD * found.ratio)
    assert found.deviation == pytest.approx(known, rel=0.05)


def test_a_thinner_fork_is_cheaper_though_its_kind_was_never_seen(model: Calibrated) -> None:
    plan = make_plan(chain(), fork("birds", 3))
    thin = {**COSTS, "birds": {"b3": Cost(30, 10, 2, 3)}}
    assert model.predict(plan_works(chain(), plan, thin)).ratio < model.predict(candidate(3)).ratio


def test_ten_forks_of_resnet50_tell_the_other_thirty_five() -> None:
    """Measured on ONNX Runtime and kept (benchmarks/figure7.py): every fork of one to three consecutive blocks."""
    network = trace(load_model("resnet50"))
    costs = {BASE: count_costs(network).costs}

    def found(*forks: tuple[int, ...]) -> tuple:
        plan = make_plan(network.topology, candidate_owners(network.topology, forks))
        return plan_works(network.topology, plan, costs)

    measured = read_results(SWEEP)
    graphs, model, left = (
        [found(each.layers) for each in measured],
        uncalibrated(found()),
        [*range(len(measured))],
    )
    for _ in range(10):
        left.remove(index := model.most_telling(graphs, left))
        ratio = measured[index].ratio
        model = model.learn(graphs[index], ratio.value, (ratio.high - ratio.low) / 3.92)
    predicted = [model.predict(graphs[index]) for index in left]
    truth = [measured[index].ratio.value for index in left]
    off = [abs(mine.ratio - true) for mine, true in zip(predicted, truth, strict=True)]
    assert len(left) == 35
    assert mean(o / true for o, true in zip(off, truth, strict=True)) < 0.02
    assert median(o / (true - 1) for o, true in zip(off, truth, strict=True)) < 0.07
    assert spearmanr([each.ratio for each in predicted], truth).statistic > 0.97
    assert (
        mean(o < 2 * mine.deviation for o, mine in zip(off, predicted, strict=True)) > 0.7
    )  # it knows its error
