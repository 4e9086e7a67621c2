"""int8 where activations are SiLU: what it gains on this CPU, and what it costs a network that has learnt something.

    python benchmarks/silu_int8.py [--epochs 6] [--seconds 60] [--scratch FOLDER]

No weights of a network with SiLU come with a package, so EfficientNet-B0 learns 2,500 MNIST digits here, from random
weights, all of it, at 64 pixels. Its answers to 1,000 others are compared, engine by engine; int8 is calibrated on
digits that it was trained with. Latencies are of the backbone alone at 224 pixels, all engines interleaved in one run;
they do not depend on what the weights are. benchmarks/results/silu_int8.jsonl holds the class that each engine answers,
and every sample in seconds; silu_int8.md beside it is made of it. With --scratch what was trained is kept there, and
found there the next time.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import click
import numpy as np
from kept_lines import Line, host_of, taken
from made_graphs import noise
from precision_cpu import CALIBRATION_DIGITS, DIGITS, TARGETS, compiled, evenly

from subtune_deploy.backbone import Backbone, trace
from subtune_deploy.build import build
from subtune_deploy.checkpoint import read_state, write_state
from subtune_deploy.data.augment import prepare_batch
from subtune_deploy.data.dataset import Data
from subtune_deploy.data.sources import load_data
from subtune_deploy.measure import Protocol, fresh_batches, measure
from subtune_deploy.models import load_model
from subtune_deploy.parity import run_all
from subtune_deploy.result_tables import markdown, milliseconds
from subtune_deploy.stats import median, paired_ratio
from subtune_deploy.tasks import Task, candidate_task, task_from_checkpoint, task_state
from subtune_deploy.tuning.settings import Fork, TrainConfig
from subtune_deploy.tuning.train import tune

RESULTS = Path(__file__).parent / "results"
LINES, SUMMARY = RESULTS / "silu_int8.jsonl", RESULTS / "silu_int8.md"
MODEL, LEARNT, TIMED = "efficientnet_b0", 64, 224
TRAIN, TEST = 2500, 1000
RATE = 2e-3
CALIBRATED = 8
"""Inputs of noise, for the engines that are only timed."""


@click.command()
@click.option("--epochs", type=click.IntRange(1), default=6, show_default=True)
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=60.0, help="To time, at most.")
@click.option(
    "--scratch", type=click.Path(path_type=Path, file_okay=False), help="Keep what was trained here."
)
def main(epochs: int, seconds: float, scratch: Path | None) -> None:
    """Train, ask, time, write."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = scratch or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        lines = [*asked(folder, Path(temporary), epochs), timed(Path(temporary), seconds)]
    LINES.write_text("".join(json.dumps(line) + "\n" for line in lines))
    SUMMARY.write_text(summary(*lines))
    click.echo(SUMMARY.read_text())


def opened(side: int) -> Backbone:
    return trace(load_model(MODEL, "random", (3, side, side)))


def asked(folder: Path, temporary: Path, epochs: int) -> Iterator[Line]:
    """The class that each engine gives every digit that was not trained with."""
    backbone, data = opened(LEARNT), load_data(DIGITS, train=TRAIN, test=TEST)
    task = learnt(backbone, data, folder / f"{MODEL}_{epochs}.safetensors", epochs)
    bundle = build(backbone, [task], temporary / "learnt", sources=False)
    spec = backbone.input
    calibration = prepare_batch(data.train, evenly(len(data.train), CALIBRATION_DIGITS), spec).numpy()
    engines = compiled(bundle, temporary / "engines", calibration)
    digits = prepare_batch(data.test, range(len(data.test)), spec).numpy()
    classes = {
        name: run_all(each, digits, 1)[DIGITS].argmax(axis=1).tolist() for name, each in engines.items()
    }
    yield {"epochs": epochs, "labels": data.test.labels.tolist(), "classes": classes}


def learnt(backbone: Backbone, data: Data, path: Path, epochs: int) -> Task:
    """The whole network as a task, from `path` if it is there."""
    fork = Fork("all")
    if not path.exists():
        config = TrainConfig(epochs=epochs, batch_size=32, lr=RATE, augment="none")
        task = tune(backbone, DIGITS, data.train, data.test, fork, config).task
        write_state(path, *task_state(backbone, task))
    layers = tuple(block.index for block in backbone.blocks)
    return task_from_checkpoint(backbone, DIGITS, read_state(path), layers=layers)


def timed(temporary: Path, seconds: float) -> Line:
    """The backbone by itself, at the size that it was designed for."""
    backbone = opened(TIMED)
    task = candidate_task(backbone, DIGITS, (len(backbone.blocks),), seed=1)
    bundle = build(backbone, [task], temporary / "timed", sources=False)
    engines = compiled(
        bundle, temporary / "timed_engines", noise(0, CALIBRATED, *backbone.input.shape), "base"
    )
    return taken(partial(measure, engines, fresh_batches(backbone.input, 1), Protocol(seconds=seconds)))


def summary(found: Line, times: Line) -> str:
    """Markdown: the command, the host, a row for each target."""
    doubts = "".join(f"\n\nWarning: {text}" for text in times["warnings"])
    rows = [list(row(name, found, times["samples"])) for name in TARGETS]
    libraries = " and ".join(
        f"{name} {times['host']['libraries'].get(name)}" for name in ("onnxruntime", "openvino")
    )
    return (
        f"`python benchmarks/silu_int8.py`: EfficientNet-B0, trained here on {TRAIN:,} digits from random weights; "
        f"classes of {len(found['labels']):,} others at {LEARNT} pixels, medians of the backbone alone at {TIMED}, "
        f"batch 1, on {host_of(times)}, {libraries}. All engines interleaved, {len(times['samples']['cpu'])} rounds; "
        f"ratios are medians to the same backend in fp32, with 95 % intervals.{doubts}\n\n"
    ) + markdown(
        ("target", "median", "ratio to fp32", "95 % interval", "digits right", "same class as fp32"), rows
    )


def row(name: str, found: Line, samples: dict[str, list[float]]) -> Iterator[str]:
    """Cells of one target."""
    plain = TARGETS[name]
    ratio = paired_ratio(samples[plain], samples[name]) if name != plain else None
    yield name
    yield milliseconds(median(samples[name]))
    yield f"{ratio.value:.2f}" if ratio else "1"
    yield f"{ratio.low:.2f} to {ratio.high:.2f}" if ratio else ""
    yield f"{np.mean(np.equal(found['classes'][name], found['labels'])):.1%}"
    yield f"{np.mean(np.equal(found['classes'][name], found['classes'][plain])):.1%}"


if __name__ == "__main__":
    main()
