"""What exporting a multi-task graph costs, against exporting the backbone alone the same way.

    python benchmarks/export_cost.py [RUNS]

Interleaved in one process; the ratio is the median of pairs. Raw seconds go to benchmarks/results/export_cost.json.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

from subtune_deploy.backbone import Backbone, trace
from subtune_deploy.environment import describe
from subtune_deploy.export import export
from subtune_deploy.models import load_model
from subtune_deploy.onnx_file import save_onnx
from subtune_deploy.plan import make_plan
from subtune_deploy.stats import median, paired_ratio
from subtune_deploy.tasks import Task, candidate_task, owners
from subtune_deploy.tracing import example

CASES = {"resnet50": (13, 14), "vit_b_16": (11, 12), "efficientnet_b0": (9, 10, 11)}
RESULTS = Path(__file__).parent / "results" / "export_cost.json"


def alone(backbone: Backbone) -> float:
    """Seconds that PyTorch's exporter needs for the network itself, saved to a file."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            backbone.model, (example(backbone.input.shape, 1),), dynamo=True, verbose=False
        )
        assert program is not None
        program.save(Path(folder, "graph.onnx"))
    return time.perf_counter() - start


def multitask(backbone: Backbone, tasks: list[Task]) -> tuple[float, float]:
    """Seconds from the plan to graph.onnx, and to all files: graph.onnx, base.onnx and program.pt2."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        plan = make_plan(backbone.topology, owners(tasks))
        exported = export(backbone, tasks, plan)
        save_onnx(exported.graph, Path(folder, "graph.onnx"))
        graph = time.perf_counter() - start
        Path(folder, "graph.onnx").unlink()
        again = time.perf_counter()
        exported.save(Path(folder))
        saved = time.perf_counter() - again
    return graph, graph + saved


def main() -> None:
    """Measure every case, print and keep."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    samples: dict[str, dict[str, list[float]]] = {}
    for name, fork in CASES.items():
        backbone = trace(load_model(name))
        tasks = [candidate_task(backbone, "task1", fork, seed=1)]
        alone(backbone)  # warm-up: the first export of a process imports and compiles
        runs_made = [(alone(backbone), *multitask(backbone, tasks)) for _ in range(runs)]
        columns = [list(column) for column in zip(*runs_made, strict=True)]
        samples[name] = dict(zip(("alone", "graph", "all files"), columns, strict=True))
        for kind in ("graph", "all files"):
            ratio = paired_ratio(samples[name]["alone"], samples[name][kind])
            seconds = median(samples[name]["alone"]), median(samples[name][kind])
            print(
                f"{name}, {kind}: {seconds[0]:.1f} s alone, {seconds[1]:.1f} s, ratio {ratio.value:.2f}",
                flush=True,
            )
    RESULTS.write_text(json.dumps({"unit": "s", "host": describe(), "samples": samples}) + "\n")


if __name__ == "__main__":
    main()
