"""What a plan asks of a machine, worked by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_plan import BLOCKS, chain, fork

from subtune_deploy.plan import make_plan
from subtune_deploy.spec import BASE
from subtune_deploy.topology import Topology
from subtune_deploy.work import Cost, Costs, Use, Work, layers_of, plan_works, unpacked

BLOCK = Cost(macs=100, activations=20, weights=7, launches=3)
POOL = Cost(activations=4, launches=1)
HEAD = Cost(macs=10, activations=2, weights=5, launches=1)
COSTS: Costs = {
    BASE: {"x": Cost(), **{f"b{i}": BLOCK for i in range(1, BLOCKS + 1)}, "pool": POOL, "head": HEAD}
}


MOVING = Cost(activations=8, launches=1)
"""Of four elements: read and written."""


def sized() -> Topology:
    """The chain, whose blocks answer four elements, and whose pool one."""
    sizes = {f"b{i}": 4 for i in range(1, BLOCKS + 1)} | {"pool": 1}
    nodes = (replace(node, elements=sizes.get(node.name, 0)) for node in chain().nodes)
    return Topology(tuple(nodes), chain().heads)


def works(forks: dict, costs: Costs = COSTS, **options: object) -> dict[str, Work]:
    plan = make_plan(chain(), forks, **options)  # type: ignore[arg-type]
    return {work.unit: work for work in plan_works(sized(), plan, costs)}


def test_a_layer_goes_from_one_units_weights_to_the_next_ones() -> None:
    layers = layers_of(chain())
    assert (layers["x"], layers["b1"], layers["pool"], layers["head"]) == (
        "input",
        "block1",
        "block6",
        "head",
    )


def test_alone_each_layer_is_paid_once() -> None:
    found = works({})
    assert found["block1"].uses == (Use("b1", BLOCK, 1, 1, 1),)
    assert found["block6"].uses == (Use("b6", BLOCK, 1, 1, 1), Use("pool", POOL, 1, 1, 1))
    assert sum(each.macs for each in found.values()) == 6 * 100 + 10
    assert found["input"].uses == ()


def test_two_tasks_forked_at_3_and_4() -> None:
    """Prefix once; the fork three times, weights and launches too; the suffix's arithmetic alone three times."""
    found = works({**fork("birds", 3, 4), **fork("signs", 3, 4)})
    assert found["block2"].uses == (Use("b2", BLOCK, 1, 1, 1),)
    assert found["block3"].uses == (Use("b3", BLOCK, 3, 3, 3),)
    assert found["block4"].uses == (Use("b4", BLOCK, 3, 3, 3),)
    assert found["block5"].uses == (Use("b4", MOVING, 3, 0, 1), Use("b5", BLOCK, 3, 1, 1))
    five = found["block5"]
    assert (five.macs, five.activations, five.weights, five.launches, five.streams) == (
        300,
        60 + 3 * 8,
        7,
        3 + 1,
        3,
    )
    four = found["block4"]
    assert (four.macs, four.activations, four.weights, four.launches) == (300, 60, 21, 9)
    cuts = (Use("pool", Cost(activations=2, launches=1), 1, 0, 1),) * 3
    assert found["head"].uses == (*cuts, Use("head", HEAD, 3, 3, 3))


def test_without_packing_only_what_the_streams_themselves_do_is_left() -> None:
    five = {work.unit: work for work in unpacked(works(fork("birds", 3)).values())}["block4"]
    assert five.uses == (Use("b4", BLOCK, 2, 1, 1),)


def test_a_suffix_that_is_not_merged_loads_its_weights_for_each_stream() -> None:
    five = works(fork("birds", 3), merge="never")["block5"]
    assert (five.macs, five.weights, five.launches, five.streams) == (200, 14, 6, 2)


def test_grouped_blocks_load_all_weights_in_one_launch() -> None:
    four = works({**fork("birds", 4), **fork("signs", 4)}, grouped=["block4"])["block4"]
    assert four.uses == (Use("b4", BLOCK, 3, 3, 1),)
    assert (four.macs, four.weights, four.launches) == (300, 21, 3)


def test_a_thinner_version_costs_what_it_costs() -> None:
    thin = Cost(macs=30, activations=10, weights=2, launches=3)
    found = works(fork("birds", 4), {**COSTS, "birds": {"b4": thin}})
    assert set(found["block4"].uses) == {Use("b4", BLOCK, 1, 1, 1), Use("b4", thin, 1, 1, 1)}
    assert (found["block4"].macs, found["block4"].weights, found["block4"].streams) == (130, 9, 2)
    assert found["block5"].uses == (Use("b4", MOVING, 2, 0, 1), Use("b5", BLOCK, 2, 1, 1))


@given(st.lists(st.sets(st.integers(1, BLOCKS), min_size=1), min_size=1, max_size=4))
def test_arithmetic_grows_with_streams_and_weights_with_versions(forks: list[set[int]]) -> None:
    """A task more costs something; it never makes another one cheaper."""
    tasks: dict = {}
    before = works({})
    for number, blocks in enumerate(forks):
        tasks |= fork(f"t{number}", *blocks)
        now = works(tasks)
        for unit, work in now.items():
            assert work.macs >= before[unit].macs
            assert work.weights >= before[unit].weights
        assert now["head"].macs == (number + 2) * HEAD.macs
        before = now
    prefix = min(map(min, forks))
    assert all(before[f"block{i}"].streams == 1 for i in range(1, prefix))
    assert before[f"block{prefix}"].weights > BLOCK.weights


def test_costs_add_up() -> None:
    assert Cost(100, 24, 7, 4) == BLOCK + POOL
    assert sum((BLOCK, POOL), Cost()) == BLOCK + POOL


@pytest.mark.parametrize("name", ["macs", "activations", "weights", "launches", "streams"])
def test_a_layer_without_nodes_costs_nothing(name: str) -> None:
    assert getattr(Work("input", ()), name) == 0
