"""Commands that choose for several tasks: choose."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from ..errors import InputError
from .calibrating import calibration_options
from .common import (
    json_option,
    messages,
    network_options,
    pairs,
    parse_percent,
    print_json,
    print_table,
    read_backbone,
)
from .costing import fit_options, fit_run, results_of, scored

if TYPE_CHECKING:
    from ..backbone import Backbone
    from ..costs import CandidateFork
    from ..joint import Choice, Floor, Forks, Price, Together
    from ..predictor import Costing, Predictor
    from ..stats import Interval
    from ..tuning.documents import Profile

    Accuracies = Mapping[str, Mapping[CandidateFork, Interval]]
    """By task and fork."""


@click.command()
@click.option(
    "--task",
    "tasks",
    required=True,
    multiple=True,
    metavar="NAME=FILE",
    help="A task, and what profile left for it; repeatable.",
)
@network_options
@fit_options
@click.option(
    "--target", metavar="NAME", help="Which target of RUN; without --run, a recipe with datasheet numbers."
)
@calibration_options
@click.option(
    "--max-added", required=True, metavar="PERCENT", help="Added latency of all together at most, as in 30%."
)
@click.option(
    "--weight", multiple=True, metavar="NAME=NUMBER", help="Of a task in the mean; default: 1. Repeatable."
)
@json_option
def choose(
    tasks: Sequence[str], run: Path | None, target: str | None, measurements: int, calibration: Path | None,
    across: bool, max_added: str, weight: Sequence[str], as_json: bool, **network: Any,
) -> None:  # fmt: skip
    """Which forks to deploy for several tasks on one budget.

    The highest mean accuracy whose added latency, all tasks in one graph, is within --max-added. Latency is that of
    a model: fitted to measurements of RUN, or the paper's with a datasheet's rates.
    """
    from ..calibrating import read_calibration
    from ..joint import Option, choose_apart, choose_together
    from ..tuning.documents import read_profile

    limit, weights = parse_percent("--max-added", max_added) or 0.0, _numbers(weight)
    if run is None and target is None and calibration is None:
        raise InputError(
            "nothing says what forks cost",
            "give --calibration FILE, --run RUN, or --target NAME with a datasheet",
        )
    if run is not None and calibration is not None:
        raise InputError("both of --run and --calibration were given", "give one of them")
    profiles = {name: read_profile(Path(path)) for name, path in pairs(tasks, "--task").items()}
    backbone = read_backbone(**network)
    accuracies, left_out = _accuracies(profiles, backbone)
    others = len(accuracies) - 1
    if calibration is None:
        priced = _priced(backbone, run, target, measurements, others)
    else:
        predictor, kept = read_calibration(calibration, backbone, across=across)
        told = {"fitted": [str(each) for each in kept.anchors]}
        priced = _calibrated(kept.target.name, predictor, others, told)
    options = {
        name: [Option(fork, each.value) for fork, each in mine.items()] for name, mine in accuracies.items()
    }
    found = choose_together(options, priced.price, max_added=limit, weights=weights, floor=priced.floor)
    apart = choose_apart(options, priced.price, limit, weights)
    if left_out:
        messages.print(f"left out: {', '.join(left_out)}")
    if as_json:
        print_json(_document(found, apart, accuracies, priced) | {"max_added": limit, "left_out": left_out})
    else:
        _print(found, apart, accuracies, priced, limit)


@dataclass(frozen=True)
class _Priced:
    """Latencies by the model `name`; `told`: how far it is off, if that is known, `deviation` for one set of forks."""

    name: str
    price: Price
    floor: Floor
    deviation: Callable[[Forks], float] | None = None
    told: Mapping[str, Any] = field(default_factory=dict)


def _numbers(given: Sequence[str]) -> dict[str, float]:
    try:
        return {name: float(text) for name, text in pairs(given, "--weight").items()}
    except ValueError as error:
        raise InputError(f"--weight: {error}", "give a number above 0, as in --weight birds=2") from error


def _accuracies(profiles: Mapping[str, Profile], backbone: Backbone) -> tuple[Accuracies, list[str]]:
    """Of the forks of each profile, and what is left out of them. Raises InputError unless all are of `backbone`."""
    from ..costs import CandidateFork
    from ..tradeoff import candidates, check_profiles, head_of

    check_profiles(profiles, backbone.name, backbone.input.shape, [each.name for each in backbone.blocks])
    found = {name: candidates(profile) for name, profile in profiles.items()}
    left_out = [f"{name} {fork}" for name, (_, forks) in found.items() for fork in forks]
    accuracies = {
        name: {
            CandidateFork(cast("tuple[int, ...]", fork.layers), fork.prune, head_of(profiles[name])): each
            for fork, each in mine.items()
        }
        for name, (mine, _) in found.items()
    }
    return accuracies, left_out


def _priced(backbone: Backbone, run: Path | None, target: str | None, count: int, others: int) -> _Priced:
    """By some measurements of a run, or a datasheet."""
    from ..predictor import Costing, Predictor

    costing = Costing(backbone)
    if run is None:
        return _from_datasheet(str(target), costing)
    results = results_of(run, backbone, target)
    model, told = fit_run(results, costing, count)
    return _calibrated(results[0].target, Predictor(costing, model), others, told)


def _calibrated(target: str, predictor: Predictor, others: int, told: Mapping[str, Any]) -> _Priced:
    return _Priced(
        f"calibrated, {target}",
        lambda forks: predictor.together(_forks(forks)).added,
        lambda fork: predictor.least_added(_forks((fork,))[0], others),
        lambda forks: predictor.together(_forks(forks)).deviation,
        told,
    )


def _forks(forks: Forks) -> tuple[CandidateFork, ...]:
    """What the options hold, which are of any kind to who chooses among them."""
    return cast("tuple[CandidateFork, ...]", forks)


def _from_datasheet(name: str, costing: Costing) -> _Priced:
    from ..cost_model import least_added, machine_of, plan_times, total
    from ..targets import load_target
    from ..work import unpacked

    machine = machine_of(load_target(name))
    base = plan_times(costing.base, machine)
    return _Priced(
        f"plan, {name}",
        lambda forks: total(plan_times(costing.together(_forks(forks)), machine)) / total(base) - 1,
        lambda fork: (
            least_added(base, plan_times(unpacked(costing.together(_forks((fork,)))), machine)) / total(base)
        ),
    )


def _document(
    found: Together, apart: Choice | None, accuracies: Accuracies, priced: _Priced
) -> dict[str, Any]:
    deviation = {"deviation": priced.deviation(found.best.forks)} if priced.deviation else {}
    return {
        "price": priced.name,
        "best": _plain(found.best, accuracies) | deviation,
        "exact": found.exact,
        "bound": found.bound,
        "apart": apart and _plain(apart, accuracies),
        "front": [_plain(each, accuracies) for each in found.front],
        "front_exact": found.front_exact,
        **priced.told,
    }


def _plain(choice: Choice, accuracies: Accuracies) -> dict[str, Any]:
    forks = zip(accuracies, _forks(choice.forks), strict=True)
    tasks = {name: {"fork": str(fork), "accuracy": accuracies[name][fork].value} for name, fork in forks}
    return {"tasks": tasks, "accuracy": choice.accuracy, "added": choice.added}


def _print(
    found: Together, apart: Choice | None, accuracies: Accuracies, priced: _Priced, limit: float
) -> None:
    from ..tradeoff import in_words

    best, forks = found.best, zip(accuracies, _forks(found.best.forks), strict=True)
    print_table(
        ("task", "fork", "accuracy"),
        ((name, fork, in_words(accuracies[name][fork])) for name, fork in forks),
    )
    doubt = f" ± {196 * priced.deviation(best.forks):.1f} %" if priced.deviation else ""
    sure = "by this model none is better"
    sure = sure if found.exact else f"not exact: by this model none is better than {found.bound:.1%}"
    click.echo(f"together: mean accuracy {best.accuracy:.1%}, added latency {best.added:.1%}{doubt} ({sure})")
    click.echo(f"apart, each for an equal part of {limit:.1%}: {_apart(apart, accuracies)}")
    more = next((each for each in found.front if each.accuracy > best.accuracy), None)
    if more:
        click.echo(f"for more: {_apart(more, accuracies)}")
    if priced.deviation is None:
        messages.print(f"{priced.name}: predicted from a datasheet, not run on that device")
    elif "held_out" in priced.told:
        messages.print(f"{priced.name}: {scored(priced.told['held_out']['calibrated'])}")
    else:
        messages.print(f"{priced.name}: fitted to {', '.join(priced.told['fitted'])}")


def _apart(choice: Choice | None, accuracies: Accuracies) -> str:
    if choice is None:
        return "one of the tasks can have no fork"
    named = ", ".join(f"{name} {fork}" for name, fork in zip(accuracies, _forks(choice.forks), strict=True))
    return f"{named}; mean accuracy {choice.accuracy:.1%}, added latency {choice.added:.1%}"


COMMANDS = (choose,)
