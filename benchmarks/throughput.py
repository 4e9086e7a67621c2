"""Where does merging pay? Pictures per second with four tasks, by batch and number of callers at once.

    python benchmarks/throughput.py [--case NAME]... [--target NAME]... [--batch N]... [--streams N]... [--seconds S]

Each case is exported with a dynamic batch, merged and never merged, and compiled as `compile` does it, checked. The
lone base, both graphs, and five engines that are loaded one by one and run one after the other take turns in one
process, as `subtune-deploy throughput` has them. Finished lines of benchmarks/results/throughput.jsonl are kept, with
raw windows; the tables are throughput.md beside it, --tables makes them anew.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Literal

import click
from cells import backbone_of, tasks_on
from kept_lines import Line, check_host, kept, write_tables

from subtune_deploy.build import BuildOptions, build
from subtune_deploy.bundle import Bundle
from subtune_deploy.compiling import compile_bundle
from subtune_deploy.conditions import noise_warnings, watch
from subtune_deploy.environment import describe
from subtune_deploy.lines import append_line, drop_torn_line
from subtune_deploy.measure import Several, fresh_batches
from subtune_deploy.result_tables import markdown
from subtune_deploy.runtime import load_streams
from subtune_deploy.spec import BASE
from subtune_deploy.stats import Ratio, median_over_loads, percentile, ratio_over_loads
from subtune_deploy.streams import Crowd, measure_streams
from subtune_deploy.targets import load_target
from subtune_deploy.throughput import BUFFERS, SIZES

RESULTS = Path(__file__).parent / "results" / "throughput.jsonl"
CASES = {
    "resnet18 late": ("resnet18", "7"),
    "resnet18 early": ("resnet18", "3"),
    "efficientnet_b0 late": ("efficientnet_b0", "13-14"),
    "efficientnet_b0 early": ("efficientnet_b0", "4-5"),
}
TASKS = 4
TARGETS = {"cpu": "ONNX Runtime", "openvino-cpu": "OpenVINO"}
STREAMS = (1, 2)
MERGES: dict[str, Literal["always", "never"]] = {"merged": "always", "not merged": "never"}

Point = tuple[int, int]
"""Batch and streams."""


@click.command()
@click.option("--case", "cases", multiple=True, type=click.Choice(list(CASES)), default=list(CASES))
@click.option("--target", "targets", multiple=True, type=click.Choice(list(TARGETS)), default=list(TARGETS))
@click.option("--batch", "sizes", multiple=True, type=click.IntRange(1), default=SIZES)
@click.option("--streams", multiple=True, type=click.IntRange(1), default=STREAMS)
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=24.0, help="For each line.")
@click.option("--tables", is_flag=True, help="Measure nothing.")
def main(
    cases: tuple[str, ...], targets: tuple[str, ...], sizes: tuple[int, ...], streams: tuple[int, ...],
    seconds: float, tables: bool,
) -> None:  # fmt: skip
    """Measure what is missing, write."""
    drop_torn_line(RESULTS)
    if not tables:
        check_host(lines())
    for case in () if tables else cases:
        points = {target: missing(case, target, product(streams, sizes)) for target in targets}
        for line in measured(case, points, seconds) if any(points.values()) else ():
            append_line(RESULTS, line)
            click.echo(f"{case}, {line['target']}, {'; '.join(_row(line))}", err=True)
    write_tables(RESULTS, summary(lines()))


def lines() -> list[Line]:
    """All that is kept."""
    return kept(RESULTS)


def missing(case: str, target: str, wanted: Iterator[tuple[int, int]]) -> list[Point]:
    """Of streams and batches, those without a line."""
    known = {(each["case"], each["target"], each["batch"], each["streams"]) for each in lines()}
    return [(batch, streams) for streams, batch in wanted if (case, target, batch, streams) not in known]


def measured(case: str, points: dict[str, list[Point]], seconds: float) -> Iterator[Line]:
    """A line for each point of each target."""
    model, fork = CASES[case]
    backbone = backbone_of(model)
    tasks = tasks_on(backbone, fork, TASKS)
    with tempfile.TemporaryDirectory() as scratch:
        bundles = {
            name: build(backbone, tasks, Path(scratch) / way, BuildOptions(None, way), sources=False)
            for name, way in MERGES.items()
        }
        for target, missed in points.items():
            if missed:
                bundles = {name: compile_bundle(b, load_target(target)) for name, b in bundles.items()}
            for batch, streams in missed:
                yield {"case": case, "target": target} | _timed(bundles, target, batch, streams, seconds)


def _timed(bundles: dict[str, Bundle], target: str, batch: int, streams: int, seconds: float) -> Line:
    """Raw windows, and latencies of calls."""
    host, spec = describe(), bundles["merged"].manifest.input
    batches = [fresh_batches(spec, batch, seed=seed, fewest=BUFFERS) for seed in range(streams)]
    with watch() as seen:
        found = measure_streams(lambda: _crowd(bundles, target, streams), batches, seconds)
    return {
        "batch": batch,
        "streams": streams,
        "seconds": seconds,
        "windows": {name: [round(each, 3) for each in rates] for name, rates in found.rates.items()},
        "loads": found.loads,
        "calls": {n: {str(p): percentile(c, p) for p in (50, 95, 99)} for n, c in found.calls.items()},
        "between": found.between,
        "warnings": noise_warnings(host, [1 / rate for rate in found.rates[BASE]], seen.conditions),
        "conditions": seen.conditions,
        "host": host,
    }


def _crowd(bundles: dict[str, Bundle], target: str, streams: int) -> Crowd:
    """The lone base, the graphs, and the base so many times apart, with an engine for each stream."""
    merged = bundles["merged"]
    names = (BASE, *(f"task{n}" for n in range(1, TASKS + 1)))
    each = {name: load_streams(merged, target, "base", streams) for name in names}
    return {
        BASE: load_streams(merged, target, "base", streams),
        **{name: load_streams(bundle, target, "graph", streams) for name, bundle in bundles.items()},
        "apart": [Several({name: each[name][n] for name in names}) for n in range(streams)],
    }


# What it says

_HEADER = (
    "batch", "streams", "base", "merged", "not merged", "5 engines", "merged / base", "not merged / merged",
    "5 engines / merged", "p50 of a call, merged", "p99",
)  # fmt: skip


def summary(found: Sequence[Line]) -> Iterator[str]:
    """Markdown: a table for each case and engine."""
    host = found[0]["host"]
    yield (
        f"`python benchmarks/throughput.py`, {host['cores']} cores of {host['cpu']}, {TASKS} tasks, dynamic batch, "
        "fp32. Pictures per second of callers that wait for their answer and ask again; each of two has half of the "
        "cores. Ratios are of times for a picture, from neighbouring windows, with their 95 % interval: where `not "
        "merged / merged` is above 1, merging wins.\n"
    )
    for case, target in product(CASES, TARGETS):
        rows = [each for each in found if (each["case"], each["target"]) == (case, target)]
        rows.sort(key=lambda each: (each["streams"], each["batch"]))
        if rows:
            model, fork = CASES[case]
            yield f"\n{model}, fork {fork}, {TARGETS[target]}{_where(rows)}\n\n"
            yield markdown(_HEADER, map(_row, rows))


def _where(rows: Sequence[Line]) -> str:
    """At which sizes merging is shown to win, and to lose."""
    ratios = {f"{each['batch']} x {each['streams']}": _ratio(each, "merged", "not merged") for each in rows}
    won = [name for name, ratio in ratios.items() if ratio.low > 1]
    lost = [name for name, ratio in ratios.items() if ratio.high < 1]
    return f": merging wins at {', '.join(won) or 'none'}, loses at {', '.join(lost) or 'none'} (batch x streams)"


def _row(each: Line) -> Sequence[str]:
    rates = [median_over_loads(taken, each["loads"]).value for taken in each["windows"].values()]
    pairs = ((BASE, "merged"), ("merged", "not merged"), ("merged", "apart"))
    ratios = [_ratio(each, *pair) for pair in pairs]
    calls = each["calls"]["merged"]
    return (
        str(each["batch"]),
        str(each["streams"]),
        *(f"{rate:.1f}" for rate in rates),
        *(f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})" for ratio in ratios),
        *(f"{calls[percent] * 1e3:.1f} ms" for percent in ("50", "99")),
    )


def _ratio(each: Line, first: str, second: str) -> Ratio:
    """How many times longer a picture takes the second."""
    return ratio_over_loads(each["windows"][second], each["windows"][first], each["loads"])


if __name__ == "__main__":
    main()
