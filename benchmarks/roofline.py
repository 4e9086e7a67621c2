"""How far engines are from what the machine's arithmetic and memory allow, and whether forks cost more than they must.

    python benchmarks/roofline.py [--model M]... [--fork F]... [--tasks K]... [--target T]... [--seconds S] [--tables]

The bound of a graph is the sum over its operators of the longer of multiply-adds over the peak rate and bytes over the
bandwidth. Both ceilings are measured in the run that measures the engines, right after them, since a large copy empties
the caches: a large product of matrices in the same backend and precision, and that copy. What tasks add is told over
what they add to the bound, and relative to how far the base itself is from its own. The cells are those of `cells.py`;
each tells its own host. Finished lines of benchmarks/results/roofline.jsonl are kept, with raw samples and the
operators' sums; the tables are roofline.md beside it, --tables makes them anew.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from cells import Key, backbone_of, cell_options, release, tasks_of
from kept_lines import Line, kept, taken, write_tables
from made_graphs import constant, entry, noise, open_graph
from roofline_tables import (
    COPIED,
    COPY,
    MOVING,
    PRODUCT,
    SIDE,
    TARGETS,
    TASKS,
    WEIGHTED,
    Sums,
    summary,
    told,
)

from subtune_deploy.backends.base import Batch, Engine, Shape
from subtune_deploy.build import BuildOptions, build
from subtune_deploy.bundle import Bundle
from subtune_deploy.compiling import check_engine, make_engine
from subtune_deploy.environment import usable_cores
from subtune_deploy.lines import append_line, drop_torn_line
from subtune_deploy.measure import Protocol, fresh_batches, measure
from subtune_deploy.runtime import open_engine
from subtune_deploy.spec import BASE, GRAPH, LONE_GRAPH
from subtune_deploy.targets import load_target

LIMITS = Protocol(seconds=2.0, warmup=4)
"""Of the ceilings."""
CALIBRATED = 8
"""Inputs that ranges of int8 are taken from."""
RESULTS = Path(__file__).parent / "results" / "roofline.jsonl"


@click.command()
@cell_options(TARGETS)
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=6.0, help="Each engine's cell.")
@click.option("--minutes", type=click.FloatRange(0), default=240.0, help="No graph begins later.")
@click.option("--tables", is_flag=True, help="Measure nothing.")
def main(
    models: tuple[str, ...], forks: tuple[str, ...], counts: tuple[int, ...], targets: tuple[str, ...],
    seconds: float, minutes: float, tables: bool,
) -> None:  # fmt: skip
    """Measure what is missing, write."""
    drop_torn_line(RESULTS)
    start = time.monotonic()
    for model, fork, count in () if tables else product(models, forks, counts):
        known = set(map(Key.of, kept(RESULTS)))
        missing = [key for each in targets if (key := Key(model, fork, count, each)) not in known]
        if time.monotonic() - start > 60 * minutes:
            click.echo("the time is up", err=True)
            break
        for line in measured(missing, Protocol(seconds=seconds, warmup=4)):
            append_line(RESULTS, line)
            click.echo(f"{(time.monotonic() - start) / 60:.1f} min: {told(line)}", err=True)
        release()
    write_tables(RESULTS, summary(kept(RESULTS)))


# What is measured


def measured(keys: Sequence[Key], protocol: Protocol) -> Iterator[Line]:
    """A line for each of `keys`, which have one graph: its base and all its tasks by turns, then both ceilings."""
    if not keys:
        return
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        bundle, sums = _built(keys[0], place / "bundle")
        for key in keys:
            engines, limits = _networks(bundle, place, key.target), ceilings(place, key.target)
            batches = fresh_batches(bundle.manifest.input, 1)
            found = taken(partial(measure, engines, batches, protocol))
            ceiling = taken(partial(measure, limits, batches, LIMITS))
            yield {
                **key.named,
                "sums": sums,
                **found,
                "samples": found["samples"] | ceiling["samples"],
                "warnings": list(dict.fromkeys(found["warnings"] + ceiling["warnings"])),
            }


def _built(key: Key, path: Path) -> tuple[Bundle, dict[str, Sums]]:
    """The graph, which is checked, and what it and the base ask for."""
    backbone = backbone_of(key.model)
    bundle = build(backbone, tasks_of(key), path, BuildOptions(1), sources=False)
    return bundle, {
        BASE: sums(ir.load(bundle.path / LONE_GRAPH)),
        TASKS: sums(ir.load(bundle.path / GRAPH)),
    }


def _networks(bundle: Bundle, place: Path, name: str) -> dict[str, Engine]:
    """The lone base and all tasks. Weights are random, and so is what int8 is calibrated on, so answers are checked in
    fp32 alone."""
    target, folder = load_target(name), place / name
    folder.mkdir()
    make_engine(bundle.path, folder, target, noise(0, CALIBRATED, *bundle.manifest.input.shape))
    if target.precision == "fp32":
        check_engine(bundle, target, folder)
    roles = {BASE: "base", TASKS: "graph"}
    return {each: open_engine(bundle, target, folder, role) for each, role in roles.items()}


@dataclass(frozen=True)
class Ceiling:
    """Something large to do, whatever the networks are asked; an engine, so that it is measured as engines are."""

    do: Callable[[], object]
    outputs: tuple[str, ...] = ()
    shape: Shape = ()
    threads: int = 0

    def run(self, batch: Batch) -> dict[str, npt.NDArray[Any]]:
        self.do()
        return {}


def ceilings(place: Path, target: str) -> dict[str, Engine]:
    """A product of matrices in this backend and precision, and a copy by all cores."""
    source = np.random.default_rng(0).integers(1, 255, COPIED, dtype=np.uint8)
    made, pool = np.zeros_like(source), ThreadPoolExecutor(usable_cores())
    parts = [np.array_split(each, usable_cores()) for each in (made, source)]
    multiply, given = matrix_product(place / f"{target}-product", target), noise(0, 1, 1, SIDE, SIDE)
    return {
        PRODUCT: Ceiling(lambda: multiply.run(given)),
        COPY: Ceiling(lambda: list(pool.map(np.copyto, *parts))),
    }


def matrix_product(folder: Path, name: str) -> Engine:
    """Of the input (1, 1, SIDE, SIDE) with a constant matrix, which follows from a seed."""
    given, matrix = entry((1, 1, SIDE, SIDE)), constant("matrix", noise(1, SIDE, SIDE))
    product = ir.node("MatMul", [given, matrix])
    return open_graph(folder, given, [product], [matrix], name, noise(0, 2, 1, SIDE, SIDE))


# What the graphs ask for


def sums(model: ir.Model) -> Sums:
    """Of the operators that multiply or must move values; whatever else there is can be done on the way."""
    nodes = [node for node in model.graph if node.op_type in (*WEIGHTED, *MOVING)]
    alike = Counter((macs(node), sum(map(_elements, (*node.inputs, *node.outputs)))) for node in nodes)
    return [(*each, count) for each, count in alike.items()]


def macs(node: ir.Node) -> int:
    """Multiply-adds of a convolution or a product of matrices; 0 for others."""
    if node.op_type not in WEIGHTED:
        return 0
    first, second, (made,) = *node.inputs[:2], node.outputs
    if node.op_type == "Conv":  # a weight is (out, in / groups, height, width)
        return _elements(made) * _elements(second) // _shape(second)[0]
    turned = node.op_type == "Gemm" and "transA" in node.attributes and node.attributes["transA"].as_int()
    return _elements(made) * _shape(first)[-2 if turned else -1]


def _shape(value: ir.Value | None) -> tuple[int, ...]:
    assert value is not None
    assert value.shape is not None
    return tuple(int(each) for each in value.shape)  # type: ignore[arg-type]


def _elements(value: ir.Value | None) -> int:
    return 0 if value is None else int(np.prod(_shape(value)))


if __name__ == "__main__":
    main()
