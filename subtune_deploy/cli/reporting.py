"""Commands that show: report."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import SubtuneError
from .common import bar, messages, status

if TYPE_CHECKING:
    from ..breakdown import Breakdown
    from ..results import Result


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@click.option(
    "--accuracy", "document", type=click.Path(path_type=Path), metavar="FILE", help="What profile left."
)
@click.option("--target", metavar="NAME", help="Results on this target alone.")
@click.option("--tasks", type=click.IntRange(1), help="Results with so many tasks alone.")
@click.option(
    "--model", metavar="MODEL", help="The network, where its name in RUN is a function of your own."
)
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), metavar="FILE", help="The page: .html."
)
def report(
    runs: tuple[Path, ...],
    document: Path | None,
    target: str | None,
    tasks: int | None,
    model: str | None,
    output: Path,
) -> None:
    """One HTML file to choose a fork in: accuracy against added latency, limits, samples, what each block costs.

    RUN is a sweep's folder, a .jsonl file or a benched bundle; several are of one model and input size. The file
    needs no network.
    """
    from ..report import gather, make_document, matched, write_page
    from ..tuning.documents import read_profile

    profile = read_profile(document) if document else None
    results = gather(runs, target=target, tasks=tasks)
    matched(results, profile)  # bad input is told before anything is counted
    counted = _counted(results, model)
    if isinstance(counted, str):
        messages.print(f"no breakdown by block: {counted}")
    made = make_document(results, profile, counted)
    write_page(output, made)
    targets = ", ".join(target["label"] for target in made["targets"])
    count = f"{len(results)} measured point{'s' if len(results) > 1 else ''}"
    click.echo(f"{output}: {count} on {targets}")


def _counted(results: Sequence[Result], model: str | None) -> Breakdown | str:
    """What graphs ask of a machine, or why that cannot be told: the page is of use without."""
    try:
        from ..breakdown import backbone_of, breakdown

        with (
            status(f"reading {results[0].model}"),
            redirect_stdout(sys.stderr),
        ):  # what the user's own code prints
            backbone = backbone_of(results[0], model)
        with bar("counting") as tick:
            return breakdown(backbone, results, tick)
    except SubtuneError as error:
        return f"{error.message} ({error.hint})"
    except ModuleNotFoundError as error:
        return f"it needs {error.name}, which is not installed (pip install 'subtune-deploy[export]')"


COMMANDS = (report,)
