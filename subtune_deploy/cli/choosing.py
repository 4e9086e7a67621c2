"""Commands that choose: pareto."""

from __future__ import annotations

import dataclasses
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import InputError
from .calibrating import calibration_options, read_predictor, run_of
from .common import (
    json_option,
    messages,
    network_options,
    parse_percent,
    print_json,
    print_table,
    read_backbone,
    status,
)

if TYPE_CHECKING:
    from ..backbone import Backbone
    from ..choice import Choice, Measure
    from ..latency_model import Anchor, LatencyModel
    from ..pareto import Point
    from ..predictor import Predictor
    from ..tradeoff import Predict
    from ..tuning.documents import Profile, Row


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
@click.option(
    "--confirm",
    is_flag=True,
    help="Measure the predicted forks that could change the choice, and enter them in --calibration's file.",
)
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
    from ..tradeoff import draw_tradeoff, latencies
    from ..tuning.documents import Profile

    limits: dict[str, Any] = {
        "max_added": parse_percent("--max-added", max_added),
        "min_accuracy": parse_percent("--min-accuracy", min_accuracy),
    }
    _check_sources(run, calibration, confirm, across)
    profile = read_document(Profile, document)
    if calibration is None:
        assert run is not None
        choice = decide(profile, latencies(run, profile, tasks=tasks, target=target), **limits)
    else:
        known, predict, measure = _predicted(profile, calibration, across, tasks, network)
        choice = decide(profile, known, predict, measure if confirm else None, **limits)
    if choice.lacking:
        messages.print(f"not timed, and left out: {', '.join(choice.lacking)}")
    if picture:
        draw_tradeoff(profile, choice.points, picture, choice.chosen)
    _show(choice, as_json)


def _check_sources(run: Path | None, calibration: Path | None, confirm: bool, across: bool) -> None:
    if (run is None) == (calibration is None):
        given = "neither" if run is None else "both"
        raise InputError(f"{given} of --latency and --calibration was given", "give one of them")
    if confirm and calibration is None:
        raise InputError("--confirm goes with --calibration", "leave it away: a sweep was measured already")
    if confirm and across:
        raise InputError("--confirm measures on this host", "leave --across away, and calibrate here")


def _predicted(
    profile: Profile, calibration: Path, across: bool, tasks: int, network: dict[str, Any]
) -> tuple[list[Anchor], Predict, Measure]:
    """What was measured with so many tasks, a prediction of the rest, and how a fork of it is measured."""
    backbone = read_backbone(**network)
    if (backbone.name, tuple(backbone.input.shape)) != (profile.model, tuple(profile.input)):
        size = "x".join(map(str, profile.input))
        raise InputError(
            f"the profile is of {profile.model} on input {size}, the network is {backbone.name}",
            f"give --model {profile.model} --input-size {size}",
        )
    predictor, found = read_predictor(calibration, backbone, across)
    known = [each for each in found.anchors if len(each.forks) == tasks]
    return known, predictor.of_tasks(tasks), _measuring(backbone, calibration, found, predictor, tasks)


def _measuring(
    backbone: Backbone, calibration: Path, found: LatencyModel, predictor: Predictor, tasks: int
) -> Measure:
    """Beside the calibration's own measurements, and entered there; each is learnt from."""
    from ..calibrating import measure_more
    from ..documents import write_document
    from ..sweep import Candidate

    def measure(row: Row) -> tuple[Anchor, Predict]:
        nonlocal found, predictor
        candidate = Candidate(row.layers, tasks, row.prune)
        with status(f"measuring {candidate}"), redirect_stdout(sys.stderr):
            found = measure_more(backbone, candidate, found, run_of(calibration))
        write_document(calibration, found)
        anchor = found.anchors[-1]
        predictor = predictor.learn(anchor)
        messages.print(f"{candidate} measured, since it could be the choice: {anchor.added.value:+.1%}")
        return anchor, predictor.of_tasks(tasks)

    return measure


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
        more = {"lacking": list(choice.lacking), "confirmed": list(map(str, choice.confirmed))}
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
