"""The table of backends. A backend's module, and its library, are imported when it is asked for by name."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import cast

from ..errors import InputError, Unavailable, did_you_mean
from .base import Availability, Backend


@dataclass(frozen=True)
class Known:
    """A row of the table. `install` is empty where there is no implementation yet."""

    precisions: tuple[str, ...]
    install: str


_PLANNED = Known(("fp32", "fp16", "bf16"), "")

KNOWN = {
    "onnxruntime": Known(("fp32",), "pip install onnxruntime"),
    "openvino": Known(("fp32", "bf16", "fp16"), "pip install openvino"),
    "torch": Known(("fp32",), "pip install torch"),
    "tensorrt": _PLANNED,
    "tensorrt_rtx": _PLANNED,
}


def probe(name: str) -> Availability:
    """Whether backend `name` works here, and what it needs if not. Raises InputError for an unknown name."""
    if name not in KNOWN:
        raise InputError(f"backend {name!r} is unknown", did_you_mean(name, KNOWN))
    if not KNOWN[name].install:
        detail = f"backend {name} is not implemented in this version, not yet run on hardware"
        implemented = ", ".join(other for other, row in KNOWN.items() if row.install)
        return Availability(False, "", detail, f"use a target of {implemented}")
    return _module(name).probe()


def get_backend(name: str) -> Backend:
    """The backend `name`, known to work here. Raises Unavailable, or InputError for an unknown name."""
    available = probe(name)
    if not available.ok:
        raise Unavailable(available.detail, available.remedy)
    return _module(name)


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


def _module(name: str) -> Backend:
    return cast(Backend, import_module(f".{name}", __name__))
