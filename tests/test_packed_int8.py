"""int8 of products that read packed streams: OpenVINO refuses the rounding of a pack that has a zero point."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from tiny_forms import FUSED, INTEGER
from tiny_networks import CLASSES, SIZE
from torch import nn

from subtune_deploy.backbone import trace
from subtune_deploy.backends.onnxruntime import open_literally
from subtune_deploy.export import export
from subtune_deploy.models import Model
from subtune_deploy.parity import relative_errors
from subtune_deploy.plan import make_plan
from subtune_deploy.precision import converted
from subtune_deploy.quantization import Form
from subtune_deploy.spec import InputSpec
from subtune_deploy.tasks import candidate_task, owners

PRODUCTS = {"Gemm": False, "MatMul": True}
"""What linear layers become, and whether they see positions."""
ENDS = {"negative values too": nn.Identity, "none that is negative": nn.ReLU}
"""How the blocks end whose answers are packed."""
WIDTH, TOLERANCE = 16, 0.1


class Linears(nn.Module):
    def __init__(self, positions: bool, end: type[nn.Module]) -> None:
        super().__init__()
        self.positions, self.stem = positions, nn.Conv2d(3, WIDTH, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, WIDTH), end()) for _ in range(4))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = x if self.positions else x.mean(1)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1) if self.positions else x)


def source(folder: Path, product: str, end: str) -> Path:
    """Two tasks on block 2; blocks 3 and 4 run on three packed streams."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Linears(PRODUCTS[product], ENDS[end]).eval().requires_grad_(False)
    network = trace(Model("linears", net, InputSpec(SIZE), (), "random"))
    tasks = [
        candidate_task(network, name, (2,), seed=seed) for seed, name in enumerate(("birds", "signs"), 1)
    ]
    export(network, tasks, make_plan(network.topology, owners(tasks))).save(folder, program=False)
    return folder


def inputs(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, *SIZE)).astype(np.float32)


def in_float(folder: Path, out: Path, product: str, form: Form) -> dict[str, bool]:
    """Whether the products of blocks 3, which reads the pack, and 4 compute in float32."""
    out.mkdir()
    converted(folder, out, "int8", inputs(16, seed=1), form=form)
    graph = ir.load(out / "graph.onnx").graph
    rounded = {
        str(node.name).partition(".")[0]: node.inputs[0].producer().op_type == "DequantizeLinear"
        for node in graph
        if node.op_type == product and str(node.name).startswith(("block3.", "block4."))
    }
    assert len(rounded) == 2
    return {name: not each for name, each in rounded.items()}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("product", PRODUCTS)
def test_for_openvino_what_reads_a_pack_with_a_zero_point_stays_in_float(
    product: str, end: str, tmp_path: Path
) -> None:
    folder = source(tmp_path, product, end)
    assert in_float(folder, tmp_path / "integer", product, INTEGER) == {"block3": False, "block4": False}
    signed = end == "negative values too"
    assert in_float(folder, tmp_path / "fused", product, FUSED) == {"block3": signed, "block4": False}
    batch = inputs(1)
    wanted = open_literally(folder / "graph.onnx").run(batch)
    got = open_literally(tmp_path / "fused" / "graph.onnx").run(batch)
    assert all(0 < relative_errors(got[task], answer).max() < TOLERANCE for task, answer in wanted.items())

    openvino = pytest.importorskip("openvino")
    engine = openvino.Core().compile_model(tmp_path / "fused" / "graph.onnx", "CPU")
    answers = {output.any_name: answer for output, answer in engine(batch).items()}
    assert all(relative_errors(answers[task], answer).max() < TOLERANCE for task, answer in wanted.items())
