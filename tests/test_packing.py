"""What is cut and put together: worked by hand, and counted in the graphs that are lowered."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_multitask import TOPOLOGIES, plan_of
from test_plan import BLOCKS, chain, fork
from tiny_networks import backbone, random_tasks

from subtune_deploy.grouped import groupable
from subtune_deploy.multitask import lower
from subtune_deploy.packing import Packing, packings, stretches
from subtune_deploy.plan import Streams, make_plan
from subtune_deploy.topology import Node, Topology


def of(forks: Any, **choices: Any) -> list[Packing]:
    return list(packings(chain(), make_plan(chain(), forks, **choices)))


def test_stretches_are_as_long_as_they_can_be() -> None:
    one, two = ("a", "b", "c"), ("d",)
    assert stretches([one, one, two], ("a", "b", "d")) == [(one, ("a", "b")), (two, ("d",))]
    assert stretches([one, one], ("a", "c")) == [(one, ("a",)), (one, ("c",))]
    assert stretches([one, one], ("b", "a")) == [(one, ("b",)), (one, ("a",))]
    assert stretches([one] * 3, one) == [(one, one)]


def test_one_task_is_packed_where_it_rejoins_and_cut_out_before_the_heads() -> None:
    assert of(fork("birds", 3)) == [
        Packing("b4", "b3", streams=2, operators=1),
        Packing("head", "pool", streams=1, operators=1),
        Packing("head", "pool", streams=1, operators=1),
    ]


@pytest.mark.parametrize("forks", [{}, fork("probe"), fork("birds", 6)])
def test_nothing_is_packed_where_nothing_rejoins(forks: Any) -> None:
    assert of(forks) == []


def test_nothing_is_packed_where_that_is_wanted() -> None:
    assert of({**fork("birds", 3), **fork("signs", 2)}, merge="never") == []


def test_a_late_fork_cuts_the_base_out_once_for_all_tasks() -> None:
    """birds rejoins at b3; signs and dogs begin at b5, which reads the base's stream by itself."""
    found = of({**fork("signs", 5), **fork("birds", 2), **fork("dogs", 5)})
    assert found[:3] == [
        Packing("b3", "b2", streams=2, operators=1),
        Packing("b5", "b4", streams=1, operators=1),
        Packing("b6", "b5", streams=4, operators=1),
    ]
    assert found[3:] == [Packing("head", "pool", 1, 1)] * 4


INTERVALS = st.tuples(st.integers(1, BLOCKS), st.integers(1, BLOCKS)).map(sorted)


@given(st.lists(INTERVALS, min_size=1, max_size=5))
def test_consecutive_forks_are_joined_to_whole_values(intervals: list[list[int]]) -> None:
    """Whatever their order: nothing is taken apart in order to be packed."""
    forks: dict[str, Any] = {}
    for number, (first, last) in enumerate(intervals):
        forks |= fork(f"t{number}", *range(first, last + 1))
    plan = make_plan(chain(), forks)
    layouts: dict[tuple[str, str], Streams] = {}
    for step in plan.steps:
        for source, wanted in zip(node(step.node).inputs, step.inputs, strict=True):
            parts = stretches([layouts[source, stream] for stream in wanted], wanted)
            assert len(wanted) == 1 or all(layout == stretch for layout, stretch in parts)
        layouts |= {(step.node, stream): step.streams for stream in step.streams}


def node(name: str) -> Node:
    return next(each for each in chain().nodes if each.name == name)


def test_a_tuple_is_packed_tensor_by_tensor_and_a_size_not_at_all() -> None:
    nodes = [Node(n.name, n.op, n.inputs, n.unit, (0, (0, "size")), n.macs) for n in chain().nodes]
    found = list(packings(Topology(tuple(nodes), ("head",)), make_plan(chain(), fork("birds", 3))))
    assert found[0] == Packing("b4", "b3", streams=2, operators=2)


def test_a_siamese_head_joins_two_features() -> None:
    assert of(fork("birds", 6), siamese=["birds"])[-1] == Packing("head", "pool", streams=2, operators=1)


@settings(max_examples=40, deadline=None)
@given(
    topology=st.sampled_from(TOPOLOGIES),
    seed=st.integers(0, 10_000),
    merge=st.sampled_from(["always", "never"]),
    group=st.booleans(),
    most=st.integers(0, 3),
)
def test_the_lowered_graph_has_as_many_operators_for_it(
    topology: str, seed: int, merge: str, group: bool, most: int
) -> None:
    network = backbone(topology, 4, seed=seed % 7)
    tasks = random_tasks(network, seed)
    plan = plan_of(network, tasks, merge=merge, grouped=groupable(network, tasks) if group else (), most=most)
    told = sum(each.operators for each in packings(network.topology, plan))
    joining = {node.name for node in network.graph.nodes if node.target is torch.cat}
    own = sum(step.node in joining for step in plan.steps)
    nodes = lower(network, tasks, plan).graph.nodes
    assert told + own == sum(node.target is torch.cat or node.target == "unflatten" for node in nodes)
