"""Damaged pictures: the names and severities of CIFAR-10-C (Hendrycks and Dietterich, arXiv 1903.12261).

    corrupt(pixels, "fog", severity=5, seed=0)

CIFAR-10-C was made once, with OpenCV, ImageMagick and photographs of frost; this makes such pictures from any
others with NumPy, SciPy and Pillow, with the published constants. They are of the same kind and strength, not the
same pixels: where results are to be compared with published ones, load the published files. Its constants are
for pictures of 32 x 32: lengths grow with the shorter side.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import InputError, PictureError, Unavailable, did_you_mean
from . import weather
from .weather import SIDE, Pixels, blurred, fine, moved, stretched, zoomed

Random: TypeAlias = np.random.Generator
Damage: TypeAlias = Callable[[Pixels, Any, float, Random], Pixels]

SEVERITIES = (1, 2, 3, 4, 5)


def corrupt(pixels: npt.NDArray[np.uint8], name: str, severity: int, seed: int) -> npt.NDArray[np.uint8]:
    """uint8 (H, W) or (H, W, 3) -> the same shape; the four arguments alone decide what comes of it.

    Raises InputError (`name`, `severity`), PictureError (no picture), Unavailable (no SciPy).
    """
    check(name, severity)
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.size == 0:
        raise PictureError(
            f"an array {pixels.dtype} {pixels.shape} is no picture", "give uint8 of shape (H, W) or (H, W, 3)"
        )
    damage, constants = CORRUPTIONS[name]
    scale = min(pixels.shape[:2]) / SIDE
    values = np.atleast_3d(pixels) / 255.0
    damaged = damage(values, constants[severity - 1], scale, np.random.default_rng(seed))
    return (np.clip(damaged, 0, 1) * 255).astype(np.uint8).reshape(pixels.shape)


def parse_corruption(text: str) -> tuple[str, int]:
    """`"fog:5"` -> (name, severity). Raises InputError."""
    name, colon, severity = text.partition(":")
    if not (colon and severity.isascii() and severity.isdigit() and len(severity) == 1):
        raise InputError(
            f"corruption {text!r} is not NAME:SEVERITY", "give one such as fog:5, 5 being the worst"
        )
    check(name, int(severity))
    return name, int(severity)


def check(name: str, severity: int) -> None:
    """Raises InputError for what is no corruption, and Unavailable without SciPy."""
    if name not in CORRUPTIONS:
        raise InputError(f"corruption {name!r} is unknown", did_you_mean(name, CORRUPTIONS))
    if severity not in SEVERITIES:
        raise InputError(f"severity {severity} is outside 1..5", "give 1, the mildest, to 5")
    try:
        import scipy.ndimage  # noqa: F401
    except ImportError as error:
        raise Unavailable("corruptions need SciPy, which is not installed", "pip install scipy") from error


# Noise


def _gaussian_noise(x: Pixels, deviation: float, scale: float, random: Random) -> Pixels:
    return x + random.normal(0, deviation, x.shape)


def _shot_noise(x: Pixels, photons: float, scale: float, random: Random) -> Pixels:
    return random.poisson(x * photons) / photons


def _impulse_noise(x: Pixels, share: float, scale: float, random: Random) -> Pixels:
    return np.where(random.random(x.shape) < share, random.random(x.shape) < 0.5, x)


def _speckle_noise(x: Pixels, deviation: float, scale: float, random: Random) -> Pixels:
    return x + x * random.normal(0, deviation, x.shape)


# Blur


def _gaussian_blur(x: Pixels, sigma: float, scale: float, random: Random) -> Pixels:
    return blurred(x, sigma * scale)


def _glass_blur(x: Pixels, constants: tuple[float, int, int], scale: float, random: Random) -> Pixels:
    """Pixels but for the rim are taken from some place within reach, up and to the left as in the original."""
    sigma, reach, times = constants
    reach = max(1, round(reach * scale))
    x = blurred(x, sigma * scale)
    rows, columns = (np.arange(reach + 1, size - reach + 1) for size in x.shape[:2])
    for _ in range(times):
        down, right = random.integers(-reach, reach, (2, len(rows), len(columns)))
        x[np.ix_(rows, columns)] = x[rows[:, None] + down, columns + right]
    return blurred(x, sigma * scale)


def _defocus_blur(x: Pixels, constants: tuple[float, float], scale: float, random: Random) -> Pixels:
    """Folded with a disc, whose rim is smoothed."""
    from scipy import ndimage

    radius, smoothing = (value * scale for value in constants)
    reach = int(np.ceil(radius)) + 2
    across = np.arange(-reach, reach + 1)
    disc = (across[:, None] ** 2 + across**2 <= radius**2).astype(np.float64)
    disc = ndimage.gaussian_filter(disc / disc.sum(), smoothing, radius=max(1, round(scale)))
    return np.stack([ndimage.convolve(channel, disc, mode="mirror") for channel in np.moveaxis(x, 2, 0)], 2)


def _motion_blur(x: Pixels, constants: tuple[float, float], scale: float, random: Random) -> Pixels:
    radius, sigma = constants
    return moved(x, radius * scale, sigma * scale, random.uniform(-45, 45))


def _zoom_blur(x: Pixels, steps: int, scale: float, random: Random) -> Pixels:
    zooms = [zoomed(x, 1 + step / 100) for step in range(steps)]
    return (x + sum(zooms)) / (steps + 1)


# Colour


def _contrast(x: Pixels, share: float, scale: float, random: Random) -> Pixels:
    mean: Pixels = x.mean((0, 1), keepdims=True)
    return (x - mean) * share + mean


def _brightness(x: Pixels, more: float, scale: float, random: Random) -> Pixels:
    """Value of HSV; hue and saturation stay."""
    value: Pixels = x.max(2, keepdims=True)
    wanted = np.minimum(value + more, 1)
    hue: Pixels = np.where(value > 0, x / np.where(value > 0, value, 1), 1)
    return hue * wanted


def _saturate(x: Pixels, constants: tuple[float, float], scale: float, random: Random) -> Pixels:
    """Saturation of HSV; hue and value stay. What is grey counts as red, and a grey picture has no saturation."""
    factor, more = constants
    if x.shape[2] == 1:
        return x
    value: Pixels = x.max(2, keepdims=True)
    spread = value - x.min(2, keepdims=True)
    gray = spread == 0
    saturation = spread / np.where(value > 0, value, 1)
    wanted = np.clip(saturation * factor + more, 0, 1)
    away = np.where(gray, (0.0, 1.0, 1.0), (value - x) / np.where(gray, 1, spread))
    coloured: Pixels = value * (1 - away * wanted)
    return coloured


# Digital


def _jpeg_compression(x: Pixels, quality: int, scale: float, random: Random) -> Pixels:
    from PIL import Image

    stream = io.BytesIO()
    _image(x).save(stream, "JPEG", quality=quality)
    with Image.open(stream) as image:
        return np.asarray(image).reshape(x.shape) / 255.0


def _pixelate(x: Pixels, share: float, scale: float, random: Random) -> Pixels:
    from PIL import Image

    image = _image(x)
    fewer = [max(1, int(side * share)) for side in image.size]
    coarse = image.resize((fewer[0], fewer[1]), Image.Resampling.BOX)
    return np.asarray(coarse.resize(image.size, Image.Resampling.BOX)).reshape(x.shape) / 255.0


def _image(x: Pixels) -> Any:
    from PIL import Image

    pixels = (x * 255).round().astype(np.uint8)
    return Image.fromarray(pixels[:, :, 0] if x.shape[2] == 1 else pixels)


def _elastic_transform(
    x: Pixels, constants: tuple[float, float, float], scale: float, random: Random
) -> Pixels:
    """A random affine map, then each place shifted by smooth noise; shares of the side."""
    from scipy import ndimage

    height, width = x.shape[:2]
    shift, sigma, corner = (value * SIDE for value in constants)
    places = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij")).astype(np.float64)
    noise = random.uniform(-1, 1, (2, *fine(x)))
    smooth = [stretched(blurred(each[:, :, None], sigma, 3, "reflect"), x)[:, :, 0] for each in noise]
    places += np.stack(smooth) * shift * scale
    places = _affine(places, (height, width), corner * scale, random)
    channels = [
        ndimage.map_coordinates(each, places, order=1, mode="mirror") for each in np.moveaxis(x, 2, 0)
    ]
    return np.stack(channels, 2)


def _affine(places: Pixels, size: tuple[int, int], corner: float, random: Random) -> Pixels:
    """Where (2, H, W) places come from when three points about the centre are moved by up to `corner`."""
    centre, arm = np.array(size) // 2, min(size) // 3
    points = centre + arm * np.array([[1, 1], [1, -1], [-1, -1]])
    moved_points = points + random.uniform(-corner, corner, points.shape)
    matrix = np.linalg.solve(np.c_[moved_points, np.ones(3)], points.astype(np.float64))
    mapped: Pixels = np.tensordot(matrix[:2].T, places, 1) + matrix[2][:, None, None]
    return mapped


CORRUPTIONS: dict[str, tuple[Damage, tuple[Any, ...]]] = {
    "gaussian_noise": (_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": (_shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": (_impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "defocus_blur": (_defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
    "glass_blur": (_glass_blur, ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))),
    "motion_blur": (_motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
    "zoom_blur": (_zoom_blur, (6, 11, 16, 21, 26)),
    "snow": (
        weather.snow,
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    ),
    "frost": (weather.frost, ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))),
    "fog": (weather.fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
    "brightness": (_brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": (_contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "elastic_transform": (
        _elastic_transform,
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    ),
    "pixelate": (_pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg_compression": (_jpeg_compression, (80, 65, 58, 50, 40)),
    "speckle_noise": (_speckle_noise, (0.06, 0.1, 0.12, 0.16, 0.2)),
    "gaussian_blur": (_gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1)),
    "spatter": (
        weather.spatter,
        (
            (0.62, 0.1, 0.7, 0.7, 0.5, 0),
            (0.65, 0.1, 0.8, 0.7, 0.5, 0),
            (0.65, 0.3, 1, 0.69, 0.5, 0),
            (0.65, 0.1, 0.7, 0.69, 0.6, 1),
            (0.65, 0.1, 0.5, 0.68, 0.6, 1),
        ),
    ),
    "saturate": (_saturate, ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))),
}
"""Name -> how, and with what at severities 1 to 5. The first fifteen are the benchmark's, the last four its extras."""

PAPER = (
    "zoom_blur",
    "speckle_noise",
    "spatter",
    "snow",
    "shot_noise",
    "saturate",
    "pixelate",
    "motion_blur",
    "jpeg_compression",
    "impulse_noise",
    "glass_blur",
    "gaussian_noise",
    "gaussian_blur",
    "frost",
)
"""The fourteen of the paper's table 2, in its order."""
