"""Labelled pictures in a NumPy archive, FILE.npz; and files that list some pictures of a source.

Its arrays are x_train, y_train, x_test and y_test, or images and labels: uint8 (N, H, W) or (N, H, W, 3), RGB, and
whole numbers (N,). `classes` (C,) may name the classes; otherwise they are called by their numbers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..tensorfile import DAMAGED_ARRAYS
from .dataset import Dataset, Labels, Picture, Pool, numbered, pooled

SPLIT, WHOLE = (("x_train", "y_train"), ("x_test", "y_test")), (("images", "labels"),)
"""Names of (pictures, labels)."""


def read_archive(path: Path) -> Pool:
    """What lies in FILE.npz, which is opened without running what may be pickled in it.

    Raises InputError: no such file, other arrays than these, of other types or shapes, labels outside the classes,
    or so large that there are more classes than pictures.
    """
    arrays = _arrays(path)
    given = next((each for each in (SPLIT, WHOLE) if {*sum(each, ())} <= {*arrays}), None)
    if given is None:
        raise InputError(
            f"{path} holds {', '.join(sorted(arrays)) or 'nothing'}",
            "name the arrays images and labels, or x_train, y_train, x_test and y_test",
        )
    pictures = [_as_pictures(arrays[name], f"{path}:{name}") for name, _ in given]
    labels = [_as_labels(arrays[name], f"{path}:{name}") for _, name in given]
    names = arrays.get("classes")
    every = np.concatenate(labels)
    classes = tuple(map(str, names.ravel())) if names is not None else numbered(every.tolist())
    return pooled([Dataset(*each, classes) for each in zip(pictures, labels, strict=True)])


def _arrays(path: Path) -> dict[str, npt.NDArray[np.generic]]:
    try:
        with path.open("rb") as stream:  # NumPy would leave it open where it fails
            found = np.load(stream, allow_pickle=False)
            if isinstance(found, np.ndarray):
                raise ValueError("it is one array without a name")
            return {name: found[name] for name in found.files}
    except FileNotFoundError as error:
        raise InputError(f"there is no file {path}", "check the path") from error
    except DAMAGED_ARRAYS as error:
        raise InputError(
            f"{path} is no archive of plain arrays: {error}", "write it with numpy.savez_compressed"
        ) from error


def read_places(path: Path, count: int) -> Labels:
    """Which of `count` pictures the file lists, in order: a whole number a line, or (N,) of them as .npy, from 0 on.

    Raises InputError: no such file, something else in it, a place twice or beyond the last picture.
    """
    found = np.sort(_numbers(path))
    if not len(found) or found[0] < 0 or found[-1] >= count:
        told = f"{found[0]} to {found[-1]}" if len(found) else "none"
        raise InputError(
            f"{path} lists pictures {told}, where there are 0 to {count - 1}", "count them from 0 on"
        )
    if len(twice := found[1:][found[1:] == found[:-1]]):
        raise InputError(f"{path} lists picture {twice[0]} twice", "list each once")
    return found


def _numbers(path: Path) -> Labels:
    try:
        if path.suffix.lower() == ".npy":
            return _as_labels(np.array(np.lib.format.open_memmap(path, mode="r")), str(path))
        return np.array([int(word) for word in path.read_text("utf-8-sig").split()], np.int64)
    except FileNotFoundError as error:
        raise InputError(
            f"there is no file {path}", "check the path, or give a number of pictures"
        ) from error
    except DAMAGED_ARRAYS as error:
        raise InputError(
            f"{path} is no list of pictures: {error}",
            "give a whole number a line, or write it with numpy.save",
        ) from error


def _as_pictures(pixels: npt.NDArray[np.generic], place: str) -> tuple[Picture, ...]:
    if pixels.ndim == 4 and pixels.shape[3] == 1:
        pixels = pixels[:, :, :, 0]
    fits = pixels.ndim == 3 or (pixels.ndim == 4 and pixels.shape[3] == 3)
    if not fits or pixels.dtype != np.uint8 or 0 in pixels.shape[1:]:
        raise InputError(
            f"{place} is {pixels.dtype} {pixels.shape}",
            "give uint8 of shape (N, H, W), or (N, H, W, 3) for RGB",
        )
    return tuple(pixels.astype(np.uint8, copy=False))


def _as_labels(labels: npt.NDArray[np.generic], place: str) -> Labels:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InputError(f"{place} is {labels.dtype} {labels.shape}", "give whole numbers of shape (N,)")
    return labels.astype(np.int64)
