"""Pictures and data sets for tests: small, and each unlike the others."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from subtune_deploy.data.dataset import Dataset


def noise(seed: int, *shape: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape or (12, 12, 3), np.uint8)


def write_picture(path: Path, seed: int, size: tuple[int, int] = (12, 12)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(seed, size[1], size[0], 3)).save(path)
    return path


needs_avif = pytest.mark.skipif(
    ".avif" not in Image.registered_extensions(), reason="Pillow is built without AVIF here"
)


def damaged_avif() -> bytes:
    """A file whose header does not say any more where its pixels lie."""
    stream = io.BytesIO()
    Image.fromarray(noise(1)).save(stream, "AVIF")
    whole = stream.getvalue()
    assert b"iloc" in whole
    return whole.replace(b"iloc", b"xxxx")


def write_album(path: Path, classes: dict[str, int], first: int = 0) -> Path:
    """`path`/CLASS/0.png, ..., so many of each."""
    for place, (name, count) in enumerate(classes.items()):
        for index in range(count):
            write_picture(path / name / f"{index}.png", first + 100 * place + index)
    return path


def arrays(*counts: int) -> Dataset:
    """So many pictures of each class, classes mixed; each picture is a grey of its own, its index."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    pictures = tuple(np.full((4, 4), index % 256, np.uint8) for index in range(len(labels)))
    return Dataset(pictures, labels.astype(np.int64), tuple("abcdefghij"[: len(counts)]))


def greys(data: Dataset) -> list[int]:
    """What `arrays` numbered its pictures."""
    return [int(np.asarray(picture)[0, 0]) for picture in data.pictures]
