"""The paper's formula and the fold over plans: by hand, at their limits, and against each other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_plan import BLOCKS, chain, fork
from test_work import COSTS, works

from subtune_deploy.backends.base import Rate, Target
from subtune_deploy.cost_model import (
    LayerTime,
    Machine,
    machine_of,
    paper_added,
    paper_shared,
    paper_single,
    paper_total,
    plan_times,
    total,
)
from subtune_deploy.errors import InputError, LayersError
from subtune_deploy.plan import make_plan
from subtune_deploy.targets import list_targets
from subtune_deploy.work import plan_works

C = [5.0, 4.0, 3.0, 2.0, 1.0]
S = [1.0, 2.0, 3.0, 4.0, 5.0]


def test_the_printed_formula_worked_by_hand() -> None:
    """Fork 2-3 of five layers.

    max(2 s2, c1) = max(4, 5) = 5; i=2: 2 max(c2, s3) = 2 max(4, 3) = 8; i=3: 2 max(3, 4) = 8; i=4: max(2 c4, s5) =
    max(4, 5) = 5; 2 c5 = 2. In all 28.
    """
    assert paper_total(C, S, 2, 3) == 28
    assert paper_shared(C, S, 2) == 0


def test_what_it_leaves_out_worked_by_hand() -> None:
    """Fork 4: max(2 s4, c3) = 8, 2 max(c4, s5) = 10, 2 c5 = 2: 20. Before layer 3: max(c1, s2) = 5, max(c2, s3) = 4."""
    assert paper_total(C, S, 4, 4) == 20
    assert paper_shared(C, S, 4) == 9
    assert paper_single(C, S) == max(5, 2) + max(4, 3) + max(3, 4) + max(2, 5) + 1 == 19
    assert paper_added(C, S, 4, 4) == pytest.approx((20 + 9) / 19 - 1)


def test_at_the_first_layer_nothing_is_shared() -> None:
    """max(2 s1, c0) = 2, then everything twice up to the fork's end."""
    assert paper_total(C, S, 1, 4) == 2 + 2 * (5 + 4 + 4 + 5) + 2
    assert paper_shared(C, S, 1) == 0


@pytest.mark.parametrize("fork", [(0, 1), (3, 2), (5, 5), (1, 6)])
def test_forks_that_the_formula_does_not_know_are_refused(fork: tuple[int, int]) -> None:
    with pytest.raises(LayersError, match="of 5"):
        paper_total(C, S, *fork)


def test_unequal_tables_are_refused() -> None:
    with pytest.raises(LayersError, match="5 times of layers and 4"):
        paper_single(C, S[:-1])
    with pytest.raises(LayersError):
        paper_single([1.0], [1.0])


MACHINE = Machine(compute=100.0, bandwidth=28.0)
"""A block computes for 1 s and its 7 weights of 4 bytes take 1 s; the head's 5 weights 5/7 s, its 10 MACs 0.1 s."""


def seconds(forks: dict, machine: Machine = MACHINE, **options: object) -> float:
    return total(plan_times(list(works(forks, **options).values()), machine))


def test_alone_it_is_the_papers_single_task_time() -> None:
    """The input loads block 1: 1 s more than the paper counts, which begins with layer 1's arithmetic."""
    compute, loads = [1.0] * BLOCKS + [0.1], [1.0] * BLOCKS + [5 / 7]
    assert seconds({}) == pytest.approx(1 + paper_single(compute, loads)) == pytest.approx(7.1)


def test_a_plan_worked_by_hand() -> None:
    """Two tasks on 3-4. Input 1, b1 1, b2 max(1, 3), b3 3, b4 max(3, 1), b5 3, b6 max(3, 15/7), head 0.3."""
    forks = {**fork("birds", 3, 4), **fork("signs", 3, 4)}
    assert seconds(forks) == pytest.approx(1 + 1 + 3 + 3 + 3 + 3 + 3 + 0.3)


def test_launches_are_a_floor() -> None:
    """A launch of 1 s: three in a block, one more in the pool, one in the head."""
    machine = Machine(1e12, 1e12, launch=1.0)
    assert seconds({}, machine) == pytest.approx(3 * BLOCKS + 1 + 1)
    assert seconds(fork("birds", 6), machine) == pytest.approx(3 * 5 + 2 * 3 + 2 * 1 + 2)


def test_precision_narrows_the_weights_and_a_batch_repeats_the_arithmetic() -> None:
    (time,) = plan_times([works({})["block1"]], MACHINE, batch=4)
    assert time == LayerTime("block1", 4.0, 0.0, 0.0)
    first, _ = plan_times([works({})["block1"], works({})["block2"]], Machine(100.0, 28.0, width=1))
    assert first.load == 0.25


def test_without_weights_to_wait_for_it_is_the_arithmetic() -> None:
    fast = Machine(100.0, 1e15)
    assert seconds({}, fast) == pytest.approx(6.1)
    assert seconds(fork("birds", 3), fast) == pytest.approx(2 + 2 * 4.1)  # 3 to 6 and the head twice


def test_without_arithmetic_it_is_the_weights_and_a_shared_suffix_is_free() -> None:
    slow = Machine(1e15, 28.0)
    assert seconds({}, slow) == pytest.approx(6 + 5 / 7)
    assert seconds(fork("birds", 3), slow) == pytest.approx(
        6 + 1 + 2 * 5 / 7
    )  # block 3 and the head once more


RATES = st.floats(1.0, 1e3)


@given(RATES, RATES, st.integers(1, BLOCKS - 1), st.integers(0, 2))
def test_against_the_printed_formula_it_differs_by_one_load_alone(
    compute: float, bandwidth: float, first: int, length: int
) -> None:
    """At i = b the paper charges 2 s_(b+1), the plan s_(b+1); for the head it charges one load, the plan two."""
    last = min(first + length, BLOCKS - 1)
    machine = Machine(compute, bandwidth)
    plan = make_plan(chain(), fork("birds", *range(first, last + 1)))
    mine = plan_times(plan_works(chain(), plan, COSTS), machine)
    c = [0.0] + [100 / compute] * BLOCKS + [10 / compute]  # the input is a layer without weights
    s = [0.0] + [28 / bandwidth] * BLOCKS + [20 / bandwidth]
    paper = paper_total(c, s, first + 1, last + 1) + paper_shared(c, s, first + 1)
    end = 2 * max(c[last], s[last + 1]) - max(2 * c[last], s[last + 1])
    head = max(2 * c[BLOCKS], 2 * s[-1]) - max(2 * c[BLOCKS], s[-1])
    assert total(mine) == pytest.approx(paper - end + head)


@given(RATES, RATES, st.sets(st.integers(1, BLOCKS), min_size=1), st.integers(1, BLOCKS))
def test_a_fork_of_more_blocks_is_never_cheaper_and_a_faster_machine_never_slower(
    compute: float, bandwidth: float, blocks: set[int], other: int
) -> None:
    machine = Machine(compute, bandwidth)
    assert seconds(fork("t", *blocks, other), machine) >= seconds(fork("t", *blocks), machine) - 1e-9
    assert seconds(fork("t", *blocks), Machine(2 * compute, bandwidth)) <= seconds(
        fork("t", *blocks), machine
    )
    assert seconds(fork("t", *blocks), machine) >= seconds({}, machine)


def test_the_machine_is_read_from_the_datasheet() -> None:
    (a100,) = [each for each in list_targets() if each.name == "a100-sxm4-80gb-fp16"]
    assert machine_of(a100) == Machine(156e12, 2039e9, 2)
    launch = {
        "compute": Rate(1, "TMAC/s", "x"),
        "bandwidth": Rate(1, "TB/s", "x"),
        "launch": Rate(5, "us", "x"),
    }
    assert machine_of(Target("mine", "torch", "int8", "", datasheet=launch)) == Machine(
        1e12, 1e12, 1, pytest.approx(5e-6)
    )


def test_a_target_without_a_datasheet_is_refused() -> None:
    with pytest.raises(InputError, match="cpu has no datasheet number for compute and bandwidth") as caught:
        machine_of(Target("cpu", "onnxruntime", "fp32", ""))
    assert "calibrate" in caught.value.hint
