"""What `profile`, `greedy` and `active` leave: one JSON document each, read back strictly. No torch here.

    for row in read_document(Profile, Path("profile.json")).rows:
        print(row.fork, f"{row.accuracy:.1%}", row.parameters)

Accuracies are shares of pictures, 0..1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from ..documents import Document, read_document
from ..errors import InputError
from ..spec import Pruning

STRATEGIES = {"margin": "by margin", "random": "at random"}
"""How active learning chooses."""


@dataclass(frozen=True)
class About(Document):
    """What accuracies are of.

    `blocks`: their names; `shapes`: what each answers for one picture; `data`: its source, numbers of pictures,
    classes and fingerprints; `settings`: how forks were trained.
    """

    model: str
    weights: str
    input: tuple[int, ...]
    blocks: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    data: Mapping[str, Any]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One fork, trained once for each seed; `accuracies` on the test pictures, in the order of the seeds.

    `layers`: the blocks it tunes, all of them for full fine-tuning (`fork` "all"), none for the head alone
    ("none"). `std` is that of a sample, None for one seed. `parameters`: those that were trained, head included.
    """

    fork: str
    layers: tuple[int, ...]
    accuracy: float
    std: float | None
    accuracies: tuple[float, ...]
    parameters: int
    siamese: bool = False
    init: str = "pretrained"
    prune: Pruning | None = None

    def __post_init__(self) -> None:
        if not self.accuracies or not all(0 <= each <= 1 for each in (self.accuracy, *self.accuracies)):
            raise InputError(
                f"fork {self.fork} has accuracies {list(self.accuracies)}, expected shares between 0 and 1",
                "write the document anew",
            )
        if self.layers != tuple(sorted(set(self.layers))):
            raise InputError(
                f"fork {self.fork} tunes blocks {list(self.layers)}, expected them in order",
                "write the document anew",
            )


@dataclass(frozen=True)
class Profile(About):
    """Accuracy by fork. `examples`: pictures trained on, None for all of the training set."""

    kind = "profile"

    examples: int | None
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]

    def __post_init__(self) -> None:
        for row in self.rows:
            if not set(row.layers) <= set(range(1, len(self.blocks) + 1)):
                raise InputError(
                    f"fork {row.fork} tunes blocks outside 1..{len(self.blocks)}", "write the document anew"
                )


@dataclass(frozen=True)
class Cost:
    """What a fork costs: parameters, head included, and added latency relative to the base, where that is asked.

    `estimated`: the fork itself was not timed; the latency is that of the dearest timed fork that lies in it.
    `predicted`: by a model fitted to other forks.
    """

    parameters: int
    added: float | None = None
    estimated: bool = False
    predicted: bool = False


@dataclass(frozen=True)
class Score:
    """A block that was tried beside those chosen so far: mean accuracy over the folds."""

    layer: int
    accuracy: float
    accuracies: tuple[float, ...]
    cost: Cost


@dataclass(frozen=True)
class LeftOut:
    """A block that was not tried, since the fork with it would be over budget."""

    layer: int
    cost: Cost


@dataclass(frozen=True)
class Round:
    """One round of Algorithm 1, begun with the blocks `chosen`; `best` is None where no score was above 0.

    `failed`: blocks with which the fork could not be trained.
    """

    chosen: tuple[int, ...]
    scores: tuple[Score, ...]
    left_out: tuple[LeftOut, ...]
    best: int | None
    accuracy: float
    taken: bool
    failed: tuple[int, ...] = ()


@dataclass(frozen=True)
class Greedy(About):
    """Greedy-SubTuning. `order`: blocks as they were chosen; `head`: cross-validated accuracy of the head alone,
    for comparison; `final`: the chosen fork trained on everything, its accuracy on the test pictures, which
    the selection never saw."""

    kind = "greedy"

    examples: int | None
    folds: int
    eps: float
    max_parameters: int | None
    max_added: float | None
    head: float
    rounds: tuple[Round, ...]
    order: tuple[int, ...]
    seeds: tuple[int, ...]
    final: Row


@dataclass(frozen=True)
class Labelled:
    """One training on `examples` labelled pictures, which were chosen by margin or at random."""

    fork: str
    strategy: str
    seed: int
    examples: int
    accuracy: float


@dataclass(frozen=True)
class Active(About):
    """Active learning. `schedule`: how many pictures are labelled, step by step.

    `settings` that differ between the steps are lists of them.
    """

    kind = "active"

    schedule: tuple[int, ...]
    seeds: tuple[int, ...]
    rows: tuple[Labelled, ...]


def mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Of a sample; one value has no deviation."""
    return fmean(values), stdev(values) if len(values) > 1 else None


def read_profile(path: Path) -> Profile:
    """What `subtune-deploy profile` wrote. Raises InputError."""
    return read_document(Profile, path)
