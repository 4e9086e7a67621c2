"""A checkpoint against the base: which units a task tuned, and where only batch-norm statistics moved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .backbone import Backbone
from .checkpoint import (
    Checkpoint,
    check_finite,
    check_keys,
    check_shapes,
    fingerprint,
    is_counter,
    match_keys,
)
from .errors import CheckpointError
from .spec import TASK_FORMAT
from .widths import narrower

STATISTICS = ("running_mean", "running_var")
"""How batch-norm's running statistics end."""


@dataclass(frozen=True)
class Difference:
    """`parts`: the checkpoint's weights by unit, names relative to the unit (`""` for a bare tensor).

    `tuned`: units in which a weight differs from the base's, bit by bit. `drifted`: units outside the heads
    in which nothing but batch-norm statistics differs.
    """

    parts: Mapping[str, Mapping[str, Tensor]]
    tuned: tuple[str, ...]
    drifted: tuple[str, ...]


def compare(backbone: Backbone, checkpoint: Checkpoint) -> Difference:
    """What `checkpoint` changes. Raises CheckpointError where it is not one of this backbone.

    A file of format `subtune-task` holds only what differs, and all that it holds is meant, statistics too.
    """
    explicit = checkpoint.metadata.get("format") == TASK_FORMAT
    base = backbone.model.state_dict()
    parts = _by_unit(backbone, _complete(backbone, checkpoint, base, explicit))
    base_parts = _by_unit(backbone, base)
    tuned, drifted = [], []
    for unit, part in parts.items():
        changed = [key for key, tensor in part.items() if _differs(key, tensor, base_parts[unit][key])]
        only_statistics = all(key.endswith(STATISTICS) for key in changed)
        if changed and only_statistics and not explicit and unit not in backbone.heads:
            drifted.append(unit)
        elif changed:
            tuned.append(unit)
    return Difference(parts, tuple(tuned), tuple(drifted))


def _differs(key: str, given: Tensor, base: Tensor) -> bool:
    return not is_counter(key) and (given.shape != base.shape or not torch.equal(given, base))


def _complete(
    backbone: Backbone, checkpoint: Checkpoint, base: Mapping[str, Tensor], explicit: bool
) -> dict[str, Tensor]:
    """The checkpoint's state under the base's names, in its dtypes, gaps that may be filled from the base."""
    state = match_keys(checkpoint, base)
    if explicit:
        _check_base(checkpoint, base)
    check_keys(checkpoint.path, state, base, optional=base if explicit else backbone.unused)
    check_finite(checkpoint.path, state)
    check_shapes(checkpoint.path, state, fixed_shapes(backbone, state, base, thinner=explicit))
    return {key: _as_stored(state.get(key, tensor), tensor) for key, tensor in base.items()}


def fixed_shapes(
    backbone: Backbone, state: Mapping[str, Tensor], base: Mapping[str, Tensor], *, thinner: bool
) -> dict[str, Tensor]:
    """The part of `base` whose shapes `state` must have: what is executed, heads left out.

    `thinner`: tensors of blocks may also be narrower; that they fit each other is then still to be seen.
    """
    heads = [backbone.units[unit] for unit in backbone.heads]
    blocks = [block.name for block in backbone.blocks] if thinner else []
    free = {key for key in base if key in state and _inside(key, blocks) and narrower(state[key], base[key])}
    return {
        key: tensor
        for key, tensor in base.items()
        if key not in backbone.unused and key not in free and not _inside(key, heads)
    }


def _check_base(checkpoint: Checkpoint, base: Mapping[str, Tensor]) -> None:
    if checkpoint.metadata.get("base") != fingerprint(base):
        raise CheckpointError(
            f"{checkpoint.path} was tuned on other base weights than these",
            "give the --model and --weights that it was tuned with",
        )


def _as_stored(given: Tensor, base: Tensor) -> Tensor:
    """`given` in the base's dtype; the base's own values where a coarser dtype hides no difference."""
    if given.dtype == base.dtype:
        return given
    same = given.shape == base.shape and torch.equal(base.to(given.dtype), given)
    return base if same else given.to(base.dtype)


def _inside(key: str, paths: Iterable[str]) -> bool:
    return any(key == path or key.startswith(f"{path}.") for path in paths)


def _by_unit(backbone: Backbone, state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """unit -> the part of `state` below its path, names relative to it (`""` for a bare tensor)."""
    parts: dict[str, dict[str, Tensor]] = {unit: {} for unit in backbone.units}
    longest = sorted(backbone.units.items(), key=lambda unit: -len(unit[1]))
    for key, tensor in state.items():
        unit = next((unit for unit, path in longest if _inside(key, [path])), None)
        if unit is not None:
            parts[unit][key.removeprefix(backbone.units[unit]).removeprefix(".")] = tensor
    return parts
