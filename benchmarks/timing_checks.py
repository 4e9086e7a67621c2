"""Whether our timings can be trusted: comparisons of real ResNet-50 engines whose outcome is known.

    python benchmarks/timing_checks.py [same] [slow] [processes] [hot]        all four, without a name

same       the base against itself: one engine twice, and two loads of the same files
slow       the base against itself with a busy-wait of 2 % or 5 % of its median after each run
processes  fork 13-14 against its base, each time in a fresh process
hot        fork and base on fresh inputs, and on one input that stays in the caches

A comparison is a line of benchmarks/results/timing_checks.jsonl with its raw samples in seconds; those that are
there are not measured again. The summary is benchmarks/results/timing_checks.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np

from subtune_deploy.backends.base import Engine
from subtune_deploy.bundle import Bundle, open_bundle
from subtune_deploy.conditions import noise_warnings
from subtune_deploy.environment import describe, differences
from subtune_deploy.measure import Protocol, fresh_batches, measure
from subtune_deploy.result_tables import markdown, milliseconds
from subtune_deploy.results import drop_torn_line
from subtune_deploy.runtime import load_engine
from subtune_deploy.stats import median

RESULTS = Path(__file__).parent / "results"
LINES, SUMMARY = RESULTS / "timing_checks.jsonl", RESULTS / "timing_checks.md"
TARGETS = ("cpu", "openvino-cpu")
FORK = (13, 14)
COUNTS = {"same": 40, "slow": 10, "processes": 5, "hot": 5}
"""Comparisons of each variant."""
VARIANTS = {
    "same": ("one engine", "two loads"),
    "slow": ("2 %", "5 %"),
    "processes": ("fork",),
    "hot": ("fresh", "hot"),
}
CALIBRATION = Protocol("calibration", rounds=30)

Line = dict[str, Any]


class Comparison(NamedTuple):
    """One line of the results."""

    check: str
    target: str
    variant: str
    index: int


@dataclass(frozen=True)
class BusyWait:
    """An engine that takes so many seconds longer, and is busy all the while."""

    engine: Engine
    seconds: float
    clock: Callable[[], float] = time.perf_counter
    outputs: tuple[str, ...] = ()
    threads: int = 0

    def run(self, batch: Any) -> dict[str, Any]:
        answer = self.engine.run(batch)
        until = self.clock() + self.seconds
        while self.clock() < until:
            pass
        return answer


@click.command()
@click.argument("checks", nargs=-1, type=click.Choice(list(COUNTS)))
@click.option("--count", type=int, hidden=True, help="So many of each, to try the script.")
@click.option("--one", nargs=5, hidden=True, help="BUNDLE and a comparison: measure it here, print its line.")
def main(checks: Sequence[str], count: int | None, one: tuple[str, ...] | None) -> None:
    """Measure what is missing, summarise all."""
    if one:
        folder, check, target, variant, index = one
        print(json.dumps(compared(open_bundle(Path(folder)), Comparison(check, target, variant, int(index)))))
        return
    wanted = [each for check in checks or COUNTS for each in planned(check, count or COUNTS[check])]
    done = {key_of(line) for line in begun()[1:]}
    measure_all([each for each in wanted if each not in done])
    header, *lines = begun()
    SUMMARY.write_text(summary(header["host"], lines))
    print(SUMMARY.read_text())


def planned(check: str, count: int) -> Iterator[Comparison]:
    """Variants and targets take turns: what changes on the machine meets all of them."""
    for index in range(count):
        for target in TARGETS:
            for variant in VARIANTS[check]:
                yield Comparison(check, target, variant, index)


def begun() -> list[Line]:
    """The file's lines, the header first, which is written if there is none. Exits on another host."""
    drop_torn_line(LINES)
    if not LINES.exists() or not LINES.stat().st_size:
        append({"unit": "s", "fork": list(FORK), "host": describe()})
    lines = [json.loads(text) for text in LINES.read_text().splitlines()]
    if found := differences(lines[0]["host"], describe()):
        sys.exit(f"error: {LINES} is of another host: {'; '.join(found)}\nhint: move it away, or go on there")
    return lines


def append(line: Line) -> None:
    with LINES.open("a") as stream:
        stream.write(json.dumps(line) + "\n")


def key_of(line: Line) -> Comparison:
    return Comparison(*(line[name] for name in Comparison._fields))


def measure_all(missing: Sequence[Comparison]) -> None:
    """One after the other, each written when it is done."""
    if not missing:
        return
    with tempfile.TemporaryDirectory() as scratch:
        bundle = built(Path(scratch, "bundle"))
        for warning in noise_warnings(describe()):
            click.echo(f"warning: {warning}", err=True)
        for number, each in enumerate(missing, start=1):
            line = in_a_fresh_process(bundle, each) if each.check == "processes" else compared(bundle, each)
            append(line)
            said = f"{line['ratio']:.4f} ({line['low']:.4f} to {line['high']:.4f})"
            click.echo(f"[{number}/{len(missing)}] {' '.join(map(str, each))}: {said}", err=True)


def built(folder: Path) -> Bundle:
    """ResNet-50 with one candidate task, compiled for all targets."""
    from subtune_deploy.backbone import trace
    from subtune_deploy.build import build, compile_bundle
    from subtune_deploy.models import load_model
    from subtune_deploy.targets import load_target
    from subtune_deploy.tasks import candidate_task

    backbone = trace(load_model("resnet50"))
    bundle = build(backbone, [candidate_task(backbone, "task1", FORK, seed=1)], folder)
    for target in TARGETS:
        bundle = compile_bundle(bundle, load_target(target))
    return bundle


def in_a_fresh_process(bundle: Bundle, each: Comparison) -> Line:
    command = [sys.executable, __file__, "--one", bundle.path, *each]
    found = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, check=True)
    return dict(json.loads(found.stdout))


def compared(bundle: Bundle, each: Comparison) -> Line:
    """Engines loaded for this comparison, inputs of its own, the default protocol."""
    batches = fresh_batches(bundle.manifest.input, 1, seed=each.index)
    base = load_engine(bundle, each.target, "base")
    other, wait = base, 0.0
    if each.variant == "two loads":
        other = load_engine(bundle, each.target, "base")
    elif each.check == "slow":
        typical = measure({"base": base}, batches, CALIBRATION).latency("base")
        wait = typical * float(each.variant.removesuffix(" %")) / 100
        other = BusyWait(base, wait)
    elif each.check in ("processes", "hot"):
        other = load_engine(bundle, each.target)
    found = measure({"base": base, "other": other}, batches, hot=each.variant == "hot")
    ratio = found.ratio("other")
    samples = {name: [round(sample, 9) for sample in taken] for name, taken in found.samples.items()}
    return {
        **each._asdict(),
        "ratio": ratio.value,
        "low": ratio.low,
        "high": ratio.high,
        "settled": found.settled,
        "wait": wait,
        "samples": samples,
    }


# The summary


def summary(host: Mapping[str, Any], lines: Sequence[Line]) -> str:
    """Markdown: the command, the device, a table for each check that was made."""
    libraries = ", ".join(f"{name} {host['libraries'].get(name)}" for name in ("onnxruntime", "openvino"))
    text = (
        "`python benchmarks/timing_checks.py`. ResNet-50, fp32, batch 1, 3x224x224, default protocol. "
        f"Measured on {host['cores']} cores of {host['cpu']}, {libraries}.\n"
    )
    for check, (title, row) in TABLES.items():
        groups = grouped([line for line in lines if line["check"] == check])
        if groups:
            found = [{"target": t, "variant": v, "n": str(len(g)), **row(g)} for (t, v), g in groups.items()]
            text += f"\n{title}\n\n{markdown(found[0], [list(each.values()) for each in found])}"
    return text


def grouped(lines: Sequence[Line]) -> dict[tuple[str, str], list[Line]]:
    """Lines by target and variant."""
    groups: dict[tuple[str, str], list[Line]] = {}
    for line in sorted(lines, key=lambda line: (line["target"], line["variant"], line["index"])):
        groups.setdefault((line["target"], line["variant"]), []).append(line)
    return groups


def same_row(lines: Sequence[Line]) -> dict[str, str]:
    return {
        "intervals without 1": str(missing_one(lines)),
        "median half-width": f"{np.median([(x['high'] - x['low']) / 2 / x['ratio'] for x in lines]):.2%}",
        "largest deviation": f"{max(abs(x['ratio'] - 1) for x in lines):.2%}",
        "settled": f"{sum(x['settled'] for x in lines)}",
        "median rounds": f"{np.median([len(x['samples']['base']) for x in lines]):.0f}",
    }


def slow_row(lines: Sequence[Line]) -> dict[str, str]:
    """The truth is of each comparison: its wait over its own median of the base."""
    added = [x["ratio"] - 1 for x in lines]
    truths = [1 + x["wait"] / median(x["samples"]["base"]) for x in lines]
    return {
        "intervals above 1": str(sum(x["low"] > 1 for x in lines)),
        "intervals with the truth": str(
            sum(x["low"] <= t <= x["high"] for x, t in zip(lines, truths, strict=True))
        ),
        "added, median": f"{np.median(added):+.2%}",
        "lowest to highest": f"{min(added):+.2%} to {max(added):+.2%}",
    }


def processes_row(lines: Sequence[Line]) -> dict[str, str]:
    series = {
        "ratio": [x["ratio"] for x in lines],
        "base": [median(x["samples"]["base"]) for x in lines],
        "fork": [median(x["samples"]["other"]) for x in lines],
    }
    shown = {"ratio": f"{median(series['ratio']):.3f}"}
    shown |= {name: milliseconds(median(series[name])) for name in ("base", "fork")}
    for name, values in series.items():
        middle, deviation = median(values), np.std(values, ddof=1) if len(values) > 1 else 0.0
        shown[f"spread of {name}"] = (
            f"{(max(values) - min(values)) / middle:.2%} (s {deviation / middle:.2%})"
        )
    return shown


def hot_row(lines: Sequence[Line]) -> dict[str, str]:
    base, fork = (median([median(x["samples"][name]) for x in lines]) for name in ("base", "other"))
    added = [x["ratio"] - 1 for x in lines]
    return {
        "base": milliseconds(base),
        "fork": milliseconds(fork),
        "added, median": f"{np.median(added):+.2%}",
        "lowest to highest": f"{min(added):+.2%} to {max(added):+.2%}",
    }


def missing_one(lines: Sequence[Line]) -> int:
    return sum(not x["low"] <= 1 <= x["high"] for x in lines)


TABLES = {
    "same": (
        "An engine against itself. Two loads of the same files do differ: their memory lies elsewhere.",
        same_row,
    ),
    "slow": ("An engine against itself with a busy-wait.", slow_row),
    "processes": ("One fork in separate processes: spread is (highest - lowest) / median.", processes_row),
    "hot": ("Fresh inputs in turn, beside one input with each engine right after itself.", hot_row),
}


if __name__ == "__main__":
    main()
