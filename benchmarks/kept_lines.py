"""The lines of results that a benchmark keeps and goes on from, and the tables that are made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from subtune_deploy.conditions import noise_warnings, watch
from subtune_deploy.environment import describe, differences
from subtune_deploy.lines import read_lines
from subtune_deploy.measure import Measurement

Line = dict[str, Any]


def kept(path: Path) -> list[Line]:
    """All of them."""
    return [line for _, line in read_lines(path)] if path.exists() else []  # type: ignore[misc]


def taken(measuring: Callable[[], Measurement]) -> Line:
    """What a line keeps of a measurement: raw samples by engine in seconds, how, where, and what may have disturbed it.

    The first engine is the one to look at for noise.
    """
    host = describe()
    with watch() as seen:
        found = measuring()
    samples = {name: [round(each, 9) for each in seconds] for name, seconds in found.samples.items()}
    return {
        "samples": samples,
        "loads": found.loads,
        "settled": found.settled,
        "protocol": asdict(found.protocol),
        "warnings": noise_warnings(host, next(iter(samples.values())), seen.conditions),
        "host": host,
    }


def host_of(line: Line) -> str:
    """`2 cores of AMD EPYC 25/17/1`; the numbers are family, model and stepping."""
    return "{cores} cores of {cpu} {stepping}".format(**line["host"])


def compilers_of(line: Line) -> str:
    """`onnxruntime 1.32.0 and openvino 2026.4.1`"""
    found = line["host"]["libraries"]
    return " and ".join(f"{name} {found.get(name)}" for name in ("onnxruntime", "openvino"))


def check_host(lines: list[Line]) -> None:
    """Lines of two hosts do not belong in one table."""
    if lines and (found := differences(lines[0]["host"], describe())):
        raise click.ClickException(
            f"the lines that are kept were measured elsewhere: {'; '.join(found)}: move them away"
        )


def write_tables(path: Path, summary: Iterable[str]) -> None:
    """As Markdown beside the lines, and to whoever asked."""
    if not kept(path):
        raise click.ClickException(f"{path} has no line yet: run without --tables")
    path.with_suffix(".md").write_text("".join(summary))
    click.echo(path.with_suffix(".md").read_text())
