"""Documents of tuning that were never trained, for the tests of what is done with them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from subtune_deploy.spec import Pruning, format_layers
from subtune_deploy.tuning.documents import (
    Active,
    Cost,
    Greedy,
    Labelled,
    LeftOut,
    Profile,
    Round,
    Row,
    Score,
    mean_and_std,
)

STAGES = {"resnet50": (3, 4, 6, 3), "tiny": (2, 2)}


def about(model: str = "tiny") -> dict[str, Any]:
    """The fields that all kinds share, of a network with stages."""
    counts = STAGES[model]
    shapes = [
        (64 << stage, 56 >> stage, 56 >> stage) for stage, count in enumerate(counts) for _ in range(count)
    ]
    return {
        "model": model,
        "weights": "random",
        "input": (3, 112, 112),
        "blocks": tuple(f"blocks.{index}" for index in range(len(shapes))),
        "shapes": tuple(shapes),
        "data": {"source": "digits", "train": 1000, "test": 500, "classes": 10},
        "settings": {"epochs": 10},
    }


def row(layers: Sequence[int], accuracies: Sequence[float] = (0.9, 0.92, 0.91), **other: Any) -> Row:
    mean, std = mean_and_std(accuracies)
    fork = other.pop("fork", format_layers(layers))
    return Row(fork, tuple(layers), mean, std, tuple(accuracies), 1000 * (1 + len(layers)), **other)


def profile(
    *rows: Row, model: str = "tiny", examples: int | None = None, seeds: tuple[int, ...] = (0, 1, 2)
) -> Profile:
    return Profile(**about(model), examples=examples, seeds=seeds, rows=rows)


def made_up(model: str = "resnet50", lengths: Sequence[int] = (1, 2, 3), seed: int = 0) -> Profile:
    """A profile that looks like the paper's: best in the last third."""
    chance, count = random.Random(seed), sum(STAGES[model])

    def drawn(layers: Sequence[int]) -> Row:
        level = 0.955 - 0.0004 * (sum(layers) / len(layers) - 0.8 * count) ** 2 / len(layers)
        return row(layers, [level + chance.gauss(0, 0.0025) for _ in range(3)])

    runs = [range(i, i + n) for n in lengths for i in range(1, count - n + 2)]
    ends = (row((), (0.907, 0.909, 0.911)), row(range(1, count + 1), (0.957, 0.959, 0.958), fork="all"))
    return profile(*ends, *(drawn(tuple(run)) for run in runs), model=model)


def pairs(model: str = "resnet50") -> Profile:
    chance, count = random.Random(1), sum(STAGES[model])
    chosen = [(i,) for i in range(1, count + 1)] + list(combinations(range(1, count + 1), 2))
    rows = [row(each, [0.95 + 0.0008 * sum(each) / len(each) + chance.gauss(0, 0.002)]) for each in chosen]
    return profile(*rows, model=model, seeds=(0,))


def pruned(layers: tuple[int, ...] = (3, 4)) -> Profile:
    rows = [row(layers, (0.95, 0.952, 0.951))]
    for scope in ("local", "global"):
        for norm in ("l1", "l2"):
            for step in range(1, 10):
                prune = Pruning(step / 10, scope, norm)
                level = (
                    0.95
                    - 0.015 * (step / 10) ** 2
                    - (0.002 if scope == "local" else 0)
                    - 0.001 * (norm == "l2")
                )
                made = row(
                    layers, (level, level + 0.002), fork=f"{format_layers(layers)} {prune}", prune=prune
                )
                kept = round(300 + 2700 * (1 - step / 10) ** (1.6 if scope == "global" else 2))
                rows.append(Row(**{**vars(made), "parameters": kept}))
    return profile(*rows)


def greedy(order: Sequence[int] = (14, 2, 7), model: str = "resnet50", seed: int = 0) -> Greedy:
    """Rounds that take `order`, then one that does not help."""
    chance, count = random.Random(seed), sum(STAGES[model])
    rounds, level = [], 0.90
    for chosen in range(len(order) + 1):
        taken = chosen < len(order)
        so_far, level = tuple(order[:chosen]), level + (0.03 / (chosen + 1) if taken else 0)
        tried = [layer for layer in range(1, count + 1) if layer not in so_far]
        scores = [level - abs(chance.gauss(0.01, 0.005)) for _ in tried]
        if taken:
            scores[tried.index(order[chosen])] = level
        best = max(zip(scores, tried, strict=True))
        scored = tuple(
            Score(layer, score, (score,) * 5, Cost(1000)) for layer, score in zip(tried, scores, strict=True)
        )
        left_out = (LeftOut(count, Cost(9000)),) if not taken else ()
        rounds.append(Round(so_far, scored, left_out, best[1], best[0], taken))
    return Greedy(
        **about(model),
        examples=None,
        folds=5,
        eps=0.001,
        max_parameters=None,
        max_added=None,
        head=0.905,
        rounds=tuple(rounds),
        order=tuple(order),
        seeds=(0, 1, 2),
        final=row(sorted(order)),
    )


def active(forks: Sequence[str] = ("7", "all")) -> Active:
    chance, schedule = random.Random(2), (100, 500, 1000, 2500, 5000, 10000)
    rows = [
        Labelled(
            fork, strategy, seed, size,
            1 - (0.4 if strategy == "margin" else 0.46) * (100 / size) ** 0.45 - 0.03 * place - chance.random() * 0.01,
        )
        for place, fork in enumerate(forks)
        for strategy in ("margin", "random")
        for seed in (0, 1, 2)
        for size in schedule
    ]  # fmt: skip
    return Active(**about("resnet50"), schedule=schedule, seeds=(0, 1, 2), rows=tuple(rows))
