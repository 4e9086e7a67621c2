"""A cut network is the network: prefix and suffix together answer what a model in one piece answers, bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_networks import SIZE, backbone
from tiny_prunable import pictures, prunable
from torch import Tensor, nn

from subtune_deploy.backbone import Backbone, trace
from subtune_deploy.models import Model
from subtune_deploy.spec import InputSpec, Pruning
from subtune_deploy.tasks import Task, candidate_task, standalone
from subtune_deploy.tuning.cut import crossing, dependents, picture, prefix, suffix, wanted
from subtune_deploy.tuning.settings import Fork
from subtune_deploy.tuning.start import start, units_of
from subtune_deploy.versions import Version, assemble

TOPOLOGIES = ("chain", "dense", "branching", "listing", "tokens")
FORKS = ((), (4,), (2,), (1, 3), (1, 2, 3, 4))


def batch(count: int = 3, shape: tuple[int, ...] = SIZE) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))


def composed(
    network: Backbone,
    versions: dict[str, Version],
    shown: Tensor,
    siamese: bool = False,
    model: nn.Module | None = None,
) -> Tensor:
    """The answer of prefix and suffix, one after the other."""
    base = model or network.model
    end = suffix(network, base, versions, siamese)
    with torch.no_grad():
        return end(prefix(network, base, end.needs)(shown))


def equal(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.fixture(scope="module", params=TOPOLOGIES)
def network(request: pytest.FixtureRequest) -> Backbone:
    return backbone(request.param)


@pytest.mark.parametrize("layers", FORKS)
def test_the_two_halves_are_the_stand_alone_model(network: Backbone, layers: tuple[int, ...]) -> None:
    task = candidate_task(network, "a", layers, seed=1, classes=3)
    shown = batch()
    before = shown.clone()
    equal(composed(network, dict(task.versions), shown), standalone(network, task)(shown))
    equal(shown, before)


@pytest.mark.parametrize("layers", FORKS)
def test_a_siamese_suffix_also_reads_the_bases_features(network: Backbone, layers: tuple[int, ...]) -> None:
    task = candidate_task(network, "a", layers, seed=2, classes=3, siamese=True)
    equal(composed(network, dict(task.versions), batch(), siamese=True), standalone(network, task)(batch()))


@pytest.mark.parametrize("siamese", [False, True])
def test_of_a_fork_of_everything_nothing_is_the_bases_but_the_picture(
    network: Backbone, siamese: bool
) -> None:
    with torch.random.fork_rng():
        versions = start(network, Fork("all", siamese, init="random"), 3, seed=0)
    task = Task("a", versions, 3, siamese=siamese)
    equal(composed(network, versions, batch(), siamese), standalone(network, task)(batch()))
    if not siamese:
        assert picture(network) in crossing(network, versions)
        assert set(versions) == set(network.units)


@pytest.mark.parametrize("name", ["resnet", "mobilenet", "densenet", "shufflenet", "convnext", "vit", "swin"])
def test_libraries_own_networks_with_their_writes_in_place(name: str) -> None:
    network = prunable(name)
    last = len(network.blocks)
    for layers in ((), (last,), (1, last)):
        task = candidate_task(network, "a", layers, seed=3)
        equal(composed(network, dict(task.versions), pictures()), standalone(network, task)(pictures()))


class Overwriting(nn.Module):
    """A value that crosses the cut is written over behind it, and was read before; a sum is made in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        total = self.blocks[0](x)
        total += self.blocks[1](total)
        mean = total.mean((2, 3))
        nn.functional.relu_(total)
        return self.head(self.blocks[2](total).mean((2, 3)) + mean)


@pytest.mark.parametrize("layers", [(), (3,), (2,), (1, 3)])
def test_values_that_cross_a_cut_are_not_written_over(layers: tuple[int, ...]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Overwriting().eval().requires_grad_(False)
    network = trace(Model("overwriting", module, InputSpec(SIZE), (), "random"), r"blocks\.\d")
    task = candidate_task(network, "a", layers, seed=1)
    end = suffix(network, network.model, task.versions)
    values = prefix(network, network.model, end.needs)(batch())
    kept = copy.deepcopy(values)
    with torch.no_grad():
        equal(end(values), standalone(network, task)(batch()))
        equal(end(values), standalone(network, task)(batch()))
    assert all(torch.equal(values[name], kept[name]) for name in kept)


def test_what_crosses_the_cut(network: Backbone) -> None:
    """Skips cross beside the main stream; for the head alone it is what heads read."""
    crossings = {
        "chain": {(): 1, (3,): 1, (2, 4): 1},
        "dense": {(): 1, (3,): 4, (4,): 5},
        "listing": {(): 1, (3,): 1},
        "branching": {(): 1, (4,): 2},
        "tokens": {(): 1, (4,): 1},
    }
    for layers, count in crossings[network.model.topology].items():
        found = crossing(network, units_of(network, Fork(layers)))
        assert len(found) == count, (layers, found)
        assert not set(found) & dependents(network.topology, units_of(network, Fork(layers)))


def test_several_forks_share_one_prefix() -> None:
    network = backbone("dense")
    tasks = [candidate_task(network, "a", layers, seed=5) for layers in FORKS]
    ends = [suffix(network, network.model, task.versions) for task in tasks]
    names = wanted(network, [end.needs for end in ends])
    assert len(set(names)) == len(names)
    values = prefix(network, network.model, names)(batch())
    assert tuple(values) == names
    for task, end in zip(tasks, ends, strict=True):
        with torch.no_grad():
            equal(end(values), standalone(network, task)(batch()))


def test_a_prefix_computes_nothing_beyond_what_is_wanted_and_takes_no_gradient() -> None:
    network = backbone()
    model = copy.deepcopy(network.model).requires_grad_(True)
    start_ = prefix(network, model, crossing(network, {"block2", "head"}))
    called = {str(node.target) for node in start_.module.graph.nodes if node.op == "call_module"}
    assert called == {"stem", "relu", "blocks.0"}
    assert not any(value.requires_grad for value in start_(batch()).values())


def test_a_suffix_answers_by_its_own_weights() -> None:
    network = backbone()
    task = candidate_task(network, "a", (2,), seed=1)
    versions = dict(task.versions)
    expected = composed(network, versions, batch())
    own = versions["block2"]
    assert isinstance(own, nn.Module)
    with torch.no_grad():
        next(own.parameters())[0] += 0.5
    assert not torch.equal(composed(network, versions, batch()), expected)


def test_a_suffix_does_not_heed_what_the_base_has_where_the_task_has_its_own() -> None:
    network = backbone()
    task = candidate_task(network, "a", (2,), seed=1)
    expected = composed(network, dict(task.versions), batch())
    changed = copy.deepcopy(network.model)
    with torch.no_grad():
        changed.blocks[1].conv1.weight[0] += 0.5
        changed.head.weight += 0.5
    equal(composed(network, dict(task.versions), batch(), model=changed), expected)
    with torch.no_grad():
        changed.blocks[2].conv1.weight[0] += 0.5  # after the cut, and not the task's own
    assert not torch.equal(composed(network, dict(task.versions), batch(), model=changed), expected)


def test_nothing_is_copied() -> None:
    """Weights that train, and weights that all forks share, are the very ones."""
    network = backbone("tokens")
    task = candidate_task(network, "a", (3,), seed=1)
    module = suffix(network, network.model, task.versions).module
    held = {id(parameter) for parameter in module.parameters()}
    own = {id(each) for version in task.versions.values() for each in version.parameters()}
    frozen = {id(each) for each in network.model.blocks[3].parameters()}
    assert held == own | frozen


def test_thinner_blocks_fit() -> None:
    network = backbone()
    task = candidate_task(network, "a", (2, 3), seed=1, prune=Pruning(0.5, round_to=1))
    shown = batch()
    equal(composed(network, dict(task.versions), shown), assemble(network, task.versions)(shown))
