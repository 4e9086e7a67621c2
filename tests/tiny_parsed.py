"""Tiny ONNX graphs, parsed by the real TensorRT-RTX, for tests of what is read from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from subtune_deploy.backends.tensorrt.builder import Parsed, parse
from subtune_deploy.backends.tensorrt.network import Network, read
from subtune_deploy.backends.tensorrt.settings import Settings

rtx = pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx-cu13")

FLOAT = TensorProto.FLOAT


def write(
    path: Path,
    nodes: Sequence[NodeProto],
    weights: Mapping[str, np.ndarray | TensorProto],
    shape: Sequence[int | str],
    *,
    outputs: Sequence[str] = ("output",),
    opset: int = 20,
) -> Path:
    """A graph from `input`, float32 of `shape`, to float32 outputs."""
    tensors = [
        each if isinstance(each, TensorProto) else numpy_helper.from_array(each, name)
        for name, each in weights.items()
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("input", FLOAT, shape)],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs],
        tensors,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10), path)
    return path


def bf16(values: np.ndarray, name: str) -> TensorProto:
    """`values`, cut to bfloat16."""
    bits = (np.ascontiguousarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return helper.make_tensor(name, TensorProto.BFLOAT16, values.shape, bits.tobytes(), raw=True)


def parsed(path: Path) -> Parsed:
    return parse(rtx, path, Settings())


def records(path: Path) -> Network:
    return read(rtx, parsed(path).network)


def layers(network: Network, kind: str) -> list[Any]:
    return [layer for layer in network.layers if layer.type == kind]
