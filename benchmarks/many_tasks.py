"""One engine for up to 64 tasks: what it takes to export, compile, hold and run, and what separate engines take.

    python benchmarks/many_tasks.py [--case NAME]... [--tasks K]... [--seconds S]

Each number of tasks is exported in a process of its own, whose memory is read when it ends, and compiled for ONNX
Runtime and OpenVINO as `compile` does it, checked. Its engine, the lone base, and K+1 engines that are loaded one by
one and run one after the other are timed interleaved, batch 1. Finished lines of benchmarks/results/many_tasks.jsonl
are kept, with raw samples; the tables are many_tasks.md beside it, --tables makes them anew.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path

import click
import numpy as np
from cells import backbone_of, release, tasks_on
from kept_lines import Line, check_host, kept, taken, write_tables

from subtune_deploy.backends.base import Engine
from subtune_deploy.build import build
from subtune_deploy.bundle import Bundle, open_bundle
from subtune_deploy.compiling import compile_bundle
from subtune_deploy.environment import kilobytes
from subtune_deploy.footprint import engine_bytes, footprint
from subtune_deploy.lines import append_line, drop_torn_line
from subtune_deploy.measure import Protocol, Several, fresh_batches, measure
from subtune_deploy.result_tables import markdown
from subtune_deploy.runtime import load_engine
from subtune_deploy.spec import BASE
from subtune_deploy.stats import Ratio, paired_ratio
from subtune_deploy.targets import load_target

RESULTS = Path(__file__).parent / "results" / "many_tasks.jsonl"
CASES = {
    "resnet50 13-14": ("resnet50", "13-14"),
    "resnet50 15-16": ("resnet50", "15-16"),
    "vit_b_16 11-12": ("vit_b_16", "11-12"),
}
COUNTS = (1, 2, 4, 8, 16, 32, 64)
TARGETS = {"cpu": "ONNX Runtime", "openvino-cpu": "OpenVINO"}
APART = 8
"""Tasks up to which an engine for each, and the base's, are loaded beside ours: of 64 networks memory runs out."""
SMALL = ("resnet18", "8")
STATUS, PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MIB = 1 << 20


@click.command()
@click.option("--case", "cases", multiple=True, type=click.Choice(list(CASES)), default=list(CASES))
@click.option("--tasks", "counts", multiple=True, type=click.IntRange(1), default=COUNTS, help="K")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=8.0, help="For each line.")
@click.option("--tables", is_flag=True, help="Measure nothing.")
@click.option("--one", nargs=3, hidden=True, help="CASE, K and FOLDER: build there, print what that took.")
def main(
    cases: tuple[str, ...], counts: tuple[int, ...], seconds: float, tables: bool, one: tuple[str, str, str]
) -> None:
    """Measure what is missing, write."""
    if one:
        click.echo(json.dumps(exported(one[0], int(one[1]), Path(one[2]))))
        return
    drop_torn_line(RESULTS)
    if not tables:
        check_host(lines())
        for case, count in product(cases, counts):
            if missing := set(TARGETS) - {each["target"] for each in known(case, count)}:
                for line in measured(case, count, sorted(missing), seconds):
                    append_line(RESULTS, line)
                    click.echo(f"{case}, {count} tasks: {_row(line)}", err=True)
    write_tables(RESULTS, summary(lines()))


def lines() -> list[Line]:
    """All that is kept."""
    return kept(RESULTS)


def known(case: str, count: int) -> list[Line]:
    """Of one graph."""
    return [each for each in lines() if (each["case"], each["tasks"]) == (case, count)]


def exported(case: str, count: int, folder: Path) -> Line:
    """Build the bundle of so many candidate tasks; seconds, and memory beside what the libraries themselves hold."""
    with tempfile.TemporaryDirectory() as first:
        _build(SMALL, 1, Path(first))  # many a library is imported at the first export
    release()  # else the export would find room that the first one left, and not count it
    PEAK.write_text("5")  # begins anew
    empty = kilobytes(STATUS, "VmRSS") or 0
    seconds = _build(CASES[case], count, folder)
    return {
        "export_seconds": seconds,
        "export_peak_bytes": (kilobytes(STATUS, "VmHWM") or 0) - empty,
    }


def _build(case: tuple[str, str], count: int, folder: Path) -> float:
    """Seconds to build it, of a model that is there and tasks that are made."""
    model, fork = case
    backbone = backbone_of(model)
    tasks = tasks_on(backbone, fork, count)
    start = time.perf_counter()
    build(backbone, tasks, folder, sources=False)
    return time.perf_counter() - start


def measured(case: str, count: int, targets: Sequence[str], seconds: float) -> Iterator[Line]:
    """A line for each target."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "bundle"
        command = [sys.executable, __file__, "--one", case, str(count), str(folder)]
        ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        built = json.loads(ran.stdout)
        for target in targets:
            start = time.perf_counter()
            bundle = compile_bundle(open_bundle(folder), load_target(target))
            compiled = {"compile_seconds": time.perf_counter() - start}
            graph = {"graph_bytes": _graph_bytes(folder)}
            timed = _timed(bundle, target, count, Protocol(seconds=seconds, warmup=3))
            yield {"case": case, "tasks": count, "target": target} | built | graph | compiled | timed


def _graph_bytes(folder: Path) -> int:
    """The graph, with its weights where these lie beside it."""
    return sum(path.stat().st_size for path in folder.glob("graph.onnx*"))


def _timed(bundle: Bundle, target: str, count: int, protocol: Protocol) -> Line:
    """Samples, memory in a process of its own, files."""
    memory = {role: asdict(footprint(bundle.path, target, role)) for role in ("base", "graph")}
    engines: dict[str, Engine] = {role: load_engine(bundle, target, role) for role in ("base", "graph")}
    if count <= APART:
        names = (BASE, *(f"task{n}" for n in range(1, count + 1)))
        engines["apart"] = Several({name: load_engine(bundle, target, "base") for name in names})
    batches = fresh_batches(bundle.manifest.input, 1)
    return {
        "memory": memory,
        "engine_bytes": {role: engine_bytes(bundle, target, role) for role in ("base", "graph")},
        **taken(lambda: measure(engines, batches, protocol)),
    }


# What it says

_HEADER = (
    "tasks", "latency", "for each task more", "K+1 engines", "memory", "of the base", "file", "export",
    "its memory", "compile",
)  # fmt: skip


def summary(found: Sequence[Line]) -> Iterator[str]:
    """Markdown: a table for each case and engine."""
    host = found[0]["host"]
    yield (
        f"`python benchmarks/many_tasks.py`, {host['cores']} cores of {host['cpu']}, batch 1, fp32. Latency is "
        "relative to the lone base, interleaved, with its 95 % interval; what each task more adds is the difference "
        "to the line above, by task. K+1 engines are so many loads of the base's, which are timed up to "
        f"{APART} tasks. Memory is the most that a process of its own held, with Python and the library; file is the "
        "ONNX graph with all weights. Exported as `sweep` does it, without weights for grafts and PyTorch's program; "
        "the memory of it is beside what the libraries hold, and relative to the graph's weights.\n"
    )
    for case, target in product(CASES, TARGETS):
        rows = sorted(
            (each for each in found if (each["case"], each["target"]) == (case, target)),
            key=lambda each: each["tasks"],
        )
        if rows:
            yield f"\n{case}, {TARGETS[target]}{_line(rows)}\n\n"
            yield markdown(_HEADER, _rows(rows))


def _line(rows: Sequence[Line]) -> str:
    """How far from a line the latencies are."""
    if len(rows) < 3:
        return ""
    counts, ratios = [each["tasks"] for each in rows], [_ratio(each, "graph").value for each in rows]
    slope, start = np.polyfit(counts, ratios, 1, w=1 / np.array(ratios))
    off = np.abs((start + slope * np.array(counts)) / ratios - 1)
    return f": {start:.2f} + {slope:.3f} for each task, {off.max():.0%} off at most"


def _rows(rows: Iterable[Line]) -> Iterator[Sequence[str]]:
    tasks, before = 0, 1.0
    for each in rows:
        ratio = _ratio(each, "graph").value
        more = (ratio - before) / (each["tasks"] - tasks)
        tasks, before = each["tasks"], ratio
        yield str(tasks), *_row(each, f"+{more:.3f}")


def _row(each: Line, more: str = "-") -> Sequence[str]:
    ratio, apart = _ratio(each, "graph"), _ratio(each, "apart") if "apart" in each["samples"] else None
    memory = {role: each["memory"][role]["peak_rss_bytes"] / MIB for role in ("graph", "base")}
    return (
        f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})",
        more,
        f"{apart.value:.2f}" if apart else "-",
        *(f"{memory[role]:,.0f} MiB" for role in memory),
        f"{each['graph_bytes'] / MIB:,.0f} MiB",
        f"{each['export_seconds']:.0f} s",
        f"{each['export_peak_bytes'] / each['graph_bytes']:.1f}",
        f"{each['compile_seconds']:.0f} s",
    )


def _ratio(each: Line, name: str) -> Ratio:
    return paired_ratio(each["samples"]["base"], each["samples"][name])


if __name__ == "__main__":
    main()
