"""Labelled pictures, and the ways to take fewer of them: samples, folds, splits.

    fewer = sample(data.train, 500, seed=0)
    for training, held_out in folds(fewer, 5, seed=0): ...

Whatever is drawn is drawn by an explicit seed, and evenly over the classes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import InputError, PictureError

Picture: TypeAlias = "Path | npt.NDArray[np.uint8]"
"""A file, or an array (H, W) or (H, W, 3)."""

Labels: TypeAlias = npt.NDArray[np.int64]

HELD_OUT = 0.2
"""Share of each class that is kept for testing where no number is given."""

VTAB = 1000
"""Pictures to train on in VTAB-1k."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Pictures with their labels, int64 (N,), indices into `classes`. Raises InputError where they do not fit."""

    pictures: tuple[Picture, ...]
    labels: Labels
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.labels.dtype != np.int64 or self.labels.shape != (len(self.pictures),):
            raise InputError(
                f"labels are {self.labels.dtype} {self.labels.shape} for {len(self.pictures)} pictures",
                "give one int64 for each picture",
            )
        outside = self.labels[(self.labels < 0) | (self.labels >= len(self.classes))]
        if len(outside):
            raise InputError(
                f"{len(outside)} labels are outside 0..{len(self.classes) - 1}, the first is {outside[0]}",
                f"labels are places in the {len(self.classes)} class names, counted from 0",
            )

    def __len__(self) -> int:
        return len(self.pictures)

    def fingerprint(self) -> str:
        """SHA-256 of classes, labels and pictures, as 64 hexadecimal digits.

        Files stand for themselves by their place below the folder that holds all of them, size and time of
        change: to read 50,000 of them takes too long. Raises PictureError for one that is gone.
        """
        return self._digest

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256(repr(self.classes).encode() + self.labels.tobytes())
        folder = _common(picture for picture in self.pictures if isinstance(picture, Path))
        for picture in self.pictures:
            for part in _facts(picture, folder) if isinstance(picture, Path) else _contents(picture):
                digest.update(part)
        return digest.hexdigest()


class Data(NamedTuple):
    """Disjoint sets with the same classes. `skipped`: one line for each file that could not be read."""

    train: Dataset
    test: Dataset
    skipped: tuple[str, ...] = ()


class Pool(NamedTuple):
    """Every readable picture of a source. `testing`: bool (N,), those that its maker meant for testing, if so."""

    data: Dataset
    testing: npt.NDArray[np.bool_] | None = None
    skipped: tuple[str, ...] = ()


def pooled(sets: Sequence[Dataset], skipped: tuple[str, ...] = ()) -> Pool:
    """One set, or one for training and one for testing, as one. Raises InputError where their classes differ."""
    if len(sets) == 1:
        return Pool(sets[0], None, skipped)
    train, test = sets
    if train.classes != test.classes:
        raise InputError(
            f"there are {len(train.classes)} classes to train on and {len(test.classes)} other ones to test on",
            "give both the same class names, in the same order",
        )
    labels = np.concatenate([train.labels, test.labels])
    testing = np.arange(len(labels)) >= len(train)
    return Pool(Dataset(train.pictures + test.pictures, labels, train.classes), testing, skipped)


def numbered(labels: Sequence[int]) -> tuple[str, ...]:
    """Classes without names: they are called by their numbers, from 0 to the largest label.

    Raises InputError where that makes more classes than there are pictures.
    """
    largest = max(labels, default=-1)
    if largest >= len(labels):
        raise InputError(
            f"label {largest} makes {largest + 1} classes of {len(labels)} pictures",
            "number the classes from 0 on, without gaps, or name them",
        )
    return tuple(map(str, range(largest + 1)))


def _common(files: Iterable[Path]) -> str:
    folders = {str(file.parent) for file in files}
    return os.path.commonpath(folders) if folders else ""


def _facts(file: Path, folder: str) -> tuple[bytes, ...]:
    try:
        found = file.stat()
    except OSError as error:
        raise PictureError(
            f"picture {file} is gone: {error.strerror}", "put it back, or read the data anew"
        ) from error
    place = Path(os.path.relpath(file, folder)).as_posix()
    return f"file {place!r} {found.st_size} {found.st_mtime_ns}\n".encode(), b""


def _contents(pixels: npt.NDArray[np.uint8]) -> tuple[bytes, ...]:
    return f"array {pixels.dtype} {pixels.shape}\n".encode(), np.ascontiguousarray(pixels).tobytes()


def subset(data: Dataset, indices: Labels) -> Dataset:
    """The pictures at `indices`, int64 (n,), in their order."""
    return Dataset(tuple(data.pictures[index] for index in indices), data.labels[indices], data.classes)


def generator(seed: int) -> np.random.Generator:
    """What draws. Raises InputError for a seed below 0."""
    if seed < 0:
        raise InputError(f"seed {seed} is below 0", "give 0 or more")
    return np.random.default_rng(seed)


def sample(data: Dataset, count: int, seed: int) -> Dataset:
    """`count` pictures, as many of each class as of any other while it has so many; in the order of `data`.

    For one seed the fewer are among the more. Raises InputError: there are not so many, or not one per class.
    """
    return subset(data, drawn(data, count, seed))


def drawn(data: Dataset, count: int, seed: int) -> Labels:
    """Indices of what `sample` takes."""
    if not len(data.classes) <= count <= len(data):
        raise InputError(
            f"{count} pictures are wanted of {len(data)} in {len(data.classes)} classes",
            f"ask for {len(data.classes)} to {len(data)}"
            if len(data) >= len(data.classes)
            else "give more pictures",
        )
    random = generator(seed)
    ranks = np.empty(len(data), np.int64)
    for label in range(len(data.classes)):
        members = np.flatnonzero(data.labels == label)
        ranks[random.permutation(members)] = np.arange(len(members))
    return np.sort(np.lexsort((data.labels, ranks))[:count])


def folds(data: Dataset, k: int, seed: int) -> tuple[tuple[Dataset, Dataset], ...]:
    """`k` times (to train on, held out): every picture is held out once, each class as evenly as can be.

    Raises InputError where `k` is less than 2, or more than the smallest class has pictures.
    """
    sizes = np.bincount(data.labels, minlength=len(data.classes))
    smallest = int(sizes.argmin())
    if not 2 <= k <= sizes[smallest]:
        raise InputError(
            f"{k} folds of data whose smallest class, {data.classes[smallest]!r}, has {sizes[smallest]} pictures",
            f"ask for 2 to {sizes[smallest]} folds" if sizes[smallest] >= 2 else "give more pictures of it",
        )
    random = generator(seed)
    order = np.concatenate(
        [random.permutation(np.flatnonzero(data.labels == each)) for each in range(len(sizes))]
    )
    fold = np.empty(len(data), np.int64)
    fold[order] = np.arange(len(data)) % k  # dealt on from class to class, so that folds are equally large
    return tuple(
        (subset(data, np.flatnonzero(fold != each)), subset(data, np.flatnonzero(fold == each)))
        for each in range(k)
    )


def vtab(data: Data, seed: int) -> Data:
    """As VTAB-1k: 1,000 of the pictures for training, to select on folds of them; all of the test set for testing.

    They are drawn by the seed, evenly over the classes. The benchmark has its own, 800 to train on and 200 to
    validate on: `load_data` takes a list of such, which leaves nothing to draw here.
    Raises InputError where there are not so many.
    """
    return data._replace(train=sample(data.train, VTAB, seed))


def split(
    source: str, data: Dataset, train: int | None, test: int | None, seed: int, skipped: tuple[str, ...] = ()
) -> tuple[Labels, Labels]:
    """Indices (to train on, to test on), disjoint: each class is shuffled, its first pictures are for testing.

    `train` and `test` are numbers of pictures, spread evenly over the classes; by default a fifth of each class
    is for testing and the rest for training. A `seed` tests on the same pictures whatever `train` is.
    Raises InputError that names `source`: a number that does not reach every class, or a class that has too few.
    """
    check_classes(source, data.classes)
    _check_reach(source, data.classes, {"train": train, "test": test})
    random = generator(seed)
    chosen: tuple[list[Labels], list[Labels]] = ([], [])
    for label, name in enumerate(data.classes):
        members = random.permutation(np.flatnonzero(data.labels == label))
        for_test = _share(test, label, data) if test is not None else max(1, round(HELD_OUT * len(members)))
        for_train = _share(train, label, data) if train is not None else len(members) - for_test
        if for_train < 1 or for_train + for_test > len(members):
            raise InputError(
                f"class {name!r} of {source} has {len(members)} readable pictures where "
                f"{max(1, for_train)} are wanted for training and {for_test} for testing",
                too_few(skipped),
            )
        chosen[0].append(members[for_test : for_test + for_train])
        chosen[1].append(members[:for_test])
    return np.concatenate(chosen[0]), np.concatenate(chosen[1])


def derived(*what: object) -> int:
    """One seed, 0 to 2**63, made of other facts."""
    return int.from_bytes(hashlib.sha256(repr(what).encode()).digest()[:8], "big") >> 1


def check_classes(source: str, classes: tuple[str, ...]) -> None:
    """Raises InputError for fewer than two."""
    if len(classes) < 2:
        raise InputError(
            f"{source} has {len(classes)} classes where at least 2 are needed",
            "give pictures of two classes or more",
        )


def too_few(skipped: tuple[str, ...]) -> str:
    """A hint where pictures are missing."""
    if skipped:
        return f"{len(skipped)} were skipped: {skipped[0]}"
    return "give more pictures, or ask for fewer"


def _check_reach(source: str, classes: tuple[str, ...], wanted: dict[str, int | None]) -> None:
    for what, count in wanted.items():
        if count is not None and count < len(classes):
            raise InputError(
                f"{count} pictures to {what} on are wanted of {source}, which has {len(classes)} classes",
                f"ask for {len(classes)} or more, one of each class at least",
            )


def _share(wanted: int, label: int, data: Dataset) -> int:
    """Of `wanted` pictures, how many `label` gives: the first classes give the odd ones."""
    share, odd = divmod(wanted, len(data.classes))
    return share + (label < odd)
