"""Thinner forks: what goes, what stays as it was, and what is refused."""

from __future__ import annotations

import copy
import itertools
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_networks import backbone as tiny
from tiny_prunable import NETWORKS, pictures, prunable
from torch import Tensor, nn

from subtune_deploy.backbone import Backbone, trace
from subtune_deploy.channels import Group, allowed
from subtune_deploy.errors import InputError, LayersError, ModelError, Unavailable
from subtune_deploy.heads import resized_state
from subtune_deploy.models import Model
from subtune_deploy.pruning import Size, fork_size, prune
from subtune_deploy.spec import InputSpec, Pruning
from subtune_deploy.versions import assemble
from subtune_deploy.widths import conform

EXACT = {"round_to": 1}


def all_blocks(network: Backbone) -> tuple[int, ...]:
    return tuple(block.index for block in network.blocks)


def answers(model: nn.Module) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(pictures())
    return result


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def kept(whole: Tensor, thin: Tensor, axis: int) -> list[int]:
    """Which rows of `whole` on this axis are those of `thin`, found by comparing them."""
    rows, found = (t.movedim(axis, 0).reshape(t.shape[axis], -1).numpy() for t in (whole, thin))
    place = {row.tobytes(): index for index, row in enumerate(rows)}
    return [place[row.tobytes()] for row in found]


def block_of(network: Backbone, index: int) -> nn.Module:
    return network.model.get_submodule(network.units[f"block{index}"])


# What goes


def test_the_lightest_half_of_the_channels_inside_goes_and_the_interface_stays() -> None:
    network = prunable("resnet")
    (name, thin), whole = prune(network, (3,), Pruning(0.5)).popitem(), block_of(network, 3)
    assert name == "block3"
    weights = whole.conv1.weight
    size = weights.abs().sum((1, 2, 3)) / weights.abs().sum((1, 2, 3)).mean()
    assert shapes(thin) == {
        **shapes(whole),
        **{f"bn1.{each}": (128,) for each in ("weight", "bias", "running_mean", "running_var")},
        "conv1.weight": (128, 128, 3, 3),
        "conv2.weight": (256, 128, 3, 3),
    }
    stays = kept(whole.conv1.weight, thin.conv1.weight, 0)
    assert stays == sorted(stays)
    assert torch.equal(thin.conv2.weight, whole.conv2.weight[:, stays])
    assert torch.equal(thin.bn1.running_var, whole.bn1.running_var[stays])
    inwards = whole.conv2.weight.abs().sum((0, 2, 3))
    score = (weights.abs().sum((1, 2, 3)) + inwards + whole.bn1.weight.abs()) / 3
    assert set(stays) == set(score.argsort(descending=True)[:128].tolist())
    assert len(size) == 256


def test_the_order_of_channels_is_that_of_torch_pruning() -> None:
    import torch_pruning

    for name, power in itertools.product(("resnet", "bottlenecks", "vit"), (1, 2)):
        network = prunable(name)
        module = block_of(network, 2)
        given = torch.zeros(1, 17, 32) if name == "vit" else torch.zeros(1, *network.blocks[0].output_shape)
        whole = copy.deepcopy(module).requires_grad_(True)
        graph = torch_pruning.DependencyGraph().build_dependency(whole, given, verbose=False)
        layer = whole.mlp[0] if name == "vit" else whole.conv1
        function = graph.get_pruner_of_module(layer).prune_out_channels
        width = graph.get_out_channels(layer)
        group = graph.get_pruning_group(layer, function, list(range(width)))
        theirs = torch_pruning.importance.GroupMagnitudeImportance(p=power)(group)
        norm = "l1" if power == 1 else "l2"
        thin = prune(network, (2,), Pruning(0.25, norm=norm))["block2"]
        first = "mlp.0.weight" if name == "vit" else "conv1.weight"
        stays = kept(module.state_dict()[first], thin.state_dict()[first], 0)
        assert set(stays) == set(theirs.argsort(descending=True)[: width - width // 4].tolist()), (name, norm)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_thinner_fork_is_the_fork_without_what_the_lost_channels_gave(name: str) -> None:
    """Zeros in the place of what reads them are the same as channels that are not there."""
    network = prunable(name)
    thin = prune(network, all_blocks(network), Pruning(0.4, **EXACT))
    muted = {unit: _muted(network, unit, module) for unit, module in thin.items()}
    assert any(shapes(thin[unit]) != shapes(muted[unit]) for unit in thin)
    theirs, ours = answers(assemble(network, muted)), answers(assemble(network, thin))
    assert (theirs - answers(network.model)).abs().max() > 0.01, "nothing that mattered went"
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def _muted(network: Backbone, unit: str, thin: nn.Module) -> nn.Module:
    """The whole block with zeros for all weights on what `thin` has lost.

    A weight that is narrower where it reads tells by itself which channels are lost: they are those of which no
    column is found again.
    """
    module = copy.deepcopy(network.model.get_submodule(network.units[unit]))
    own = thin.state_dict()
    for name, tensor in module.state_dict().items():
        if tensor.dim() >= 2 and own[name].shape[1:2] != tensor.shape[1:2]:
            narrowed = _rows_of(tensor, own[name])
            columns = kept(tensor[narrowed], own[name], 1)
            lost = [i for i in range(tensor.shape[1]) if i not in columns]
            tensor[:, lost] = 0
    return module


def _rows_of(whole: Tensor, thin: Tensor) -> list[int]:
    """The rows of `whole` that `thin` still has, in part, found by their first and last values."""
    if len(whole) == len(thin):
        return list(range(len(whole)))
    return [_row_with(whole.flatten(1), row) for row in thin.flatten(1)[:, [0, -1]].tolist()]


def _row_with(rows: Tensor, values: list[float]) -> int:
    """The one row in which all these values are found."""
    for value in values:
        candidates = (rows == value).any(1)
        rows = torch.where(candidates[:, None], rows, torch.nan)
    (found,) = candidates.nonzero().flatten().tolist()
    return found


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("ratio", [0.15, 0.5, 0.9])
@pytest.mark.parametrize("scope", ["local", "global"])
def test_blocks_hand_on_what_they_did_and_weigh_less(name: str, ratio: float, scope: str) -> None:
    network = prunable(name)
    layers = all_blocks(network)
    thin = prune(network, layers, Pruning(ratio, scope, round_to=2))
    assert list(thin) == [f"block{index}" for index in layers]
    assert answers(assemble(network, thin)).shape == (2, 5)
    whole, left = fork_size(network, layers, {}), fork_size(network, layers, thin)
    assert left.parameters < whole.parameters
    assert left.macs < whole.macs
    assert left.parameters == sum(p.numel() for module in thin.values() for p in module.parameters())
    assert not any(p.requires_grad for module in thin.values() for p in module.parameters())


def test_the_backbone_stays_as_it_was_and_equal_weights_give_equal_forks() -> None:
    network = prunable("efficientnet")
    before = {name: tensor.clone() for name, tensor in network.model.state_dict().items()}
    state = torch.random.get_rng_state()
    one, two = (prune(network, (2, 3), Pruning(0.3, "global", "l2")) for _ in range(2))
    assert all(torch.equal(before[name], tensor) for name, tensor in network.model.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state())
    for unit in one:
        assert all(torch.equal(t, two[unit].state_dict()[name]) for name, t in one[unit].state_dict().items())


def test_global_pruning_takes_from_the_layer_that_weighs_least() -> None:
    network = tiny(width=16)
    generator = torch.Generator().manual_seed(3)
    for index, spread in ((1, 0.02), (2, 0.9)):
        rows = 1 + spread * torch.rand(16, generator=generator).mul(2).sub(1).view(-1, 1, 1, 1)
        conv = block_of(network, index).conv1
        conv.weight.copy_(rows * conv.weight / conv.weight.abs().mean((1, 2, 3), keepdim=True))
    local = prune(network, (1, 2), Pruning(0.25, **EXACT))
    together = prune(network, (1, 2), Pruning(0.25, "global", **EXACT))
    assert [module.bn1.num_features for module in local.values()] == [12, 12]
    assert [module.bn1.num_features for module in together.values()] == [16, 8]


def test_l1_and_l2_choose_differently() -> None:
    network = tiny(width=4)
    block = block_of(network, 1)
    block.bn1.weight.fill_(1)
    block.conv2.weight.fill_(0.01)
    block.conv1.weight.fill_(1.0)
    block.conv1.weight[0] = 0
    block.conv1.weight[0, 0, 0, 0] = 30.0  # L1: 30, L2: 900; the others 36 and 36
    block.conv1.weight[3] = 0.99  # lighter than 1 and 2 in both
    thin = {n: prune(network, (1,), Pruning(0.25, norm=n, **EXACT))["block1"] for n in ("l1", "l2")}
    assert not (thin["l1"].conv1.weight == 30).any()
    assert thin["l2"].conv1.weight[0, 0, 0, 0] == 30.0


def test_trained_weights_are_ranked_where_they_are_given() -> None:
    network = tiny(width=8)
    trained = copy.deepcopy(block_of(network, 2))
    trained.conv1.weight[[1, 6]] *= 100
    thin = prune(network, (2, 3), Pruning(0.7, **EXACT), {"block2": trained, "head": network.model.head})
    assert {1, 6} <= set(kept(trained.conv1.weight, thin["block2"].conv1.weight, 0))
    again = prune(network, (2, 3), Pruning(0.4, **EXACT), thin)
    assert [module.bn1.num_features for module in (thin["block3"], again["block3"])] == [3, 2]
    assert again.keys() == {"block2", "block3"}


# Widths


@given(
    atoms=st.integers(3, 400),
    size=st.sampled_from([1, 2, 3, 4, 25, 64]),
    round_to=st.sampled_from([1, 4, 8, 16, 32]),
    share=st.floats(0, 1),
)
def test_widths_are_multiples_and_no_layer_loses_more_than_asked_or_all(
    atoms: int, size: int, round_to: int, share: float
) -> None:
    asked = int(share * atoms)
    gone = allowed(Group("layer", "channels", atoms, size, ()), asked, round_to)
    assert 0 <= gone <= asked
    assert gone < atoms
    if gone and atoms * size >= round_to:
        assert (atoms - gone) * size % round_to == 0 or atoms * size < round_to * size


@pytest.mark.parametrize(
    ("width", "ratio", "round_to", "left"),
    [(64, 0.1, 8, 64), (64, 0.2, 8, 56), (64, 0.5, 8, 32), (64, 0.9, 8, 8), (64, 0.99, 8, 8),
     (64, 0.9, 1, 7), (12, 0.5, 8, 8), (6, 0.5, 8, 3), (4, 0.9, 8, 1), (8, 0.5, 8, 8)],
)  # fmt: skip
def test_kept_widths_by_hand(width: int, ratio: float, round_to: int, left: int) -> None:
    group = Group("layer", "channels", width, 1, ())
    assert width - allowed(group, int(ratio * width + 1e-9), round_to) == left


def test_heads_of_attention_go_whole() -> None:
    for name in ("vit", "timm vit"):
        network = prunable(name)
        thin = prune(network, (1, 2), Pruning(0.5))
        rows = {n: s for n, s in shapes(thin["block2"]).items() if "attn" in n or "attention" in n}
        assert sorted(shape for shape in rows.values() if len(shape) == 2) == [(32, 16), (48, 32)]


@pytest.mark.parametrize("of", ["parameters", "macs"])
@pytest.mark.parametrize("scope", ["local", "global"])
def test_a_share_of_parameters_or_macs_is_met_and_hardly_more(of: str, scope: str) -> None:
    network = prunable("resnet")
    layers = (3, 4, 5)
    thin = prune(network, layers, Pruning(0.6, scope, of=of, **EXACT))
    whole, left = fork_size(network, layers, {}), fork_size(network, layers, thin)
    share = getattr(left, of) / getattr(whole, of)
    assert 0.38 < share <= 0.4
    assert left != whole


def test_the_size_of_a_fork_by_hand() -> None:
    network = tiny(width=8)
    thin = prune(network, (2,), Pruning(0.5, **EXACT))
    inner, pixels = 4, 36
    parameters = inner * 8 * 9 + 2 * inner + 8 * inner + 2 * 8
    assert fork_size(network, (2,), thin) == Size(parameters, (inner * 8 * 9 + 8 * inner) * pixels)


# Where what a block hands on may be thinner too


def outer_layers(name: str) -> tuple[int, ...]:
    return {"resnet": (4, 5), "bottlenecks": (4,), "grouped": (4, 5)}[name]


@pytest.mark.parametrize("name", ["resnet", "bottlenecks", "grouped"])
@pytest.mark.parametrize("scope", ["local", "global"])
def test_streams_that_lead_to_the_own_head_alone_are_thinner_with_it(name: str, scope: str) -> None:
    network, layers = prunable(name), outer_layers(name)
    inner = prune(network, layers, Pruning(0.5, scope))
    outer = prune(network, layers, Pruning(0.5, scope, outer=True))
    assert set(outer) - set(inner) == {"fc"}
    width = network.model.fc.in_features
    assert outer["fc"].weight.shape[0] == 5
    assert outer["fc"].weight.shape[1] < width
    assert outer["fc"].in_features % 8 == 0
    assert fork_size(network, layers, outer).parameters < fork_size(network, layers, inner).parameters
    last = outer[f"block{layers[-1]}"]
    assert getattr(last, "bn3", last.bn2).num_features == outer["fc"].in_features
    assert answers(assemble(network, outer)).shape == (2, 5)
    if scope == "local":
        assert outer["fc"].in_features == width // 2


def test_a_thinner_stream_is_the_stream_without_what_the_lost_channels_gave() -> None:
    network = prunable("resnet")
    outer = prune(network, (4, 5), Pruning(0.5, outer=True, **EXACT))
    muted = {unit: _muted(network, unit, module) for unit, module in outer.items()}
    torch.testing.assert_close(
        answers(assemble(network, outer)), answers(assemble(network, muted)), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("layers", [(5,), (3, 4)])
def test_streams_that_frozen_weights_read_or_made_stay_as_they_are(layers: tuple[int, ...]) -> None:
    network = prunable("resnet")
    thin = prune(network, layers, Pruning(0.5, outer=True))
    for index in layers[-1:]:
        assert thin[f"block{index}"].bn2.num_features == block_of(network, index).bn2.num_features
    assert shapes(thin["fc"]) == shapes(network.model.fc)


# What is refused


class Plain(nn.Module):
    """Blocks are lone convolutions: all their channels are handed on."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(*(nn.Conv2d(3 if i == 0 else 8, 8, 3, padding=1) for i in range(3)))
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean((2, 3)))


def plain() -> Backbone:
    return trace(Model("plain", Plain().eval().requires_grad_(False), InputSpec((3, 8, 8)), (), "random"))


def test_blocks_without_anything_inside_are_refused_by_name() -> None:
    with pytest.raises(ModelError, match=r"block 1 \(features.0\), block 2 \(features.1\) cannot be pruned"):
        prune(plain(), (1, 2), Pruning(0.5))
    thin = prune(plain(), (1, 2, 3), Pruning(0.5, outer=True, **EXACT))
    assert [module.out_channels for module in list(thin.values())[:3]] == [4, 4, 4]
    assert thin["fc"].in_features == 4


class Writing(nn.Module):
    """It writes into its own weights, which autograd, by which torch-pruning follows a network, refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.one.weight.mul_(1)
        return x + self.two(self.one(x))


def test_a_block_that_cannot_be_followed_is_named() -> None:
    network = Plain()
    network.features = nn.Sequential(nn.Conv2d(3, 8, 1), Writing(), Writing())
    backbone = trace(
        Model("writing", network.eval().requires_grad_(False), InputSpec((3, 8, 8)), (), "random"),
        r"features\.[12]",
    )
    with pytest.raises(
        ModelError, match=r"block 2 \(features.2\) cannot be pruned: torch-pruning cannot follow"
    ):
        prune(backbone, (2,), Pruning(0.5))


class Picky(nn.Module):
    """It can do without one channel, but not without two."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        return x + self.two(y) if y.shape[1] >= 7 else y


def test_a_fork_that_does_not_go_together_any_more_is_refused() -> None:
    network = Plain()
    network.features = nn.Sequential(nn.Conv2d(3, 8, 1), Picky(), Picky())
    backbone = trace(Model("picky", network.eval().requires_grad_(False), InputSpec((3, 8, 8)), (), "random"))
    blocks = [block.index for block in backbone.blocks if block.name != "features.0"]
    assert prune(backbone, blocks, Pruning(0.13, **EXACT))["block1"].one.out_channels == 7
    with pytest.raises(ModelError, match="can lose a channel, but not so many"):
        prune(backbone, blocks, Pruning(0.5, **EXACT))


def test_a_trained_siamese_head_keeps_the_streams_that_it_reads() -> None:
    network = prunable("resnet")
    siamese = conform(network.model.fc, resized_state(network.model.fc, 3, siamese=True))
    with pytest.raises(InputError, match="what a Siamese task hands on cannot be thinned"):
        prune(network, (4, 5), Pruning(0.5, outer=True), {"fc": siamese})
    assert prune(network, (4, 5), Pruning(0.5), {"fc": siamese}).keys() == {"block4", "block5"}


def test_a_layer_is_never_emptied() -> None:
    network = tiny(width=16)
    light = block_of(network, 1).conv1
    light.weight.mul_(1e-3)
    block_of(network, 1).conv2.weight.mul_(1e-3)
    _even(block_of(network, 1))
    with pytest.raises(InputError, match=r"would empty blocks\.0.conv1: all its 16 channels"):
        prune(network, (1, 2), Pruning(0.9, "global", **EXACT))
    thin = prune(network, (1, 2), Pruning(0.9, "global"))
    assert [module.bn1.num_features for module in thin.values()] == [8, 8]
    slight = prune(network, (1, 2), Pruning(0.999, **EXACT))
    assert [module.bn1.num_features for module in slight.values()] == [1, 1]


def _even(block: nn.Module) -> None:
    """All its channels weigh the same."""
    for layer in (block.conv1, block.bn1):
        layer.weight.copy_(layer.weight[:1].expand_as(layer.weight))
    block.conv2.weight.copy_(block.conv2.weight[:, :1].expand_as(block.conv2.weight))


def test_what_cannot_be_reached_is_refused_with_what_can() -> None:
    network = prunable("convnext")
    with pytest.raises(InputError, match=r"cannot lose 99% of its parameters: .* at most \d+% can go"):
        prune(network, (1,), Pruning(0.99, of="parameters"))
    with pytest.raises(InputError, match=r"a ratio of 0\.05 removes nothing from block 1"):
        prune(network, (1,), Pruning(0.05))
    with pytest.raises(InputError, match="no block is forked"):
        prune(network, (), Pruning(0.5))
    with pytest.raises(LayersError, match=r"blocks 9 are outside 1\.\.4"):
        prune(network, (1, 9), Pruning(0.5))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [({"ratio": 0.0}, "0.0 is not between"), ({"ratio": 1.0}, "not between 0 and 1"),
     ({"ratio": float("nan")}, "nan is not between"), ({"ratio": -0.5}, "not between"),
     ({"ratio": 0.5, "scope": "locl"}, "scope 'locl'"), ({"ratio": 0.5, "norm": "l3"}, "norm 'l3'"),
     ({"ratio": 0.5, "of": "flops"}, "of 'flops'"), ({"ratio": 0.5, "round_to": 0}, "multiples of 0"),
     ({"ratio": 0.5, "when": "during"}, "when 'during'")],
)  # fmt: skip
def test_what_is_no_pruning_is_refused(wrong: dict[str, object], told: str) -> None:
    with pytest.raises(InputError, match=told):
        Pruning(**wrong)


def test_how_a_pruning_is_spelt() -> None:
    assert str(Pruning(0.5)) == "pruned 0.5 local l1"
    full = Pruning(0.25, "global", "l2", "macs", 4, "after", True)
    assert str(full) == "pruned 0.25 global l2 of macs rounded to 4 after outer"


def test_without_torch_pruning_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(Unavailable, match="torch-pruning is not installed"):
        prune(tiny(width=8), (1,), Pruning(0.5))
