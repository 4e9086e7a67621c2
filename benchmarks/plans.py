"""Whether searching for the fastest plan pays: `compile --merge auto --lowering auto` against always and never merging.

    python benchmarks/plans.py [--model M]... [--fork F]... [--tasks K]... [--target T]... [--batch N]... [--seconds S]

The cells are those of `cells.py`. In each, the search compiles plans, runs them by turns and takes one that is shown to
be faster than the exported one, twice; then its engine, always merged, never merged and the lone base are timed anew,
interleaved, over six loads, so that what the search saw is not what judges it. Finished lines of
benchmarks/results/plans.jsonl are kept, with raw samples and all that was tried; the tables are plans.md beside it,
--tables makes them anew. A cell is judged within its own run, so cells may be of several hosts: each tells its own.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import click
import numpy as np
from cells import Key, backbone_of, cell_options, release, tasks_of
from kept_lines import Line, host_of, kept, taken, write_tables

from subtune_deploy.build import BuildOptions, build
from subtune_deploy.bundle import Bundle, open_bundle
from subtune_deploy.compiling import compile_bundle
from subtune_deploy.lines import append_line, drop_torn_line
from subtune_deploy.loads import measure_loads
from subtune_deploy.measure import ADAPTIVE, Engines, Protocol, fresh_batches
from subtune_deploy.plan_search import fastest_plan
from subtune_deploy.racing import COMPARISON
from subtune_deploy.records import to_plain
from subtune_deploy.result_tables import markdown
from subtune_deploy.runtime import load_engine
from subtune_deploy.spec import BASE
from subtune_deploy.stats import Ratio, ratio_over_loads
from subtune_deploy.targets import load_target

RESULTS = Path(__file__).parent / "results" / "plans.jsonl"
COUNTS = (4, 8, 1)
TARGETS = ("cpu", "openvino-cpu")
ALWAYS, NEVER, AUTO = "always", "never", "auto"
ORDER = ("target", "tasks", "model", "fork")
RACE = Protocol(seconds=4.0, precision=0.005)
"""Of the plans of one axis, and of the winner and the one to beat."""


@click.command()
@cell_options(TARGETS, COUNTS)
@click.option(
    "--batch", "sizes", multiple=True, type=click.IntRange(1), default=(1,), help="Pictures per call."
)
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=6.0, help="To judge, each cell.")
@click.option("--minutes", type=click.FloatRange(0), default=240.0, help="No cell begins later.")
@click.option("--tables", is_flag=True, help="Measure nothing.")
def main(
    models: tuple[str, ...], forks: tuple[str, ...], counts: tuple[int, ...], targets: tuple[str, ...],
    sizes: tuple[int, ...], seconds: float, minutes: float, tables: bool,
) -> None:  # fmt: skip
    """Measure what is missing, write."""
    drop_torn_line(RESULTS)
    start, known = time.monotonic(), {cell(line) for line in lines()}
    all_ = product(sizes, counts, forks, models, targets)
    asked = [(Key(model, fork, count, target), batch) for batch, count, fork, model, target in all_]
    for key, batch in () if tables else [each for each in asked if each not in known]:
        if time.monotonic() - start > 60 * minutes:
            click.echo(f"the time is up before {key}, batch {batch}", err=True)
            break
        append_line(RESULTS, measured(key, batch, replace(ADAPTIVE, seconds=seconds)))
        click.echo(f"{(time.monotonic() - start) / 60:.1f} min: {'; '.join(_row(lines()[-1]))}", err=True)
        release()
    write_tables(RESULTS, summary(lines()))


def lines() -> list[Line]:
    """All that is kept."""
    return kept(RESULTS)


def cell(line: Line) -> tuple[Key, int]:
    return Key.of(line), line["batch"]


def measured(key: Key, batch: int, protocol: Protocol) -> Line:
    """A line: what the search chose and tried, and the samples that judge it."""
    with tempfile.TemporaryDirectory() as scratch:
        bundles, found = _bundles(key, batch, Path(scratch))

        def load() -> Engines:
            engines = {BASE: load_engine(bundles[ALWAYS], key.target, "base")}
            return engines | {name: load_engine(each, key.target, "graph") for name, each in bundles.items()}

        batches = fresh_batches(bundles[ALWAYS].manifest.input, batch)
        judged = taken(lambda: measure_loads(load, batches, protocol))
    return {**key.named, "batch": batch, **found, **judged}


def _bundles(key: Key, batch: int, folder: Path) -> tuple[dict[str, Bundle], Line]:
    """Compiled in each way; where the exported plan is kept, the search's engine is that of always merging."""
    backbone, tasks, target = backbone_of(key.model), tasks_of(key), load_target(key.target)
    made = {
        name: build(backbone, tasks, folder / name, BuildOptions(batch, name), sources=False)  # type: ignore[arg-type]
        for name in (ALWAYS, NEVER)
    }
    start = time.monotonic()
    with fastest_plan(made[ALWAYS], backbone, tasks, target, protocol=RACE) as found:
        chosen = {"chosen": found.name, "tried": to_plain(found.tried), "seconds": time.monotonic() - start}
        if found.graphs is not None:
            shutil.copytree(folder / ALWAYS, folder / AUTO)
            made[AUTO] = compile_bundle(open_bundle(folder / AUTO), found.target, **found.own)
    return {
        name: each if name == AUTO else compile_bundle(each, target) for name, each in made.items()
    }, chosen


# What it says


def summary(found: Sequence[Line]) -> Iterator[str]:
    """Markdown: of all cells together, then each."""
    loads, hosts = [each for line in found for each in line["loads"]], sorted(set(map(host_of, found)))
    yield (
        f"`python benchmarks/plans.py`, fp32, {len(found)} cells, on {', '.join(hosts)}. "
        f"Latency relative to the lone base, medians over six loads of {min(loads)} to {max(loads)} rounds with 95 % "
        "intervals, timed after the search, interleaved. Where the search kept the exported plan, its engine is that "
        f"of always merging. The search ran plans by turns for {RACE.seconds:g} s an axis, where `compile` takes "
        f"{COMPARISON.seconds:g}. The better of both is picked by the samples that judge, which flatters it.\n\n"
    )
    yield markdown(
        ("engine", "batch", "K", "cells", "auto over always", "auto over never", "another plan than always taken",
         "auto slower than the better of both", "always over never, shown to be less / more than 1"),
        _together(found),
    )  # fmt: skip
    yield "\n"
    columns = ("cell", "batch", "always", "never", "auto", "over the better", "plan", "search", "host")
    yield markdown(columns, map(_row, sorted(found, key=lambda line: (line["batch"], *map(line.get, ORDER)))))


def _together(found: Sequence[Line]) -> Iterator[Sequence[str]]:
    for target, batch, count in sorted({(line["target"], line["batch"], line["tasks"]) for line in found}):
        mine = [e for e in found if (e["target"], e["batch"], e["tasks"]) == (target, batch, count)]
        merging = [_ratio(line, NEVER, ALWAYS) for line in mine]
        taken = sum(AUTO in line["samples"] for line in mine)
        yield (
            target, str(batch), str(count), str(len(mine)), _mean(mine, ALWAYS), _mean(mine, NEVER), f"{taken}",
            str(sum(_over_better(line).low > 1 for line in mine)),
            f"{sum(each.high < 1 for each in merging)} / {sum(each.low > 1 for each in merging)}",
        )  # fmt: skip


def _mean(found: Sequence[Line], other: str) -> str:
    return f"{np.exp(np.mean([np.log(_ratio(line, other, _auto(line)).value) for line in found])):.3f}"


def _over_better(line: Line) -> Ratio:
    """Of the search's engine to the better of the two plain ones."""
    better = min((ALWAYS, NEVER), key=lambda name: _ratio(line, BASE, name).value)
    return _ratio(line, better, _auto(line))


def _auto(line: Line) -> str:
    return AUTO if AUTO in line["samples"] else ALWAYS


def _ratio(line: Line, base: str, name: str) -> Ratio:
    if base == name:
        return Ratio(1.0, 1.0, 1.0)
    return ratio_over_loads(line["samples"][base], line["samples"][name], line["loads"])


def _row(line: Line) -> Sequence[str]:
    ratios = (_ratio(line, BASE, name) for name in (ALWAYS, NEVER, _auto(line)))
    over = _over_better(line)
    key, batch = cell(line)
    return (
        str(key),
        str(batch),
        *(f"{each.value:.2f} ({each.low:.2f} to {each.high:.2f})" for each in ratios),
        f"{over.value:.3f} ({over.low:.3f} to {over.high:.3f})",
        line["chosen"],
        f"{line['seconds']:.0f} s",
        host_of(line),
    )


if __name__ == "__main__":
    main()
