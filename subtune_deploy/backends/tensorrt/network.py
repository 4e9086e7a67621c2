"""The network that the parser handed to the compiler, as plain records.

Everything that the API tells of a layer is read: each property of the layer's own class, so that a layer type
or an attribute that a later version adds is in the record too. Weights are copied: the records outlive the parser.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import Unavailable


@dataclass(frozen=True)
class Tensor:
    """A value. `dtype` is the API's name (FLOAT, HALF, BF16, INT8, ...); a length of None is dynamic."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Weights:
    """Constant numbers in the order in which the compiler gets them, flat. BF16 lies in `values` as uint16."""

    dtype: str
    values: npt.NDArray[Any]


@dataclass(frozen=True)
class Layer:
    """One layer. `type` is the API's name (CONVOLUTION, ...); an input that was left out is None.

    `attributes` are plain: numbers, strings, tuples of them, and enumerations by name; None for dimensions that
    an input gives.
    """

    name: str
    type: str
    attributes: Mapping[str, Any]
    weights: Mapping[str, Weights]
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True)
class Network:
    """Layers in the order of execution."""

    layers: tuple[Layer, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def read(api: Any, network: Any) -> Network:
    """The records of an INetworkDefinition of the module `api` (tensorrt or tensorrt_rtx).

    Values are told apart by their names, which the API keeps unique. Raises Unavailable for weights of a type that
    cannot be read.
    """
    layers = tuple(_layer(api, network.get_layer(index)) for index in range(network.num_layers))
    inputs = tuple(_tensor(network.get_input(index)) for index in range(network.num_inputs))
    outputs = tuple(_tensor(network.get_output(index)) for index in range(network.num_outputs))
    return Network(_ordered(layers), inputs, outputs)


def _ordered(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """Producers before readers: the parser adds some constants behind the layers that read them."""
    maker = {tensor.name: index for index, layer in enumerate(layers) for tensor in layer.outputs}
    needed = {
        index: [maker[each.name] for each in layer.inputs if each is not None and each.name in maker]
        for index, layer in enumerate(layers)
    }
    return tuple(layers[index] for index in TopologicalSorter(needed).static_order())


def _layer(api: Any, layer: Any) -> Layer:
    kind = api.ILayer.type.__get__(layer).name  # the classes of activation and pooling have another `type`
    layer.__class__ = _class(api, kind)
    properties = {name: _value(layer, member) for name, member in _properties(api, type(layer))}
    numbers = {
        name: value for name, value in properties.items() if isinstance(value, (np.ndarray, api.Weights))
    }
    return Layer(
        name=layer.name,
        type=kind,
        attributes={name: _plain(value) for name, value in properties.items() if name not in numbers},
        weights={name: _weights(value) for name, value in numbers.items() if len(value)},
        inputs=tuple(_optional(layer.get_input(index)) for index in range(layer.num_inputs)),
        outputs=tuple(_tensor(layer.get_output(index)) for index in range(layer.num_outputs)),
    )


def _class(api: Any, kind: str) -> Any:
    """MATRIX_MULTIPLY -> IMatrixMultiplyLayer; the general ILayer where the API has no class of that name."""
    wanted = f"i{kind}layer".replace("_", "").lower()
    return next((getattr(api, name) for name in dir(api) if name.lower() == wanted), api.ILayer)


def _properties(api: Any, derived: Any) -> Iterator[tuple[str, property]]:
    for each in derived.__mro__:
        if each is api.ILayer:
            return
        yield from ((name, value) for name, value in vars(each).items() if isinstance(value, property))


def _value(layer: Any, member: property) -> Any:
    try:
        return member.__get__(layer)
    except RuntimeError:  # how the API says that a layer has no such thing, as a block_shape
        return None


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if hasattr(type(value), "__members__"):
        return value.name
    if hasattr(value, "__len__"):
        return _tuple(value)
    return type(value).__name__


def _tuple(value: Any) -> tuple[Any, ...] | None:
    """Of dimensions, a permutation, a list. Dimensions that an input gives say that they are -1 in number."""
    try:
        length = len(value)
    except ValueError:
        return None
    return tuple(value[index] for index in range(length))


def _optional(tensor: Any) -> Tensor | None:
    return None if tensor is None else _tensor(tensor)


def _tensor(tensor: Any) -> Tensor:
    shape = tuple(None if length < 0 else int(length) for length in tensor.shape)
    return Tensor(tensor.name, tensor.dtype.name, shape)


def _weights(value: Any) -> Weights:
    if isinstance(value, np.ndarray):
        return Weights(_NAMES[value.dtype.name], value.copy())
    return Weights(value.dtype.name, _bits(value))


_NAMES = {
    "float32": "FLOAT",
    "float16": "HALF",
    "int8": "INT8",
    "int32": "INT32",
    "int64": "INT64",
    "bool": "BOOL",
    "uint8": "UINT8",
}


class _Fields(ctypes.Structure):
    """nvinfer1::Weights, as the library's header lays it out."""

    _fields_ = (("type", ctypes.c_int32), ("values", ctypes.c_void_p), ("count", ctypes.c_int64))


def _bits(value: Any) -> npt.NDArray[np.uint16]:
    """Weights in BF16, of which the API gives no array, since numpy has no such type.

    A Python object of pybind11 holds, behind its head, the address of the C++ object. That it does is checked
    by what the API does tell: type and count.
    """
    address = ctypes.c_void_p.from_address(id(value) + object.__basicsize__).value
    fields = _Fields.from_address(address) if address else _Fields()
    if (fields.type, fields.count) != (int(value.dtype), len(value)) or value.dtype.name != "BF16":
        raise Unavailable(
            f"weights of type {value.dtype.name} cannot be read from this version of the library",
            "the engine may be right, but it cannot be proven here: check it on its device",
        )
    return np.array(np.frombuffer(ctypes.string_at(fields.values, 2 * fields.count), np.uint16))
