"""Commands on bundles: compile, verify, run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import Unavailable
from .common import (
    UNASKED,
    bar,
    bundle_argument,
    calibrate_option,
    json_option,
    key_option,
    messages,
    print_json,
    print_table,
    read_inputs,
    targets_option,
)
from .engine_search import read_search, search_options

if TYPE_CHECKING:
    from ..bundle import Bundle, Checked

NOT_RUN = (
    "not yet run on hardware: its device is not here; checked is what the compiler was given, and its file"
)

NOT_COMPARED = "no answers were compared"


@click.command("compile")
@bundle_argument
@targets_option
@calibrate_option
@search_options
def compile_(folder: Path, targets: tuple[str, ...], calibrate: Path | None, **asked: Any) -> None:
    """Engines for targets, kept if every task answers rightly.

    With --merge auto and --lowering auto, plans are compiled and run by turns on each target; one that is shown to be
    faster than the exported one is taken, and kept with what it was measured against; with --settings auto, so are
    threads and options of the backend; with --precision auto, precisions whose answers stay near those of fp32, in
    int8 with the units that it costs most left in fp32.
    """
    from ..backends import get_backend
    from ..bundle import open_bundle
    from ..compiling import compile_bundle
    from ..manifest import SIGN_AGAIN, SIGNATURE
    from ..targets import load_target

    recipes = [load_target(name) for name in targets]
    bundle = open_bundle(folder)
    for recipe in recipes:
        get_backend(recipe.backend)  # told before the first engine is built, not between two
    calibration = read_inputs(calibrate, folder)
    search = read_search(bundle, recipes, calibration, asked)
    for recipe in recipes:
        with (
            _reported(recipe.name),
            search.chosen(bundle, recipe) as chosen,
            bar(f"compiling for {recipe.name}") as tick,
        ):
            own = chosen.own
            bundle = compile_bundle(bundle, chosen.target, calibration=calibration, progress=tick, **own)
        click.echo(f"engine {recipe.name}:")
        chosen.show()
        if any(figure.get("engine") == recipe.name for figure in bundle.manifest.parity):
            _print_parity(bundle, recipe.name)
        else:
            click.echo(NOT_COMPARED)
        if not bundle.manifest.engines[recipe.name].ran:
            click.echo(NOT_RUN)
    click.echo(f"bundle: {folder}")
    if (folder / SIGNATURE).is_file():
        messages.print(SIGN_AGAIN)


@contextmanager
def _reported(target: str) -> Iterator[None]:
    """Every node that the target cannot take is named before the one line of the error, which has room for a few."""
    from ..backends.base import GraphError

    try:
        yield
    except GraphError as error:
        messages.print(f"{target} cannot take {len(error.report)} nodes of the graph:")
        for line in error.report:
            messages.print(f"  {line}")
        raise


def _print_parity(bundle: Bundle, engine: str) -> None:
    print_table(
        ("output", "inputs", "of the", "against", "relative error", "same class", "bit for bit"),
        (
            (
                f["task"],
                f["inputs"],
                f["by"],
                f["against"],
                f"{f['error']:.1e}",
                f"{f['agreeing']:.0%}",
                _yes(f["identical"]),
            )
            for f in bundle.manifest.parity
            if f.get("engine") == engine
        ),
    )


def _told(fact: object) -> str:
    """A fact on one line; what is empty is left out."""
    if isinstance(fact, Mapping):
        return ", ".join(f"{key} {_told(value)}" for key, value in fact.items() if value not in ({}, [], ()))
    if isinstance(fact, (list, tuple)):
        return " ".join(map(str, fact))
    if isinstance(fact, bool):
        return _yes(fact)
    return f"{fact:,}" if isinstance(fact, int) else str(fact)


def _yes(fact: bool) -> str:
    return "yes" if fact else "no"


@click.command()
@bundle_argument
@click.option(
    "--deep", is_flag=True, help="Also the networks that compilers were given, and the engines' bytes."
)
@key_option
def verify(folder: Path, deep: bool, key: Path | None) -> None:
    """Hashes of all files, then every engine's answers again."""
    from ..bundle import engine_target, open_bundle
    from ..compiling import check_engine, check_graph
    from ..manifest import SIGNATURE
    from ..runtime import check_version
    from ..signing import check_signature
    from ..spec import GRAPH

    bundle = open_bundle(folder)
    if key is not None:
        check_signature(folder, key)
        click.echo(f"signed by the owner of {key}")
    elif (folder / SIGNATURE).is_file():
        messages.print(UNASKED)
    bundle.verify_hashes()
    click.echo(f"{len(bundle.manifest.files)} files are as they were made")
    away: dict[str, Unavailable] = {}
    if GRAPH in bundle.manifest.files:  # a shipped bundle may hold engines alone
        with _noted(away, GRAPH):
            _echo_parity(GRAPH, check_graph(bundle.path, bundle.manifest.batch))
    for name in bundle.manifest.engines:
        with _noted(away, name):
            check_version(bundle, name)
            checked = check_engine(bundle, engine_target(bundle, name), bundle.path / name, deep=deep)
            if checked.figures:  # none where the parsed network has layers that cannot be executed here
                _echo_parity(name, checked.figures)
            else:
                click.echo(f"{name}: {NOT_COMPARED}")
            _echo_facts(checked)
    if away:
        hints = dict.fromkeys(error.hint for error in away.values())
        raise Unavailable(f"not checked here: {', '.join(away)}", "; ".join(hints))


@contextmanager
def _noted(away: dict[str, Unavailable], name: str) -> Iterator[None]:
    """What cannot be checked here is told, and does not keep us from the rest."""
    try:
        yield
    except Unavailable as error:
        away[name] = error
        messages.print(f"{name}: not checked, {error.message}")


def _echo_parity(name: str, figures: Sequence[Mapping[str, Any]]) -> None:
    worst = max(figure["error"] for figure in figures)
    click.echo(f"{name}: every task answers as its stand-alone model, relative error at most {worst:.1e}")


def _echo_facts(checked: Checked) -> None:
    for fact, value in checked.facts.items():
        click.echo(f"  {fact}: {_told(value)}")
    if not checked.ran:
        click.echo(f"  {NOT_RUN}")


@click.command()
@bundle_argument
@click.argument("pictures", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="PICTURE...")
@click.option("--target", metavar="NAME", help="An engine of the bundle; default: its first.")
@json_option
def run(folder: Path, pictures: tuple[Path, ...], target: str | None, as_json: bool) -> None:
    """Every task's answer for real pictures."""
    from ..runtime import Bundle

    bundle = Bundle.open(folder, target)
    found = bundle.top(pictures)
    if as_json:
        rows = [
            {"picture": str(path), "answers": {task: _guesses(each) for task, each in tasks.items()}}
            for path, tasks in zip(pictures, found, strict=True)
        ]
        print_json({"bundle": str(folder), "engine": bundle.target, "pictures": rows})
        return
    messages.print(f"engine {bundle.target}")
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
