"""What people do today instead of one multi-task engine, measured in the same run, interleaved.

    python benchmarks/peers.py [--model M]... [--fork F]... [--tasks K]... [--target T]... [--seconds S] [--no-compile]

A cell is a model, a fork and K tasks; every engine of a cell answers the base and all K tasks, and is checked
against the stand-alone models before it is timed. Ratios are to the lone base in the same backend:

    cpu, openvino-cpu   ours, ours not merged, K+1 engines one after the other, K+1 networks in one graph
    torch-cpu           ours, hand-written shared prefix in eager mode, the same through torch.compile,
                        forked blocks as grouped convolutions in TorchScript, as an ensemble in torch.func

All engines of a line are loaded six times, and an interval is of the loads; once where loading takes longer than the
time to measure. Frozen weights of the K+1 networks are equal in value, as those of a user's networks are. Lines of
benchmarks/results/peers.jsonl are kept; those of a single load, of an earlier version, are measured again. The table
is peers.md beside it, --tables makes it anew. A line is judged within its own run, so lines may be of several hosts.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import click
import numpy as np
from cells import COUNTS, FORKS, INSTEAD, MODELS, Key, backbone_of, cell_options, release
from kept_lines import Line, host_of, kept, taken, write_tables
from peer_engines import COLUMNS, OURS, TARGETS, UNMERGED, Cell, Make, check, makers, open_cell

from subtune_deploy.backends.base import Engine
from subtune_deploy.errors import SubtuneError
from subtune_deploy.lines import append_line, drop_torn_line
from subtune_deploy.loads import measure_loads
from subtune_deploy.measure import ADAPTIVE, Protocol, fresh_batches
from subtune_deploy.spec import BASE
from subtune_deploy.stats import Ratio, median, ratio_over_loads

RESULTS = Path(__file__).parent / "results" / "peers.jsonl"
LEFT_OUT = "left out: --no-compile"


@click.command()
@cell_options(TARGETS)
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=20.0, help="For each line.")
@click.option("--compile/--no-compile", default=True, help="Whether torch.compile is among the peers.")
@click.option("--tables", is_flag=True, help="Measure nothing.")
def main(
    models: tuple[str, ...], forks: tuple[str, ...], counts: tuple[int, ...], targets: tuple[str, ...],
    seconds: float, compile: bool, tables: bool,
) -> None:  # fmt: skip
    """Measure what is missing, few tasks first, and write the table."""
    drop_torn_line(RESULTS)
    known = {key for key, line in latest().items() if _stands(line, compile)}
    all_ = product(counts, models, forks, targets)
    asked = [Key(model, fork, count, target) for count, model, fork, target in all_]
    for model in INSTEAD.keys() & set(models):
        told = ", ".join(f"{fork} is {other}" for fork, other in INSTEAD[model].items())
        click.echo(f"{model} has fewer blocks: {told}", err=True)
    todo = [] if tables else [key for key in asked if key not in known]
    try:
        failed = run(todo, replace(ADAPTIVE, seconds=seconds), "" if compile else LEFT_OUT)
    finally:
        write_tables(RESULTS, (f"{line}\n" for line in table(latest().values())))
    sys.exit(bool(failed))


def latest() -> dict[Key, Line]:
    """Of each cell, the line that was written last."""
    return {Key.of(line): line for line in kept(RESULTS)}


def _stands(line: Line, compile: bool) -> bool:
    """Whether a line need not be measured again."""
    return "loads" in line and not (compile and LEFT_OUT in line["absent"].values())


def run(todo: Sequence[Key], protocol: Protocol, compiled: str) -> int:
    """Measure what is to do, a line of results as each ends; how many failed."""
    start, done, failed = time.perf_counter(), 0, 0
    for graph in dict.fromkeys((key.model, key.layers, key.tasks) for key in todo):
        keys = [key for key in todo if (key.model, key.layers, key.tasks) == graph]
        with tempfile.TemporaryDirectory() as scratch:
            model, fork, count = graph
            cell = open_cell(backbone_of(model), fork, count, Path(scratch))
            for key in keys:
                told = _attempt(cell, key, protocol, compiled)
                done, failed = done + 1, failed + told.startswith("error")
                left = (time.perf_counter() - start) / done * (len(todo) - done) / 60
                click.echo(f"{done}/{len(todo)} {key}: {told}; {left:.0f} min left", err=True)
                release()
    return failed


def _attempt(cell: Cell, key: Key, protocol: Protocol, compiled: str) -> str:
    """One line for the results, and one for people. A peer that fails is told of; the others go on."""
    try:
        line = {**key.named, **measured(cell, key.target, protocol, compiled)}
    except (SubtuneError, RuntimeError) as error:
        return f"error: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    append_line(RESULTS, line)
    for warning in line["warnings"]:
        click.echo(f"warning: {warning}", err=True)
    return ", ".join(f"{name} {ratio.value:.2f}" for name, ratio in ratios(line).items())


def measured(cell: Cell, target: str, protocol: Protocol, compiled: str = "") -> Line:
    """A line of every engine that can be made for a target, checked; ParityError for a wrong answer."""
    possible, absent, made = checked(cell, target, compiled)

    def load() -> dict[str, Engine]:
        return {name: _ready(make, cell) for name, make in possible.items()}

    batches = fresh_batches(cell.backbone.input, 1)
    seen = taken(lambda: measure_loads(load, batches, protocol))
    seconds = {name: round(each, 3) for name, each in cell.seconds.items()}
    return {**seen, "absent": absent, **made, "graph_seconds": seconds}


def checked(cell: Cell, target: str, compiled: str) -> tuple[dict[str, Make], dict[str, str], Line]:
    """Engines that answer rightly, why there are no others, and how long each took to make and how far it errs."""
    possible, absent = dict[str, Make](), dict[str, str]()
    built, errors = dict[str, float](), dict[str, float]()
    for name, make in makers(cell, target, compiled=compiled).items():
        if isinstance(make, str):
            absent[name] = make
            continue
        start = time.perf_counter()
        try:
            engine = _ready(make, cell)
        except (RuntimeError, ImportError) as error:  # as torch.compile without a C++ compiler
            if name in (BASE, OURS):
                raise
            absent[name] = f"could not be made: {str(error).splitlines()[0]}"
            continue
        possible[name], built[name] = make, round(time.perf_counter() - start, 3)
        errors[name] = check(name, engine, cell.references)
    return possible, absent, {"build_seconds": built, "errors": errors}


def _ready(make: Make, cell: Cell) -> Engine:
    """After one picture, since some compile at their first run."""
    engine = make()
    engine.run(cell.references.inputs[:1])
    return engine


# What it says


def ratios(line: Line) -> dict[str, Ratio]:
    """To the base of the line's own run, by engine."""
    return {name: _ratio(line, BASE, name) for name in line["samples"] if name != BASE}


def _ratio(line: Line, base: str, name: str) -> Ratio:
    return ratio_over_loads(line["samples"][base], line["samples"][name], line.get("loads", ()))


def table(lines: Iterable[Line]) -> Iterator[str]:
    """The results as Markdown: a table for each group and number of tasks, and ours against the peers."""
    found = {Key.of(line): (line, ratios(line)) for line in lines}
    yield "# What people do today, and one multi-task engine"
    yield ""
    yield (
        "Made by `python benchmarks/peers.py` from `benchmarks/results/peers.jsonl`. Every engine answers the base "
        "and all tasks, was checked against the stand-alone models, and was measured interleaved with the others of "
        "its row. Numbers are ratios to the lone base of the same backend, whose median is the first column; the "
        "least of a row is bold. Build and compile times are in the raw lines. The base of torch is eager, as are "
        "ours, the shared prefix and the ensemble; TorchScript (frozen, batch-norm folded) and torch.compile change "
        "what the shared blocks cost as well. OpenVINO merges constants of equal value: K+1 networks in one graph, "
        "whose frozen weights are equal, come out with a shared prefix."
    )
    yield from ("", _loads([line for line, _ in found.values()]))
    targets = [target for target in TARGETS if any(key.target == target for key in found)]
    yield from _against_peers(targets, {key: line for key, (line, _) in found.items()})
    for target, count in product(targets, COUNTS):
        rows = {key: found[key] for key in _in_order(found) if (key.target, key.tasks) == (target, count)}
        if rows:
            yield from _section(target, count, rows)


def _loads(lines: Sequence[Line]) -> str:
    """How often engines were loaded, and where."""
    told = []
    for often, some in (("six loads", True), ("a single load, marked *", False)):
        if of := [line for line in lines if _several(line) == some]:
            told.append(f"{len(of)} are of {often}, on {', '.join(sorted(set(map(host_of, of))))}")
    return (
        f"Of {len(lines)} lines {'; '.join(told)}. What one load decides is in no interval of a single load."
    )


def _several(line: Line) -> bool:
    return len(line.get("loads", ())) > 1


def _in_order(keys: Iterable[Key]) -> list[Key]:
    return sorted(keys, key=lambda key: (_place(MODELS, key.model), _place(FORKS, key.fork), key))


def _place(known: tuple[str, ...], name: str) -> int:
    return known.index(name) if name in known else len(known)


def _section(target: str, count: int, rows: Mapping[Key, tuple[Line, Mapping[str, Ratio]]]) -> Iterator[str]:
    widest = max(ratio.half_width for _, values in rows.values() for ratio in values.values())
    rounds = [len(line["samples"][BASE]) for line, _ in rows.values()]
    yield from ("", f"## {target}, {count} task{'s' * (count > 1)}", "")
    yield f"{min(rounds)} to {max(rounds)} rounds; the widest 95 % interval of a ratio is ±{100 * widest:.1f} %."
    yield from ("", f"| model, fork | base | {' | '.join(COLUMNS[target])} |")
    yield "|---|" + "---:|" * (1 + len(COLUMNS[target]))
    yield from (_row(key, line, values) for key, (line, values) in rows.items())
    reasons = dict.fromkeys(
        (key.model, *each) for key, (line, _) in rows.items() for each in line["absent"].items()
    )
    if reasons:
        yield ""
        yield from (f"- {name} does not apply to {model}: {reason}" for model, name, reason in reasons)


def _row(key: Key, line: Line, values: Mapping[str, Ratio]) -> str:
    shown = {name: f"{values[name].value:.2f}" if name in values else "–" for name in COLUMNS[key.target]}
    best = min(values, key=lambda name: values[name].value)
    shown[best] = f"**{shown[best]}**"
    base = f"{1e3 * median(line['samples'][BASE]):.1f} ms"
    mark = "" if _several(line) else " *"
    return f"| {key.model}, {key.layers}{mark} | {base} | {' | '.join(shown.values())} |"


def _against_peers(targets: Iterable[str], found: Mapping[Key, Line]) -> Iterator[str]:
    yield from ("", "## Ours against the peers", "")
    yield (
        "How many times as long the peer takes as ours, geometric mean over the cells that have both, and in how "
        "many of them the 95 % interval shows ours to be faster or slower. The best peer is another one in each cell."
    )
    yield from ("", "| target | peer | " + " | ".join(f"K={count}" for count in COUNTS) + " | all |")
    yield "|---|---|" + "---:|" * (1 + len(COUNTS))
    for target in targets:
        peers = [name for name in COLUMNS[target] if name not in (OURS, UNMERGED)]
        cells = [
            [line for key, line in found.items() if (key.target, key.tasks) == (target, count)]
            for count in COUNTS
        ]
        parts = (*cells, [line for part in cells for line in part])
        for label, names in {"the best of a cell": peers, **{peer: [peer] for peer in peers}}.items():
            yield f"| {target} | {label} | {' | '.join(_mean(part, names) for part in parts)} |"


def _mean(found: Sequence[Line], peers: Sequence[str]) -> str:
    """Peer over ours, of the fastest of `peers` in each cell, and for how many cells that is shown."""
    cells = []
    for line in found:
        present = [peer for peer in peers if peer in line["samples"]]
        if present:
            best = min(present, key=lambda peer: _ratio(line, BASE, peer).value)
            cells.append(_ratio(line, OURS, best))
    if not cells:
        return "–"
    faster, slower = sum(each.low > 1 for each in cells), sum(each.high < 1 for each in cells)
    mean = np.exp(np.mean([np.log(each.value) for each in cells]))
    return f"{mean:.2f} ({faster} faster, {slower} slower of {len(cells)})"


if __name__ == "__main__":
    main()
