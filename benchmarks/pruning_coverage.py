"""Does every pruned fork export, verify and run? Ratios 0.1 to 0.9 of a fork of six networks.

    python benchmarks/pruning_coverage.py [--minutes 60] [--only NETWORK]

Random weights, the last blocks but one as the fork, local L1 pruning: a bundle is built (its graph answers as the
stand-alone models do), compiled for the target `cpu` (so does the engine), and its engine answers a picture. What
cannot be pruned is refused, and the reason is kept. benchmarks/results/pruning_coverage.jsonl has a line for each,
and is gone on with; the table in pruning_coverage.md is made of it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from subtune_deploy.backbone import Backbone, trace
from subtune_deploy.build import build
from subtune_deploy.compiling import compile_bundle
from subtune_deploy.errors import SubtuneError
from subtune_deploy.lines import append_line, read_lines
from subtune_deploy.models import load_model
from subtune_deploy.pruning import fork_size
from subtune_deploy.result_tables import markdown
from subtune_deploy.runtime import load_engine
from subtune_deploy.spec import Pruning, format_layers
from subtune_deploy.targets import load_target
from subtune_deploy.tasks import candidate_task

RESULTS = Path(__file__).parent / "results"
LINES, SUMMARY = RESULTS / "pruning_coverage.jsonl", RESULTS / "pruning_coverage.md"
NETWORKS = {
    "resnet18": (6, 7),
    "resnet50": (13, 14),
    "efficientnet_b0": (14, 15),
    "mobilenet_v2": (15, 16),
    "convnext_tiny": (16, 17),
    "vit_b_16": (10, 11),
}
"""Each with its fork."""
RATIOS = tuple(n / 10 for n in range(1, 10))
TARGET = "cpu"

Line = dict[str, Any]


@click.command()
@click.option(
    "--minutes", type=click.FloatRange(0), default=60.0, show_default=True, help="None begins later."
)
@click.option("--only", type=click.Choice(tuple(NETWORKS)), multiple=True, help="These networks; repeatable.")
def main(minutes: float, only: Sequence[str]) -> None:
    """Try what was not tried yet, write the table."""
    RESULTS.mkdir(exist_ok=True)
    start = time.monotonic()
    known = finished()
    for name in only or NETWORKS:
        left = [ratio for ratio in RATIOS if (name, ratio) not in known]
        backbone = trace(load_model(name)) if left else None
        for ratio in left:
            if time.monotonic() - start >= 60 * minutes:
                click.echo(f"the time is up before {name} {ratio:g}", err=True)
                break
            line = tried(backbone, NETWORKS[name], ratio)
            append_line(LINES, line)
            click.echo(
                f"{name} {ratio:g}: {line['error'] or line['refused']} ({line['seconds']} s)", err=True
            )
    SUMMARY.write_text(summary(finished()))
    click.echo(SUMMARY.read_text())


def finished() -> dict[tuple[str, float], Line]:
    """By network and ratio."""
    if not LINES.is_file():
        return {}
    lines: Iterator[Any] = (line for _, line in read_lines(LINES))
    return {(line["model"], line["ratio"]): line for line in lines}


def tried(backbone: Backbone, layers: tuple[int, ...], ratio: float) -> Line:
    """One ratio: the largest relative error of any answer, or why it was refused."""
    start, line = time.monotonic(), {"model": backbone.name, "layers": list(layers), "ratio": ratio}
    try:
        line |= {"refused": "", **compiled(backbone, layers, ratio)}
    except SubtuneError as error:
        line |= {"refused": error.message, "error": None, "parameters": None, "macs": None}
    return line | {"seconds": round(time.monotonic() - start, 1)}


def compiled(backbone: Backbone, layers: tuple[int, ...], ratio: float) -> Line:
    """Build, compile, run. Raises what says that it cannot be pruned, ParityError for wrong answers."""
    task = candidate_task(backbone, "task", layers, seed=1, prune=Pruning(ratio))
    whole, thin = (fork_size(backbone, layers, versions) for versions in ({}, task.versions))
    with tempfile.TemporaryDirectory() as folder:
        bundle = build(backbone, [task], Path(folder, "bundle"), sources=False)
        bundle = compile_bundle(bundle, load_target(TARGET))
        engine = load_engine(bundle, TARGET)
        answers = engine.run(
            np.random.default_rng(0).standard_normal((1, *backbone.input.shape), dtype=np.float32)
        )
    if not all(np.isfinite(answer).all() for answer in answers.values()):
        raise ValueError(f"{backbone.name} {ratio}: an answer is not finite")
    return {
        "error": max(figure["error"] for figure in bundle.manifest.parity),
        "parameters": thin.parameters / whole.parameters,
        "macs": thin.macs / whole.macs,
    }


def summary(found: dict[tuple[str, float], Line]) -> str:
    """Markdown: the command, a row for each network, a cell for each ratio."""
    ran = sum(not line["refused"] for line in found.values())
    reasons = sorted({f"- {m} {r:g}: {line['refused']}" for (m, r), line in found.items() if line["refused"]})
    rows = [[name, format_layers(layers), *cells(name, found)] for name, layers in NETWORKS.items()]
    return (
        f"`python benchmarks/pruning_coverage.py`: {ran} of {len(found)} pruned forks were exported, verified against "
        "stand-alone models, compiled for ONNX Runtime, verified again and run; random weights, local L1 pruning of "
        "so many channels, batch 1, 3x224x224. In a cell: the share of the blocks' parameters and of their MACs that "
        f"is left, and the largest error relative to the largest answer.\n\n{markdown(COLUMNS, rows)}"
    ) + ("\nRefused:\n\n" + "\n".join(reasons) + "\n" if reasons else "")


COLUMNS = ("network", "fork", *(f"{ratio:g}" for ratio in RATIOS))


def cells(name: str, found: dict[tuple[str, float], Line]) -> Iterator[str]:
    """One network's, by ratio."""
    for ratio in RATIOS:
        line = found.get((name, ratio))
        if line is None:
            yield "-"
        elif line["refused"]:
            yield "refused"
        else:
            yield f"{line['parameters']:.0%}, {line['macs']:.0%}, {line['error']:.0e}"


if __name__ == "__main__":
    main()
