"""What tuning found, as people read it: columns and rows, and sentences. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean

from ..spec import format_layers
from .documents import STRATEGIES, About, Active, Cost, Greedy, Profile, Row

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]
"""Columns, and rows under them."""


def profile_table(profile: Profile) -> Table:
    """A line for each fork."""
    columns = ("fork", "accuracy", "deviation", "parameters")
    return columns, [
        (row.fork, f"{row.accuracy:.1%}", _deviation(row), f"{row.parameters:,}") for row in profile.rows
    ]


def greedy_table(found: Greedy) -> Table:
    """A line for each round."""
    columns = ("round", "tried", "over budget", "best block", "accuracy", "taken")
    return columns, [
        (
            str(number),
            str(len(each.scores) + len(each.failed)),
            str(len(each.left_out)),
            str(each.best or "-"),
            f"{each.accuracy:.2%}",
            "yes" if each.taken else "no",
        )
        for number, each in enumerate(found.rounds, start=1)
    ]


def active_table(found: Active) -> Table:
    """A line for each fork and way to choose, a column for each number of labelled pictures; means over seeds."""

    def mean(fork: str, strategy: str, size: int) -> str:
        rows = [row for row in found.rows if (row.fork, row.strategy, row.examples) == (fork, strategy, size)]
        return f"{fmean(row.accuracy for row in rows):.1%}"

    arms = dict.fromkeys((row.fork, row.strategy) for row in found.rows)
    return ("fork", "chosen", *(f"{size:,}" for size in found.schedule)), [
        (fork, STRATEGIES[strategy], *(mean(fork, strategy, size) for size in found.schedule))
        for fork, strategy in arms
    ]


def best_told(profile: Profile) -> str:
    """The fork with the highest accuracy."""
    best = max(profile.rows, key=lambda row: row.accuracy)
    return f"best: {best.fork}, {row_told(best, profile)}"


def row_told(row: Row, about: About) -> str:
    """`"95.1% ± 0.2% over 3 seeds of 500 test pictures, 12,345 parameters"`"""
    spread = "" if row.std is None else f" ± {row.std:.1%} over {len(row.accuracies)} seeds"
    return (
        f"{row.accuracy:.1%}{spread} of {about.data['test']:,} test pictures, {row.parameters:,} parameters"
    )


def greedy_told(found: Greedy) -> Iterator[str]:
    """What was chosen, what it is worth, and what it costs as far as that was asked."""
    order = ", ".join(map(str, found.order)) or "none"
    yield f"chosen in this order: {order}; fork {format_layers(found.order)}"
    yield f"the head alone, in the same cross-validation: {found.head:.2%}"
    yield f"the fork trained on everything: {row_told(found.final, found)}"
    taken = [
        score for each in found.rounds if each.taken for score in each.scores if score.layer == each.best
    ]
    if taken and taken[-1].cost.added is not None:
        cost = taken[-1].cost
        yield f"added latency: {cost.added:.1%}{_known(cost)}"


def _known(cost: Cost) -> str:
    if cost.predicted:
        return ", as it is predicted"
    return " at least, as the dearest timed fork that lies in it" if cost.estimated else ", as it was timed"


def _deviation(row: Row) -> str:
    return "-" if row.std is None else f"{row.std:.1%}"
