"""From a picture file to what a model expects: a normalised array, by the same path for files and arrays."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .errors import PictureError, did_you_mean
from .spec import InputSpec

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 100_000_000
"""Of a picture, as it lies in the file and again after its shorter side was resized."""

FORMATS = "give a JPEG, PNG, WebP, BMP, GIF or TIFF picture"

# What Pillow's decoders raise on files that lie about themselves.
_DAMAGED = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    SyntaxError,
    EOFError,
    OverflowError,
    RuntimeError,  # of the one for AVIF
    struct.error,
)


def load_picture(path: Path, spec: InputSpec) -> npt.NDArray[np.float32]:
    """The picture at `path` as float32 (C, H, W), resized, centre-cropped and normalised as `spec` says.

    EXIF orientation is honoured; greyscale becomes RGB (or RGB grey, for one channel); alpha is dropped.
    Raises PictureError for anything that is no readable picture of at most `MAX_PIXELS`.
    """
    return _to_input(as_image(Path(path), spec.shape[0]), spec, str(path))


def prepare(image: npt.NDArray[np.uint8], spec: InputSpec) -> npt.NDArray[np.float32]:
    """An array uint8 (H, W) or (H, W, 3), RGB, as float32 (C, H, W), by the path of `load_picture`."""
    return _to_input(as_image(image, spec.shape[0]), spec, "the array")


def check_picture(path: Path) -> None:
    """Decode it, as quickly as it goes, and forget it. Raises PictureError as `load_picture` does."""
    _open(path, 3, quick=True)


def as_image(picture: Path | npt.NDArray[np.uint8], channels: int) -> Image:
    """A file, or an array uint8 (H, W) or (H, W, 3), as Pillow's picture of 1 or 3 channels. Raises PictureError."""
    if isinstance(picture, Path):
        return _open(picture, channels)
    return _to_channels(_from_array(picture), channels)


def normalised(picture: Image, spec: InputSpec) -> npt.NDArray[np.float32]:
    """A picture that has the size of the input already, as float32 (C, H, W). Raises PictureError."""
    channels, height, width = spec.shape
    pixels = np.asarray(picture).reshape(height, width, channels).transpose(2, 0, 1)
    values: npt.NDArray[np.float32] = pixels.astype(np.float32, order="C")
    values /= np.float32(255)
    values -= _per_channel(spec.mean, channels)
    values /= _per_channel(spec.std, channels)
    return values


def resampling(name: str) -> int:
    """Pillow's number for an interpolation such as `bicubic`. Raises PictureError."""
    from PIL import Image

    known = [member.name.lower() for member in Image.Resampling]
    if name not in known:
        raise PictureError(f"interpolation {name!r} is unknown", did_you_mean(name, known))
    return Image.Resampling[name.upper()]


def _from_array(image: npt.NDArray[np.uint8]) -> Image:
    from PIL import Image

    fits = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)
    if image.dtype != np.uint8 or not fits or image.size == 0:
        raise PictureError(
            f"an array {image.dtype} {image.shape} is no picture", "give uint8 of shape (H, W) or (H, W, 3)"
        )
    return Image.fromarray(np.ascontiguousarray(image))


def _open(path: Path, channels: int, quick: bool = False) -> Image:
    """`quick`: a JPEG is decoded at an eighth of its size."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not path.is_file():
        raise PictureError(f"there is no picture {path}", "check the path; a file is expected")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata is no reason to complain
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                _check_size(picture.size, str(path))
                if quick:
                    picture.draft(None, (1, 1))
                return _to_channels(ImageOps.exif_transpose(picture), channels)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError) as error:
        raise PictureError(f"{path} is absurdly large", f"give at most {MAX_PIXELS:,} pixels") from error
    except UnidentifiedImageError as error:
        raise PictureError(f"{path} is not a picture", FORMATS) from error
    except _DAMAGED as error:
        raise PictureError(f"{path} is truncated or damaged: {error}", FORMATS) from error


def _check_size(size: tuple[int, int], subject: str) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise PictureError(
            f"{subject} is absurdly large: {size[0]}x{size[1]}", f"give at most {MAX_PIXELS:,} pixels"
        )


def _to_channels(picture: Image, channels: int) -> Image:
    from PIL import Image

    modes = {1: "L", 3: "RGB"}
    if channels not in modes:
        raise PictureError(
            f"a picture cannot fill {channels} channels", "pictures fit models of 1 or 3 channels"
        )
    if picture.mode.startswith(("I;16", "I")):  # 16 bits per pixel: Pillow would clip where we want to scale
        picture = Image.fromarray((np.asarray(picture).clip(0, 65535) // 257).astype(np.uint8))
    if picture.mode == "P":  # a palette may hold transparency in a form that RGB alone cannot take
        picture = picture.convert("RGBA")
    return picture.convert(modes[channels])


def _to_input(picture: Image, spec: InputSpec, subject: str) -> npt.NDArray[np.float32]:
    """Resize the shorter side to size / crop, cut the centre, normalise: rounded as torchvision rounds."""
    _, height, width = spec.shape
    new = _resized(picture.size, spec)
    _check_size(new, subject)
    left, top = round((new[0] - width) / 2), round((new[1] - height) / 2)
    resized = picture.resize(new, resampling(spec.interpolation))
    return normalised(resized.crop((left, top, left + width, top + height)), spec)


def _resized(size: tuple[int, int], spec: InputSpec) -> tuple[int, int]:
    """(width, height) of the smallest picture of this shape that covers the crop's surroundings."""
    width, height = size
    want_height, want_width = (max(side, round(side / spec.crop)) for side in spec.shape[1:])
    if want_height * width >= want_width * height:
        return want_height * width // height, want_height
    return want_width, want_width * height // width


def _per_channel(values: tuple[float, ...], channels: int) -> npt.NDArray[np.float32]:
    if len(values) != channels:
        raise PictureError(
            f"{len(values)} normalisation values for {channels} channels", "give one per channel"
        )
    return np.array(values, np.float32).reshape(channels, 1, 1)
