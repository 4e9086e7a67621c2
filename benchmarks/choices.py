"""Is the fork that predictions choose the one that measuring everything would have chosen?

    python benchmarks/choices.py [--seconds 5] [--executor processes:2] [--scratch FOLDER]

EfficientNet-Lite0 with its ImageNet weights at 64 pixels, all 45 forks of one to three consecutive blocks: each is
trained on 500 digits with three seeds, and each is built, checked and timed on ONNX Runtime and OpenVINO. Then the same
is asked twice, of all these measurements, and of four of them with what `--confirm` would have measured: the front,
and the choice under five limits. benchmarks/results/choices holds the profile, the sweep and the pictures, choices.md
the table; --no-train --no-time makes that anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from subtune_deploy.backbone import Backbone, trace
from subtune_deploy.choice import Choice, decide
from subtune_deploy.data.sources import load_data
from subtune_deploy.demo import MODEL, base_checkpoint
from subtune_deploy.documents import read_document, write_document
from subtune_deploy.executors import open_executor
from subtune_deploy.fitting import fit_results
from subtune_deploy.latency_model import Anchor, Predict, anchor
from subtune_deploy.measure import Protocol
from subtune_deploy.models import load_model
from subtune_deploy.pareto import front
from subtune_deploy.predictor import Costing, Predictor
from subtune_deploy.result_tables import markdown
from subtune_deploy.results import read_results
from subtune_deploy.spec import Pruning
from subtune_deploy.sweep import Step, SweepOptions, candidates, sweep
from subtune_deploy.targets import load_target
from subtune_deploy.tradeoff import draw_tradeoff
from subtune_deploy.tuning.documents import Profile
from subtune_deploy.tuning.profile import complete, forks_of, profile
from subtune_deploy.tuning.settings import Fork, TrainConfig
from subtune_deploy.tuning.study import Step as Trained
from subtune_deploy.tuning.study import Study

RESULTS = Path(__file__).parent / "results"
FOLDER, SUMMARY = RESULTS / "choices", RESULTS / "choices.md"
PROFILE, SWEEP = FOLDER / "profile.json", FOLDER / "sweep"
SIZE = (3, 64, 64)
SPAN = (1, 3)
SEEDS = (0, 1, 2)
TRAIN, TEST, EXAMPLES = 2500, 1000, 500
CONFIG = TrainConfig(epochs=5, batch_size=32)
TARGETS = {"cpu": "ONNX Runtime", "openvino-cpu": "OpenVINO"}
MEASURED = 4
LIMITS: dict[str, dict[str, Any]] = {
    "the front": {},
    "at most 25 %": {"max_added": 0.25},
    "at most 30 %": {"max_added": 0.30},
    "at most 35 %": {"max_added": 0.35},
    "at least 92 %": {"min_accuracy": 0.92},
    "at least 94 %": {"min_accuracy": 0.94},
}


@click.command()
@click.option("--seconds", type=float, default=5.0, show_default=True, help="For each fork and target.")
@click.option(
    "--executor", "where", default="processes:2", show_default=True, help="Where forks are trained."
)
@click.option("--scratch", type=click.Path(path_type=Path), default="runs/choices", show_default=True)
@click.option("--train/--no-train", default=True, help="Train what is missing.")
@click.option("--time/--no-time", "timed", default=True, help="Time what is missing.")
def main(seconds: float, where: str, scratch: Path, train: bool, timed: bool) -> None:
    """Train, time, choose, write."""
    scratch.mkdir(parents=True, exist_ok=True)
    FOLDER.mkdir(parents=True, exist_ok=True)
    backbone = trace(load_model(MODEL, str(base_checkpoint(scratch / "base.safetensors")), SIZE))
    if train and not PROFILE.exists():
        write_document(PROFILE, trained(backbone, scratch / "training", where))
    if timed:
        measure(backbone, seconds)
    if PROFILE.exists() and SWEEP.exists():
        SUMMARY.write_text(summary(backbone, read_document(Profile, PROFILE)))
        click.echo(SUMMARY.read_text())


def trained(backbone: Backbone, run: Path, where: str) -> Profile:
    """Accuracy of every fork, and of the head alone."""
    study = Study(backbone, load_data("digits", train=TRAIN, test=TEST), CONFIG)
    forks = forks_of(len(backbone.blocks), SPAN, others=[Fork(())])
    how: dict[str, Any] = {
        "seeds": SEEDS,
        "examples": EXAMPLES,
        "source": "digits",
        "run": run,
        "told": _trained,
    }
    with open_executor(where) as executor:
        return complete(profile(study, forks, executor=executor, say=click.echo, **how), forks)


def measure(backbone: Backbone, seconds: float) -> None:
    """Latency of every fork."""
    options = SweepOptions(protocol=Protocol(seconds=seconds))
    targets = [load_target(name) for name in TARGETS]
    sweep(backbone, candidates(len(backbone.blocks), SPAN), targets, SWEEP, options, told=_timed)


def _trained(step: Trained) -> None:
    if step.results:
        click.echo(
            f"trained {step.done} of {step.total}, {(step.seconds_left or 0) / 60:.1f} min left", err=True
        )


def _timed(step: Step) -> None:
    if step.outcome is not None:
        left = (step.seconds_left or 0) / 60
        click.echo(f"timed {step.done} of {step.total}: {step.candidate}, {left:.1f} min left", err=True)


class Asked:
    """A sweep that was made already, of which a few measurements are looked at; as `calibrating.Growing`."""

    def __init__(self, backbone: Backbone, anchors: Sequence[Anchor]) -> None:
        costing = Costing(backbone)
        fit = fit_results(costing.base, [costing.anchored(each) for each in anchors], anchors, MEASURED)
        self.all = {each.forks[0]: each for each in anchors}
        self.known = [anchors[index] for index in fit.learnt]
        self.predictor = Predictor(costing, tuple(self.known))

    def __call__(self, layers: tuple[int, ...], prune: Pruning | None) -> tuple[Anchor, Predict]:
        self.predictor = self.predictor.learn(self.all[layers])
        return self.all[layers], self.predictor.of_tasks(1)


def summary(backbone: Backbone, found: Profile) -> str:
    """Markdown: the command, the host, a row for each question."""
    results = read_results(SWEEP)
    head = next(row for row in found.rows if not row.layers)
    found = replace(found, rows=tuple(row for row in found.rows if row.layers))  # of forks, all were timed
    rows = []
    for target, engine in TARGETS.items():
        anchors = [anchor(each) for each in results if each.target == target]
        for question, limits in LIMITS.items():
            exhaustive, asked = decide(found, anchors, **limits), Asked(backbone, anchors)
            confirmed = decide(found, asked.known, asked.predictor.of_tasks(1), asked, **limits)
            rows.append([engine, question, *_cells(exhaustive, confirmed, question, len(anchors))])
        draw_tradeoff(
            found, exhaustive.points, FOLDER / f"{target}.svg", decide(found, anchors, max_added=0.30).chosen
        )
    host = results[0].host
    libraries = host["libraries"]
    return (
        f"`python benchmarks/choices.py`: EfficientNet-Lite0, 64 pixels, {EXAMPLES} digits, {len(SEEDS)} seeds, the "
        f"head alone {head.accuracy:.1%}; {host['cores']} cores of {host['cpu']}, onnxruntime "
        f"{libraries.get('onnxruntime')}, openvino {libraries.get('openvino')}, {results[0].protocol.seconds:g} s for "
        f"each of {len(anchors)} forks. Every fork measured, against {MEASURED} measured, all others predicted and "
        "those measured that could have changed the answer.\n\n"
    ) + markdown(("engine", "asked", "all measured", "predicted and confirmed", "the same", "measured"), rows)


def _cells(exhaustive: Choice, confirmed: Choice, question: str, every: int) -> list[str]:
    spent = f"{MEASURED} + {len(confirmed.confirmed)} of {every}"
    if question == "the front":
        fronts = [[each.fork for each in front(choice.points)] for choice in (exhaustive, confirmed)]
        return [*(", ".join(each) for each in fronts), "yes" if fronts[0] == fronts[1] else "no", spent]
    one, other = exhaustive.chosen, confirmed.chosen
    return [*map(_told, (exhaustive, confirmed)), "yes" if one.fork == other.fork else "no", spent]


def _told(choice: Choice) -> str:
    point = choice.chosen
    return f"{point.fork}: {point.accuracy.value:.1%}, {point.added.value:+.1%}"


if __name__ == "__main__":
    main()
