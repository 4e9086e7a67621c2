"""What the interpreter tells an operation about its layer, and how an operation says that it cannot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import Unavailable


@dataclass(frozen=True)
class Step:
    """What an operation is told beside its inputs: the layer, its weights as tensors, and what it must answer."""

    name: str
    type: str
    attributes: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    dtype: torch.dtype
    rank: int

    def axes(self) -> list[int]:
        """The axes in a bit mask."""
        return [axis for axis in range(32) if self.attributes["axes"] >> axis & 1]

    def choose(self, table: Mapping[str, Any], attribute: str) -> Any:
        """What `table` has for the attribute's value. Raises Unavailable."""
        value = self.attributes[attribute]
        if value not in table:
            raise unknown(self, f"{attribute} {value}")
        return table[value]


Operation = Callable[..., Tensor | tuple[Tensor, ...]]
"""operation(step, *inputs); an input that was left out is None."""


def unknown(step: Step, what: str) -> Unavailable:
    """The error for what the interpreter cannot execute."""
    return Unavailable(
        f"layer {step.name!r} of type {step.type} has {what}, which the interpreter does not know",
        "the engine may be right, but it cannot be proven here: check it on its device",
    )
