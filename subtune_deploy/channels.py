"""Groups of channels that hang together, which of them weigh least, and a network's weights without those.

A group says, for every tensor that it runs through, which positions on which axis belong to its first atom, its
second, and so on. An atom is what must go together: a channel, one channel of each group of a grouped convolution,
a head of attention. Taking atoms away is then a selection of rows and columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from .errors import InputError
from .spec import Pruning

ROUNDING = 1e-9
"""0.29 of 100 channels are 29, whatever binary fractions make of it."""

State: TypeAlias = Mapping[str, Tensor]


@dataclass(frozen=True)
class Part:
    """`owner`: for each position on `axis` of the tensor `name` the atom that it belongs to, or -1."""

    name: str
    axis: int
    owner: Tensor


@dataclass(frozen=True, eq=False)
class Group:
    """`atoms` of `size` channels each, which can go one by one.

    `name`: the layer that makes them. `kind`: channels, or heads.
    """

    name: str
    kind: str
    atoms: int
    size: int
    parts: tuple[Part, ...]

    def scores(self, state: State, power: int) -> Tensor:
        """(atoms,): the sum of |w|^power, as the mean over the weights that the group runs through, 1 on average.

        torch-pruning's magnitude importance as it comes: biases and statistics do not count.
        """
        weights = [part for part in self.parts if part.name.endswith("weight")]
        total = torch.zeros(self.atoms, dtype=torch.float64)
        for part in weights:
            tensor = state[part.name].double().abs().pow(power).movedim(part.axis, 0)
            kept = part.owner >= 0
            total.index_add_(0, part.owner[kept], tensor.reshape(len(tensor), -1).sum(1)[kept] / len(weights))
        return total / total.mean() if total.any() else total

    def inside(self, path: str) -> Group:
        """The group as part of a network in which its module lies at `path`."""
        parts = (replace(part, name=f"{path}.{part.name}") for part in self.parts)
        return replace(self, name=f"{path}.{self.name}" if self.name else path, parts=tuple(parts))


Gone: TypeAlias = Sequence[tuple[Group, tuple[int, ...]]]
"""Which atoms of which groups are taken away."""


def without(state: State, gone: Gone) -> dict[str, Tensor]:
    """`state` after these atoms of these groups are taken away."""
    kept: dict[tuple[str, int], Tensor] = {}
    for group, atoms in gone:
        leaving = torch.tensor(atoms, dtype=torch.long)
        for part in group.parts:
            stays = ~torch.isin(part.owner, leaving)
            kept[part.name, part.axis] = kept.get((part.name, part.axis), torch.tensor(True)) & stays
    result = dict(state)
    for (name, axis), stays in kept.items():
        result[name] = result[name].index_select(axis, stays.nonzero().flatten())
    return result


def lightest(groups: Sequence[Group], state: State, ratio: float, pruning: Pruning) -> Gone:
    """The share `ratio` of atoms that weigh least: of each group, or of all groups of a kind together.

    Raises InputError where a layer would be emptied.
    """
    power = 1 if pruning.norm == "l1" else 2
    scores = {group: group.scores(state, power) for group in groups}
    asked = {group: int(ratio * group.atoms + ROUNDING) for group in groups}
    if pruning.scope == "global":
        asked = _ranked_together(scores, ratio)
    _check_not_emptied(asked, pruning.round_to)
    gone = []
    for group, score in scores.items():
        count = allowed(group, asked[group], pruning.round_to)
        gone.append((group, tuple(score.argsort(stable=True)[:count].tolist())))
    return gone


def _ranked_together(scores: Mapping[Group, Tensor], ratio: float) -> dict[Group, int]:
    """How many atoms of each group are among the lowest of its kind; heads are not compared with channels."""
    asked = dict.fromkeys(scores, 0)
    for kind in {group.kind: None for group in scores}:
        alike = [group for group in scores if group.kind == kind]
        owners = torch.arange(len(alike)).repeat_interleave(torch.tensor([each.atoms for each in alike]))
        order = torch.cat([scores[group] for group in alike]).argsort(stable=True)
        lowest = owners[order[: int(ratio * len(owners) + ROUNDING)]]
        counts = lowest.bincount(minlength=len(alike)).tolist()
        asked.update(zip(alike, counts, strict=True))
    return asked


def _check_not_emptied(asked: Mapping[Group, int], round_to: int) -> None:
    """Where widths are rounded up, the first multiple stays; where they are taken at their word, nothing would."""
    emptied = [group for group, count in asked.items() if count >= group.atoms and round_to == 1]
    if emptied:
        raise InputError(
            f"pruning would empty {emptied[0].name}: all its {emptied[0].atoms} {emptied[0].kind} are among "
            "those of the fork that weigh least",
            "give a smaller ratio, --prune-scope local, or leave widths rounded",
        )


def allowed(group: Group, asked: int, round_to: int) -> int:
    """How many atoms go where `asked` should, so that a multiple of `round_to` channels stays, rounded up.

    A layer with fewer channels than that is not rounded; something always stays.
    """
    step = round_to // math.gcd(round_to, group.size)
    if group.atoms < step:
        return min(asked, group.atoms - 1)
    kept = max(step, -(-(group.atoms - asked) // step) * step)
    return max(0, group.atoms - kept)
