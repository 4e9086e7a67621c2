"""Commands that time: bench, sweep, results."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import InputError, SubtuneError
from .common import (
    Finite,
    bar,
    build_options,
    classes_option,
    compiled,
    json_option,
    messages,
    network_options,
    options,
    print_json,
    print_table,
    read_backbone,
    read_layers,
    read_span,
    targets_option,
    time_left,
)
from .pruning import prune_candidates_options, read_prunings

if TYPE_CHECKING:
    from ..measure import Protocol
    from ..results import Result
    from ..sweep import Step


protocol_options = options(
    click.option(
        "--protocol",
        "name",
        type=click.Choice(["adaptive", "paper"]),
        default="adaptive",
        show_default=True,
        help="Over six loads, until intervals are narrow; or ten times 300 rounds after 300 to warm up.",
    ),
    click.option(
        "--seconds",
        type=Finite(0.1),
        show_default="20",
        help="At most, for one engine and its base (adaptive), besides loading them; but six loads of four rounds.",
    ),
    click.option(
        "--precision",
        type=Finite(0.0001, 1),
        show_default="0.01",
        help="Half width of the intervals that is narrow enough (adaptive).",
    ),
    click.option(
        "--hot", is_flag=True, help="The flattered number: one input, and each engine right after itself."
    ),
)
"""How engines are timed."""


def read_protocol(name: str, seconds: float | None, precision: float | None) -> Protocol:
    """The one that `protocol_options` asked for. Raises InputError."""
    from ..measure import ADAPTIVE, PAPER

    given = {"seconds": seconds, "precision": precision}
    chosen: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if name == "paper" and chosen:
        raise InputError(
            f"--protocol paper takes no --{next(iter(chosen))}",
            "its number of rounds is fixed; leave it away",
        )
    return PAPER if name == "paper" else dataclasses.replace(ADAPTIVE, **chosen)


@click.command()
@click.argument(
    "folders", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="DIR | --compare A B"
)
@click.option("--target", metavar="NAME", help="One engine of the bundle; default: all.")
@protocol_options
@click.option("--compare", is_flag=True, help="Compare the results of two bundles, sweeps or files instead.")
@click.option("--across", is_flag=True, help="With --compare: although host, versions or protocol differ.")
@json_option
def bench(
    folders: tuple[Path, ...],
    target: str | None,
    hot: bool,
    compare: bool,
    across: bool,
    as_json: bool,
    **how: Any,
) -> None:
    """Median latency, and what is added to the base alone.

    The base's own engine and the engine with all tasks run by turns in one process, so that both meet the same
    disturbances. The result, raw samples included, is kept in the bundle.
    """
    if len(folders) != (2 if compare else 1):
        raise InputError(
            f"folders given: {len(folders)}", "give one bundle to measure, or two results with --compare"
        )
    if compare:
        _compare(*folders, across=across, as_json=as_json)
        return
    if across:
        raise InputError("--across goes with --compare", "leave it away: a bundle is measured on this host")
    from ..results import to_document

    results: list[Result] = []
    try:
        for result in _benched(folders[0], target, read_protocol(**how), hot):
            results.append(result)
    finally:  # also what was measured before an engine failed, or could not be kept
        if results and as_json:
            print_json({"bundle": str(folders[0]), "measurements": list(map(to_document, results))})
        elif results:
            _print(results)


def _benched(folder: Path, target: str | None, protocol: Protocol, hot: bool) -> Iterator[Result]:
    from ..bundle import open_bundle
    from ..timing import time_bundle

    bundle = open_bundle(folder)
    for name in compiled(bundle, target):
        with bar(f"timing {name}") as tick:
            result = time_bundle(bundle, name, protocol, hot=hot, progress=lambda part: tick("", part, 1.0))
        for warning in result.warnings:
            messages.print(f"warning: {name}: {warning}")
        yield result
        _keep(folder, result)


def _keep(folder: Path, result: Result) -> None:
    """Into the manifest as it is now, in place of what was measured in the same way on this target before."""
    from ..bundle import held, open_bundle, save_manifest
    from ..manifest import SIGNATURE
    from ..results import to_document

    if (folder / SIGNATURE).is_file():
        messages.print(f"{result.target}: not kept in the bundle, whose signature would hold no longer")
        return

    def way(document: Mapping[str, Any]) -> tuple[Any, ...]:
        return document.get("target"), document.get("protocol", {}).get("name"), document.get("inputs")

    document = to_document(result)
    with held(folder):
        manifest = open_bundle(folder).manifest
        others = [each for each in manifest.measurements if way(each) != way(document)]
        save_manifest(folder, dataclasses.replace(manifest, measurements=(*others, document)))


def _compare(first: Path, second: Path, *, across: bool, as_json: bool) -> None:
    from ..records import to_plain
    from ..result_tables import CHANGE_COLUMNS, change_rows, compare
    from ..results import read_results

    changes = compare(read_results(first), read_results(second), across=across)
    if not as_json:
        print_table(CHANGE_COLUMNS, change_rows(changes))
        return
    print_json({
        "first": str(first),
        "second": str(second),
        "changes": [
            {"layers": c.first.layers, "tasks": c.first.tasks, "target": c.first.target, "verdict": c.verdict,
             "added": [c.first.added, c.second.added], "ratio": to_plain(c.ratio)}
            for c in changes
        ],
    })  # fmt: skip


@click.command()
@network_options
@targets_option
@click.option(
    "--span", metavar="N|A-B", help="All runs of so many consecutive blocks; default without --layers: 1-3."
)
@click.option("--layers", "forks", multiple=True, metavar="LAYERS", help="A fork, as in 2,14; repeatable.")
@click.option(
    "--tasks",
    default="1",
    show_default=True,
    metavar="K,...",
    help="So many tasks on each fork, as in 1,2,8.",
)
@classes_option
@prune_candidates_options
@build_options
@protocol_options
@click.option("--keep", is_flag=True, help="Keep each candidate's bundle in RUN/bundles.")
@click.option("-o", "--out", "run", required=True, type=click.Path(path_type=Path), metavar="RUN",
              help="The run's folder; a run that was interrupted goes on where it stopped.")  # fmt: skip
@json_option
def sweep(
    targets: tuple[str, ...],
    span: str | None,
    forks: tuple[str, ...],
    tasks: str,
    classes: int | None,
    batch: str,
    merge: Any,
    lowering: Any,
    hot: bool,
    keep: bool,
    run: Path,
    as_json: bool,
    name: str,
    seconds: float | None,
    precision: float | None,
    **network: Any,
) -> None:
    """Time every candidate fork of a model on targets.

    Each candidate is exported, compiled, checked against its stand-alone models and timed against the base alone.
    Results are kept in RUN/results.jsonl as they come.
    """
    from ..build import BuildOptions, parse_batch
    from ..results import to_document
    from ..sweep import SweepOptions, candidates
    from ..sweep import sweep as measure_all
    from ..targets import load_target

    how = SweepOptions(
        BuildOptions(parse_batch(batch), merge, lowering), read_protocol(name, seconds, precision), hot, keep
    )
    recipes, counts = [load_target(each) for each in targets], read_counts(tasks)
    prunings = read_prunings(network) or (None,)
    backbone = read_backbone(**network)
    lists = [read_layers(each, backbone) for each in forks]
    blocks = len(backbone.blocks)
    chosen = candidates(
        blocks,
        None if lists and span is None else read_span(span, blocks),
        lists,
        counts,
        prunings,
        classes,
    )
    messages.print(f"{len(chosen)} candidates on {', '.join(targets)}, to {run}")
    start, fresh = time.monotonic(), list[float]()
    with bar("sweep") as tick, redirect_stdout(sys.stderr):
        results = measure_all(backbone, chosen, recipes, run, how, told=sweep_teller(tick, fresh))
    _summarise(results, fresh, time.monotonic() - start)
    if as_json:
        print_json({"run": str(run), "results": [to_document(result) for result in results]})
    else:
        _print(results)


def _summarise(results: Sequence[Result], fresh: Sequence[float], seconds: float) -> None:
    """Where the time went, and whether the machine was quiet enough; `fresh`: seconds of measuring just now."""
    messages.print(
        f"{len(fresh)} measured now in {seconds:.0f} s, of which {sum(fresh):.0f} s were measuring"
    )
    noisy = [result for result in results if result.warnings]
    if noisy:
        first = f"{noisy[0].fork} on {noisy[0].target}: {noisy[0].warnings[0]}"
        messages.print(f"warning: {len(noisy)} of {len(results)} results are doubtful, as {first}")


def sweep_teller(tick: Callable[[str, float, float], None], fresh: list[float]) -> Callable[[Step], None]:
    """Says what happens to each candidate; `fresh` gets the seconds that each took to measure."""

    def told(step: Step) -> None:
        where, left = f"{step.candidate} on {step.target}", time_left(step.seconds_left)
        tick(f"{where}, {left}", step.done, step.total)
        if step.outcome is None:
            return
        messages.print(f"[{step.done}/{step.total}] {where}: {_outcome(step.outcome)}, {left}")
        if not isinstance(step.outcome, SubtuneError):
            fresh.append(step.outcome.conditions["seconds"])

    return told


def _outcome(outcome: Result | SubtuneError) -> str:
    if isinstance(outcome, SubtuneError):
        return f"failed: {outcome.message}"
    low, high = outcome.ratio.low - 1, outcome.ratio.high - 1
    return f"{outcome.added:+.1%} ({low:+.1%} to {high:+.1%})"


def read_counts(text: str, what: str = "tasks") -> tuple[int, ...]:
    """`"1,2,8"`, as it was given with `--what`. Raises InputError."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and len(word) < 4 and 1 <= int(word) <= 256 for word in words):
        raise InputError(
            f"{what} {text!r} is no list of counts", f"give 1 to 256 each, as in --{what} 1,2,4,8"
        )
    return tuple(map(int, words))


@click.command("results")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@click.option("--format", "form", type=click.Choice(["table", "markdown", "csv", "json"]), default="table",
              show_default=True, help="CSV and JSON have times in seconds and sizes in bytes.")  # fmt: skip
@click.option("--across", is_flag=True, help="Show them together although host, versions or protocol differ.")
def show_results(paths: tuple[Path, ...], form: str, across: bool) -> None:
    """Results of sweeps, benched bundles, or .jsonl files."""
    from ..result_tables import COLUMNS, markdown, rows, to_csv
    from ..results import check_comparable, read_results, to_document

    results = [result for path in paths for result in read_results(path)]
    if not results:
        raise InputError(f"{paths[0]} has no results yet", "measure first: subtune-deploy bench or sweep")
    if not across:
        check_comparable(results)
    if form == "json":
        print_json({"results": [to_document(result) for result in results]})
    elif form == "csv":
        click.echo(to_csv(results), nl=False)
    elif form == "markdown":
        click.echo(markdown(COLUMNS, rows(results)), nl=False)
    else:
        _print(results)


def _print(results: Sequence[Result]) -> None:
    from ..result_tables import COLUMNS, rows

    print_table(tuple(COLUMNS), rows(results))


COMMANDS = (bench, sweep, show_results)
