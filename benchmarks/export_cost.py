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


def multitask(backbone: Backbone, tasks: list[Task]) -> float:
    """Seconds from the plan to graph.onnx, base.onnx and program.pt2."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        plan = make_plan(backbone.topology, owners(tasks))
        export(backbone, tasks, plan).save(Path(folder))
    return time.perf_counter() - start


def main() -> None:
    """Measure every case, print and keep."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    samples: dict[str, dict[str, list[float]]] = {}
    for name, fork in CASES.items():
        backbone = trace(load_model(name))
        tasks = [candidate_task(backbone, "task1", fork, seed=1)]
        alone(backbone)  # warm-up: the first export of a process imports and compiles
        pairs = [(alone(backbone), multitask(backbone, tasks)) for _ in range(runs)]
        samples[name] = {"alone": [a for a, _ in pairs], "multitask": [b for _, b in pairs]}
        ratio = paired_ratio(samples[name]["alone"], samples[name]["multitask"])
        seconds = [median(samples[name][kind]) for kind in ("alone", "multitask")]
        print(
            f"{name}: {seconds[0]:.1f} s alone, {seconds[1]:.1f} s with one task, ratio {ratio.value:.2f}",
            flush=True,
        )
    RESULTS.write_text(json.dumps({"unit": "s", "host": describe(), "samples": samples}) + "\n")


if __name__ == "__main__":
    main()
