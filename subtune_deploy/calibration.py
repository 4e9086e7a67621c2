"""Inputs that int8 ranges are taken from: the user's own pictures, or an array of what the network is fed."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .backends.base import Batch
from .errors import InputError
from .pictures import load_picture
from .spec import INPUT, InputSpec
from .tensorfile import DAMAGED_ARRAYS

LIMIT = 256
"""Inputs that are taken at most; of more, every so-manieth."""
SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"))
"""Of the files in a folder that are taken for pictures, in small letters."""

GIVE = "give a folder of pictures, or a float32 array (n, C, H, W) of prepared inputs as .npy or .npz"


def read_calibration(
    path: Path, spec: InputSpec, limit: int = LIMIT, what: str = "calibration data"
) -> Batch:
    """Inputs float32 (n, C, H, W), n at most `limit`, from a folder of pictures or from an .npy or .npz file.

    A folder is searched with all below it, hidden files aside, and sampled evenly in the order of the names:
    where each class has its folder, every class is met. Arrays hold what the network is fed: resized,
    normalised. An .npz with several arrays is read for the one called `input`. `what` they are to errors. Raises
    InputError.
    """
    path, subject = Path(path), f"{what} {path}"
    if path.is_dir():
        return _from_folder(path, spec, limit, subject)
    if path.suffix.lower() not in (".npy", ".npz") or not path.is_file():
        told = "is neither a folder nor an .npy or .npz file" if path.exists() else "does not exist"
        raise InputError(f"{subject} {told}", GIVE)
    array = _array(path, subject)
    _check_form(array, spec.shape, subject)  # before anything large is read
    return check_calibration(array[_evenly(len(array), limit)], spec.shape, subject)


def check_calibration(
    array: npt.NDArray[Any], shape: tuple[int, int, int], subject: str = "calibration data"
) -> Batch:
    """`array` in contiguous memory if it is float32 (n, C, H, W) of finite numbers, not all zeros; else InputError."""
    _check_form(array, shape, subject)
    if not np.isfinite(array).all():
        raise InputError(f"{subject} holds NaN or infinity", "leave such inputs out")
    if not array.any():
        raise InputError(f"{subject} is all zeros", "give inputs like those to be deployed on")
    return np.ascontiguousarray(array)


def _check_form(array: npt.NDArray[Any], shape: tuple[int, int, int], subject: str) -> None:
    if array.dtype != np.float32 or array.ndim != 4 or array.shape[1:] != shape or not len(array):
        wanted = f"float32 of shape (n, {', '.join(map(str, shape))})"
        raise InputError(f"{subject} is {array.dtype} of shape {array.shape}, expected is {wanted}", GIVE)


def _from_folder(path: Path, spec: InputSpec, limit: int, subject: str) -> Batch:
    files = [file for file in sorted(path.rglob("*")) if _is_picture(file, path)]
    if not files:
        raise InputError(f"folder {path} holds no picture ({', '.join(sorted(SUFFIXES))})", GIVE)
    chosen = [load_picture(files[index], spec) for index in _evenly(len(files), limit)]
    return check_calibration(np.stack(chosen), spec.shape, subject)


def _is_picture(file: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
    return file.suffix.lower() in SUFFIXES and not hidden and file.is_file()


def _evenly(count: int, limit: int) -> npt.NDArray[np.int64]:
    """Indices of at most `limit` of `count`, the first and the last among them."""
    if limit < 1:
        raise InputError(f"{limit} inputs to calibrate with were asked for", "give a limit of 1 or more")
    return np.asarray(np.linspace(0, count - 1, min(count, limit)).round(), np.int64)


def _array(path: Path, subject: str) -> npt.NDArray[Any]:
    """The array in the file, not read into memory yet where it is an .npy."""
    try:
        array = (
            _from_archive(path, subject)
            if path.suffix.lower() == ".npz"
            else np.lib.format.open_memmap(path, mode="r")
        )
    except DAMAGED_ARRAYS as error:
        raise InputError(f"{subject} cannot be read: {error}", GIVE) from error
    return array


def _from_archive(path: Path, subject: str) -> npt.NDArray[Any]:
    if not zipfile.is_zipfile(path):
        raise ValueError("it is no archive")
    with np.load(path, allow_pickle=False) as archive:
        names = list(archive.files)
        if len(names) == 1 or INPUT in names:
            return np.asarray(archive[INPUT if INPUT in names else names[0]])
    raise InputError(f"{subject} holds {len(names)} arrays ({', '.join(names[:8])})", f"call one {INPUT!r}")
