"""What a data set's pictures are at the cuts: kept where pictures repeat and memory allows, else computed each time.

fetch = values(backbone, network, data, ("layer3_4", "layer4_1"), config)
fetch(indices, seed)                                   # {"layer3_4": ..., "layer4_1": ...} of some pictures
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..backbone import Backbone
from ..backends.base import Progress, silent
from ..data.augment import prepare_batch
from ..data.dataset import Dataset
from ..spec import InputSpec
from ..topology import Carry
from .cut import Prefix, picture, prefix
from .settings import TrainConfig

CHUNK = 50
"""Pictures that run through the prefix at a time when its values are gathered."""


Load: TypeAlias = Callable[[Tensor, int], Tensor]
"""Indices of pictures, int64 (n,), and a seed of their augmentation -> what the network is given."""


@dataclass(frozen=True)
class Stored:
    """A value of all pictures; `carry` says how it carries them."""

    value: Any
    carry: Carry

    def of(self, indices: Tensor) -> Any:
        """Its part for these pictures, in its layout in memory."""
        if isinstance(self.carry, int):
            return self.value[(slice(None),) * self.carry + (indices.to(self.value.device),)]
        return self.value * len(indices) if self.carry == "size" else self.value


@dataclass(frozen=True)
class Values:
    """Values by node of the pictures at `indices`, int64 (n,); `seed` decides how these are augmented."""

    stored: Mapping[str, Stored]
    prefix: Prefix
    load: Load
    picture: str

    def __call__(self, indices: Tensor, seed: int = 0) -> dict[str, Any]:
        found = {name: each.of(indices) for name, each in self.stored.items()}
        if not self.prefix.wanted:
            return found
        pictures = found[self.picture] if self.picture in found else self.load(indices, seed)
        return found | self.prefix(pictures)


def values(
    backbone: Backbone,
    network: nn.Module,
    data: Dataset,
    names: Sequence[str],
    config: TrainConfig,
    progress: Progress = silent,
) -> Values:
    """Of the nodes `names`, as `network`, a frozen copy of the backbone's, computes them.

    Where pictures are not augmented, the values of the latest nodes are kept as far as `config.cache_bytes` goes.
    """
    load = partial(_pictures, data, backbone.input, config.augment, next(network.parameters()).device)
    stored: dict[str, Stored] = {}
    if config.augment == "none" and config.cache_bytes:
        chosen = _chosen(backbone, network, load, names, config.cache_bytes // len(data))
        stored = _gathered(backbone, network, load, chosen, len(data), progress)
    missing = tuple(name for name in names if name not in stored)
    return Values(stored, prefix(backbone, network, missing), load, picture(backbone))


def _pictures(
    data: Dataset, spec: InputSpec, augment: str, device: torch.device, indices: Tensor, seed: int
) -> Tensor:
    batch = prepare_batch(data, indices.tolist(), spec, augment, seed)
    return batch.to(device, memory_format=torch.channels_last)


def _chosen(
    backbone: Backbone, network: nn.Module, load: Load, names: Sequence[str], limit: int
) -> list[str]:
    """Which values are kept, if each picture may take `limit` bytes: the latest, since most runs before them.

    The pictures come last, to be had where some values must be computed each time.
    """
    carries, chosen = _carries(backbone), list[str]()
    every = prefix(backbone, network, tuple(dict.fromkeys((picture(backbone), *names))))
    sizes = {name: _bytes(value) for name, value in every(load(torch.tensor([0]), 0)).items()}
    for name in reversed(every.wanted):
        needed = not set(names) <= set(chosen)
        if needed and _keeps(carries[name]) and sum(map(sizes.__getitem__, chosen)) + sizes[name] <= limit:
            chosen.append(name)
    return chosen


def _carries(backbone: Backbone) -> dict[str, Carry]:
    return {node.name: node.carry for node in backbone.topology.nodes}


def _keeps(carry: Carry) -> bool:
    """Whether values can be kept for all pictures and picked for some."""
    return carry is None or carry == "size" or isinstance(carry, int)


def _bytes(value: Any) -> int:
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0


def _gathered(
    backbone: Backbone, network: nn.Module, load: Load, names: Sequence[str], count: int, progress: Progress
) -> dict[str, Stored]:
    """Values of all `count` pictures; while they are put together, the largest is there twice."""
    if not names:
        return {}
    compute, pieces = prefix(backbone, network, names), {name: list[Any]() for name in names}
    for indices in torch.split(torch.arange(count), CHUNK):
        for name, value in compute(load(indices, 0)).items():
            pieces[name].append(value)
        progress("features", int(indices[-1]) + 1, count)
    carries = _carries(backbone)
    return {name: Stored(_joined(pieces.pop(name), carries[name], count), carries[name]) for name in names}


def _joined(parts: Sequence[Any], carry: Carry, count: int) -> Any:
    """Values of chunks -> one for all `count` pictures; of a size, what one picture adds to it."""
    if isinstance(carry, int):
        return torch.cat(list(parts), carry)
    return sum(parts) // count if carry == "size" else parts[0]
