"""The table of backends. A backend's module, and its library, are imported when it is asked for by name."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import cast

from ..errors import InputError, Unavailable, did_you_mean
from .base import Availability, Backend


@dataclass(frozen=True)
class Known:
    """A row of the table. `where`: the module of this package, or MODULE:OBJECT. `tf32`: whether a recipe's option of
    this name lets products of fp32 be rounded to ten bits."""

    precisions: tuple[str, ...]
    install: str
    where: str
    tf32: bool = False


_NVIDIA = ("fp32", "fp16", "bf16", "int8")

KNOWN = {
    "onnxruntime": Known(("fp32", "fp16", "int8"), "pip install onnxruntime", "onnxruntime"),
    "openvino": Known(("fp32", "bf16", "fp16", "int8"), "pip install openvino", "openvino"),
    "torch": Known(("fp32",), "pip install torch", "torch"),
    "tensorrt": Known(_NVIDIA, "pip install tensorrt", "tensorrt:STANDARD", True),
    "tensorrt_rtx": Known(_NVIDIA, "pip install tensorrt-rtx-cu13", "tensorrt:RTX", True),
}


def probe(name: str) -> Availability:
    """Whether backend `name` works here, and what it needs if not. Raises InputError for an unknown name."""
    if name not in KNOWN:
        raise InputError(f"backend {name!r} is unknown", did_you_mean(name, KNOWN))
    return _backend(name).probe()


def get_backend(name: str) -> Backend:
    """The backend `name`, known to work here. Raises Unavailable, or InputError for an unknown name."""
    available = probe(name)
    if not available.ok:
        raise Unavailable(available.detail, available.remedy)
    return _backend(name)


def probe_library(name: str) -> Availability:
    """Import the library of backend `name`: the first step of every backend's own `probe`."""
    try:
        version = str(import_module(name).__version__)
    except ModuleNotFoundError:
        return Availability(False, "", f"backend {name} is not installed", KNOWN[name].install)
    except (ImportError, OSError) as error:
        again = f"{KNOWN[name].install} --force-reinstall"
        return Availability(False, "", f"backend {name} cannot be imported: {error}", again)
    return Availability(True, version.split("-")[0].split("+")[0], "", "")


def _backend(name: str) -> Backend:
    module, _, attribute = KNOWN[name].where.partition(":")
    found = import_module(f".{module}", __name__)
    return cast(Backend, getattr(found, attribute) if attribute else found)
