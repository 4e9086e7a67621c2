"""Where pictures come from: each source is read as it is laid out, refused in one line, and drawn by a seed."""

from __future__ import annotations

import contextlib
import pickle
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_pictures import damaged_avif, needs_avif, noise, write_album, write_picture

from subtune_deploy.data.corruptions import corrupt
from subtune_deploy.data.dataset import Data
from subtune_deploy.data.sources import LARGEST, load_data
from subtune_deploy.errors import InputError


def _key(picture: object) -> bytes:
    assert isinstance(picture, np.ndarray)
    return picture.tobytes()


def one_line(error: pytest.ExceptionInfo[InputError]) -> str:
    assert "\n" not in error.value.message + error.value.hint
    return error.value.message


# What is built in


@pytest.fixture(scope="module")
def some_digits() -> Data:
    return load_data("digits", train=60, test=41, seed=3)


def test_digits_are_balanced_and_disjoint(some_digits: Data) -> None:
    assert np.bincount(some_digits.train.labels).tolist() == [6] * 10
    assert np.bincount(some_digits.test.labels).tolist() == [5] + [4] * 9
    train, test = ({_key(picture) for picture in part.pictures} for part in some_digits[:2])
    assert len(train) == 60
    assert not train & test
    assert some_digits.train.classes == some_digits.test.classes == tuple("0123456789")


def test_a_seed_decides_which_digits_and_more_training_leaves_the_test_alone(some_digits: Data) -> None:
    more, other = (
        load_data("digits", train=count, test=41, seed=seed) for count, seed in ((100, 3), (60, 4))
    )
    assert [*map(_key, more.test.pictures)] == [*map(_key, some_digits.test.pictures)]
    assert {*map(_key, some_digits.train.pictures)} < {*map(_key, more.train.pictures)}
    assert [*map(_key, other.test.pictures)] != [*map(_key, some_digits.test.pictures)]


def test_more_digits_than_there_are_is_an_error() -> None:
    with pytest.raises(InputError, match=r"class '0' of digits has 500 readable pictures where 400 .* 101"):
        load_data("digits", train=4000, test=1010)


def test_fewer_digits_than_classes_are_told_as_such() -> None:
    with pytest.raises(
        InputError, match="5 pictures to test on are wanted of sklearn-digits, which has 10 classes"
    ):
        load_data("sklearn-digits", train=60, test=5)


def test_scikit_learns_digits_use_the_whole_range_of_grey() -> None:
    data = load_data("sklearn-digits")
    assert len(data.train) + len(data.test) == 1797
    pixels = np.stack([np.asarray(picture) for picture in data.train.pictures])
    assert (pixels.dtype, pixels.shape[1:], pixels.min(), pixels.max()) == (np.uint8, (8, 8), 0, 255)


# Folders


@pytest.fixture
def album(tmp_path: Path) -> Path:
    write_album(tmp_path, {"dog/deeper": 10, "cat": 10})
    write_picture(tmp_path / ".hidden" / "x.png", 7)
    return tmp_path


def test_a_folder_of_class_folders(album: Path) -> None:
    data = load_data(str(album))
    assert data.train.classes == ("cat", "dog")
    assert (len(data.train), len(data.test), data.skipped) == (16, 4, ())
    assert not {*data.train.pictures} & {*data.test.pictures}
    for part in data[:2]:
        folders = [Path(str(file)).relative_to(album).parts[0] for file in part.pictures]
        assert folders == [part.classes[label] for label in part.labels]
    assert load_data(str(album)).test.pictures == data.test.pictures
    assert len(load_data(str(album), train=5, test=6).train) == 5


def test_files_are_found_from_any_working_folder(album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(album.parent)
    assert load_data(album.name).train.pictures == load_data(str(album)).train.pictures


@pytest.mark.parametrize(
    "training, testing", [("train", "test"), ("Training", "val"), ("train", "validation")]
)
def test_folders_for_training_and_testing_are_taken_as_given(
    tmp_path: Path, training: str, testing: str
) -> None:
    write_album(tmp_path / training, {"cat": 5, "dog": 3})
    write_album(tmp_path / testing, {"cat": 2, "dog": 4}, first=50)
    data = load_data(str(tmp_path))
    assert np.bincount(data.train.labels).tolist() == [5, 3]
    assert np.bincount(data.test.labels).tolist() == [2, 4]
    assert {Path(str(file)).parts[-3] for file in data.test.pictures} == {testing}
    fewer = load_data(str(tmp_path), train=4, test=2, seed=1)
    assert np.bincount(fewer.train.labels).tolist() == [2, 2]
    assert {*fewer.train.pictures} < {*data.train.pictures}
    assert {*fewer.test.pictures} < {*data.test.pictures}
    with pytest.raises(InputError, match="9 pictures are wanted of 8 in 2 classes"):
        load_data(str(tmp_path), train=9)


def test_of_test_and_val_the_test_is_taken(tmp_path: Path) -> None:
    for place, part in enumerate(("train", "val", "test")):
        write_album(tmp_path / part, {"cat": 2, "dog": 2}, first=10 * place)
    assert {Path(str(file)).parts[-3] for file in load_data(str(tmp_path)).test.pictures} == {"test"}


def test_a_folder_beside_train_and_test_is_not_taken_for_a_class(tmp_path: Path) -> None:
    write_album(tmp_path, {"Train/cat": 2, "Train/dog": 2, "test/cat": 2, "test/dog": 2, "unlabelled": 2})
    with pytest.raises(InputError, match="holds Train and test beside unlabelled, ") as caught:
        load_data(str(tmp_path))
    one_line(caught)
    assert caught.value.hint.startswith(
        "move all other folders out of it; where Train and test are classes, "
    )
    (tmp_path / "unlabelled").rename(tmp_path / ".unlabelled")
    assert load_data(str(tmp_path)).train.classes == ("cat", "dog")


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    write_album(tmp_path, {"car": 2, "train": 2})
    assert load_data(str(tmp_path)).train.classes == ("car", "train")


def test_classes_of_testing_must_be_those_of_training(tmp_path: Path) -> None:
    write_album(tmp_path / "train", {"cat": 2, "dog": 2})
    write_album(tmp_path / "test", {"cat": 1, "horse": 1})
    with pytest.raises(InputError, match=r"test/horse has no counterpart in .*train"):
        load_data(str(tmp_path))


def test_unreadable_files_are_left_out_and_named(album: Path) -> None:
    (album / "cat" / "0.png").write_bytes((album / "cat" / "1.png").read_bytes()[:200])
    (album / "dog" / "notes.txt").write_text("hello")
    data = load_data(str(album))
    assert len(data.train) + len(data.test) == 19
    assert [Path(line.split(" is ")[0]).name for line in data.skipped] == ["0.png", "notes.txt"]


def test_a_truncated_jpeg_is_found_without_decoding_all_of_it(album: Path) -> None:
    Image.fromarray(noise(1, 200, 200, 3)).save(album / "cat" / "good.jpg")
    whole = (album / "cat" / "good.jpg").read_bytes()
    (album / "cat" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    data = load_data(str(album))
    assert len(data.train) + len(data.test) == 21
    assert [Path(line.split(" is ")[0]).name for line in data.skipped] == ["cut.jpg"]


@needs_avif
def test_a_damaged_avif_is_left_out_and_named(album: Path) -> None:
    (album / "cat" / "0.avif").write_bytes(damaged_avif())
    data = load_data(str(album))
    assert len(data.train) + len(data.test) == 20
    assert [Path(line.split(" is ")[0]).name for line in data.skipped] == ["0.avif"]


def test_where_nothing_of_a_class_can_be_read_the_error_names_what_was_skipped(tmp_path: Path) -> None:
    write_album(tmp_path, {"cat": 3})
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "1.jpg").write_text("hello")
    with pytest.raises(InputError, match=r"class 'dog' of .* has 0 readable pictures") as caught:
        load_data(str(tmp_path))
    assert "1 were skipped: " in caught.value.hint
    assert "1.jpg is not a picture" in caught.value.hint
    for part in ("train", "test"):
        write_album(tmp_path / "split" / part, {"cat": 2, "dog": 0})
        (tmp_path / "split" / part / "dog").mkdir()
    with pytest.raises(InputError, match="no readable picture of class 'dog' to train on"):
        load_data(str(tmp_path / "split"))
    (tmp_path / "dog" / "1.jpg").unlink()
    with pytest.raises(InputError, match=r"class 'dog' of .* has 0 readable pictures") as caught:
        load_data(str(tmp_path))
    assert caught.value.hint == "give more pictures, or ask for fewer"


def test_folders_that_are_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no folder") as caught:
        load_data(str(tmp_path / "nowhere"))
    assert "torchvision:NAME" in caught.value.hint
    write_album(tmp_path / "one", {"cat": 3})
    with pytest.raises(InputError, match="one holds 1 class folders where at least 2 are needed"):
        load_data(str(tmp_path / "one"))
    write_album(tmp_path / "untested", {"train/cat": 1, "train/dog": 1})
    with pytest.raises(InputError, match="which are no classes"):
        load_data(str(tmp_path / "untested"))


# NumPy archives


def archive(path: Path, **arrays: object) -> str:
    np.savez_compressed(path / "data.npz", **arrays)
    return str(path / "data.npz")


LABELS = np.arange(12) % 3


def test_an_archive_is_split_or_says_how(tmp_path: Path) -> None:
    x, y = noise(0, 12, 6, 5, 3), LABELS
    data = load_data(archive(tmp_path, images=x, labels=y.astype(np.uint8)))
    assert (len(data.train), len(data.test), data.train.classes) == (9, 3, ("0", "1", "2"))
    assert {*map(_key, data.train.pictures + data.test.pictures)} == {*map(_key, x)}
    given = load_data(archive(tmp_path, x_train=x[:9], y_train=y[:9], x_test=x[9:], y_test=y[9:]))
    assert [*map(_key, given.test.pictures)] == [*map(_key, x[9:])]
    assert given.train.labels.tolist() == y[:9].tolist()


def test_archives_as_keras_writes_them_and_names_of_classes(tmp_path: Path) -> None:
    given = {"images": noise(0, 12, 6, 5, 1), "labels": LABELS[:, None], "classes": np.array(["a", "b", "c"])}
    data = load_data(archive(tmp_path, **given))
    assert data.train.classes == ("a", "b", "c")
    assert np.asarray(data.train.pictures[0]).shape == (6, 5)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"images": noise(0, 12, 3, 6, 5)}, r"data.npz:images is uint8 \(12, 3, 6, 5\)"),
        ({"images": np.zeros((12, 6, 5), np.float32)}, r"images is float32 \(12, 6, 5\)"),
        ({"images": noise(0, 12, 0, 5)}, r"images is uint8 \(12, 0, 5\)"),
        ({"images": noise(0, 11, 6, 5)}, r"labels are int64 \(12,\) for 11 pictures"),
        ({"labels": LABELS / 2}, r"labels is float64 \(12,\)"),
        ({"labels": LABELS.reshape(6, 2)}, r"labels is int64 \(6, 2\)"),
        ({"labels": LABELS - 1}, r"4 labels are outside 0\.\.1, the first is -1"),
        ({"labels": LABELS, "classes": np.array(["a", "b"])}, r"4 labels are outside 0\.\.1, the first is 2"),
        ({"labels": LABELS * 0}, "has 1 classes where at least 2 are needed"),
        ({"labels": LABELS * 2}, "class '1' of .* has 0 readable pictures"),
        ({"labels": LABELS * 500_000}, "label 1000000 makes 1000001 classes of 12 pictures"),
        ({"labels": LABELS * 6}, "label 12 makes 13 classes of 12 pictures"),
        ({"images": noise(0, 0, 6, 5), "labels": LABELS[:0]}, "has 0 classes where at least 2 are needed"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    tmp_path: Path, change: dict[str, np.ndarray], message: str
) -> None:
    path = archive(tmp_path, **{"images": noise(0, 12, 6, 5), "labels": LABELS, **change})
    with pytest.raises(InputError, match=message) as caught:
        load_data(path)
    one_line(caught)


def test_files_that_are_no_archive_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    with pytest.raises(InputError, match=r"there is no file .*data\.npz"):
        load_data(str(path))
    whole = Path(archive(tmp_path, images=noise(0, 12, 6, 5), labels=LABELS)).read_bytes()
    for content in (b"", b"hello", whole[:100], whole[:-40], whole[:60] + b"xxxx" + whole[64:]):
        path.write_bytes(content)
        with pytest.raises(InputError, match="is no archive of plain arrays"):
            load_data(str(path))
    np.save(tmp_path / "one.npy", LABELS)
    path.write_bytes((tmp_path / "one.npy").read_bytes())
    with pytest.raises(InputError, match="is no archive of plain arrays"):
        load_data(str(path))
    with pytest.raises(InputError, match=r"data\.npz holds labels, pixels"):
        load_data(archive(tmp_path, pixels=LABELS, labels=LABELS))


class Harm:
    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("harm"),)


@given(st.data())
def test_a_damaged_archive_is_read_or_refused(draw: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(archive(Path(folder), images=noise(0, 12, 6, 5), labels=LABELS))
        content = bytearray(path.read_bytes())
        for _ in range(draw.draw(st.integers(1, 4))):
            content[draw.draw(st.integers(0, len(content) - 1))] = draw.draw(st.integers(0, 255))
        path.write_bytes(content)
        with contextlib.suppress(InputError), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # zipfile's, of names in it
            load_data(str(path))


def test_nothing_pickled_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    objects = np.array([Harm()], object)
    with pytest.raises(InputError, match="is no archive of plain arrays"):
        load_data(archive(tmp_path, images=noise(0, 1, 4, 4), labels=objects))
    (tmp_path / "data.npz").write_bytes(pickle.dumps(Harm()))
    with pytest.raises(InputError, match="is no archive of plain arrays"):
        load_data("data.npz")
    assert not (tmp_path / "harm").exists()


# Lists of pictures


def test_a_file_lists_the_pictures_to_train_on(tmp_path: Path) -> None:
    x, y = noise(0, 12, 6, 5), LABELS
    whole, listing = archive(tmp_path, images=x, labels=y), tmp_path / "some.txt"
    listing.write_text("7\n0\n4\n")
    data = load_data(whole, train=listing)
    assert [*map(_key, data.train.pictures)] == [*map(_key, x[[0, 4, 7]])]
    assert data.train.labels.tolist() == y[[0, 4, 7]].tolist()
    assert [*map(_key, data.test.pictures)] == [*map(_key, x[[1, 2, 3, 5, 6, 8, 9, 10, 11]])]
    assert {*map(_key, load_data(whole, train=listing, test=3).test.pictures)} < {
        *map(_key, data.test.pictures)
    }
    foggy = load_data(whole, corruption="gaussian_noise:1").train
    same = load_data(whole, train=listing, corruption="gaussian_noise:1").train
    assert {*map(_key, same.pictures)} & {*map(_key, foggy.pictures)}  # damaged by their places in the source


def test_a_list_counts_the_pictures_that_are_for_training(tmp_path: Path) -> None:
    """Also where these do not have every class, and in what NumPy wrote."""
    write_album(tmp_path / "test", {"cat": 2, "dog": 2})
    write_album(tmp_path / "train", {"cat": 3, "dog": 3}, first=50)
    np.save(tmp_path / "some.npy", np.array([[5], [3]], np.uint16))
    data = load_data(str(tmp_path), train=tmp_path / "some.npy")
    assert [Path(str(file)).relative_to(tmp_path).as_posix() for file in data.train.pictures] == [
        "train/dog/0.png",
        "train/dog/2.png",
    ]
    assert len(data.test) == 4


@pytest.mark.parametrize(
    "content, message",
    [
        ("0\n12\n", "lists pictures 0 to 12, where there are 0 to 11"),
        ("-1 0", "lists pictures -1 to 0, where there are 0 to 11"),
        ("", "lists pictures none, where"),
        ("3 1 3", "lists picture 3 twice"),
        ("0,1", "is no list of pictures: invalid literal"),
        (f"{10**30}", "is no list of pictures"),
        ("\n".join(map(str, range(12))), "has no picture to test on"),
    ],
)
def test_lists_that_do_not_fit_are_refused(tmp_path: Path, content: str, message: str) -> None:
    source, listing = archive(tmp_path, images=noise(0, 12, 6, 5), labels=LABELS), tmp_path / "some.txt"
    listing.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        load_data(source, train=listing)
    one_line(caught)


def test_files_that_are_no_list_are_refused(tmp_path: Path) -> None:
    source = archive(tmp_path, images=noise(0, 12, 6, 5), labels=LABELS)
    with pytest.raises(InputError, match=r"there is no file .*none\.txt"):
        load_data(source, train=tmp_path / "none.txt")
    for name in ("text.npy", "archive.npy", "bytes.txt"):
        (tmp_path / name).write_bytes(b"0\n1\n" if name == "text.npy" else Path(source).read_bytes())
        with pytest.raises(InputError, match="is no list of pictures"):
            load_data(source, train=tmp_path / name)
    np.save(tmp_path / "halves.npy", LABELS / 2)
    with pytest.raises(InputError, match=r"halves.npy is float64 \(12,\)"):
        load_data(source, train=tmp_path / "halves.npy")


def test_a_list_is_refused_where_a_file_that_it_may_have_counted_cannot_be_read(album: Path) -> None:
    (album / "some.txt").write_text("0 12")
    assert load_data(str(album), train=album / "some.txt").train.labels.tolist() == [0, 1]
    (album / "cat" / "0.png").write_text("hello")
    with pytest.raises(InputError, match=r"of which 1 cannot be read: .*0\.png is not a picture"):
        load_data(str(album), train=album / "some.txt")


# Corruptions


def test_a_corruption_damages_every_picture_by_its_place_in_the_source(some_digits: Data) -> None:
    foggy = load_data("digits", train=60, test=41, seed=3, corruption="fog:5")
    more = load_data("digits", train=100, test=41, seed=3, corruption="fog:5")
    for part, clean in zip(foggy[:2], some_digits[:2], strict=True):
        assert part.labels.tolist() == clean.labels.tolist()
        assert not {*map(_key, part.pictures)} & {*map(_key, clean.pictures)}
    assert {*map(_key, foggy.train.pictures)} < {*map(_key, more.train.pictures)}
    assert [*map(_key, foggy.test.pictures)] == [*map(_key, more.test.pictures)]


def test_each_picture_is_damaged_differently(tmp_path: Path) -> None:
    same = np.repeat(noise(0, 1, 8, 8), 12, axis=0)
    data = load_data(archive(tmp_path, images=same, labels=LABELS), corruption="gaussian_noise:1")
    assert len({*map(_key, data.train.pictures + data.test.pictures)}) == 12
    assert _key(same[0]) == _key(noise(0, 1, 8, 8)[0])


def test_files_are_damaged_as_decoded_and_not_larger_than_needed(tmp_path: Path) -> None:
    write_album(tmp_path, {"cat": 2, "dog": 2})
    write_picture(tmp_path / "cat" / "large.png", 9, (400, 300))
    data = load_data(str(tmp_path), corruption="contrast:3")
    files = load_data(str(tmp_path))
    for file, damaged in zip(files.train.pictures, data.train.pictures, strict=True):
        assert isinstance(file, Path)
        assert isinstance(damaged, np.ndarray)
        if file.name == "large.png":
            assert damaged.shape == (LARGEST, round(LARGEST * 4 / 3), 3)
        else:
            np.testing.assert_array_equal(damaged, corrupt(np.asarray(Image.open(file)), "contrast", 3, 0))


def test_an_unknown_corruption_is_refused_before_anything_is_read() -> None:
    with pytest.raises(InputError, match="corruption 'frog' is unknown"):
        load_data("nowhere", corruption="frog:5")
