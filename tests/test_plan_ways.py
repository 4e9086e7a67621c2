"""What a search of plans has to choose from."""

from __future__ import annotations

import pytest
from tiny_prunable import drawn
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock

from subtune_deploy.backbone import Backbone
from subtune_deploy.build import plan_as
from subtune_deploy.plan import Plan
from subtune_deploy.plan_ways import distinct, ways_to_group, ways_to_pack
from subtune_deploy.tasks import Task, candidate_task


@pytest.fixture(scope="module")
def resnet() -> Backbone:
    """Its blocks 2, 4 and 5 halve the picture."""
    return drawn("resnet", lambda: ResNet(BasicBlock, [1, 2, 1, 2], num_classes=5))


def planned(network: Backbone, *forks: tuple[int, ...]) -> tuple[list[Task], Plan]:
    tasks = [candidate_task(network, f"task{n}", fork, seed=n) for n, fork in enumerate(forks, start=1)]
    return tasks, plan_as(network, tasks, "always", (), ())


def test_packing_that_starts_late_starts_where_there_is_something_to_multiply(resnet: Backbone) -> None:
    macs = {node.name: node.macs for node in resnet.topology.nodes}
    plans = ways_to_pack(resnet, *planned(resnet, (1, 2), (1, 2)))
    assert [name.split("_")[0] for name in plans] == [
        "merged", "not merged", "merged from layer3", "merged from layer4",
    ]  # fmt: skip
    assert all(macs[name] for plan in plans.values() for name in plan.rejoins)
    firsts = [plan.rejoins[:1] for plan in plans.values()]
    assert len(set(firsts)) == len(firsts)  # each begins elsewhere, one nowhere


def test_a_fork_of_the_last_block_leaves_nothing_to_pack(resnet: Backbone) -> None:
    assert ways_to_pack(resnet, *planned(resnet, (6,))) == {}


@pytest.mark.parametrize(
    "blocks, ways",
    [
        ((2,), ["branches", "grouped block2"]),
        ((2, 3), ["branches", "grouped block2, block3", "grouped block2", "grouped block3"]),
        ((1, 2, 3, 4, 5), ["branches", "grouped block1, block2, block3, block4, block5"]),  # too many singles
    ],
)
def test_all_forked_blocks_are_grouped_or_few_one_by_one(
    resnet: Backbone, blocks: tuple[int, ...], ways: list[str]
) -> None:
    found = ways_to_group(resnet, *planned(resnet, blocks, blocks))
    assert list(found) == ways
    assert [plan.grouped for plan in found.values()] == [
        tuple(name.removeprefix("grouped ").split(", ")) if "grouped" in name else () for name in ways
    ]


def test_what_a_plan_does_already_is_no_other_way(resnet: Backbone) -> None:
    tasks, plan = planned(resnet, (2,), (2,))
    ways = {**ways_to_pack(resnet, tasks, plan), "again": plan_as(resnet, tasks, "never", (), ())}
    assert set(ways) - set(distinct(ways, plan)) == {"merged", "again"}
