"""How far engines are from what the machine's arithmetic and memory allow, and whether forks cost more than they must.

    python benchmarks/roofline.py [--seconds 20] [--tables]

The bound of a graph is the sum over its operators of the longer of multiply-adds over the peak rate and bytes over the
bandwidth. Both ceilings are measured here: by a large matrix product in each backend, and by a large copy. Latencies
are those of `peers.py`, whose lines must come from a host like this one: elsewhere, run that first. What tasks add is
told over what they add to the bound, and relative to how far the base itself is from its own.
benchmarks/results/roofline.json keeps the ceilings and the operators' sums; roofline.md is made of it, by --tables
without measuring.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from peers import MODELS, Key, backbone_of, finished, key_of
from peers import RESULTS as PEERS

from subtune_deploy.backends import get_backend
from subtune_deploy.backends.base import Batch, Engine, Shape
from subtune_deploy.build import plan_as
from subtune_deploy.environment import describe, differences, usable_cores
from subtune_deploy.export import Exported, export
from subtune_deploy.measure import Protocol, measure
from subtune_deploy.result_tables import markdown
from subtune_deploy.spec import BASE, INPUT, parse_layers
from subtune_deploy.stats import median, paired_ratio
from subtune_deploy.targets import load_target
from subtune_deploy.tasks import candidate_task

RESULTS = Path(__file__).parent / "results" / "roofline.json"
TARGETS = {"onnxruntime": "cpu", "openvino": "openvino-cpu"}
"""By the group of `peers`."""
OURS = "ours"
"""As `peers` calls it: streams are merged."""
SIDE = 2048
"""Of the square matrices that are multiplied: 8.6 G multiply-adds."""
COPIED = 1 << 28
"""Bytes that are read, and as many written: eight times the last cache."""
WEIGHTED = ("Conv", "Gemm", "MatMul")
MOVING = ("MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean", "Softmax", "LayerNormalization")
"""Operators that must read all of a value before they can write: all others can be done where their input is made."""
DOUBTS = (0.5, 1.0, 2.0)
"""Bandwidths, relative to that of the copy, for which the distance is told: activations may come from a cache."""

Line = dict[str, Any]
Sums = list[tuple[int, int]]
"""Multiply-adds and bytes, by operator."""


@click.command()
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=20.0, help="For the ceilings.")
@click.option("--tables", is_flag=True, help="Measure nothing.")
def main(seconds: float, tables: bool) -> None:
    """Measure, count, write."""
    lines = [line for line in finished(PEERS) if line["group"] in TARGETS]
    if not tables:
        if found := differences(lines[0]["host"], describe()):
            raise click.ClickException(f"{PEERS} was measured elsewhere: {'; '.join(found)}")
        found = {"host": describe(), "ceilings": ceilings(seconds), "sums": counted(lines)}
        RESULTS.write_text(json.dumps(found) + "\n")
    document = json.loads(RESULTS.read_text())
    RESULTS.with_suffix(".md").write_text("".join(summary(document, lines)))
    click.echo(RESULTS.with_suffix(".md").read_text())


# Ceilings


@dataclass(frozen=True)
class Copy:
    """Of a large array, each core a part; an engine, so that it is measured as engines are."""

    source: npt.NDArray[np.uint8]
    made: npt.NDArray[np.uint8]
    pool: ThreadPoolExecutor
    outputs: tuple[str, ...] = ("copy",)
    shape: Shape = ()
    threads: int = 0

    def run(self, batch: Batch) -> dict[str, npt.NDArray[Any]]:
        parts = (np.array_split(each, usable_cores()) for each in (self.made, self.source))
        list(self.pool.map(np.copyto, *parts))
        return {}


def ceilings(seconds: float) -> Line:
    """Multiply-adds a second by target, bytes a second, and the samples of which these are the medians."""
    rng = np.random.default_rng(0)
    source = rng.integers(1, 255, COPIED, dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(usable_cores()) as pool:
        engines: dict[str, Engine] = {"copy": Copy(source, np.zeros_like(source), pool)}
        engines |= {name: _product(Path(folder, name), name) for name in TARGETS.values()}
        batches = [rng.standard_normal((1, 1, SIDE, SIDE), dtype=np.float32) for _ in range(2)]
        found = measure(engines, batches, Protocol(seconds=seconds, warmup=4))
    rates = {name: SIDE**3 / median(found.samples[name]) for name in TARGETS.values()}
    return {"macs": rates, "bytes": 2 * COPIED / median(found.samples["copy"]), "samples": found.samples}


def _product(folder: Path, name: str) -> Engine:
    """Of the input (1, 1, SIDE, SIDE) with a constant matrix."""
    folder.mkdir()
    target = load_target(name)
    kind = ir.TensorType(ir.DataType.FLOAT)
    given = ir.Value(name=INPUT, type=kind, shape=ir.Shape((1, 1, SIDE, SIDE)))
    matrix = np.random.default_rng(1).standard_normal((SIDE, SIDE), dtype=np.float32)
    weight = ir.Value(name="matrix", const_value=ir.tensor(matrix), type=kind, shape=ir.Shape((SIDE, SIDE)))
    node = ir.node("MatMul", [given, weight])
    node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = BASE, kind, given.shape
    graph = ir.Graph(
        [given], node.outputs, nodes=[node], initializers=[weight], opset_imports={"": 20}, name="product"
    )
    ir.save(ir.Model(graph, ir_version=10), folder / "graph.onnx")
    backend = get_backend(target.backend)
    backend.compile(folder, folder, "graph", target)
    return backend.load(folder, "graph", target)


# What the graphs ask for


def counted(lines: Sequence[Line]) -> Line:
    """By cell: the sums of the base, and of our graph."""
    found: Line = {}
    for key in dict.fromkeys(_cell(key_of(line)) for line in lines):
        made = _exported(key)
        found[str(key)] = {BASE: sums(made.lone), OURS: sums(made.graph)}
        click.echo(f"counted {key}", err=True)
    return found


def _cell(key: Key) -> Key:
    return Key(key.model, key.fork, key.tasks, "")


def _exported(key: Key) -> Exported:
    backbone = backbone_of(key.model)
    layers = parse_layers(key.layers, len(backbone.blocks))
    tasks = [candidate_task(backbone, f"task{n}", layers, seed=n) for n in range(1, key.tasks + 1)]
    return export(backbone, tasks, plan_as(backbone, tasks, "always", (), ()))


def sums(model: ir.Model) -> Sums:
    """Of the operators that multiply or must move values; whatever else there is can be done on the way."""
    nodes = [node for node in model.graph if node.op_type in (*WEIGHTED, *MOVING)]
    return [(macs(node), 4 * sum(map(_elements, (*node.inputs, *node.outputs)))) for node in nodes]


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


# What it says


@dataclass(frozen=True)
class Distance:
    """Of a cell in a group. `base`, `graph`: latency over its bound; `tasks`: what they add, over what they add to the
    bound. `relative`: the same, over how far the base is from its own.
    """

    key: Key
    base: float
    graph: float
    tasks: float

    @property
    def relative(self) -> float:
        return self.tasks / self.base


def distances(document: Line, lines: Sequence[Line], doubt: float) -> Iterator[Distance]:
    """Of all cells, with a bandwidth of `doubt` times the copy's."""
    for line in lines:
        key, taken = key_of(line), line["samples"]
        rate, bandwidth = (
            document["ceilings"]["macs"][TARGETS[key.group]],
            doubt * document["ceilings"]["bytes"],
        )
        cell: Mapping[str, Sums] = document["sums"][str(_cell(key))]
        base, graph = (bound(cell[each], rate, bandwidth) for each in (BASE, OURS))
        alone, ratio = median(taken[BASE]), paired_ratio(taken[BASE], taken[OURS]).value
        added = alone * (ratio - 1) / (graph - base)
        yield Distance(key, alone / base, median(taken[OURS]) / graph, added)


def bound(operators: Sums, rate: float, bandwidth: float) -> float:
    """Seconds."""
    return sum(max(macs / rate, moved / bandwidth) for macs, moved in operators)


def summary(document: Line, lines: Sequence[Line]) -> Iterator[str]:
    """Markdown."""
    rates, host = document["ceilings"], document["host"]
    told = ", ".join(f"{name} {rate / 1e9:.0f} GMAC/s" for name, rate in rates["macs"].items())
    yield (
        f"`python benchmarks/roofline.py`, {host['cores']} cores of {host['cpu']}, batch 1, fp32. Ceilings, medians: a "
        f"product of matrices of {SIDE} by {SIDE} in {told}; a copy of {COPIED >> 20} MiB {rates['bytes'] / 1e9:.1f} "
        "GB/s, read and written. A graph's bound is the sum over its operators of the longer of both times, of "
        f"{', '.join((*WEIGHTED, *MOVING))}; others could be done where their input is made, and count nothing. It "
        "is an estimate: weights may be fetched while another operator computes, activations may come from a cache. "
        "Latencies are those of [peers.md](peers.md), measured on a host of the same kind at another time, with the "
        "exporter of that time.\n"
        "\n## How far from the bound\n\nLatency of the lone base over its bound, and what tasks add to the latency "
        "over what they add to the bound: median, least and most of all cells.\n\n"
    )
    yield markdown(("engine", "network", "base", "what tasks add"), _by_network(document, lines))
    columns = (f"bandwidth x {each:g}" for each in DOUBTS)
    yield (
        "\n## Do tasks waste more than the base?\n\n(latency / base - 1) / (bound / bound of the base - 1): 1 where "
        "both are equally far from their bounds, more where tasks are farther. Median and worst of all cells, also for "
        "other bandwidths than the copy's.\n\n"
    )
    yield markdown(("engine", "K", *columns), _spread(document, lines))
    yield "\n## Each cell\n\n"
    yield markdown(("engine", "cell", "base", "graph", "what tasks add", "relative"), _cells(document, lines))


def _by_network(document: Line, lines: Sequence[Line]) -> Iterator[Sequence[str]]:
    found = list(distances(document, lines, 1.0))
    for group, model in product(TARGETS, MODELS):
        mine = [each for each in found if (each.key.group, each.key.model) == (group, model)]
        yield group, model, _range([each.base for each in mine]), _range([each.tasks for each in mine])


def _range(values: Sequence[float]) -> str:
    return f"{np.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _spread(document: Line, lines: Sequence[Line]) -> Iterator[Sequence[str]]:
    found = [list(distances(document, lines, doubt)) for doubt in DOUBTS]
    for group in TARGETS:
        for count in sorted({key_of(line).tasks for line in lines}):
            mine = [
                [e.relative for e in each if (e.key.group, e.key.tasks) == (group, count)] for each in found
            ]
            yield group, str(count), *(f"{np.median(each):.2f}, worst {max(each):.2f}" for each in mine)


def _cells(document: Line, lines: Sequence[Line]) -> Iterator[Sequence[str]]:
    for each in sorted(distances(document, lines, 1.0), key=lambda each: each.key):
        key = each.key
        cell = f"{key.model}, {key.layers}, K={key.tasks}"
        yield key.group, cell, *(f"{n:.2f}" for n in (each.base, each.graph, each.tasks, each.relative))


if __name__ == "__main__":
    main()
