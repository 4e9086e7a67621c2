"""From pictures to an engine in one command: how long does it take, and how good is what it finds?

    python benchmarks/optimize_digits.py [--results FOLDER] [--scratch FOLDER]

`subtune-deploy optimize` forks EfficientNet-Lite0 with its ImageNet weights, at 64 pixels, for 500 digits, on two
engines and under two limits. Then everything is looked at: all 45 forks of one to three consecutive blocks trained
with the same settings and seed, built with heads of 10 classes, and timed. Whatever the command chose is judged by
that; and so is, where the folder `before` has one, what an earlier sweep of all forks would have chosen. The
folder of results, one for each host, holds what `optimize` left (optimize_*.json, with every decision) and the sweep;
FOLDER.md the table, --tables makes it anew. The profile is of the first of them, benchmarks/results/optimize.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import click

from subtune_deploy.backbone import Backbone, trace
from subtune_deploy.choice import decide
from subtune_deploy.data.sources import load_data
from subtune_deploy.demo import MODEL, base_checkpoint
from subtune_deploy.documents import from_document, read_document, write_document
from subtune_deploy.environment import describe
from subtune_deploy.executors import open_executor
from subtune_deploy.fitting import fit_results, score
from subtune_deploy.goal import Optimized
from subtune_deploy.latency_model import Anchor, anchor
from subtune_deploy.measure import ADAPTIVE
from subtune_deploy.models import load_model
from subtune_deploy.pareto import Point
from subtune_deploy.predictor import Costing
from subtune_deploy.result_tables import markdown
from subtune_deploy.results import read_results
from subtune_deploy.stats import median
from subtune_deploy.sweep import Step, SweepOptions, candidates, sweep
from subtune_deploy.targets import load_target
from subtune_deploy.tradeoff import join
from subtune_deploy.tuning.documents import Profile
from subtune_deploy.tuning.profile import complete, forks_of, profile
from subtune_deploy.tuning.settings import Fork, TrainConfig
from subtune_deploy.tuning.study import Study

RESULTS = Path(__file__).parent / "results"
FOLDER = RESULTS / "optimize"
PROFILE = FOLDER / "profile.json"
THOUSAND, FITTED = RESULTS / "choices" / "sweep", 10
SIZE, SPAN = (3, 64, 64), (1, 3)
TRAIN, TEST, CLASSES = 500, 1000, 10
CONFIG = TrainConfig(epochs=5, batch_size=32)
SECONDS = 4.0
MINUTES = 5
TARGETS = {"cpu": "ONNX Runtime", "openvino-cpu": "OpenVINO"}
LIMITS: dict[str, tuple[str, dict[str, float]]] = {
    "at most 25 %": ("--max-added=25%", {"max_added": 0.25}),
    "at least 92 %": ("--min-accuracy=92%", {"min_accuracy": 0.92}),
}


@click.command()
@click.option("--results", "folder", type=click.Path(path_type=Path), default=FOLDER, show_default=True)
@click.option("--scratch", type=click.Path(path_type=Path), default="runs/optimize", show_default=True)
@click.option("--tables", is_flag=True, help="Run nothing.")
def main(folder: Path, scratch: Path, tables: bool) -> None:
    """Run what is missing, write."""
    for place in (scratch, folder):
        place.mkdir(parents=True, exist_ok=True)
    checkpoint = base_checkpoint(scratch / "base.safetensors")
    backbone = trace(load_model(MODEL, str(checkpoint), SIZE))
    if not tables:
        for target, limit in product(TARGETS, LIMITS):
            if not (left := _left(folder, target, limit)).exists():
                optimized(target, limit, checkpoint, scratch / "optimized", left)
        exhausted(backbone, folder / "sweep", scratch / "training")
    text = summary(folder) + other_heads(backbone, folder / "sweep")
    folder.with_suffix(".md").write_text(text)
    click.echo(text)


def _left(folder: Path, target: str, limit: str) -> Path:
    """What a run of the command left."""
    words = limit.removesuffix(" %").replace(" ", "_")
    return folder / f"optimize_{target}_{words}.json"


def optimized(target: str, limit: str, checkpoint: Path, out: Path, file: Path) -> None:
    """The command, begun anew, with its whole time."""
    shutil.rmtree(out, ignore_errors=True)
    command = [
        Path(sys.executable).with_name("subtune-deploy"), "optimize", "--model", MODEL, "--weights", checkpoint,
        "--input-size", "x".join(map(str, SIZE)), "--data", "digits", "--train", TRAIN, "--test", TEST, "--epochs",
        CONFIG.epochs, "--batch-size", CONFIG.batch_size, "--target", target, LIMITS[limit][0], "--minutes", MINUTES,
        "--seconds", SECONDS, "--executor", "processes:2", "-o", out,
    ]  # fmt: skip
    start = time.monotonic()
    subprocess.run(list(map(str, command)), check=True)
    seconds = time.monotonic() - start
    document = json.loads((out / "optimize.json").read_text())
    left = {"seconds": round(seconds, 1), "host": describe(), "found": document}
    file.write_text(json.dumps(left, indent=1) + "\n")


def exhausted(backbone: Backbone, timed: Path, run: Path) -> None:
    """Accuracy and latency of every fork."""
    study = Study(backbone, load_data("digits", train=TRAIN, test=TEST), CONFIG)
    forks = forks_of(len(backbone.blocks), SPAN, others=[Fork(())])
    if not PROFILE.exists():
        how: dict[str, Any] = {"seeds": (CONFIG.seed,), "source": "digits", "run": run}
        with open_executor("processes:2") as executor:
            found = profile(study, forks, executor=executor, say=click.echo, **how)
        write_document(PROFILE, complete(found, forks))
    every = candidates(len(backbone.blocks), SPAN, classes=CLASSES)
    options = SweepOptions(protocol=replace(ADAPTIVE, seconds=SECONDS))
    sweep(backbone, every, [load_target(name) for name in TARGETS], timed, options, told=_timed)


def _timed(step: Step) -> None:
    if step.outcome is not None:
        left = (step.seconds_left or 0) / 60
        click.echo(f"timed {step.done} of {step.total}: {step.candidate}, {left:.1f} min left", err=True)


def summary(folder: Path) -> str:
    """Markdown: the command, the host, a row for each engine and limit."""
    found, results = read_document(Profile, PROFILE), read_results(folder / "sweep")
    rows = [_row(found, folder, target, limit) for target, limit in product(TARGETS, LIMITS)]
    earlier = (folder / "before").is_dir()
    if earlier:
        rows = [
            [*row, _earlier(found, folder, *asked)]
            for row, asked in zip(rows, product(TARGETS, LIMITS), strict=True)
        ]
    host = results[0].host
    head = next(row for row in found.rows if not row.layers)
    return (
        f"`python benchmarks/optimize_digits.py`: EfficientNet-Lite0, {SIZE[-1]} pixels, {TRAIN} digits, one seed, the "
        f"head alone {head.accuracy:.1%}; {host['cores']} cores of {host['cpu']}. What `optimize` chose, against the "
        "choice of one who trained and timed all 45 forks. Accuracy and added latency are those that this exhaustive "
        "search saw; quality, of what keeps the limit, is the share of the best accuracy or, where the cheapest was "
        "asked for, its latency over that of the choice; what the engine adds was measured on the finished bundle.\n\n"
    ) + markdown(
        ("engine", "asked", "of all forks", "`optimize`", "keeps it", "quality", "its engine adds", "timed", "trained",
         "minutes", *(["an earlier sweep's choice: keeps it, quality"] if earlier else [])), rows,
    )  # fmt: skip


def other_heads(backbone: Backbone, timed: Path) -> str:
    """A sentence: what ten forks with heads of the base's 1,000 classes tell of all forks with heads of 10, where both
    were timed on one kind of processor."""
    if read_results(THOUSAND)[0].host["cpu"] != read_results(timed)[0].host["cpu"]:
        return ""
    costing, told = Costing(backbone), []
    for target, engine in TARGETS.items():
        large, small = (_anchors(run, target) for run in (THOUSAND, timed))
        fit = fit_results(costing.base, [costing.anchored(each) for each in large], large, FITTED)
        found = [fit.model.predict(costing.anchored(each)) for each in small]
        marks = score(
            [each.ratio for each in found],
            [each.ratio.value for each in small],
            [each.deviation for each in found],
        )
        mine = {each.forks: each.added.value for each in small}
        dearer = median([each.added.value / mine[each.forks] for each in large])
        told.append(
            f"{engine} {marks.total:.1%} off on average, added latency {marks.added:.1%} in the median, rank "
            f"correlation {marks.rank:.3f}, {marks.within:.0%} within two deviations; with 1,000 "
            f"classes a fork adds {dearer:.2f} times as much, in the median"
        )
    return (
        f"\nA model fitted to {FITTED} forks of benchmarks/results/choices, whose heads have the base's 1,000 classes, "
        f"predicts these {len(small)} with {CLASSES}: {'; '.join(told)}.\n"
    )


def _anchors(run: Path, target: str) -> list[Anchor]:
    return [anchor(each) for each in read_results(run) if each.target == target]


def _row(found: Profile, folder: Path, target: str, limit: str) -> list[str]:
    left = json.loads(_left(folder, target, limit).read_text())
    done = from_document(Optimized, left["found"])
    anchors = _anchors(folder / "sweep", target)
    best, points = decide(found, anchors, **LIMITS[limit][1]).chosen, join(found, anchors)[0]
    mine = next(point for point in points if point.fork == done.fork)
    low, high = done.added.low, done.added.high
    return [
        TARGETS[target],
        limit,
        _told(best),
        _told(mine),
        *_judged(mine, best, LIMITS[limit][1]),
        f"{done.added.value:+.1%} ({low:+.1%} to {high:+.1%})",
        f"{done.measured} of {done.candidates}",
        f"{done.trained} of {len(found.rows)}",
        f"{left['seconds'] / 60:.1f}",
    ]


def _earlier(found: Profile, folder: Path, target: str, limit: str) -> str:
    """What an earlier sweep of all forks would have led to, as this one sees it."""
    limits, points = LIMITS[limit][1], join(found, _anchors(folder / "sweep", target))[0]
    best = decide(found, _anchors(folder / "sweep", target), **limits).chosen
    chosen = decide(found, _anchors(folder / "before", target), **limits).chosen
    mine = next(point for point in points if point.fork == chosen.fork)
    return f"{_told(mine)}: {', '.join(_judged(mine, best, limits))}"


def _judged(mine: Point, best: Point, limits: dict[str, float]) -> tuple[str, str]:
    """Whether it keeps the limit, and its quality if it does."""
    kept = _kept(mine, **limits)
    return kept, "-" if kept == "no" else f"{_quality(mine, best, **limits):.1%}"


def _told(point: Point) -> str:
    return f"{point.fork}: {point.accuracy.value:.1%}, {point.added.value:+.1%}"


def _kept(point: Point, max_added: float = math.inf, min_accuracy: float = 0.0) -> str:
    """Latency by its interval; accuracy as it was counted."""
    if point.added.low > max_added or point.accuracy.value < min_accuracy:
        return "no"
    return "yes" if point.added.high <= max_added else "within its interval"


def _quality(point: Point, best: Point, max_added: float = math.inf, min_accuracy: float = 0.0) -> float:
    """Share of the best accuracy or, where the cheapest was asked for, of its latency over this one's."""
    if math.isinf(max_added):
        return (1 + best.added.value) / (1 + point.added.value)
    return point.accuracy.value / best.accuracy.value


if __name__ == "__main__":
    main()
