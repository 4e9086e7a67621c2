"""What the first bytes of an engine file say, and the refusals that follow from them before it is loaded.

The layout is not documented. Tag, serialization version and library version of standard TensorRT are those that
NVIDIA's own `trtexec --getPlanVersionOnly` reads (samples/common/sampleEngines.cpp); the size and the capabilities of
TensorRT-RTX were found by comparing engines, and tests/test_tensorrt_builder.py compares them again with whatever
version is installed.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...errors import BundleError
from ..base import COMPILE_AGAIN
from . import messages
from .settings import RTX, STANDARD

LENGTH = 64
"""Bytes of the header of TensorRT-RTX; the fields of standard TensorRT that are read here lie in the first 28."""

TAGS: Mapping[bytes, str] = {b"vtrt": RTX, b"ftrt": STANDARD}
SERIALIZATION = 0
"""The only version of the layout that is known."""

NEWER = "newer"
CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1", NEWER)
"""By bit of the mask of TensorRT-RTX; the last is set where the recipe names no capabilities."""


@dataclass(frozen=True)
class Header:
    """`library`: which one wrote the file. `version` of that library, four numbers. `size`: bytes that the whole file
    must have, None where the header does not say. `capabilities`: GPUs that it is for; empty: not said."""

    library: str
    version: str
    size: int | None
    capabilities: tuple[str, ...]


def read(path: Path) -> Header:
    """The header of an engine file. Raises BundleError if it is none, or is cut short."""
    start = _first_bytes(path)
    library = TAGS.get(start[:4])
    if library is None:
        raise BundleError(f"{path} is no engine of TensorRT: it starts with {start[:4]!r}", COMPILE_AGAIN)
    if len(start) < LENGTH:
        raise BundleError(f"{path} is cut short: it has {len(start)} bytes", COMPILE_AGAIN)
    layout = struct.unpack_from("<I", start, 4)[0]
    if layout != SERIALIZATION:
        raise BundleError(f"{path} has layout {layout}, {SERIALIZATION} is known", COMPILE_AGAIN)
    version = ".".join(str(number) for number in start[24:28])
    if library == STANDARD:
        return Header(library, version, None, ())
    size, mask = struct.unpack_from("<Q", start, 16)[0], struct.unpack_from("<I", start, 32)[0]
    return Header(
        library, version, size, tuple(name for bit, name in enumerate(CAPABILITIES) if mask >> bit & 1)
    )


def check(
    path: Path, api: Any, capability: str | None = None, wanted: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Facts about an engine file, if library `api` and a GPU of `capability` ("8.9"; None: not known) can run it.

    `wanted`: capabilities that the recipe names; they count where the header says none, as that of standard TensorRT.
    Raises BundleError: no engine, cut short, altered in length, of the other library, of another version, for other
    GPUs.
    """
    header = read(path)
    size = path.stat().st_size
    if header.library != api.__name__:
        raise BundleError(f"{path} is an engine of {header.library}, not of {api.__name__}", COMPILE_AGAIN)
    if header.size is not None and header.size != size:
        raise BundleError(f"{path} has {size} bytes, its header says {header.size}", COMPILE_AGAIN)
    if not same_version(header.version, str(api.__version__)):
        raise BundleError(
            f"{path} was built by {header.library} {header.version}, here is {api.__version__}", COMPILE_AGAIN
        )
    capabilities = header.capabilities or wanted
    if capability is not None and not serves(capabilities, capability):
        given = ", ".join(capabilities)
        raise BundleError(
            f"{path} is for GPUs of capability {given}, this one has {capability}",
            "compile it for this GPU: option capabilities of the recipe",
        )
    _ask_library(path, api)
    return {**asdict(header), "size": size, "capabilities": list(capabilities)}


def serves(capabilities: tuple[str, ...], capability: str) -> bool:
    """Whether a GPU of `capability` can run an engine for `capabilities`, as far as a header can tell."""
    if not capabilities or capability in capabilities:
        return True
    return NEWER in capabilities and _number(capability) > max(map(_number, CAPABILITIES[:-1]))


def _number(capability: str) -> tuple[int, ...]:
    return tuple(int(part) for part in capability.split("."))


def same_version(one: str, other: str) -> bool:
    """Whether two versions agree in major, minor and patch, which is what an engine asks for."""
    return _first_three(one) == _first_three(other)


def _first_three(version: str) -> list[str]:
    return version.split("+")[0].split(".")[:3]


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(LENGTH)
    except OSError as error:
        raise BundleError(f"engine file {path} cannot be read: {error.strerror}", COMPILE_AGAIN) from error


def _ask_library(path: Path, api: Any) -> None:
    """What the library itself holds against the header; only its verdicts that need no GPU are heard.

    Without a GPU, and on GPUs that it does not list, it calls every engine invalid.
    """
    if not hasattr(api.Runtime, "get_engine_validity"):
        return
    logger = messages.logger(api)
    runtime = api.Runtime(logger)
    _validity, diagnostics = runtime.get_engine_validity(_first_bytes(path))
    logger.take()
    reasons = api.EngineInvalidityDiagnostics
    for member, what in (
        (reasons.MALFORMED_ENGINE, "malformed"),
        (reasons.VERSION_MISMATCH, "of another version"),
    ):
        if int(diagnostics) & int(member):
            raise BundleError(f"{path} is {what}, says {api.__name__} {api.__version__}", COMPILE_AGAIN)
