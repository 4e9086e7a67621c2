"""Tracing: block tables against torch's own counters, units, heads, and what a trace must survive."""

from __future__ import annotations

import pytest
import torch
from tiny_networks import SIZE, Net, Residual, backbone
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from subtune_deploy.backbone import Backbone, trace
from subtune_deploy.errors import ModelError
from subtune_deploy.models import Model, load_model
from subtune_deploy.spec import InputSpec
from subtune_deploy.tracing import example, plain_attention


def traced(module: nn.Module, size: tuple[int, int, int] = SIZE, pattern: str | None = None) -> Backbone:
    return trace(Model("net", module.eval().requires_grad_(False), InputSpec(size), (), "random"), pattern)


def same_as_the_model(network: Backbone, batch: int = 2) -> bool:
    graph_module = torch.fx.GraphModule(network.model, network.graph)
    picture = example(network.input.shape, batch)
    with torch.no_grad():
        return torch.equal(graph_module(picture.clone()), network.model(picture.clone()))


@pytest.mark.parametrize("name", ["resnet18", "vit_b_32", "mobilenet_v3_small", "timm:convnext_atto"])
def test_sums_agree_with_torchs_own_counters(name: str) -> None:
    network = trace(load_model(name))
    picture = torch.zeros(1, *network.input.shape)
    with FlopCounterMode(display=False) as counter, plain_attention(), torch.no_grad():
        network.model(picture)
    assert network.macs == counter.get_total_flops() // 2
    assert network.parameters == sum(parameter.numel() for parameter in network.model.parameters())
    assert 0 < sum(block.macs for block in network.blocks) < network.macs
    assert 0 < sum(block.parameters for block in network.blocks) < network.parameters


def test_resnet18s_table_is_the_published_one() -> None:
    network = trace(load_model("resnet18"))
    assert [block.name for block in network.blocks] == [
        f"layer{s}.{b}" for s in range(1, 5) for b in range(2)
    ]
    assert network.parameters == 11_689_512
    assert network.macs == pytest.approx(1.814e9, rel=1e-3)
    assert network.blocks[-1].output_shape == (512, 7, 7)
    assert network.blocks[0].weight_bytes == 4 * network.blocks[0].parameters
    assert network.heads == ("fc",)


@pytest.mark.parametrize("topology", ["chain", "dense", "branching", "tokens"])
def test_every_weight_lies_in_exactly_one_unit(topology: str) -> None:
    network = backbone(topology)
    for name in network.model.state_dict():
        holders = [p for p in network.units.values() if name == p or name.startswith(f"{p}.")]
        assert len(holders) == (0 if name in network.unused else 1), name


def test_blocks_are_numbered_in_execution_order() -> None:
    class Backwards(Net):
        def chain(self, x):
            for block in reversed(list(self.blocks)):
                x = block(x)
            return x.mean((2, 3))

    assert [block.name for block in traced(Backwards("chain", 3, 4)).blocks] == [
        "blocks.2",
        "blocks.1",
        "blocks.0",
    ]


def test_a_block_that_is_never_run_is_no_block() -> None:
    class Skips(Net):
        def chain(self, x):
            return self.blocks[2](self.blocks[0](x)).mean((2, 3))

    network = traced(Skips("chain", 3, 4))
    assert [block.name for block in network.blocks] == ["blocks.0", "blocks.2"]
    assert "blocks.1.conv1.weight" in network.unused


def test_in_place_operations_on_shared_values_keep_their_meaning() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Residual(3, 3) for _ in range(2))
            self.relu = nn.ReLU(inplace=True)
            self.head = nn.Linear(3, 2)

        def forward(self, x):
            y = self.blocks[0](x - 1)
            z = y * 2
            self.relu(z)  # z is changed for everyone who reads it below
            return self.head((self.blocks[1](z) + z).mean((2, 3)))

    assert same_as_the_model(traced(Shared()))


def test_a_branch_on_sizes_is_decided_for_the_deployed_size() -> None:
    class Padded(Net):
        def chain(self, x):
            if x.shape[2] % 4:
                x = nn.functional.pad(x, (0, 1, 0, 1))
            return super().chain(x)

    assert same_as_the_model(traced(Padded("chain", 2, 4)))


def test_a_module_that_cannot_be_traced_becomes_a_leaf() -> None:
    class Loops(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Identity()

        def forward(self, x):
            return self.inner(sum(x[:, i : i + 1] for i in range(x.shape[1])) + x)  # range() of a traced size

    class Wild(Net):
        def __init__(self) -> None:
            super().__init__("chain", 2, 4)
            self.loops = Loops()

        def chain(self, x):
            return super().chain(self.loops(x))

    network = traced(Wild())
    assert "loops" in {node.target for node in network.graph.nodes if node.op == "call_module"}
    assert same_as_the_model(network)


def test_what_depends_on_values_cannot_be_compiled() -> None:
    class Chooses(nn.Module):
        def forward(self, x):
            return x * 2 if x.sum() > 0 else x

    class Wild(Net):
        def __init__(self) -> None:
            super().__init__("chain", 2, 4)
            self.chooses = Chooses()

        def chain(self, x):
            return super().chain(self.chooses(x))

    with pytest.raises(ModelError, match="depends on values"):
        traced(Wild())


def test_auxiliary_heads_are_no_blocks() -> None:
    network = trace(load_model("googlenet"))
    assert [block.name for block in network.blocks][::8] == ["inception3a", "inception5b"]
    assert all("aux" in name for name in network.unused)


def test_an_outermost_branch_on_values_is_refused() -> None:
    class Untraceable(Net):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else super().forward(-x)

    with pytest.raises(ModelError, match="cannot be traced"):
        traced(Untraceable("chain", 2, 4))


def test_a_size_that_the_network_was_not_built_for_is_refused() -> None:
    with pytest.raises(ModelError, match="does not run on input 3x20x20"):
        traced(Net("tokens", 2, 4), (3, 20, 20))


def test_a_network_without_a_classifier_is_refused() -> None:
    class Features(Net):
        def forward(self, x):
            return self.chain(self.stem(x))

    with pytest.raises(ModelError, match=r"no classifier: its answer comes straight from blocks\.1"):
        traced(Features("chain", 2, 4))


@pytest.mark.parametrize("wrap", [lambda y: (y, y), lambda y: [y], lambda y: {"scores": y}])
def test_a_network_that_answers_no_tensor_is_refused(wrap) -> None:
    class Wraps(Net):
        def forward(self, x):
            return wrap(super().forward(x))

    with pytest.raises(ModelError, match="not one tensor"):
        traced(Wraps("chain", 2, 4))


def test_whatever_a_forward_raises_is_told_in_one_line() -> None:
    class Broken(Net):
        def forward(self, x):
            raise KeyError("no such thing")

    with pytest.raises(ModelError, match="no such thing"):
        traced(Broken("chain", 2, 4))


def test_tracing_leaves_no_fake_tensor_in_the_model() -> None:
    network = backbone("tokens")
    kept = [value for module in network.model.modules() for value in vars(module).values()]
    assert not any(type(value).__name__ == "FakeTensor" for value in kept)


def test_how_values_carry_the_batch() -> None:
    carries = {node.name: node.carry for node in backbone("tokens").topology.nodes}
    assert carries["x"] == 0
    assert carries["position"] is None
    assert "size" in {carry for carry in carries.values() if isinstance(carry, str)}
