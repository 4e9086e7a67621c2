"""Models and data from the user's own code: `package.module:factory` and `file.py:factory`."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

from torch import nn

from .errors import ModelError, SubtuneError, did_you_mean
from .spec import InputSpec

GRAY = ((0.449,), (0.226,))
"""Mean and deviation of ImageNet's grey values, for inputs that have not three channels."""


def call_factory(origin: str, name: str) -> nn.Module:
    """The module that function `name` of `origin` (a dotted module, or a path that ends in .py) returns.

    Raises ModelError as `call` does, and where it returns something else.
    """
    module = call(origin, name)
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"factory {origin}:{name} returned {type(module).__name__}", "it must return a torch.nn.Module"
        )
    return module


def call(origin: str, name: str) -> object:
    """What function `name` of `origin` returns.

    It is called without arguments; its code may import what lies beside the file, or in the current folder.
    Raises ModelError where there is no such function, and where it fails.
    """
    with _on_path(Path(origin).resolve().parent if origin.endswith(".py") else Path.cwd()):
        module = _from_path(Path(origin)) if origin.endswith(".py") else _imported(origin)
        found = getattr(module, name, None)
        if not callable(found):
            known = [
                each for each, value in vars(module).items() if callable(value) and not each.startswith("_")
            ]
            raise ModelError(f"{origin} has no factory {name!r}", did_you_mean(name, known))
        return _called(f"{origin}:{name}", found)


@contextlib.contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))


def _from_path(path: Path) -> ModuleType:
    if not path.is_file():
        raise ModelError(f"{path} does not exist, so it has no factory", "check the path before the colon")
    name = f"_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses and pickle look their module up
    try:
        SourceFileLoader(name, str(path)).exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ModelError(f"{path} cannot be run: {_fault(error)}", f"python {path} shows where") from error
    return module


def _imported(origin: str) -> ModuleType:
    try:
        return importlib.import_module(origin)
    except (Exception, SystemExit) as error:
        raise ModelError(
            f"module {origin!r} cannot be imported: {_fault(error)}",
            "give package.module:factory that python can import from here, or file.py:factory",
        ) from error


def _called(spec: str, factory: Callable[[], object]) -> object:
    try:
        return factory()
    except SubtuneError:
        raise  # it says what is wrong itself
    except (Exception, SystemExit) as error:
        raise ModelError(
            f"factory {spec} failed: {_fault(error)}", "it is called without arguments"
        ) from error


def _fault(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def declared_input(module: nn.Module) -> tuple[InputSpec, tuple[str, ...]]:
    """(input, no labels): the module's own `input_size`, `input_mean`, `input_std`, where it has them.

    Otherwise 224 pixels, the channels of its first convolution, and ImageNet's mean and deviation.
    """
    stem = next((layer for layer in module.modules() if isinstance(layer, nn.Conv2d)), None)
    own = InputSpec((stem.in_channels if stem else 3, 224, 224))
    shape = tuple(getattr(module, "input_size", own.shape))
    gray = len(shape) > 0 and shape[0] != 3
    mean = tuple(getattr(module, "input_mean", GRAY[0] * shape[0] if gray else own.mean))
    std = tuple(getattr(module, "input_std", GRAY[1] * shape[0] if gray else own.std))
    if len(shape) != 3 or min(shape) < 1 or not len(mean) == len(std) == shape[0]:
        raise ModelError(
            f"the factory's module declares input_size {shape}, input_mean {mean}, input_std {std}",
            "input_size is (channels, height, width); mean and std have one value per channel",
        )
    return InputSpec(shape, mean, std), ()
