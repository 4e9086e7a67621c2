"""Every 1-, 2- and 3-block fork of ResNet-50 on this machine: what figures 7, 18 and 19 are drawn from.

The sweep lies in benchmarks/results/resnet50_sweep and goes on where it stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from subtune_deploy.backbone import trace
from subtune_deploy.measure import ONCE
from subtune_deploy.models import load_model
from subtune_deploy.result_tables import markdown, milliseconds
from subtune_deploy.results import Result
from subtune_deploy.sweep import Step, SweepOptions, candidates, sweep
from subtune_deploy.targets import load_target

RESULTS = Path(__file__).parent / "results"
RUN = RESULTS / "resnet50_sweep"
TARGETS = {"cpu": "ONNX Runtime"}

PUBLISHED = {1: (0.05, 0.11), 2: (0.09, 0.13), 3: (0.11, 0.19)}
"""Added latency by number of consecutive blocks on one A100-SXM-80GB, arXiv 2302.06354, figures 7 and 19."""

STAGE_ENDS = (3, 7, 13, 16)  # layer1 .. layer4
COLOURS = ("tab:blue", "tab:cyan", "tab:green", "tab:olive", "tab:orange", "tab:pink", "tab:red")
"""layer1, layer1+2, layer2, layer2+3, ...: forks within a stage and across two."""


def measured(*lengths: int) -> dict[int, dict[str, list[Result]]]:
    """Forks by number of consecutive blocks and by target, in order; measured now if they are not yet."""
    backbone = trace(load_model("resnet50"))
    targets = [load_target(name) for name in TARGETS]
    chosen = candidates(len(backbone.blocks), (1, 3))
    found = sweep(backbone, chosen, targets, RUN, SweepOptions(protocol=ONCE), told=_told)
    return {
        length: {name: [r for r in found if (len(r.layers), r.target) == (length, name)] for name in TARGETS}
        for length in lengths
    }


def _told(step: Step) -> None:
    if step.outcome is not None:
        print(f"[{step.done}/{step.total}] {step.candidate}, {step.seconds_left:.0f} s left", file=sys.stderr)


def stage(layers: Sequence[int]) -> int:
    """Index into `COLOURS`."""
    first, last = (
        next(i for i, end in enumerate(STAGE_ENDS) if block <= end) for block in (min(layers), max(layers))
    )
    return first + last


def stage_name(index: int) -> str:
    """`"layer2"`, or `"layer2 + layer3"` for a fork across."""
    first = index // 2 + 1
    return f"layer{first}" if index % 2 == 0 else f"layer{first} + layer{first + 1}"


def device(results: dict[str, list[Result]]) -> str:
    """The sentence that says what produced the numbers."""
    host = next(iter(results.values()))[0].host
    backends = dict.fromkeys(found[0].backend for found in results.values())
    versions = " and ".join(f"{name} {host['libraries'][name]}" for name in backends)
    return (
        f"Measured on {host['cores']} shared cores of {host['cpu']}, batch 1, 3x224x224, fp32, {versions}, "
        "the adaptive protocol; the paper's ranges are of one A100-SXM-80GB and its own protocol. No GPU was used here."
    )


def write(name: str, figure: Any, results: dict[str, list[Result]], text: str) -> None:
    """The picture as SVG, the numbers as Markdown beside it."""
    figure.savefig(RESULTS / f"{name}.svg", bbox_inches="tight")
    lines = [text, "", f"`python benchmarks/{name}.py`. {device(results)}", ""]
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n" + markdown(_HEADER, _rows(results)))
    print("\n".join(lines))


_HEADER = (
    "fork",
    "stage",
    *(f"{name}, {what}" for name in TARGETS.values() for what in ("latency", "added")),
)


def _rows(results: dict[str, list[Result]]) -> list[list[str]]:
    return [
        [each[0].fork, stage_name(stage(each[0].layers)), *(cell for one in each for cell in _cells(one))]
        for each in zip(*results.values(), strict=True)
    ]


def _cells(result: Result) -> tuple[str, str]:
    half = (result.ratio.high - result.ratio.low) / 2
    return milliseconds(result.graph.seconds), f"{result.added:+.1%} ± {half:.1%}"


def summary(results: dict[str, list[Result]], blocks: int) -> str:
    """Ranges found beside the published one."""
    low, high = PUBLISHED[blocks]
    ours = "; ".join(
        f"{TARGETS[name]} {min(r.added for r in found):.0%} to {max(r.added for r in found):.0%}"
        for name, found in results.items()
    )
    return f"{blocks} block{'s' if blocks > 1 else ''}: {ours}; published {low:.0%} to {high:.0%}"
