"""The command throughput: what a server gets of a bundle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .common import Finite, bar, bundle_argument, compiled, json_option, messages, print_json, print_table
from .timing import read_counts

if TYPE_CHECKING:
    from ..bundle import Bundle
    from ..throughput import Served, Throughput


@click.command()
@bundle_argument
@click.option("--target", metavar="NAME", help="One engine of the bundle; default: all.")
@click.option("--batch", metavar="N,...", help="Pictures per call; default: 1,4,16,64, or the bundle's own.")
@click.option(
    "--streams", metavar="N,...", help="Callers at once; default: one, and as many as there are cores."
)
@click.option(
    "--seconds",
    type=Finite(0.1),
    default=10.0,
    show_default=True,
    help="For each batch and number of streams, besides loading; but six loads of two rounds.",
)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    default=Path("throughput.json"),
    show_default=True,
    metavar="FILE.json",
    help="Written anew with each that is done, raw windows included.",
)
@json_option
def throughput(
    folder: Path, target: str | None, batch: str | None, streams: str | None, seconds: float, out: Path, as_json: bool
) -> None:  # fmt: skip
    """Pictures per second for several callers at once, each of whom waits for its answer and asks again.

    The engine with all tasks and the base's own run by turns in one process, with the same number of streams.
    """
    from ..bundle import open_bundle
    from ..documents import to_document, write_document
    from ..environment import usable_cores
    from ..staging import checked_place
    from ..throughput import Throughputs

    checked_place(out)
    sizes = None if batch is None else read_counts(batch, "batch")
    callers = (
        read_counts(streams, "streams") if streams is not None else tuple(dict.fromkeys((1, usable_cores())))
    )
    found = Throughputs(())
    try:
        for each in _timed(open_bundle(folder), target, sizes, callers, seconds):
            found = Throughputs((*found.results, each))
            write_document(out, found)
    finally:  # also what was done before an engine failed, or could not be written
        if found.results and as_json:
            print_json(to_document(found))
        elif found.results:
            _print(found.results)
            click.echo(f"throughput: {out}")


def _timed(
    bundle: Bundle, target: str | None, sizes: Sequence[int] | None, callers: Sequence[int], seconds: float
) -> Iterator[Throughput]:
    from ..throughput import fitting_batches, time_streams

    batches = {name: fitting_batches(bundle, name, sizes) for name in compiled(bundle, target)}
    points = [(name, size, count) for name, all_ in batches.items() for count in callers for size in all_]
    with bar("throughput") as tick:
        for done, (name, size, count) in enumerate(points):
            what = f"{name}, batch {size}, streams {count}"

            def progress(part: float, done: int = done, what: str = what) -> None:
                tick(what, done + part, len(points))

            result = time_streams(bundle, name, size, count, seconds=seconds, progress=progress)
            for warning in result.warnings:
                messages.print(f"warning: {what}: {warning}")
            yield result


def _print(results: Sequence[Throughput]) -> None:
    print_table(
        (
            "target",
            "batch",
            "streams",
            "pictures/s",
            "95 % interval",
            "base alone",
            "times the base",
            "p50",
            "p99",
        ),
        map(_row, results),
    )
    for target in dict.fromkeys(each.target for each in results):
        best = max((each for each in results if each.target == target), key=lambda each: each.graph.rate)
        click.echo(
            f"best on {target}: {_rate(best.graph)} pictures/s with batch {best.batch}, streams {best.streams}"
        )


def _row(result: Throughput) -> Sequence[str]:
    from ..result_tables import milliseconds

    graph, ratio = result.graph, result.ratio
    return (
        result.target,
        str(result.batch),
        str(result.streams),
        _rate(graph),
        f"{graph.low:.4g} to {graph.high:.4g}",
        _rate(result.base),
        f"{ratio.value:.3f} ({ratio.low:.3f} to {ratio.high:.3f})",
        milliseconds(graph.p50),
        milliseconds(graph.p99),
    )


def _rate(served: Served) -> str:
    """With four figures; thousands are apart."""
    return f"{served.rate:,.0f}" if served.rate >= 1000 else f"{served.rate:.4g}"


COMMANDS = (throughput,)
