"""Calibration data: pictures and arrays, and what is wrong with those that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_bundle import SPEC, pictures

from subtune_deploy.calibration import check_calibration, read_calibration
from subtune_deploy.errors import InputError
from subtune_deploy.pictures import load_picture


def save_pictures(folder: Path, *names: str) -> list[Path]:
    """A picture of one grey each, by which it is recognised."""
    paths = []
    for index, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((12, 10, 3), 10 * index + 5, np.uint8)).save(path)
        paths.append(path)
    return paths


def prepared(paths: list[Path]) -> np.ndarray:
    return np.stack([load_picture(path, SPEC) for path in paths])


# pictures


def test_a_folder_is_searched_with_its_class_folders(tmp_path: Path) -> None:
    paths = save_pictures(tmp_path, "ants/1.png", "ants/2.JPG", "bees/deep/1.webp", "z.bmp")
    (tmp_path / "README.txt").write_text("no picture")
    save_pictures(tmp_path, ".thumbnails/1.png", "ants/.hidden.png")
    found = read_calibration(tmp_path, SPEC)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, prepared(paths))


def test_of_many_pictures_an_even_sample_is_taken(tmp_path: Path) -> None:
    paths = save_pictures(tmp_path, *(f"{group}/{i}.png" for group in "abc" for i in range(3)))
    np.testing.assert_array_equal(read_calibration(tmp_path, SPEC, limit=3), prepared(paths[::4]))
    np.testing.assert_array_equal(read_calibration(tmp_path, SPEC, limit=99), prepared(paths))


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    save_pictures(tmp_path, "1.png")
    (tmp_path / "2.png").write_bytes((tmp_path / "1.png").read_bytes()[:40])
    with pytest.raises(InputError, match=r"2\.png"):
        read_calibration(tmp_path, SPEC)


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(InputError, match="holds no picture"):
        read_calibration(tmp_path, SPEC)


# arrays


def test_arrays_are_taken_as_they_are(tmp_path: Path) -> None:
    batch = pictures(5)
    np.save(tmp_path / "a.npy", batch)
    np.savez(tmp_path / "one.npz", anything=batch)
    np.savez(tmp_path / "more.npz", labels=np.arange(5), input=batch)
    for name in ("a.npy", "one.npz", "more.npz"):
        np.testing.assert_array_equal(read_calibration(tmp_path / name, SPEC), batch)
        np.testing.assert_array_equal(read_calibration(tmp_path / name, SPEC, limit=2), batch[[0, 4]])


def spoilt(value: float) -> np.ndarray:
    batch = pictures(3)
    batch[1, 0, 0, 0] = value
    return batch


@pytest.mark.parametrize(
    "array, told",
    [
        (pictures(3).astype(np.float64), r"float64 of shape \(3, 3, 8, 8\), expected is float32 of shape"),
        (np.zeros((3, 3, 8, 8), np.uint8), "uint8"),
        (pictures(3)[0], r"\(3, 8, 8\), expected is float32 of shape \(n, 3, 8, 8\)"),
        (pictures(3)[:, :1], r"\(3, 1, 8, 8\)"),
        (pictures(3).transpose(0, 2, 3, 1), r"\(3, 8, 8, 3\)"),
        (pictures(3)[:0], r"\(0, 3, 8, 8\)"),
        (np.float32(3), r"float32 of shape \(\), expected is"),
        (spoilt(np.nan), "NaN or infinity"),
        (spoilt(np.inf), "NaN or infinity"),
        (np.zeros((2, 3, 8, 8), np.float32), "all zeros"),
        (np.array([None]), "cannot be read"),
    ],
)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_unfit_arrays_are_refused_with_what_was_expected(
    tmp_path: Path, array: Any, told: str, suffix: str
) -> None:
    path = tmp_path / f"data{suffix}"
    (np.save if suffix == ".npy" else np.savez)(path, array)
    with pytest.raises(InputError, match=told) as raised:
        read_calibration(path, SPEC)
    assert str(path) in raised.value.message
    assert "\n" not in raised.value.message + raised.value.hint


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04", b"\x93NUMPY\x01\x00"])
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_files_that_are_no_arrays_are_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"data{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read"):
        read_calibration(path, SPEC)


def test_damage_inside_is_refused(tmp_path: Path) -> None:
    """NumPy's parser of headers and zlib have errors of their own."""
    np.save(tmp_path / "header.npy", pictures(1))
    open_bracket = (tmp_path / "header.npy").read_bytes().replace(b")", b"(", 1)
    (tmp_path / "header.npy").write_bytes(open_bracket)
    np.savez_compressed(tmp_path / "packed.npz", input=pictures(9))
    packed = bytearray((tmp_path / "packed.npz").read_bytes())
    packed[len(packed) // 2] ^= 0xFF
    (tmp_path / "packed.npz").write_bytes(packed)
    for name in ("header.npy", "packed.npz"):
        with pytest.raises(InputError, match="cannot be read"):
            read_calibration(tmp_path / name, SPEC)


def test_a_header_that_promises_more_than_there_is_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.npy"
    np.save(path, pictures(1))
    path.write_bytes(path.read_bytes().replace(b"(1, 3, 8, 8)", b"(1<<62, 8)  ", 1))
    with pytest.raises(InputError):
        read_calibration(path, SPEC)
    np.save(path, pictures(1))
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(InputError, match="cannot be read"):
        read_calibration(path, SPEC)


def test_an_archive_of_unnamed_arrays_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", first=pictures(1), second=pictures(1))
    with pytest.raises(InputError, match=r"2 arrays \(first, second\)"):
        read_calibration(tmp_path / "a.npz", SPEC)


@pytest.mark.parametrize("name, told", [("gone", "does not exist"), ("a.txt", "neither a folder nor")])
def test_other_paths_are_refused(tmp_path: Path, name: str, told: str) -> None:
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(InputError, match=told):
        read_calibration(tmp_path / name, SPEC)


def test_a_limit_below_one_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", pictures(2))
    with pytest.raises(InputError, match="0 inputs to calibrate with"):
        read_calibration(tmp_path / "a.npy", SPEC, limit=0)


def test_what_is_fit_comes_back_in_contiguous_memory() -> None:
    found = check_calibration(pictures(4)[::2], SPEC.shape)
    assert found.flags.c_contiguous
