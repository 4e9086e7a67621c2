"""Small networks of libraries' own blocks, for tests of pruning: every kind of layer that channels run through."""

from __future__ import annotations

from collections.abc import Callable

import timm
import torch
from tiny_networks import lively
from torch import nn
from torchvision.models import (
    ConvNeXt,
    DenseNet,
    EfficientNet,
    MobileNetV2,
    RegNet,
    ResNet,
    ShuffleNetV2,
    SwinTransformer,
    VisionTransformer,
)
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.efficientnet import MBConvConfig
from torchvision.models.regnet import BlockParams
from torchvision.models.resnet import BasicBlock, Bottleneck

from subtune_deploy.backbone import Backbone, trace
from subtune_deploy.models import Model
from subtune_deploy.spec import InputSpec

CLASSES = 5


def efficientnet() -> nn.Module:
    """Two stages of inverted residuals with squeeze and excitation."""
    stages = [
        MBConvConfig(1, 3, 1, 16, 16, 1, width_mult=1.0, depth_mult=1.0),
        MBConvConfig(4, 3, 2, 16, 24, 2, width_mult=1.0, depth_mult=1.0),
    ]
    return EfficientNet(stages, dropout=0.0, num_classes=CLASSES, last_channel=32)


def regnet() -> nn.Module:
    """Grouped convolutions, squeeze and excitation."""
    params = BlockParams.from_init_params(2, 32, 16.0, 2.0, 8, se_ratio=0.25)
    return RegNet(params, num_classes=CLASSES, stem_width=16)


def timm_vit() -> nn.Module:
    """timm's attention, with layer scales."""
    return timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, init_values=0.5, num_classes=CLASSES
    )


def vit() -> nn.Module:
    """torch's own attention."""
    return VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=CLASSES)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet": lambda: ResNet(BasicBlock, [1, 1, 1, 2], num_classes=CLASSES),
    "bottlenecks": lambda: ResNet(Bottleneck, [1, 1, 1, 1], num_classes=CLASSES),
    "grouped": lambda: ResNet(Bottleneck, [1, 1, 1, 2], num_classes=CLASSES, groups=4, width_per_group=16),
    "mobilenet": lambda: MobileNetV2(
        CLASSES, inverted_residual_setting=[[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 2, 2]]
    ),
    "efficientnet": efficientnet,
    "regnet": regnet,
    "convnext": lambda: ConvNeXt(
        [CNBlockConfig(16, 32, 2), CNBlockConfig(32, None, 2)], layer_scale=0.5, num_classes=CLASSES
    ),
    "densenet": lambda: DenseNet(8, (2, 2), 16, num_classes=CLASSES),
    "shufflenet": lambda: ShuffleNetV2([2, 2, 2], [24, 48, 96, 192, 256], num_classes=CLASSES),
    "vit": vit,
    "timm vit": timm_vit,
    "swin": lambda: SwinTransformer([4, 4], 24, [1, 1], [2, 4], [2, 2], num_classes=CLASSES),
}


PATTERN = r"layer\d\.\d"
"""Blocks of ResNets: stages of one block are not told from other modules."""


def prunable(name: str, seed: int = 0) -> Backbone:
    """One of `NETWORKS`, traced."""
    return drawn(name, NETWORKS[name], seed)


def drawn(name: str, make: Callable[[], nn.Module], seed: int = 0) -> Backbone:
    """Traced at 3x32x32, linear layers with weights that matter."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = lively(make())
        for module in network.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.2)
    model = Model(name, network.eval().requires_grad_(False), InputSpec((3, 32, 32)), (), "random")
    return trace(model, PATTERN if isinstance(network, ResNet) else None)


def pictures(count: int = 2) -> torch.Tensor:
    """(count, 3, 32, 32)"""
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(7))
