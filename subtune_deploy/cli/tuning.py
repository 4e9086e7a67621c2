"""The command tune, and the options of all commands that learn from pictures."""

from __future__ import annotations

import dataclasses
import re
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..spec import check_task_name
from ..tuning.settings import TrainConfig
from .common import (
    bar,
    messages,
    network_options,
    options,
    read_backbone,
    read_layers,
    read_record,
    record_options,
)
from .pruning import prune_options, read_pruning

if TYPE_CHECKING:
    from ..backbone import Backbone
    from ..data.dataset import Data
    from ..tuning.settings import Fork


def _number_or_file(text: str) -> int | Path:
    if not re.fullmatch(r"[+-]?\d+", text):
        return Path(text)
    return click.IntRange(2).convert(int(text), None, None)


data_options = options(
    click.option(
        "--data", "source", required=True, metavar="SOURCE",
        help="digits, sklearn-digits, a folder with a folder of pictures per class, FILE.npz, torchvision:CIFAR10, "
        "package.module:factory or file.py:factory.",
    ),
    click.option(
        "--train", type=_number_or_file, metavar="N|FILE",
        help="Pictures to train on, or a file that lists them by their places in the source, from 0 on; default: four "
        "fifths, or all that are for it.",
    ),
    click.option(
        "--test", type=click.IntRange(1), help="Pictures held out; default: a fifth, or all that are for it."
    ),
    click.option("--corruption", metavar="NAME:SEVERITY", help="Spoil every picture, as in fog:5."),
)  # fmt: skip
"""Which pictures, and how they are split."""

DATA = ("source", "train", "test", "corruption")
"""Their names as arguments."""

training_options = record_options(TrainConfig)


def read_config(values: dict[str, Any]) -> TrainConfig:
    """Taken out of a command's options. Raises InputError."""
    return read_record(TrainConfig, values)


def read_data(values: dict[str, Any], seed: int) -> Data:
    """The pictures that `data_options` asked for; those that cannot be read are named."""
    from ..data.sources import load_data

    with redirect_stdout(sys.stderr):  # what the user's own code prints is no result
        found = load_data(seed=seed, **values)
    for line in found.skipped:
        messages.print(f"skipped: {line}")
    return found


def read_pretrained(values: dict[str, Any]) -> Backbone:
    """The backbone that `network_options` asked for. Random weights are let pass, but not in silence."""
    backbone = read_backbone(**values)
    if backbone.weights.startswith("random"):
        messages.print(
            f"warning: {backbone.name} has random weights: give --weights FILE, or --weights default"
        )
    return backbone


def read_fork(text: str, backbone: Backbone) -> Fork:
    """`13-14`, `none` or `all`. Raises LayersError."""
    from ..tuning.settings import Fork

    return Fork("all" if text == "all" else read_layers(text, backbone))


@click.command()
@network_options
@click.option(
    "--layers", required=True, metavar="LAYERS",
    help="Blocks to tune, as in 13-14; none: the head alone; all: everything.",
)  # fmt: skip
@data_options
@click.option("--name", default="task", show_default=True, help="What the task is called.")
@click.option("--siamese", is_flag=True, help="The head also sees the base's features.")
@click.option(
    "--init", type=click.Choice(["pretrained", "random"]), default="pretrained", show_default=True,
    help="random: tuned blocks start anew.",
)  # fmt: skip
@prune_options
@training_options
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="The task's checkpoint.")
def tune(layers: str, name: str, siamese: bool, init: Any, out: Path, **others: Any) -> None:
    """SubTuning of one task: some blocks and a new head.

    All else stays frozen, batch-norm statistics too. What differs from the base is written to the checkpoint, for
    export --task NAME=FILE. A training that was interrupted goes on after its last epoch, which OUT.partial keeps.
    """
    from ..checkpoint import check_writable, write_state
    from ..tasks import task_state
    from ..tuning.keep import forget
    from ..tuning.train import tune as train_task

    check_task_name(name)
    check_writable(out)
    config, prune = read_config(others), read_pruning(others)
    data = {key: others.pop(key) for key in DATA}
    backbone = read_pretrained(others)
    fork = dataclasses.replace(read_fork(layers, backbone), siamese=siamese, init=init, prune=prune)
    found, partial = read_data(data, config.seed), Path(f"{out}.partial")
    with bar(f"tuning {name}") as tick:
        tuned = train_task(
            backbone,
            name,
            found.train,
            found.test,
            fork,
            config,
            keep=partial,
            progress=tick,
            say=messages.print,
        )
    write_state(out, *task_state(backbone, tuned.task))
    forget(partial)
    what = "everything" if fork.layers == "all" else f"blocks {fork}"
    click.echo(f"{name}: {what}, {tuned.accuracy:.1%} of {len(found.test)} held-out pictures right")
    click.echo(f"checkpoint: {out}")


COMMANDS = (tune,)
