"""What `runtime.Bundle.run` costs beyond the bare call of the library: the same loaded engine, called both ways.

    python benchmarks/runtime_overhead.py [--count N] [--seconds S] [-o FOLDER]

The bare call is `session.run` (ONNX Runtime) or `request.infer` without copying its input (OpenVINO); the runtime
adds the checks of the input, the lock, and answers by task that stay when the engine runs again. Both are
interleaved in quadruples. A comparison is a line of runtime_overhead.jsonl with its raw samples in seconds, and those
that are there are not measured again; the summary is runtime_overhead.md beside it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import click
from kept_lines import compilers_of

from subtune_deploy.backbone import trace
from subtune_deploy.backends.base import Batch
from subtune_deploy.build import build
from subtune_deploy.compiling import compile_bundle
from subtune_deploy.conditions import noise_warnings, watch
from subtune_deploy.environment import describe, differences
from subtune_deploy.lines import drop_torn_line
from subtune_deploy.measure import Protocol, fresh_batches, measure
from subtune_deploy.models import load_model
from subtune_deploy.result_tables import markdown, milliseconds
from subtune_deploy.runtime import Bundle
from subtune_deploy.spec import INPUT, parse_layers
from subtune_deploy.stats import median
from subtune_deploy.targets import load_target
from subtune_deploy.tasks import candidate_task

RESULTS = Path(__file__).parent / "results"
NAME = "runtime_overhead"
TARGETS = ("cpu", "openvino-cpu")
NETWORKS = {
    "timm:tf_efficientnet_lite0": ((3, 128, 128), "9-11"),
    "resnet50": ((3, 224, 224), "13-14"),
}
"""Input and fork of one task: the network that the demo deploys, which is quick, and one that is not."""
LIMIT = 1.03
"""What the runtime may take, relative to the bare call."""

Line = dict[str, Any]


@dataclass(frozen=True)
class Called:
    """A way to call an engine, as `measure` takes it."""

    call: Callable[[Batch], Any]
    outputs: tuple[str, ...]
    threads: int

    def run(self, batch: Batch) -> Any:
        return self.call(batch)


@click.command()
@click.option("--count", default=5, show_default=True, help="Comparisons of each network on each target.")
@click.option("--seconds", default=20.0, show_default=True, help="That a comparison may take.")
@click.option("-o", "--out", type=click.Path(path_type=Path), default=RESULTS, help="Where the results go.")
def main(count: int, seconds: float, out: Path) -> None:
    """Measure what is missing, summarise all; status 1 if a median is above 3 %."""
    lines = begun(out)
    done = {(line["network"], line["target"], line["index"]) for line in lines[1:]}
    for network in NETWORKS:
        if missing := [c for c in product(range(count), TARGETS) if (network, c[1], c[0]) not in done]:
            for line in compared(network, missing, seconds):
                append(out, line)
    header, *lines = begun(out)
    (out / f"{NAME}.md").write_text(summary(header, lines))
    print((out / f"{NAME}.md").read_text())
    sys.exit(max(median([x["ratio"] for x in group]) for group in groups(lines).values()) > LIMIT)


def begun(out: Path) -> list[Line]:
    """The results' lines, the header first, which is written if there is none. Exits on another host."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{NAME}.jsonl"
    drop_torn_line(path)
    if not path.exists() or not path.stat().st_size:
        append(out, {"unit": "s", "host": describe()})
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    if found := differences(lines[0]["host"], describe()):
        sys.exit(f"error: {path} is of another host: {'; '.join(found)}\nhint: move it away, or go on there")
    return lines


def append(out: Path, line: Line) -> None:
    with (out / f"{NAME}.jsonl").open("a") as stream:
        stream.write(json.dumps(line) + "\n")


def compared(network: str, missing: Sequence[tuple[int, str]], seconds: float) -> Iterator[Line]:
    """One comparison after the other, the engines loaded anew for each."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "bundle")
        export(network, folder)
        for index, target in missing:
            line = {"network": network, "target": target, "index": index}
            line |= compare(Bundle.open(folder, target), index, seconds)
            found = f"{line['ratio']:.4f} ({line['low']:.4f} to {line['high']:.4f})"
            click.echo(f"{network} {target} {index}: {found}", err=True)
            yield line


def export(network: str, folder: Path) -> None:
    """One candidate task on the network's fork, compiled for all targets."""
    shape, layers = NETWORKS[network]
    backbone = trace(load_model(network, "random", shape))
    fork = parse_layers(layers, len(backbone.blocks))
    bundle = build(backbone, [candidate_task(backbone, "task1", fork, seed=1)], folder)
    for target in TARGETS:
        bundle = compile_bundle(bundle, load_target(target))


def compare(bundle: Bundle, seed: int, seconds: float) -> Line:
    """The bare call against the runtime, on inputs that were not seen before."""
    engine = bundle.engine
    ways = {"bare": bare(engine), "runtime": bundle.run}
    engines = {name: Called(call, engine.outputs, engine.threads) for name, call in ways.items()}
    batches = fresh_batches(bundle.input, bundle.batches[0], seed=seed)
    with watch() as seen:
        found = measure(engines, batches, Protocol(seconds=seconds))
    ratio = found.ratio("runtime")
    samples = {name: [round(sample, 9) for sample in taken] for name, taken in found.samples.items()}
    return {
        "ratio": ratio.value,
        "low": ratio.low,
        "high": ratio.high,
        "settled": found.settled,
        "conditions": seen.conditions,
        "warnings": noise_warnings(describe(), samples["bare"], seen.conditions),
        "samples": samples,
    }


def bare(engine: Any) -> Callable[[Batch], Any]:
    """What one would write with the library alone, on the engine's own session or request."""
    if hasattr(engine, "session"):
        names = list(engine.outputs)
        return lambda batch: engine.session.run(names, {INPUT: batch})
    return lambda batch: engine.request.infer({0: batch}, share_inputs=True)


def groups(lines: Sequence[Line]) -> dict[tuple[str, str], list[Line]]:
    found: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        found.setdefault((line["network"], line["target"]), []).append(line)
    return found


def summary(header: Line, lines: Sequence[Line]) -> str:
    """Markdown: the command, the device, a row for each network and target."""
    host = header["host"]
    doubtful = sum(bool(line["warnings"]) for line in lines)
    return (
        f"`python benchmarks/{NAME}.py`: `runtime.Bundle.run` against the bare call of the library on the same "
        f"engine, one forked task, fp32, batch 1, measured on {host['cores']} cores of {host['cpu']}, "
        f"{compilers_of(header)}. "
        f"Ratio: median over n comparisons of the median over quadruples; from, to: the lowest and the highest of "
        f"them; half-width of their 95 % intervals: median. {doubtful} of {len(lines)} comparisons were taken with "
        "a warning.\n\n"
    ) + markdown(COLUMNS, [row(*place, found) for place, found in groups(lines).items()])


COLUMNS = [
    "network",
    "input",
    "target",
    "n",
    "bare",
    "runtime adds",
    "ratio",
    "from, to",
    "half-width",
    "at most 3 %",
]


def row(network: str, target: str, lines: Sequence[Line]) -> list[str]:
    bare_seconds = median([median(line["samples"]["bare"]) for line in lines])
    ratios = [line["ratio"] for line in lines]
    ratio = median(ratios)
    return [
        *(network, "x".join(map(str, NETWORKS[network][0])), target, str(len(lines))),
        *(milliseconds(bare_seconds), f"{(ratio - 1) * bare_seconds * 1e6:+.1f} us"),
        *(f"{ratio:.4f}", f"{min(ratios):.4f}, {max(ratios):.4f}"),
        f"{median([(line['high'] - line['low']) / 2 / line['ratio'] for line in lines]):.2%}",
        "yes" if ratio <= LIMIT else "NO",
    ]


if __name__ == "__main__":
    main()
