"""What the demo found, as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.table import Table

from . import runtime
from .bundle import Bundle
from .measure import Samples
from .spec import BASE, format_layers
from .stats import paired_ratio


def cost_table(
    forks: Mapping[str, tuple[int, ...]], accuracy: Mapping[str, float], timings: Mapping[str, Samples]
) -> Table:
    """`timings`: target -> seconds by engine, interleaved, the base's among them.

    Added latency is the median of the ratios to the base, with its 95 % interval.
    """
    table = Table("added", "blocks", "accuracy", *timings, title="Added latency, and its 95 % interval")
    for name in dict.fromkeys([*forks, *(name for samples in timings.values() for name in samples)]):
        blocks = format_layers(forks[name]) if name in forks else ""
        right = f"{accuracy[name]:.1%}" if name in accuracy else ""
        table.add_row(name, blocks, right, *(_added(samples, name) for samples in timings.values()))
    return table


def _added(samples: Samples, name: str) -> str:
    if name == BASE:
        return f"{np.median(samples[BASE]) * 1e3:.2f} ms alone"
    if name not in samples:
        return "not built"
    ratio = paired_ratio(samples[BASE], samples[name])
    return f"{ratio.value - 1:+.1%} ({ratio.low - 1:+.1%} to {ratio.high - 1:+.1%})"


def base_table(bundle: Bundle, before: Mapping[Path, str]) -> Table:
    """What the base task calls each picture: `before`, by the stand-alone network, and in every engine."""
    engines = bundle.manifest.engines
    table = Table("picture", "stand-alone network", *engines, title="The base task, before and in the graph")
    found = [first_guesses(bundle, target, list(before), BASE) for target in engines]
    for path, label, *after in zip(before, before.values(), *found, strict=True):
        table.add_row(path.stem, label, *after)
    return table


def task_table(bundle: Bundle, target: str, pictures: Mapping[Path, str], names: Sequence[str]) -> Table:
    """What tasks `names` read in pictures whose true labels are given."""
    table = Table("picture", *names, title=f"Held-out digits, as {target} reads them")
    found = [first_guesses(bundle, target, list(pictures), name) for name in names]
    for label, *guesses in zip(pictures.values(), *found, strict=True):
        table.add_row(label, *guesses)
    return table


def first_guesses(bundle: Bundle, target: str, pictures: Sequence[Path], task: str) -> list[str]:
    """The likeliest label of each picture."""
    found = runtime.Bundle.open(bundle.path, target).top(pictures)
    return [str(guesses[task][0][0]) for guesses in found]
