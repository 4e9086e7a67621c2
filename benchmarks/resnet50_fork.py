"""What fork 13-14 of ResNet-50 costs: one task, eight tasks, merged or not, and separate networks.

    python benchmarks/resnet50_fork.py [SECONDS per backend, at most]

All engines of a backend are interleaved in one run; ratios are medians of paired samples with 95 % intervals.
Raw samples go to benchmarks/results/resnet50_fork.json, the table to benchmarks/results/resnet50_fork.md.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cells import backbone_of, tasks_on

from subtune_deploy.backends.base import Engine
from subtune_deploy.build import BuildOptions, build
from subtune_deploy.compiling import compile_bundle
from subtune_deploy.conditions import noise_warnings
from subtune_deploy.environment import describe
from subtune_deploy.measure import Protocol, Samples, Several, fresh_batches, measure
from subtune_deploy.runtime import load_engine
from subtune_deploy.stats import median, paired_ratio
from subtune_deploy.targets import load_target

RESULTS = Path(__file__).parent / "results"
TARGETS = ("cpu", "openvino-cpu")
FORK = "13-14"
VARIANTS = {
    "1 task": (1, BuildOptions()),
    "1 task, not merged": (1, BuildOptions(merge="never")),
    "8 tasks": (8, BuildOptions()),
    "8 tasks, not merged": (8, BuildOptions(merge="never")),
    "8 tasks, grouped": (8, BuildOptions(lowering="grouped")),
}


def main() -> None:
    """Build, measure, write."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 120.0
    backbone = backbone_of("resnet50")
    with tempfile.TemporaryDirectory() as scratch:
        bundles = {}
        for name, (count, options) in VARIANTS.items():
            bundle = build(
                backbone, tasks_on(backbone, FORK, count), Path(scratch, name.replace(" ", "_")), options
            )
            for target in TARGETS:
                bundle = compile_bundle(bundle, load_target(target))
            bundles[name] = bundle
            print(f"built and verified: {name}", flush=True)
        host = describe()
        for warning in noise_warnings(host):
            print(f"warning: {warning}", flush=True)
        samples = {target: timed(bundles, target, seconds) for target in TARGETS}
    RESULTS.mkdir(exist_ok=True)
    document = {"command": " ".join(sys.argv), "unit": "s", "fork": FORK, "host": host, "samples": samples}
    (RESULTS / "resnet50_fork.json").write_text(json.dumps(document) + "\n")
    table = "\n".join(lines(samples)) + "\n"
    (RESULTS / "resnet50_fork.md").write_text(table)
    print(table)


def timed(bundles: Mapping[str, Any], target: str, seconds: float) -> Samples:
    """Interleaved samples in seconds by engine."""
    first = bundles["1 task"]
    base = load_engine(first, target, "base")
    engines: dict[str, Engine] = {"base": base}
    engines |= {name: load_engine(bundle, target) for name, bundle in bundles.items()}
    others = tuple(load_engine(first, target, "base") for _ in range(8))
    engines["2 networks"] = Several({"base": base, "task1": others[0]})
    engines["9 networks"] = Several(
        {"base": base, **{f"task{i}": other for i, other in enumerate(others, start=1)}}
    )
    batches = fresh_batches(first.manifest.input, 1)
    return measure(engines, batches, Protocol(seconds=seconds)).samples


def lines(samples: Mapping[str, Samples]) -> Any:
    """The table, as Markdown."""
    yield "| backend | engine | median | ratio to the base | 95 % interval | rounds |"
    yield "|---|---|---:|---:|---:|---:|"
    for target, engines in samples.items():
        for name, taken in engines.items():
            ratio = paired_ratio(engines["base"], taken)
            interval = "" if name == "base" else f"{ratio.low:.2f} to {ratio.high:.2f}"
            yield (
                f"| {target} | {name} | {median(taken) * 1e3:.1f} ms | {ratio.value:.2f} | {interval} | {len(taken)} |"
            )


if __name__ == "__main__":
    main()
