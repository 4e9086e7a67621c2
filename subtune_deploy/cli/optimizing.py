"""The command optimize."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..spec import check_task_name
from .common import (
    Finite,
    bar,
    json_option,
    messages,
    network_options,
    parse_percent,
    print_json,
    read_span,
)
from .pruning import prune_candidates_options, read_prunings
from .searching import examples_option
from .studies import executor_options, read_study, teller
from .timing import sweep_teller
from .tuning import data_options, training_options

if TYPE_CHECKING:
    from ..goal import Decision, Optimized


@click.command()
@network_options
@data_options
@examples_option
@click.option(
    "--target", default="cpu", show_default=True, metavar="NAME", help="A recipe's name, or its file."
)
@click.option("--max-added", metavar="PERCENT", help="Added latency at most, as in 10%.")
@click.option("--min-accuracy", metavar="PERCENT", help="Accuracy at least, as in 95%.")
@click.option(
    "--tasks", type=click.IntRange(1), default=1, show_default=True, help="Latency of so many tasks."
)
@click.option("--span", metavar="N|A-B", help="Forks of so many consecutive blocks; default: 1-3.")
@prune_candidates_options
@click.option(
    "--minutes",
    type=Finite(0.1),
    default=10,
    show_default=True,
    help="How long it may take, after which no more candidates are trained; single blocks are in any case.",
)
@click.option(
    "--measurements",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    help="Forks that are timed to predict the others; then those that could be chosen, until a quarter of all was.",
)
@click.option(
    "--seconds",
    type=Finite(0.1),
    default=8,
    show_default=True,
    help="For timing one of them, or six loads of four rounds.",
)
@training_options
@executor_options
@click.option("--name", default="task", show_default=True, help="What the task is called.")
@click.option(
    "-o",
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Everything that comes of it; the same command goes on there.",
)
@json_option
def optimize(
    examples: int | None, target: str, max_added: str | None, min_accuracy: str | None, tasks: int, span: str | None,
    minutes: float, measurements: int, seconds: float, where: str, cpus: float | None, gpus: float, name: str,
    out: Path, as_json: bool, **others: Any,
) -> None:  # fmt: skip
    """Pictures in, engine out: which blocks to fork is found, trained, built, checked and timed.

    A few forks are timed, and all others' latency is predicted; forks that may keep the limits are trained, as many as
    the minutes allow; what could change the choice is timed; the chosen fork is trained on all pictures and
    compiled with the base into one engine. Without limits the knee is chosen.
    """
    from ..documents import to_document
    from ..executors import open_executor
    from ..goal import Effort, Goal
    from ..optimize import Listener
    from ..optimize import optimize as search
    from ..targets import load_target

    check_task_name(name)
    goal = Goal(parse_percent("--max-added", max_added), parse_percent("--min-accuracy", min_accuracy), tasks)
    recipe = load_target(target)
    prunings = read_prunings(others, recipe)
    study, source = read_study(others)
    blocks = len(study.backbone.blocks)
    lengths = read_span(span, blocks)
    effort = Effort(minutes, lengths, prunings, measurements, seconds, examples)
    opened = open_executor(where, cpus=cpus, gpus=gpus)
    with bar("optimize") as tick, redirect_stdout(sys.stderr), opened as executor:
        found = search(
            study, recipe, out, goal, effort, name=name, source=source, executor=executor,
            listener=Listener(_say, sweep_teller(tick, []), teller(tick)),
        )  # fmt: skip
    if as_json:
        print_json(to_document(found))
    else:
        _show(found, out)


def _say(decision: Decision) -> None:
    messages.print(f"{decision.seconds:.0f} s, {decision.stage}: {decision.told}")


def _show(found: Optimized, out: Path) -> None:
    low, high = found.added.low, found.added.high
    click.echo(f"fork: {found.fork}")
    click.echo(f"accuracy: {found.accuracy:.1%}")
    click.echo(f"added latency on {found.target}: {found.added.value:+.1%} ({low:+.1%} to {high:+.1%})")
    click.echo(f"of {found.candidates} forks {found.measured} were timed and {found.trained} trained")
    if found.left:
        click.echo(f"not timed, although it could have been better: {found.left}")
    click.echo(f"bundle: {out / found.bundle}")
    for line in found.missed:
        messages.print(f"the goal is missed: {line}")


COMMANDS = (optimize,)
