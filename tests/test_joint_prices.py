"""Forks of ResNet-18 chosen together by the price of their plans: against brute force, and what bounds rest on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_joint import brute, check

from subtune_deploy.backbone import trace
from subtune_deploy.calibrated import Calibrated, uncalibrated
from subtune_deploy.cost_model import Machine, least_added, plan_times, total
from subtune_deploy.fitting import fit_results
from subtune_deploy.joint import Option, choose_together
from subtune_deploy.models import load_model
from subtune_deploy.predictor import Costing
from subtune_deploy.results import read_results
from subtune_deploy.work import Work

RESNET50 = Path(__file__).parents[1] / "benchmarks" / "results" / "resnet50_sweep"
MACHINES = (Machine(1e12, 1e10), Machine(1e11, 1e11, launch=2e-5), Machine(1e13, 1e11, 2))
FORKS = st.sets(st.integers(1, 8), max_size=3).map(lambda blocks: tuple(sorted(blocks)))
SETS = st.lists(FORKS, min_size=1, max_size=4).map(tuple)

Forks = tuple[tuple[int, ...], ...]
Works = Sequence[Work]


@pytest.fixture(scope="module")
def works() -> Callable[[Forks], Works]:
    """What a graph with a task for each of some forks does."""
    return Costing(trace(load_model("resnet18", input_size=(3, 64, 64)))).works


@pytest.fixture(scope="module")
def model(works: Callable[[Forks], Works]) -> Calibrated:
    """Of a machine for which forks of a few blocks cost more than their work says."""
    model = uncalibrated(works(()))
    for fork, ratio in {(1,): 1.9, (7, 8): 1.35, (4,): 1.6, (8,): 1.2, (2, 6): 1.85}.items():
        model = model.learn(works((fork,)), ratio, 0.01)
    return model


@settings(deadline=None)
@given(SETS, FORKS)
def test_what_a_fork_adds_to_others_is_no_less_than_its_floor(
    works: Callable[[Forks], Works], model: Calibrated, others: Forks, fork: tuple[int, ...]
) -> None:
    """Branch and bound rests on this."""
    least = model.least_added(works(()), works((fork,)), len(others))
    alone, before, after = (works(forks) for forks in ((fork,), others, (*others, fork)))
    assert model.predict(after).ratio - model.predict(before).ratio >= least - 1e-9
    for machine in MACHINES:
        base, one, few, more = (plan_times(each, machine) for each in (works(()), alone, before, after))
        assert total(more) - total(few) >= least_added(base, one) * (1 - 1e-9) - 1e-15


def profiles(count: int, seed: int) -> dict[str, list[Option]]:
    """Of tasks that are not equally hard; later and longer forks are better for most."""
    chance = np.random.default_rng(seed)
    forks = [tuple(range(i, i + n)) for n in (1, 2) for i in range(1, 10 - n)]
    return {
        f"task{n}": [Option(fork, float(0.7 + 0.03 * sum(fork) / 8 + chance.uniform(0, 0.2))) for fork in forks]
        for n in range(count)
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("max_added", [0.6, 1.0, 1.6])
def test_two_and_three_tasks_as_by_brute_force(
    works: Callable[[Forks], Works], model: Calibrated, seed: int, max_added: float
) -> None:
    def calibrated(forks: Any) -> float:
        return model.predict(works(tuple(sorted(forks)))).added

    machine = MACHINES[seed]
    base = plan_times(works(()), machine)

    def datasheet(forks: Any) -> float:
        return total(plan_times(works(tuple(sorted(forks))), machine)) / total(base) - 1

    def peak(fork: Any) -> float:
        return least_added(base, plan_times(works((fork,)), machine)) / total(base)

    def least(fork: Any) -> float:
        return model.least_added(works(()), works((fork,)), 2)

    for tasks in (profiles(2, seed), {k: v[::2] for k, v in profiles(3, seed).items()}):
        for price, floor in ((calibrated, least), (datasheet, peak)):
            sets = brute(tasks, price, {})
            if min(each.added for each in sets) <= max_added:
                check(choose_together(tasks, price, max_added=max_added, floor=floor), sets, max_added)


def test_four_tasks_of_resnet50_at_measured_rates() -> None:
    """4.1 million sets; prices are those of the kept sweep."""
    costing, results = Costing(trace(load_model("resnet50"))), read_results(RESNET50)
    graphs = [costing.works([each.layers]) for each in results]
    model = fit_results(costing.base, graphs, results, 10).model
    chance, asked = np.random.default_rng(0), []
    tasks = {
        f"task{n}": [Option(r.layers, float(chance.uniform(0.8, 0.95))) for r in results] for n in range(4)
    }

    @cache
    def price(forks: Any) -> float:
        asked.append(forks)
        return model.predict(costing.works(forks)).added

    def floor(fork: Any) -> float:
        return model.least_added(costing.base, costing.works([fork]), 3)

    found = choose_together(tasks, price, max_added=0.8, floor=floor)
    assert found.exact
    assert found.front_exact
    assert found.best.added <= 0.8
    assert len(asked) < 5000
