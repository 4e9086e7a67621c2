"""Data sets of torchvision and of the user's own code, as ours."""

from __future__ import annotations

import inspect
import operator
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ..errors import InputError, PictureError, Unavailable, did_you_mean
from ..factory import call
from ..pictures import as_image
from .dataset import Data, Dataset, Picture, Pool, numbered, pooled

TRAINING, TESTING = ("trainval", "train"), ("test", "val", "valid")
"""Values of `split`, the first that a data set knows being taken."""

OWN = "name a function of your own, as in file.py:factory, that returns subtune_deploy.data.dataset.Dataset"


def from_factory(origin: str, name: str) -> Pool:
    """What function `name` of `origin` returns: Data, Dataset, or a map-style data set of (picture, label).

    A map-style data set is read once and kept in memory. Raises InputError.
    """
    found = call(origin, name)
    if isinstance(found, Data):
        return pooled([_absolute(found.train), _absolute(found.test)], found.skipped)
    if isinstance(found, Dataset):
        return pooled([_absolute(found)])
    if not (hasattr(found, "__getitem__") and hasattr(found, "__len__")):
        raise InputError(
            f"{origin}:{name} returned {type(found).__name__}",
            "return Data or Dataset of subtune_deploy.data.dataset, or a map-style data set of (picture, label)",
        )
    items, skipped = _items(found, f"{origin}:{name}")
    return pooled([_dataset(items, _classes(found, items, f"{origin}:{name}"))], skipped)


def from_torchvision(name: str) -> Pool:
    """`torchvision.datasets.NAME`, from $SUBTUNE_DATA or ~/.cache/subtune-deploy/data, or downloaded into it.

    `train` and `test` (or `val`) are taken as they are given; `trainval` where there is one. Its files are taken
    to be readable, since torchvision checks its archives.
    Raises InputError (no such data set, or one that needs more than a root), Unavailable.
    """
    kind = _kind(name)
    root = Path(
        os.environ.get("SUBTUNE_DATA") or Path.home() / ".cache" / "subtune-deploy" / "data"
    ).absolute()
    found = [_made(kind, root, choices) for choices in _choices(kind)]
    source = f"torchvision:{kind.__name__}"
    read = [_items(each, source) for each in found]
    classes = _classes(found[0], [item for items, _ in read for item in items], source)
    sets = [_dataset(items, classes) for items, _ in read]
    skipped = tuple(line for _, lines in read for line in lines)
    return pooled(sets, skipped)


def _kind(name: str) -> Any:
    try:
        from torchvision import datasets
    except ImportError as error:
        raise Unavailable("torchvision is not installed", "pip install 'subtune-deploy[export]'") from error
    kinds = {
        each.__name__: each
        for each in vars(datasets).values()
        if inspect.isclass(each) and issubclass(each, datasets.VisionDataset) and _needs_a_root_alone(each)
    }
    spelt = {each.lower(): each for each in kinds}
    if name.lower() not in spelt:
        raise InputError(
            f"torchvision has no data set {name!r} that needs no more than a folder",
            did_you_mean(name, kinds),
        )
    return kinds[spelt[name.lower()]]


def _needs_a_root_alone(kind: type) -> bool:
    parameters = inspect.signature(kind).parameters.values()
    needed = {
        each.name for each in parameters if each.default is each.empty and each.kind is not each.VAR_KEYWORD
    }
    return needed == {"root"}


def _takes(kind: type, argument: str) -> bool:
    """Itself, or the class that it hands `**kwargs` on to."""
    return any(argument in inspect.signature(each).parameters for each in kind.__mro__[:2])


def _choices(kind: type) -> tuple[tuple[dict[str, Any], ...], ...]:
    """For each part of a data set, arguments that may pick it."""
    if _takes(kind, "train"):
        return ({"train": True},), ({"train": False},)
    if _takes(kind, "split"):
        return tuple({"split": value} for value in TRAINING), tuple({"split": value} for value in TESTING)
    return (({},),)


def _made(kind: Any, root: Path, choices: tuple[dict[str, Any], ...]) -> Any:
    """The data set, with the first of `choices` that it knows."""
    files = {"loader": Path} if "loader" in inspect.signature(kind).parameters else {}  # named, not decoded
    for choice in choices:
        try:
            return _opened(kind, root, files | choice)
        except ValueError:  # its `split` has no such value
            continue
    raise InputError(f"torchvision's {kind.__name__} does not name its parts as usual", OWN)


def _opened(kind: Any, root: Path, options: dict[str, Any]) -> Any:
    try:
        return kind(str(root), **options)
    except (RuntimeError, OSError) as error:  # not there yet, or damaged
        if not _takes(kind, "download"):
            raise _absent(kind, root, error) from error
    except ImportError as error:
        raise Unavailable(
            f"torchvision's {kind.__name__} needs {error.name}", f"pip install {error.name}"
        ) from error
    try:
        return kind(str(root), download=True, **options)
    except (RuntimeError, OSError, ValueError, ImportError) as error:
        raise _absent(kind, root, error) from error


def _absent(kind: type, root: Path, error: Exception) -> Unavailable:
    return Unavailable(
        f"torchvision's {kind.__name__} is not in {root} and cannot be downloaded: {error}",
        "put it there, in the layout that torchvision writes, or set SUBTUNE_DATA",
    )


Items: TypeAlias = list[tuple[Picture, int]]


def _items(found: Any, source: str) -> tuple[Items, tuple[str, ...]]:
    """((picture, label), what could not be read)"""
    items: Items = []
    skipped: list[str] = []
    for index in range(len(found)):
        try:
            picture, label = found[index]
            items.append((_picture(picture), int(np.int64(operator.index(label)))))
        except (PictureError, OSError, SyntaxError) as error:  # Pillow's too, for files that are none
            skipped.append(f"picture {index} of {source} cannot be read: {error}")
        except Exception as error:
            raise InputError(
                f"item {index} of {source} is no (picture, label): {error}",
                "give pictures without transforms, and whole numbers",
            ) from error
    return items, tuple(skipped)


def _picture(picture: Any) -> Picture:
    """A file where it is one that was not decoded yet. Raises PictureError, TypeError."""
    from PIL import Image, ImageFile

    if isinstance(picture, ImageFile.ImageFile) and picture.fp is not None:
        file = Path(os.fsdecode(picture.filename))
        if file.is_file():
            picture.close()
            return file.absolute()
    if isinstance(picture, Path):
        return picture.absolute()
    if isinstance(picture, Image.Image):
        picture = np.asarray(picture if picture.mode == "L" else picture.convert("RGB"))
    if not isinstance(picture, np.ndarray):
        raise TypeError(f"{type(picture).__name__} is no picture")
    as_image(picture, 3)
    return picture


def _absolute(data: Dataset) -> Dataset:
    """With files that other processes find too, and names of classes that are text."""
    pictures = tuple(each.absolute() if isinstance(each, Path) else each for each in data.pictures)
    return replace(data, pictures=pictures, classes=tuple(map(str, data.classes)))


def _classes(found: Any, items: Items, source: str) -> tuple[str, ...]:
    """The names that the data set has for them, else numbers. Raises InputError."""
    names = _names(found, "classes", source) or _names(found, "categories", source)
    if not names:
        return numbered([label for _, label in items])
    return tuple(str(name[0] if isinstance(name, tuple) else name) for name in names)


def _names(found: Any, attribute: str, source: str) -> tuple[Any, ...]:
    names = getattr(found, attribute, None)
    try:
        return () if names is None else tuple(names)
    except TypeError as error:
        raise InputError(
            f"the {attribute} of {source} are {names!r}", "give a name for each class, as in ('cat', 'dog')"
        ) from error


def _dataset(items: Items, classes: tuple[str, ...]) -> Dataset:
    labels = np.array([label for _, label in items], np.int64)
    return Dataset(tuple(picture for picture, _ in items), labels, classes)
