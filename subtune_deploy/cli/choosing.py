"""Commands that choose: pareto."""

from __future__ import annotations

import dataclasses
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import InputError
from ..spec import format_layers
from .calibrating import calibration_options, check_confirm, confirm_option
from .common import (
    json_option,
    messages,
    network_options,
    parse_percent,
    print_json,
    print_table,
    read_backbone,
)
from .timing import sweep_teller

if TYPE_CHECKING:
    from ..calibrating import Growing
    from ..choice import Choice
    from ..pareto import Point
    from ..tuning.documents import Profile


@click.command()
@click.option(
    "--accuracy",
    "document",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What profile left.",
)
@click.option(
    "--latency", "run", type=click.Path(path_type=Path), metavar="RUN", help="A sweep of the same model."
)
@calibration_options
@confirm_option
@network_options
@click.option("--max-added", metavar="PERCENT", help="Added latency at most, as in 10%.")
@click.option("--min-accuracy", metavar="PERCENT", help="Accuracy at least, as in 95%.")
@click.option(
    "--tasks", type=click.IntRange(1), default=1, show_default=True, help="Latencies of so many tasks."
)
@click.option("--target", metavar="NAME", help="Which target of RUN; default: its only one.")
@click.option(
    "--picture", type=click.Path(path_type=Path), metavar="FILE", help="Also draw it: .svg, .png or .pdf."
)
@json_option
def pareto(
    document: Path, run: Path | None, calibration: Path | None, across: bool, confirm: bool, max_added: str | None,
    min_accuracy: str | None, tasks: int, target: str | None, picture: Path | None, as_json: bool, **network: Any,
) -> None:  # fmt: skip
    """Which fork to deploy: accuracy against added latency.

    The forks that no other beats in both, the knee, and the choice: within --max-added the most accurate, with
    --min-accuracy alone the cheapest, without limits the knee. Latencies are those of a sweep, or with --calibration
    predicted for the network that --model and the like name; with --confirm no prediction decides.
    """
    from ..choice import decide
    from ..documents import read_document
    from ..tradeoff import draw_tradeoff, latencies, other_heads
    from ..tuning.documents import Profile
    from ..tuning.drawing import check_picture

    limits: dict[str, Any] = {
        "max_added": parse_percent("--max-added", max_added),
        "min_accuracy": parse_percent("--min-accuracy", min_accuracy),
    }
    _check_sources(run, calibration, confirm, across)
    if picture:
        check_picture(picture)  # told before anything is measured
    profile = read_document(Profile, document)
    if calibration is None:
        assert run is not None
        timed = latencies(run, profile, tasks=tasks, target=target)
        choice = decide(profile, timed, **limits)
        if doubt := other_heads(profile, timed):
            messages.print(doubt)
    else:
        growing = _predicted(profile, calibration, across, tasks, network)
        with redirect_stdout(sys.stderr):
            choice = decide(profile, growing.known, growing.predict, growing if confirm else None, **limits)
    for fork, why in choice.failed.items():
        messages.print(f"{fork} could not be measured, and is left out: {why}")
    if choice.lacking:
        names = (each if each != format_layers(()) else "the head alone" for each in choice.lacking)
        messages.print(f"not timed, and left out: {', '.join(names)}")
    if picture:
        draw_tradeoff(profile, choice.points, picture, choice.chosen)
    _show(choice, as_json)


def _check_sources(run: Path | None, calibration: Path | None, confirm: bool, across: bool) -> None:
    if (run is None) == (calibration is None):
        given = "neither" if run is None else "both"
        raise InputError(f"{given} of --latency and --calibration was given", "give one of them")
    check_confirm(confirm, calibration, across)


def _predicted(
    profile: Profile, calibration: Path, across: bool, tasks: int, network: dict[str, Any]
) -> Growing:
    """Latencies of so many tasks, measured or predicted."""
    from ..calibrating import Growing, read_calibration
    from ..tradeoff import head_of

    backbone = read_backbone(**network)
    if (backbone.name, tuple(backbone.input.shape)) != (profile.model, tuple(profile.input)):
        size = "x".join(map(str, profile.input))
        raise InputError(
            f"the profile is of {profile.model} on input {size}, the network is {backbone.name}",
            f"give --model {profile.model} --input-size {size}",
        )
    if profile.blocks != tuple(block.name for block in backbone.blocks):
        raise InputError(
            f"the profile has {len(profile.blocks)} blocks, {profile.blocks[0]} the first; the network "
            f"{len(backbone.blocks)}, {backbone.blocks[0].name} the first",
            "give --blocks as it was for the profile",
        )
    predictor, found = read_calibration(calibration, backbone, across=across, classes=head_of(profile))
    return Growing(calibration, found, predictor, tasks, sweep_teller(lambda *done: None, []))


def _show(choice: Choice, as_json: bool) -> None:
    from ..pareto import front, knee, open_rivals

    best = front(choice.points)
    found = {
        "chosen": choice.chosen,
        "knee": knee(best),
        "front": best,
        "open": open_rivals(choice.points),
        "points": choice.points,
    }
    if as_json:
        more = {
            "lacking": list(choice.lacking),
            "confirmed": list(map(str, choice.confirmed)),
            "failed": dict(choice.failed),
        }
        print_json({name: _plain(each) for name, each in found.items()} | more)
    else:
        _print(found)


def _print(found: dict[str, Any]) -> None:
    from ..tradeoff import told

    print_table(("not dominated", "accuracy", "added latency"), map(told, found["front"]))
    for fork, rivals in found["open"].items():
        messages.print(f"{fork} is beaten by {', '.join(rivals)}, but not beyond their intervals")
    if found["knee"]:
        click.echo(f"knee: {found['knee'].fork}")
    click.echo(f"chosen: {_sentence(found['chosen'])}")
    if found["chosen"].predicted:
        messages.print("that latency is predicted, not measured: --confirm measures what decides")


def _sentence(point: Point) -> str:
    added = f"{point.added.value:.1%}" + (" (predicted)" if point.predicted else "")
    return f"{point.fork}, accuracy {point.accuracy.value:.1%}, added latency {added}"


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value


COMMANDS = (pareto,)
