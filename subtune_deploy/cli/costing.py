"""Commands that predict: cost."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import InputError, LayersError
from ..spec import format_layers
from ..stats import NORMAL
from .calibrating import calibration_options
from .common import (
    classes_option,
    json_option,
    messages,
    network_options,
    options,
    print_json,
    print_table,
    read_backbone,
    read_layers,
)
from .pruning import prune_candidate_options, read_pruning

if TYPE_CHECKING:
    from ..backbone import Backbone
    from ..predictor import Costing, Predictor
    from ..results import Result
    from ..work import Work

Works = Sequence["Work"]
Predictions = dict[str, dict[str, float]]
"""By model: ratio to the base, and its deviation where that is known."""

fit_options = options(
    click.option(
        "--run",
        type=click.Path(path_type=Path),
        metavar="RUN",
        help="A sweep of this model: fit latency to some of it.",
    ),
    click.option(
        "--measurements",
        type=click.IntRange(1),
        default=10,
        show_default=True,
        help="Of --run that are fitted, at most.",
    ),
)
"""Latencies that are fitted to a sweep."""


@click.command()
@network_options
@click.option(
    "--layers", "forks", required=True, multiple=True, metavar="LAYERS",
    help="A task's fork, as in 13-14 or 2,14; repeatable: one graph for all.",
)  # fmt: skip
@click.option(
    "--tasks", type=click.IntRange(1, 256), default=1, show_default=True, help="So many on each of --layers."
)
@classes_option
@prune_candidate_options
@click.option(
    "--target",
    metavar="NAME",
    help="A recipe with datasheet numbers, for the paper's model; or which target of --run.",
)
@fit_options
@calibration_options
@json_option
def cost(
    forks: tuple[str, ...],
    tasks: int,
    classes: int | None,
    target: str | None,
    run: Path | None,
    measurements: int,
    calibration: Path | None,
    across: bool,
    as_json: bool,
    **network: Any,
) -> None:
    """What forks ask of a machine, and what models of latency make of it.

    Nothing is built or timed. With --run, the most telling measurements of a sweep are fitted, and the model is held
    against those that are left; with --calibration, all that `calibrate` measured are.
    """
    from ..calibrating import read_calibration
    from ..predictor import Costing
    from ..targets import load_target

    if run and calibration:
        raise InputError("both of --run and --calibration were given", "give one of them")
    prune = read_pruning(network)
    backbone = read_backbone(**network)
    given, measured = [read_layers(each, backbone) for each in forks] * tasks, None
    if calibration:
        measured = read_calibration(calibration, backbone, across=across, classes=classes)
        classes = measured[0].classes  # where none was asked for, those that it was measured with
    costing = measured[0].costing if measured else Costing(backbone)
    works, base = costing.works(given, prune, classes), costing.base
    predicted: Predictions = {"multiply-adds": {"ratio": _macs(works) / _macs(base)}}
    found: dict[str, Any] = {
        "model": backbone.name,
        "forks": given,
        "classes": classes,
        "predicted": predicted,
    }
    if target and (not run or load_target(target).datasheet):
        predicted |= _from_datasheet(target, base, works, given[0] if len(given) == 1 and not prune else ())
    if run:
        results = results_of(run, backbone, target)
        predictor, told = fit_run(results, costing, measurements)
        predicted[f"calibrated, {results[0].target}"] = dataclasses.asdict(predictor.model.predict(works))
        found |= told | {"spread": predictor.model.spread}
    if measured:
        predictor, fitted = measured
        name = f"calibrated, {fitted.target.name}"
        predicted[name] = dataclasses.asdict(predictor.predict(given, prune))
        found |= {
            "base_seconds": fitted.base_seconds,
            "fitted": list(map(str, fitted.anchors)),
            "spread": predictor.model.spread,
        }
    found["uncounted"] = dict(costing.counted.uncounted)
    if as_json:
        print_json(found | {"works": [_row(work) for work in works]})
    else:
        _print(found, base, works)


def _from_datasheet(name: str, base: Works, works: Works, fork: Sequence[int]) -> Predictions:
    """Ratios by peak rates: the overlap for this plan and, for one whole task on consecutive blocks, as printed."""
    from ..cost_model import machine_of, paper_of_blocks, plan_times, total
    from ..targets import load_target

    machine = machine_of(load_target(name))
    alone = plan_times(base, machine)
    found = {f"plan, {name}": {"ratio": total(plan_times(works, machine)) / total(alone)}}
    if fork and len(fork) == fork[-1] - fork[0] + 1:
        found[f"paper, {name}"] = {"ratio": 1 + paper_of_blocks(alone, fork)}
    return found


def fit_run(results: Sequence[Result], costing: Costing, count: int) -> tuple[Predictor, dict[str, Any]]:
    """Fitted to `count` of `results` at most, the most telling; which these are, and its errors on the rest."""
    from ..fitting import fit_results, score_fit, score_macs
    from ..latency_model import anchor
    from ..predictor import Predictor

    anchors = [anchor(each) for each in results]
    graphs = [costing.anchored(each) for each in anchors]
    fit = fit_results(costing.base, graphs, anchors, min(count, len(anchors) - 1))
    scores = {
        "calibrated": score_fit(fit, graphs, anchors),
        "multiply-adds": score_macs(fit, costing.base, graphs, anchors),
    }
    learnt = tuple(anchors[index] for index in fit.learnt)
    return Predictor(costing, learnt), {
        "fitted": list(map(str, learnt)),
        "held_out": {name: dataclasses.asdict(each) for name, each in scores.items()},
    }


def results_of(run: Path, backbone: Backbone, target: str | None) -> list[Result]:
    """Results of this backbone on one target: of several the one that was named. Raises InputError."""
    from ..results import check_comparable, of_target, read_results
    from ..run_folder import check_blocks

    found = list(read_results(run))
    other = next((each for each in found if each.model != backbone.name), None)
    if other or not found:
        what = f"is of {other.model}, not of {backbone.name}" if other else "has no result"
        raise InputError(f"{run} {what}", f"give a sweep of {backbone.name}")
    named = (
        target if any(each.target == target for each in found) else None
    )  # or a datasheet's, of another device
    found = of_target(run, found, named)
    check_comparable(found)
    check_blocks(run, [block.name for block in backbone.blocks], backbone.name)
    try:
        for each in found:
            _check_layers(each, backbone)
    except LayersError as error:
        raise InputError(f"{run}: {error.message}", error.hint) from error
    return found


def _check_layers(result: Result, backbone: Backbone) -> None:
    if tuple(result.input_shape) != backbone.input.shape:
        size = "x".join(map(str, result.input_shape))
        raise LayersError(f"fork {result.fork} was measured on input {size}", f"give --input-size {size}")
    read_layers(format_layers(result.layers), backbone)


def _macs(works: Works) -> int:
    return sum(work.macs for work in works)


def _row(work: Work) -> dict[str, Any]:
    names = ("unit", "streams", "macs", "activations", "weights", "launches")
    return {name: getattr(work, name) for name in names}


def _print(found: Mapping[str, Any], base: Works, works: Works) -> None:
    columns = ("layer", "streams", "MACs", "activations", "weights", "launches")
    rows = [tuple(_row(work).values()) for work in works if work.uses]
    sums = [("in all", "", *_sums(works)), ("base alone", "", *_sums(base))]
    print_table(columns, ([_grouped(cell) for cell in row] for row in (*rows, *sums)))
    click.echo()
    print_table(("model", "times the base"), _predictions(found["predicted"]))
    for name, held_out in found.get("held_out", {}).items():
        click.echo(f"{name}: {scored(held_out)}")
    if found["classes"]:
        messages.print(f"with {found['classes']:,} classes for each task")
    messages.print(
        f"elements, not bytes; operators for which no multiply-adds are counted: {_list(found['uncounted'])}"
    )
    if any("," in name and not name.startswith("calibrated") for name in found["predicted"]):
        messages.print(
            "plan and paper take peak rates from a datasheet: nothing of this was run on that device"
        )
    if "fitted" in found:
        messages.print(
            f"fitted to {', '.join(found['fitted'])}; what a graph takes is taken to differ by {found['spread']:.1%} "
            "of itself from one build and hour to the next"
        )


def _sums(works: Works) -> Iterator[int]:
    for name in ("macs", "activations", "weights", "launches"):
        yield sum(getattr(work, name) for work in works)


def _grouped(cell: object) -> str:
    return f"{cell:,}" if isinstance(cell, int) else str(cell)


def _predictions(predicted: Mapping[str, Mapping[str, float]]) -> Iterator[tuple[str, str]]:
    for name, each in predicted.items():
        doubt = f" ± {NORMAL * each['deviation']:.3f}" if "deviation" in each else ""
        yield name, f"{each['ratio']:.3f}{doubt}"


def scored(score: Mapping[str, Any]) -> str:
    """Of a Score as a mapping."""
    ranked = math.isfinite(score["rank"])  # one alone has no rank
    rank = f", rank correlation {score['rank']:.3f}" if ranked else ""
    held = "1 measurement that was" if score["count"] == 1 else f"{score['count']} measurements that were"
    return (
        f"on {held} held out, {score['total']:.1%} off on average, added latency "
        f"{score['added']:.1%} in the median{rank}"
    )


def _list(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name.removeprefix('aten.')}" for name, count in counts.items()) or "none"


COMMANDS = (cost,)
