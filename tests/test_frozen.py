"""What is frozen answers as the backbone does, with fewer operators; what cannot be folded stays."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from test_multitask import TOPOLOGIES
from tiny_networks import SIZE, Net, lively
from tiny_networks import backbone as tiny
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from subtune_deploy.backbone import Backbone, trace
from subtune_deploy.models import Model, load_model
from subtune_deploy.spec import InputSpec
from subtune_deploy.tracing import example
from subtune_deploy.tuning.frozen import frozen

CPU = torch.device("cpu")


def norms(module: nn.Module) -> int:
    return sum(isinstance(each, _BatchNorm) for each in module.modules())


def assert_alike(network: nn.Module, backbone: Backbone) -> None:
    shown = example(backbone.input.shape, 3, seed=1)
    with torch.no_grad():
        torch.testing.assert_close(network(shown), backbone.model(shown), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("resnet18", 1),  # the stem's, which is in no block
        ("timm:tf_efficientnet_lite0", 2),  # with activations; behind the stem and before the head
        ("mobilenet_v3_small", 2),
        ("vit_b_16", 0),
    ],
)
def test_real_networks(name: str, left: int) -> None:
    backbone = trace(
        load_model(name, input_size=(3, 224 if "vit" in name else 64, 224 if "vit" in name else 64))
    )
    before = {key: value.clone() for key, value in backbone.model.state_dict().items()}
    network = frozen(backbone, CPU)
    assert norms(network) == left
    assert_alike(network, backbone)
    after = backbone.model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert not any(each.requires_grad for each in network.parameters())


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_blocks_joined_in_any_way(topology: str) -> None:
    backbone = tiny(topology)
    network = frozen(backbone, CPU)
    assert norms(network) == 0
    assert_alike(network, backbone)


def test_gradients_flow_through_as_they_did() -> None:
    backbone = tiny()
    shown = [example(SIZE, 2, seed=1).requires_grad_() for _ in range(2)]
    for model, pictures in zip((frozen(backbone, CPU), backbone.model), shown, strict=True):
        model(pictures).square().sum().backward()
    torch.testing.assert_close(shown[0].grad, shown[1].grad, rtol=1e-4, atol=1e-5)


class Standardised(nn.Conv2d):
    """Does not convolve with its weight as it is."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight / self.weight.std(), self.bias)


class OwnNorm(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class Odd(nn.Module):
    def __init__(
        self, make: Callable[[], nn.Module], norm: Callable[[int], nn.Module], forward: Callable
    ) -> None:
        super().__init__()
        self.conv, self.bn, self.other, self.way = make(), norm(4), nn.BatchNorm2d(4), forward

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self, x)


def plain() -> nn.Module:
    return nn.Conv2d(4, 4, 3, padding=1)


BATCH = nn.BatchNorm2d
UNTRACKED = partial(nn.BatchNorm2d, track_running_stats=False)
CASES = {
    "a standardised weight": (lambda: Standardised(4, 4, 1), BATCH, lambda b, x: b.bn(b.conv(x))),
    "a norm of one's own": (plain, OwnNorm, lambda b, x: b.bn(b.conv(x))),
    "the norm first": (plain, BATCH, lambda b, x: b.conv(b.bn(x))),
    "an activation between": (plain, BATCH, lambda b, x: b.bn(b.conv(x).relu())),
    "values read twice": (plain, BATCH, lambda b, x: b.bn(y := b.conv(x)) + y),
    "a convolution that runs twice": (plain, BATCH, lambda b, x: b.bn(b.conv(b.conv(x)))),
    "a norm that runs twice": (plain, BATCH, lambda b, x: b.bn(b.bn(b.conv(x)))),
    "two norms": (plain, BATCH, lambda b, x: b.bn(b.conv(x)) + b.other(b.conv(x))),
    "a weight that is read": (plain, BATCH, lambda b, x: b.bn(b.conv(x)) * b.conv.weight.mean()),
    "statistics that are read": (plain, BATCH, lambda b, x: b.bn(b.conv(x)) * b.bn.running_var.mean()),
    "a transposed one": (lambda: nn.ConvTranspose2d(4, 4, 1), BATCH, lambda b, x: b.bn(b.conv(x))),
    "the statistics of each batch": (plain, UNTRACKED, lambda b, x: b.bn(b.conv(x))),
}


@pytest.mark.parametrize(("make", "norm", "way"), CASES.values(), ids=CASES)
def test_what_must_not_be_folded_stays(
    make: Callable[[], nn.Module], norm: Callable[[int], nn.Module], way: Callable
) -> None:
    torch.manual_seed(0)
    net = Net("chain", 2, 4)
    net.blocks[0] = Odd(make, norm, way)
    module = lively(net).eval().requires_grad_(False)
    backbone = trace(Model("odd", module, InputSpec(SIZE), (), "random"), r"blocks\.\d")
    network = frozen(backbone, CPU)
    assert norms(network.get_submodule("blocks.0")) == norms(net.blocks[0])
    assert norms(network.get_submodule("blocks.1")) == 0
    assert_alike(network, backbone)
