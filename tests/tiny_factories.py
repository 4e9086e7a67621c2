"""The tiny networks as a user's own code makes them: models that can be loaded by name, `tiny_factories:chain`."""

from __future__ import annotations

from tiny_networks import SIZE, Net, lively
from torch import nn
from torchvision.models import VisionTransformer

from subtune_deploy.backbone import Backbone, trace
from subtune_deploy.models import load_model

SEED = 5
"""Not the default, so that weights which were not read from a file are noticed."""


def network(topology: str = "chain", *, seed: int = SEED, pattern: str | None = None) -> Backbone:
    """A traced tiny network that `--model tiny_factories:TOPOLOGY` names."""
    return trace(load_model(f"tiny_factories:{topology}", seed=seed), pattern)


def chain() -> nn.Module:
    return _made("chain")


def branching() -> nn.Module:
    return _made("branching")


def dense() -> nn.Module:
    return _made("dense")


def tokens() -> nn.Module:
    return _made("tokens")


def short_vit() -> nn.Module:
    """ViT-B/16, a third as deep."""
    net = VisionTransformer(32, 16, 4, 12, 768, 3072)
    nn.init.normal_(net.heads.head.weight, std=0.02)  # zero in a new one
    net.input_size = (3, 32, 32)
    return net


def wider() -> nn.Module:
    return _made("chain", width=6)


def flipped() -> nn.Module:
    """The same weights as `chain`, another network."""
    net = _made("chain")
    net.relu = nn.Hardswish()
    return net


def _made(topology: str, width: int = 4) -> nn.Module:
    net = lively(Net(topology, 4, width))
    net.input_size = SIZE
    return net
