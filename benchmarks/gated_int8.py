"""int8 where activations are SiLU or hard swish: what it gains on this CPU, and what trained networks lose.

    python benchmarks/gated_int8.py [--epochs 6] [--seconds 60] [--scratch FOLDER]

No weights of such networks come with a package, so EfficientNet-B0 and MobileNetV3-Large learn 2,500 MNIST digits here,
from random weights, all of it, at 64 pixels. Their answers to 1,000 others are compared, engine by engine; int8 is
calibrated on digits that they were trained with. Latencies are of the backbone alone at 224 pixels, all engines of a
network interleaved in one run; they do not depend on what the weights are. benchmarks/results/gated_int8.jsonl holds,
for each network, the class that each engine answers, and every sample in seconds; gated_int8.md beside it is made of
it. With --scratch what was trained is kept there, and found there the next time.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import click
import numpy as np
import precision_cpu
from kept_lines import Line, compilers_of, host_of, taken
from made_graphs import noise
from precision_cpu import CALIBRATION_DIGITS, DIGITS, compiled, evenly

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
LINES, SUMMARY = RESULTS / "gated_int8.jsonl", RESULTS / "gated_int8.md"
MODELS = {"efficientnet_b0": "EfficientNet-B0", "mobilenet_v3_large": "MobileNetV3-Large"}
TARGETS = {name: plain for name, plain in precision_cpu.TARGETS.items() if "bf16" not in name}
"""Each with the fp32 target of its backend, which it is compared with."""
LEARNT, TIMED = 64, 224
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
    lines: list[Line] = []
    for model in MODELS:
        with tempfile.TemporaryDirectory() as temporary:
            folder = scratch or Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{model}_{epochs}.safetensors"
            lines.append(
                {
                    "model": model,
                    "epochs": epochs,
                    **asked(opened(model, LEARNT), path, Path(temporary), epochs),
                    "timed": timed(opened(model, TIMED), Path(temporary), seconds),
                }
            )
    LINES.write_text("".join(json.dumps(line) + "\n" for line in lines))
    SUMMARY.write_text(summary(lines))
    click.echo(SUMMARY.read_text())


def opened(model: str, side: int) -> Backbone:
    return trace(load_model(model, "random", (3, side, side)))


def asked(backbone: Backbone, path: Path, temporary: Path, epochs: int) -> Line:
    """The class that each engine gives every digit that was not trained with."""
    data = load_data(DIGITS, train=TRAIN, test=TEST)
    task = learnt(backbone, data, path, epochs)
    bundle = build(backbone, [task], temporary / "learnt", sources=False)
    spec = backbone.input
    calibration = prepare_batch(data.train, evenly(len(data.train), CALIBRATION_DIGITS), spec).numpy()
    engines = compiled(bundle, temporary / "engines", calibration, targets=TARGETS)
    digits = prepare_batch(data.test, range(len(data.test)), spec).numpy()
    classes = {
        name: run_all(each, digits, 1)[DIGITS].argmax(axis=1).tolist() for name, each in engines.items()
    }
    return {"labels": data.test.labels.tolist(), "classes": classes}


def learnt(backbone: Backbone, data: Data, path: Path, epochs: int) -> Task:
    """The whole network as a task, from `path` if it is there."""
    fork = Fork("all")
    if not path.exists():
        config = TrainConfig(epochs=epochs, batch_size=32, lr=RATE, augment="none")
        task = tune(backbone, DIGITS, data.train, data.test, fork, config).task
        write_state(path, *task_state(backbone, task))
    layers = tuple(block.index for block in backbone.blocks)
    return task_from_checkpoint(backbone, DIGITS, read_state(path), layers=layers)


def timed(backbone: Backbone, temporary: Path, seconds: float) -> Line:
    """The backbone by itself, at the size that it was designed for."""
    task = candidate_task(backbone, DIGITS, (len(backbone.blocks),), seed=1)
    bundle = build(backbone, [task], temporary / "timed", sources=False)
    calibration = noise(0, CALIBRATED, *backbone.input.shape)
    engines = compiled(bundle, temporary / "timed_engines", calibration, "base", TARGETS)
    return taken(partial(measure, engines, fresh_batches(backbone.input, 1), Protocol(seconds=seconds)))


def summary(lines: Sequence[Line]) -> str:
    """Markdown: the command, the host, a row for each network and target."""
    first = lines[0]["timed"]
    doubts = "".join(f"\n\nWarning: {text}" for line in lines for text in line["timed"]["warnings"])
    return (
        f"`python benchmarks/gated_int8.py`: networks that learnt {TRAIN:,} digits from random weights; "
        f"classes of {len(lines[0]['labels']):,} others at {LEARNT} pixels, medians of the backbone alone at {TIMED}, "
        f"batch 1, on {host_of(first)}, {compilers_of(first)}. All engines of a network interleaved; "
        f"ratios are medians to the same backend in fp32, with 95 % intervals.{doubts}\n\n"
    ) + markdown(
        (
            "network",
            "target",
            "median",
            "ratio to fp32",
            "95 % interval",
            "digits right",
            "same class as fp32",
        ),
        [list(row(line, name)) for line in lines for name in TARGETS],
    )


def row(line: Line, name: str) -> Iterator[str]:
    """Cells of one network's target."""
    plain, samples, classes = TARGETS[name], line["timed"]["samples"], line["classes"]
    ratio = paired_ratio(samples[plain], samples[name]) if name != plain else None
    yield MODELS[line["model"]]
    yield name
    yield milliseconds(median(samples[name]))
    yield f"{ratio.value:.2f}" if ratio else "1"
    yield f"{ratio.low:.2f} to {ratio.high:.2f}" if ratio else ""
    yield f"{np.mean(np.equal(classes[name], line['labels'])):.1%}"
    yield f"{np.mean(np.equal(classes[name], classes[plain])):.1%}"


if __name__ == "__main__":
    main()
