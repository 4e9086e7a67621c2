"""Ten measurements of a network on a target: how well do they tell all others?

    python benchmarks/predictions.py [resnet50 efficientnet_b0 vit_b_16] [--seconds 5]

Every fork of one to three consecutive blocks, scattered pairs, and graphs of two, four and eight tasks are built,
checked and timed on ONNX Runtime and on OpenVINO in fp32 and bf16. The model learns the ten that tell most, chosen
without a look at their latencies, and predicts all others; beside it a line through added multiply-adds and the
paper's formula with its one free ratio (compute to bandwidth), both fitted to the same ten, and what a second build
and load of the same fork differs by. The sweeps lie in benchmarks/results/predictions and go on where they stopped;
the tables are in benchmarks/results/predictions.md, --tables makes them anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import numpy as np

from subtune_deploy.backbone import Backbone, trace
from subtune_deploy.cost_model import Machine, paper_of_blocks, plan_times
from subtune_deploy.fitting import Fit, Score, fit_results, score, score_fit, score_macs
from subtune_deploy.latency_model import Anchor, anchor
from subtune_deploy.measure import Protocol
from subtune_deploy.models import load_model
from subtune_deploy.predictor import Costing
from subtune_deploy.result_tables import markdown
from subtune_deploy.results import Result, read_results
from subtune_deploy.run_folder import RUN
from subtune_deploy.sweep import Candidate, Step, SweepOptions, candidates, sweep
from subtune_deploy.targets import load_target

RESULTS = Path(__file__).parent / "results"
SWEEPS, SUMMARY = RESULTS / "predictions", RESULTS / "predictions.md"
NETWORKS = ("resnet50", "efficientnet_b0", "vit_b_16")
TARGETS = {
    "cpu": "ONNX Runtime fp32",
    "openvino-cpu": "OpenVINO fp32",
    "openvino-cpu-bf16": "OpenVINO bf16",
}
MEASURED = 10
LENGTHS = (1, 3)
COUNTS = (2, 4, 8)
RATES = np.geomspace(1, 1e4, 200)
"""Multiply-adds for each byte loaded, among which the paper's formula takes what fits best."""


def pairs(blocks: int) -> tuple[tuple[int, int], ...]:
    """Scattered forks: near and far, early and late."""
    return (
        (1, blocks // 2),
        (2, blocks - 2),
        (3, blocks - 4),
        (blocks // 3, 2 * blocks // 3),
        (blocks - 3, blocks),
    )


def many(blocks: int) -> tuple[tuple[int, ...], ...]:
    """Forks that several tasks take: late, in the middle, early."""
    middle = blocks // 2
    return (blocks - 1, blocks), (middle, middle + 1), (2, 3)


def chosen(blocks: int) -> tuple[Candidate, ...]:
    """All that is measured; forks of three blocks come last, since they tell least that is new."""
    low, high = LENGTHS
    few, many_tasks = (
        candidates(blocks, (low, high - 1), pairs(blocks)),
        candidates(blocks, forks=many(blocks), tasks=COUNTS),
    )
    return (*few, *many_tasks, *candidates(blocks, (high, high)))


def repeated(blocks: int) -> tuple[Candidate, ...]:
    """What is built and loaded once more, for the noise floor."""
    return candidates(
        blocks, forks=[(1,), (blocks // 2,), (blocks,), (blocks - 2, blocks - 1), pairs(blocks)[1]]
    )


@click.command()
@click.argument("networks", nargs=-1, type=click.Choice(NETWORKS))
@click.option("--seconds", type=float, default=5.0, show_default=True, help="For each candidate and target.")
@click.option("--tables", is_flag=True, help="Measure nothing.")
def main(networks: tuple[str, ...], seconds: float, tables: bool) -> None:
    """Measure what is missing, fit, write."""
    rows, notes = list[list[str]](), list[str]()
    for name in NETWORKS:
        backbone = trace(load_model(name))
        if not tables and name in (networks or NETWORKS):
            measure(backbone, seconds)
        if (SWEEPS / name / RUN).is_file():
            for target, engine in TARGETS.items():
                lines, note = evaluated(backbone, target, engine)
                rows += lines
                notes.append(note)
    SUMMARY.write_text(_text(notes) + markdown(_HEADER, rows))
    click.echo(SUMMARY.read_text())


def measure(backbone: Backbone, seconds: float) -> None:
    """Both sweeps."""
    blocks, options = len(backbone.blocks), SweepOptions(protocol=Protocol(seconds=seconds))
    targets = [load_target(target) for target in TARGETS]
    for candidates_of, folder in ((repeated, f"{backbone.name}_again"), (chosen, backbone.name)):
        sweep(backbone, candidates_of(blocks), targets, SWEEPS / folder, options, told=_told)


def _told(step: Step) -> None:
    if step.outcome is not None:
        left = (step.seconds_left or 0) / 60
        click.echo(
            f"[{step.done}/{step.total}] {step.candidate} on {step.target}, {left:.0f} min left", err=True
        )


def evaluated(backbone: Backbone, target: str, engine: str) -> tuple[list[list[str]], str]:
    """Rows of the table, and which forks were learnt from."""
    costing = Costing(backbone)
    results = _of(backbone.name, target)
    anchors = [anchor(each) for each in results]
    graphs = [costing.anchored(each) for each in anchors]
    fit = fit_results(costing.base, graphs, anchors, MEASURED)
    scores = {
        "calibrated": score_fit(fit, graphs, anchors),
        "multiply-adds": score_macs(fit, costing.base, graphs, anchors),
        "the paper's formula": score_paper(fit, costing, anchors),
        "measured again": score_again(backbone.name, target),
    }
    rows = [[backbone.name, engine, name, *_cells(each)] for name, each in scores.items()]
    rows += [
        [backbone.name, engine, f"calibrated, {what}", *_cells(each)]
        for what, each in _parts(fit, graphs, anchors)
    ]
    return rows, f"{backbone.name}, {engine}: {', '.join(str(anchors[index]) for index in fit.learnt)}"


def _parts(fit: Fit, graphs: Sequence[object], anchors: Sequence[Anchor]) -> Iterator[tuple[str, Score]]:
    """The same by kind of graph."""
    kinds = {
        "one task, consecutive": lambda each: len(each.forks) == 1 and consecutive(each.forks[0]),
        "one task, scattered": lambda each: len(each.forks) == 1 and not consecutive(each.forks[0]),
        "2, 4, 8 tasks": lambda each: len(each.forks) > 1,
    }
    for what, belongs in kinds.items():
        left = tuple(index for index in fit.left if belongs(anchors[index]))
        yield what, score_fit(Fit(fit.model, fit.learnt, left), graphs, anchors)  # type: ignore[arg-type]


def score_paper(fit: Fit, costing: Costing, anchors: Sequence[Anchor]) -> Score:
    """The printed formula, its ratio of compute to bandwidth fitted to what `fit` learnt from, where it applies."""
    covered = [
        index for index, each in enumerate(anchors) if len(each.forks) == 1 and consecutive(each.forks[0])
    ]
    learnt, left = ([i for i in part if i in covered] for part in (fit.learnt, fit.left))
    true = np.array([each.ratio.value for each in anchors])
    found = np.array([[1 + paper(costing, rate, each.forks[0]) if i in covered else np.nan
                       for i, each in enumerate(anchors)] for rate in RATES])  # fmt: skip
    best = found[np.abs(found[:, learnt] - true[learnt]).sum(axis=1).argmin()]
    return score(list(best[left]), list(true[left]))


def paper(costing: Costing, rate: float, fork: Sequence[int]) -> float:
    """Added latency on a machine that does `rate` multiply-adds while it loads a byte."""
    return paper_of_blocks(plan_times(costing.base, Machine(rate, 1.0)), fork)


def score_again(name: str, target: str) -> Score:
    """What the first measurement of a fork says of the second one."""
    first = {(r.layers, r.tasks): r.ratio.value for r in _of(name, target)}
    again = _of(f"{name}_again", target)
    return score([first[each.layers, each.tasks] for each in again], [each.ratio.value for each in again])


def _of(folder: str, target: str) -> list[Result]:
    return [each for each in read_results(SWEEPS / folder) if each.target == target]


def consecutive(fork: Sequence[int]) -> bool:
    return len(fork) == fork[-1] - fork[0] + 1


_HEADER = (
    "network",
    "engine",
    "told by",
    "graphs",
    "latency off",
    "added off",
    "rank correlation",
    "in its interval",
)


def _cells(found: Score) -> list[str]:
    within = "-" if found.within is None else f"{found.within:.0%}"
    return [str(found.count), f"{found.total:.1%}", f"{found.added:.1%}", f"{found.rank:.3f}", within]


def _text(notes: Sequence[str]) -> str:
    firsts = {name: read_results(SWEEPS / name)[0] for name in NETWORKS if (SWEEPS / name / RUN).is_file()}
    hosts: dict[str, list[str]] = {}
    for name, first in firsts.items():
        hosts.setdefault(_host(first), []).append(name)
    where = "; ".join(f"{', '.join(names)} on {host}" for host, names in hosts.items())
    return (
        f"`python benchmarks/predictions.py`: {where}; batch 1, {first.protocol.seconds:g} s for each graph and its "
        "base. Latency is off by so much of itself on average, "
        "added latency in the median; the rank is Spearman's; an interval is of two deviations. "
        f"All but the {MEASURED} that were learnt from are predicted; the paper's formula covers one task on "
        'consecutive blocks alone. "Measured again": the same forks built, loaded and timed once more.\n\n'
        "Learnt from:\n\n" + "".join(f"- {note}\n" for note in notes) + "\n"
    )


def _host(result: Result) -> str:
    libraries = result.host["libraries"]
    versions = ", ".join(f"{name} {libraries.get(name)}" for name in ("onnxruntime", "openvino"))
    return f"{result.host['cores']} cores of {result.host['cpu']} ({versions})"


if __name__ == "__main__":
    main()
