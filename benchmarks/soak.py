"""Whether the runtime holds for long: memory and answers of 100,000 inferences from 4 threads that share a bundle.

    python benchmarks/soak.py [--count N] [--threads T] [-o FOLDER]

ResNet-18 at 3x64x64 with a task on blocks 7-8, batch 1, fp32; each target in a process of its own. Every answer is
compared bit for bit with the first of the same input, which was taken before the threads began. Resident memory is
sampled ten times a second. Raw samples go to soak.jsonl, a line for each target, the summary to soak.md beside it.
Status 1 if an answer differs, or memory may have grown by over 1 %.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np

from subtune_deploy.environment import describe, kilobytes
from subtune_deploy.result_tables import markdown
from subtune_deploy.runtime import Bundle
from subtune_deploy.stats import Interval, mean_interval

RESULTS = Path(__file__).parent / "results"
TARGETS = ("cpu", "openvino-cpu")
MODEL, SHAPE, FORK = "resnet18", (3, 64, 64), (7, 8)
INPUTS = 64
"""Different ones; each thread takes them in an order of its own."""
EVERY = 0.1
"""Seconds between samples of memory."""
WARM = 0.1
"""Of the inferences: the memory of the threads and of the libraries' pools is still being taken then."""
PARTS = 11
"""Of the rest; ten steps from one to the next."""
LIMIT = 0.01
"""Of the memory: the most that the whole run may have added, at the upper end of the interval."""

Line = dict[str, Any]


@click.command()
@click.option("--count", default=100_000, show_default=True, help="Inferences in all.")
@click.option("--threads", default=4, show_default=True, help="That call run at the same time.")
@click.option("-o", "--out", type=click.Path(path_type=Path), default=RESULTS, help="Where the results go.")
@click.option("--one", nargs=2, hidden=True, help="BUNDLE and TARGET: soak it here, print its line.")
def main(count: int, threads: int, out: Path, one: tuple[str, str] | None) -> None:
    """Soak each target, write the results."""
    if one:
        print(json.dumps(Soak(*one, count, threads).line()))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = export(Path(scratch, "bundle"))
        lines = [in_a_fresh_process(folder, target, count, threads) for target in TARGETS]
    out.mkdir(parents=True, exist_ok=True)
    (out / "soak.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (out / "soak.md").write_text(summary(lines))
    print(summary(lines))
    sys.exit(any(line["different"] or not flat(line) for line in lines))


def export(folder: Path) -> Path:
    """The bundle, compiled for all targets."""
    from subtune_deploy.backbone import trace
    from subtune_deploy.build import build
    from subtune_deploy.compiling import compile_bundle
    from subtune_deploy.models import load_model
    from subtune_deploy.targets import load_target
    from subtune_deploy.tasks import candidate_task

    backbone = trace(load_model(MODEL, "random", SHAPE))
    bundle = build(backbone, [candidate_task(backbone, "task1", FORK, seed=1)], folder)
    for target in TARGETS:
        bundle = compile_bundle(bundle, load_target(target))
    return folder


def in_a_fresh_process(folder: Path, target: str, count: int, threads: int) -> Line:
    click.echo(f"{target} ...", err=True)
    options = ["--count", count, "--threads", threads, "--one", folder, target]
    command = [sys.executable, __file__, *map(str, options)]
    return dict(json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout))


@dataclass
class Soak:
    """One target's run. `done` and `different` count by thread, so that no two write to the same place; `samples`
    are seconds since the start, inferences so far, bytes held, and so on."""

    folder: str
    target: str
    count: int
    threads: int

    def __post_init__(self) -> None:
        self.bundle = Bundle.open(self.folder, self.target)
        rng = np.random.default_rng(0)
        self.inputs = list(rng.standard_normal((INPUTS, 1, *SHAPE), dtype=np.float32))
        self.wanted = [self.answer(index) for index in range(INPUTS)]
        self.done, self.different = [0] * self.threads, [0] * self.threads
        self.samples = array("d")  # a list of tuples would show in what it records

    def answer(self, index: int) -> dict[str, bytes]:
        return {name: scores.tobytes() for name, scores in self.bundle.run(self.inputs[index]).items()}

    def work(self, thread: int) -> None:
        order = random.Random(thread)
        for _ in range(self.count // self.threads):
            index = order.randrange(INPUTS)
            self.different[thread] += self.answer(index) != self.wanted[index]
            self.done[thread] += 1

    def line(self) -> Line:
        """Run it all; raises what a thread raised."""
        start = time.monotonic()
        with ThreadPoolExecutor(self.threads) as pool:
            workers = [pool.submit(self.work, thread) for thread in range(self.threads)]
            self.watch(workers, start)
        for worker in workers:
            worker.result()
        return {
            "target": self.target,
            "threads": self.threads,
            "inferences": sum(self.done),
            "different": sum(self.different),
            "seconds": round(time.monotonic() - start, 3),
            "memory": np.array(self.samples).reshape(-1, 3).tolist(),
            "host": describe(),
        }

    def watch(self, workers: Sequence[Future[None]], start: float) -> None:
        """Sample memory until they have ended."""
        while not all(worker.done() for worker in workers):
            bytes_ = kilobytes(Path("/proc/self/status"), "VmRSS")
            if bytes_ is None:
                sys.exit("error: this system does not tell resident memory\nhint: run it on Linux")
            self.samples.extend((round(time.monotonic() - start, 3), sum(self.done), bytes_))
            time.sleep(EVERY)


def growth(line: Line) -> Interval:
    """Bytes per inference: the mean step between eleven equal parts of the run, with its 95 % interval."""
    done, held = np.array([sample[1:] for sample in line["memory"]]).T
    edges = np.linspace(WARM * line["inferences"], line["inferences"], PARTS + 1)
    parts = [held[(low <= done) & (done < high)] for low, high in pairwise(edges)]
    if not all(len(part) for part in parts):
        sys.exit("error: there are too few samples of memory\nhint: give a larger --count")
    steps = np.diff([part.mean() for part in parts])
    shift = 1 - steps.min()  # `stats` is for latencies, which are positive; an interval of a mean moves along
    found, per = mean_interval((steps + shift).tolist()), edges[1] - edges[0]
    return Interval(*(float((end - shift) / per) for end in (found.value, found.low, found.high)))


def flat(line: Line) -> bool:
    """Whether the most that memory may have grown by is little of it."""
    return bool(growth(line).high * line["inferences"] < LIMIT * line["memory"][-1][2])


def summary(lines: Sequence[Line]) -> str:
    """Markdown: the command, the device, a row for each target."""
    host = lines[0]["host"]
    libraries = " and ".join(f"{name} {host['libraries'].get(name)}" for name in ("onnxruntime", "openvino"))
    columns = [
        "target",
        "inferences",
        "threads",
        "seconds",
        "answers that differ",
        "MiB after a tenth",
        "MiB at the end",
    ]
    return (
        f"`python benchmarks/soak.py`: {MODEL} at {'x'.join(map(str, SHAPE))} with a task on blocks 7-8, batch 1, "
        f"fp32, through `runtime.Bundle.run`, on {host['cores']} cores of {host['cpu']}, {libraries}. Answers are "
        "compared bit for bit with the first of the same input. Growth of resident memory: the mean step between "
        "eleven equal parts of the run after its first tenth, with Student's 95 % interval; flat: over the whole run "
        "less than 1 % of the memory at the upper end.\n\n"
    ) + markdown([*columns, "growth per 1,000, KiB", "flat"], [row(line) for line in lines])


def row(line: Line) -> list[str]:
    found = growth(line)
    first = next(held for _, done, held in line["memory"] if done >= WARM * line["inferences"])
    values = [each * 1000 / 1024 for each in (found.value, found.low, found.high)]
    return [
        *(line["target"], f"{line['inferences']:,}", str(line["threads"]), f"{line['seconds']:.0f}"),
        *(str(line["different"]), f"{first / 2**20:.1f}", f"{line['memory'][-1][2] / 2**20:.1f}"),
        "{:+.3f} ({:+.3f} to {:+.3f})".format(*values),
        "yes" if flat(line) else "NO",
    ]


if __name__ == "__main__":
    main()
