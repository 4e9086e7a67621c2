"""What bf16 and int8 gain on this CPU, and what they cost in answers, with real weights and real pictures.

    python benchmarks/precision_cpu.py [--seconds 120] [--size 224] [--scratch FOLDER]

EfficientNet-Lite0 with its ImageNet weights and a digits task tuned on blocks 9-11 are one graph, compiled in
each precision. int8 is calibrated on photographs and training digits, none of which is asked about later. All
engines are interleaved in one run. benchmarks/results/precision_cpu.jsonl holds the host, the class that each
engine answers to every picture, and every sample in seconds; benchmarks/results/precision_cpu.md is made of it.
With --scratch the tuned task is kept there, and found there the next time.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
from kept_lines import Line, compilers_of

from subtune_deploy.backbone import Backbone, trace
from subtune_deploy.backends import get_backend
from subtune_deploy.backends.base import Batch, Engine
from subtune_deploy.build import build
from subtune_deploy.bundle import Bundle
from subtune_deploy.checkpoint import read_state, write_state
from subtune_deploy.conditions import noise_warnings, watch
from subtune_deploy.data.augment import prepare_batch
from subtune_deploy.data.dataset import Data
from subtune_deploy.data.sources import load_data
from subtune_deploy.demo import CONFIG, FORKS, MODEL, TEST, TRAIN, base_checkpoint
from subtune_deploy.environment import describe
from subtune_deploy.measure import Protocol, fresh_batches, measure
from subtune_deploy.models import load_model
from subtune_deploy.parity import relative_errors, run_all
from subtune_deploy.pictures import prepare
from subtune_deploy.precision import carried, converted, int8_form
from subtune_deploy.result_tables import markdown, milliseconds
from subtune_deploy.spec import BASE, InputSpec
from subtune_deploy.stats import median, paired_ratio
from subtune_deploy.targets import load_target
from subtune_deploy.tasks import Task, task_from_checkpoint, task_state
from subtune_deploy.tuning.settings import Fork
from subtune_deploy.tuning.train import tune

RESULTS = Path(__file__).parent / "results"
LINES, SUMMARY = RESULTS / "precision_cpu.jsonl", RESULTS / "precision_cpu.md"
TARGETS = {
    "openvino-cpu": "openvino-cpu",
    "openvino-cpu-bf16": "openvino-cpu",
    "openvino-cpu-int8": "openvino-cpu",
    "cpu": "cpu",
    "cpu-int8": "cpu",
}
"""Each with the fp32 target of its backend, which it is compared with."""
DIGITS, FORK = "digits", FORKS["digits_9_11"]
CALIBRATE = ("astronaut", "brick", "clock", "coins", "gravel", "immunohistochemistry", "moon", "rocket")
ASK = (
    "camera",
    "chelsea",
    "coffee",
    "grass",
    "hubble_deep_field",
    "page",
    "retina",
    "stereo_motorcycle",
    "text",
)
"""Photographs of scikit-image; those of scikit-learn are asked about, too."""
CALIBRATION_DIGITS = 64
WINDOWS, SIDE = 4, 0.5
"""Besides the whole photograph: a grid of so many windows a side, each of this part of its sides."""

Picture = npt.NDArray[np.uint8]


@click.command()
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=120.0, help="To time, at most.")
@click.option("--size", type=click.IntRange(32), default=224, help="Pixels a side.")
@click.option("--test", "count", type=click.IntRange(10), default=TEST, help="Digits to ask about.")
@click.option("--scratch", type=click.Path(path_type=Path, file_okay=False), help="Keep the tuned task here.")
def main(seconds: float, size: int, count: int, scratch: Path | None) -> None:
    """Tune, compile, ask, time, write."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = scratch or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        lines = list(measured(folder, Path(temporary), size, count, seconds))
    RESULTS.mkdir(exist_ok=True)
    LINES.write_text("".join(json.dumps(line) + "\n" for line in lines))
    SUMMARY.write_text(summary(*lines))
    click.echo(SUMMARY.read_text())


def measured(folder: Path, temporary: Path, size: int, count: int, seconds: float) -> Iterator[Line]:
    """The header, the answers, the samples."""
    base = base_checkpoint(folder / "base.safetensors")
    backbone = trace(load_model(MODEL, str(base), (3, size, size)))
    data = load_data(DIGITS, train=TRAIN, test=count)
    task = tuned(backbone, data, folder / f"{DIGITS}_{size}.safetensors")
    bundle = build(backbone, [task], temporary / "bundle", sources=False)
    click.echo("built and verified", err=True)
    spec = backbone.input
    calibration = to_calibrate(data, spec)
    engines = compiled(bundle, temporary / "engines", calibration)
    click.echo(f"compiled, calibrated on {len(calibration)} pictures", err=True)
    host = describe()
    yield {"unit": "s", "size": size, "fork": list(FORK), "calibration": len(calibration), "host": host}
    asked = {
        **to_ask(data, spec, count),
        "noise": np.concatenate(fresh_batches(spec, 32, seed=1)[:1]),
    }
    yield {"labels": data.test.labels.tolist(), "answers": answers(engines, asked)}
    click.echo("asked", err=True)
    with watch() as seen:
        found = measure(engines, fresh_batches(spec, 1), Protocol(seconds=seconds))
    rounded = {name: [round(sample, 9) for sample in taken] for name, taken in found.samples.items()}
    warnings = noise_warnings(host, rounded["openvino-cpu"], seen.conditions)
    yield {"samples": rounded, "conditions": seen.conditions, "warnings": warnings}


def tuned(backbone: Backbone, data: Data, path: Path) -> Task:
    """The digits task, from `path` if it is there."""
    if not path.exists():
        task = tune(backbone, DIGITS, data.train, data.test, Fork(FORK), CONFIG).task
        write_state(path, *task_state(backbone, task))
    return task_from_checkpoint(backbone, DIGITS, read_state(path), layers=FORK)


def to_calibrate(data: Data, spec: InputSpec) -> Batch:
    """Windows of photographs, and training digits."""
    digits = prepare_batch(data.train, evenly(len(data.train), CALIBRATION_DIGITS), spec).numpy()
    return np.concatenate([windows(photographs(CALIBRATE), spec), digits])


def to_ask(data: Data, spec: InputSpec, digits: int) -> dict[str, Batch]:
    """Windows of other photographs, and so many test digits."""
    return {
        "photographs": windows([*photographs(ASK), *samples()], spec),
        DIGITS: prepare_batch(data.test, range(digits), spec).numpy(),
    }


def photographs(names: Iterable[str]) -> list[Picture]:
    """Of scikit-image; of a pair of stereo pictures, the left one."""
    from skimage import data

    found = (getattr(data, name)() for name in names)
    return [np.asarray(each[0] if isinstance(each, tuple) else each, dtype=np.uint8) for each in found]


def samples() -> list[Picture]:
    """The two photographs of scikit-learn."""
    from sklearn.datasets import load_sample_images

    return list(load_sample_images().images)


def windows(pictures: Iterable[Picture], spec: InputSpec) -> Batch:
    """Every picture whole, and in windows: float32 (n, C, H, W)."""
    return np.stack([prepare(part, spec) for picture in pictures for part in (picture, *grid(picture))])


def grid(picture: Picture) -> Iterator[Picture]:
    height, width = (int(SIDE * side) for side in picture.shape[:2])
    steps = np.linspace(0, 1, WINDOWS)
    for down in steps:
        for right in steps:
            top, left = round(down * (picture.shape[0] - height)), round(right * (picture.shape[1] - width))
            yield picture[top : top + height, left : left + width]


def evenly(count: int, wanted: int) -> npt.NDArray[np.int64]:
    return np.asarray(np.linspace(0, count - 1, wanted).round(), np.int64)


def compiled(
    bundle: Bundle,
    folder: Path,
    calibration: Batch,
    role: str = "graph",
    targets: Iterable[str] = TARGETS,
) -> dict[str, Engine]:
    """The engine of every task for each target; or, as `base`, that of the backbone alone."""
    engines: dict[str, Engine] = {}
    for name in targets:
        target, here = load_target(name), folder / name
        source = here / "source" if carried(target) else bundle.path
        here.mkdir(parents=True)
        if source != bundle.path:
            source.mkdir()
            converted(bundle.path, source, target.precision, calibration, form=int8_form(target))
        backend = get_backend(target.backend)
        backend.compile(source, here, role, target)
        engines[name] = backend.load(here, role, target)
    return engines


def answers(engines: Mapping[str, Engine], asked: Mapping[str, Batch]) -> Line:
    """By inputs, task and engine: the class of every input, and its error relative to the engine in fp32."""
    found: Line = {}
    for kind, batch in asked.items():
        given = {name: run_all(engine, batch, 1) for name, engine in engines.items()}
        for task in (BASE, DIGITS):
            for name, plain in TARGETS.items():
                errors = relative_errors(given[name][task], given[plain][task])
                classes = given[name][task].argmax(axis=1)
                line = {"classes": classes.tolist(), "errors": [float(f"{error:.3g}") for error in errors]}
                found.setdefault(kind, {}).setdefault(task, {})[name] = line
    return found


def summary(header: Line, asked: Line, timed: Line) -> str:
    """Markdown: the command, the host, a row for each target."""
    host = header["host"]
    numbers = {kind: len(found[BASE]["cpu"]["classes"]) for kind, found in asked["answers"].items()}
    doubts = "".join(f"\n\nWarning: {text}" for text in timed["warnings"])
    rows = [list(row(name, asked, timed["samples"])) for name in TARGETS]
    return (
        f"`python benchmarks/precision_cpu.py`: EfficientNet-Lite0 with ImageNet weights and a digits task tuned on "
        f"blocks 9-11, one graph, batch 1, 3x{header['size']}x{header['size']}, on {host['cores']} cores of "
        f"{host['cpu']}, {compilers_of(header)}. All engines interleaved, {len(timed['samples']['cpu'])} rounds; "
        f"ratios are medians to the same backend in fp32, with 95 % intervals. int8 calibrated on "
        f"{header['calibration']} pictures. Same class as in fp32: the base on "
        f"{numbers['photographs']} windows of photographs, the digits "
        f"task on {numbers[DIGITS]} MNIST digits; many windows show no "
        f"object of ImageNet. Error: max |difference| / max |answer| of both tasks, median and "
        f"largest, on those inputs and on {numbers['noise']} of noise. None of the pictures was used to calibrate or "
        f"to train.{doubts}\n\n"
    ) + markdown(COLUMNS, rows)


COLUMNS = (
    "target",
    "median",
    "ratio to fp32",
    "95 % interval",
    "base, same class",
    "whole photographs",
    "digits, same class",
    "digits right",
    "error on pictures",
    "error on noise",
)


def row(name: str, asked: Line, taken: Mapping[str, Sequence[float]]) -> Iterator[str]:
    """Cells of one target."""
    plain, found = TARGETS[name], asked["answers"]
    ratio = paired_ratio(taken[plain], taken[name]) if name != plain else None
    yield name
    yield milliseconds(median(taken[name]))
    yield f"{ratio.value:.2f}" if ratio else "1"
    yield f"{ratio.low:.2f} to {ratio.high:.2f}" if ratio else ""
    alike = same(found["photographs"][BASE], name)
    whole = alike[:: WINDOWS**2 + 1]
    yield f"{np.mean(alike):.1%}"
    yield f"{whole.sum()} of {len(whole)}"
    yield f"{np.mean(same(found[DIGITS][DIGITS], name)):.1%}"
    yield f"{np.mean(np.array(found[DIGITS][DIGITS][name]['classes']) == asked['labels']):.1%}"
    yield errors(name, found["photographs"][BASE], found[DIGITS][DIGITS])
    yield errors(name, *found["noise"].values())


def same(found: Mapping[str, Line], name: str) -> npt.NDArray[np.bool_]:
    return np.asarray(np.equal(found[name]["classes"], found[TARGETS[name]]["classes"]))


def errors(name: str, *found: Mapping[str, Line]) -> str:
    all_ = [error for each in found for error in each[name]["errors"]]
    return f"{np.median(all_):.2g}, {max(all_):.2g}"


if __name__ == "__main__":
    main()
