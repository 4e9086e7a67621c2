"""Lowering against stand-alone models: by numbers, and by structure."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_networks import SIZE, Net, backbone, lively, random_tasks

from subtune_deploy.backbone import Backbone, trace
from subtune_deploy.grouped import groupable
from subtune_deploy.models import Model
from subtune_deploy.multitask import lower
from subtune_deploy.plan import make_plan
from subtune_deploy.spec import InputSpec
from subtune_deploy.tasks import Task, base_task, candidate_task, owners, standalone
from subtune_deploy.tracing import example

TOPOLOGIES = ["chain", "dense", "branching", "listing", "beside", "tokens"]
TOLERANCE = 2e-5


def plan_of(network: Backbone, tasks: list[Task], **choices: object):
    siamese = [task.name for task in tasks if task.siamese]
    return make_plan(network.topology, owners(tasks), siamese=siamese, **choices)  # type: ignore[arg-type]


def answers(module: torch.nn.Module, picture: torch.Tensor) -> tuple[torch.Tensor, ...]:
    with torch.no_grad():
        return module(picture)


def expected(network: Backbone, tasks: list[Task], picture: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        return [standalone(network, task)(picture) for task in (base_task(network), *tasks)]


def assert_same(got: tuple[torch.Tensor, ...], wanted: list[torch.Tensor]) -> None:
    assert len(got) == len(wanted)
    for one, other in zip(got, wanted, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= TOLERANCE * other.abs().max()


@settings(max_examples=25, deadline=None)
@given(
    topology=st.sampled_from(TOPOLOGIES),
    blocks=st.integers(2, 5),
    seed=st.integers(0, 10_000),
    merge=st.sampled_from(["always", "never"]),
    group=st.booleans(),
    most=st.integers(0, 3),
    batch=st.integers(1, 3),
)
def test_any_forks_on_any_network_answer_as_the_stand_alone_models(
    topology: str, blocks: int, seed: int, merge: str, group: bool, most: int, batch: int
) -> None:
    network = backbone(topology, blocks, seed=seed % 7)
    tasks = random_tasks(network, seed)
    plan = plan_of(network, tasks, merge=merge, grouped=groupable(network, tasks) if group else (), most=most)
    picture = example(SIZE, batch, seed)
    assert_same(answers(lower(network, tasks, plan), picture), expected(network, tasks, picture))


@pytest.fixture(scope="module")
def network() -> Backbone:
    return backbone("chain", blocks=5)


@pytest.fixture(scope="module")
def tasks(network: Backbone) -> list[Task]:
    return [
        candidate_task(network, "birds", (2, 3), seed=1),
        candidate_task(network, "train", (3, 4), seed=2),
    ]


def moved(before: tuple[torch.Tensor, ...], after: tuple[torch.Tensor, ...]) -> list[bool]:
    return [not torch.equal(one, other) for one, other in zip(before, after, strict=True)]


def test_a_perturbed_forked_weight_moves_its_task_alone(network: Backbone, tasks: list[Task]) -> None:
    plan, picture = plan_of(network, tasks), example(SIZE, 1)
    before = answers(lower(network, tasks, plan), picture)
    changed = copy.deepcopy(tasks)
    changed[0].versions["block3"].conv1.weight.data += 0.1  # type: ignore[union-attr]
    assert moved(before, answers(lower(network, changed, plan), picture)) == [False, True, False]


def test_a_perturbed_prefix_weight_moves_every_task(network: Backbone, tasks: list[Task]) -> None:
    plan, picture = plan_of(network, tasks), example(SIZE, 1)
    before = answers(lower(network, tasks, plan), picture)
    module = lower(network, tasks, plan)
    module.get_submodule("block1.base").conv1.weight = torch.nn.Parameter(
        module.get_submodule("block1.base").conv1.weight + 0.1
    )
    assert moved(before, answers(module, picture)) == [True, True, True]


def test_swapped_tasks_are_noticed(network: Backbone, tasks: list[Task]) -> None:
    plan, picture = plan_of(network, tasks), example(SIZE, 1)
    one, two = tasks
    swapped = [Task("birds", two.versions, two.classes), Task("train", one.versions, one.classes)]
    with pytest.raises((AssertionError, KeyError)):
        assert_same(answers(lower(network, swapped, plan), picture), expected(network, tasks, picture))


def test_lowering_leaves_the_backbone_and_the_tasks_as_they_were(
    network: Backbone, tasks: list[Task]
) -> None:
    before = copy.deepcopy(network.model.state_dict())
    inplace = [getattr(m, "inplace", None) for m in network.model.modules()]
    lower(network, tasks, plan_of(network, tasks, grouped=groupable(network, tasks)))
    assert all(torch.equal(before[name], tensor) for name, tensor in network.model.state_dict().items())
    assert [getattr(m, "inplace", None) for m in network.model.modules()] == inplace


def test_versions_share_the_base_tensors(network: Backbone, tasks: list[Task]) -> None:
    module = lower(network, tasks, plan_of(network, tasks))
    base = network.model.get_submodule(network.units["block1"]).conv1.weight
    assert module.get_submodule("block1.base").conv1.weight.data_ptr() == base.data_ptr()


def test_each_block_is_called_as_often_as_the_plan_says(network: Backbone, tasks: list[Task]) -> None:
    module = lower(network, tasks, plan_of(network, tasks))
    calls = [str(node.target) for node in module.graph.nodes if node.op == "call_module"]
    assert [call for call in calls if call.startswith("block3")] == [
        "block3.base",
        "block3.birds",
        "block3.train_",
    ]
    assert calls.count("block1.base") == calls.count("block5.base") == 1
    assert calls.count("block4.base") == 1  # packed: base and birds
    assert calls.count("block4.train_") == 1  # a task may have the name of a method of torch's modules


def test_two_plans_share_the_steps_they_share(network: Backbone, tasks: list[Task]) -> None:
    alone = make_plan(network.topology, {})
    module = lower(network, tasks, plan_of(network, tasks), alone)
    calls = [str(node.target) for node in module.graph.nodes if node.op == "call_module"]
    assert calls.count("block1.base") == 1  # one prefix
    assert calls.count("block5.base") == 2  # packed for the tasks, and alone
    got = answers(module, example(SIZE, 2))
    with torch.no_grad():
        assert torch.equal(got[-1], network.model(example(SIZE, 2)))


def test_grouped_versions_must_have_one_shape(network: Backbone, tasks: list[Task]) -> None:
    assert set(groupable(network, tasks)) == {"block2", "block3", "block4"}
    module = lower(network, tasks, plan_of(network, tasks, grouped=("block3",)))
    calls = [str(node.target) for node in module.graph.nodes if node.op == "call_module"]
    assert "block3.grouped" in calls
    assert module.get_submodule("block3.grouped").conv1.weight.shape[0] == 3


@pytest.mark.parametrize(
    "names", [("train", "train_"), ("training", "import"), ("grouped", "None"), ("relu", "cat")]
)
def test_a_task_may_be_called_anything_that_an_output_may(network: Backbone, names: tuple[str, str]) -> None:
    tasks = [candidate_task(network, name, (2, 3), seed=seed) for seed, name in enumerate(names)]
    for grouped in ((), groupable(network, tasks)):
        module = lower(network, tasks, plan_of(network, tasks, grouped=grouped))
        picture = example(SIZE, 2)
        assert_same(answers(module, picture), expected(network, tasks, picture))


def test_neighbours_in_a_packed_value_are_taken_together(network: Backbone) -> None:
    tasks = [candidate_task(network, "near", (2,), seed=1), candidate_task(network, "far", (2, 4), seed=2)]
    module = lower(network, tasks, plan_of(network, tasks))
    packed = [node for node in module.graph.nodes if node.target is torch.cat]
    assert (
        len(packed) == 2
    )  # block 3 for three streams, block 5 for three; block 4 reads a slice of block 3's
    assert len([node for node in module.graph.nodes if node.target == "narrow"]) == 1


def test_grouped_versions_of_several_streams_each_may_read_one_stream_beside() -> None:
    network = backbone("beside", 3)
    one, two, three = (
        candidate_task(network, name, fork, seed=seed)
        for seed, (name, fork) in enumerate({"one": (1, 3), "two": (3,), "three": (1,)}.items())
    )
    two = Task("two", {**two.versions, "block3": one.versions["block3"]}, two.classes)
    tasks = [one, two, three]
    plan = plan_of(network, tasks, grouped=groupable(network, tasks))
    (step,) = [each for each in plan.steps if each.node == "blocks_2"]
    assert len(step.versions) == 2 < len(step.streams)  # each runs two streams, all read the one stem
    picture = example(SIZE, 2)
    assert_same(answers(lower(network, tasks, plan), picture), expected(network, tasks, picture))


def test_a_unit_that_runs_twice_is_not_grouped() -> None:
    class Twice(Net):
        def chain(self, x):
            return self.blocks[1](self.blocks[0](self.blocks[1](x))).mean((2, 3))

    torch.manual_seed(0)
    net = lively(Twice("chain", 2, 4)).eval().requires_grad_(False)
    network = trace(Model("twice", net, InputSpec(SIZE), (), "random"))
    tasks = [candidate_task(network, "both", (1, 2), seed=1)]
    assert len(groupable(network, tasks)) == 1
    module = lower(network, tasks, plan_of(network, tasks, grouped=groupable(network, tasks)))
    assert_same(answers(module, example(SIZE, 2)), expected(network, tasks, example(SIZE, 2)))
