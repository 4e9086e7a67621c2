"""Where `peers.py` shows a peer to be faster than ours: is it, over six loads of all engines instead of one?

    python benchmarks/peers_again.py [--seconds 20] [--tables]

Of ONNX Runtime and OpenVINO, each cell whose best peer has an interval below ours is measured again: the base, ours,
ours not merged and that peer, loaded six times, so that what one load decides is in the interval. Finished lines of
benchmarks/results/peers_again.jsonl are kept, with raw samples; the table is peers_again.md beside it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
from peer_engines import COLUMNS, OURS, UNMERGED, Cell, check, makers, open_cell, release
from peers import RESULTS as PEERS
from peers import Key, backbone_of, finished, key_of

from subtune_deploy.conditions import noise_warnings, watch
from subtune_deploy.environment import describe
from subtune_deploy.lines import append_line
from subtune_deploy.loads import measure_loads
from subtune_deploy.measure import ADAPTIVE, Engines, Protocol, fresh_batches
from subtune_deploy.result_tables import markdown
from subtune_deploy.spec import BASE, parse_layers
from subtune_deploy.stats import Ratio, ratio_over_loads

RESULTS = Path(__file__).parent / "results" / "peers_again.jsonl"
GROUPS = ("onnxruntime", "openvino")

Line = dict[str, Any]


@click.command()
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=20.0, help="For each cell.")
@click.option("--tables", is_flag=True, help="Measure nothing.")
def main(seconds: float, tables: bool) -> None:
    """Measure what is missing, write."""
    lost = {key_of(line): (line, peer) for line in finished(PEERS) if (peer := faster(line))}
    known = {key_of(line) for line in finished(RESULTS)}
    for key in () if tables else [key for key in lost if key not in known]:
        append_line(RESULTS, measured(key, lost[key][1], replace(ADAPTIVE, seconds=seconds)))
        click.echo(f"{key} measured again", err=True)
        release()
    if not (lines := finished(RESULTS)):
        raise click.ClickException(f"{RESULTS} has no line: no cell is lost, or none was measured again yet")
    before = {key_of(line): line for line in finished(PEERS)}
    RESULTS.with_suffix(".md").write_text("".join(summary(lines, before)))
    click.echo(RESULTS.with_suffix(".md").read_text())


def faster(line: Line) -> str:
    """The best peer of a line if it is shown to be faster than ours, else ""."""
    if line["group"] not in GROUPS:
        return ""
    peers = [n for n in COLUMNS[line["group"]] if n in line["samples"] and n not in (OURS, UNMERGED)]
    best = min(peers, key=lambda peer: _ratio(line, BASE, peer).value)
    return best if _ratio(line, best, OURS).low > 1 else ""


def measured(key: Key, peer: str, protocol: Protocol) -> Line:
    """A line like those of `peers`, with the rounds of each load."""
    backbone = backbone_of(key.model)
    with tempfile.TemporaryDirectory() as scratch:
        cell = open_cell(backbone, parse_layers(key.layers, len(backbone.blocks)), key.tasks, Path(scratch))
        load = partial(_loaded, cell, key.group, (BASE, OURS, UNMERGED, peer))
        for name, engine in load().items():
            check(name, engine, cell.references)
        host = describe()
        with watch() as seen:
            found = measure_loads(load, fresh_batches(backbone.input, 1), protocol)
    return {
        **asdict(key),
        "layers": key.layers,
        "peer": peer,
        "samples": {name: [round(each, 9) for each in taken] for name, taken in found.samples.items()},
        "loads": found.loads,
        "settled": found.settled,
        "protocol": asdict(protocol),
        "host": host,
        "warnings": noise_warnings(host, found.samples[BASE], seen.conditions),
    }


def _loaded(cell: Cell, group: str, names: Sequence[str]) -> Engines:
    ways = makers(cell, group)
    return {name: make() for name in names if not isinstance(make := ways[name], str)}


def summary(lines: Sequence[Line], before: dict[Key, Line]) -> Iterator[str]:
    """Markdown."""
    host = lines[0]["host"]
    yield (
        f"`python benchmarks/peers_again.py`, {host['cores']} cores of {host['cpu']}: the cells of "
        "[peers.md](peers.md) in which the best peer is shown to be faster than ours in one load of the engines, "
        "measured again over six. Latency relative to that peer, with 95 % intervals; more than 1 is slower.\n\n"
    )
    yield markdown(("cell", "peer", "ours, one load", "ours, six loads", "ours not merged, six loads"), (
        (str(key_of(line)), line["peer"], _told(before[key_of(line)], line["peer"], OURS),
         _told(line, line["peer"], OURS), _told(line, line["peer"], UNMERGED))
        for line in lines
    ))  # fmt: skip


def _told(line: Line, peer: str, name: str) -> str:
    ratio = _ratio(line, peer, name)
    return f"{ratio.value:.3f} ({ratio.low:.3f} to {ratio.high:.3f})"


def _ratio(line: Line, base: str, name: str) -> Ratio:
    return ratio_over_loads(line["samples"][base], line["samples"][name], line.get("loads", ()))


if __name__ == "__main__":
    main()
