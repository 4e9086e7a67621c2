"""The command calibrate, and the options of all commands that predict from what it leaves."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import InputError
from .common import (
    bar,
    classes_option,
    json_option,
    messages,
    network_options,
    options,
    print_json,
    read_backbone,
    read_layers,
    read_span,
)
from .pruning import prune_candidates_options, read_prunings
from .timing import protocol_options, read_counts, read_protocol, sweep_teller

if TYPE_CHECKING:
    from ..backbone import Backbone
    from ..sweep import Candidate

across_option = click.option(
    "--across", is_flag=True, help="Although --calibration is of another host or versions."
)

calibration_options = options(
    click.option(
        "--calibration", type=click.Path(path_type=Path), metavar="FILE", help="What calibrate left: predict."
    ),
    across_option,
)
"""Latencies that are predicted."""

confirm_option = click.option(
    "--confirm",
    is_flag=True,
    help="Measure what is predicted and could be chosen, and enter it in --calibration's file.",
)


def check_confirm(confirm: bool, calibration: Path | None, across: bool) -> None:
    """Raise InputError where nothing is predicted that could be measured here."""
    if confirm and calibration is None:
        raise InputError("--confirm goes with --calibration", "calibrate here, or leave --confirm away")
    if confirm and across:
        raise InputError("--confirm measures on this host", "leave --across away, and calibrate here")


@click.command()
@network_options
@click.option(
    "--target", default="cpu", show_default=True, metavar="NAME", help="A recipe's name, or its file."
)
@click.option(
    "--span", metavar="N|A-B", help="Runs of so many consecutive blocks are to be predicted; default: 1-3."
)
@click.option(
    "--layers", "forks", multiple=True, metavar="LAYERS", help="And this fork, as in 2,14; repeatable."
)
@click.option(
    "--tasks", default="1", show_default=True, metavar="K,...", help="So many tasks on each, as in 1,2,8."
)
@classes_option
@prune_candidates_options
@click.option(
    "--measurements",
    type=click.IntRange(1),
    default=10,
    show_default=True,
    help="How many forks are measured.",
)
@protocol_options
@click.option(
    "-o",
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE.json",
    help="FILE.run keeps what is measured: the same command goes on there.",
)
@json_option
def calibrate(
    target: str, span: str | None, forks: tuple[str, ...], tasks: str, classes: int | None, measurements: int,
    hot: bool, out: Path, as_json: bool, name: str, seconds: float | None, precision: float | None, **network: Any,
) -> None:  # fmt: skip
    """Measure the few forks that tell most about all others, for cost, pareto and optimize to predict these.

    Each is exported, compiled, checked and timed as by sweep. Which are measured follows from what they have in
    common with the forks that are to be predicted.
    """
    from ..calibrating import calibrate as measure
    from ..calibrating import run_of
    from ..checkpoint import check_writable
    from ..documents import to_document, write_document
    from ..sweep import SweepOptions
    from ..targets import load_target

    if out.suffix != ".json":
        raise InputError(f"the calibration cannot be {out}", f"give -o {out.with_suffix('.json')}")
    check_writable(out)
    how, recipe = SweepOptions(protocol=read_protocol(name, seconds, precision), hot=hot), load_target(target)
    prunings = read_prunings(network)
    backbone = read_backbone(**network)
    chosen = _candidates(backbone, span, forks, tasks, (None, *prunings), classes)
    messages.print(
        f"{min(measurements, len(chosen))} of {len(chosen)} candidates on {target}, to {run_of(out)}"
    )
    with bar("calibrate") as tick, redirect_stdout(sys.stderr):
        found = measure(
            backbone, chosen, recipe, run_of(out), how, count=measurements, told=sweep_teller(tick, [])
        )
    write_document(out, found)
    if as_json:
        print_json(to_document(found))
    else:
        click.echo(f"{found.model} on {found}")
        click.echo(f"calibration: {out}")


def _candidates(
    backbone: Backbone, span: str | None, forks: tuple[str, ...], tasks: str, prunings: tuple[Any, ...],
    classes: int | None,
) -> tuple[Candidate, ...]:  # fmt: skip
    """What is to be predicted, and may be measured."""
    from ..sweep import candidates

    blocks, lists = len(backbone.blocks), [read_layers(each, backbone) for each in forks]
    lengths = read_span(span, blocks)
    return candidates(blocks, lengths, lists, read_counts(tasks), prunings, classes)


COMMANDS = (calibrate,)
