"""Forks that train together fit into memory, as it is estimated before any of them trains; and families of networks."""

from __future__ import annotations

from itertools import pairwise

import pytest
import timm
import torch
import torchvision
from tiny_networks import backbone
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from subtune_deploy.backbone import Backbone, trace
from subtune_deploy.errors import InputError, LayersError
from subtune_deploy.models import Model
from subtune_deploy.spec import InputSpec
from subtune_deploy.tuning.chunks import COPIES, activations, chunks
from subtune_deploy.tuning.cut import dependents
from subtune_deploy.tuning.settings import Fork, TrainConfig, resolved
from subtune_deploy.tuning.start import start, units_of
from subtune_deploy.tuning.train import family
from subtune_deploy.versions import assemble

BATCH = 8
AMPLE = 1 << 40
FORKS = (Fork(), Fork((4,)), Fork((3,)), Fork((2, 3)), Fork((1,), siamese=True), Fork("all"))


def activation_bytes(network: Backbone, fork: Fork, batch: int = BATCH) -> int:
    kept = activations(network)
    return batch * sum(kept[name] for name in dependents(network.topology, units_of(network, fork)))


def weight_bytes(network: Backbone, fork: Fork) -> int:
    with torch.random.fork_rng():
        versions = start(network, fork, 5, seed=0)  # as many classes as the base's
    return COPIES * 4 * sum(p.numel() for version in versions.values() for p in version.parameters())


def together_bytes(network: Backbone, forks: list[Fork]) -> int:
    """All weights, and the activations of one at a time."""
    return sum(weight_bytes(network, fork) for fork in forks) + max(
        activation_bytes(network, fork) for fork in forks
    )


def alone(network: Backbone, fork: Fork) -> int:
    return together_bytes(network, [fork])


# Groups


def test_with_ample_memory_all_train_together() -> None:
    assert chunks(backbone(), FORKS, BATCH, AMPLE) == [list(FORKS)]
    assert chunks(backbone(), (), BATCH, AMPLE) == []


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.6, 0.9])
def test_groups_fit_the_limit_and_keep_the_order(share: float) -> None:
    network = backbone()
    forks = [fork for fork in FORKS if not fork.siamese] * 2
    least = max(alone(network, fork) for fork in forks)
    limit = round(least + share * (together_bytes(network, forks) - least))
    groups = chunks(network, forks, BATCH, limit)
    assert [fork for group in groups for fork in group] == forks
    assert all(together_bytes(network, group) <= limit for group in groups)
    for one, two in pairwise(groups):
        assert together_bytes(network, [*one, two[0]]) > limit  # no group ends before it is full
    assert len(groups) > 1


def test_a_limit_that_is_just_reached_is_kept() -> None:
    network, forks = backbone(), [Fork((3,)), Fork((4,))]
    limit = together_bytes(network, forks)
    assert chunks(network, forks, BATCH, limit) == [forks]
    assert chunks(network, forks, BATCH, limit - 1) == [forks[:1], forks[1:]]


def test_a_fork_that_is_too_large_by_itself_is_refused_with_sizes() -> None:
    network = backbone(width=32)
    limit = alone(network, Fork("all")) - 1
    with pytest.raises(InputError, match="training fork all takes about") as caught:
        chunks(network, (Fork((4,)), Fork("all")), BATCH, limit)
    told = caught.value.message
    assert f"takes about {(limit + 1) / 1e6:,.1f} MB in batches of 8, where {limit / 1e6:,.1f} MB may" in told
    assert "\n" not in told + caught.value.hint
    assert "--batch-size" in caught.value.hint
    assert "--memory-bytes" in caught.value.hint
    assert chunks(network, (Fork((4,)), Fork("all")), BATCH // 2, limit) == [[Fork((4,)), Fork("all")]]


def test_unknown_blocks_are_refused() -> None:
    with pytest.raises(LayersError, match=r"blocks 7 are outside 1\.\.4"):
        chunks(backbone(), (Fork((7,)),), BATCH, AMPLE)


# What is estimated


@pytest.mark.parametrize("topology", ["chain", "dense", "listing", "tokens"])
def test_later_forks_keep_fewer_activations_than_earlier_ones(topology: str) -> None:
    network = backbone(topology)
    forks = (Fork("all"), Fork((1,)), Fork((2,)), Fork((3,)), Fork((4,)), Fork())
    sizes = [activation_bytes(network, fork) for fork in forks]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) >= 5
    assert activation_bytes(network, Fork((2,))) == activation_bytes(network, Fork((2, 3, 4)))


def test_estimates_leave_the_network_and_the_random_state_alone() -> None:
    network = backbone()
    before, state = {k: v.clone() for k, v in network.model.state_dict().items()}, torch.get_rng_state()
    activations(network)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in network.model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.fixture(scope="module")
def resnet() -> Backbone:
    return traced("resnet18", 64)


@pytest.mark.parametrize(
    "fork", [Fork(), Fork((8,)), Fork((7,)), Fork((4,)), Fork((1,)), Fork("all")], ids=str
)
def test_activations_agree_with_what_a_step_keeps(resnet: Backbone, fork: Fork) -> None:
    """Of the whole model, of which only the fork takes gradients, in training mode there."""
    with torch.random.fork_rng():
        versions = start(resnet, fork, 10, seed=0)
    model = assemble(resnet, versions).requires_grad_(False)
    for unit in versions:
        model.get_submodule(resnet.units[unit]).requires_grad_().train()
    weights = {each.untyped_storage().data_ptr() for each in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    shown, labels = torch.randn(BATCH, 3, 64, 64), torch.arange(BATCH) % 10
    with torch.enable_grad(), saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = nn.functional.cross_entropy(model(shown), labels)
    measured = sum(tensor.untyped_storage().nbytes() for at, tensor in kept.items() if at not in weights)
    loss.backward()
    estimated = activation_bytes(resnet, fork)
    assert measured / 2 < estimated < 2 * measured, (estimated, measured)


# Families


def traced(name: str, size: int) -> Backbone:
    """With random weights, at any size that the network takes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name.startswith("timm:"):
            options = {"img_size": size} if "vit" in name or "deit" in name else {}
            module = timm.create_model(name.removeprefix("timm:"), pretrained=False, **options)
        else:
            options = {"image_size": size} if name.startswith("vit") else {}
            module = torchvision.models.get_model(name, weights=None, **options)
    module.eval().requires_grad_(False)
    return trace(Model(name, module, InputSpec((3, size, size)), (), "random"))


@pytest.mark.parametrize(
    "name",
    ["resnet18", "convnext_tiny", "efficientnet_b0", "mobilenet_v2", "timm:tf_efficientnet_lite0"],
)
def test_networks_of_convolutions_take_the_papers_settings_for_these(name: str) -> None:
    found = family(traced(name, 64))
    assert found == "convolutional"
    assert resolved(TrainConfig(), found, 5000).probe_lr == 1e-2


@pytest.mark.parametrize(
    "name, size",
    [
        ("vit_b_16", 32),
        ("swin_t", 64),
        ("timm:vit_tiny_patch16_224", 32),
        ("timm:deit_tiny_patch16_224", 32),
    ],
)
def test_networks_that_attend_to_positions_take_those_for_transformers(name: str, size: int) -> None:
    found = family(traced(name, size))
    assert found == "transformer"
    assert resolved(TrainConfig(), found, 5000).probe_lr == 1e-4


def test_attention_over_channels_makes_no_transformer() -> None:
    """Nor do tiny networks of convolutions."""
    assert family(traced("timm:seresnet18", 64)) == "convolutional"
    assert family(backbone("tokens")) == "transformer"
    assert family(backbone()) == "convolutional"
