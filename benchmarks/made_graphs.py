"""Graphs that a benchmark makes by itself, as engines; weights and inputs are noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from subtune_deploy.backends import get_backend
from subtune_deploy.backends.base import Batch, Engine
from subtune_deploy.compiling import make_engine
from subtune_deploy.spec import BASE, GRAPH, INPUT, LONE_GRAPH
from subtune_deploy.targets import load_target

FLOAT = ir.TensorType(ir.DataType.FLOAT)
OPSET, IR_VERSION = 20, 10


def noise(seed: int | np.random.Generator, *shape: int) -> npt.NDArray[np.float32]:
    """Of a standard normal distribution, by a seed or as the generator goes on."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def entry(shape: tuple[int, ...]) -> ir.Value:
    """The one input of a graph."""
    return ir.Value(name=INPUT, type=FLOAT, shape=ir.Shape(shape))


def constant(name: str, values: npt.NDArray[np.float32]) -> ir.Value:
    """A weight."""
    return ir.Value(name=name, const_value=ir.tensor(values), type=FLOAT, shape=ir.Shape(values.shape))


def open_graph(
    folder: Path,
    given: ir.Value,
    nodes: list[ir.Node],
    weights: list[ir.Value],
    name: str,
    calibration: Batch,
) -> Engine:
    """What the last node answers, of the shape of what it is given, compiled in a new folder for the target `name`."""
    target, graphs, (made,) = load_target(name), folder / "graphs", nodes[-1].outputs
    graphs.mkdir(parents=True)
    made.name, made.type, made.shape = BASE, FLOAT, given.shape
    graph = ir.Graph(
        [given], [made], nodes=nodes, initializers=weights, opset_imports={"": OPSET}, name="made"
    )
    for role in (GRAPH, LONE_GRAPH):
        ir.save(ir.Model(graph, ir_version=IR_VERSION), graphs / role)
    make_engine(graphs, folder, target, calibration)
    return get_backend(target.backend).load(folder, "graph", target)
