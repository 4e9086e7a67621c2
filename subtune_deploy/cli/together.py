"""Commands that choose for several tasks: choose."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from ..errors import InputError
from .calibrating import calibration_options, check_confirm, confirm_option
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
from .timing import sweep_teller

if TYPE_CHECKING:
    from ..backbone import Backbone
    from ..calibrating import Growing
    from ..choice import Settled
    from ..costs import CandidateFork
    from ..joint import Choice, Floor, Forks, Option, Price
    from ..predictor import Costing, Predictor
    from ..stats import Interval
    from ..tuning.documents import Profile

    Accuracies = Mapping[str, Mapping[CandidateFork, Interval]]
    """By task and fork."""

MOST = 10
"""Graphs that are measured before the choice is left as it is."""


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
@confirm_option
@click.option(
    "--max-added", required=True, metavar="PERCENT", help="Added latency of all together at most, as in 30%."
)
@click.option(
    "--weight", multiple=True, metavar="NAME=NUMBER", help="Of a task in the mean; default: 1. Repeatable."
)
@json_option
def choose(
    tasks: Sequence[str], run: Path | None, target: str | None, measurements: int, calibration: Path | None,
    across: bool, confirm: bool, max_added: str, weight: Sequence[str], as_json: bool, **network: Any,
) -> None:  # fmt: skip
    """Which forks to deploy for several tasks on one budget.

    The highest mean accuracy whose added latency, all tasks in one graph, is within --max-added. Latency is that of
    a model: fitted to measurements of RUN, or the paper's with a datasheet's rates; with --confirm what is chosen is
    measured, and chosen again with what is known then.
    """
    from ..tuning.documents import read_profile

    limit, weights = parse_percent("--max-added", max_added) or 0.0, _numbers(weight)
    if run is None and target is None and calibration is None:
        raise InputError(
            "nothing says what forks cost",
            "give --calibration FILE, --run RUN, or --target NAME with a datasheet",
        )
    if run is not None and calibration is not None:
        raise InputError("both of --run and --calibration were given", "give one of them")
    check_confirm(confirm, calibration, across)
    profiles = {name: read_profile(Path(path)) for name, path in pairs(tasks, "--task").items()}
    backbone = read_backbone(**network)
    accuracies, left_out = _accuracies(profiles, backbone)
    growing = None if calibration is None else _growing(calibration, backbone, across, len(accuracies))
    priced = _from_file(growing) if growing else _priced(backbone, run, target, measurements, len(accuracies))
    asked = _Asked(_options(accuracies), priced, limit, weights)
    settled = asked.settled(growing if confirm else None)
    if left_out:
        messages.print(f"left out: {', '.join(left_out)}")
    priced = _from_file(growing) if growing else priced  # it may have learnt
    if as_json:
        more = {"max_added": limit, "left_out": left_out}
        print_json(_document(settled, asked.apart(), accuracies, priced) | more)
    else:
        _print(settled, asked.apart(), accuracies, priced, limit)


@dataclass(frozen=True)
class _Asked:
    """What is to be chosen from, and for how much."""

    options: Mapping[str, Sequence[Option]]
    priced: _Priced
    limit: float
    weights: Mapping[str, float]

    def settled(self, growing: Growing | None) -> Settled:
        """By predictions alone, or with `growing` measured until the choice stands."""
        from ..choice import Settled, settle
        from ..joint import choose_together, multiset
        from ..sweep import Candidate

        weights, price, floor = self.weights, self.priced.price, self.priced.floor
        if growing is None:
            found = choose_together(self.options, price, max_added=self.limit, weights=weights, floor=floor)
            return Settled(found.best, None, found, ())
        Candidate(self._every_fork())  # raises where sets could be chosen that cannot be measured
        known = {multiset(forks): each for forks, each in growing.graphs.items()}
        with redirect_stdout(sys.stderr):
            return settle(
                self.options,
                price,
                lambda forks: growing.measure(Candidate(_forks(forks))),
                self.limit,
                weights=weights,
                floor=floor,
                known=known,
                most=MOST,
            )

    def _every_fork(self) -> tuple[CandidateFork, ...]:
        return _forks(tuple(each.fork for options in self.options.values() for each in options))

    def apart(self) -> Choice | None:
        from ..joint import choose_apart

        return choose_apart(self.options, self.priced.price, self.limit, self.weights)


def _options(accuracies: Accuracies) -> dict[str, list[Option]]:
    from ..joint import Option

    return {
        name: [Option(fork, each.value) for fork, each in mine.items()] for name, mine in accuracies.items()
    }


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
    from ..tasks import own_classes
    from ..tradeoff import candidates, check_profiles, head_of

    check_profiles(profiles, backbone.name, backbone.input.shape, [each.name for each in backbone.blocks])
    found = {name: candidates(profile) for name, profile in profiles.items()}
    left_out = [f"{name} {fork}" for name, (_, forks) in found.items() for fork in forks]
    accuracies = {
        name: {
            CandidateFork(
                cast("tuple[int, ...]", fork.layers),
                fork.prune,
                own_classes(backbone, head_of(profiles[name])),
            ): each
            for fork, each in mine.items()
        }
        for name, (mine, _) in found.items()
    }
    return accuracies, left_out


def _growing(file: Path, backbone: Backbone, across: bool, tasks: int) -> Growing:
    from ..calibrating import Growing, read_calibration

    predictor, found = read_calibration(file, backbone, across=across)
    return Growing(file, found, predictor, tasks, sweep_teller(lambda *done: None, []))


def _from_file(growing: Growing) -> _Priced:
    told = {"fitted": [str(each) for each in growing.found.anchors]}
    return _calibrated(growing.found.target.name, lambda: growing.predictor, growing.tasks, told)


def _priced(backbone: Backbone, run: Path | None, target: str | None, count: int, tasks: int) -> _Priced:
    """By some measurements of a run, or a datasheet."""
    from ..predictor import Costing

    costing = Costing(backbone)
    if run is None:
        return _from_datasheet(str(target), costing)
    results = results_of(run, backbone, target)
    predictor, told = fit_run(results, costing, count)
    return _calibrated(results[0].target, lambda: predictor, tasks, told)


def _calibrated(
    target: str, predictor: Callable[[], Predictor], tasks: int, told: Mapping[str, Any]
) -> _Priced:
    """By what `predictor` gives, which may have learnt since."""
    return _Priced(
        f"calibrated, {target}",
        lambda forks: predictor().together(_forks(forks)).added,
        lambda fork: predictor().least_added(_forks((fork,))[0], tasks - 1),
        lambda forks: predictor().together(_forks(forks)).deviation,
        told,
    )


def _forks(forks: Forks) -> tuple[CandidateFork, ...]:
    """What the options hold, which are of any kind to who chooses among them."""
    return cast("tuple[CandidateFork, ...]", forks)


def _from_datasheet(name: str, costing: Costing) -> _Priced:
    from ..cost_model import least_added, machine_of, plan_times, total
    from ..targets import load_target

    machine = machine_of(load_target(name))
    base = plan_times(costing.base, machine)
    return _Priced(
        f"plan, {name}",
        lambda forks: total(plan_times(costing.together(_forks(forks)), machine)) / total(base) - 1,
        lambda fork: least_added(base, plan_times(costing.together(_forks((fork,))), machine)) / total(base),
    )


def _document(
    settled: Settled, apart: Choice | None, accuracies: Accuracies, priced: _Priced
) -> dict[str, Any]:
    found, best = settled.together, settled.best
    doubt: dict[str, Any] = {"deviation": priced.deviation(best.forks)} if priced.deviation else {}
    if settled.measured:
        doubt = {"measured": asdict(settled.measured.added)}
    return {
        "price": priced.name,
        "best": _plain(best, accuracies) | doubt,
        "confirmed": list(map(str, settled.confirmed)),
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
    settled: Settled, apart: Choice | None, accuracies: Accuracies, priced: _Priced, limit: float
) -> None:
    from ..tradeoff import in_words

    found, best = settled.together, settled.best
    forks = zip(accuracies, _forks(best.forks), strict=True)
    print_table(
        ("task", "fork", "accuracy"),
        ((name, fork, in_words(accuracies[name][fork])) for name, fork in forks),
    )
    doubt = f" ± {196 * priced.deviation(best.forks):.1f} %" if priced.deviation else ""
    if settled.measured:
        doubt = f" ({settled.measured.added.low:.1%} to {settled.measured.added.high:.1%}, measured)"
    sure = "by this model none is better"
    sure = sure if found.exact else f"not exact: by this model none is better than {found.bound:.1%}"
    click.echo(f"together: mean accuracy {best.accuracy:.1%}, added latency {best.added:.1%}{doubt} ({sure})")
    click.echo(f"apart, each for an equal part of {limit:.1%}: {_apart(apart, accuracies)}")
    more = next((each for each in found.front if each.accuracy > best.accuracy), None)
    if more:
        click.echo(f"for more: {_apart(more, accuracies)}")
    if settled.left:
        which = (
            "the best of those is shown" if settled.measured else "none keeps the budget: this is predicted"
        )
        messages.print(f"{MOST} were measured, {which}; next would be {_apart(settled.left, accuracies)}")
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
