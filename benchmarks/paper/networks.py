"""Networks of the paper that neither torchvision nor timm has; both download their weights when they are called."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torchvision.models import resnet50

DINO = "https://dl.fbaipublicfiles.com/dino/dino_resnet50_pretrain/dino_resnet50_pretrain.pth"


def dino_resnet50() -> nn.Module:
    """DINO's ResNet-50 (github.com/facebookresearch/dino), which comes without a head."""
    network = resnet50()
    missing, unexpected = network.load_state_dict(
        torch.hub.load_state_dict_from_url(DINO, map_location="cpu", weights_only=True), strict=False
    )
    if set(missing) != {"fc.weight", "fc.bias"} or unexpected:
        raise ValueError(f"{DINO} is another network: {missing} are missing, {unexpected} are unknown")
    return network


def robustbench_standard() -> nn.Module:
    """RobustBench's `Standard` for CIFAR-10: 3 stages of 4 blocks, pixels from 0 to 1.

    The paper (section 3.2) calls its network ResNet-26 and its weights the `Standard` ones of RobustBench (Croce et
    al.), whose network of that name is a WideResNet-28-10.
    """
    from robustbench.utils import load_model

    network: Any = load_model("Standard", dataset="cifar10", threat_model="corruptions")
    network.input_size, network.input_mean, network.input_std = (3, 32, 32), (0.0,) * 3, (1.0,) * 3
    return network
