"""Commands on bundles: compile, verify, bench, run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import BundleError, Unavailable
from .common import bar, bundle_argument, json_option, messages, print_json, print_table, status

if TYPE_CHECKING:
    from ..bundle import Bundle


@click.command("compile")
@bundle_argument
@click.option(
    "--target",
    "targets",
    multiple=True,
    default=("cpu",),
    show_default=True,
    metavar="NAME",
    help="A recipe's name, or its file; repeatable.",
)
def compile_(folder: Path, targets: tuple[str, ...]) -> None:
    """Engines for targets, kept if every task answers rightly."""
    from ..backends import get_backend
    from ..build import compile_bundle
    from ..bundle import open_bundle
    from ..targets import load_target

    recipes = [load_target(name) for name in targets]
    bundle = open_bundle(folder)
    for recipe in recipes:
        get_backend(recipe.backend)  # told before the first engine is built, not between two
    for recipe in recipes:
        with status(f"compiling for {recipe.name}"):
            bundle = compile_bundle(bundle, recipe)
        click.echo(f"engine {recipe.name}:")
        _print_parity(bundle, recipe.name)
    click.echo(f"bundle: {folder}")


def _print_parity(bundle: Bundle, engine: str) -> None:
    print_table(
        ("output", "inputs", "against", "relative error", "same class", "bit for bit"),
        (
            (
                f["task"],
                f["inputs"],
                f["against"],
                f"{f['error']:.1e}",
                f"{f['agreeing']:.0%}",
                _yes(f["identical"]),
            )
            for f in bundle.manifest.parity
            if f.get("engine") == engine
        ),
    )


def _yes(fact: bool) -> str:
    return "yes" if fact else "no"


@click.command()
@bundle_argument
def verify(folder: Path) -> None:
    """Hashes of all files, then every engine's answers again."""
    from ..build import check_engine, check_graph
    from ..bundle import engine_target, open_bundle

    bundle = open_bundle(folder)
    bundle.verify_hashes()
    click.echo(f"{len(bundle.manifest.files)} files are as they were made")
    _echo_parity("graph.onnx", check_graph(bundle.path, bundle.manifest.batch))
    away = {}
    for name in bundle.manifest.engines:
        try:
            _echo_parity(name, check_engine(bundle, engine_target(bundle, name), bundle.path / name))
        except Unavailable as error:
            away[name] = error
            messages.print(f"{name}: not checked, {error.message}")
    if away:
        hints = dict.fromkeys(error.hint for error in away.values())
        raise Unavailable(f"not checked here: {', '.join(away)}", "; ".join(hints))


def _echo_parity(name: str, figures: Sequence[Mapping[str, Any]]) -> None:
    worst = max(figure["error"] for figure in figures)
    click.echo(f"{name}: every task answers as its stand-alone model, relative error at most {worst:.1e}")


@click.command()
@bundle_argument
@click.option("--target", metavar="NAME", help="One engine of the bundle; default: all.")
@click.option(
    "--seconds", type=click.FloatRange(0.1), default=20.0, show_default=True, help="At most, per target."
)
@json_option
def bench(folder: Path, target: str | None, seconds: float, as_json: bool) -> None:
    """Median latency, and what is added to the base alone.

    The base's own engine and the engine with all tasks run by turns in one process, so that both meet the same
    disturbances. The samples are kept in the bundle.
    """
    from ..bundle import open_bundle, save_manifest
    from ..environment import describe, noise_warnings

    bundle = open_bundle(folder)
    host = describe()
    for warning in noise_warnings(host):
        messages.print(f"warning: {warning}")
    records = []
    for name in _compiled(bundle, target):
        records.append(_measured(bundle, name, seconds, host))
        for warning in noise_warnings({}, records[-1]["samples"]["base"]):
            messages.print(f"warning: {name}: {warning}")
    if as_json:
        print_json({"bundle": str(folder), "measurements": records})
    else:
        _print_latencies(records)
    kept = [m for m in bundle.manifest.measurements if m.get("engine") not in {r["engine"] for r in records}]
    save_manifest(bundle.path, dataclasses.replace(bundle.manifest, measurements=(*kept, *records)))


def _print_latencies(records: Iterable[Mapping[str, Any]]) -> None:
    print_table(
        ("engine", "base", "all tasks", "added", "95 % interval", "pairs"),
        (
            (
                record["engine"],
                _milliseconds(record["base_seconds"]),
                _milliseconds(record["graph_seconds"]),
                f"{record['ratio'] - 1:+.1%}",
                f"{record['low'] - 1:+.1%} to {record['high'] - 1:+.1%}",
                len(record["samples"]["base"]),
            )
            for record in records
        ),
    )


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.{2 if seconds >= 1e-3 else 4}f} ms"


def _compiled(bundle: Bundle, target: str | None) -> list[str]:
    names = [target] if target else list(bundle.manifest.engines)
    if not names:
        raise BundleError(
            f"{bundle.path} has no engine yet",
            f"compile one: subtune-deploy compile {bundle.path} --target cpu",
        )
    return names


def _measured(bundle: Bundle, name: str, seconds: float, host: dict[str, Any]) -> dict[str, Any]:
    from ..measure import measure_pair
    from ..parity import References
    from ..runtime import load_engine
    from ..stats import median

    lone, graph = (load_engine(bundle, name, role) for role in ("base", "graph"))
    size = bundle.manifest.batch or 1
    inputs = References.load(bundle.path).inputs
    batches = [inputs[[(start + i) % len(inputs) for i in range(size)]] for start in range(len(inputs))]
    with bar(f"timing {name}") as tick:
        found = measure_pair(lone, graph, batches, seconds=seconds, progress=lambda part: tick("", part, 1.0))
    if not found.settled:
        messages.print(
            f"warning: {name}: the interval is wider than 1 %; quieten the machine or give --seconds more"
        )
    return {
        "engine": name,
        "unit": "s",
        "ratio": found.ratio.value,
        "low": found.ratio.low,
        "high": found.ratio.high,
        "base_seconds": median(found.base),
        "graph_seconds": median(found.candidate),
        "batch": size,
        "host": host,
        "samples": {"base": list(found.base), "graph": list(found.candidate)},
    }


@click.command()
@bundle_argument
@click.argument("pictures", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="PICTURE...")
@click.option("--target", metavar="NAME", help="An engine of the bundle; default: its first.")
@json_option
def run(folder: Path, pictures: tuple[Path, ...], target: str | None, as_json: bool) -> None:
    """Every task's answer for real pictures."""
    from ..bundle import open_bundle
    from ..runtime import answers, load_engine

    bundle = open_bundle(folder)
    name = _compiled(bundle, target)[0]
    found = answers(load_engine(bundle, name), bundle.manifest, pictures)
    if as_json:
        rows = [
            {"picture": str(path), "answers": {task: _guesses(each) for task, each in tasks.items()}}
            for path, tasks in zip(pictures, found, strict=True)
        ]
        print_json({"bundle": str(folder), "engine": name, "pictures": rows})
        return
    messages.print(f"engine {name}")
    print_table(
        ("picture", "task", "answer", "probability"),
        (
            (path.name, task, guesses[0][0], f"{guesses[0][1]:.1%}")
            for path, tasks in zip(pictures, found, strict=True)
            for task, guesses in tasks.items()
        ),
    )


def _guesses(guesses: Iterable[tuple[str | int, float]]) -> list[dict[str, str | int | float]]:
    return [{"class": label, "probability": probability} for label, probability in guesses]


COMMANDS = (compile_, verify, bench, run)
