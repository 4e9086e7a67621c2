"""Values at the cuts are the same whether they are kept or computed; memory bounds what is kept, the latest first."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_networks import SIZE, backbone
from tiny_studies import pictures
from torch import Tensor, nn

from subtune_deploy.backbone import Backbone, trace
from subtune_deploy.data.augment import prepare_batch
from subtune_deploy.data.dataset import Dataset
from subtune_deploy.models import Model
from subtune_deploy.spec import InputSpec
from subtune_deploy.tuning.cut import crossing, picture, prefix, wanted
from subtune_deploy.tuning.settings import Fork, TrainConfig
from subtune_deploy.tuning.start import units_of
from subtune_deploy.tuning.values import CHUNK, Values, values

FORKS = (Fork(), Fork((2,)), Fork((4,)), Fork("all"))
PLENTY = TrainConfig()
NOTHING = TrainConfig(cache_bytes=0)
SOME = torch.tensor([5, 0, 7, 11])
COUNT = CHUNK + 7


def names_of(network: Backbone, *forks: Fork) -> tuple[str, ...]:
    return wanted(network, [crossing(network, units_of(network, fork)) for fork in forks])


def fetched(network: Backbone, names: tuple[str, ...], config: TrainConfig, data: Dataset) -> Values:
    return values(network, copy.deepcopy(network.model), data, names, config)


def same(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("topology", ["chain", "dense", "branching", "listing", "tokens"])
def test_kept_and_computed_values_agree_and_are_the_networks(topology: str) -> None:
    network, data = backbone(topology), pictures(COUNT, 1)
    names = names_of(network, *FORKS)
    kept, computed = (fetched(network, names, config, data) for config in (PLENTY, NOTHING))
    assert computed.stored == {}
    assert kept.stored
    shown = prepare_batch(data, SOME.tolist(), network.input)
    expected = prefix(network, network.model, names)(shown)
    for found in (kept(SOME), computed(SOME)):
        assert set(found) >= set(names)
        same({name: found[name] for name in names}, expected)


class Counting(nn.Module):
    """How many pictures there are is read from these, and needed behind every block."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))
        self.head = nn.Linear(3 * 9, 5)

    def forward(self, x: Tensor) -> Tensor:
        count = x.shape[0]
        x = self.blocks[1](self.blocks[0](x))
        return self.head(nn.functional.adaptive_avg_pool2d(x, 3).reshape(count, -1))


def counting() -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Counting().eval().requires_grad_(False)
    return trace(Model("counting", module, InputSpec(SIZE), (), "random"), r"blocks\.\d")


def test_a_size_of_the_batch_is_that_of_the_pictures_asked_for() -> None:
    network = counting()
    names = names_of(network, Fork((2,)))
    sizes = [node.name for node in network.topology.nodes if node.name in names and node.carry == "size"]
    assert sizes
    kept = fetched(network, names, PLENTY, pictures(COUNT, 1))
    for count in (1, 4):
        found = kept(SOME[:count])
        assert [found[name] for name in sizes] == [count] * len(sizes)


def bytes_of(network: Backbone, name: str, data: Dataset) -> int:
    """What a value of all pictures takes."""
    one = prefix(network, network.model, (name,))(prepare_batch(data, [0], network.input))[name]
    return one.numel() * one.element_size() * len(data)


@pytest.mark.parametrize("kept", [0, 1, 2, 3])
def test_the_latest_values_are_kept_as_far_as_memory_goes(kept: int) -> None:
    network, data = backbone(), pictures(10, 1)
    names = names_of(network, Fork(), Fork((3,)), Fork((2,)))
    assert len(names) == 3
    limit = sum(bytes_of(network, name, data) for name in names[3 - kept :])
    exactly = fetched(network, names, TrainConfig(cache_bytes=limit), data)
    assert list(exactly.stored) == list(reversed(names[3 - kept :]))
    assert exactly.prefix.wanted == names[: 3 - kept]
    assert sum(stored.value.nbytes for stored in exactly.stored.values()) <= limit
    if kept:
        less = fetched(network, names, TrainConfig(cache_bytes=limit - len(data)), data)
        assert names[3 - kept] not in less.stored
    shown = prepare_batch(data, SOME[:3].tolist(), network.input)
    same({name: exactly(SOME[:3])[name] for name in names}, prefix(network, network.model, names)(shown))


def test_pictures_are_kept_where_some_values_must_be_computed_each_time() -> None:
    network, data = backbone(width=16), pictures(12, 1)  # a value is larger than its picture
    names = names_of(network, Fork((2,)))
    limit = bytes_of(network, picture(network), data)
    assert limit < bytes_of(network, names[0], data)
    found = fetched(network, names, TrainConfig(cache_bytes=limit), data)
    assert list(found.stored) == [picture(network)]
    assert found.prefix.wanted == names
    same(found(SOME)[names[0]], fetched(network, names, NOTHING, data)(SOME)[names[0]])


def test_where_nothing_may_be_kept_no_picture_is_read_before_it_is_asked_for() -> None:
    network, data = counting(), pictures(10, 1)
    told: list[tuple[str, float, float]] = []
    names = names_of(network, Fork((2,)))
    for config in (NOTHING, TrainConfig(augment="crop")):
        found = values(
            network, network.model, data, names, config, progress=lambda *event: told.append(event)
        )
        assert found.stored == {}
    assert told == []


def test_augmented_pictures_are_not_kept_and_depend_on_the_seed() -> None:
    network, data = backbone(), pictures(12, 1)
    names = names_of(network, *FORKS)
    fetch = fetched(network, names, replace(PLENTY, augment="crop-flip"), data)
    assert fetch.stored == {}
    first, again, other = fetch(SOME, 1), fetch(SOME, 1), fetch(SOME, 2)
    shown = picture(network)
    assert all(torch.equal(first[name], again[name]) for name in names)
    assert not any(torch.equal(first[name], other[name]) for name in names)
    expected = prepare_batch(data, SOME.tolist(), network.input, "crop-flip", 1)
    assert torch.equal(first[shown], expected)


def test_without_augmentation_the_seed_changes_nothing() -> None:
    network, data = backbone(), pictures(12, 1)
    names = names_of(network, Fork((2,)))
    for config in (PLENTY, NOTHING):
        fetch = fetched(network, names, config, data)
        assert torch.equal(fetch(SOME, 1)[names[0]], fetch(SOME, 2)[names[0]])


def test_gathering_is_told_in_chunks_and_order_is_kept() -> None:
    network, data = backbone(), pictures(COUNT, 1)
    told: list[tuple[str, float, float]] = []
    names = names_of(network, Fork())
    fetch = values(network, network.model, data, names, PLENTY, progress=lambda *event: told.append(event))
    assert told == [("features", CHUNK, COUNT), ("features", COUNT, COUNT)]
    order = torch.from_numpy(np.random.default_rng(0).permutation(COUNT))
    found: Tensor = fetch(order)[names[0]]
    assert len(found) == COUNT
    assert torch.equal(found, fetch(torch.arange(COUNT))[names[0]][order])
