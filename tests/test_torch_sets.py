"""Data sets of torchvision, in the layout that it writes, and of the user's own code.

Nothing is downloaded here: the stand-ins are small, and where torchvision checks hashes it is given theirs.
"""

from __future__ import annotations

import gzip
import hashlib
import inspect
import os
import pickle
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_pictures import noise, write_album, write_picture

from subtune_deploy.data.sources import load_data
from subtune_deploy.data.torch_sets import _choices, _kind
from subtune_deploy.errors import InputError, Unavailable


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where data sets lie."""
    monkeypatch.setenv("SUBTUNE_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request goes to a port where nothing listens."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


# torchvision


def write_dtd(root: Path) -> Path:
    """Describable Textures: three lists of pictures in class folders."""
    folder = root / "dtd" / "dtd"
    write_album(folder / "images", {"banded": 6, "dotted": 6})
    (folder / "labels").mkdir()
    for part, numbers in {"train": (0, 1, 2), "val": (3,), "test": (4, 5)}.items():
        lines = [f"{name}/{number}.png" for name in ("banded", "dotted") for number in numbers]
        (folder / "labels" / f"{part}1.txt").write_text("\n".join(lines))
    return folder


@pytest.mark.parametrize("name", ["DTD", "dtd"])
def test_parts_are_taken_as_given_and_pictures_stay_files(root: Path, name: str) -> None:
    folder = write_dtd(root)
    data = load_data(f"torchvision:{name}")
    assert data.train.classes == ("banded", "dotted")
    assert data.train.pictures == tuple(
        folder / "images" / each / f"{n}.png" for each in ("banded", "dotted") for n in (0, 1, 2)
    )
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.test.labels.tolist() == [0, 0, 1, 1]
    assert len(load_data(f"torchvision:{name}", train=4, test=2).train) == 4


def test_stanford_cars(root: Path) -> None:
    """Named by tables of MATLAB's, classes counted from 1."""
    from scipy.io import savemat

    folder = root / "stanford_cars"
    places = {"train": "devkit/cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}
    (folder / "devkit").mkdir(parents=True)
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": np.array(["Audi", "Fiat"], object)})
    for part, place in places.items():
        rows = [(f"{index}.jpg", 1 + index % 2) for index in range(4)]
        for name, _ in rows:
            write_picture(folder / f"cars_{part}" / name, 1)
        savemat(folder / place, {"annotations": np.array(rows, [("fname", object), ("class", object)])})
    data = load_data("torchvision:StanfordCars")
    assert data.train.classes == ("Audi", "Fiat")
    assert data.train.pictures == tuple(folder / "cars_train" / f"{index}.jpg" for index in range(4))
    assert data.test.labels.tolist() == [0, 1, 0, 1]


def test_a_data_set_without_parts_is_split(root: Path) -> None:
    """EuroSAT is a folder of class folders below its own."""
    write_album(root / "eurosat" / "2750", {"Forest": 10, "River": 5})
    data = load_data("torchvision:EuroSAT")
    assert data.train.classes == ("Forest", "River")
    assert (len(data.train), len(data.test)) == (12, 3)
    assert all(isinstance(file, Path) for file in data.train.pictures)


def test_files_that_torchvision_has_opened_only_stay_files(root: Path) -> None:
    """Caltech-101 opens files itself; its classes are called categories."""
    folder = root / "caltech101" / "101_ObjectCategories"
    for name, count in {"BACKGROUND_Google": 1, "anchor": 5, "ant": 5}.items():
        for number in range(1, count + 1):
            path = folder / name / f"image_{number:04d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise(number)).save(path)
    (folder / "ant" / "image_0002.jpg").write_text("no picture")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        data = load_data("torchvision:Caltech101")
    assert data.train.classes == ("anchor", "ant")
    assert all(isinstance(file, Path) for file in data.train.pictures + data.test.pictures)
    assert len(data.train) + len(data.test) == 9
    assert len(data.skipped) == 1
    assert "image_0002.jpg" in data.skipped[0]
    assert not [each for each in seen if issubclass(each.category, ResourceWarning)]


def test_pictures_that_are_no_files_are_kept_in_memory(root: Path) -> None:
    """MNIST and its kind: arrays, of which torchvision checks no hash once they are unpacked."""
    pixels, labels = noise(0, 20, 28, 28), (np.arange(20) % 10).astype(np.uint8)
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(
            struct.pack(">iiii", 2051, 20, 28, 28) + pixels.tobytes()
        )
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 2049, 20) + labels.tobytes())
        for name in ("images-idx3", "labels-idx1"):
            (raw / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(b""))
    data = load_data("torchvision:FashionMNIST")
    np.testing.assert_array_equal(np.stack([np.asarray(each) for each in data.train.pictures]), pixels)
    assert data.test.labels.tolist() == labels.tolist()
    assert data.train.classes[0] == "T-shirt/top"


def write_cifar(kind: Any, names: list[str], key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pickled batches of rows of 3x32x32, one picture of each class; their hashes replace those of the real ones."""
    root = Path(os.environ["SUBTUNE_DATA"]) / kind.base_folder
    root.mkdir(parents=True)
    for attribute in ("train_list", "test_list"):
        files = [name for name, _ in getattr(kind, attribute)]
        for seed, name in enumerate(files):
            batch = {"data": noise(seed, len(names), 3072), key: list(range(len(names)))}
            (root / name).write_bytes(pickle.dumps(batch))
        monkeypatch.setattr(kind, attribute, [[name, md5(root / name)] for name in files])
    (root / kind.meta["filename"]).write_bytes(pickle.dumps({kind.meta["key"]: names}))
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5(root / kind.meta["filename"])})


def md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()


@pytest.mark.parametrize(
    "name, key, classes, batches", [("CIFAR10", "labels", 10, 5), ("CIFAR100", "fine_labels", 100, 1)]
)
def test_cifar(name: str, key: str, classes: int, batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are planes of red, green and blue."""
    names = [f"class {index}" for index in range(classes)]
    write_cifar(_kind(name), names, key, monkeypatch)
    data = load_data(f"torchvision:{name}")
    assert data.train.classes == tuple(names)
    assert data.train.labels.tolist() == [*range(classes)] * batches
    assert data.test.labels.tolist() == [*range(classes)]
    planes = noise(batches - 1, classes, 3072)[-1].reshape(3, 32, 32)
    np.testing.assert_array_equal(np.asarray(data.train.pictures[-1]), planes.transpose(1, 2, 0))


def test_flowers(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One folder of pictures; MATLAB's tables name the parts and the classes, both counted from 1."""
    from scipy.io import savemat

    kind, folder = _kind("Flowers102"), root / "flowers-102"
    for number in range(1, 307):
        write_picture(folder / "jpg" / f"image_{number:05}.jpg", number, (4, 4))
    savemat(folder / "imagelabels.mat", {"labels": np.arange(306) % 102 + 1})
    parts = {"trnid": np.arange(1, 103), "valid": np.arange(103, 205), "tstid": np.arange(205, 307)}
    savemat(folder / "setid.mat", parts)
    files = {key: (name, md5(folder / name)) for key, (name, _) in kind._file_dict.items() if key != "image"}
    monkeypatch.setattr(kind, "_file_dict", {**kind._file_dict, **files})
    data = load_data("torchvision:Flowers102")
    assert (len(data.train.classes), data.train.classes[0]) == (102, "pink primrose")
    assert data.train.labels.tolist() == data.test.labels.tolist() == [*range(102)]
    assert data.train.pictures == tuple(folder / "jpg" / f"image_{n:05}.jpg" for n in range(1, 103))
    assert data.test.pictures[-1] == folder / "jpg" / "image_00306.jpg"


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100", "Flowers102", "Caltech101", "DTD", "StanfordCars"])
def test_what_cannot_be_downloaded_is_unavailable_in_one_line(
    offline: None, root: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(
        Unavailable, match=f"torchvision's {name} is not in .*data and cannot be downloaded"
    ) as caught:
        load_data(f"torchvision:{name}")
    assert "\n" not in caught.value.message + caught.value.hint
    assert "SUBTUNE_DATA" in caught.value.hint
    assert capsys.readouterr().out == ""


def test_damaged_files_of_a_data_set_are_not_taken_for_it(offline: None, root: Path) -> None:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in (
        "data_batch_1",
        "data_batch_2",
        "data_batch_3",
        "data_batch_4",
        "data_batch_5",
        "test_batch",
    ):
        (folder / name).write_bytes(b"not what it should be")
    with pytest.raises(Unavailable, match="CIFAR10 is not in"):
        load_data("torchvision:CIFAR10")


@pytest.mark.parametrize(
    "name, suggestion",
    [("CIFAR11", "CIFAR10"), ("flowers", "Flowers102"), ("FakeData", ""), ("CocoDetection", "")],
)
def test_unknown_data_sets_are_refused(name: str, suggestion: str) -> None:
    with pytest.raises(InputError, match=f"torchvision has no data set '{name}'") as caught:
        load_data(f"torchvision:{name}")
    assert suggestion in caught.value.hint


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("CIFAR100", ["train", "train"]),
        ("QMNIST", ["train", "train"]),
        ("StanfordCars", ["split", "split"]),
        ("OxfordIIITPet", ["split", "split"]),
        ("ImageNet", ["split", "split"]),
        ("SUN397", [None]),
    ],
)
def test_how_parts_of_a_data_set_are_picked(name: str, arguments: list[str | None]) -> None:
    kind = _kind(name)
    assert [next(iter(choices[0]), None) for choices in _choices(kind)] == arguments
    for argument in filter(None, arguments):
        assert argument in inspect.signature(kind).parameters


# The user's own code

HEAD = """
from pathlib import Path
import numpy as np
from PIL import Image
from subtune_deploy.data.dataset import Data, Dataset
pixels = np.random.default_rng(0).integers(0, 256, (12, 6, 5), np.uint8)
labels = np.arange(12) % 2
"""

MAP = """
class Pictures:
    classes = ("left", "right")
    def __len__(self):
        return 12
    def __getitem__(self, index):
        return {picture}, {label}
def make():
    return Pictures()
"""


NAMES = '("left", "right")'
NAMELESS = MAP.replace("classes =", "names =")


def factory(tmp_path: Path, body: str) -> str:
    (tmp_path / "mine.py").write_text(HEAD + body)
    return f"{tmp_path / 'mine.py'}:make"


def test_a_factory_returns_a_set_which_is_split(tmp_path: Path) -> None:
    data = load_data(
        factory(tmp_path, "def make(): return Dataset(tuple(pixels), labels, ('left', 'right'))")
    )
    assert (len(data.train), len(data.test)) == (10, 2)
    assert data.train.classes == ("left", "right")


def test_or_sets_which_are_taken_as_given(tmp_path: Path) -> None:
    body = """
def make():
    parts = [Dataset(tuple(pixels[part]), labels[part], ('left', 'right')) for part in (slice(8), slice(8, 12))]
    return Data(*parts, ('one was no picture',))
"""
    data = load_data(factory(tmp_path, body))
    np.testing.assert_array_equal(np.stack([np.asarray(each) for each in data.train.pictures]), _pixels()[:8])
    assert (len(data.train), len(data.test), data.skipped) == (8, 4, ("one was no picture",))


def _pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (12, 6, 5), np.uint8)


def test_a_factory_s_files_are_checked_and_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(12):
        write_picture(tmp_path / f"{index}.png", index)
    (tmp_path / "3.png").write_text("no picture")
    monkeypatch.chdir(tmp_path)
    body = "def make(): return Dataset(tuple(Path(f'{n}.png') for n in range(12)), labels, ('a', 'b'))"
    data = load_data(factory(tmp_path, body))
    assert len(data.train) + len(data.test) == 11
    assert "3.png is not a picture" in data.skipped[0]
    assert all(isinstance(file, Path) and file.is_absolute() for file in data.train.pictures)


@pytest.mark.parametrize(
    "picture",
    ["Image.fromarray(pixels[index])", "pixels[index]", "Image.fromarray(pixels[index]).convert('RGB')"],
)
def test_map_style_data_sets_are_read(tmp_path: Path, picture: str) -> None:
    data = load_data(factory(tmp_path, MAP.format(picture=picture, label="labels[index]")), train=8, test=4)
    assert data.train.classes == ("left", "right")
    known = {each.tobytes(): label for each, label in zip(_pixels(), np.arange(12) % 2, strict=True)}
    for pixels, label in zip(data.train.pictures, data.train.labels, strict=True):
        plane = np.asarray(pixels) if "RGB" not in picture else np.asarray(pixels)[:, :, 0]
        assert known[plane.tobytes()] == label


def test_classes_without_names_are_called_by_number(tmp_path: Path) -> None:
    body = NAMELESS.format(picture="pixels[index]", label="index % 3")
    assert load_data(factory(tmp_path, body)).train.classes == ("0", "1", "2")


def test_names_of_classes_may_be_an_array(tmp_path: Path) -> None:
    each = MAP.format(picture="pixels[index]", label="labels[index]")
    assert load_data(factory(tmp_path, each.replace(NAMES, "np.unique(labels)"))).train.classes == ("0", "1")
    part = "Dataset(tuple(pixels), labels, np.unique(labels))"
    assert load_data(factory(tmp_path, f"def make(): return Data({part}, {part})")).test.classes == ("0", "1")


def test_a_torch_data_set_of_a_folder_works_as_one_of_ours(tmp_path: Path) -> None:
    write_album(tmp_path / "album", {"cat": 5, "dog": 5})
    body = f"""
def make():
    from torchvision.datasets import ImageFolder
    return ImageFolder({str(tmp_path / "album")!r})
"""
    data = load_data(factory(tmp_path, body))
    assert data.train.classes == ("cat", "dog")
    assert (len(data.train), len(data.test)) == (8, 2)


def test_what_cannot_be_read_is_skipped_and_named(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_text("no picture")
    picture = f"Image.open({str(tmp_path / '0.png')!r}) if index == 4 else pixels[index]"
    data = load_data(factory(tmp_path, MAP.format(picture=f"({picture})", label="labels[index]")))
    assert len(data.train) + len(data.test) == 11
    assert data.skipped[0].startswith("picture 4 of ")
    data = load_data(
        factory(tmp_path, MAP.format(picture="pixels[index, :, :(index != 5)]", label="labels[index]"))
    )
    assert "picture 5 of " in data.skipped[0]


@pytest.mark.parametrize(
    "body, message",
    [
        ("def make(): return 3", "mine.py:make returned int"),
        ("def make(): raise KeyError('x')", "mine.py:make failed: KeyError: 'x'"),
        ("def other(): ...", "mine.py has no factory 'make'"),
        ("1 / 0", "mine.py cannot be run: ZeroDivisionError"),
        ("def make(): return Dataset(tuple(pixels), labels + 1, ('a', 'b'))", r"6 labels are outside 0\.\.1"),
        ("def make(): return Dataset(tuple(pixels), labels * 0, ('a',))", "has 1 classes where at least 2"),
        (MAP.format(picture="pixels[index] / 255.0", label="0"), "class 'left' of .* has 0 readable pictures"),
        (MAP.format(picture="'0.png'", label="0"), "item 0 of .* is no .picture, label.: str is no picture"),
        (MAP.format(picture="pixels[index]", label="0.5"), "item 0 of .* is no .picture, label."),
        (MAP.format(picture="pixels[index]", label="index"), r"10 labels are outside 0\.\.1"),
        (MAP.format(picture="pixels[index]", label="2**70"), "item 0 of .* is no .picture, label.: .* too large"),
        (NAMELESS.format(picture="pixels[index]", label="index * 90_000"), "label 990000 makes 990001 classes of 12"),
        (MAP.format(picture="pixels[index]", label="index % 2").replace(NAMES, "2"), "the classes of .* are 2"),
        (MAP.format(picture="pixels[index]", label="{}['x']"), "item 0 of .* is no .picture, label.: 'x'"),
        (MAP.format(picture="pixels[index]", label="labels[index]").replace("return 12", "return 0"), "has 0 readable"),
    ],
)  # fmt: skip
def test_factories_that_return_no_data_are_refused(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_data(factory(tmp_path, body))
    assert "\n" not in caught.value.message + caught.value.hint


def test_modules_that_are_not_there_are_refused() -> None:
    with pytest.raises(InputError, match="'no_such_module' cannot be imported"):
        load_data("no_such_module:make")
    with pytest.raises(InputError, match=r"nowhere\.py does not exist"):
        load_data("nowhere.py:make")
