"""A bundle small enough for any test: a network whose answers numpy can state.

features = mean over the picture of relu(a 1x1 convolution); base and birds are linear in them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from subtune_deploy.backends.base import Target
from subtune_deploy.bundle import Bundle, open_bundle, seal
from subtune_deploy.manifest import Manifest, TaskEntry
from subtune_deploy.spec import Block, InputSpec

SPEC = InputSpec(shape=(3, 8, 8), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
TARGETS = {
    "onnxruntime": Target("cpu", "onnxruntime", "fp32", "", threads=1),
    "openvino": Target("openvino-cpu", "openvino", "fp32", "", threads=1),
    "torch": Target("torch-cpu", "torch", "fp32", "", threads=1),
}

_RNG = np.random.default_rng(7)
WEIGHTS = {
    name: _RNG.standard_normal(shape).astype(np.float32)
    for name, shape in {"conv": (4, 3, 1, 1), "base": (300, 4), "birds": (3, 4)}.items()
}


def expected(batch: np.ndarray) -> dict[str, np.ndarray]:
    """What every engine of the role "graph" must answer."""
    features = np.maximum(np.einsum("nchw,dc->ndhw", batch, WEIGHTS["conv"][:, :, 0, 0]), 0).mean((2, 3))
    return {name: features @ WEIGHTS[name].T for name in ("base", "birds")}


def pictures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, *SPEC.shape)).astype(np.float32)


def write_graphs(folder: Path, batch: int | str = "batch", *, external: bool = False) -> None:
    """graph.onnx (base and birds) and base.onnx, with their weights inside or beside them."""
    for file, outputs in (("graph.onnx", ["base", "birds"]), ("base.onnx", ["base"])):
        model = _model(outputs, batch)
        location = f"{file}.data"
        onnx.save(model, folder / file, save_as_external_data=external, location=location, size_threshold=0)


def write_program(folder: Path) -> None:
    """program.pt2: base, birds and base_alone, as the torch backend reads them."""
    import torch

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, value in WEIGHTS.items():
                self.register_buffer(name, torch.from_numpy(value.copy()))

        def features(self, batch: Any) -> Any:
            return torch.relu(torch.nn.functional.conv2d(batch, self.conv)).mean((2, 3))

        def forward(self, batch: Any) -> Any:
            shared, alone = self.features(batch), self.features(batch)
            return shared @ self.base.T, shared @ self.birds.T, alone @ self.base.T

    batch = torch.export.Dim("batch")
    program = torch.export.export(Network(), (torch.from_numpy(pictures(2)),), dynamic_shapes=({0: batch},))
    names = json.dumps(["base", "birds", "base_alone"])
    torch.export.save(program, folder / "program.pt2", extra_files={"outputs.json": names})


def manifest(batch: int | None = None) -> Manifest:
    labels = ("heron", "jay", "wren")
    return Manifest(
        model="tiny",
        weights="random",
        input=SPEC,
        batch=batch,
        blocks=(Block(1, "conv", 12, 768, 48, (4, 8, 8)),),
        tasks=(
            TaskEntry("base", (), len(WEIGHTS["base"])),
            TaskEntry("birds", (1,), 3, labels, notes=("a note",)),
        ),
        plan={"nodes": [{"name": "conv", "streams": [["base", "birds"]]}]},
        versions={"onnx": onnx.__version__},
    )


def make_bundle(folder: Path, batch: int | None = None) -> Bundle:
    """An exported bundle without engines, for the two ONNX backends."""
    folder.mkdir(parents=True)
    write_graphs(folder, batch or "batch")
    seal(folder, manifest(batch))
    return open_bundle(folder)


def _model(outputs: list[str], batch: int | str) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["input", "conv"], ["convolved"]),
        helper.make_node("Relu", ["convolved"], ["positive"]),
        helper.make_node("GlobalAveragePool", ["positive"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
        *(helper.make_node("Gemm", ["features", f"{name}.weight"], [name], transB=1) for name in outputs),
    ]
    weights = [numpy_helper.from_array(WEIGHTS["conv"], "conv")]
    weights += [numpy_helper.from_array(WEIGHTS[name], f"{name}.weight") for name in outputs]
    floats = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("input", floats, [batch, *SPEC.shape])],
        [helper.make_tensor_value_info(name, floats, [batch, len(WEIGHTS[name])]) for name in outputs],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def tree(folder: Path) -> dict[str, bytes]:
    """What lies in the files below a folder, by name."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
