"""Augmentation: torchvision's crops, by deployment's decoding, decided by a seed and the picture's index alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_pictures import noise, write_picture

from subtune_deploy.data.augment import augmented, prepare_batch
from subtune_deploy.data.dataset import Dataset
from subtune_deploy.errors import InputError, PictureError
from subtune_deploy.pictures import load_picture, prepare
from subtune_deploy.spec import AUGMENTATIONS, InputSpec

PLAIN = InputSpec((3, 16, 16), (0.0,) * 3, (1.0,) * 3, crop=1.0)
GRAY = InputSpec((1, 16, 16), (0.0,), (1.0,))
KINDS = AUGMENTATIONS[1:]


def ramp(width: int = 60, height: int = 40) -> np.ndarray:
    """Red grows to the right, green downwards; blue is everywhere."""
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return np.stack([red, green, np.full_like(red, 255)], 2).astype(np.uint8)


def test_without_augmentation_files_and_arrays_take_the_path_of_deployment(tmp_path: Path) -> None:
    path = write_picture(tmp_path / "a.png", 1, (30, 20))
    data = Dataset((path, noise(2, 28, 28)), np.zeros(2, np.int64), ("0",))
    batch = prepare_batch(data, [0, 1], PLAIN).numpy()
    np.testing.assert_array_equal(batch[0], load_picture(path, PLAIN))
    np.testing.assert_array_equal(batch[1], prepare(noise(2, 28, 28), PLAIN))
    assert batch.dtype == np.float32


@pytest.mark.parametrize("kind", KINDS)
def test_files_and_arrays_are_changed_alike(tmp_path: Path, kind: str) -> None:
    pixels = noise(3, 40, 50, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    from_file = augmented(tmp_path / "a.png", PLAIN, kind, seed=5)
    np.testing.assert_array_equal(from_file, augmented(pixels, PLAIN, kind, seed=5))
    assert from_file.dtype == np.float32
    assert from_file.shape == (3, 16, 16)


@pytest.mark.parametrize("kind", KINDS)
def test_seed_and_index_alone_decide(kind: str) -> None:
    data = Dataset((ramp(),) * 4, np.zeros(4, np.int64), ("0",))
    batch = prepare_batch(data, [0, 1, 2, 3], PLAIN, kind, seed=1).numpy()
    again = prepare_batch(data, [3, 1], PLAIN, kind, seed=1).numpy()
    np.testing.assert_array_equal(batch[[3, 1]], again)
    assert len({picture.tobytes() for picture in batch}) == 4
    assert prepare_batch(data, [0], PLAIN, kind, seed=2).numpy().tobytes() != batch[0].tobytes()


def test_a_crop_is_torchvisions_given_its_box() -> None:
    """Pixels are those that torchvision resizes, so that training and deployment interpolate alike."""
    from torchvision.transforms.v2 import functional

    from subtune_deploy.data.augment import _box

    picture = Image.fromarray(noise(4, 70, 90, 3))
    left, top, right, bottom = _box(picture.size, np.random.default_rng(9))
    wanted = functional.resized_crop(picture, top, left, bottom - top, right - left, [16, 16])
    found = augmented(np.asarray(picture), PLAIN, "crop", seed=9)
    np.testing.assert_array_equal(found, np.asarray(wanted, np.float32).transpose(2, 0, 1) / 255)


def test_areas_and_ratios_are_distributed_as_torchvisions() -> None:
    from torchvision.transforms.v2 import RandomResizedCrop

    from subtune_deploy.data.augment import _box

    picture = Image.fromarray(ramp(64, 48))
    random, draw = np.random.default_rng(0), RandomResizedCrop(16).make_params
    torch.manual_seed(0)
    ours = [_box(picture.size, random) for _ in range(3000)]
    theirs = [draw([picture]) for _ in range(3000)]
    sizes = (
        np.array([(right - left, bottom - top) for left, top, right, bottom in ours], float),
        np.array([(each["width"], each["height"]) for each in theirs], float),
    )
    quantiles = [[np.quantile(fact, (0.1, 0.5, 0.9)) for fact in _facts(each)] for each in sizes]
    (area, ratio), (their_area, their_ratio) = quantiles
    np.testing.assert_allclose(area, their_area, rtol=0.08)
    np.testing.assert_allclose(ratio, their_ratio, rtol=0.05)


def _facts(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return sizes.prod(1) / (64 * 48), sizes[:, 0] / sizes[:, 1]


def test_half_of_the_pictures_are_mirrored_and_crops_alone_none() -> None:
    def leftwards(kind: str) -> float:
        reds = [augmented(ramp(), PLAIN, kind, seed)[0] for seed in range(200)]
        return float(np.mean([red[:, 0].mean() > red[:, -1].mean() for red in reds]))

    assert leftwards("crop") == 0
    assert 0.4 < leftwards("crop-flip") < 0.6


def test_flowers_are_turned_to_either_side_and_no_further_than_30_degrees() -> None:
    angles = []
    for seed in range(60):
        green = augmented(ramp(80, 80), PLAIN, "crop-flip-rotate", seed)[1]
        inner = slice(4, 12)
        down, right = np.gradient(green[inner, inner])
        angles.append(np.degrees(np.arctan2(right.mean(), down.mean())))
    assert min(angles) < -5
    assert max(angles) > 5
    assert max(map(abs, angles)) < 45  # a crop may be stretched by a third


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 3)])
@pytest.mark.parametrize("kind", KINDS)
def test_pictures_of_any_form_can_be_cropped(size: tuple[int, int], kind: str) -> None:
    for seed in range(20):
        assert augmented(noise(0, *size, 3), PLAIN, kind, seed).shape == (3, 16, 16)


def test_a_network_for_grey_pictures_gets_grey_ones() -> None:
    assert augmented(ramp(), GRAY, "crop-flip-rotate", 0).shape == (1, 16, 16)


def test_bad_requests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="augmentation 'crop-flop' is unknown") as caught:
        augmented(ramp(), PLAIN, "crop-flop", 0)
    assert "crop-flip" in caught.value.hint
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(PictureError, match="is not a picture"):
        augmented(tmp_path / "a.png", PLAIN, "crop", 0)
