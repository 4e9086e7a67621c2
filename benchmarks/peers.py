"""What people do today instead of one multi-task engine, measured in the same run, interleaved.

    python benchmarks/peers.py [--model M]... [--fork F]... [--tasks K]... [--group G]... [--seconds S] [--no-compile]

A cell is a model, a fork and K tasks; every engine of a cell answers the base and all K tasks, and is checked
against the stand-alone models before it is timed. Ratios are to the lone base in the same group:

    onnxruntime, openvino   ours, ours not merged, K+1 engines one after the other, K+1 networks in one graph
    torch                   ours, hand-written shared prefix in eager mode, the same through torch.compile,
                            forked blocks as grouped convolutions in TorchScript, as an ensemble in torch.func

Frozen weights of the K+1 networks are equal in value, as those of a user's networks are. Finished lines of
benchmarks/results/peers.jsonl are kept (delete a line to measure it again); the table is peers.md beside it.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np
from peer_engines import COLUMNS, GROUPS, OURS, UNMERGED, Cell, check, makers, open_cell, release

from subtune_deploy.backbone import Backbone, trace
from subtune_deploy.conditions import noise_warnings, watch
from subtune_deploy.environment import describe, differences
from subtune_deploy.errors import SubtuneError
from subtune_deploy.lines import drop_torn_line
from subtune_deploy.measure import Protocol, fresh_batches, measure
from subtune_deploy.models import load_model
from subtune_deploy.spec import BASE, parse_layers
from subtune_deploy.stats import Ratio, median, paired_ratio
from subtune_deploy.tasks import Task, candidate_task

RESULTS = Path(__file__).parent / "results" / "peers.jsonl"
MODELS = ("resnet50", "efficientnet_b0", "vit_b_16")
FORKS = ("3-4", "8-9", "13-14", "15-16", "2", "2,14")
INSTEAD = {"vit_b_16": {"13-14": "10-11", "15-16": "11-12", "2,14": "2,11"}}
"""Forks at the same part of the depth, for a model that has not 16 blocks but 12."""
COUNTS = (1, 4, 8)
LEFT_OUT = "left out: --no-compile"

Line = dict[str, Any]


@dataclass(frozen=True, order=True)
class Key:
    """What a line of the results is about. `fork` as asked for, before `INSTEAD`."""

    model: str
    fork: str
    tasks: int
    group: str

    @property
    def layers(self) -> str:
        return INSTEAD.get(self.model, {}).get(self.fork, self.fork)

    @property
    def named(self) -> Line:
        """Of what a line is, where `group` is a target."""
        fields = {"model": self.model, "fork": self.fork, "layers": self.layers, "tasks": self.tasks}
        return {**fields, "target": self.group}

    def __str__(self) -> str:
        return f"{self.model} {self.layers}, {self.tasks} task{'s' * (self.tasks > 1)}, {self.group}"


def key_of(line: Line) -> Key:
    return Key(line["model"], line["fork"], line["tasks"], line["group"])


def finished(path: Path) -> list[Line]:
    """The lines of the results; one that was torn when its process died is cut off the file."""
    drop_torn_line(path)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def different(line: Line, seconds: float) -> list[str]:
    """In what host, versions or protocol a finished line differs from what would be measured now."""
    found = differences(line["host"], describe())
    if asdict(Protocol()) | line["protocol"] != asdict(protocol(seconds)):
        found.append(f"--seconds {line['protocol']['seconds']:g} / {seconds:g}")
    return found


def protocol(seconds: float) -> Protocol:
    return Protocol(seconds=seconds, warmup=3)


@cache
def backbone_of(model: str) -> Backbone:
    return trace(load_model(model))


def tasks_of(key: Key) -> list[Task]:
    """All on the cell's fork, each with weights of its own."""
    backbone = backbone_of(key.model)
    layers = parse_layers(key.layers, len(backbone.blocks))
    return [candidate_task(backbone, f"task{n}", layers, seed=n) for n in range(1, key.tasks + 1)]


def run_group(cell: Cell, group: str, seconds: float, compiled: str = "") -> Line:
    """Make, check and measure every engine of a group; a peer that cannot be made is told in the line.

    Raises ParityError for a wrong answer.
    """
    engines, absent, built, errors = {}, {}, {}, {}
    for name, make in makers(cell, group, compiled=compiled).items():
        if isinstance(make, str):
            absent[name] = make
            continue
        start = time.perf_counter()
        try:
            engine = make()
            engine.run(cell.references.inputs[:1])  # some compile at their first run
        except (RuntimeError, ImportError) as error:  # as torch.compile without a C++ compiler
            if name in (BASE, OURS):
                raise
            absent[name] = f"could not be made: {str(error).splitlines()[0]}"
            continue
        engines[name], built[name] = engine, round(time.perf_counter() - start, 3)
        errors[name] = check(name, engine, cell.references)
    host = describe()
    batches = fresh_batches(cell.backbone.input, 1)
    with watch() as seen:
        found = measure(engines, batches, protocol(seconds))
    return {
        "unit": "s",
        "samples": {name: [round(each, 9) for each in taken] for name, taken in found.samples.items()},
        "settled": found.settled,
        "protocol": asdict(found.protocol),
        "absent": absent,
        "build_seconds": built,
        "graph_seconds": {name: round(each, 3) for name, each in cell.seconds.items()},
        "errors": errors,
        "host": host,
        "conditions": seen.conditions,
        "warnings": noise_warnings(host, found.samples[BASE], seen.conditions),
    }


def run(todo: Sequence[Key], seconds: float, compiled: str, path: Path = RESULTS) -> int:
    """Measure what is to do, a line of results as each ends; how many failed."""
    path.parent.mkdir(exist_ok=True)
    start, done, failed = time.perf_counter(), 0, 0
    cells = dict.fromkeys((key.model, key.fork, key.tasks) for key in todo)
    for cell_key in cells:
        keys = [key for key in todo if (key.model, key.fork, key.tasks) == cell_key]
        with tempfile.TemporaryDirectory() as scratch:
            backbone = backbone_of(keys[0].model)
            layers = parse_layers(keys[0].layers, len(backbone.blocks))
            cell = open_cell(backbone, layers, keys[0].tasks, Path(scratch))
            for key in keys:
                told = _attempt(cell, key, seconds, compiled, path)
                done, failed = done + 1, failed + told.startswith("error")
                left = (time.perf_counter() - start) / done * (len(todo) - done) / 60
                click.echo(f"{done}/{len(todo)} {key}: {told}; {left:.0f} min left", err=True)
                release()
    return failed


def _attempt(cell: Cell, key: Key, seconds: float, compiled: str, path: Path) -> str:
    """One line for the results, and one for people. A peer that fails is told of; the others go on."""
    try:
        line = {**asdict(key), "layers": key.layers, **run_group(cell, key.group, seconds, compiled)}
    except (SubtuneError, RuntimeError) as error:
        return f"error: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    with path.open("a") as stream:
        stream.write(json.dumps(line) + "\n")
    for warning in line["warnings"]:
        click.echo(f"warning: {warning}", err=True)
    return ", ".join(f"{name} {ratio.value:.2f}" for name, ratio in ratios(line).items())


def ratios(line: Line) -> dict[str, Ratio]:
    """To the base of the line's own group, by engine."""
    samples: Mapping[str, list[float]] = line["samples"]
    return {name: paired_ratio(samples[BASE], taken) for name, taken in samples.items() if name != BASE}


def table(lines: Iterable[Line]) -> Iterator[str]:
    """The results as Markdown: a table for each group and number of tasks, and ours against the peers."""
    found = {key_of(line): (line, ratios(line)) for line in lines}
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
    groups = [group for group in GROUPS if any(key.group == group for key in found)]
    yield from _against_peers(groups, {key: line for key, (line, _) in found.items()})
    for group, count in product(groups, COUNTS):
        rows = {key: found[key] for key in _in_order(found) if (key.group, key.tasks) == (group, count)}
        if rows:
            yield from _section(group, count, rows)


def _in_order(keys: Iterable[Key]) -> list[Key]:
    return sorted(keys, key=lambda key: (_place(MODELS, key.model), _place(FORKS, key.fork), key))


def _place(known: tuple[str, ...], name: str) -> int:
    return known.index(name) if name in known else len(known)


def _section(group: str, count: int, rows: Mapping[Key, tuple[Line, Mapping[str, Ratio]]]) -> Iterator[str]:
    widest = max(ratio.half_width for _, values in rows.values() for ratio in values.values())
    rounds = [len(line["samples"][BASE]) for line, _ in rows.values()]
    yield from ("", f"## {group}, {count} task{'s' * (count > 1)}", "")
    yield f"{min(rounds)} to {max(rounds)} rounds; the widest 95 % interval of a ratio is ±{100 * widest:.1f} %."
    yield from ("", f"| model, fork | base | {' | '.join(COLUMNS[group])} |")
    yield "|---|" + "---:|" * (1 + len(COLUMNS[group]))
    yield from (_row(key, line, values) for key, (line, values) in rows.items())
    reasons = dict.fromkeys(
        (key.model, *each) for key, (line, _) in rows.items() for each in line["absent"].items()
    )
    if reasons:
        yield ""
        yield from (f"- {name} does not apply to {model}: {reason}" for model, name, reason in reasons)


def _row(key: Key, line: Line, values: Mapping[str, Ratio]) -> str:
    shown = {name: f"{values[name].value:.2f}" if name in values else "–" for name in COLUMNS[key.group]}
    best = min(values, key=lambda name: values[name].value)
    shown[best] = f"**{shown[best]}**"
    base = f"{1e3 * median(line['samples'][BASE]):.1f} ms"
    return f"| {key.model}, {key.layers} | {base} | {' | '.join(shown.values())} |"


def _against_peers(groups: Iterable[str], found: Mapping[Key, Line]) -> Iterator[str]:
    yield from ("", "## Ours against the peers", "")
    yield (
        "How many times as long the peer takes as ours, geometric mean over the cells that have both, and in how "
        "many of them the 95 % interval shows ours to be faster or slower. The best peer is another one in each cell."
    )
    yield from ("", "| group | peer | " + " | ".join(f"K={count}" for count in COUNTS) + " | all |")
    yield "|---|---|" + "---:|" * (1 + len(COUNTS))
    for group in groups:
        peers = [name for name in COLUMNS[group] if name not in (OURS, UNMERGED)]
        for label, names in {"the best of a cell": peers, **{peer: [peer] for peer in peers}}.items():
            cells = [
                {key: each for key, each in found.items() if key.group == group and key.tasks == count}
                for count in COUNTS
            ]
            whole = [{key: each for part in cells for key, each in part.items()}]
            yield (
                f"| {group} | {label} | " + " | ".join(_mean(part, names) for part in (*cells, *whole)) + " |"
            )


def _mean(found: Mapping[Key, Line], peers: Sequence[str]) -> str:
    """Peer over ours, of the fastest of `peers` in each cell, and for how many cells that is shown."""
    cells = []
    for line in found.values():
        samples = line["samples"]
        present = [peer for peer in peers if peer in samples]
        if present:
            best = min(present, key=lambda peer: paired_ratio(samples[BASE], samples[peer]).value)
            cells.append(paired_ratio(samples[OURS], samples[best]))
    if not cells:
        return "–"
    faster, slower = sum(each.low > 1 for each in cells), sum(each.high < 1 for each in cells)
    mean = np.exp(np.mean([np.log(each.value) for each in cells]))
    return f"{mean:.2f} ({faster} faster, {slower} slower of {len(cells)})"


@click.command()
@click.option("--model", "models", multiple=True, type=click.Choice(MODELS), default=MODELS)
@click.option("--fork", "forks", multiple=True, type=click.Choice(FORKS), default=FORKS)
@click.option("--tasks", "counts", multiple=True, type=click.IntRange(1), default=COUNTS, help="K")
@click.option("--group", "groups", multiple=True, type=click.Choice(GROUPS), default=GROUPS)
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=20.0, help="For each line.")
@click.option("--compile/--no-compile", default=True, help="Whether torch.compile is among the peers.")
def main(
    models: tuple[str, ...],
    forks: tuple[str, ...],
    counts: tuple[int, ...],
    groups: tuple[str, ...],
    seconds: float,
    compile: bool,
) -> None:
    """Measure what is missing, few tasks first, and write the table."""
    lines = finished(RESULTS)
    if lines and (found := different(lines[0], seconds)):
        sys.exit(
            f"error: {RESULTS} was measured differently: {'; '.join(found)}\nhint: move it away, or go on there"
        )
    known = {key_of(line) for line in lines if not (compile and LEFT_OUT in line["absent"].values())}
    asked = [
        Key(model, fork, count, group) for count, model, fork, group in product(counts, models, forks, groups)
    ]
    for model in [model for model in models if model in INSTEAD]:
        told = ", ".join(f"{fork} is {other}" for fork, other in INSTEAD[model].items())
        click.echo(f"{model} has fewer blocks: {told}", err=True)
    try:
        failed = run([key for key in asked if key not in known], seconds, "" if compile else LEFT_OUT)
    finally:
        if lines := finished(RESULTS):
            RESULTS.with_suffix(".md").write_text("\n".join(table(lines)) + "\n")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
