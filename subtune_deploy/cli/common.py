"""Options that several commands share, spelt once, and how results and progress are shown."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.status import Status
from rich.table import Table
from rich.text import Text

from ..errors import BundleError, InputError, LayersError
from ..spec import parse_layers

if TYPE_CHECKING:
    from ..backbone import Backbone
    from ..backends.base import Batch
    from ..bundle import Bundle

UNWRAPPED = 10_000
"""Columns of a table that no terminal shows."""

Command = TypeVar("Command", bound=Callable[..., Any])
Record = TypeVar("Record")

messages = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)


class Finite(click.FloatRange):
    """A number within bounds. NaN, which no comparison refuses, is none, nor is infinity."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Of what was typed."""
        found = float(super().convert(value, param, ctx))
        if not math.isfinite(found):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return found


def options(*each: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several click options as one decorator, shown by --help in this order."""

    def decorate(command: Command) -> Command:
        """Give the command these options."""
        for option in reversed(each):
            command = option(command)
        return command

    return decorate


def record_options(kind: type[Any]) -> Callable[[Command], Command]:
    """One option for each field of a frozen dataclass, so that neither is declared twice.

    A field's metadata may give `help`, `choices`, and `default`: what --help shows where it is None.
    """
    hints = typing.get_type_hints(kind)
    return options(*(_field_option(each, hints[each.name]) for each in dataclasses.fields(kind)))


def _field_option(field: dataclasses.Field[Any], hint: Any) -> Callable[[Command], Command]:
    choices, shown = field.metadata.get("choices"), field.metadata.get("default", True)
    kinds = [each for each in typing.get_args(hint) if each is not types.NoneType] or [hint]
    return click.option(
        f"--{field.name.replace('_', '-')}",
        type=click.Choice(choices) if choices else kinds[0],
        default=field.default,
        show_default=shown,
        help=field.metadata.get("help"),
    )


def read_record(kind: type[Record], values: dict[str, Any]) -> Record:
    """What `record_options` gave, taken out of a command's arguments."""
    return kind(**{each.name: values.pop(each.name) for each in dataclasses.fields(typing.cast(Any, kind))})


network_options = options(
    click.option(
        "--model",
        default="resnet50",
        show_default=True,
        help="A torchvision name, timm:NAME, package.module:factory or file.py:factory.",
    ),
    click.option(
        "--weights", default="random", show_default=True, help="random, default (a download), or FILE."
    ),
    click.option("--input-size", metavar="CxHxW", help="Instead of the model's own, as in 3x128x128."),
    click.option(
        "--blocks", "pattern", metavar="REGEX", help="Module paths to take as blocks, instead of ours."
    ),
)
"""Which backbone."""

classes_option = click.option(
    "--classes",
    type=click.IntRange(1),
    metavar="N",
    help="Of each candidate task; default: as many as the base has.",
)
"""A head of fewer classes is cheaper."""

build_options = options(
    click.option("--batch", default="1", show_default=True, metavar="N|dynamic", help="Pictures per call."),
    click.option(
        "--merge",
        type=click.Choice(["auto", "always", "never"]),
        default="auto",
        show_default=True,
        help="Run shared blocks after a fork on all tasks' streams packed in one batch.",
    ),
    click.option(
        "--lowering",
        type=click.Choice(["auto", "branch", "grouped"]),
        default="auto",
        show_default=True,
        help="A forked block as one operator per task, or as one grouped operator for all.",
    ),
)
"""How graphs are made."""


targets_option = click.option(
    "--target",
    "targets",
    multiple=True,
    default=("cpu",),
    show_default=True,
    metavar="NAME",
    help="A recipe's name, or its file; repeatable.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
calibrate_option = click.option(
    "--calibrate",
    metavar="FOLDER|FILE",
    type=click.Path(path_type=Path),
    help="For int8 targets: pictures, or an array (n, C, H, W) as .npy or .npz.",
)
key_option = click.option(
    "--key",
    type=click.Path(path_type=Path),
    metavar="PUB",
    help="Insist on a signature by the holder of this key.",
)
UNASKED = "signed, but nobody asked by whom: give --key"

bundle_argument = click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))


def status(text: str) -> Status:
    """A spinner on stderr, on a terminal alone; `text` is shown as it is, brackets too."""
    return messages.status(Text(text))


def read_backbone(model: str, weights: str, input_size: str | None, pattern: str | None) -> Backbone:
    """Load and trace, saying so. What downloads and the user's own code print is no result: to stderr."""
    from ..backbone import trace
    from ..models import load_model

    with status(f"reading {model}"), redirect_stdout(sys.stderr):
        return trace(load_model(model, weights, parse_size(input_size)), pattern)


def parse_percent(flag: str, text: str | None) -> float | None:
    """`"10%"`, as it was given with `flag` -> 0.1. Raises InputError."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text.strip())
    if match is None:
        raise InputError(f"{flag} {text!r} is no percentage", f"give it as in {flag} 10%")
    return float(f"{match[1]}e-2")  # the share that it names: 0.7 / 100 is less than 7 / 1000


def parse_size(text: str | None) -> tuple[int, int, int] | None:
    """`"3x128x128"` -> (3, 128, 128). Raises InputError."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,9})x(\d{1,9})x(\d{1,9})", text)
    if match is None:
        raise InputError(f"input size {text!r} is not CxHxW", "give channels, height, width, as in 3x224x224")
    channels, height, width = map(int, match.groups())
    return channels, height, width


def parse_span(text: str, blocks: int) -> tuple[int, int]:
    """`"2"` -> (2, 2), `"1-3"` -> (1, 3). Raises LayersError for lengths that `blocks` blocks do not have."""
    match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", text)
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= low <= high <= blocks:
        raise LayersError(
            f"span {text!r} does not fit {blocks} blocks", "give a length or two, as in --span 1-3"
        )
    return low, high


def read_span(text: str | None, blocks: int) -> tuple[int, int]:
    """The lengths of forks that are looked at: where none are asked for, up to three blocks."""
    return parse_span(text or f"1-{min(3, blocks)}", blocks)


def time_left(seconds: float | None) -> str:
    """How long the rest may take, for people."""
    if seconds is None:
        return "time left unknown"
    return f"{seconds / 60:.0f} min left" if seconds > 90 else f"{seconds:.0f} s left"


def read_layers(text: str, backbone: Backbone) -> tuple[int, ...]:
    """A fork of this backbone; `none` is the empty one. Raises LayersError."""
    return () if text == "none" else parse_layers(text, len(backbone.blocks))


def read_inputs(path: Path | None, folder: Path) -> Batch | None:
    """Calibration data for the bundle in `folder`, where a path to some was given."""
    from ..bundle import open_bundle
    from ..calibration import read_calibration

    return None if path is None else read_calibration(path, open_bundle(folder).manifest.input)


def compiled(bundle: Bundle, target: str | None) -> list[str]:
    """The engine that was asked for, or all. Raises BundleError where there is none."""
    names = [target] if target else list(bundle.manifest.engines)
    if not names:
        raise BundleError(
            f"{bundle.path} has no engine yet",
            f"compile one: subtune-deploy compile {bundle.path} --target cpu",
        )
    return names


def pairs(values: Iterable[str], option: str) -> dict[str, str]:
    """`("birds=birds.pt",)` -> {"birds": "birds.pt"}. Raises InputError, also for a name given twice."""
    found: dict[str, str] = {}
    for value in values:
        name, equals, rest = value.partition("=")
        if not (name and equals and rest):
            raise InputError(f"{option} {value!r} is not NAME=FILE", f"as in {option} birds=birds.pt")
        if name in found:
            raise InputError(f"{option} names {name!r} twice", "give each task its own name")
        found[name] = rest
    return found


def print_json(document: Any) -> None:
    """One document on stdout; what is no number is null there."""
    click.echo(json.dumps(_finite(document), indent=1, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on stdout, numbers to the right; plain and unwrapped where it is not a terminal."""
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = UNWRAPPED
    table = Table(*columns, box=None, pad_edge=False)
    for index, row in enumerate(rows):
        for column, cell in zip(table.columns, row, strict=True):
            if index == 0 and re.fullmatch(r"[-+]?[\d,.]+( ?[%a-zA-Z]*)?", str(cell)):
                column.justify = "right"
        table.add_row(*(str(cell) for cell in row))
    with console.capture() as drawn:
        console.print(table)
    click.echo("\n".join(line.rstrip() for line in drawn.get().splitlines()))


@contextmanager
def bar(title: str) -> Iterator[Callable[[str, float, float], None]]:
    """A bar on stderr that takes (what, done, total); only on a terminal, and gone when it is done."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=messages, transient=True, disable=not messages.is_terminal) as progress:
        task = progress.add_task(title)

        def tick(what: str, done: float, total: float) -> None:
            progress.update(task, description=f"{title} {what}", completed=done, total=total)

        yield tick
