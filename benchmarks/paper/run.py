"""A table or figure of the paper (arXiv 2302.06354), made again.

    python benchmarks/paper/run.py figure4 --reduced -o benchmarks/results/paper
    python benchmarks/paper/run.py figure4 --set device=cuda -o DIR

--reduced: EfficientNet-Lite0 and digits instead of the paper's networks and data; needs neither GPU nor network.
DIR gets NAME.md, pictures and JSON documents; DIR/runs keeps what is done, and the same command goes on there.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
from making import make
from recipes import Recipe, names, read_recipe, read_values
from showing import draw, file_name, page

from subtune_deploy.documents import write_document
from subtune_deploy.errors import SubtuneError
from subtune_deploy.executors import open_executor

OUT = Path("benchmarks/results/paper")


def main() -> None:
    """The command, with errors of one line."""
    try:
        command(standalone_mode=False)
    except SubtuneError as error:
        click.echo(f"error: {error.message}\nhint: {error.hint}", err=True)
        sys.exit(error.exit_status)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)


@click.command()
@click.argument("wanted", nargs=-1, metavar="[NAME]...")
@click.option("--reduced", is_flag=True, help="With what is at hand offline.")
@click.option("--set", "values", multiple=True, metavar="KEY=VALUE", help="Of every run, as in data=photos/.")
@click.option("--executor", "where", default="here", help="here, processes:N or ray[:ADDRESS].")
@click.option("-o", "--out", type=click.Path(path_type=Path), default=OUT, show_default=True)
def command(wanted: tuple[str, ...], reduced: bool, values: tuple[str, ...], where: str, out: Path) -> None:
    """Make tables and figures; without names, list them."""
    if not wanted:
        for name in names():
            click.echo(f"{name:15} {read_recipe(name).title}")
        return
    given = read_values(values)
    for name, recipe in {name: read_recipe(name) for name in wanted}.items():
        words = [name, *(["--reduced"] if reduced else []), *(f"--set {each}" for each in values)]
        reproduce(
            name, recipe, out, where, reduced, given, f"python benchmarks/paper/run.py {' '.join(words)}"
        )


def reproduce(
    name: str, recipe: Recipe, out: Path, where: str, reduced: bool, given: dict[str, Any], command: str
) -> None:
    """Train, write, draw. Raises as `make` does."""
    if recipe.needs and not reduced:
        say(f"needs: {recipe.needs}")
    runs = recipe.runs(reduced, given)
    with open_executor(where) as executor:
        documents = make(runs, out / "runs" / name, executor, say)
    for run, document in documents.items():
        write_document(out / f"{file_name(name, run)}.json", document)
    pictures = draw(name, recipe, documents, out)
    text = page(recipe, command, documents, pictures, reduced)
    (out / f"{name}.md").write_text(text, encoding="utf-8")
    click.echo(text)


def say(text: str) -> None:
    """What goes on is no result."""
    click.echo(text, err=True)


if __name__ == "__main__":
    main()
