"""Which widths does a target like? To what multiple are the widths of pruned layers best rounded up?

    python benchmarks/widths.py [--target T]... [--seconds S] [--tables]

Two networks whose inner width alone varies, as pruning varies it: bottlenecks of a convolutional network (1x1 from 256
channels, 3x3, 1x1 back, on 14x14 pixels) and MLPs of a transformer (197 tokens of 384), DEEP in a row, with random
weights. Every width from 97 to 128; all 32 engines of a network and target by turns in one run. For each multiple: how
long engines take whose widths are rounded up to it against those that are not, in the geometric mean over the widths,
with a 95 % interval. The multiple to take is the greatest within 1 % of the best, for both networks: `width_multiple`
of the target's recipe. Lines with raw samples are kept in benchmarks/results/widths.jsonl; the tables are widths.md
beside it and the picture widths.svg; --tables makes them anew.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
import onnx_ir as ir
from kept_lines import Line, host_of, kept, taken, write_tables
from made_graphs import constant, entry, noise, open_graph
from onnx_ir.tape import Tape

from subtune_deploy.backends.base import Engine
from subtune_deploy.lines import append_line, drop_torn_line
from subtune_deploy.measure import Protocol, fresh_batches, measure
from subtune_deploy.result_tables import markdown
from subtune_deploy.spec import InputSpec
from subtune_deploy.stats import Ratio, median, paired_ratio
from subtune_deploy.tuning.drawing import drawn

TARGETS = ("cpu", "cpu-int8", "openvino-cpu", "openvino-cpu-bf16", "openvino-cpu-int8")
WIDTHS = range(97, 129)
MULTIPLES = (1, 2, 4, 8, 16, 32)
DEEP = 4
ENOUGH = 1.01
"""Of the best: what is as good."""
RESULTS = Path(__file__).parent / "results" / "widths.jsonl"
PICTURE = RESULTS.with_suffix(".svg")


@click.command()
@click.option("--target", "targets", multiple=True, type=click.Choice(TARGETS), default=TARGETS)
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=0.5, help="Each engine's.")
@click.option("--tables", is_flag=True, help="Measure nothing.")
def main(targets: tuple[str, ...], seconds: float, tables: bool) -> None:
    """Measure what is missing, write."""
    drop_torn_line(RESULTS)
    known = {(line["network"], line["target"]) for line in kept(RESULTS)}
    for target in () if tables else targets:
        for network in NETWORKS:
            if (network, target) not in known:
                append_line(RESULTS, measured(network, target, Protocol(seconds=seconds * len(WIDTHS))))
                click.echo(f"{network}, {target}", err=True)
    draw(kept(RESULTS))
    write_tables(RESULTS, summary(kept(RESULTS)))


# What is measured


def measured(network: str, target: str, protocol: Protocol) -> Line:
    """All widths of one network by turns."""
    shape, _ = NETWORKS[network]
    with tempfile.TemporaryDirectory() as folder:
        engines = {str(width): engine(Path(folder) / str(width), network, width, target) for width in WIDTHS}
        batches = fresh_batches(InputSpec(shape), 1)
        return {"network": network, "target": target, **taken(lambda: measure(engines, batches, protocol))}


def engine(folder: Path, network: str, width: int, target: str) -> Engine:
    """Of DEEP blocks with this inner width, each added to what it was given; weights follow from a seed."""
    shape, block = NETWORKS[network]
    given, weights, made = entry((1, *shape)), Weights(), Tape()
    last = given
    for _ in range(DEEP):
        last = made.op("Add", [last, block(made, weights, last, width)])
    return open_graph(folder, given, list(made.nodes), weights.made, target, noise(2, 4, *shape))


Block = Callable[[Tape, "Weights", ir.Value, int], ir.Value]
"""What follows a value, with an inner width."""


class Weights:
    """Constants of a graph, with random values that keep the size of what they multiply."""

    def __init__(self) -> None:
        self.rng, self.made = np.random.default_rng(1), list[ir.Value]()

    def __call__(self, *shape: int, inputs: int) -> ir.Value:
        """A new one; `inputs`: how many products each result is the sum of."""
        values = noise(self.rng, *shape) / np.float32(inputs**0.5)
        self.made.append(constant(f"weight{len(self.made)}", values))
        return self.made[-1]


def bottleneck(made: Tape, weights: Weights, given: ir.Value, width: int) -> ir.Value:
    """1x1, 3x3 and 1x1 back."""
    outer = NETWORKS["bottlenecks"][0][0]
    thin = made.op("Relu", [made.op("Conv", [given, weights(width, outer, 1, 1, inputs=outer)])])
    middle = made.op("Conv", [thin, weights(width, width, 3, 3, inputs=9 * width)], {"pads": [1, 1, 1, 1]})
    return made.op("Conv", [made.op("Relu", [middle]), weights(outer, width, 1, 1, inputs=width)])


def mlp(made: Tape, weights: Weights, given: ir.Value, width: int) -> ir.Value:
    """Tokens to the width and back."""
    outer = NETWORKS["MLPs"][0][-1]
    thin = made.op("Relu", [made.op("MatMul", [given, weights(outer, width, inputs=outer)])])
    return made.op("MatMul", [thin, weights(width, outer, inputs=width)])


NETWORKS: dict[str, tuple[tuple[int, int, int], Block]] = {
    "bottlenecks": ((256, 14, 14), bottleneck),
    "MLPs": ((1, 197, 384), mlp),
}
"""Shape of a picture, and what is repeated."""


# What it says


def rounding(line: Line, multiple: int) -> Ratio:
    """What rounding every width up to a multiple does to the latency, in the geometric mean over widths."""
    logs = {int(width): np.log(taken) for width, taken in line["samples"].items()}
    asked, taken = (
        np.exp(np.mean([logs[-(-width // step) * step] for width in logs], axis=0)) for step in (1, multiple)
    )
    return paired_ratio(asked.tolist(), taken.tolist())


def best(lines: list[Line]) -> int:
    """The greatest multiple that is within 1 % of the best for each of these networks."""
    costs = [{multiple: rounding(line, multiple).value for multiple in MULTIPLES} for line in lines]
    return max(
        multiple
        for multiple in MULTIPLES
        if all(cost[multiple] <= ENOUGH * min(cost.values()) for cost in costs)
    )


def summary(lines: list[Line]) -> Iterator[str]:
    """A row for each line, and what follows for each target."""
    yield "Widths rounded up to a multiple, latency against widths as asked, from 97 to 128, by benchmarks/widths.py"
    yield f" ({', '.join(sorted(set(map(host_of, lines))))}):\n\n"
    rows = [
        (line["target"], line["network"], *(told(rounding(line, each)) for each in MULTIPLES[1:]))
        for line in lines
    ]
    yield markdown(("target", "network", *map(str, MULTIPLES[1:])), rows)
    yield "\nThe greatest multiple within 1 % of the best for both:\n\n"
    targets = dict.fromkeys(line["target"] for line in lines)
    taken = {target: best([line for line in lines if line["target"] == target]) for target in targets}
    yield markdown(("target", "multiple"), [(target, str(multiple)) for target, multiple in taken.items()])


def told(ratio: Ratio) -> str:
    """`0.93 (0.92 to 0.94)`"""
    return f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


def draw(lines: list[Line]) -> None:
    """Latency against width, as a share of the widest's."""
    with drawn(PICTURE, 1, len(NETWORKS), size=(9, 3.5), sharey=True) as (_, (panels,)):
        for panel, network in zip(panels, NETWORKS, strict=True):
            for line in (line for line in lines if line["network"] == network):
                times = [median(line["samples"][str(width)]) for width in WIDTHS]
                panel.plot(WIDTHS, [each / times[-1] for each in times], label=line["target"])
            panel.set(title=network, xlabel="inner width", xticks=WIDTHS[7::8])
        panels[0].set_ylabel(f"latency against width {WIDTHS[-1]}")
        panels[0].legend()


if __name__ == "__main__":
    main()
