"""Samples, folds and splits: drawn by a seed, evenly over the classes, disjoint where they must be."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_pictures import arrays, greys, write_album, write_picture

from subtune_deploy.data.dataset import Data, Dataset, derived, folds, sample, split, subset, vtab
from subtune_deploy.errors import InputError, PictureError
from subtune_deploy.tuning.active import at_random


def counts(data: Dataset) -> list[int]:
    return np.bincount(data.labels, minlength=len(data.classes)).tolist()


# Data sets


@pytest.mark.parametrize(
    "labels, message",
    [
        (np.array([0, 2]), r"1 labels are outside 0\.\.1, the first is 2"),
        (np.array([-1, 0]), r"1 labels are outside 0\.\.1, the first is -1"),
        (np.array([0]), r"labels are int64 \(1,\) for 2 pictures"),
        (np.array([0, 1], np.int32), r"labels are int32 \(2,\) for 2 pictures"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Dataset((np.zeros((2, 2), np.uint8),) * 2, labels, ("a", "b"))


def test_a_subset_keeps_pictures_with_their_labels() -> None:
    data = arrays(3, 3)
    fewer = subset(data, np.array([4, 0, 4]))
    assert greys(fewer) == [4, 0, 4]
    assert fewer.labels.tolist() == data.labels[[4, 0, 4]].tolist()
    assert fewer.classes == data.classes


# Fingerprints


def test_equal_pictures_have_equal_fingerprints_and_any_change_shows() -> None:
    data = arrays(3, 4)
    other = np.array([*data.pictures[:-1], data.pictures[-1] + 1])
    changed = [
        Dataset(tuple(other), data.labels, data.classes),
        Dataset(data.pictures, np.roll(data.labels, 1), data.classes),
        Dataset(data.pictures, data.labels, ("a", "c")),
        Dataset(tuple(each.reshape(2, 8) for each in data.pictures), data.labels, data.classes),
        subset(data, np.arange(6)),
    ]
    assert arrays(3, 4).fingerprint() == data.fingerprint()
    assert len({each.fingerprint() for each in [data, *changed]}) == 6


def album(path: Path) -> Dataset:
    files = tuple(sorted(write_album(path, {"cat": 2, "dog": 2}).rglob("*.png")))
    return Dataset(files, np.array([0, 0, 1, 1]), ("cat", "dog"))


def test_files_may_move_together_but_not_change(tmp_path: Path) -> None:
    data = album(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    moved = tuple(tmp_path / "there" / file.relative_to(tmp_path / "here") for file in data.pictures)
    there = Dataset(moved, data.labels, data.classes)
    found = there.fingerprint()
    os.utime(moved[0], ns=(0, 0))
    assert Dataset(moved, data.labels, data.classes).fingerprint() != found
    assert there.fingerprint() == found  # known, and not read again
    with pytest.raises(PictureError, match=r"0\.png is gone"):
        data.fingerprint()


def test_a_file_of_another_name_is_another_picture(tmp_path: Path) -> None:
    first, second = (write_picture(tmp_path / name, 1) for name in ("a.png", "b.png"))
    for each in (first, second):
        os.utime(each, ns=(0, 0))
    of_each = [Dataset((each,), np.array([0]), ("a",)).fingerprint() for each in (first, second)]
    assert of_each[0] != of_each[1]


# Samples


@given(
    sizes=st.lists(st.integers(1, 12), min_size=2, max_size=6),
    seed=st.integers(0, 2**40),
    share=st.floats(0, 1),
)
def test_samples_are_even_nested_and_drawn_by_the_seed(sizes: list[int], seed: int, share: float) -> None:
    data = arrays(*sizes)
    count = len(sizes) + int(share * (len(data) - len(sizes)))
    chosen = sample(data, count, seed)
    assert len(chosen) == len(set(greys(chosen))) == count
    assert greys(chosen) == sorted(greys(chosen)) == greys(sample(data, count, seed))
    assert set(greys(chosen)) <= set(greys(sample(data, min(count + 3, len(data)), seed)))
    taken = counts(chosen)
    for has, got in zip(sizes, taken, strict=True):
        assert got == has or got >= max(taken) - 1


def test_another_seed_draws_others() -> None:
    data = arrays(50, 50)
    assert greys(sample(data, 20, 0)) != greys(sample(data, 20, 1))


@pytest.mark.parametrize("count", [0, 1, 8])
def test_a_sample_has_at_least_one_of_each_class_and_at_most_all(count: int) -> None:
    with pytest.raises(InputError, match=rf"{count} pictures are wanted of 7 in 2 classes"):
        sample(arrays(3, 4), count, 0)


def test_vtab_trains_on_1000_and_tests_on_all() -> None:
    data = Data(arrays(600, 500, 400), arrays(7, 7, 7), ("one was no picture",))
    small = vtab(data, seed=3)
    assert counts(small.train) == [334, 333, 333]
    assert (small.test, small.skipped) == (data.test, data.skipped)
    assert (
        vtab(small, seed=4).train.fingerprint() == small.train.fingerprint()
    )  # what was chosen elsewhere stays
    with pytest.raises(InputError, match="1000 pictures are wanted of 9"):
        vtab(Data(arrays(5, 4), data.test), seed=0)


# Folds


@given(
    sizes=st.lists(st.integers(5, 23), min_size=2, max_size=5), k=st.integers(2, 5), seed=st.integers(0, 99)
)
def test_every_picture_is_held_out_once_and_each_class_evenly(sizes: list[int], k: int, seed: int) -> None:
    data = arrays(*sizes)
    parts = folds(data, k, seed)
    assert sorted(grey for _, held_out in parts for grey in greys(held_out)) == greys(data)
    for training, held_out in parts:
        assert sorted(greys(training) + greys(held_out)) == greys(data)
        assert all(
            size // k <= got <= -(-size // k) for size, got in zip(sizes, counts(held_out), strict=True)
        )
        assert len(data) // k <= len(held_out) <= -(-len(data) // k)
    assert [greys(held_out) for _, held_out in folds(data, k, seed)] == [greys(each) for _, each in parts]


def test_folds_depend_on_the_seed() -> None:
    data = arrays(20, 20)
    assert greys(folds(data, 5, 0)[0][1]) != greys(folds(data, 5, 1)[0][1])


@pytest.mark.parametrize("k", [5, 1, 0])
def test_folds_fit_the_smallest_class(k: int) -> None:
    with pytest.raises(InputError, match=rf"{k} folds of data whose smallest class, 'b', has 4 pictures"):
        folds(arrays(9, 4, 6), k, 0)


# Splits


def test_a_split_is_disjoint_even_and_its_test_set_does_not_depend_on_training() -> None:
    data = arrays(30, 20, 25)
    train, test = split("x", data, 12, 10, seed=1)
    assert np.bincount(data.labels[train]).tolist() == [4, 4, 4]
    assert np.bincount(data.labels[test]).tolist() == [4, 3, 3]
    assert not {*train} & {*test}
    more, same = split("x", data, 24, 10, seed=1)
    assert same.tolist() == test.tolist()
    assert {*train} < {*more}
    assert split("x", data, 12, 10, seed=2)[1].tolist() != test.tolist()


def test_a_fifth_of_each_class_is_held_out() -> None:
    data = arrays(30, 2, 25)
    train, test = split("x", data, None, None, seed=0)
    assert np.bincount(data.labels[train]).tolist() == [24, 1, 20]
    assert np.bincount(data.labels[test]).tolist() == [6, 1, 5]


def test_splits_that_cannot_be() -> None:
    with pytest.raises(
        InputError, match=r"class 'b' of x has 4 readable pictures where 5 .* and 2 for testing"
    ):
        split("x", arrays(9, 4), 10, 4, 0)
    with pytest.raises(InputError, match="x has 1 classes where at least 2 are needed"):
        split("x", arrays(9), None, None, 0)
    for train, test, what in (
        (60, 2, "2 pictures to test"),
        (2, 6, "2 pictures to train"),
    ):
        with pytest.raises(InputError, match=f"{what} on are wanted of x, which has 3 classes") as caught:
            split("x", arrays(30, 30, 30), train, test, 0)
        assert caught.value.hint == "ask for 3 or more, one of each class at least"
    with pytest.raises(InputError, match="class 'b' of x has 0 readable pictures") as caught:
        split("x", arrays(9, 0), None, None, 0, skipped=("b/1.png is not a picture",))
    assert caught.value.hint == "1 were skipped: b/1.png is not a picture"


def test_seeds_made_of_two_numbers_are_all_different() -> None:
    assert len({derived(seed, index) for seed in range(50) for index in range(50)}) == 2500
    assert derived(3, 4) == derived(3, 4)


@pytest.mark.parametrize(
    "draw",
    [
        lambda data: sample(data, 2, -1),
        lambda data: folds(data, 2, -1),
        lambda data: split("x", data, None, None, -1),
        lambda data: at_random(len(data), 2, -1),
    ],
)
def test_seeds_below_zero_are_refused(draw: Callable[[Dataset], object]) -> None:
    with pytest.raises(InputError, match="seed -1 is below 0"):
        draw(arrays(3, 3))
