"""What the lines of `roofline.py` say: how far from its bound each cell is, and the tables of all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from cells import MODELS, Key
from kept_lines import Line, host_of

from subtune_deploy.cost_model import BYTES
from subtune_deploy.result_tables import markdown
from subtune_deploy.spec import BASE
from subtune_deploy.stats import median, paired_ratio
from subtune_deploy.targets import load_target

TARGETS = ("cpu", "openvino-cpu", "openvino-cpu-bf16", "cpu-int8", "openvino-cpu-int8")
TASKS, PRODUCT, COPY = "graph", "product", "copy"
"""Of what is measured beside the base: the graph with all tasks, and both ceilings."""
SIDE = 2048
"""Of the square matrices that are multiplied: 8.6 G multiply-adds."""
COPIED = 1 << 28
"""Bytes that are read, and as many written: eight times the last cache."""
WEIGHTED = ("Conv", "Gemm", "MatMul")
MOVING = ("MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean", "Softmax", "LayerNormalization")
"""Operators that must read all of a value before they can write: all others can be done where their input is made."""
DOUBTS = (0.5, 1.0, 2.0)
"""Bandwidths, relative to that of the copy, for which the distance is told: activations may come from a cache."""

Sums = Sequence[tuple[int, int, int]]
"""Multiply-adds and elements of an operator, and of how many operators."""


@dataclass(frozen=True)
class Distance:
    """Of a cell. `base`, `graph`: latency over its bound; `tasks`: what they add, over what they add to the bound.

    `relative`: the same, over how far the base is from its own.
    """

    key: Key
    base: float
    graph: float
    tasks: float

    @property
    def relative(self) -> float:
        return self.tasks / self.base


def distance(line: Line, doubt: float = 1.0) -> Distance:
    """With a bandwidth of `doubt` times the copy's."""
    key, taken = Key.of(line), line["samples"]
    rate, bandwidth = rates(taken)
    elements = doubt * bandwidth / BYTES[load_target(key.target).precision]
    base, graph = (bound(line["sums"][each], rate, elements) for each in (BASE, TASKS))
    alone, ratio = median(taken[BASE]), paired_ratio(taken[BASE], taken[TASKS]).value
    added = alone * (ratio - 1) / (graph - base)
    return Distance(key, alone / base, median(taken[TASKS]) / graph, added)


def rates(taken: Mapping[str, Sequence[float]]) -> tuple[float, float]:
    """Multiply-adds and bytes a second."""
    return SIDE**3 / median(taken[PRODUCT]), 2 * COPIED / median(taken[COPY])


def bound(operators: Sums, rate: float, elements: float) -> float:
    """Seconds, where so many elements are moved a second."""
    return sum(count * max(macs / rate, moved / elements) for macs, moved, count in operators)


def told(line: Line) -> str:
    found = distance(line)
    return (
        f"{found.key}: base {found.base:.2f}, what tasks add {found.tasks:.2f}, relative {found.relative:.2f}"
    )


def summary(lines: Sequence[Line]) -> Iterator[str]:
    """Markdown."""
    hosts = sorted(set(map(host_of, lines)))
    yield (
        f"`python benchmarks/roofline.py`, batch 1, {len(lines)} cells on {', '.join(hosts)}. Ceilings, measured "
        f"right after each cell: a product of matrices of {SIDE} by {SIDE} in the same backend and precision, and a "
        f"copy of {COPIED >> 20} MiB. A graph's bound is the sum over its operators of the longer of both times, of "
        f"{', '.join((*WEIGHTED, *MOVING))}; others could be done where their input is made, and count nothing. It "
        "is an estimate: weights may be fetched while another operator computes, activations may come from a cache, "
        "and convolutions may run faster than that product: then a latency is below its bound. "
        "Weights are random, and answers are checked in fp32.\n"
        "\n## Ceilings\n\nMedian of the cells, least and most.\n\n"
    )
    yield markdown(("host", "engine", "GMAC/s", "GB/s"), _ceilings(lines))
    yield (
        "\n## How far from the bound\n\nLatency of the lone base over its bound, and what tasks add to the latency "
        "over what they add to the bound: median, least and most of all cells.\n\n"
    )
    yield markdown(("engine", "network", "cells", "base", "what tasks add"), _by_network(lines))
    columns = (f"bandwidth x {each:g}" for each in DOUBTS)
    yield (
        "\n## Do tasks waste more than the base?\n\n(latency / base - 1) / (bound / bound of the base - 1): 1 where "
        "both are equally far from their bounds, more where tasks are farther. Median and worst of all cells, also for "
        "other bandwidths than the copy's.\n\n"
    )
    yield markdown(("engine", "K", "cells", *columns), _spread(lines))
    yield "\n## Each cell\n\n"
    yield markdown(("cell", "base", "graph", "what tasks add", "relative", "host"), _cells(lines))


def _ceilings(lines: Sequence[Line]) -> Iterator[Sequence[str]]:
    for host, target in sorted({(host_of(line), line["target"]) for line in lines}):
        found = [rates(e["samples"]) for e in lines if (host_of(e), e["target"]) == (host, target)]
        yield host, target, *(_range([each / 1e9 for each in some], 0) for some in zip(*found, strict=True))


def _by_network(lines: Sequence[Line]) -> Iterator[Sequence[str]]:
    for target, model in product(TARGETS, MODELS):
        mine = [distance(each) for each in lines if (each["target"], each["model"]) == (target, model)]
        if mine:
            spans = ([each.base for each in mine], [each.tasks for each in mine])
            yield target, model, str(len(mine)), *map(_range, spans)


def _range(values: Sequence[float], digits: int = 2) -> str:
    middle, least, most = (f"{each:.{digits}f}" for each in (np.median(values), min(values), max(values)))
    return f"{middle} ({least} to {most})"


def _spread(lines: Sequence[Line]) -> Iterator[Sequence[str]]:
    for target, count in product(TARGETS, sorted({line["tasks"] for line in lines})):
        mine = [each for each in lines if (each["target"], each["tasks"]) == (target, count)]
        found = [[distance(each, doubt).relative for each in mine] for doubt in DOUBTS]
        if mine:
            told = (f"{np.median(each):.2f}, worst {max(each):.2f}" for each in found)
            yield target, str(count), str(len(mine)), *told


def _cells(lines: Sequence[Line]) -> Iterator[Sequence[str]]:
    for line in sorted(lines, key=Key.of):
        each = distance(line)
        numbers = (each.base, each.graph, each.tasks, each.relative)
        yield str(each.key), *(f"{n:.2f}" for n in numbers), host_of(line)
