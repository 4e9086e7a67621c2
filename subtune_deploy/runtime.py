"""Run a bundle on a device: numpy, Pillow and one backend are all that this needs.

    from subtune_deploy.runtime import Bundle

    street = Bundle.open("street")      # the engine's files checked, loaded, run once
    street.run(["a.jpg", "b.jpg"])      # {"base": (2, 1000), "birds": (2, 3)}

`subtune_deploy.bundle.Bundle` is the record of what lies in a folder, called `Record` here; the `Bundle` of this
module holds one of its engines, ready to run.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from .backends import get_backend
from .backends.base import COMPILE_AGAIN, ROLES, Batch, Bounded, Engine, Streaming, Target, spelt
from .bundle import SOURCE, engine_target, open_bundle
from .bundle import Bundle as Record
from .environment import usable_cores
from .errors import BundleError, CheckFailed, InputError, PictureError, SubtuneError, did_you_mean
from .manifest import EngineEntry, TaskEntry
from .pictures import load_picture, prepare
from .spec import BASE, InputSpec

TOP = 5
MOST = 16
"""Images in one call of an engine that takes any number: more are hardly faster and take more memory."""

Picture = str | Path | npt.NDArray[np.uint8]
"""A file, or RGB pixels (H, W, 3), or grey ones (H, W)."""
Images = npt.NDArray[np.float32] | Sequence[Picture]
"""Network inputs (n, C, H, W), or pictures that are made ones."""
Guess = tuple[str | int, float]
"""A label (the class number where the task has no labels) and its probability."""


@dataclass(frozen=True, eq=False)
class Bundle:
    """A bundle and one of its engines, ready to run. Any number of threads may share it.

    Their calls enter the engine one at a time: it uses the cores or the device that it was told to use, one request
    of OpenVINO or context of TensorRT takes no second caller, and in turn the first answer is there sooner.
    """

    record: Record
    target: str
    engine: Engine
    _lock: Lock = field(default_factory=Lock, init=False, repr=False)

    @classmethod
    def open(cls, path: Path | str, target: str | None = None) -> Bundle:
        """The bundle in folder `path`, with the engine for `target`, by default the first one.

        The files of the engine are checked against the manifest, its library's version against the one that
        compiled it, and one run on zeros shows that its answers are those of the manifest's tasks.
        Raises BundleError, Unavailable (backend, device or precision not here), CheckFailed (it fails when run).
        """
        record = open_bundle(path)
        name = target or next(iter(record.manifest.engines), None)
        if name is None:
            hint = f"compile one: subtune-deploy compile {path} --target cpu"
            raise BundleError(f"{path} has no engine yet", hint)
        found = cls(record, name, load_engine(record, name))
        found._try()
        return found

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of what `run` answers; `base` is the first."""
        return tuple(task.name for task in self.record.manifest.tasks)

    @property
    def labels(self) -> dict[str, tuple[str, ...] | None]:
        """By task: the names of its classes, None where it has none."""
        return {task.name: task.labels for task in self.record.manifest.tasks}

    @property
    def input(self) -> InputSpec:
        """What the network takes: shape, normalisation, resizing."""
        return self.record.manifest.input

    @cached_property
    def batches(self) -> tuple[int, int]:
        """The fewest and the most images of one call of the engine."""
        fixed = self.record.manifest.batch
        if fixed:
            return fixed, fixed
        return self.engine.batches if isinstance(self.engine, Bounded) else (1, MOST)

    def run(self, images: Images) -> dict[str, npt.NDArray[Any]]:
        """By task: scores (n, classes), as the engine gives them, for any number n of images.

        `images` is either one array float32 (n, C, H, W), normalised already, or a list of pictures, which are
        resized, centre-cropped and normalised as for training: paths, or arrays uint8 (H, W, 3) in RGB order. What
        does not fill the engine's batch is filled with copies of the last image. Raises InputError, PictureError,
        CheckFailed.
        """
        fewest, most = self.batches
        if isinstance(images, np.ndarray) and images.ndim == 4 and fewest <= len(images) <= most:
            return self._call(images)  # checked by the engine: twice would show in a quick one
        _check_images(images, self.input.shape)
        parts = [self._answer(images[start : start + most]) for start in range(0, len(images), most)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def top(self, images: Images, count: int = TOP) -> list[dict[str, list[Guess]]]:
        """For each image, for each task, its `count` likeliest classes, likeliest first.

        Takes and raises what `run` does; CheckFailed also for answers that are not finite.
        """
        scores = self.run(images)
        _check_finite(scores, images)
        return [
            {
                task.name: _top(softmax(scores[task.name][i].ravel()), task, count)
                for task in self.record.manifest.tasks
            }
            for i in range(len(images))
        ]

    def _answer(self, images: Images) -> dict[str, npt.NDArray[Any]]:
        """As `run`, for no more images than the engine takes at once."""
        batch = images if isinstance(images, np.ndarray) else self._prepared(images)
        outputs = self._call(_filled(batch, self.batches[0]))
        return {name: scores[: len(batch)] for name, scores in outputs.items()}

    def _prepared(self, pictures: Sequence[Picture]) -> Batch:
        return np.stack([_load(picture, self.input) for picture in pictures])

    def _call(self, batch: Batch) -> dict[str, npt.NDArray[Any]]:
        try:
            with self._lock:
                return self.engine.run(batch)
        except SubtuneError:
            raise
        except Exception as error:
            raise failed(self.target, error) from error

    def _try(self) -> None:
        """The first run, which many libraries are slow in. Raises BundleError for answers of other shapes."""
        fewest, tasks = self.batches[0], self.record.manifest.tasks
        try:
            # No memory: what an edited manifest says of the input may be absurd.
            zeros = np.broadcast_to(np.float32(0), (fewest, *self.input.shape))
            outputs = self._call(zeros)
        except (InputError, ValueError, OverflowError) as error:
            told = error.message if isinstance(error, InputError) else str(error)
            raise _other(self.target, told) from error
        for task in tasks:
            shape = outputs[task.name].shape
            if shape[0] != fewest or math.prod(shape[1:]) != task.classes:
                raise _other(self.target, f"task {task.name} answers {shape}, not {(fewest, task.classes)}")


def load_engine(bundle: Record, target_name: str, role: str = "graph") -> Engine:
    """The engine of a compiled target, the hashes of its files and its backend's version checked first.

    Raises BundleError (not compiled, altered, another version), Unavailable (backend or precision not here).
    """
    target = _checked(bundle, target_name, role)
    return open_engine(bundle, target, bundle.path / target_name, role)


def load_streams(bundle: Record, target_name: str, role: str, streams: int) -> tuple[Engine, ...]:
    """As `load_engine`, an engine for each of so many callers at once. For one it is the same engine.

    Each of several has its part of the cores, at least one, and no more threads than the recipe says. They share their
    weights if the backend is `Streaming`; otherwise each is a load of its own.
    """
    if streams == 1:
        return (load_engine(bundle, target_name, role),)
    target, folder = _checked(bundle, target_name, role), bundle.path / target_name
    part = max(1, usable_cores() // streams)
    target = replace(target, threads=min(target.threads or part, part))
    backend = get_backend(target.backend)
    if not isinstance(backend, Streaming):
        return tuple(open_engine(bundle, target, folder, role) for _ in range(streams))
    engines = backend.load_streams(folder, role, target, streams)
    return tuple(_fitting(bundle, target, role, engine) for engine in engines)


def _checked(bundle: Record, target_name: str, role: str) -> Target:
    """The recipe of an engine whose files and library's version are those of the manifest. Raises BundleError."""
    bundle.verify_hashes(engine_files(_entry(bundle, target_name), role))
    check_version(bundle, target_name)
    return engine_target(bundle, target_name)


def open_engine(bundle: Record, target: Target, folder: Path, role: str) -> Engine:
    """The engine of `role` in `folder`, if it takes and answers what the bundle's manifest says.

    Raises BundleError, Unavailable.
    """
    return _fitting(bundle, target, role, get_backend(target.backend).load(folder, role, target))


def _fitting(bundle: Record, target: Target, role: str, engine: Engine) -> Engine:
    manifest = bundle.manifest
    expected = {BASE} if role == "base" else {task.name for task in manifest.tasks}
    if set(engine.outputs) != expected:
        raise _other(target.name, f"its outputs are {', '.join(engine.outputs)}")
    if engine.shape != (shape := (manifest.batch, *manifest.input.shape)):
        raise _other(target.name, f"it takes {spelt(engine.shape)}, not {spelt(shape)}")
    return engine


def engine_files(entry: EngineEntry, role: str) -> list[str]:
    """Those of a target's files that the engine of `role` is loaded from, relative to the bundle.

    A file that is called after no role serves every role; the folder `source` serves the compiler alone.
    """
    others = {other for other in ROLES if other != role}
    paths = [(name, PurePosixPath(name)) for name in entry.files]
    return [n for n, path in paths if path.name.split(".")[0] not in others and path.parts[1] != SOURCE]


@contextmanager
def engine_errors(target: str) -> Iterator[None]:
    """What an engine's library raises while the block runs becomes CheckFailed."""
    try:
        yield
    except SubtuneError:
        raise
    except Exception as error:
        raise failed(target, error) from error


def failed(target: str, error: Exception) -> CheckFailed:
    """The error for an engine that failed while it ran: what the libraries raise has no class in common."""
    reason = (str(error).splitlines() or [type(error).__name__])[-1]
    return CheckFailed(f"engine {target} failed while it ran: {reason}", COMPILE_AGAIN)


def softmax(scores: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Probabilities (classes,) from scores (classes,)."""
    powers = np.exp(scores.astype(np.float64) - scores.max())
    return np.asarray(powers / powers.sum())


def _entry(bundle: Record, name: str) -> EngineEntry:
    engines = bundle.manifest.engines
    if name not in engines:
        hint = f"compile it: subtune-deploy compile {bundle.path} --target {name}"
        if engines:
            hint = f"{did_you_mean(name, engines)}; or {hint}"
        raise BundleError(f"{bundle.path} has no engine for target {name!r}", hint)
    return engines[name]


def check_version(bundle: Record, name: str) -> None:
    """Engines are proven with one version of their library; its patch releases are taken for the same.

    Raises BundleError for another version.
    """
    entry = _entry(bundle, name)
    here, made = get_backend(entry.backend).probe().version, entry.versions.get(entry.backend, "")
    if made.split(".")[:2] != here.split(".")[:2]:
        raise BundleError(
            f"engine {name} was compiled with {entry.backend} {made}, here is {here}",
            f"compile it again, or pip install {entry.backend}=={made}",
        )


def _other(name: str, told: str) -> BundleError:
    return BundleError(f"engine {name} is not the one of its manifest: {told}", COMPILE_AGAIN)


def _check_images(images: Images, shape: tuple[int, ...]) -> None:
    if isinstance(images, np.ndarray):
        fits = images.dtype == np.float32 and images.shape[1:] == shape
        given = f"an array {images.dtype} {images.shape}"
    else:
        fits, given = isinstance(images, (list, tuple)), f"a {type(images).__name__}"
    if not fits or not len(images):
        wanted = f"float32 of shape (n, {', '.join(map(str, shape))}), or a list of paths and arrays uint8 (H, W, 3)"
        raise InputError(f"the images are {given}{'' if not fits else ' without any'}", f"give {wanted}")


def _load(picture: Picture, spec: InputSpec) -> npt.NDArray[np.float32]:
    if isinstance(picture, np.ndarray):
        return prepare(picture, spec)
    if isinstance(picture, (str, os.PathLike)):
        return load_picture(Path(picture), spec)
    raise PictureError(
        f"a {type(picture).__name__} is no picture", "give a path, or an array uint8 (H, W, 3)"
    )


def _filled(batch: Batch, size: int) -> Batch:
    """The engine takes no fewer: repeat the last image."""
    if len(batch) >= size:
        return batch
    return np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), axis=0)])


def _check_finite(scores: Mapping[str, npt.NDArray[Any]], images: Images) -> None:
    for name, each in scores.items():
        good = np.isfinite(each).reshape(len(each), -1).all(axis=1)
        if not good.all():
            index = int(np.argmin(good))
            picture = images[index]
            told = picture if isinstance(picture, (str, os.PathLike)) else f"image {index + 1}"
            raise CheckFailed(f"task {name} answers no number for {told}", "verify the bundle")


def _top(probabilities: npt.NDArray[np.float64], task: TaskEntry, count: int) -> list[Guess]:
    best = np.argsort(-probabilities, kind="stable")[:count]
    return [(task.labels[i] if task.labels else int(i), float(probabilities[i])) for i in best]
