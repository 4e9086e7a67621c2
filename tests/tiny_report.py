"""Reports of forks that were never timed, for the tests of the page."""

from __future__ import annotations

import random
from typing import Any

from tiny_documents import profile, row
from tiny_results import result, timing

from subtune_deploy.report import make_document
from subtune_deploy.results import Result
from subtune_deploy.tuning.documents import Profile

FORKS = [(first, *range(first + 1, first + length)) for length in (1, 2) for first in range(1, 6 - length)]
"""Of one and two of four blocks."""


def timed(layers: tuple[int, ...], added: float, **other: Any) -> Result:
    """One fork whose samples scatter."""
    chance = random.Random(str((layers, added)))
    base = tuple(0.01 + abs(chance.gauss(0, 0.0002)) for _ in range(80))
    samples = {"base": base, "graph": tuple((1 + added) * each for each in base)}
    made = {"input_shape": (3, 112, 112), "layers": layers, "forks": {"task1": layers}, "samples": samples}
    return result(added, **(made | {"graph": timing(0.01 * (1 + added))} | other))


def run(target: str = "cpu", scale: float = 1.0, **other: Any) -> list[Result]:
    """All `FORKS` on one target: the earlier they begin, the dearer."""
    return [
        timed(each, scale * (0.6 - 0.11 * each[0] + 0.02 * len(each)), target=target, **other)
        for each in FORKS
    ]


def trained() -> Profile:
    """Accuracies of all `FORKS`, best at block 3."""
    rows = [
        row(each, [0.93 + 0.02 * len(each) - 0.012 * abs(3 - each[0]) + n for n in (0.0, 0.004, 0.002)])
        for each in FORKS
    ]
    return profile(row((), (0.86, 0.862, 0.858)), *rows)


def many(count: int, **about: Any) -> dict[str, Any]:
    """A document of so many points, on a grid that is coarse enough for ties."""
    chance, document = random.Random(count), make_document(run(), trained())
    document |= about
    first = document["points"][0]
    document["points"] = [
        first
        | {
            "fork": f"f{n}", "name": f"f{n}", "layers": list(FORKS[n % len(FORKS)]),
            "added": _around(chance.randrange(200) / 256, 0.01),
            "accuracy": _around(0.5 + chance.randrange(100) / 256, 0.02),
        }
        for n in range(count)
    ]  # fmt: skip
    return document


def _around(value: float, half: float) -> list[float]:
    return [value, value - half, value + half]
