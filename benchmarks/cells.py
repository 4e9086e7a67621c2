"""The cells that benchmarks share: a network, the blocks that K tasks fork, and the engines' target."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import click
import torch
from kept_lines import Line

from subtune_deploy.backbone import Backbone, trace
from subtune_deploy.models import load_model
from subtune_deploy.spec import parse_layers
from subtune_deploy.tasks import Task, candidate_task

MODELS = ("resnet50", "efficientnet_b0", "vit_b_16")
FORKS = ("3-4", "8-9", "13-14", "15-16", "2", "2,14")
INSTEAD = {"vit_b_16": {"13-14": "10-11", "15-16": "11-12", "2,14": "2,11"}}
"""Forks at the same part of the depth, for a model that has not 16 blocks but 12."""
COUNTS = (1, 4, 8)

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True, order=True)
class Key:
    """What a line of results is about. `fork` as asked for, before `INSTEAD`."""

    model: str
    fork: str
    tasks: int
    target: str

    @classmethod
    def of(cls, line: Line) -> Key:
        """Of a line that `named` is part of."""
        return cls(line["model"], line["fork"], line["tasks"], line["target"])

    @property
    def layers(self) -> str:
        return INSTEAD.get(self.model, {}).get(self.fork, self.fork)

    @property
    def named(self) -> Line:
        """The part of a line that says what it is about."""
        fields = {"model": self.model, "fork": self.fork, "layers": self.layers, "tasks": self.tasks}
        return {**fields, "target": self.target}

    def __str__(self) -> str:
        return f"{self.model} {self.layers}, {self.tasks} task{'s' * (self.tasks > 1)}, {self.target}"


def cell_options(
    targets: Sequence[str], counts: Sequence[int] = COUNTS, forks: Sequence[str] = FORKS
) -> Callable[[Command], Command]:
    """--model, --fork, --tasks and --target, each of which may be given several times; `counts` and `forks` are what is
    measured if they are not."""
    options = (
        click.option("--model", "models", multiple=True, type=click.Choice(MODELS), default=MODELS),
        click.option("--fork", "forks", multiple=True, type=click.Choice(FORKS), default=forks),
        click.option("--tasks", "counts", multiple=True, type=click.IntRange(1), default=counts, help="K"),
        click.option("--target", "targets", multiple=True, type=click.Choice(targets), default=targets),
    )

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


@cache
def backbone_of(model: str) -> Backbone:
    """With random weights, once."""
    return trace(load_model(model))


def tasks_of(key: Key) -> list[Task]:
    """All on the cell's fork, each with weights of its own."""
    return tasks_on(backbone_of(key.model), key.layers, key.tasks)


def tasks_on(backbone: Backbone, fork: str, count: int) -> list[Task]:
    """`task1` and so on, on one fork, each with weights of its own."""
    layers = parse_layers(fork, len(backbone.blocks))
    return [candidate_task(backbone, f"task{n}", layers, seed=n) for n in range(1, count + 1)]


def release() -> None:
    """Give the memory of engines that are gone back to the system: the largest cells need most of it."""
    torch.compiler.reset()  # it keeps what it compiled
    gc.collect()
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)
