"""An engine that executes the parsed network in PyTorch on the CPU: what the compiler was given, run.

Every value has the type that the network gives it (float32, float16, bfloat16, int8, ...). Within a layer of
floating numbers arithmetic is in float32 and the result is rounded once. Each result is compared with the type
and shape that the parser announced, so that a misread layer shows where it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ...errors import BundleError, ParityError, Unavailable
from ...spec import INPUT
from ..base import Batch, Shape, check_batch
from .network import Layer, Network, Weights
from .network import Tensor as Declared
from .operations import ARITHMETIC
from .rearranging import REARRANGING
from .resizing import RESIZING
from .step import Operation, Step
from .windows import WINDOWS

OPERATIONS: Mapping[str, Operation] = {**ARITHMETIC, **WINDOWS, **REARRANGING, **RESIZING}
"""By the API's name of the layer type."""

DTYPES = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "INT8": torch.int8,
    "UINT8": torch.uint8,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class _Bound:
    """A layer ready to run; `done` are the values that nobody reads after it."""

    step: Step
    layer: Layer
    done: tuple[str, ...]


@dataclass(frozen=True)
class Interpreter:
    """See `Engine`. `threads`: as PyTorch is set."""

    network: Network
    bound: tuple[_Bound, ...]
    outputs: tuple[str, ...]
    shape: Shape

    @property
    def threads(self) -> int:
        return torch.get_num_threads()

    def run(self, batch: Batch) -> dict[str, npt.NDArray[np.float32]]:
        """Raises InputError (the batch), ParityError where a layer does not answer as announced."""
        given = torch.from_numpy(check_batch(batch, self.shape))
        (source,) = self.network.inputs
        values = {source.name: given.to(DTYPES[source.dtype])}
        with torch.inference_mode():
            for each in self.bound:
                values.update(_results(each, values))
                for name in each.done:
                    del values[name]
        return {name: np.array(values[name].float()) for name in self.outputs}


def open_interpreter(network: Network) -> Interpreter:
    """Raises BundleError (not the one input), Unavailable (a layer or number type that is not known here)."""
    if [each.name for each in network.inputs] != [INPUT]:
        names = ", ".join(each.name for each in network.inputs)
        raise BundleError(
            f"the parsed network takes {names or 'nothing'}, not the one input {INPUT!r}",
            "give a graph that this tool exported",
        )
    done = _last_uses(network)
    bound = tuple(
        _Bound(_step(layer), layer, names) for layer, names in zip(network.layers, done, strict=True)
    )
    outputs = tuple(each.name for each in network.outputs)
    return Interpreter(network, bound, outputs, network.inputs[0].shape)


def _step(layer: Layer) -> Step:
    if layer.type not in OPERATIONS:
        raise _unknown(layer, f"has type {layer.type}")
    for tensor in layer.outputs:
        if tensor.dtype not in DTYPES:
            raise _unknown(layer, f"answers {tensor.dtype}")
    return Step(
        name=layer.name,
        type=layer.type,
        attributes=layer.attributes,
        weights={name: _widened(_tensor(values)) for name, values in layer.weights.items()},
        dtype=DTYPES[layer.outputs[0].dtype] if layer.outputs else torch.float32,
        rank=len(layer.outputs[0].shape) if layer.outputs else 0,
    )


def _unknown(layer: Layer, what: str) -> Unavailable:
    return Unavailable(
        f"layer {layer.name!r} {what}, which the interpreter does not know",
        "the engine may be right, but it cannot be proven here: check it on its device",
    )


def _tensor(weights: Weights) -> torch.Tensor:
    if weights.dtype == "BF16":
        return torch.from_numpy(weights.values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(weights.values)


def _widened(value: torch.Tensor) -> torch.Tensor:
    return value.float() if value.is_floating_point() else value


def _last_uses(network: Network) -> Sequence[tuple[str, ...]]:
    """For each layer, the values that are read, or made, there for the last time."""
    kept = {each.name for each in network.outputs}
    seen: set[str] = set(kept)
    done: list[tuple[str, ...]] = []
    for layer in reversed(network.layers):
        names = {tensor.name for tensor in (*layer.inputs, *layer.outputs) if tensor is not None}
        done.append(tuple(names - seen))
        seen |= names
    return done[::-1]


def _results(each: _Bound, values: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    inputs = [None if tensor is None else _widened(values[tensor.name]) for tensor in each.layer.inputs]
    answer = OPERATIONS[each.layer.type](each.step, *inputs)
    answers = answer if isinstance(answer, tuple) else (answer,)
    for result, declared in zip(answers, each.layer.outputs, strict=True):
        yield declared.name, _as_declared(result, declared, each.layer)


def _as_declared(result: torch.Tensor, declared: Declared, layer: Layer) -> torch.Tensor:
    dtype = DTYPES[declared.dtype]
    if result.is_floating_point() and dtype.is_floating_point:
        result = result.to(dtype)
    fits = len(result.shape) == len(declared.shape) and all(
        length in (None, found) for length, found in zip(declared.shape, result.shape, strict=True)
    )
    if result.dtype is not dtype or not fits:
        raise ParityError(
            f"layer {layer.name!r} of type {layer.type} answers {result.dtype} {tuple(result.shape)}, "
            f"the parsed network announces {declared.dtype} {declared.shape}",
            "report it, with the model's name",
        )
    return result
