"""Corruptions: CIFAR-10-C's names, as strong as there, decided by a seed, and harmless to shape and type."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_pictures import noise

from subtune_deploy.data.corruptions import CORRUPTIONS, PAPER, corrupt, parse_corruption
from subtune_deploy.data.weather import plasma
from subtune_deploy.errors import InputError, PictureError

RANDOM = {
    "gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "glass_blur", "motion_blur", "snow", "frost",
    "fog", "spatter", "elastic_transform",
}  # fmt: skip

BY_PIXEL = {"gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "jpeg_compression", "pixelate"}
"""What hits single pixels, or blocks of some, averages out when a picture is made smaller."""


def photograph(side: int = 32) -> np.ndarray:
    from skimage.data import chelsea
    from skimage.transform import resize

    return (resize(chelsea()[:300, 100:400], (side, side), anti_aliasing=True) * 255).astype(np.uint8)


def distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(float) - other).mean())


def test_the_benchmarks_nineteen_and_the_papers_fourteen() -> None:
    assert len(CORRUPTIONS) == 19
    assert len(set(PAPER)) == 14
    assert set(PAPER) < CORRUPTIONS.keys()


@pytest.mark.parametrize("shape", [(32, 32, 3), (28, 28), (8, 8), (20, 50, 3), (5, 3), (1, 1, 3), (1, 40)])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_shape_and_type_stay_and_the_picture_given_too(name: str, shape: tuple[int, ...]) -> None:
    pixels = noise(1, *shape)
    before = pixels.copy()
    for severity in (1, 5):
        damaged = corrupt(pixels, name, severity, seed=0)
        assert (damaged.dtype, damaged.shape) == (np.uint8, shape)
    np.testing.assert_array_equal(pixels, before)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("pixels", [np.zeros((32, 32, 3), np.uint8), np.full((32, 32, 3), 255, np.uint8)])
def test_black_and_white_pictures_divide_nothing_by_zero(name: str, pixels: np.ndarray) -> None:
    for severity in (1, 2, 3, 4, 5):
        corrupt(pixels, name, severity, seed=0)


@pytest.mark.parametrize("name", sorted(CORRUPTIONS.keys() - {"elastic_transform"}))
def test_the_worst_severity_is_worse_than_the_mildest(name: str) -> None:
    """Elastic apart, whose published constants trade a wide shift for a fine one."""
    cat = photograph()
    mild, bad = (
        np.mean([distance(corrupt(cat, name, level, seed), cat) for seed in range(9)]) for level in (1, 5)
    )
    assert 0 < mild < bad


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_seed_decides(name: str) -> None:
    cat = photograph()
    first, again, other = (corrupt(cat, name, 5, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.array_equal(first, other) == (name not in RANDOM)


@pytest.mark.parametrize("name", sorted(CORRUPTIONS.keys() - BY_PIXEL))
def test_a_larger_picture_is_damaged_about_as_much(name: str) -> None:
    """Lengths grow with the picture: made small again, it looks like a small picture that was damaged."""
    large, small = photograph(128), photograph()
    shrunk = np.mean(
        [distance(_quarter(corrupt(large, name, 5, seed)), _quarter(large)) for seed in range(6)]
    )
    direct = np.mean([distance(corrupt(small, name, 5, seed), small) for seed in range(6)])
    assert 0.5 < shrunk / direct < 1.6


def _quarter(pixels: np.ndarray) -> np.ndarray:
    return pixels.reshape(32, 4, 32, 4, 3).mean((1, 3))


def test_noise_is_as_strong_as_published() -> None:
    gray = np.full((200, 200), 128, np.uint8)
    deviations = [corrupt(gray, "gaussian_noise", level, 0).std() / 255 for level in (1, 2, 3, 4, 5)]
    np.testing.assert_allclose(deviations, [0.04, 0.06, 0.08, 0.09, 0.10], rtol=0.03)
    shot = corrupt(gray, "shot_noise", 5, 0) / 255
    np.testing.assert_allclose(shot.var(), 128 / 255 / 50, rtol=0.05)
    hit = corrupt(gray, "impulse_noise", 5, 0)
    assert (hit != 128).mean() == pytest.approx(0.07, rel=0.1)
    assert set(np.unique(hit)) == {0, 128, 255}


@pytest.mark.parametrize("name, channel, factors", [("brightness", 2, None), ("saturate", 1, (2.5, 0.2))])
def test_colours_change_as_in_hsv(name: str, channel: int, factors: tuple[float, float] | None) -> None:
    from skimage.color import hsv2rgb, rgb2hsv

    pixels = np.concatenate([photograph(), noise(0, 32, 32, 3), np.full((32, 32, 3), 90, np.uint8)])
    hsv = rgb2hsv(pixels)
    factor, more = factors or (1, 0.3)
    hsv[..., channel] = np.clip(hsv[..., channel] * factor + more, 0, 1)
    wanted = hsv2rgb(hsv) * 255
    assert np.abs(corrupt(pixels, name, 5, 0) - wanted).max() <= 1.001


def test_blur_is_scipys_gaussian_and_spreads_no_colour() -> None:
    from scipy.ndimage import gaussian_filter

    cat = photograph()
    wanted = [gaussian_filter(cat[:, :, channel] / 255.0, 1.0, mode="nearest") * 255 for channel in range(3)]
    assert np.abs(corrupt(cat, "gaussian_blur", 5, 0) - np.stack(wanted, 2)).max() <= 1


def test_motion_goes_one_way_along_a_line() -> None:
    dot = np.zeros((33, 33), np.uint8)
    dot[16, 16] = 255
    for seed in range(5):
        rows, columns = np.nonzero(corrupt(dot, "motion_blur", 5, seed))
        assert columns.max() <= 16
        assert columns.min() < 14
        slope = np.polyfit(columns, rows, 1)[0]
        assert abs(slope) <= 1.2


def test_glass_takes_every_pixel_from_beside_it() -> None:
    """Of a picture whose pixels name their place, blurred too little to matter (severity 1)."""
    rows, columns = np.mgrid[:32, :32]
    pixels = (rows * 5 + columns).astype(np.uint8)
    difference = pixels.astype(int) - corrupt(pixels, "glass_blur", 1, 0)
    assert set(np.unique(difference)) == {0, 1, 5, 6}
    assert not difference[:2].any()
    assert not difference[:, :2].any()


def test_the_middle_stays_where_it_is_under_zoom() -> None:
    dot = np.zeros((33, 33), np.uint8)
    dot[16, 16] = 255
    damaged = corrupt(dot, "zoom_blur", 1, 0)
    assert np.unravel_index(damaged.argmax(), damaged.shape) == (16, 16)


def test_fog_is_a_landscape_and_coarse_where_decay_is_high() -> None:
    flat = np.zeros((64, 40, 3))
    rough, smooth = (plasma(flat, decay, np.random.default_rng(0))[:, :, 0] for decay in (1.2, 3.0))
    assert rough.shape == (64, 40)
    assert 0 <= rough.min() <= rough.max() <= 1
    assert np.abs(np.diff(smooth)).mean() < 0.3 * np.abs(np.diff(rough)).mean()


def test_contrast_is_lowered_about_the_mean() -> None:
    cat = photograph()
    damaged = corrupt(cat, "contrast", 5, 0)
    np.testing.assert_allclose(damaged.mean((0, 1)), cat.mean((0, 1)), atol=1)
    np.testing.assert_allclose(damaged.std((0, 1)), 0.15 * cat.std((0, 1)), rtol=0.05)


@pytest.mark.parametrize("text", ["fog:5", "jpeg_compression:1"])
def test_a_corruption_is_a_name_and_a_severity(text: str) -> None:
    name, severity = parse_corruption(text)
    assert f"{name}:{severity}" == text


@pytest.mark.parametrize(
    "text, message",
    [
        ("fog", "'fog' is not NAME:SEVERITY"),
        ("fog:", "'fog:' is not NAME:SEVERITY"),
        ("fog:five", "is not NAME:SEVERITY"),
        ("fog:-1", "is not NAME:SEVERITY"),
        ("fog:²", "is not NAME:SEVERITY"),
        ("fog:0", r"severity 0 is outside 1\.\.5"),
        ("fog:6", r"severity 6 is outside 1\.\.5"),
        ("fogg:5", "corruption 'fogg' is unknown"),
    ],
)
def test_what_is_no_corruption_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_corruption(text)


@pytest.mark.parametrize(
    "pixels", [np.zeros((4, 4), np.float32), np.zeros((0, 4), np.uint8), np.zeros(4, np.uint8)]
)
def test_what_is_no_picture_is_refused(pixels: np.ndarray) -> None:
    with pytest.raises(PictureError, match="is no picture"):
        corrupt(pixels, "fog", 1, 0)
