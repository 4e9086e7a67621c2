"""Commands that show: report."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import InputError, SubtuneError
from .calibrating import across_option
from .common import bar, messages, status

if TYPE_CHECKING:
    from ..backbone import Backbone
    from ..breakdown import Breakdown
    from ..latency_model import Anchor
    from ..report_points import Predicted
    from ..results import Result
    from ..tuning.documents import Profile


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@click.option(
    "--accuracy", "document", type=click.Path(path_type=Path), metavar="FILE", help="What profile left."
)
@click.option("--target", metavar="NAME", help="Results on this target alone.")
@click.option("--tasks", type=click.IntRange(1), help="Results with so many tasks alone.")
@click.option(
    "--classes",
    type=click.IntRange(1),
    help="Of several heads of a fork the nearest; default: as the profile's data.",
)
@click.option(
    "--model", metavar="MODEL", help="The network, where its name in RUN is a function of your own."
)
@click.option(
    "--calibration",
    "calibrations",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What calibrate left: predict the profile's other forks; repeatable.",
)
@across_option
@click.option(
    "--datasheet",
    "datasheets",
    multiple=True,
    metavar="NAME",
    help="A recipe with datasheet numbers: calculate the profile's forks for that device; repeatable.",
)
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), metavar="FILE", help="The page: .html."
)
def report(
    runs: tuple[Path, ...],
    document: Path | None,
    target: str | None,
    tasks: int | None,
    classes: int | None,
    model: str | None,
    calibrations: tuple[Path, ...],
    across: bool,
    datasheets: tuple[str, ...],
    output: Path,
) -> None:
    """One HTML file to choose a fork in: accuracy against added latency, limits, samples, what each block costs.

    RUN is a sweep's folder, a .jsonl file or a benched bundle; several are of one model and input size. The file
    needs no network. With --calibration, forks of the profile that were not measured are predicted; with
    --datasheet, they are calculated for a device that is not here, and marked so.
    """
    from ..latency_model import anchor
    from ..report import gather, make_document, matched, write_page
    from ..run_folder import check_blocks
    from ..tradeoff import head_of
    from ..tuning.documents import read_profile

    profile = read_profile(document) if document else None
    classes = classes or (head_of(profile) if profile else None)
    results = gather(runs, target=target, tasks=tasks, classes=classes)
    if profile:
        for run in runs:
            check_blocks(run, profile.blocks, "the profile")
    matched(results, profile)  # bad input is told before anything is counted
    backbone, missing = _backbone(runs, results, model)
    predicted = []
    if calibrations or datasheets:
        predicted = _predicted(calibrations, datasheets, backbone, missing, across, results, profile)
    anchors = [*map(anchor, results), *(each for some in predicted for each in some.anchors)]
    if missing:
        messages.print(f"no breakdown by block: {missing}")
    made = make_document(results, profile, _counted(backbone, anchors) if backbone else missing, predicted)
    write_page(output, made)
    targets = ", ".join(target["label"] for target in made["targets"])
    count = f"{len(results)} measured point{'s' if len(results) > 1 else ''}"
    more = "".join(f", {len(each.anchors)} {each.status}" for each in predicted)
    click.echo(f"{output}: {count}{more} on {targets}")


def _backbone(
    runs: Sequence[Path], results: Sequence[Result], model: str | None
) -> tuple[Backbone | None, str]:
    """The network, or why it cannot be had: the page is of use without."""
    try:
        from ..breakdown import backbone_of
        from ..run_folder import check_blocks

        with status(f"reading {results[0].model}"), redirect_stdout(sys.stderr):
            backbone = backbone_of(results[0], model)
        for run in runs:
            check_blocks(run, [block.name for block in backbone.blocks], f"{backbone.name} by itself")
        return backbone, ""
    except SubtuneError as error:
        return None, f"{error.message} ({error.hint})"
    except ModuleNotFoundError as error:
        return None, f"it needs {error.name}, which is not installed (pip install 'subtune-deploy[export]')"


def _counted(backbone: Backbone, anchors: Sequence[Anchor]) -> Breakdown | str:
    """What graphs ask of a machine, or why that cannot be told."""
    from ..breakdown import breakdown

    try:
        with bar("counting") as tick:
            return breakdown(backbone, anchors, tick)
    except SubtuneError as error:
        messages.print(f"no breakdown by block: {error.message} ({error.hint})")
        return f"{error.message} ({error.hint})"


def _predicted(
    calibrations: Sequence[Path], datasheets: Sequence[str], backbone: Backbone | None, missing: str, across: bool,
    results: Sequence[Result], profile: Profile | None,
) -> list[Predicted]:  # fmt: skip
    """Forks of the profile that were not measured, for as many tasks as those that were."""
    from ..calibrating import read_calibration
    from ..predictor import Costing
    from ..report_points import from_datasheet, predictions
    from ..targets import load_target

    if backbone is None or profile is None:
        why = missing or "without --accuracy no fork is asked for"
        raise InputError(
            f"nothing can be predicted: {why}",
            "give --accuracy and --model, or no --calibration and --datasheet",
        )
    costing = Costing(backbone)
    fitted = (read_calibration(file, backbone, across=True, costing=costing) for file in calibrations)
    found = [predictions(profile, results, *each, across=across) for each in fitted]
    found += [from_datasheet(profile, results, costing, load_target(name)) for name in datasheets]
    names = [each.target for each in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(f"target {twice.pop()} is predicted twice", "give one --calibration for each target")
    return found


COMMANDS = (report,)
