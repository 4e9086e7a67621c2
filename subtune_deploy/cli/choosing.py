"""Commands that choose: pareto."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import json_option, messages, parse_percent, print_json, print_table

if TYPE_CHECKING:
    from ..pareto import Point


@click.command()
@click.option(
    "--accuracy",
    "document",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What profile left.",
)
@click.option(
    "--latency",
    "run",
    required=True,
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="A sweep of the same model.",
)
@click.option("--max-added", metavar="PERCENT", help="Added latency at most, as in 10%.")
@click.option("--min-accuracy", metavar="PERCENT", help="Accuracy at least, as in 95%.")
@click.option(
    "--tasks", type=click.IntRange(1), default=1, show_default=True, help="Latencies of so many tasks."
)
@click.option("--target", metavar="NAME", help="Which target of RUN; default: its only one.")
@click.option(
    "--picture", type=click.Path(path_type=Path), metavar="FILE", help="Also draw it: .svg, .png or .pdf."
)
@json_option
def pareto(
    document: Path, run: Path, max_added: str | None, min_accuracy: str | None, tasks: int, target: str | None,
    picture: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Which fork to deploy: accuracy against added latency.

    The forks that no other beats in both, the knee, and the choice: within --max-added the most accurate, with
    --min-accuracy alone the cheapest, without limits the knee.
    """
    from ..documents import read_document
    from ..pareto import choose, front, knee, open_rivals
    from ..tradeoff import draw_tradeoff, join, latencies
    from ..tuning.documents import Profile

    limits = {
        "max_added": parse_percent("--max-added", max_added),
        "min_accuracy": parse_percent("--min-accuracy", min_accuracy),
    }
    profile = read_document(Profile, document)
    points, lacking = join(profile, latencies(run, profile, tasks=tasks, target=target))
    chosen, best = choose(points, **limits), front(points)
    if lacking:
        messages.print(f"not timed, and left out: {', '.join(lacking)}")
    if picture:
        draw_tradeoff(profile, points, picture, chosen)
    found = {
        "chosen": chosen,
        "knee": knee(best),
        "front": best,
        "open": open_rivals(points),
        "points": points,
    }
    if as_json:
        print_json({name: _plain(each) for name, each in found.items()} | {"lacking": list(lacking)})
    else:
        _print(found)


def _print(found: dict[str, Any]) -> None:
    from ..tradeoff import told

    print_table(("not dominated", "accuracy", "added latency"), map(told, found["front"]))
    for fork, rivals in found["open"].items():
        messages.print(f"{fork} is beaten by {', '.join(rivals)}, but not beyond their intervals")
    if found["knee"]:
        click.echo(f"knee: {found['knee'].fork}")
    click.echo(f"chosen: {_sentence(found['chosen'])}")


def _sentence(point: Point) -> str:
    return f"{point.fork}, accuracy {point.accuracy.value:.1%}, added latency {point.added.value:.1%}"


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value


COMMANDS = (pareto,)
