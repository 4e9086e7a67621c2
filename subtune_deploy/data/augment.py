"""Pictures on their way into training: as they are in deployment, or changed at random each time.

    prepare_batch(train, [0, 1, 2], backbone.input)                             # float32 (3, C, H, W)
    prepare_batch(train, [0, 1, 2], backbone.input, augment="crop-flip", seed=epoch)

Decoding, interpolation and normalisation are those of deployment (`pictures`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from ..errors import InputError, did_you_mean
from ..pictures import as_image, load_picture, normalised, prepare, resampling
from ..spec import AUGMENTATIONS, InputSpec
from .dataset import Dataset, Picture, derived

if TYPE_CHECKING:
    from PIL.Image import Image

AREA = (0.08, 1.0)
"""Share of the picture that a crop takes."""

RATIO = (3 / 4, 4 / 3)
"""Width by height of a crop."""

ANGLE = 30.0
"""Degrees, to either side. The paper says 30 % and not of what; its flowers are turned by so many degrees here."""

TRIES = 10
"""Crops drawn until one fits into the picture."""

Box = tuple[int, int, int, int]


def augmented(picture: Picture, spec: InputSpec, kind: str, seed: int) -> npt.NDArray[np.float32]:
    """The picture as float32 (C, H, W), changed as one of AUGMENTATIONS says; `seed` alone decides how.

    A crop is torchvision's RandomResizedCrop. Raises PictureError; InputError for another kind.
    """
    if kind == "none":
        return load_picture(picture, spec) if isinstance(picture, Path) else prepare(picture, spec)
    if kind not in AUGMENTATIONS:
        raise InputError(f"augmentation {kind!r} is unknown", did_you_mean(kind, AUGMENTATIONS))
    random = np.random.default_rng(seed)
    image = as_image(picture, spec.shape[0])
    if kind.endswith("rotate"):
        image = _rotated(image, random)
    height, width = spec.shape[1:]
    image = image.crop(_box(image.size, random)).resize((width, height), resampling(spec.interpolation))
    if "flip" in kind and random.random() < 0.5:
        image = _mirrored(image)
    return normalised(image, spec)


def prepare_batch(
    data: Dataset,
    indices: Sequence[int] | npt.NDArray[np.int64],
    spec: InputSpec,
    augment: str = "none",
    seed: int = 0,
) -> torch.Tensor:
    """The pictures at `indices` as the model expects them: float32 (len(indices), C, H, W).

    How a picture is changed depends on `seed` and its index, not on the batch that it is in.
    Raises PictureError, InputError (`augment`).
    """
    batch = np.empty((len(indices), *spec.shape), np.float32)
    for place, index in enumerate(indices):
        batch[place] = augmented(data.pictures[index], spec, augment, derived(seed, int(index)))
    return torch.from_numpy(batch)


def _box(size: tuple[int, int], random: np.random.Generator) -> Box:
    """(left, top, right, bottom) of a random share of the picture; if none fits, of the largest in its centre."""
    width, height = size
    for _ in range(TRIES):
        area = width * height * random.uniform(*AREA)
        ratio = math.exp(random.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < high <= height:
            left, top = int(random.integers(width - wide + 1)), int(random.integers(height - high + 1))
            return left, top, left + wide, top + high
    ratio = min(max(width / height, RATIO[0]), RATIO[1])
    wide, high = min(width, round(height * ratio)), min(height, round(width / ratio))
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high


def _rotated(image: Image, random: np.random.Generator) -> Image:
    """Turned about its centre, black where there was no picture."""
    from PIL import Image

    return image.rotate(random.uniform(-ANGLE, ANGLE), Image.Resampling.BILINEAR)


def _mirrored(image: Image) -> Image:
    from PIL import Image

    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
