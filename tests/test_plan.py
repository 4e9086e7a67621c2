"""The plan, from topology and forks alone."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from subtune_deploy.plan import Plan, make_plan
from subtune_deploy.topology import Node, Topology

BLOCKS = 6


def chain() -> Topology:
    """picture -> block1 -> ... -> block6 -> pool -> head."""
    nodes = [Node("x", "placeholder", (), None, 0)]
    for i in range(1, BLOCKS + 1):
        nodes.append(Node(f"b{i}", "call_module", (nodes[-1].name,), f"block{i}", 0, macs=100))
    nodes.append(Node("pool", "call_module", (nodes[-1].name,), None, 0))
    nodes.append(Node("head", "call_module", ("pool",), "head", 0, macs=1))
    nodes.append(Node("output", "output", ("head",), None, 0))
    return Topology(tuple(nodes), ("head",))


def fork(name: str, *blocks: int) -> dict[str, dict[str, str]]:
    return {name: {**{f"block{i}": name for i in blocks}, "head": name}}


def executions(plan: Plan, node: str) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    return [(step.versions, step.streams) for step in plan.steps if step.node == node]


def test_prefix_runs_once_fork_once_per_task_suffix_once_for_all() -> None:
    plan = make_plan(chain(), {**fork("birds", 3, 4), **fork("signs", 3, 4)})
    assert executions(plan, "b2") == [(("base",), ("base",))]
    assert executions(plan, "b4") == [((t,), (t,)) for t in ("base", "birds", "signs")]
    assert executions(plan, "b5") == [(("base",), ("base", "birds", "signs"))]
    assert executions(plan, "head") == [((t,), (t,)) for t in ("base", "birds", "signs")]
    assert plan.rejoins == ("b5",)


def test_never_merging_runs_the_suffix_once_per_stream() -> None:
    plan = make_plan(chain(), fork("birds", 3), merge="never")
    assert executions(plan, "b5") == [(("base",), ("base",)), (("base",), ("birds",))]
    assert plan.rejoins == ()


def test_merging_only_where_it_is_named() -> None:
    plan = make_plan(chain(), fork("birds", 3), merge=("b6",))
    assert len(executions(plan, "b4")) == 2
    assert executions(plan, "b6") == [(("base",), ("base", "birds"))]
    assert plan.rejoins == ("b6",)


def test_a_scattered_fork_splits_again_and_packs_again() -> None:
    plan = make_plan(chain(), fork("birds", 2, 5))
    assert executions(plan, "b3") == [(("base",), ("base", "birds"))]
    assert executions(plan, "b5") == [(("base",), ("base",)), (("birds",), ("birds",))]
    assert plan.rejoins == ("b3", "b6")


def test_streams_are_packed_in_the_order_in_which_they_rejoin() -> None:
    """So that what joins later is put behind what is packed already; the outputs keep the order of the tasks."""
    plan = make_plan(chain(), {**fork("late", 4, 5), **fork("early", 2), **fork("probe")})
    assert executions(plan, "b3") == [(("base",), ("base", "early"))]
    assert executions(plan, "b6") == [(("base",), ("base", "early", "late"))]
    assert [task for task, _ in plan.outputs] == ["base", "late", "early", "probe"]


def test_of_more_streams_than_may_be_packed_several_batches_are_made_and_stay() -> None:
    plan = make_plan(chain(), {name: owners for n in "abcd" for name, owners in fork(n, 3).items()}, most=2)
    for block in ("b4", "b5", "b6"):
        assert [streams for _, streams in executions(plan, block)] == [("base", "a"), ("b", "c"), ("d",)]
    assert plan.rejoins == ("b4",)
    assert plan.most == 2


def test_a_head_only_task_shares_everything_but_its_head() -> None:
    plan = make_plan(chain(), fork("probe"))
    assert all(len(executions(plan, f"b{i}")) == 1 for i in range(1, BLOCKS + 1))
    assert executions(plan, "pool") == [(("base",), ("base",))]
    assert executions(plan, "head") == [(("base",), ("base",)), (("probe",), ("probe",))]


def test_tasks_that_share_the_start_of_a_fork_share_its_stream() -> None:
    owners = {**fork("birds", 3, 4), "eagles": {"block3": "birds", "block4": "eagles", "head": "eagles"}}
    plan = make_plan(chain(), owners)
    assert executions(plan, "b3") == [(("base",), ("base",)), (("birds",), ("birds",))]
    assert len(executions(plan, "b4")) == 3


def test_a_shared_block_after_different_forks_packs_the_tasks_that_own_it() -> None:
    owners = {**fork("birds", 2, 4), "eagles": {"block3": "eagles", "block4": "birds", "head": "eagles"}}
    plan = make_plan(chain(), owners)
    assert (("birds",), ("birds", "eagles")) in executions(plan, "b4")


def test_grouped_blocks_are_one_step_and_leave_their_streams_packed() -> None:
    plan = make_plan(chain(), fork("birds", 3, 4), grouped=["block3", "block4"])
    assert executions(plan, "b3") == [(("base", "birds"), ("base", "birds"))]
    (step,) = [step for step in plan.steps if step.node == "b3"]
    assert step.inputs == (("base", "base"),)  # both read the prefix's one stream
    assert plan.rejoins == ()  # nothing to pack: it came packed


def test_a_siamese_head_reads_the_base_and_its_own_stream() -> None:
    plan = make_plan(chain(), fork("birds", 3), siamese=["birds"])
    (step,) = [step for step in plan.steps if step.siamese]
    assert (step.node, step.versions, step.inputs) == ("head", ("birds",), (("base", "birds"),))


def test_values_that_carry_the_batch_otherwise_are_never_packed() -> None:
    nodes = list(chain().nodes)
    nodes[5] = Node("b5", "call_module", ("b4",), "block5", "opaque", macs=100)
    plan = make_plan(Topology(tuple(nodes), ("head",)), fork("birds", 3))
    assert executions(plan, "b4") == [(("base",), ("base", "birds"))]
    assert len(executions(plan, "b5")) == len(executions(plan, "b6")) == 2


def test_a_value_without_a_batch_keeps_its_versions_apart() -> None:
    nodes = (
        Node("x", "placeholder", (), None, 0),
        Node("position", "get_attr", (), "position", None),
        Node("sum", "call_function", ("x", "position"), None, 0),
        Node("b1", "call_module", ("sum",), "block1", 0, macs=10),
        Node("head", "call_module", ("b1",), "head", 0, macs=1),
        Node("output", "output", ("head",), None, 0),
    )
    plan = make_plan(Topology(nodes, ("head",)), {"birds": {"position": "birds", "head": "birds"}})
    assert len(executions(plan, "sum")) == 2
    assert executions(plan, "b1") == [(("base",), ("base", "birds"))]


def test_a_topology_names_inputs_that_come_too_late() -> None:
    with pytest.raises(ValueError, match="not yet computed"):
        Topology((Node("a", "call_module", ("b",), None, 0),), ())


tasks = st.dictionaries(
    st.sampled_from(["a", "b", "c", "d"]), st.sets(st.integers(1, BLOCKS)), min_size=1, max_size=4
)


@given(tasks, st.sampled_from(["always", "never"]), st.integers(0, 3))
def test_every_task_gets_every_node_once_with_its_own_weights(
    forks: dict[str, set[int]], merge: str, most: int
) -> None:
    owners = {task: fork(task, *blocks)[task] for task, blocks in forks.items()}
    plan = make_plan(chain(), owners, merge=merge, most=most)  # type: ignore[arg-type]
    outputs = dict(plan.outputs)
    assert list(outputs) == ["base", *forks]
    for block in range(1, BLOCKS + 1):
        steps = [step for step in plan.steps if step.node == f"b{block}"]
        streams = [stream for step in steps for stream in step.streams]
        assert len(streams) == len(set(streams))
        assert all(len(step.streams) <= (most or len(streams)) for step in steps)
        versions = {step.versions for step in steps}
        assert versions == {("base",)} | {(task,) for task, blocks in forks.items() if block in blocks}
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
