"""An ONNX model becomes a file without a second copy of its weights in memory.

The libraries' own writers build the whole message first, and then its bytes: twice the weights beside the weights. Here
the message is built without them, and each follows by itself; that is the same message, since the order of fields in
the file has no meaning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx_ir as ir
from onnx import GraphProto, ModelProto, TensorProto

PROTOBUF_LIMIT = 2**31 - 2**20
"""Bytes of graph and weights, names of weights aside; more than that, and the weights lie beside the graph."""
INITIALIZERS = GraphProto.DESCRIPTOR.fields_by_name["initializer"].number
GRAPHS = ModelProto.DESCRIPTOR.fields_by_name["graph"].number
EMBEDDED = 2
"""Protobuf's wire type of a field that is a message: its length, then its bytes."""


def save_onnx(model: ir.Model, path: Path) -> None:
    """One file, or, past what protobuf can hold, the graph and `NAME.data` beside it."""
    weights = {
        name: value.const_value for name, value in model.graph.initializers.items() if value.const_value
    }
    with _without_weights(model.graph):
        message = ir.to_proto(model)
    del message.graph.initializer[:]
    if message.ByteSize() + sum(weight.nbytes for weight in weights.values()) > PROTOBUF_LIMIT:
        ir.save(model, path, external_data=f"{path.name}.data")
        return
    with path.open("wb") as file:
        _write(file, message, weights)


@contextmanager
def _without_weights(graph: ir.Graph) -> Iterator[None]:
    """Nothing in the place of each: what is said of a weight besides its numbers stays."""
    held = {value: value.const_value for value in graph.initializers.values() if value.const_value}
    try:
        for value in held:
            value.const_value = ir.tensor(np.zeros(0, np.float32))
        yield
    finally:
        for value, tensor in held.items():
            value.const_value = tensor


def _write(file: BinaryIO, model: ModelProto, weights: Mapping[str, ir.TensorProtocol]) -> None:
    graph = model.graph.SerializeToString()
    sizes = [_message(*weight).ByteSize() for weight in weights.items()]
    whole = len(graph) + sum(len(_head(INITIALIZERS, size)) + size for size in sizes)
    model.ClearField("graph")
    file.write(model.SerializeToString())
    file.write(_head(GRAPHS, whole))
    file.write(graph)
    for weight, size in zip(weights.items(), sizes, strict=True):
        file.write(_head(INITIALIZERS, size))
        file.write(_message(*weight).SerializeToString())


def _message(name: str, tensor: ir.TensorProtocol) -> TensorProto:
    message = ir.to_proto(tensor)
    message.name = name
    return message


def _head(number: int, length: int) -> bytes:
    """What stands before an embedded message: its field and its length."""
    return _varint(number << 3 | EMBEDDED) + _varint(length)


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; the eighth says that more follow."""
    parts = []
    while number >= 128:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes((*parts, number))
