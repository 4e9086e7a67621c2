"""Which modules are blocks, on the field's own networks."""

from __future__ import annotations

import pytest
import torchvision
from torch import nn

from subtune_deploy.blocks import find_blocks
from subtune_deploy.errors import ModelError


def network(name: str) -> nn.Module:
    return torchvision.models.get_model(name)


@pytest.mark.parametrize(
    "name, count, first, last",
    [
        ("resnet18", 8, "layer1.0", "layer4.1"),
        ("resnet50", 16, "layer1.0", "layer4.2"),
        ("vit_b_16", 12, "encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_11"),
        ("swin_t", 12, "features.1.0", "features.7.1"),
        ("convnext_tiny", 18, "features.1.0", "features.7.2"),
        ("efficientnet_b0", 16, "features.1.0", "features.7.0"),
        ("mobilenet_v2", 17, "features.1", "features.17"),
        ("regnet_y_400mf", 16, "trunk_output.block1.block1-0", "trunk_output.block4.block4-5"),
        ("densenet121", 58, "features.denseblock1.denselayer1", "features.denseblock4.denselayer16"),
        ("squeezenet1_0", 8, "features.3", "features.12"),
    ],
)
def test_repeated_composites_are_blocks(name: str, count: int, first: str, last: str) -> None:
    blocks = find_blocks(network(name))
    assert (len(blocks), blocks[0], blocks[-1]) == (count, first, last)


def test_vgg_falls_back_to_its_convolutions() -> None:
    vgg = network("vgg16")
    blocks = find_blocks(vgg)
    assert len(blocks) == 13
    assert all(isinstance(vgg.get_submodule(path), nn.Conv2d) for path in blocks)


def test_a_perceptron_falls_back_to_its_linear_layers() -> None:
    assert find_blocks(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))) == ("0", "2")


def test_a_pattern_overrides_and_keeps_the_outermost() -> None:
    assert find_blocks(network("resnet18"), r"layer\d") == ("layer1", "layer2", "layer3", "layer4")
    assert find_blocks(network("resnet18"), r"layer4(\..*)?") == ("layer4",)


@pytest.mark.parametrize("pattern, says", [("nothing", "matches no module"), ("(", "no regular expression")])
def test_a_pattern_that_fits_nothing_is_refused(pattern: str, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        find_blocks(network("resnet18"), pattern)


def test_a_network_of_one_layer_has_no_blocks() -> None:
    with pytest.raises(ModelError, match="no blocks"):
        find_blocks(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))
