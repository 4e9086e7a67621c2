"""Thinner copies of a fork's blocks, which still fit what is around them.

    thin = prune(backbone, (14, 15, 16), Pruning(0.5))       # {"block14": Bottleneck(...), ...}

torch-pruning says which channels hang together and how much they matter; which of them go is decided here.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from .backbone import Backbone
from .channels import Gone, Group, lightest, without
from .errors import CheckpointError, InputError, LayersError, ModelError
from .heads import classes_of, features_of
from .prunable import find_groups
from .spec import Pruning, format_layers
from .versions import Flow, Version, assemble, flow, version_of
from .widths import conform

FEWEST = 3
"""Atoms of a group that may be thinned: the last of two would also fit where it must not, by broadcasting."""

STEPS = 1000
"""Shares of channels that are tried for a share of multiply-adds or parameters: multiples of a thousandth."""


@dataclass(frozen=True)
class Size:
    """Of a fork's blocks, heads left out: parameters, and multiply-adds for one picture."""

    parameters: int
    macs: int


def fork_size(backbone: Backbone, layers: Sequence[int], versions: Mapping[str, Version]) -> Size:
    """What the blocks `layers` weigh and cost with `versions`, those of a task or thinner ones."""
    units, macs = _blocks(backbone, layers), flow(backbone, versions).macs
    modules = [_module(backbone, versions, unit) for unit in units]
    parameters = sum(parameter.numel() for module in modules for parameter in module.parameters())
    mine = [node.name for node in backbone.topology.nodes if node.unit in units]
    return Size(parameters, sum(macs[node] for node in mine))


def prune(
    backbone: Backbone,
    layers: Sequence[int],
    pruning: Pruning,
    versions: Mapping[str, Version] | None = None,
) -> dict[str, nn.Module]:
    """Copies of the blocks `layers` by unit, from `versions` where these have them, without what weighs least.

    Blocks take and hand on what they did before. Only with `outer` may streams narrow that lead nowhere but into
    these blocks and the heads; then the heads are among the results as well. A block of which nothing can go stays
    whole. Equal weights give equal results. `pruning.when` is for the caller to heed.

    Raises LayersError, Unavailable (no torch-pruning), ModelError (no channel of any block can go, or
    torch-pruning cannot follow one), InputError (nothing would go, a layer would be emptied, the ratio is out of
    reach).
    """
    if not layers:
        raise InputError("pruning was asked for, but no block is forked", "give blocks, as in --layers 13-14")
    fork = _Fork(backbone, _blocks(backbone, layers), dict(versions or {}), pruning.outer)
    fork.check()
    gone = fork.lightest(pruning.ratio, pruning) if pruning.of == "channels" else _search(fork, pruning)
    _check_something_goes(fork, gone, pruning)
    if not fork.fits(gone):
        raise ModelError(
            f"{fork} can lose a channel, but not so many: its layers would not fit each other any more",
            "give a smaller ratio, or choose other blocks",
        )
    return fork.without(gone)


def _check_something_goes(fork: _Fork, gone: Gone, pruning: Pruning) -> None:
    if not any(atoms for _, atoms in gone):
        widest = max(group.atoms * group.size for group in fork.groups)
        raise InputError(
            f"a ratio of {pruning.ratio:g} removes nothing from {fork}, whose widest layer inside has "
            f"{widest} channels, with widths kept at multiples of {pruning.round_to}",
            "give a greater ratio, or smaller multiples with --prune-round-to",
        )


def _blocks(backbone: Backbone, layers: Sequence[int]) -> tuple[str, ...]:
    if unknown := sorted(set(layers) - {block.index for block in backbone.blocks}):
        raise LayersError(
            f"blocks {format_layers(unknown)} are outside 1..{len(backbone.blocks)}", "see the block table"
        )
    return tuple(f"block{index}" for index in sorted(set(layers)))


def _module(backbone: Backbone, versions: Mapping[str, Version], unit: str) -> nn.Module:
    module = version_of(backbone, versions, unit)
    assert isinstance(module, nn.Module)  # blocks and heads are called
    return module


@dataclass(frozen=True)
class _Fork:
    """What is to be thinned, and which channels of it can go. Tensors are named as in the whole model."""

    backbone: Backbone
    units: tuple[str, ...]
    versions: Mapping[str, Version]
    outer: bool

    def __str__(self) -> str:
        if len(self.units) > 2:
            return f"blocks {format_layers(self.layers)}"
        return ", ".join(map(self.told, self.units))

    @property
    def layers(self) -> list[int]:
        return [int(unit.removeprefix("block")) for unit in self.units]

    def told(self, unit: str) -> str:
        """How messages name a block."""
        return f"block {unit.removeprefix('block')} ({self.backbone.units[unit]})"

    @property
    def changing(self) -> tuple[str, ...]:
        """The units that may become thinner."""
        return (*self.units, *(self.backbone.heads if self.outer else ()))

    @cached_property
    def state(self) -> dict[str, Tensor]:
        """The weights of all units that may become thinner."""
        return {
            f"{self.backbone.units[unit]}.{name}": tensor
            for unit in self.changing
            for name, tensor in _module(self.backbone, self.versions, unit).state_dict().items()
        }

    @cached_property
    def flow(self) -> Flow:
        return flow(self.backbone, self.versions)

    def check(self) -> None:
        """Raise ModelError where nothing can go; InputError for heads that read more than the task's own stream."""
        heads = self.backbone.heads if self.outer else ()
        if any(
            features_of(_module(self.backbone, self.versions, each)) != self.flow.features[each]
            for each in heads
        ):
            raise InputError(
                "what a Siamese task hands on cannot be thinned after training: its head reads the base's as well",
                "prune before training, or leave --prune-outer away",
            )
        if not self.groups:
            raise ModelError(
                f"{self} cannot be pruned: every channel in it is part of what it hands on, or of what it is given",
                "choose other blocks, or leave it whole",
            )

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """What can go without a change to anything outside, in the order of the blocks."""
        if self.outer:
            return tuple(group for group in self._of_all() if self._can_lose(group, self._fits))
        return tuple(
            group
            for unit in self.units
            for group in self._of_block(unit)
            if self._can_lose(group, partial(self._fits_block, unit))
        )

    def fits(self, gone: Gone) -> bool:
        """Whether all still goes together without these atoms."""
        return self._fits(gone) if self.outer else all(self._fits_block(unit, gone) for unit in self.units)

    def _of_block(self, unit: str) -> list[Group]:
        call = self.flow.calls[unit][0]
        try:
            found = find_groups(_module(self.backbone, self.versions, unit), call.args, call.kwargs)
        except ModelError as error:
            raise ModelError(f"{self.told(unit)} cannot be pruned: {error.message}", error.hint) from error
        return [group.inside(self.backbone.units[unit]) for group in found]

    def _of_all(self) -> list[Group]:
        """Those of the whole network that run through nothing but units that may change."""
        picture = torch.zeros(1, *self.backbone.input.shape)
        try:
            found = find_groups(assemble(self.backbone, self.versions), (picture,), {})
        except ModelError as error:
            raise ModelError(error.message, "leave --prune-outer away") from error
        return [group for group in found if all(part.name in self.state for part in group.parts)]

    def _can_lose(self, group: Group, fits: Callable[[Gone], bool]) -> bool:
        """Whether one atom can be taken away."""
        try:
            return group.atoms >= FEWEST and fits([(group, (0,))])
        except (CheckpointError, ModelError):  # layers that cannot be narrower, or do not fit any more
            return False

    def _fits_block(self, unit: str, gone: Gone) -> bool:
        thin = self._rebuilt(unit, without(self.state, gone))
        return all(call.fits(thin) for call in self.flow.calls[unit])

    def _fits(self, gone: Gone) -> bool:
        thin = self.without(gone)
        features = flow(self.backbone, {**self.versions, **thin}).features
        heads = [
            (_module(self.backbone, self.versions, unit), thin[unit], unit) for unit in self.backbone.heads
        ]
        return all(
            features_of(own) == features[unit] and classes_of(own) == classes_of(whole)
            for whole, own, unit in heads
        )

    def lightest(self, ratio: float, pruning: Pruning) -> Gone:
        return lightest(self.groups, self.state, ratio, pruning)

    def without(self, gone: Gone) -> dict[str, nn.Module]:
        """The units that may change, these atoms taken away."""
        state = without(self.state, gone)
        return {unit: self._rebuilt(unit, state) for unit in self.changing}

    def _rebuilt(self, unit: str, state: Mapping[str, Tensor]) -> nn.Module:
        path = f"{self.backbone.units[unit]}."
        own = {name[len(path) :]: tensor for name, tensor in state.items() if name.startswith(path)}
        return conform(_module(self.backbone, self.versions, unit), own)

    def size(self, gone: Gone, of: str) -> int:
        """Parameters or multiply-adds of the blocks, these atoms taken away."""
        size = fork_size(self.backbone, self.layers, {**self.versions, **self.without(gone)})
        return size.macs if of == "macs" else size.parameters


def _search(fork: _Fork, pruning: Pruning) -> Gone:
    """The smallest share of channels with which the fork keeps at most 1 - ratio of its MACs or parameters."""
    whole = fork.size([], pruning.of)
    target = (1 - pruning.ratio) * whole

    def enough(step: int) -> bool:
        try:
            return fork.size(fork.lightest(step / STEPS, pruning), pruning.of) <= target
        except InputError:  # it would empty a layer, so it is told if less is not enough
            return True

    if not enough(STEPS - 1):
        least = fork.size(fork.lightest(1 - 1 / STEPS, pruning), pruning.of)
        raise InputError(
            f"{fork} cannot lose {pruning.ratio:.0%} of its {pruning.of}: without a change to what it hands on "
            f"at most {1 - least / whole:.0%} can go",
            "give a smaller ratio, or more blocks, or --prune-outer",
        )
    return fork.lightest(bisect_left(range(STEPS - 1), True, key=enough) / STEPS, pruning)
