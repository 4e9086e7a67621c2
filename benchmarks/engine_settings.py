"""Whether searching for settings of the engine pays: `compile --settings auto` against the recipe as it is.

    python benchmarks/engine_settings.py [--model M]... [--fork F]... [--tasks K]... [--target T]... [--seconds S]

The cells are those of `cells.py`, their plans as exported. In each, the search tries threads and what else the backend
has to choose from, and takes what is shown to be faster than the recipe, twice; then the lone base and both engines
are timed anew, interleaved, over six loads, so that what the search saw is not what judges it. Finished lines of
benchmarks/results/engine_settings.jsonl are kept, with raw samples and all that was tried; the table is
engine_settings.md beside it, --tables makes it anew. Cells may be of several hosts: each tells its own.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import click
from cells import Key, backbone_of, cell_options, release, tasks_of
from kept_lines import Line, host_of, kept, taken, write_tables

from subtune_deploy.backends.base import Target
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
from subtune_deploy.stats import ratio_over_loads
from subtune_deploy.targets import load_target

RESULTS = Path(__file__).parent / "results" / "engine_settings.jsonl"
TARGETS = ("cpu", "openvino-cpu", "openvino-cpu-bf16")
RECIPE, AUTO = "recipe", "auto"


@click.command()
@cell_options(TARGETS, (1, 4), ("13-14",))
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=6.0, help="To judge, each cell.")
@click.option("--tables", is_flag=True, help="Measure nothing.")
def main(
    models: tuple[str, ...], forks: tuple[str, ...], counts: tuple[int, ...], targets: tuple[str, ...],
    seconds: float, tables: bool,
) -> None:  # fmt: skip
    """Measure what is missing, write."""
    drop_torn_line(RESULTS)
    start, known = time.monotonic(), set(map(Key.of, kept(RESULTS)))
    keys = [
        Key(model, fork, count, each) for count, fork, model, each in product(counts, forks, models, targets)
    ]
    for key in () if tables else [each for each in keys if each not in known]:
        append_line(RESULTS, measured(key, replace(ADAPTIVE, seconds=seconds)))
        click.echo(
            f"{(time.monotonic() - start) / 60:.1f} min: {'; '.join(row(kept(RESULTS)[-1]))}", err=True
        )
        release()
    write_tables(RESULTS, summary(kept(RESULTS)))


def measured(key: Key, protocol: Protocol) -> Line:
    """A line: what the search tried and took, and the samples that judge it."""
    with tempfile.TemporaryDirectory() as scratch:
        bundles, found = compiled(key, Path(scratch))

        def load() -> Engines:
            graphs = {name: load_engine(each, key.target, "graph") for name, each in bundles.items()}
            return {BASE: load_engine(bundles[RECIPE], key.target, "base"), **graphs}

        batches = fresh_batches(bundles[RECIPE].manifest.input, 1)
        judged = taken(lambda: measure_loads(load, batches, protocol))
    return {**key.named, **found, **judged}


def compiled(key: Key, folder: Path) -> tuple[dict[str, Bundle], Line]:
    """With the recipe and, where the search takes another, with that."""
    backbone, tasks, recipe = backbone_of(key.model), tasks_of(key), load_target(key.target)
    made = build(backbone, tasks, folder / RECIPE, BuildOptions(1), sources=False)
    shutil.copytree(made.path, folder / AUTO)
    start = time.monotonic()
    with fastest_plan(made, None, (), recipe, merge=False, lowering=False, settings=True) as search:
        found = {
            "taken": changes(recipe, search.target),
            "tried": to_plain(search.tried),
            "seconds": time.monotonic() - start,
        }
    bundles = {RECIPE: compile_bundle(made, recipe)}
    if search.target != recipe:
        bundles[AUTO] = compile_bundle(open_bundle(folder / AUTO), search.target)
    return bundles, found


def changes(recipe: Target, found: Target) -> dict[str, Any]:
    """Threads and options that the search chose."""
    options: dict[str, Any] = {
        key: value for key, value in found.options.items() if recipe.options.get(key) != value
    }
    return options if found.threads == recipe.threads else {"threads": found.threads, **options}


# What it says


def summary(lines: Sequence[Line]) -> Iterator[str]:
    """Markdown, a row for each cell."""
    hosts = ", ".join(sorted(set(map(host_of, lines))))
    yield (
        f"`python benchmarks/engine_settings.py`, {len(lines)} cells, on {hosts}. Latency of the engine with the "
        "settings that the search took against the recipe's, medians over six loads with 95 % intervals, timed after "
        f"the search, interleaved with the lone base. The search raced for {COMPARISON.seconds:g} s an axis.\n\n"
    )
    columns = ("cell", "tried", "taken", "against the recipe", "search", "host")
    yield markdown(columns, map(row, sorted(lines, key=lambda line: (line["target"], Key.of(line)))))


def row(line: Line) -> Sequence[str]:
    """One cell, as the table has it."""
    tried = ", ".join(dict.fromkeys(each["name"] for each in line["tried"]))
    taken = ", ".join(f"{key} {value}" for key, value in line["taken"].items())
    against = "-"
    if AUTO in line["samples"]:
        ratio = ratio_over_loads(line["samples"][RECIPE], line["samples"][AUTO], line["loads"])
        against = f"{ratio.value:.3f} ({ratio.low:.3f} to {ratio.high:.3f})"
    return str(Key.of(line)), tried, taken or "the recipe", against, f"{line['seconds']:.0f} s", host_of(line)


if __name__ == "__main__":
    main()
