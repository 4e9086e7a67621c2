"""Results as people read them: tables, Markdown, CSV, and two runs side by side."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from .errors import InputError
from .results import Result, mixed
from .stats import Ratio, quotient

Row = tuple[str, ...]

COLUMNS: dict[str, Callable[[Result], str]] = {
    "model": lambda r: r.model,
    "fork": lambda r: r.fork,
    "tasks": lambda r: str(r.tasks),
    "target": lambda r: r.target,
    "classes": lambda r: "/".join(map(str, dict.fromkeys(r.classes.values()))),
    "base": lambda r: milliseconds(r.base.seconds),
    "all tasks": lambda r: milliseconds(r.graph.seconds),
    "added": lambda r: f"{r.added:+.1%}",
    "95 % interval": lambda r: f"{r.ratio.low - 1:+.1%} to {r.ratio.high - 1:+.1%}",
    "p95": lambda r: milliseconds(r.graph.p95),
    "p99": lambda r: milliseconds(r.graph.p99),
    "worst": lambda r: milliseconds(r.graph.worst),
    "engine": lambda r: megabytes(r.graph.engine_bytes),
    "peak memory": lambda r: megabytes(r.graph.peak_rss_bytes),
    "rounds": lambda r: str(len(r.samples["graph"])),
    "doubts": lambda r: str(len(r.warnings)),
}
"""What a table shows; times and sizes are those of the engine with all tasks, unless they say base; doubts
are the warnings about how it was measured."""

RAW: dict[str, Callable[[Result], object]] = {
    "model": lambda r: r.model,
    "layers": lambda r: r.forked,
    "tasks": lambda r: r.tasks,
    "prune": lambda r: r.prune or "",
    "classes": lambda r: " ".join(map(str, dict.fromkeys(r.classes.values()))),
    "batch": lambda r: r.batch,
    "target": lambda r: r.target,
    "backend": lambda r: r.backend,
    "precision": lambda r: r.precision,
    "protocol": lambda r: r.protocol.name,
    "inputs": lambda r: r.inputs,
    "added": lambda r: r.added,
    "ratio": lambda r: r.ratio.value,
    "ratio_low": lambda r: r.ratio.low,
    "ratio_high": lambda r: r.ratio.high,
    "settled": lambda r: r.settled,
    "base_seconds": lambda r: r.base.seconds,
    "graph_seconds": lambda r: r.graph.seconds,
    "graph_p95_seconds": lambda r: r.graph.p95,
    "graph_p99_seconds": lambda r: r.graph.p99,
    "graph_worst_seconds": lambda r: r.graph.worst,
    "base_engine_bytes": lambda r: r.base.engine_bytes,
    "graph_engine_bytes": lambda r: r.graph.engine_bytes,
    "base_peak_rss_bytes": lambda r: r.base.peak_rss_bytes,
    "graph_peak_rss_bytes": lambda r: r.graph.peak_rss_bytes,
    "rounds": lambda r: len(r.samples["graph"]),
    "merge": lambda r: r.merge,
    "grouped": lambda r: " ".join(r.grouped),
    "warnings": lambda r: "; ".join(r.warnings),
    "started": lambda r: r.started,
}
"""Columns of the CSV: numbers unrounded, in seconds and bytes."""


@dataclass(frozen=True)
class Change:
    """One fork in two runs; `ratio` is the second's added-latency ratio over the first's."""

    first: Result
    second: Result
    ratio: Ratio

    @property
    def verdict(self) -> str:
        """slower or faster if the intervals allow it; `no difference shown` is not the same as equal."""
        if self.ratio.low > 1:
            return "slower"
        return "faster" if self.ratio.high < 1 else "no difference shown"


def rows(results: Iterable[Result]) -> list[Row]:
    """A row of `COLUMNS` for each result."""
    return [tuple(show(result) for show in COLUMNS.values()) for result in results]


def markdown(columns: Iterable[str], body: Iterable[Sequence[str]]) -> str:
    """A Markdown table; what starts with a digit or a sign is set to the right."""
    header, lines = list(columns), [list(row) for row in body]
    numeric = [bool(lines) and all(row[i][:1] in "+-0123456789" for row in lines) for i in range(len(header))]
    rule = ["---:" if right else "---" for right in numeric]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (header, rule, *lines))


def to_csv(results: Iterable[Result]) -> str:
    """Comma-separated values, a header line, a line for each result."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(RAW)
    writer.writerows([read(result) for read in RAW.values()] for result in results)
    return text.getvalue()


def compare(first: Iterable[Result], second: Iterable[Result], *, across: bool = False) -> list[Change]:
    """Forks that both runs measured, in the order of the first, by ratio to the base of their own run.

    Ratios are compared, since absolute times of two moments are not comparable on most machines.
    Raises InputError if nothing is common, or if, unless `across`, host, versions or protocol differ.
    """
    others = {_key(result): result for result in second}
    pairs = [(one, two) for one in first if (two := _partner(one, others))]
    if not pairs:
        raise InputError(
            "the two have no result in common (model, input size, forks, pruning, classes, batch, target)",
            "compare runs of the same forks",
        )
    found = list(dict.fromkeys(what for one, two in pairs for what in mixed(one, two)))
    if found and not across:
        raise InputError(
            f"the two were not measured alike: {'; '.join(found)}", "give --across to compare all the same"
        )
    return [Change(one, two, quotient(one.ratio, two.ratio)) for one, two in pairs]


def change_rows(changes: Iterable[Change]) -> list[Row]:
    """Rows of `CHANGE_COLUMNS`."""
    return [
        (
            change.first.fork,
            str(change.first.tasks),
            change.first.target,
            f"{change.first.added:+.1%}",
            f"{change.second.added:+.1%}",
            f"{change.ratio.value - 1:+.2%}",
            f"{change.ratio.low - 1:+.2%} to {change.ratio.high - 1:+.2%}",
            change.verdict,
        )
        for change in changes
    ]


CHANGE_COLUMNS = ("fork", "tasks", "target", "added, A", "added, B", "change", "95 % interval", "verdict")


def milliseconds(seconds: float) -> str:
    """`"20.51 ms"`, with more digits below a millisecond."""
    return f"{seconds * 1e3:.{2 if seconds >= 1e-3 else 4}f} ms"


def megabytes(size: int | None) -> str:
    """`"103 MB"` (10^6 bytes); a dash for what was not measured."""
    return "-" if size is None else f"{size / 1e6:,.{0 if size >= 1e7 else 2}f} MB"


def _key(result: Result) -> tuple[object, ...]:
    """What two runs have in common, whatever way their graphs were lowered: its heads come last."""
    forks = tuple(sorted(result.forks.items()))
    heads = tuple(sorted(result.classes.items()))
    return result.model, result.input_shape, forks, result.prune, result.batch, result.target, heads


def _partner(one: Result, others: Mapping[tuple[object, ...], Result]) -> Result | None:
    """Of the same graph; where an older version did not tell its classes, the only one that is the same otherwise."""
    *graph, heads = _key(one)
    alike = [two for key, two in others.items() if [*key[:-1]] == graph and not (heads and key[-1])]
    return others.get(_key(one), alike[0] if len(alike) == 1 else None)
