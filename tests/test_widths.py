"""Modules made again as narrow as the weights they are given."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from subtune_deploy.attention import ThinAttention, heads_of
from subtune_deploy.errors import CheckpointError, ModelError
from subtune_deploy.widths import conform, narrower


def state_of(module: nn.Module, **cuts: tuple[int, list[int]]) -> dict[str, Tensor]:
    """The state with only these rows or columns: `weight=(axis, positions)`, dots written as `__`."""
    state = module.state_dict()
    for name, (axis, positions) in cuts.items():
        key = name.replace("__", ".")
        state[key] = state[key].index_select(axis, torch.tensor(positions))
    return state


def test_a_depthwise_convolution_keeps_a_group_for_each_channel_that_is_left() -> None:
    whole, kept = nn.Conv2d(8, 8, 3, groups=8), [0, 3, 5]
    thin = conform(whole, state_of(whole, weight=(0, kept), bias=(0, kept)))
    assert (thin.groups, thin.in_channels, thin.out_channels) == (3, 3, 3)
    given = torch.randn(2, 8, 6, 6)
    torch.testing.assert_close(thin(given[:, kept]), whole(given)[:, kept])


def test_a_depthwise_convolution_that_multiplies_channels_goes_on_doing_so() -> None:
    whole = nn.Conv2d(4, 8, 3, groups=4)
    thin = conform(whole, state_of(whole, weight=(0, [0, 1, 4, 5]), bias=(0, [0, 1, 4, 5])))
    assert (thin.groups, thin.in_channels, thin.out_channels) == (2, 2, 4)


def test_other_grouped_convolutions_keep_their_groups() -> None:
    whole, kept = nn.Conv2d(8, 8, 1, groups=2), [0, 1, 4, 5]
    thin = conform(whole, state_of(whole, weight=(0, kept), bias=(0, kept)))
    assert (thin.groups, thin.in_channels, thin.out_channels) == (2, 8, 4)
    given = torch.randn(2, 8, 6, 6)
    torch.testing.assert_close(thin(given), whole(given)[:, kept])
    with pytest.raises(CheckpointError, match="3 channels in 2 groups"):
        conform(whole, state_of(whole, weight=(0, [0, 1, 4]), bias=(0, [0, 1, 4])))
    with pytest.raises(CheckpointError, match="3 channels in 4 groups"):
        conform(nn.GroupNorm(4, 8), {"weight": torch.ones(3), "bias": torch.ones(3)})


class Scaled(nn.Module):
    """A parameter of its own, a part with another width."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.act = nn.Linear(4, 6), nn.PReLU(6)
        self.scale = nn.Parameter(torch.rand(6, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.linear(x)) * self.scale[:, 0]


def test_parameters_may_be_fewer_but_never_more() -> None:
    whole, kept = Scaled(), [1, 2, 5]
    cuts = dict.fromkeys(("linear__weight", "linear__bias", "act__weight", "scale"), (0, kept))
    thin = conform(whole, state_of(whole, **cuts))
    given = torch.randn(3, 4)
    torch.testing.assert_close(thin(given), whole(given)[:, kept])
    with pytest.raises(CheckpointError, match="scale has shape"):
        conform(whole, {"scale": torch.ones(7, 1)})
    with pytest.raises(CheckpointError, match="lengths that do not agree"):
        conform(whole, {"linear.weight": torch.ones(3, 4)})


@pytest.mark.parametrize(
    ("shape", "fits"),
    [((4, 3, 3, 3), True), ((8, 3, 3, 3), True), ((9, 3, 3, 3), False), ((8, 3, 1, 1), False), ((8, 3, 3), False),
     ((0, 3, 3, 3), False)],
)  # fmt: skip
def test_what_could_be_left_of_a_kernel(shape: tuple[int, ...], fits: bool) -> None:
    assert narrower(torch.ones(shape), torch.ones(8, 3, 3, 3)) is fits


# Attention


def attention(batch_first: bool = True, bias: bool = True) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(12, 3, batch_first=batch_first, bias=bias).eval().requires_grad_(False)
    for parameter in module.parameters():
        parameter.normal_(0, 0.4)
    return module


def without_head(module: nn.MultiheadAttention, head: int) -> dict[str, Tensor]:
    columns = [i for i in range(12) if i // 4 != head]
    rows = [part * 12 + i for part in range(3) for i in columns]
    biases = {} if module.in_proj_bias is None else {"in_proj_bias": (0, rows)}
    return state_of(module, in_proj_weight=(0, rows), out_proj__weight=(1, columns), **biases)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("masked", ["no", "bool", "float"])
def test_attention_without_a_head_is_attention_in_which_that_head_says_nothing(
    batch_first: bool, bias: bool, masked: str
) -> None:
    whole = attention(batch_first, bias)
    thin, muted = conform(whole, without_head(whole, 1)), copy.deepcopy(whole)
    muted.out_proj.weight[:, 4:8] = 0
    query, memory = torch.randn(2, 5, 12), torch.randn(2, 7, 12)
    if not batch_first:
        query, memory = query.transpose(0, 1), memory.transpose(0, 1)
    mask = {"no": None, "bool": torch.rand(5, 7) > 0.6, "float": torch.randn(5, 7)}[masked]
    theirs, _ = muted(query, memory, memory, attn_mask=mask, need_weights=False)
    ours, weights = thin(query, memory, memory, attn_mask=mask, need_weights=False)
    torch.testing.assert_close(ours, theirs)
    assert weights is None
    assert isinstance(thin, ThinAttention)
    assert thin.num_heads == 2
    assert thin.state_dict().keys() == whole.state_dict().keys()


def test_attention_with_all_its_heads_is_torchs_own() -> None:
    whole = attention()
    assert type(conform(whole, whole.state_dict())) is nn.MultiheadAttention


def test_thin_attention_is_made_again_from_thin_attention() -> None:
    whole = attention()
    thin = conform(whole, without_head(whole, 0))
    again = conform(thin, thin.state_dict())
    given = torch.randn(2, 5, 12)
    assert torch.equal(thin(given, given, given)[0], again(given, given, given)[0])
    found = heads_of(thin)
    assert found is not None
    assert (found.count, found.width) == (2, 4)


def test_an_encoder_layer_of_torch_runs_with_fewer_heads_also_without_gradients() -> None:
    layer = nn.TransformerEncoderLayer(12, 3, 24, batch_first=True).eval().requires_grad_(False)
    muted = copy.deepcopy(layer)
    muted.self_attn.out_proj.weight[:, 8:] = 0
    own = {f"self_attn.{name}": each for name, each in without_head(layer.self_attn, 2).items()}
    thin, given = conform(layer, own), torch.randn(2, 5, 12)
    with torch.no_grad():
        torch.testing.assert_close(thin(given), muted(given), rtol=1e-4, atol=1e-5)


def test_masks_that_cannot_be_split_by_head_are_refused() -> None:
    thin = conform(attention(), without_head(attention(), 0))
    given = torch.randn(2, 5, 12)
    with pytest.raises(ModelError, match="no mask per picture or head"):
        thin(given, given, given, key_padding_mask=torch.zeros(2, 5, dtype=torch.bool))


def test_attention_of_which_heads_cannot_be_taken_is_told_from_the_rest() -> None:
    assert heads_of(nn.MultiheadAttention(12, 3, kdim=6)) is None
    assert heads_of(nn.MultiheadAttention(12, 3, add_bias_kv=True)) is None
    assert heads_of(nn.Linear(12, 36)) is None
    found = heads_of(nn.MultiheadAttention(12, 3, bias=False))
    assert found is not None
    assert found.parts.keys() == {"in_proj_weight", "out_proj.weight"}
