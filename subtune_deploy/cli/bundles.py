"""Commands on bundles: compile, verify, run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import Unavailable
from .common import (
    bundle_argument,
    compiled,
    json_option,
    messages,
    print_json,
    print_table,
    status,
    targets_option,
)

if TYPE_CHECKING:
    from ..bundle import Bundle


@click.command("compile")
@bundle_argument
@targets_option
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
@click.argument("pictures", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="PICTURE...")
@click.option("--target", metavar="NAME", help="An engine of the bundle; default: its first.")
@json_option
def run(folder: Path, pictures: tuple[Path, ...], target: str | None, as_json: bool) -> None:
    """Every task's answer for real pictures."""
    from ..bundle import open_bundle
    from ..runtime import answers, load_engine

    bundle = open_bundle(folder)
    name = compiled(bundle, target)[0]
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


COMMANDS = (compile_, verify, run)
