"""What pruning a fork costs in accuracy and gains in latency: the paper's figure 16 with the axis that it lacks.

    python benchmarks/pruning_curve.py [--seconds 8] [--executor processes:2] [--scratch FOLDER]

EfficientNet-Lite0 with its ImageNet weights, digits at 64 pixels; blocks 14-16 pruned by 0.1 to 0.9, locally and
globally, by L1 and L2, and 9-11 locally by L1: accuracy over three seeds, parameters, multiply-adds. Then the forks
ranked by L1 are built, checked and timed at 224 pixels with ONNX Runtime and OpenVINO, with weights of their own:
latency depends on widths alone, and for local pruning L2 leaves the same widths. FOLDER and
benchmarks/results/pruning_sweep keep what is done, and the same command goes on there. pruning_curve.json is the
profile, pruning_curve.svg the picture, pruning_curve.md the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click

from subtune_deploy.backbone import Backbone, trace
from subtune_deploy.data.sources import load_data
from subtune_deploy.demo import MODEL, base_checkpoint
from subtune_deploy.documents import write_document
from subtune_deploy.environment import describe
from subtune_deploy.executors import open_executor
from subtune_deploy.measure import Protocol
from subtune_deploy.models import load_model
from subtune_deploy.pruning import fork_size, prune
from subtune_deploy.result_tables import markdown
from subtune_deploy.results import Result
from subtune_deploy.spec import Pruning, format_layers
from subtune_deploy.sweep import Candidate, SweepOptions, sweep
from subtune_deploy.sweep import Step as Swept
from subtune_deploy.targets import load_target
from subtune_deploy.tuning.documents import Profile, Row
from subtune_deploy.tuning.figures import draw_pruning
from subtune_deploy.tuning.profile import complete, profile
from subtune_deploy.tuning.settings import Fork, TrainConfig
from subtune_deploy.tuning.study import Step, Study

RESULTS = Path(__file__).parent / "results"
DOCUMENT, PICTURE, SUMMARY = (RESULTS / f"pruning_curve.{kind}" for kind in ("json", "svg", "md"))
SWEEP = RESULTS / "pruning_sweep"
TARGETS = {"cpu": "ONNX Runtime", "openvino-cpu": "OpenVINO"}
RATIOS = tuple(n / 10 for n in range(1, 10))
WAYS = {(14, 15, 16): (("local", "global"), ("l1", "l2")), (9, 10, 11): (("local",), ("l1",))}
"""Scopes and norms by fork."""
SMALL, LARGE = (3, 64, 64), (3, 224, 224)
TRAIN, TEST, SEEDS = 500, 1000, (0, 1, 2)
CONFIG = TrainConfig(epochs=8, batch_size=32)

Timed = dict[str, dict[str, Result]]
"""By engine and fork."""


@click.command()
@click.option(
    "--seconds", type=click.FloatRange(0, min_open=True), default=8.0, help="To time each fork, at most."
)
@click.option(
    "--executor", "where", default="processes:2", show_default=True, help="Where forks are trained."
)
@click.option("--scratch", type=click.Path(path_type=Path), default="runs/pruning_curve", show_default=True)
def main(seconds: float, where: str, scratch: Path) -> None:
    """Train, time, write."""
    scratch.mkdir(parents=True, exist_ok=True)
    weights = str(base_checkpoint(scratch / "base.safetensors"))
    small, large = (trace(load_model(MODEL, weights, size)) for size in (SMALL, LARGE))
    found = trained(small, scratch / "training", where)
    write_document(DOCUMENT, found)
    results = timed(large, seconds)
    added = {engine: {fork: each.added for fork, each in some.items()} for engine, some in results.items()}
    draw_pruning(found, PICTURE, added)
    SUMMARY.write_text(summary(found, large, results))
    click.echo(SUMMARY.read_text())


def trained(backbone: Backbone, run: Path, where: str) -> Profile:
    """Accuracy of every fork, pruned and whole."""
    study = Study(backbone, load_data("digits", train=TRAIN, test=TEST), CONFIG)
    forks = [Fork(()), *(Fork(layers) for layers in WAYS)]
    forks += [Fork(layers, prune=each) for layers in WAYS for each in prunings(layers)]
    with open_executor(where) as executor:
        found = profile(
            study, forks, seeds=SEEDS, source="digits", run=run, executor=executor, told=tell, say=click.echo
        )
    return complete(found, forks)


def prunings(layers: tuple[int, ...]) -> list[Pruning]:
    """All that are tried on a fork."""
    scopes, norms = WAYS[layers]
    return [Pruning(ratio, scope, norm) for scope in scopes for norm in norms for ratio in RATIOS]


def timed(backbone: Backbone, seconds: float) -> Timed:
    """Latency of every fork that is ranked by L1, and of the whole ones."""
    chosen = [
        Candidate.alike(layers, prune=each)
        for layers in WAYS
        for each in (None, *prunings(layers))
        if each is None or each.norm == "l1"
    ]
    options = SweepOptions(protocol=Protocol(seconds=seconds))
    targets = [load_target(name) for name in TARGETS]
    results = sweep(backbone, chosen, targets, SWEEP, options, told=swept)
    return {TARGETS[name]: {r.fork: r for r in results if r.target == name} for name in TARGETS}


def tell(step: Step) -> None:
    """How far training has come."""
    if step.results:
        click.echo(
            f"trained {step.done} of {step.total}, {(step.seconds_left or 0) / 60:.1f} min left", err=True
        )


def swept(step: Swept) -> None:
    """How far timing has come."""
    if step.outcome is not None:
        left = (step.seconds_left or 0) / 60
        click.echo(f"timed {step.done} of {step.total}: {step.candidate}, {left:.1f} min left", err=True)


def summary(found: Profile, backbone: Backbone, results: Timed) -> str:
    """Markdown: the command, the host, a row for each fork."""
    host = describe()
    warnings = sorted({text for some in results.values() for each in some.values() for text in each.warnings})
    doubts = "".join(f"\n\nWarning, of some timings: {text}" for text in warnings)
    head = next(row for row in found.rows if row.fork == "none")
    sizes = {row.fork: size(backbone, row) for row in found.rows if row is not head}
    rows = [
        [row.fork, percent(row), *shares(row, sizes), *latencies(row, results)]
        for row in found.rows
        if row is not head
    ]
    return (
        f"`python benchmarks/pruning_curve.py`: EfficientNet-Lite0 with ImageNet weights; accuracy on {TEST} MNIST "
        f"digits after training on {TRAIN} at {SMALL[1]} pixels, {CONFIG.epochs} epochs, {len(SEEDS)} seeds ± one "
        f"standard deviation; the head alone: {percent(head)}. Parameters and MACs (at {LARGE[1]} pixels) are those of "
        "the blocks, with their share of the whole fork's. Added latency is that of one task beside the base, batch 1, "
        f"{LARGE[1]} pixels, fp32, median ratio ± half its 95 % interval, on {host['cores']} cores of {host['cpu']}, "
        f"onnxruntime {host['libraries'].get('onnxruntime')} and openvino {host['libraries'].get('openvino')}."
        f"{doubts}\n\n"
    ) + markdown(("fork", "accuracy, %", "parameters", "MACs", *(f"added, {name}" for name in results)), rows)


def size(backbone: Backbone, row: Row) -> tuple[int, int]:
    """(parameters, MACs) of the fork's blocks."""
    versions = prune(backbone, row.layers, row.prune) if row.prune else {}
    found = fork_size(backbone, row.layers, versions)
    return found.parameters, found.macs


def percent(row: Row) -> str:
    return f"{100 * row.accuracy:.1f} ± {100 * (row.std or 0):.1f}"


def shares(row: Row, sizes: Mapping[str, tuple[int, int]]) -> list[str]:
    """Parameters and MACs, beside those of the whole fork."""
    whole = sizes[format_layers(row.layers)]
    return [f"{mine:,} ({mine / full:.0%})" for mine, full in zip(sizes[row.fork], whole, strict=True)]


def latencies(row: Row, results: Timed) -> list[str]:
    """Added latency on each engine, where the fork was timed."""
    found = [some.get(row.fork) for some in results.values()]
    return [f"{r.added:+.1%} ± {(r.ratio.high - r.ratio.low) / 2:.1%}" if r else "-" for r in found]


if __name__ == "__main__":
    main()
