"""Forks chosen together: against brute force, at the limits, and with the price of real plans."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from subtune_deploy.errors import InputError
from subtune_deploy.joint import Choice, Option, Together, choose_together
from subtune_deploy.pareto import Point, choose
from subtune_deploy.stats import Interval

PRICES = {"1": 0.5, "2": 0.3, "3": 0.2, "4": 0.1}
TASKS = {
    "birds": [Option("1", 0.90), Option("3", 0.85), Option("4", 0.70)],
    "signs": [Option("2", 0.80), Option("3", 0.79), Option("4", 0.78)],
}


def added_up(forks: Sequence[Any]) -> float:
    return sum(PRICES[fork] for fork in forks)


def brute(tasks: dict[str, list[Option]], price: Any, weights: dict[str, float]) -> list[Choice]:
    """All sets."""
    total = sum(weights.get(name, 1) for name in tasks)
    found = []
    for options in product(*tasks.values()):
        forks = tuple(each.fork for each in options)
        mean = sum(weights.get(n, 1) * e.accuracy for n, e in zip(tasks, options, strict=True)) / total
        found.append(Choice(forks, mean, price(forks)))
    return found


def front_of(sets: list[Choice]) -> list[tuple[float, float]]:
    best: list[tuple[float, float]] = []
    for added, accuracy in sorted((round(each.added, 8), -round(each.accuracy, 8)) for each in sets):
        if not best or -accuracy > best[-1][1]:
            best.append((added, -accuracy))
    return best


def check(found: Together, sets: list[Choice], max_added: float) -> None:
    """`found` is what is best among all `sets`."""
    within = [each for each in sets if each.added <= max_added + 1e-9]
    accuracy = max(each.accuracy for each in within)
    cheapest = min(each.added for each in within if each.accuracy > accuracy - 1e-9)
    assert (found.exact, found.front_exact) == (True, True)
    assert found.best.accuracy == found.bound == pytest.approx(accuracy)
    assert found.best.added == pytest.approx(cheapest)
    assert [(round(e.added, 8), round(e.accuracy, 8)) for e in found.front] == front_of(sets)


def test_a_budget_split_by_hand() -> None:
    """0.35 buys birds 3 and signs 4 (0.815 for 0.3); halved, birds and signs get 4 each (0.74)."""
    found = choose_together(TASKS, added_up, max_added=0.35, floor=lambda fork: PRICES[str(fork)])
    assert found.best.forks == ("3", "4")
    assert found.best.accuracy == found.bound == pytest.approx(0.815)
    assert found.best.added == pytest.approx(0.3)
    assert [each.forks for each in found.front] == [
        ("4", "4"), ("3", "4"), ("3", "3"), ("3", "2"), ("1", "4"), ("1", "3"), ("1", "2")
    ]  # fmt: skip


def test_a_task_that_weighs_more_gets_more() -> None:
    """At 0.4 there are (3, 3), or (4, 2): with birds at a hundredth the second is better."""
    found = choose_together(TASKS, added_up, max_added=0.4, weights={"birds": 0.01})
    assert found.best.forks == ("4", "2")
    assert found.best.accuracy == pytest.approx((0.007 + 0.80) / 1.01)
    assert choose_together(TASKS, added_up, max_added=0.4).best.forks == ("3", "3")


NUMBERS = st.integers(0, 8).map(lambda n: n / 8)
TABLES = st.lists(
    st.lists(st.tuples(st.sampled_from("abcd"), NUMBERS), min_size=1, max_size=4, unique_by=lambda e: e[0]),
    min_size=1,
    max_size=3,
)
"""By task: forks with their accuracies."""


def named(table: list[list[tuple[str, float]]]) -> dict[str, list[Option]]:
    return {f"task{n}": [Option(*each) for each in options] for n, options in enumerate(table)}


@given(TABLES, st.randoms(use_true_random=False), st.floats(0, 3), st.lists(st.integers(1, 3), max_size=3))
def test_any_price_is_searched_whole(
    table: list[list[tuple[str, float]]], chance: Any, max_added: float, heavy: list[int]
) -> None:
    """Prices that know no rule at all."""
    tasks = named(table)
    weights = dict(zip(tasks, map(float, heavy), strict=False))
    price = cache(lambda forks: chance.randint(0, 9) / 8)
    by_set = lambda forks: price(tuple(sorted(forks)))  # noqa: E731
    sets = brute(tasks, by_set, weights)
    if min(each.added for each in sets) > max_added + 1e-9:
        with pytest.raises(InputError, match="no forks together add at most"):
            choose_together(tasks, by_set, max_added=max_added, weights=weights)
    else:
        check(choose_together(tasks, by_set, max_added=max_added, weights=weights), sets, max_added)


COSTS = st.fixed_dictionaries({fork: st.tuples(NUMBERS, NUMBERS) for fork in "abcd"})


@given(TABLES, COSTS, st.floats(0, 3))
def test_branch_and_bound_finds_what_brute_force_finds(
    table: list[list[tuple[str, float]]], costs: dict[str, tuple[float, float]], max_added: float
) -> None:
    """The longer of two sums: a further fork never makes it cheaper; by its lesser part, each fork adds at least."""
    tasks = named(table)

    def price(forks: Sequence[Any]) -> float:
        return max(sum(costs[fork][0] for fork in forks), sum(costs[fork][1] for fork in forks))

    sets = brute(tasks, price, {})
    if min(each.added for each in sets) <= max_added:
        for floor in (lambda fork: 0.0, lambda fork: min(costs[fork])):
            check(choose_together(tasks, price, max_added=max_added, floor=floor), sets, max_added)


@given(TABLES, COSTS, st.floats(0, 3), st.integers(0, 30))
def test_cut_short_it_says_so_and_its_bound_holds(
    table: list[list[tuple[str, float]]], costs: dict[str, tuple[float, float]], max_added: float, limit: int
) -> None:
    tasks = named(table)
    price = lambda forks: sum(max(costs[fork]) for fork in forks) + 0.01 * len(set(forks))  # noqa: E731
    within = [each.accuracy for each in brute(tasks, price, {}) if each.added <= max_added + 1e-9]
    try:
        floor = lambda fork: max(costs[fork])  # noqa: E731
        found = choose_together(tasks, price, max_added=max_added, floor=floor, limit=limit)
    except InputError:
        return
    assert found.best.added <= max_added + 1e-9
    assert found.best.accuracy <= max(within) + 1e-9 <= found.bound + 2e-9
    if found.exact:
        assert found.best.accuracy == pytest.approx(max(within))


def test_of_one_task_it_is_the_choice_of_pareto() -> None:
    options = [Option(fork, accuracy) for fork, accuracy in zip("1234", (0.9, 0.92, 0.85, 0.8), strict=True)]
    points = [
        Point(str(e.fork), *(Interval(x, x, x) for x in (e.accuracy, PRICES[str(e.fork)]))) for e in options
    ]
    for limit in (0.1, 0.25, 0.4, 0.6):
        found = choose_together({"birds": options}, added_up, max_added=limit)
        assert found.best.forks == (choose(points, max_added=limit).fork,)


def test_without_a_budget_each_gets_its_best() -> None:
    found = choose_together(TASKS, added_up)
    assert found.best == Choice(("1", "2"), pytest.approx(0.85), 0.8)


def test_a_budget_that_nothing_meets_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"at most 15\.0%: the cheapest found, birds 4, signs 4, add 20\.0%"):
        choose_together(TASKS, added_up, max_added=0.15)


def test_twenty_tasks_are_exact_where_prices_add_up() -> None:
    """4 ** 20 sets; equal tasks, of which orders are not told apart."""
    options = [Option(fork, accuracy) for fork, accuracy in zip("1234", (0.9, 0.85, 0.8, 0.5), strict=True)]
    tasks = {f"task{n}": options for n in range(20)}
    found = choose_together(tasks, added_up, max_added=4.0, floor=lambda fork: PRICES[str(fork)])
    assert found.exact
    assert sorted(found.best.forks) == ["3"] * 20
    assert found.best.accuracy == pytest.approx(0.8)


def test_of_many_sets_at_unknown_prices_a_good_one_is_found() -> None:
    tasks = {f"task{n}": TASKS["birds"] for n in range(12)}
    found = choose_together(tasks, added_up, max_added=2.4)
    assert not found.exact
    assert found.best.forks == ("3",) * 12
    assert found.bound == pytest.approx(0.9)


@pytest.mark.parametrize(
    "tasks, more, says",
    [
        ({}, {}, "no task to choose for"),
        ({"birds": []}, {}, "task birds has no fork"),
        ({"birds": [Option("1", math.nan)]}, {}, "task birds"),
        (TASKS, {"weights": {"cats": 1.0}}, "no task cats"),
        (TASKS, {"weights": {"birds": 0.0}}, "weigh"),
        (TASKS, {"price": lambda forks: math.nan}, "add nan"),
    ],
)
def test_what_cannot_be_chosen_from_is_refused(tasks: Any, more: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        choose_together(tasks, **{"price": added_up, **more})
