"""Weather on pictures, and what other corruptions share with it: blur, movement, zoom (see `corruptions`).

Pictures are float64 (H, W, C), 0..1; what comes back may go beyond and is clipped by the caller.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Pixels: TypeAlias = npt.NDArray[np.float64]

SIDE = 32
"""Pixels of CIFAR-10's pictures, for which constants are given; snow and drops are drawn so coarse, and stretched."""

LUMA = (0.299, 0.587, 0.114)
WATER = (175 / 255, 238 / 255, 238 / 255)
MUD = (63 / 255, 42 / 255, 20 / 255)
FROST = (0.75, 0.85, 0.95)


def blurred(x: Pixels, sigma: float, truncate: float = 4, mode: str = "nearest") -> Pixels:
    """Each channel by itself; `sigma` in pixels."""
    from scipy import ndimage

    blurry: Pixels = ndimage.gaussian_filter(x, (sigma, sigma, 0), truncate=truncate, mode=mode)
    return blurry


def moved(x: Pixels, radius: float, sigma: float, angle: float) -> Pixels:
    """Averaged along a line to one side, falling off as a Gaussian; `angle` in degrees."""
    steps = np.arange(2 * int(np.ceil(radius)) + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    down = np.ceil(steps * np.sin(np.radians(angle)) - 0.5).astype(int)
    right = np.ceil(steps * np.cos(np.radians(angle)) - 0.5).astype(int)
    rows, columns = (np.arange(size) for size in x.shape[:2])
    summed = np.zeros_like(x)
    for weight, dy, dx in zip(weights / weights.sum(), down, right, strict=True):
        taken = x[np.clip(rows + dy, 0, len(rows) - 1)]
        summed += weight * taken[:, np.clip(columns + dx, 0, len(columns) - 1)]
    return summed


def zoomed(x: Pixels, factor: float) -> Pixels:
    """The middle, enlarged to the whole."""
    from scipy import ndimage

    size = x.shape[:2]
    kept = [int(np.ceil(side / factor)) for side in size]
    top, left = ((side - fewer) // 2 for side, fewer in zip(size, kept, strict=True))
    large = ndimage.zoom(x[top : top + kept[0], left : left + kept[1]], (factor, factor, 1), order=1)
    top, left = ((wide - side) // 2 for wide, side in zip(large.shape[:2], size, strict=True))
    trimmed: Pixels = large[top : top + size[0], left : left + size[1]]
    return trimmed


def fine(x: Pixels) -> tuple[int, int]:
    """(height, width) of a picture of this form whose shorter side is SIDE."""
    height, width = (max(SIDE, round(size * SIDE / min(x.shape[:2]))) for size in x.shape[:2])
    return height, width


def stretched(layer: Pixels, x: Pixels) -> Pixels:
    """A layer (h, w, 1) at the size of the picture `x`."""
    from scipy import ndimage

    if layer.shape[:2] == x.shape[:2]:
        return layer
    factors = [new / old for new, old in zip(x.shape[:2], layer.shape[:2], strict=True)]
    wide: Pixels = ndimage.zoom(layer, (*factors, 1), order=1, grid_mode=True, mode="nearest")
    return wide


def fog(x: Pixels, constants: tuple[float, float], scale: float, random: np.random.Generator) -> Pixels:
    """A plasma fractal on top, and all of it as bright as before at most."""
    strength, decay = constants
    brightest = float(x.max())
    return (x + strength * plasma(x, decay, random)) * brightest / (brightest + strength)


def frost(x: Pixels, constants: tuple[float, float], scale: float, random: np.random.Generator) -> Pixels:
    """Ice ferns on top: ridges of a plasma fractal, instead of the original's photographs."""
    kept, strength = constants
    ridges = 1 - np.abs(2 * plasma(x, 1.6, random) - 1)
    ice = np.clip(0.25 + 0.9 * ridges**2, 0, 1)
    return kept * x + strength * ice * _colour(FROST, x)


def snow(x: Pixels, constants: tuple[float, ...], scale: float, random: np.random.Generator) -> Pixels:
    """Flakes that fall, and a paler picture below them."""
    mean, deviation, zoom, threshold, radius, sigma, kept = constants
    flakes = zoomed(random.normal(mean, deviation, (*fine(x), 1)), zoom)
    flakes = np.clip(np.where(flakes < threshold, 0, flakes), 0, 1)
    flakes = stretched(moved(flakes, radius, sigma, random.uniform(-135, -45)), x)
    gray = x if x.shape[2] == 1 else (x @ np.array(LUMA))[:, :, None]
    pale = kept * x + (1 - kept) * np.maximum(x, gray * 1.5 + 0.5)
    return pale + flakes + np.rot90(flakes, 2)


def spatter(x: Pixels, constants: tuple[float, ...], scale: float, random: np.random.Generator) -> Pixels:
    """Drops of water, or of mud where the last constant says so."""
    mean, deviation, sigma, threshold, strength, mud = constants
    drops = blurred(random.normal(mean, deviation, (*fine(x), 1)), sigma)
    drops = np.where(drops < threshold, 0, drops)
    if mud:
        cover = blurred((drops > threshold).astype(np.float64), strength)
        cover = stretched(np.where(cover < 0.8, 0, cover), x)
        return x * (1 - cover) + cover * _colour(MUD, x)
    shine = drops * _relief(drops[:, :, 0])[:, :, None]
    return x + stretched(shine * strength / max(float(shine.max()), 1e-9), x) * _colour(WATER, x)


def _relief(drops: Pixels) -> Pixels:
    """How much each place of the drops shines: more within them, lit from one side."""
    from scipy import ndimage

    wet = drops > 0
    rims = wet & ~ndimage.binary_erosion(wet)
    away = np.minimum(ndimage.distance_transform_edt(~rims), 20) if rims.any() else np.zeros(drops.shape)
    levels = ndimage.uniform_filter(away, 3, mode="mirror").astype(np.uint8)
    share = np.cumsum(np.bincount(levels.ravel(), minlength=256)) / levels.size  # histogram equalisation
    even = 255 * (share[levels] - share[levels.min()]) / max(1 - share[levels.min()], 1e-9)
    lit = ndimage.correlate(even, np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]), mode="mirror")
    relief: Pixels = ndimage.uniform_filter(np.clip(lit, 0, 255), 3, mode="mirror")
    return relief


def plasma(x: Pixels, decay: float, random: np.random.Generator) -> Pixels:
    """A height map (H, W, 1), 0..1, by the diamond-square algorithm; `decay`: by how much finer hills are lower."""
    side = 1 << (max(x.shape[:2]) - 1).bit_length()
    heights, step, hills = np.zeros((side, side)), side, 100.0
    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        across = corners + np.roll(corners, -1, 0)
        heights[half::step, half::step] = _hilly(across + np.roll(across, -1, 1), hills, random)
        centres = heights[half::step, half::step]
        beside = centres + np.roll(centres, 1, 0) + corners + np.roll(corners, -1, 1)
        above = centres + np.roll(centres, 1, 1) + corners + np.roll(corners, -1, 0)
        heights[::step, half::step] = _hilly(beside, hills, random)
        heights[half::step, ::step] = _hilly(above, hills, random)
        step, hills = half, hills / decay
    heights -= heights.min()
    heights /= max(float(heights.max()), 1e-9)
    return heights[: x.shape[0], : x.shape[1], None]


def _hilly(four: Pixels, hills: float, random: np.random.Generator) -> Pixels:
    """The mean of four neighbours' sum, and a hill or hollow."""
    return four / 4 + hills * random.uniform(-hills, hills, four.shape)


def _colour(colour: tuple[float, float, float], x: Pixels) -> Pixels:
    """Of shape (3,), or (1,) in a grey picture."""
    return np.array(colour) if x.shape[2] == 3 else np.array([np.dot(colour, LUMA)])
