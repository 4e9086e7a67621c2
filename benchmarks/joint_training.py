"""All candidates in one pass against one by one: the same accuracies, and how much sooner?

    python benchmarks/joint_training.py [--repeats 6] [--size 128] [--count 192]

EfficientNet-Lite0 with its ImageNet weights, every single block as a candidate, digits drawn onto photographs and
written as JPEG files of 500 pixels, which each training decodes again. One pass is `train_together`; one by one is
our own `tune`, each training from its own cached prefix or its own shared decoding: the quickest way to train one
fork by itself. With the paper's augmentation, and without any, where prefix values are computed once. Both ways
alternate in one process; ratios are medians over pairs of rounds with 95 % intervals. Every time in seconds is in
benchmarks/results/joint_training.json, the table in benchmarks/results/joint_training.md.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image

from subtune_deploy.backbone import Backbone, trace
from subtune_deploy.conditions import noise_warnings, watch
from subtune_deploy.data.dataset import Data, Dataset
from subtune_deploy.data.sources import load_data
from subtune_deploy.demo import MODEL, base_checkpoint
from subtune_deploy.environment import describe
from subtune_deploy.models import load_model
from subtune_deploy.result_tables import markdown
from subtune_deploy.stats import median, paired_ratio
from subtune_deploy.tuning.settings import Fork, TrainConfig
from subtune_deploy.tuning.train import train_together, tune

RESULTS = Path(__file__).parent / "results"
SAMPLES, SUMMARY = RESULTS / "joint_training.json", RESULTS / "joint_training.md"
PHOTOGRAPHS = ("astronaut", "brick", "chelsea", "coffee", "grass", "gravel", "rocket")
SIDE = 500
"""Pixels of a file: about what photographs of ImageNet, Flowers102 and Caltech101 have."""
DIGIT = 0.8
"""Of the side: how large the digit is on it."""
QUALITY = 90
EPOCHS, BATCH = 2, 32
FEWEST = 6
"""Repeats below which an interval would say nothing."""
AUGMENTATIONS = {"crop-flip": "the paper's, random resized crop and flip", "none": "none, prefix values kept"}

Way = Callable[[], list[float]]
"""Trains every candidate; the accuracy of each."""
Line = dict[str, Any]


@click.command()
@click.option("--repeats", type=click.IntRange(1), default=6, show_default=True, help="Of both ways.")
@click.option(
    "--size", type=click.IntRange(32), default=128, show_default=True, help="Pixels a side of the input."
)
@click.option(
    "--count", type=click.IntRange(20), default=192, show_default=True, help="Pictures to train on."
)
def main(repeats: int, size: int, count: int) -> None:
    """Write the files, train, write the times."""
    with tempfile.TemporaryDirectory() as scratch:
        base = base_checkpoint(Path(scratch, "base.safetensors"))
        backbone = trace(load_model(MODEL, str(base), (3, size, size)))
        data = files(Path(scratch, "pictures"), count)
        host = describe()
        line = {
            "unit": "s", "size": size, "count": count, "test": len(data.test), "candidates": len(backbone.blocks),
            "threads": torch.get_num_threads(), "host": host, "times": {},
        }  # fmt: skip
        with watch() as seen:
            for augment in AUGMENTATIONS:
                line["times"][augment] = timed(backbone, data, augment, repeats)
        line["warnings"] = noise_warnings(host, conditions=seen.conditions)
    RESULTS.mkdir(exist_ok=True)
    SAMPLES.write_text(json.dumps(line) + "\n")
    SUMMARY.write_text(summary(line))
    click.echo(SUMMARY.read_text())


def timed(backbone: Backbone, data: Data, augment: str, repeats: int) -> Line:
    """Seconds and accuracies of both ways, which go first by turns."""
    config = TrainConfig(epochs=EPOCHS, batch_size=BATCH, augment=augment)
    forks = [Fork((block.index,)) for block in backbone.blocks]
    ways: dict[str, Way] = {
        "one by one": lambda: [tune(backbone, "task", *data[:2], fork, config).accuracy for fork in forks],
        "one pass": lambda: [each.accuracy for each in train_together(backbone, forks, *data[:2], config)],
    }
    found: Line = {name: [] for name in ways} | {"accuracies": {}}
    for number in range(repeats):
        for name in list(ways)[:: 1 if number % 2 == 0 else -1]:
            start = time.perf_counter()
            found["accuracies"][name] = ways[name]()
            found[name].append(round(time.perf_counter() - start, 3))
            click.echo(f"{augment}, {number + 1} of {repeats}, {name}: {found[name][-1]:.1f} s", err=True)
    return found


def files(folder: Path, count: int) -> Data:
    """Digits on photographs, as JPEG files: a third as many to test on."""
    given = load_data("digits", train=count, test=count // 3)
    photographs, random = backgrounds(), np.random.default_rng(0)
    return Data(
        *(
            written(part, folder / name, photographs, random)
            for name, part in zip("ab", given[:2], strict=True)
        )
    )


def backgrounds() -> list[Image.Image]:
    """Photographs of scikit-image."""
    from skimage import data

    return [Image.fromarray(getattr(data, name)()).convert("RGB") for name in PHOTOGRAPHS]


def written(
    given: Dataset, folder: Path, photographs: Sequence[Image.Image], random: np.random.Generator
) -> Dataset:
    """The same digits, as files."""
    folder.mkdir(parents=True)
    paths = tuple(folder / f"{index}.jpg" for index in range(len(given)))
    for path, digit in zip(paths, given.pictures, strict=True):
        picture(np.asarray(digit), photographs, random).save(path, quality=QUALITY)
    return Dataset(paths, given.labels, given.classes)


def picture(digit: Any, photographs: Sequence[Image.Image], random: np.random.Generator) -> Image.Image:
    """A random part of a photograph with the digit in white on it."""
    photograph = photographs[random.integers(len(photographs))]
    side = int(min(photograph.size) * random.uniform(0.5, 1))
    left, top = (int(random.integers(length - side + 1)) for length in photograph.size)
    ground = photograph.crop((left, top, left + side, top + side)).resize(
        (SIDE, SIDE), Image.Resampling.BICUBIC
    )
    edge = int(DIGIT * SIDE)
    mask = Image.fromarray(digit).resize((edge, edge), Image.Resampling.BICUBIC)
    ground.paste((255, 255, 255), tuple(int(random.integers(SIDE - edge + 1)) for _ in range(2)), mask)
    return ground


def summary(line: Line) -> str:
    """Markdown: the command, the host, a row for each augmentation."""
    host = line["host"]
    doubts = "".join(f"\n\nWarning: {text}" for text in line["warnings"])
    rows = [row(AUGMENTATIONS[augment], each) for augment, each in line["times"].items()]
    return (
        f"`python benchmarks/joint_training.py`: {line['candidates']} candidates, every single block of "
        f"EfficientNet-Lite0, {line['count']} JPEG files of {SIDE} x {SIDE} to train on for {EPOCHS} epochs in batches "
        f"of {BATCH}, {line['test']} to test on, input 3x{line['size']}x{line['size']}, PyTorch "
        f"{host['libraries'].get('torch')} with {line['threads']} threads on {host['cores']} cores of {host['cpu']}. "
        "Times are of everything: reading and decoding files, augmentation, training, testing. One by one is "
        "`tune` for each candidate, one pass is `train_together`; they alternate, ratios are medians over pairs of "
        f"rounds with 95 % intervals.{doubts}\n\n"
    ) + markdown(COLUMNS, rows)


COLUMNS = (
    "augmentation",
    "one by one",
    "one pass",
    "times as fast",
    "95 % interval",
    "repeats",
    "accuracies",
)


def row(augmentation: str, each: Line) -> list[str]:
    """Cells of one augmentation."""
    apart, together = each["one by one"], each["one pass"]
    ratio = paired_ratio(together, apart)
    low, high = (f"{end:.2f}" if 0 < end < float("inf") else "unknown" for end in (ratio.low, ratio.high))
    interval = f"{low} to {high}" if len(apart) >= FEWEST else "too few repeats"
    accuracies = np.array([each["accuracies"][name] for name in ("one by one", "one pass")])
    furthest = np.abs(accuracies[0] - accuracies[1]).max()
    return [
        augmentation,
        f"{median(apart):.1f} s",
        f"{median(together):.1f} s",
        f"{ratio.value:.2f}",
        interval,
        str(len(apart)),
        "equal" if furthest == 0 else f"differ by up to {100 * furthest:.1f} points",
    ]


if __name__ == "__main__":
    main()
