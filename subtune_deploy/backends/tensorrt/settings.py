"""The options of a TensorRT recipe: read from its strings and numbers, checked, refused with the reason.

Nothing here needs TensorRT: a recipe is wrong, or right, on any machine. What only the library can say (does
it know capability 9.9?) is checked in `builder`, when an engine is built.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from ...errors import TargetError, did_you_mean
from ..base import Target

STANDARD, RTX = "tensorrt", "tensorrt_rtx"

DEFAULT_PROFILE = (1, 4, 16)
"""Smallest, optimised and largest batch of a graph whose batch is dynamic, where the recipe gives none."""

HARDWARE = ("none", "ampere_plus", "same_compute_capability")
VERBOSITY = ("layer_names_only", "none", "detailed")


@dataclass(frozen=True)
class Settings:
    """How an engine is built and run. None leaves the choice to TensorRT.

    `capabilities`: which GPUs the engine is for ("8.9"). RTX: it is built for these; empty: for all that the library
    knows. Standard: the GPU that builds and runs it must be one of these; empty: it may be any.
    `hardware_compatibility`: standard only. `auxiliary_streams`: 0 forces one stream. `workspace_mib`: MiB.
    `timing_cache`: standard only, a file that is read and written back. `optimization_level`: 0 to 5. `tf32`:
    may fp32 products be rounded to ten bits. `profile`: smallest, optimised and largest batch of a dynamic
    graph. `refit`: the weights of forks and heads, and no others, can be replaced in the engine.
    """

    capabilities: tuple[str, ...] = ()
    hardware_compatibility: str = "none"
    auxiliary_streams: int | None = None
    workspace_mib: int | None = None
    timing_cache: str | None = None
    optimization_level: int | None = None
    profiling_verbosity: str = "layer_names_only"
    tf32: bool = False
    profile: tuple[int, int, int] | None = None
    refit: bool = False
    cuda_graph: bool = False


ONLY: Mapping[str, tuple[str, str]] = {
    "hardware_compatibility": (STANDARD, "say which GPUs with capabilities"),
    "timing_cache": (
        STANDARD,
        "it has no effect on an engine of TensorRT-RTX, and makes the build need a GPU",
    ),
}
"""Options that one of the two libraries has: which, and what to say to who gave it to the other."""


class _Unfit(ValueError):  # noqa: N818 - the value is what does not fit
    """What was expected instead, for the hint."""


def read(target: Target, name: str) -> Settings:
    """The settings of `target` for the library `name`. Raises TargetError."""
    known = [field.name for field in fields(Settings)]
    values: dict[str, Any] = {}
    for key, value in target.options.items():
        if key not in known:
            raise TargetError(f"target {target.name}: unknown option {key!r}", did_you_mean(key, known))
        if key in ONLY and ONLY[key][0] != name:
            raise TargetError(f"target {target.name}: {name} takes no option {key!r}", ONLY[key][1])
        try:
            values[key] = READERS[key](value)
        except _Unfit as error:
            raise TargetError(f"target {target.name}: option {key} is {value!r}", str(error)) from error
    return Settings(**values)


def _capabilities(value: object) -> tuple[str, ...]:
    hint = 'give compute capabilities with blanks between them, as in "8.6 8.9 12.0"'
    words = value.split() if isinstance(value, str) else []
    if not words or len(set(words)) < len(words):
        raise _Unfit(hint)
    if not all(re.fullmatch(r"[1-9]\d?\.\d", word) for word in words):
        raise _Unfit(hint)
    return tuple(words)


def _profile(value: object) -> tuple[int, int, int]:
    hint = 'give the smallest, the optimised and the largest batch, as in "1 4 16"'
    words = value.split() if isinstance(value, str) else []
    if len(words) != 3 or not all(re.fullmatch(r"[1-9]\d{0,8}", word) for word in words):
        raise _Unfit(hint)
    least, best, most = (int(word) for word in words)
    if not least <= best <= most:
        raise _Unfit(f"{hint}: in rising order")
    return least, best, most


def _streams(value: object) -> int | None:
    return (
        None if value == "auto" else _whole(0, 128, 'give a count, 0 for a single stream, or "auto"')(value)
    )


def _path(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _Unfit("give the path of a file")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise _Unfit("give true or false")
    return value


def _whole(least: int, most: int, hint: str) -> Callable[[object], int]:
    def reader(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise _Unfit(hint)
        return value

    return reader


def _one_of(names: tuple[str, ...]) -> Callable[[object], str]:
    def reader(value: object) -> str:
        if not isinstance(value, str) or value not in names:
            raise _Unfit(did_you_mean(str(value), names))
        return value

    return reader


READERS: Mapping[str, Callable[[object], Any]] = {
    "capabilities": _capabilities,
    "hardware_compatibility": _one_of(HARDWARE),
    "auxiliary_streams": _streams,
    "workspace_mib": _whole(1, 1 << 20, "give whole MiB, as in 1024"),
    "timing_cache": _path,
    "optimization_level": _whole(0, 5, "give 0 (quick to build) to 5 (quick to run)"),
    "profiling_verbosity": _one_of(VERBOSITY),
    "tf32": _flag,
    "profile": _profile,
    "refit": _flag,
    "cuda_graph": _flag,
}
"""One reader for every field of `Settings`."""
