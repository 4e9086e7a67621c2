"""Heads of other widths: more classes, twice the features, several layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from subtune_deploy.errors import CheckpointError, ModelError
from subtune_deploy.heads import classes_of, feature_axis, is_siamese, resized_state
from subtune_deploy.widths import conform


def layered() -> nn.Sequential:
    """Norm, hidden layer, classifier: 6 features, 5 classes."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.LayerNorm(6), nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 5)
    ).eval()


HEADS = {
    "linear": (lambda: nn.Linear(6, 5), (2, 6), -1),
    "convolution": (lambda: nn.Conv2d(6, 5, 1), (2, 6, 3, 3), 1),
    "convolution in a sequence": (lambda: nn.Sequential(nn.ReLU(), nn.Conv2d(6, 5, 1)), (2, 6, 3, 3), 1),
    "grouped norm first": (lambda: nn.Sequential(nn.GroupNorm(2, 6), nn.Conv2d(6, 5, 1)), (2, 6, 3, 3), 1),
    "layered": (layered, (2, 6), -1),
}


@pytest.mark.parametrize("siamese", [False, True])
@pytest.mark.parametrize("classes", [1, 5, 12])
@pytest.mark.parametrize("kind", HEADS)
def test_a_head_takes_any_number_of_classes_and_twice_the_features(
    kind: str, classes: int, siamese: bool
) -> None:
    make, shape, axis = HEADS[kind]
    base = make()
    head = conform(base, resized_state(base, classes, siamese))
    features = torch.randn(shape)
    doubled = torch.cat([features, features], dim=axis) if siamese else features
    assert feature_axis(head) == axis
    assert head(doubled).shape[1] == classes_of(head) == classes
    assert is_siamese(base, head) is siamese
    assert classes_of(base) == 5, "the base's head was changed"


def test_a_conformed_copy_has_exactly_the_given_weights_and_takes_no_gradient() -> None:
    own = nn.Linear(6, 3)
    copy = conform(nn.Linear(6, 5).requires_grad_(False), own.state_dict())
    features = torch.randn(2, 6)
    assert torch.equal(copy(features), own(features))
    assert not any(parameter.requires_grad for parameter in copy.parameters())
    assert (copy.in_features, copy.out_features) == (6, 3)


def test_a_head_whose_layers_do_not_fit_each_other_is_refused() -> None:
    base = layered()
    wide = conform(base, {"1.weight": torch.ones(9, 6), "1.bias": torch.ones(9)})
    with pytest.raises(CheckpointError, match="wrong head shape"):
        is_siamese(base, wide)


SHAPES = {
    "another kind of weight": {"weight": torch.ones(5, 6, 1, 1)},
    "a bias of another length": {"bias": torch.ones(9)},
    "a bias with two axes": {"bias": torch.ones(1, 5)},
}


@pytest.mark.parametrize("case", SHAPES)
def test_a_shape_that_the_layer_cannot_take_is_refused(case: str) -> None:
    with pytest.raises(CheckpointError):
        conform(nn.Linear(6, 5), SHAPES[case])


def test_a_convolution_keeps_its_kernel_and_other_layers_keep_their_shapes() -> None:
    with pytest.raises(CheckpointError, match="Conv2d cannot take"):
        conform(nn.Conv2d(6, 5, 1), {"weight": torch.ones(5, 6, 3, 3)})
    with pytest.raises(CheckpointError, match="PReLU cannot take"):
        conform(nn.PReLU(3), {"weight": torch.ones(4)})


def test_a_head_of_another_kind_is_told() -> None:
    with pytest.raises(ModelError, match="Bilinear"):
        classes_of(nn.Bilinear(6, 6, 5))
