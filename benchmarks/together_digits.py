"""Forks for five tasks on one budget, chosen by a model of ten measurements: what do their graphs really take?

    python benchmarks/together_digits.py [--scratch FOLDER]

Five tasks of benchmarks/results/digits_study share EfficientNet-Lite0 at 64 pixels: MNIST, scikit-learn's digits, and
MNIST damaged in three ways, 500 pictures each, single blocks with three seeds. On ONNX Runtime and OpenVINO ten graphs
of one, two or four tasks are measured, and the forks chosen that are best together by the model within each budget;
beside them what each task takes for an equal part of the budget. Each chosen graph is then built, checked and timed;
confirmed, as by `choose --confirm`, it is learnt from and chosen again until the graph that is chosen was timed.
benchmarks/results/together_digits.json holds forks, predictions and measured intervals; together_digits.md the table.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import click

from subtune_deploy.backbone import Backbone, trace
from subtune_deploy.backends.base import Target
from subtune_deploy.build import build
from subtune_deploy.calibrating import calibrate
from subtune_deploy.choice import settle
from subtune_deploy.compiling import compile_bundle
from subtune_deploy.costs import CandidateFork
from subtune_deploy.demo import MODEL, base_checkpoint
from subtune_deploy.documents import read_document
from subtune_deploy.environment import describe
from subtune_deploy.fitting import score
from subtune_deploy.joint import Choice, Option, choose_apart, choose_together
from subtune_deploy.latency_model import Anchor, anchor
from subtune_deploy.measure import ADAPTIVE
from subtune_deploy.models import load_model
from subtune_deploy.predictor import Predictor
from subtune_deploy.result_tables import markdown
from subtune_deploy.results import Result
from subtune_deploy.stats import NORMAL
from subtune_deploy.sweep import SweepOptions, candidates
from subtune_deploy.targets import load_target
from subtune_deploy.tasks import candidate_task
from subtune_deploy.timing import time_bundle
from subtune_deploy.tradeoff import candidates as forks_of
from subtune_deploy.tradeoff import check_profiles
from subtune_deploy.tuning.documents import Profile

RESULTS = Path(__file__).parent / "results"
STUDY, RAW, SUMMARY = (
    RESULTS / "digits_study",
    RESULTS / "together_digits.json",
    RESULTS / "together_digits.md",
)
TASKS = {
    "mnist": "digits_500",
    "sklearn": "sklearn-digits_500",
    "noise": "digits_gaussian_noise-5_500",
    "fog": "digits_fog-5_500",
    "blur": "digits_zoom_blur-5_500",
}
SIZE, CLASSES, MEASURED = (3, 64, 64), 10, 10
TARGETS = {"cpu": "ONNX Runtime", "openvino-cpu": "OpenVINO"}
BUDGETS = (0.3, 0.45, 0.6, 0.75)
PROTOCOL = replace(ADAPTIVE, seconds=4)

Forks = tuple[CandidateFork, ...]


@dataclass(frozen=True)
class Row:
    """One set of forks: chosen together, apart, or confirmed by so many measurements; added latency with the half of
    its 95 % interval."""

    engine: str
    budget: float
    way: str
    spent: int
    forks: tuple[str, ...]
    accuracy: float
    predicted: float
    doubt: float
    measured: float
    low: float
    high: float


@click.command()
@click.option("--scratch", type=click.Path(path_type=Path), default="runs/together", show_default=True)
@click.option("--tables", is_flag=True, help="Measure nothing.")
def main(scratch: Path, tables: bool) -> None:
    """Calibrate, choose, measure, write."""
    if not tables:
        scratch.mkdir(parents=True, exist_ok=True)
        base = base_checkpoint(scratch / "base.safetensors")
        backbone = trace(load_model(MODEL, str(base), SIZE))
        found = [row for name in TARGETS for row in chosen(backbone, load_target(name), scratch)]
        document = {"host": describe(), "seconds": PROTOCOL.seconds, "rows": list(map(asdict, found))}
        RAW.write_text(json.dumps(document, indent=1) + "\n")
    document = json.loads(RAW.read_text())
    rows = [Row(**{**each, "forks": tuple(each["forks"])}) for each in document["rows"]]
    SUMMARY.write_text(summary(rows, document["host"]))
    click.echo(SUMMARY.read_text())


def chosen(backbone: Backbone, target: Target, scratch: Path) -> list[Row]:
    """For each budget, what is best together, and what each task takes apart; measured."""
    every = candidates(len(backbone.blocks), (1, 2), tasks=(1, 2, 4), classes=CLASSES)
    options = SweepOptions(protocol=PROTOCOL)
    found = calibrate(backbone, every, target, scratch / f"{target.name}.run", options, count=MEASURED)
    predictor = Predictor.of(backbone, found)
    profiles = {name: read_document(Profile, STUDY / f"{each}.json") for name, each in TASKS.items()}
    check_profiles(profiles, backbone.name, backbone.input.shape, [each.name for each in backbone.blocks])
    tasks = {name: _options(each) for name, each in profiles.items()}
    timed, rows = _Timed(backbone, target), []
    for budget in BUDGETS:
        alone, asked = _Learning(predictor), _Learning(predictor)
        settled = settle(
            tasks,
            asked.price,
            lambda forks: asked.learn(timed(forks)),  # noqa: B023 - used at once
            budget,
            floor=asked.floor,
        )
        together = choose_together(tasks, alone.price, max_added=budget, floor=alone.floor)
        choices = {
            "together": (together.best, 0),
            "confirmed": (settled.best, len(settled.confirmed)),
            "apart": (choose_apart(tasks, alone.price, budget), 0),
        }
        for way, (choice, spent) in choices.items():
            if choice is not None:
                rows.append(_row(predictor, timed, budget, choice, way, spent))
                click.echo(f"{target.name}, {budget:.0%}: {rows[-1]}", err=True)
    return rows


@dataclass
class _Learning:
    """What forks cost by all that is known by now."""

    predictor: Predictor

    def price(self, forks: tuple[Hashable, ...]) -> float:
        """Of all together."""
        return self.predictor.together(cast("Forks", forks)).added

    def floor(self, fork: Hashable) -> float:
        """Of one, at the least."""
        return self.predictor.least_added(cast("CandidateFork", fork), len(TASKS) - 1)

    def learn(self, result: Result) -> Anchor:
        """From a graph that was timed."""
        found = anchor(result)
        self.predictor = self.predictor.learn(found)
        return found


def _options(profile: Profile) -> list[Option]:
    found, _ = forks_of(profile)
    return [
        Option(CandidateFork(fork.layers, fork.prune, CLASSES), each.value) for fork, each in found.items()
    ]


class _Timed:
    """Graphs of chosen forks, as they would be deployed but for their weights; each is timed once."""

    def __init__(self, backbone: Backbone, target: Target) -> None:
        self.backbone, self.target = backbone, target
        self.known: dict[Forks, Result] = {}

    def __call__(self, forks: Forks) -> Result:
        if forks not in self.known:
            self.known[forks] = self._time(forks)
        return self.known[forks]

    def _time(self, forks: Forks) -> Result:
        tasks = [
            candidate_task(
                self.backbone, name, fork.layers, seed=seed, classes=fork.classes, prune=fork.prune
            )
            for seed, (name, fork) in enumerate(zip(TASKS, forks, strict=True), start=1)
        ]
        with tempfile.TemporaryDirectory() as folder:
            bundle = build(self.backbone, tasks, Path(folder) / "bundle", sources=False)
            return time_bundle(compile_bundle(bundle, self.target), self.target.name, PROTOCOL)


def _row(predictor: Predictor, timed: _Timed, budget: float, choice: Choice, way: str, spent: int) -> Row:
    forks = cast("Forks", choice.forks)
    predicted, result = predictor.together(forks), timed(forks)
    return Row(
        timed.target.name, budget, way, spent, tuple(map(str, forks)), choice.accuracy, predicted.added,
        NORMAL * predicted.deviation, result.added, result.ratio.low - 1, result.ratio.high - 1,
    )  # fmt: skip


def summary(rows: Sequence[Row], host: Mapping[str, Any]) -> str:
    """Markdown: the command, the host, a row for each budget and engine."""
    graphs = list({(row.engine, row.forks): row for row in rows}.values())
    found = score([1 + row.predicted for row in graphs], [1 + row.measured for row in graphs])
    within = sum(abs(row.measured - row.predicted) <= row.doubt for row in graphs)
    return (
        f"`python benchmarks/together_digits.py`: EfficientNet-Lite0, {SIZE[-1]} pixels, five tasks of {CLASSES} "
        f"classes; accuracies of benchmarks/results/digits_study, single blocks. {MEASURED} graphs of one, two or four "
        f"tasks were measured on each engine, none of five. Of {len(graphs)} graphs latencies are {found.total:.1%} "
        f"off on average, added latencies {found.added:.1%} in the median; {within} are within their interval. "
        f"{host['cores']} cores of {host['cpu']}, onnxruntime {host['libraries'].get('onnxruntime')}, openvino "
        f"{host['libraries'].get('openvino')}, {PROTOCOL.seconds:g} s each.\n\n"
    ) + markdown(
        (
            "engine",
            "budget",
            "chosen",
            f"forks of {', '.join(TASKS)}",
            "mean accuracy",
            "predicted",
            "measured",
            "keeps it",
        ),
        map(_cells, rows),
    )


def _cells(row: Row) -> list[str]:
    return [
        TARGETS[row.engine],
        f"{row.budget:.0%}",
        f"{row.way}, {row.spent} timed" if row.spent else row.way,
        ", ".join(row.forks),
        f"{row.accuracy:.2%}",
        f"{row.predicted:+.1%} ± {row.doubt:.1%}",
        f"{row.measured:+.1%} ({row.low:+.1%} to {row.high:+.1%})",
        "yes" if row.high <= row.budget else "no" if row.low > row.budget else "not shown",
    ]


if __name__ == "__main__":
    main()
