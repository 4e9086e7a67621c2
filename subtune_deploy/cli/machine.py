"""Commands on this machine: doctor, targets, demo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from ..records import to_plain
from .common import json_option, print_json, print_table

if TYPE_CHECKING:
    from ..backends.base import Availability


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Which backends work here, and what each missing one needs."""
    from ..backends import KNOWN, probe
    from ..environment import describe

    found = {name: probe(name) for name in KNOWN}
    if as_json:
        print_json({"backends": {name: to_plain(state) for name, state in found.items()}, "host": describe()})
        return
    print_table(
        ("backend", "here", "version", "what it needs"),
        (
            (name, _here(state), state.version or "-", _needs(state.detail, state.remedy))
            for name, state in found.items()
        ),
    )


def _here(state: Availability) -> str:
    return "no" if not state.ok else "yes" if state.runs else "compiles"


def _needs(detail: str, remedy: str) -> str:
    return f"{detail}: {remedy}" if remedy else detail or "-"


@click.command()
@json_option
def targets(as_json: bool) -> None:
    """The recipes; your own is a file: --target ./mine.toml."""
    from ..targets import list_targets

    found = list_targets()
    if as_json:
        print_json({"targets": [to_plain(target) for target in found]})
        return
    print_table(
        ("target", "backend", "precision", "threads", ""),
        (
            (
                target.name,
                target.backend,
                target.precision,
                target.threads or "own choice",
                target.description + (" (not yet run on hardware)" if target.not_run_on_hardware else ""),
            )
            for target in found
        ),
    )


@click.command()
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    default=Path("engines", "demo"),
    show_default=True,
    help="Where bundle, checkpoints and pictures go.",
)
def demo(out: Path) -> None:
    """All of it on real weights and pictures, offline, in minutes."""
    from ..demo import run_demo

    progress = Console(stderr=True, highlight=False, soft_wrap=True)
    run_demo(out, console=progress, results=Console(highlight=False, soft_wrap=True))


COMMANDS = (doctor, targets, demo)
