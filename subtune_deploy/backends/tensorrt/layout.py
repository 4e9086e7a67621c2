"""What an engine takes and gives, and where it lies in memory. Nothing here needs a GPU."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...errors import BundleError, InputError
from ...spec import INPUT
from ..base import COMPILE_AGAIN, Batch, Shape, check_batch


@dataclass(frozen=True)
class Tensor:
    """An input or output of float32; its first length, the batch, is None where it is dynamic."""

    name: str
    shape: Shape

    def sized(self, batch: int) -> tuple[int, ...]:
        return tuple(batch if length is None else length for length in self.shape)

    def size(self, batch: int) -> int:
        """Bytes."""
        return 4 * int(np.prod(self.sized(batch)))

    def view(self, memory: npt.NDArray[np.uint8], batch: int) -> npt.NDArray[np.float32]:
        """The start of `memory` as this tensor, not copied."""
        return memory[: self.size(batch)].view(np.float32).reshape(self.sized(batch))


@dataclass(frozen=True)
class Layout:
    """What an engine takes and gives; `limits` are the smallest and the largest batch."""

    input: Tensor
    outputs: tuple[Tensor, ...]
    limits: tuple[int, int]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.input, *self.outputs)

    def check(self, batch: Batch) -> Batch:
        """The batch in contiguous memory. Raises InputError where the engine does not take it."""
        fitting, (low, high) = check_batch(batch, self.input.shape), self.limits
        if not low <= len(fitting) <= high:
            raise InputError(
                f"the batch has {len(fitting)} pictures, the engine was built for {low} to {high}",
                'give fewer at a time, or compile with another profile, as in profile = "1 4 16"',
            )
        return fitting


def make_layout(
    path: Path,
    inputs: Mapping[str, tuple[int, ...]],
    outputs: Mapping[str, tuple[int, ...]],
    limits: tuple[int, int],
) -> Layout:
    """From the library's shapes, where -1 is dynamic. Raises BundleError for an engine that is not one of ours."""
    if list(inputs) != [INPUT] or not outputs:
        raise BundleError(f"{path} takes {list(inputs)}, not the one input {INPUT!r}", COMPILE_AGAIN)
    for name, shape in (*inputs.items(), *outputs.items()):
        if not shape or -1 in shape[1:]:
            raise BundleError(f"{path}: {name} is {shape}, only the batch may be dynamic", COMPILE_AGAIN)
    return Layout(_tensor(INPUT, inputs[INPUT]), tuple(_tensor(*each) for each in outputs.items()), limits)


def _tensor(name: str, shape: Iterable[int]) -> Tensor:
    return Tensor(name, tuple(None if length == -1 else length for length in shape))
