"""Frozen records that every stage shares. No torch, no numpy: an edge device imports this too."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields

from .errors import InputError, LayersError, TaskError, did_you_mean

BASE = "base"
"""Name of the deployed task: its version of every weight, its stream and its output."""

GRAPH, LONE_GRAPH = "graph.onnx", "base.onnx"
"""In a bundle: the graph that answers every task, and the backbone alone."""

INPUT = "input"
"""Name of the one input of every graph."""

AUGMENTATIONS = ("none", "crop", "crop-flip", "crop-flip-rotate")
"""How training pictures are varied."""

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


@dataclass(frozen=True)
class Pruning:
    """How a fork's blocks are made thinner. Raises InputError.

    At least `round_to` channels stay in a layer that has so many, and a layer never loses more than was asked
    for: kept widths are rounded up. `of` other than channels: the share of channels is searched with which the
    blocks of the fork keep at most 1 - `ratio` of their multiply-adds, or parameters.
    """

    ratio: float = field(metadata={"help": "Share that goes, between 0 and 1."})
    scope: str = field(
        default="local",
        metadata={
            "choices": ("local", "global"),
            "help": "Channels are ranked within each layer, or over all layers of the fork.",
        },
    )
    norm: str = field(
        default="l1",
        metadata={"choices": ("l1", "l2"), "help": "Size of a channel's weights, by which it is ranked."},
    )
    of: str = field(
        default="channels",
        metadata={"choices": ("channels", "macs", "parameters"), "help": "What the ratio is a share of."},
    )
    round_to: int = field(
        default=8,
        metadata={
            "help": "Kept widths are multiples of this, rounded up; 1: exactly as asked; a target's name: what its "
            "recipe says.",
            "default": "8; of optimize what its target's recipe says",
        },
    )
    when: str = field(
        default="before",
        metadata={
            "choices": ("before", "after"),
            "help": "Rank by the base's weights before training, or by trained ones, which are trained again.",
        },
    )
    outer: bool = field(
        default=False,
        metadata={"help": "Also thin what blocks hand on, where it leads to the task's own weights alone."},
    )

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:  # NaN too
            raise InputError(
                f"pruning ratio {self.ratio} is not between 0 and 1", "give the share that goes, as in 0.5"
            )
        if self.round_to < 1:
            raise InputError(
                f"widths cannot be rounded to multiples of {self.round_to}", "give 8, or 1 for any width"
            )
        for each in fields(self):
            choices, given = each.metadata.get("choices"), getattr(self, each.name)
            if choices and given not in choices:
                raise InputError(f"pruning {each.name} {given!r} is unknown", did_you_mean(given, choices))

    def __str__(self) -> str:
        """`pruned 0.5 local l1`, and what is not as usual."""
        words = (
            f"pruned {self.ratio:g} {self.scope} {self.norm}",
            "" if self.of == "channels" else f"of {self.of}",
            "" if self.round_to == Pruning.round_to else f"rounded to {self.round_to}",
            "" if self.when == "before" else self.when,
            "outer" if self.outer else "",
        )
        return " ".join(filter(None, words))


def parse_layers(text: str, count: int) -> tuple[int, ...]:
    """`"13-14"`, `"2,14"` or `"1,3-5"` -> sorted block indices within 1..count."""
    hint = f"give blocks of this model, 1 to {count}, as in --layers 2 or 2,{count} or {max(1, count - 1)}-{count}"
    if not text.strip():
        raise LayersError("the layer range is empty", hint)
    chosen: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,99})\s*(?:-\s*(\d{1,99})\s*)?", part)
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


def format_forks(forks: Iterable[Iterable[int]]) -> str:
    """Those of a graph's tasks, each once: ((13, 14), (16,), (16,)) -> `"13-14 + 16"`."""
    return " + ".join(dict.fromkeys(map(format_layers, forks)))


def check_task_name(name: str) -> str:
    """A task names an output of the graph and a folder of weights, so it is kept plain."""
    if name in (BASE, INPUT, LONE) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,63}", name):
        raise TaskError(
            f"task name {name!r} is unfit for an output",
            f"use letters, digits and underscores, starting with a letter; {BASE} and {INPUT} are taken",
        )
    return name
