"""What blocks cost, against counts made by hand and by others."""

from __future__ import annotations

import pytest
import torch
from tiny_networks import backbone, random_tasks
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from subtune_deploy.backbone import trace
from subtune_deploy.costs import CandidateFork, Candidates, count_costs, task_costs
from subtune_deploy.models import Model, load_model
from subtune_deploy.multitask import lower
from subtune_deploy.plan import make_plan
from subtune_deploy.spec import BASE, InputSpec, Pruning
from subtune_deploy.tasks import candidate_task, owners
from subtune_deploy.tracing import example, plain_attention
from subtune_deploy.work import Cost, Work, plan_works, unpacked


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.conv(x))


class Two(nn.Module):
    """Two blocks of which everything can be counted by hand, on pictures of 8 x 8."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(Block(), Block())
        self.head = nn.Linear(3 * 64, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(x).flatten(1))


def test_by_hand() -> None:
    """A block: 9 x 3 x 3 products at 64 places; it reads 192 values and writes 192, the ReLU once more."""
    two = trace(Model("two", Two().eval(), InputSpec((3, 8, 8)), (), "random"), r"layers\.\d")
    counted = count_costs(two)
    block, head = counted.costs["layers_0"], counted.costs["head"]
    assert block == Cost(macs=9 * 9 * 64, activations=4 * 192, weights=9 * 9 + 3, launches=2)
    assert head == Cost(
        macs=192 * 5, activations=192 + 5, weights=193 * 5, launches=1
    )  # its weights are no activations
    assert counted.costs["flatten"].launches == 0  # a view
    assert counted.uncounted == {"aten.relu": 2}


TOPOLOGIES = ("chain", "dense", "branching", "listing", "tokens")


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("merge", ["always", "never"])
@pytest.mark.parametrize("seed", range(3))
def test_a_plan_multiplies_as_often_as_its_lowered_graph_does(topology: str, merge: str, seed: int) -> None:
    """PyTorch's counter on the module that is exported, whatever the forks, is the sum over the plan."""
    network = backbone(topology)
    tasks = [task for task in random_tasks(network, seed) if not task.siamese]
    plan = make_plan(network.topology, owners(tasks), merge=merge)  # type: ignore[arg-type]
    works = plan_works(network.topology, plan, task_costs(network, tasks))
    module = lower(network, tasks, plan)
    with FlopCounterMode(display=False) as counter, plain_attention(), torch.no_grad():
        module(example(network.input.shape, 2))
    assert sum(work.macs for work in works) == counter.get_total_flops() // 2 // 2  # FLOP, pictures


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "vit_b_16", "swin_t"])
def test_real_networks(name: str) -> None:
    network = trace(load_model(name))
    counted = count_costs(network)
    total = sum(counted.costs.values(), Cost())
    assert total.macs == network.macs
    statistics = sum(b.numel() for n, b in network.model.named_buffers() if "running" in n)
    assert network.parameters <= total.weights <= network.parameters + statistics
    assert all(
        counted.costs[node.name].launches
        for node in network.topology.nodes
        if node.unit and node.op == "call_module"
    )
    assert total.activations < 40 * total.launches * 10**6  # no weight was taken for an activation
    known = {
        "resnet18": "aten.relu_",
        "efficientnet_b0": "aten.silu_",
        "vit_b_16": "aten.gelu",
        "swin_t": "aten.roll",
    }
    assert counted.uncounted[known[name]] > 0
    assert not {"aten.convolution", "aten.addmm", "aten.bmm", "aten.view"} & set(counted.uncounted)


def test_a_thinner_fork_and_a_head_of_other_classes_cost_what_they_weigh() -> None:
    network = backbone()
    thin = candidate_task(network, "thin", (2,), seed=1, classes=10, prune=Pruning(0.5, round_to=1))
    costs = task_costs(network, [thin])
    assert set(costs["thin"]) == {"blocks_1", "head"}
    base, mine = costs[BASE]["blocks_1"], costs["thin"]["blocks_1"]
    assert (mine.macs, mine.weights, mine.activations) < (base.macs, base.weights, base.activations)
    assert mine.launches == base.launches
    assert costs["thin"]["head"].macs == 2 * costs[BASE]["head"].macs  # 10 classes for 5


def test_candidates_without_merging_load_the_suffix_for_each_task() -> None:
    known, forks = Candidates(backbone()), [CandidateFork((2,))] * 2
    together, apart = (
        {work.unit: work for work in unpacked(known.works(forks, merge=merge))}
        for merge in ("always", "never")
    )
    assert together["block3"].macs == apart["block3"].macs
    assert (together["block3"].launches * 3, together["block3"].weights * 3) == (
        apart["block3"].launches,
        apart["block3"].weights,
    )


def test_candidates_of_different_forks_are_thinned_each() -> None:
    known = Candidates(backbone())
    thin, whole = (
        {work.unit: work for work in known.works([CandidateFork((block,), prune) for block in (2, 3)])}
        for prune in (Pruning(0.5, round_to=1), None)
    )
    assert all(thin[unit].weights < whole[unit].weights for unit in ("block2", "block3"))
    assert thin["block4"] == whole["block4"]


def test_forks_that_are_thinned_differently_share_a_graph() -> None:
    network, thin = trace(load_model("resnet18", input_size=(3, 64, 64))), Pruning(0.5)
    known = Candidates(network)

    def macs(*forks: CandidateFork) -> int:
        return sum(work.macs for work in known.works(forks))

    late, late_thin = CandidateFork((7, 8)), CandidateFork((7, 8), thin)
    alone, whole, half = macs(), macs(late), macs(late_thin)
    assert macs(late_thin, late) - alone == (whole - alone) + (half - alone)
    assert alone < half < whole
    assert known.works([late_thin]) == Candidates(network).works([late_thin])


@pytest.mark.parametrize("thin", [None, Pruning(0.5, round_to=1)])
def test_a_candidate_pays_for_the_head_that_it_has(thin: Pruning | None) -> None:
    """As many weights less as the base's five classes have; everything else costs the same."""
    network = backbone()
    known = Candidates(network)

    def works(classes: int | None) -> dict[str, Work]:
        return {work.unit: work for work in known.works([CandidateFork((2,), thin, classes)])}

    five, two, plain = works(5), works(2), works(None)
    assert five == plain
    features = network.model.get_submodule("head").in_features
    assert plain["head"].weights - two["head"].weights == 3 * (features + 1)
    assert plain["head"].macs - two["head"].macs == 3 * features
    assert {unit: work for unit, work in two.items() if unit != "head"} == {
        unit: work for unit, work in plain.items() if unit != "head"
    }
