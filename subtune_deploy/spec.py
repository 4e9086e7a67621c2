"""Frozen records that every stage shares. No torch, no numpy: an edge device imports this too."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from .errors import LayersError, TaskError

BASE = "base"
"""Name of the deployed task: its version of every weight, its stream and its output."""

GRAPH = "graph.onnx"
"""In a bundle: the graph that answers every task."""

INPUT = "input"
"""Name of the one input of every graph."""

TASK_FORMAT = "subtune-task"
"""Metadata value of files that hold only what differs from their base."""

LONE = "base_alone"
"""Name under which a lowered module also answers the backbone by itself, packed with no task."""


@dataclass(frozen=True)
class InputSpec:
    """What a model expects of a picture.

    `shape` is (channels, height, width); `mean` and `std` are per channel, for values in 0..1.
    A picture is resized so that the crop covers `crop` of its shorter side, then centre-cropped.
    """

    shape: tuple[int, int, int]
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"
    crop: float = 0.875


@dataclass(frozen=True)
class Block:
    """One row of the block table: the unit that can be tuned. Bytes are of the weights as stored."""

    index: int
    name: str
    parameters: int
    macs: int
    weight_bytes: int
    output_shape: tuple[int, ...]


def parse_layers(text: str, count: int) -> tuple[int, ...]:
    """`"13-14"`, `"2,14"` or `"1,3-5"` -> sorted block indices within 1..count."""
    hint = f"give blocks of this model, 1 to {count}, as in --layers 2 or 2,{count} or {max(1, count - 1)}-{count}"
    if not text.strip():
        raise LayersError("the layer range is empty", hint)
    chosen: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if match is None:
            raise LayersError(f"layer range {text!r} is not a list of blocks", hint)
        first, last = int(match[1]), int(match[2] or match[1])
        if first > last:
            raise LayersError(f"layer range {part.strip()!r} is reversed", f"write {last}-{first}")
        if first < 1 or last > count:
            raise LayersError(f"layer range {part.strip()!r} is outside 1..{count}", hint)
        chosen.update(range(first, last + 1))
    return tuple(sorted(chosen))


def format_layers(indices: Iterable[int]) -> str:
    """The inverse of `parse_layers`: (2, 13, 14) -> `"2,13-14"`; nothing -> `"none"`."""
    runs: list[list[int]] = []
    for index in sorted(set(indices)):
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return ",".join(f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs) or "none"


def check_task_name(name: str) -> str:
    """A task names an output of the graph and a folder of weights, so it is kept plain."""
    if name in (BASE, INPUT, LONE) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,63}", name):
        raise TaskError(
            f"task name {name!r} is unfit for an output",
            f"use letters, digits and underscores, starting with a letter; {BASE} and {INPUT} are taken",
        )
    return name
