"""What int8 answers on this CPU with weights of 8 bits and of 7, with real weights and real pictures.

    OMP_NUM_THREADS=1 python benchmarks/weight_bits.py [--seconds 60] [--test 500] [--scratch FOLDER]

x86 without VNNI adds products of 8 bits in 16, which overflow. Network, task and pictures are precision_cpu.py's. Each
int8 engine is held against its own graph, executed as it is written, where nothing overflows; all engines are
interleaved in one run. Engines with 8 bits are opened here even where `compile` would not.
benchmarks/results/weight_bits.json has classes, errors and samples; weight_bits.md beside it is made of it. With
--scratch the tuned task is kept there, and found there the next time.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import click
import numpy as np
from kept_lines import Line, compilers_of, host_of, taken
from precision_cpu import DIGITS, to_ask, to_calibrate, tuned

from subtune_deploy.backbone import trace
from subtune_deploy.backends import get_backend
from subtune_deploy.backends.base import Batch, Engine
from subtune_deploy.backends.onnxruntime import open_literally
from subtune_deploy.build import build
from subtune_deploy.bundle import Bundle
from subtune_deploy.data.sources import load_data
from subtune_deploy.demo import MODEL, TRAIN, base_checkpoint
from subtune_deploy.measure import Protocol, fresh_batches, measure
from subtune_deploy.models import load_model
from subtune_deploy.parity import relative_errors, run_all
from subtune_deploy.precision import converted, int8_form
from subtune_deploy.result_tables import markdown, milliseconds
from subtune_deploy.spec import BASE, GRAPH
from subtune_deploy.stats import median, paired_ratio
from subtune_deploy.targets import load_target

RESULTS = Path(__file__).parent / "results"
DOCUMENT, SUMMARY = RESULTS / "weight_bits.json", RESULTS / "weight_bits.md"
PLAIN = {"cpu": "ONNX Runtime", "openvino-cpu": "OpenVINO"}
BITS = (8, 7)
TASKS = {BASE: "photographs", DIGITS: DIGITS}
"""Each with the pictures that it is asked about."""


@click.command()
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=60.0, help="To time, at most.")
@click.option("--test", "count", type=click.IntRange(10), default=500, help="Digits to ask about.")
@click.option("--scratch", type=click.Path(path_type=Path, file_okay=False), help="Keep the tuned task here.")
def main(seconds: float, count: int, scratch: Path | None) -> None:
    """Tune, compile, ask, time, write."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = scratch or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        document = measured(folder, Path(temporary), count, seconds)
    DOCUMENT.write_text(json.dumps(document) + "\n")
    SUMMARY.write_text(summary(document))
    click.echo(SUMMARY.read_text())


def measured(folder: Path, temporary: Path, count: int, seconds: float) -> Line:
    """All that is kept."""
    backbone = trace(load_model(MODEL, str(base_checkpoint(folder / "base.safetensors"))))
    data, spec = load_data(DIGITS, train=TRAIN, test=count), backbone.input
    task = tuned(backbone, data, folder / f"{DIGITS}_{spec.shape[1]}.safetensors")
    bundle = build(backbone, [task], temporary / "bundle", sources=False)
    engines, graphs = compiled(bundle, temporary / "engines", to_calibrate(data, spec))
    told = answers(engines, graphs, to_ask(data, spec, count))
    timed = taken(partial(measure, engines, fresh_batches(spec, 1), Protocol(seconds=seconds)))
    return {"labels": data.test.labels.tolist(), "answers": told, **timed}


def compiled(bundle: Bundle, folder: Path, calibration: Batch) -> tuple[dict[str, Engine], dict[str, Engine]]:
    """Engines by name (`cpu`, `cpu-int8 8`), and the graphs of those in int8 as they are written."""
    engines: dict[str, Engine] = {}
    graphs: dict[str, Engine] = {}
    for plain in PLAIN:
        for target, bits in ((plain, 0), *((f"{plain}-int8", bits) for bits in BITS)):
            name, recipe = f"{target} {bits}" if bits else target, load_target(target)
            here, source = folder / name, bundle.path
            here.mkdir(parents=True)
            if bits:
                form = replace(int8_form(recipe), weight_bits=bits)
                converted(source, here, "int8", calibration, form=form)
                source, graphs[name] = here, open_literally(here / GRAPH)
            engine = here / "engine"
            engine.mkdir()
            get_backend(recipe.backend).compile(source, engine, "graph", recipe)
            engines[name] = get_backend(recipe.backend).load(engine, "graph", recipe)
    return engines, graphs


def answers(engines: Mapping[str, Engine], graphs: Mapping[str, Engine], asked: Mapping[str, Batch]) -> Line:
    """By task: the class of each picture by each engine and graph, and how far an engine is from its graph."""
    found: Line = {}
    for task, kind in TASKS.items():
        by_engine = {name: run_all(each, asked[kind], 1)[task] for name, each in engines.items()}
        by_graph = {name: run_all(each, asked[kind], 1)[task] for name, each in graphs.items()}
        found[task] = {
            "engines": {name: each.argmax(axis=1).tolist() for name, each in by_engine.items()},
            "graphs": {name: each.argmax(axis=1).tolist() for name, each in by_graph.items()},
            "errors": {
                name: [float(f"{error:.3g}") for error in relative_errors(by_engine[name], each)]
                for name, each in by_graph.items()
            },
        }
    return found


def summary(document: Line) -> str:
    """Markdown: the command, the host, a row for each engine in int8."""
    host, told = document["host"], document["answers"]
    numbers = {task: len(told[task]["engines"]["cpu"]) for task in TASKS}
    doubts = "".join(f"\n\nWarning: {text}" for text in document["warnings"])
    right = np.mean(np.equal(told[DIGITS]["engines"]["cpu"], document["labels"]))
    vnni = "with VNNI" if "vnni" in (host["instructions"] or "") else "without VNNI"
    return (
        f"`OMP_NUM_THREADS=1 python benchmarks/weight_bits.py`: EfficientNet-Lite0 with ImageNet weights and a digits "
        f"task, as in precision_cpu.md, batch 1, on {host_of(document)}, {vnni}, {compilers_of(document)}. Ratios "
        f"are medians to the same backend in fp32, with 95 % intervals, all engines interleaved. The graph is the "
        f"engine's, executed operator by operator as it is written; its error is max |difference| / max |answer|, the "
        f"median of all pictures. Same class as fp32: the base on {numbers[BASE]} windows of photographs; of "
        f"{numbers[DIGITS]} digits fp32 names {right:.1%} rightly.{doubts}\n\n"
    ) + markdown(COLUMNS, [row(name, document) for name in told[BASE]["graphs"]])


COLUMNS = (
    *("engine", "bits", "median", "ratio to fp32", "95 % interval", "error to its graph"),
    *("base, same class", "its graph", "digits right", "its graph"),
)


def row(name: str, document: Line) -> list[str]:
    """Cells of one engine."""
    target, bits = name.split()
    plain, told, times = target.removesuffix("-int8"), document["answers"], document["samples"]
    ratio = paired_ratio(times[plain], times[name])
    base, digits = told[BASE], told[DIGITS]
    errors = [*base["errors"][name], *digits["errors"][name]]
    return [
        PLAIN[plain],
        bits,
        milliseconds(median(times[name])),
        f"{ratio.value:.2f}",
        f"{ratio.low:.2f} to {ratio.high:.2f}",
        f"{np.median(errors):.2g}",
        *(f"{np.mean(np.equal(base[by][name], base['engines'][plain])):.1%}" for by in ("engines", "graphs")),
        *(f"{np.mean(np.equal(digits[by][name], document['labels'])):.1%}" for by in ("engines", "graphs")),
    ]


if __name__ == "__main__":
    main()
