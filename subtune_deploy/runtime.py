"""Load and run a bundle: numpy, Pillow and one backend are all that a device needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .backends import get_backend
from .backends.base import Batch, Engine
from .bundle import Bundle, EngineEntry, Manifest, TaskEntry, engine_target
from .errors import BundleError, CheckFailed, did_you_mean
from .pictures import load_picture

TOP = 5

Guess = tuple[str | int, float]
"""A label (the class number where the task has no labels) and its probability."""


def load_engine(bundle: Bundle, target_name: str, role: str = "graph") -> Engine:
    """The engine of a compiled target, its files' hashes and its backend's version checked first.

    Raises BundleError (not compiled, altered, another version), Unavailable (backend or precision not here).
    """
    entry = _entry(bundle, target_name)
    bundle.verify_hashes(entry.files)
    target = engine_target(bundle, target_name)
    backend = get_backend(target.backend)
    _check_version(target_name, entry, backend.probe().version)
    return backend.load(bundle.path / target_name, role, target)


def answers(engine: Engine, manifest: Manifest, pictures: Sequence[Path]) -> list[dict[str, list[Guess]]]:
    """For each picture, for each task, its five likeliest classes, likeliest first.

    Raises PictureError, and CheckFailed if the engine answers anything but finite numbers.
    """
    size = manifest.batch or 1
    found = []
    for start in range(0, len(pictures), size):
        chunk = pictures[start : start + size]
        batch = np.stack([load_picture(path, manifest.input) for path in chunk])
        outputs = engine.run(_filled(batch, size))
        found += [_tasks(outputs, i, manifest, path) for i, path in enumerate(chunk)]
    return found


def softmax(scores: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Probabilities (classes,) from scores (classes,)."""
    powers = np.exp(scores.astype(np.float64) - scores.max())
    return np.asarray(powers / powers.sum())


def _entry(bundle: Bundle, name: str) -> EngineEntry:
    engines = bundle.manifest.engines
    if name not in engines:
        hint = f"compile it: subtune-deploy compile {bundle.path} --target {name}"
        if engines:
            hint = f"{did_you_mean(name, engines)}; or {hint}"
        raise BundleError(f"{bundle.path} has no engine for target {name!r}", hint)
    return engines[name]


def _check_version(name: str, entry: EngineEntry, here: str) -> None:
    """Engines are proven with one version of their library; its patch releases are taken for the same."""
    made = entry.versions.get(entry.backend, "")
    if made.split(".")[:2] != here.split(".")[:2]:
        raise BundleError(
            f"engine {name} was compiled with {entry.backend} {made}, here is {here}",
            f"compile it again, or pip install {entry.backend}=={made}",
        )


def _filled(batch: Batch, size: int) -> Batch:
    """A graph of a fixed batch size takes no fewer: repeat the last picture."""
    return np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), axis=0)])


def _tasks(
    outputs: dict[str, npt.NDArray[Any]], row: int, manifest: Manifest, picture: Path
) -> dict[str, list[Guess]]:
    found = {}
    for task in manifest.tasks:
        scores = outputs[task.name][row].ravel()
        if not np.isfinite(scores).all():
            raise CheckFailed(f"task {task.name} answers no number for {picture}", "verify the bundle")
        found[task.name] = _top(softmax(scores), task)
    return found


def _top(probabilities: npt.NDArray[np.float64], task: TaskEntry) -> list[Guess]:
    best = np.argsort(-probabilities, kind="stable")[:TOP]
    return [(task.labels[i] if task.labels else int(i), float(probabilities[i])) for i in best]
