"""Whether our timings can be trusted: comparisons of real ResNet-50 engines whose outcome is known.

    python benchmarks/timing_checks.py [same] [slow] [processes] [hot]        all four, without a name

same       the base against itself: one engine twice, and two loads of the same files
slow       the base against itself with a busy-wait of 2 % or 5 % of its median after each run
processes  fork 13-14 against its base, each time in a fresh process
hot        the fork against its base on fresh inputs, and on one input that stays in the caches

A comparison is a line of benchmarks/results/timing_checks.jsonl with its raw samples in seconds; those that are
there are not measured again. The summary is benchmarks/results/timing_checks.md.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np

from subtune_deploy.backends.base import Batch, Engine
from subtune_deploy.bundle import Bundle, open_bundle
from subtune_deploy.conditions import noise_warnings, watch
from subtune_deploy.environment import describe, differences
from subtune_deploy.lines import drop_torn_line
from subtune_deploy.measure import Protocol, fresh_batches, measure
from subtune_deploy.result_tables import markdown, milliseconds
from subtune_deploy.runtime import load_engine
from subtune_deploy.stats import median

RESULTS = Path(__file__).parent / "results"
LINES, SUMMARY = RESULTS / "timing_checks.jsonl", RESULTS / "timing_checks.md"
TARGETS = ("cpu", "openvino-cpu")
FORK = (13, 14)
VARIANTS = {
    "same": {"one engine": 20, "two loads": 5},
    "slow": {"2 %": 5, "5 %": 5},
    "processes": {"fork": 5},
    "hot": {"fresh": 3, "hot": 3},
}
"""Comparisons of each variant, on each target: 40 of an engine with itself in all."""

Line = dict[str, Any]


class Comparison(NamedTuple):
    """What a line of the results is of."""

    check: str
    target: str
    variant: str
    index: int


@dataclass(frozen=True)
class BusyWait:
    """An engine that takes so many seconds longer, and is busy all the while."""

    engine: Engine
    seconds: float
    outputs: tuple[str, ...] = ()
    threads: int = 0

    def run(self, batch: Batch) -> dict[str, Any]:
        answer = self.engine.run(batch)
        until = time.perf_counter() + self.seconds
        while time.perf_counter() < until:
            pass
        return answer


@click.command()
@click.argument("checks", nargs=-1, type=click.Choice(list(VARIANTS)))
@click.option("--count", type=int, hidden=True, help="So many of each, to try the script.")
@click.option("--one", nargs=5, hidden=True, help="BUNDLE and a comparison: measure it here, print its line.")
def main(checks: Sequence[str], count: int | None, one: tuple[str, ...] | None) -> None:
    """Measure what is missing, summarise all."""
    if one:
        folder, check, target, variant, index = one
        print(json.dumps(compared(open_bundle(Path(folder)), Comparison(check, target, variant, int(index)))))
        return
    _, *lines = begun()
    done = {Comparison(*(line[name] for name in Comparison._fields)) for line in lines}
    wanted = (planned(check, count) for check in checks or VARIANTS)
    if missing := [each for group in wanted for each in group if each not in done]:
        measure_all(missing)
    SUMMARY.write_text(summary(*begun()))
    print(SUMMARY.read_text())


def planned(check: str, count: int | None) -> list[Comparison]:
    """Variants and targets take turns: what changes on the machine meets all of them."""
    counts = {variant: count or each for variant, each in VARIANTS[check].items()}
    turns = itertools.product(range(max(counts.values())), TARGETS, counts)
    return [
        Comparison(check, target, variant, index)
        for index, target, variant in turns
        if index < counts[variant]
    ]


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


def measure_all(missing: Sequence[Comparison]) -> None:
    """One after the other, each written when it is done."""
    with tempfile.TemporaryDirectory() as scratch:
        bundle = built(Path(scratch, "bundle"))
        for number, each in enumerate(missing, start=1):
            line = in_a_fresh_process(bundle, each) if each.check == "processes" else compared(bundle, each)
            append(line)
            found = f"{line['ratio']:.4f} ({line['low']:.4f} to {line['high']:.4f})"
            click.echo(f"[{number}/{len(missing)}] {' '.join(map(str, each))}: {found}", err=True)


def built(folder: Path) -> Bundle:
    """ResNet-50 with one candidate task, compiled for all targets."""
    from subtune_deploy.backbone import trace
    from subtune_deploy.build import build
    from subtune_deploy.compiling import compile_bundle
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
    other = other_engine(bundle, each, base, batches)
    with watch() as seen:
        found = measure({"base": base, "other": other}, batches, hot=each.variant == "hot")
    ratio = found.ratio("other")
    outcome = {"ratio": ratio.value, "low": ratio.low, "high": ratio.high, "settled": found.settled}
    if isinstance(other, BusyWait):
        outcome["wait"] = other.seconds
    samples = {name: [round(sample, 9) for sample in taken] for name, taken in found.samples.items()}
    warnings = noise_warnings(describe(), samples["base"], seen.conditions)
    known = {"conditions": seen.conditions, "warnings": warnings}
    return {**each._asdict(), **outcome, **known, "samples": samples}


def other_engine(bundle: Bundle, each: Comparison, base: Engine, batches: Sequence[Batch]) -> Engine:
    """What the base is compared with."""
    if each.check == "slow":
        now = measure({"base": base}, batches, Protocol("calibration", rounds=30)).latency("base")
        return BusyWait(base, now * float(each.variant.removesuffix(" %")) / 100)
    if each.check == "same":
        return base if each.variant == "one engine" else load_engine(bundle, each.target, "base")
    return load_engine(bundle, each.target)


def summary(header: Line, *lines: Line) -> str:
    """Markdown: the command, the device, a row for each check, target and variant."""
    host = header["host"]
    libraries = " and ".join(f"{name} {host['libraries'].get(name)}" for name in ("onnxruntime", "openvino"))
    groups: dict[tuple[str, ...], list[Line]] = {}
    for line in sorted(lines, key=lambda line: list(VARIANTS).index(line["check"])):
        groups.setdefault((line["check"], line["target"], line["variant"]), []).append(line)
    rows = [[*place, *row(found).values()] for place, found in groups.items()]
    return (
        "`python benchmarks/timing_checks.py`: ResNet-50, fp32, batch 1, 3x224x224, default protocol, measured on "
        f"{host['cores']} cores of {host['cpu']}, {libraries}. The other engine is the base itself, the same after a "
        "busy-wait of 2 % or 5 %, or fork 13-14. Medians over n comparisons; spread is (highest - lowest) / median, "
        f"s the standard deviation; intervals are of 95 %.\n\n{pooled(lines)}\n\n"
    ) + markdown(["check", "target", "variant", *row(lines)], rows)


def pooled(lines: Sequence[Line]) -> str:
    """The sentence on an engine against itself, over all targets."""
    found = [line for line in lines if (line["check"], line["variant"]) == ("same", "one engine")]
    if not found:
        return "An engine was not compared with itself yet."
    missed = sum(not line["low"] <= 1 <= line["high"] for line in found)
    widths = [(line["high"] - line["low"]) / 2 / line["ratio"] for line in found]
    doubtful = sum(bool(line["warnings"]) for line in lines)
    return (
        f"An engine against itself: {missed} of {len(found)} intervals exclude 1; median half-width "
        f"{median(widths):.2%}, widest {max(widths):.2%}. {doubtful} of {len(lines)} "
        "comparisons were taken with a warning."
    )


def row(lines: Sequence[Line]) -> dict[str, str]:
    """Cells of one variant by column."""
    base, other = ([median(x["samples"][name]) for x in lines] for name in ("base", "other"))
    ratios = [x["ratio"] for x in lines]
    truths = [(x, truth(x)) for x in lines if truth(x)]
    return {
        "n": str(len(lines)),
        "base": milliseconds(median(base)),
        "base spread": spread(base),
        "other": milliseconds(median(other)),
        "other spread": spread(other),
        "ratio": f"{median(ratios):.4f}",
        "ratio spread": spread(ratios),
        "from, to": f"{min(ratios):.4f}, {max(ratios):.4f}",
        "half-width": f"{median([(x['high'] - x['low']) / 2 / x['ratio'] for x in lines]):.2%}",
        "intervals without 1": str(sum(not x["low"] <= 1 <= x["high"] for x in lines)),
        "with the truth": str(sum(x["low"] <= t <= x["high"] for x, t in truths)) if truths else "",
        "settled": str(sum(x["settled"] for x in lines)),
        "rounds": f"{median([len(x['samples']['base']) for x in lines]):.0f}",
    }


def truth(line: Line) -> float | None:
    """The ratio that should have come out, where it is known."""
    known = {"same": 0.0, "slow": line.get("wait", 0.0)}.get(line["check"])
    return None if known is None else 1 + known / median(line["samples"]["base"])


def spread(values: Sequence[float]) -> str:
    middle, deviation = median(values), np.std(values, ddof=1) if len(values) > 1 else 0.0
    return f"{np.ptp(values) / middle:.2%} (s {deviation / middle:.2%})"


if __name__ == "__main__":
    main()
