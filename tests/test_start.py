"""What a fork starts from is drawn by the seed and the unit's name, whatever else is trained."""

from __future__ import annotations

import pytest
import torch
from tiny_networks import backbone
from tiny_prunable import prunable
from torch import Tensor, nn

from subtune_deploy.backbone import Backbone
from subtune_deploy.data.dataset import derived
from subtune_deploy.errors import InputError, LayersError
from subtune_deploy.pruning import prune
from subtune_deploy.spec import Pruning
from subtune_deploy.tasks import Task, standalone
from subtune_deploy.tuning.settings import Fork
from subtune_deploy.tuning.start import layers_of, parameters, start, thinned, units_of
from subtune_deploy.versions import Version

HALF = Pruning(0.5, round_to=1)


@pytest.fixture(autouse=True)
def _own_random_state() -> None:  # type: ignore[misc]
    with torch.random.fork_rng():
        yield


def begun(network: Backbone, fork: Fork, seed: int = 0, classes: int = 3) -> dict[str, Version]:
    return start(network, fork, classes, seed)


def state(version: Version) -> dict[str, Tensor]:
    return version.state_dict() if isinstance(version, nn.Module) else {"": version}


def base(network: Backbone, unit: str) -> dict[str, Tensor]:
    return network.model.get_submodule(network.units[unit]).state_dict()


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def shapes(version: Version) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state(version).items()}


# Which units


def test_a_fork_has_its_blocks_and_the_heads_in_the_order_of_the_network() -> None:
    network = backbone()
    assert list(begun(network, Fork((3, 1)))) == ["block1", "block3", "head"]
    assert list(begun(network, Fork())) == ["head"]
    assert layers_of(network, Fork((3, 1))) == (1, 3)
    assert layers_of(network, Fork("all")) == (1, 2, 3, 4)


@pytest.mark.parametrize("topology", ["chain", "tokens"])
def test_all_is_everything_that_has_parameters(topology: str) -> None:
    network = backbone(topology)
    versions = begun(network, Fork("all"))
    assert tuple(versions) == units_of(network, Fork("all"))
    trained = sum(parameter.numel() for version in versions.values() for parameter in parameters(version))
    resized = sum(p.numel() for p in network.model.head.parameters()) * 3 // 5  # three classes of five
    assert trained == network.parameters - sum(p.numel() for p in network.model.head.parameters()) + resized
    bare = {unit for unit, version in versions.items() if isinstance(version, nn.Parameter)}
    assert bare == ({"position", "token"} if topology == "tokens" else set())


def test_unknown_blocks_are_refused() -> None:
    network = backbone()
    for function in (layers_of, units_of):
        with pytest.raises(LayersError, match=r"blocks 5-6,9 are outside 1\.\.4"):
            function(network, Fork((2, 5, 6, 9)))
    with pytest.raises(LayersError, match=r"blocks 0 are outside 1\.\.4"):
        begun(network, Fork((0,)))


# Pretrained


def test_tuned_blocks_start_as_copies_of_the_bases() -> None:
    network = backbone()
    versions = begun(network, Fork((2, 3)))
    for unit in ("block2", "block3"):
        assert equal(state(versions[unit]), base(network, unit))
        own = {each.data_ptr() for each in state(versions[unit]).values()}
        assert not own & {each.data_ptr() for each in base(network, unit).values()}


# Heads


def test_the_head_is_drawn_anew_and_the_same_whatever_else_is_trained() -> None:
    network = backbone()
    forks = (Fork(), Fork((2,)), Fork("all"), Fork((2, 3), init="random"), Fork((4,), prune=HALF))
    heads = [state(begun(network, fork)["head"]) for fork in forks]
    assert heads[0]["weight"].shape == (3, 4)
    assert all(equal(head, heads[0]) for head in heads)
    assert not torch.equal(heads[0]["weight"], base(network, "head")["weight"][:3])
    assert not equal(state(begun(network, Fork(), seed=1)["head"]), heads[0])


@pytest.mark.parametrize("classes", [2, 5, 9])
def test_a_head_has_the_tasks_classes_and_is_as_wide_as_pytorch_makes_it(classes: int) -> None:
    head = state(begun(backbone(), Fork(), classes=classes)["head"])
    assert head["weight"].shape == (classes, 4)
    assert head["bias"].shape == (classes,)
    assert float(head["weight"].abs().max()) <= 4**-0.5  # nn.Linear's bound


def test_a_siamese_head_reads_twice_the_features() -> None:
    assert state(begun(backbone(), Fork((2,), siamese=True))["head"])["weight"].shape == (3, 8)


def test_of_a_head_of_several_layers_the_last_is_drawn_anew() -> None:
    network = prunable("convnext")
    (unit,) = network.heads
    new, old = state(begun(network, Fork())[unit]), base(network, unit)
    last = [name for name in new if new[name].dim() == 2]
    assert all(torch.equal(new[name], old[name]) for name in new if new[name].shape == old[name].shape)
    assert [new[name].shape[0] for name in last] == [3]


# From scratch


@pytest.mark.parametrize(
    "name", ["resnet", "grouped", "mobilenet", "efficientnet", "convnext", "vit", "timm vit", "swin"]
)
def test_blocks_from_scratch_have_other_weights_of_the_same_shapes(name: str) -> None:
    network = prunable(name)
    last = len(network.blocks)
    versions = begun(network, Fork((last,), init="random"))
    unit = f"block{last}"
    assert {key: tensor.shape for key, tensor in base(network, unit).items()} == shapes(versions[unit])
    for key, parameter in versions[unit].named_parameters():  # type: ignore[union-attr]
        assert parameter.isfinite().all(), key
        if parameter.dim() > 1:
            assert not torch.equal(parameter, base(network, unit)[key]), key
            assert parameter.abs().max() > 0, key
    answer = standalone(network, Task("a", versions, 3))(torch.randn(2, 3, 32, 32))
    assert answer.isfinite().all()


def test_statistics_of_blocks_from_scratch_are_those_of_new_layers() -> None:
    found = state(begun(backbone(), Fork((2,), init="random"))["block2"])
    assert torch.equal(found["bn1.running_mean"], torch.zeros(4))
    assert torch.equal(found["bn1.running_var"], torch.ones(4))
    assert torch.equal(found["bn1.weight"], torch.ones(4))


def test_a_block_from_scratch_is_the_same_whatever_else_is_trained() -> None:
    network = backbone()
    alone = state(begun(network, Fork((3,), init="random"))["block3"])
    for fork in (Fork((1, 3, 4), init="random"), Fork("all", init="random")):
        assert equal(state(begun(network, fork)["block3"]), alone)
    assert not equal(state(begun(network, Fork((3,), init="random"), seed=1)["block3"]), alone)
    four = begun(network, Fork((3, 4), init="random"))["block4"]
    assert not torch.equal(state(four)["conv1.weight"], alone["conv1.weight"])  # as large, and another


def test_bare_parameters_from_scratch_are_as_large_as_they_were() -> None:
    network = backbone("tokens", width=16)
    versions = begun(network, Fork("all", init="random"))
    new, old = versions["position"], network.model.position
    assert isinstance(new, nn.Parameter)
    assert not torch.equal(new, old)
    assert 0.8 < float(new.std() / old.std()) < 1.25


def test_a_parameter_that_is_constant_does_not_vanish() -> None:
    """A scale of 0.5 for all channels, as ConvNeXt's at its start."""
    network = prunable("convnext")
    scales = [key for key in base(network, "block1") if key.endswith("layer_scale")]
    assert scales
    assert all(float(base(network, "block1")[key].std()) == 0 for key in scales)
    new = state(begun(network, Fork((1,), init="random"))["block1"])
    assert all(new[key].abs().min() > 0 for key in scales)
    assert all(0.2 < float(new[key].square().mean().sqrt()) < 1 for key in scales)


# Pruned


def test_what_is_pruned_before_training_is_thinner_and_keeps_the_heaviest_weights() -> None:
    network = backbone()
    versions = begun(network, Fork((2, 3), prune=HALF))
    for unit in ("block2", "block3"):
        assert equal(state(versions[unit]), state(prune(network, (2, 3), HALF)[unit]))
        assert shapes(versions[unit])["conv1.weight"] == (2, 4, 3, 3)
        assert shapes(versions[unit])["conv2.weight"] == (4, 2, 1, 1)
    assert shapes(versions["head"])["weight"] == (3, 4)


def test_what_is_pruned_after_training_starts_whole_and_is_thinned_by_its_trained_weights() -> None:
    network = backbone()
    fork = Fork((2,), prune=Pruning(0.5, round_to=1, when="after"))
    versions = begun(network, fork)
    assert equal(state(versions["block2"]), base(network, "block2"))
    own = versions["block2"]
    assert isinstance(own, nn.Module)
    with torch.no_grad():
        own.conv1.weight[[0, 3]] *= 100  # type: ignore[index]
        own.bn1.weight.fill_(1)
        own.conv2.weight.fill_(0.1)
    heavy = own.conv1.weight[[0, 3]].clone()
    thin = thinned(network, fork, versions)
    assert torch.equal(state(thin["block2"])["conv1.weight"], heavy)
    assert thin["head"] is versions["head"]


def test_a_thin_stream_has_a_head_to_fit() -> None:
    network = prunable("resnet")
    last = len(network.blocks)
    fork = Fork((last - 1, last), siamese=True, prune=Pruning(0.5, round_to=1, outer=True))
    versions = begun(network, fork)
    (unit,) = network.heads
    assert shapes(versions[unit])["weight"] == (3, 512 + 256)
    answer = standalone(network, Task("a", versions, 3, siamese=True))(torch.randn(2, 3, 32, 32))
    assert answer.shape == (2, 3)


def test_pruned_from_scratch_is_as_thin_and_anew() -> None:
    network = backbone()
    thin = begun(network, Fork((2,), prune=HALF))["block2"]
    anew = begun(network, Fork((2,), init="random", prune=HALF))["block2"]
    assert shapes(anew) == shapes(thin)
    assert not torch.equal(state(anew)["conv1.weight"], state(thin)["conv1.weight"])


def test_a_ratio_that_removes_nothing_is_refused() -> None:
    with pytest.raises(InputError, match=r"a ratio of 0\.1 removes nothing from block 2"):
        begun(backbone(), Fork((2,), prune=Pruning(0.1)))


# Seeds


def test_derived_seeds_differ_in_every_part_and_are_taken_by_torch() -> None:
    seeds = [derived(seed, what, n) for seed in (0, 1) for what in ("order", "step") for n in range(3)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derived(0, "order", 1) == seeds[1]
    for seed in seeds:
        torch.Generator().manual_seed(seed)
