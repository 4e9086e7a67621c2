"""Where does training in mixed precision help? `tune --precision bf16` against fp32: how long, how well?

    python benchmarks/mixed_precision.py [--repeats 6] [--network N]... [--tables]

One fork of each network learns digits, in both precisions by turns in one process, each pair of trainings with a seed
of its own (pictures, order, head). Times are of all of `tune`: reading, the frozen prefix (always fp32, once for each
picture), training, testing. EfficientNet-Lite0 has its ImageNet weights, so its accuracies are what one would get; the
two others have random ones, whose accuracies say no more than whether both precisions learn alike. Ratios are medians
over pairs of rounds with 95 % intervals. Lines are kept in benchmarks/results/mixed_precision.jsonl, one a network; the
table is mixed_precision.md beside it, which --tables makes anew.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from kept_lines import Line, host_of, kept, write_tables

from subtune_deploy.backbone import Backbone, trace
from subtune_deploy.conditions import noise_warnings, watch
from subtune_deploy.data.dataset import Data
from subtune_deploy.data.sources import load_data
from subtune_deploy.demo import MODEL, base_checkpoint
from subtune_deploy.environment import describe
from subtune_deploy.lines import append_line, drop_torn_line
from subtune_deploy.models import load_model
from subtune_deploy.result_tables import markdown
from subtune_deploy.spec import parse_layers
from subtune_deploy.stats import median, paired_ratio
from subtune_deploy.tuning.settings import Fork, TrainConfig
from subtune_deploy.tuning.train import tune

PRECISIONS = ("fp32", "bf16")
RESULTS = Path(__file__).parent / "results" / "mixed_precision.jsonl"


@dataclass(frozen=True)
class Trained:
    """A network, what of it is tuned, on how many digits."""

    title: str
    model: str
    side: int
    layers: str
    pictures: int
    test: int
    epochs: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return (3, self.side, self.side)


NETWORKS: Mapping[str, Trained] = {
    "lite0": Trained("EfficientNet-Lite0", MODEL, 128, "9-11", 200, 1000, 8),
    "resnet50": Trained("ResNet-50, random weights", "resnet50", 128, "13-14", 200, 200, 6),
    "vit_s": Trained("ViT-S/16, random weights", "timm:vit_small_patch16_224", 224, "11-12", 80, 40, 8),
}
BATCH = 32


@click.command()
@click.option("--network", "names", multiple=True, type=click.Choice(list(NETWORKS)), default=tuple(NETWORKS))
@click.option("--repeats", type=click.IntRange(6), default=6, show_default=True, help="Of each precision.")
@click.option("--tables", is_flag=True, help="Train nothing.")
def main(names: tuple[str, ...], repeats: int, tables: bool) -> None:
    """Train what is missing, write."""
    drop_torn_line(RESULTS)
    known = {line["network"] for line in kept(RESULTS)}
    for name in () if tables else names:
        if name not in known:
            append_line(RESULTS, {"network": name, **measured(NETWORKS[name], repeats)})
    write_tables(RESULTS, summary(kept(RESULTS)))


# What is measured


def measured(network: Trained, repeats: int) -> Line:
    """Seconds, accuracy and last loss of every training."""
    backbone, host = opened(network), describe()
    data = load_data("digits", train=network.pictures, test=network.test)
    with watch() as seen:
        runs = [pair(network, backbone, data, seed) for seed in range(repeats)]
    trained = {name: [run[name] for run in runs] for name in PRECISIONS}
    doubts = noise_warnings(host, conditions=seen.conditions)
    return {"runs": trained, "threads": torch.get_num_threads(), "warnings": doubts, "host": host}


def opened(network: Trained) -> Backbone:
    """EfficientNet-Lite0 with the demo's weights, another with random ones."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "base.safetensors")
        weights = str(base_checkpoint(path)) if network.model == MODEL else "random"
        return trace(load_model(network.model, weights, network.shape))


def pair(network: Trained, backbone: Backbone, data: Data, seed: int) -> dict[str, Line]:
    """One training of each precision; which goes first alternates."""
    fork = Fork(parse_layers(network.layers, len(backbone.blocks)))
    config = TrainConfig(epochs=network.epochs, batch_size=BATCH, seed=seed)
    found = {}
    for precision in PRECISIONS[:: 1 if seed % 2 == 0 else -1]:
        start = time.perf_counter()
        tuned = tune(backbone, "digits", *data[:2], fork, replace(config, precision=precision))
        seconds = round(time.perf_counter() - start, 3)
        found[precision] = {"s": seconds, "accuracy": tuned.accuracy, "loss": tuned.history[-1].loss}
        click.echo(f"{network.title}, seed {seed}, {precision}: {seconds:.1f} s", err=True)
    return found


# What is written

COLUMNS = (
    "network, fork",
    "input",
    "fp32",
    "bf16",
    "bf16 over fp32",
    "digits right, fp32",
    "digits right, bf16",
    "last loss, fp32",
    "last loss, bf16",
)


def summary(lines: list[Line]) -> str:
    """Markdown: the command, a row for each network, the hosts."""
    hosts = " and ".join(sorted({f"{host_of(line)} ({_instructions(line)})" for line in lines}))
    threads, torch_version = lines[0]["threads"], lines[0]["host"]["libraries"].get("torch")
    doubts = sorted({f"\n\nWarning: {text}" for line in lines for text in line["warnings"]})
    return (
        f"`python benchmarks/mixed_precision.py`: `tune` in fp32 and in mixed precision by turns, {threads} threads, "
        f"PyTorch {torch_version}, on {hosts}. Times are medians of all of it, the frozen prefix in fp32 included; "
        "ratios are medians over pairs of rounds with 95 % intervals; accuracies and losses are means over "
        f"{len(lines[0]['runs']['fp32'])} seeds. With random weights accuracies are low, and say only whether both "
        f"learn alike.{''.join(doubts)}\n\n"
    ) + markdown(COLUMNS, [row(line) for line in lines])


def _instructions(line: Line) -> str:
    found = [each for each in (line["host"]["instructions"] or "").split() if "bf16" in each]
    return ", ".join(found) or "without instructions for bf16"


def row(line: Line) -> list[str]:
    """Of one network."""
    network = NETWORKS[line["network"]]
    fp32, bf16 = (line["runs"][name] for name in PRECISIONS)
    ratio = paired_ratio(_all(fp32, "s"), _all(bf16, "s"))
    return [
        f"{network.title}, {network.layers}",
        "x".join(map(str, network.shape)),
        *(f"{median(_all(runs, 's')):.1f} s" for runs in (fp32, bf16)),
        f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})",
        *(f"{100 * np.mean(_all(runs, 'accuracy')):.1f} %" for runs in (fp32, bf16)),
        *(f"{np.mean(_all(runs, 'loss')):.3f}" for runs in (fp32, bf16)),
    ]


def _all(runs: list[Any], what: str) -> list[float]:
    return [run[what] for run in runs]


if __name__ == "__main__":
    main()
