"""Commands on bundles: compile, verify, bench, run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import BundleError, Unavailable
from .common import bar, bundle_argument, json_option, messages, print_json, print_table, target_option

if TYPE_CHECKING:
    from ..bundle import Bundle


@click.command("compile")
@bundle_argument
@click.option(
    "--target", "targets", multiple=True, default=("cpu",), show_default=True, help="A recipe; repeatable."
)
def compile_(folder: Path, targets: tuple[str, ...]) -> None:
    """Engines for targets, each checked against every task's stand-alone model before it is kept."""
    from ..build import compile_bundle
    from ..bundle import open_bundle
    from ..targets import load_target

    recipes = [load_target(name) for name in targets]
    bundle = open_bundle(folder)
    for recipe in recipes:
        with messages.status(f"compiling for {recipe.name}"):
            bundle = compile_bundle(bundle, recipe)
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
        title=f"engine {engine}",
    )


def _yes(fact: bool) -> str:
    return "yes" if fact else "no"


@click.command()
@bundle_argument
def verify(folder: Path) -> None:
    """Hashes of all files, then every engine's parity again, on this machine."""
    from ..build import check_engine, check_graph
    from ..bundle import engine_target, open_bundle

    bundle = open_bundle(folder)
    bundle.verify_hashes()
    click.echo(f"{len(bundle.manifest.files)} files are as they were made")
    check_graph(bundle.path, bundle.manifest.batch)
    click.echo("graph.onnx: every task answers as its stand-alone model")
    away = []
    for name in bundle.manifest.engines:
        try:
            check_engine(bundle, engine_target(bundle, name), bundle.path / name)
            click.echo(f"{name}: every task answers as its stand-alone model")
        except Unavailable as error:
            away.append(name)
            messages.print(f"{name}: not checked, {error.message} ({error.hint})")
    if away:
        raise Unavailable(
            f"not checked here: {', '.join(away)}", "verify the bundle on a device that has them"
        )


@click.command()
@bundle_argument
@target_option
@click.option(
    "--seconds", type=click.FloatRange(0.1), default=20.0, show_default=True, help="At most, per target."
)
@json_option
def bench(folder: Path, target: str | None, seconds: float, as_json: bool) -> None:
    """Median latency, and latency added to the base engine, both engines interleaved in one process."""
    from ..bundle import open_bundle, save_manifest
    from ..environment import describe, noise_warnings

    bundle = open_bundle(folder)
    host = describe()
    records = []
    for name in _compiled(bundle, target):
        records.append(_measured(bundle, name, seconds, host))
        for warning in noise_warnings(host, records[-1]["samples"]["base"]):
            messages.print(f"warning: {warning}")
    kept = [m for m in bundle.manifest.measurements if m.get("engine") not in {r["engine"] for r in records}]
    save_manifest(bundle.path, dataclasses.replace(bundle.manifest, measurements=(*kept, *records)))
    if as_json:
        print_json({"bundle": str(folder), "measurements": records})
        return
    print_table(
        ("engine", "base", "all tasks", "added", "95 % interval", "pairs"),
        (
            (
                record["engine"],
                f"{record['base_seconds'] * 1e3:.2f} ms",
                f"{record['graph_seconds'] * 1e3:.2f} ms",
                f"{record['ratio'] - 1:+.1%}",
                f"{record['low'] - 1:+.1%} to {record['high'] - 1:+.1%}",
                len(record["samples"]["base"]),
            )
            for record in records
        ),
    )


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
@target_option
@json_option
def run(folder: Path, pictures: tuple[Path, ...], target: str | None, as_json: bool) -> None:
    """Every task's answer for real pictures."""
    from ..bundle import open_bundle
    from ..runtime import answers, load_engine

    bundle = open_bundle(folder)
    name = _compiled(bundle, target)[0]
    found = answers(load_engine(bundle, name), bundle.manifest, pictures)
    if as_json:
        rows = [{"picture": str(p), "answers": tasks} for p, tasks in zip(pictures, found, strict=True)]
        print_json({"bundle": str(folder), "engine": name, "pictures": rows})
        return
    print_table(
        ("picture", "task", "answer", "probability"),
        (
            (path.name, task, guesses[0][0], f"{guesses[0][1]:.1%}")
            for path, tasks in zip(pictures, found, strict=True)
            for task, guesses in tasks.items()
        ),
    )


COMMANDS = (compile_, verify, bench, run)
