"""What commands of many trainings share: their options, where they run, and what they leave."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from ..errors import SubtuneError
from .common import Finite, bar, json_option, messages, options, print_json, print_table, time_left
from .tuning import DATA, read_config, read_data, read_pretrained

if TYPE_CHECKING:
    from ..executors import Executor
    from ..tuning.documents import About
    from ..tuning.study import Step, Study
    from ..tuning.tables import Table

Tick: TypeAlias = Callable[[str, float, float], None]

PICTURES = (".svg", ".png", ".pdf")

executor_options = options(
    click.option(
        "--executor", "where", default="here", show_default=True, metavar="here|processes:N|ray[:ADDRESS]",
        help="Where trainings run; with equal --cpus results are the same.",
    ),
    click.option(
        "--cpus", type=Finite(0, min_open=True), show_default="1; here all that PyTorch is set to",
        help="CPUs, and threads, of each training; accuracies depend a little on their number.",
    ),
    click.option(
        "--gpus", type=Finite(0), default=0, show_default=True, help="GPUs of each training on Ray."
    ),
)  # fmt: skip
"""Where trainings run."""

study_options = options(
    click.option(
        "--seeds", "count", type=click.IntRange(1), default=3, show_default=True,
        help="Trainings of each fork; they have the seeds from --seed on.",
    ),
    executor_options,
    click.option(
        "-o", "--out", type=click.Path(path_type=Path), required=True, metavar="FILE",
        help="FILE.json, with a picture beside it. FILE.run keeps what is done: the same command goes on there.",
    ),
    json_option,
)  # fmt: skip
"""Many trainings, and what is left of them."""


@dataclass(frozen=True)
class Trainings:
    """What `study_options` gave."""

    count: int
    where: str
    cpus: float | None
    gpus: float
    out: Path
    as_json: bool

    @property
    def stem(self) -> Path:
        """`x`, `x.json` and `x.png` mean the same, but for the kind of picture."""
        return self.out.with_suffix("") if self.out.suffix in (".json", *PICTURES) else self.out

    @property
    def document(self) -> Path:
        """The JSON file."""
        return Path(f"{self.stem}.json")

    @property
    def picture(self) -> Path:
        """SVG where no other kind was asked for."""
        return Path(f"{self.stem}{self.out.suffix if self.out.suffix in PICTURES else '.svg'}")

    @property
    def run(self) -> Path:
        """The folder that keeps what is done."""
        return Path(f"{self.stem}.run")


def read_trainings(values: dict[str, Any]) -> Trainings:
    """Taken out of a command's arguments. Raises CheckpointError for a place that cannot be written to."""
    from ..checkpoint import check_writable

    found = Trainings(**{name: values.pop(name) for name in Trainings.__dataclass_fields__})
    check_writable(found.document)
    return found


def read_study(values: dict[str, Any], folds: int = 0) -> tuple[Study, str]:
    """What all trials share, and how its data are called, by all that is left of a command's arguments."""
    from ..tuning.study import Study

    config = read_config(values)
    data = {key: values.pop(key) for key in DATA}
    source = " ".join(filter(None, (data["source"], data["corruption"])))
    backbone = read_pretrained(values)
    return Study(backbone, read_data(data, config.seed), config, folds), source


def seeds_of(study: Study, trainings: Trainings) -> tuple[int, ...]:
    """From that of the settings on."""
    return tuple(range(study.config.seed, study.config.seed + trainings.count))


@contextmanager
def running(title: str, trainings: Trainings) -> Iterator[tuple[Executor, Tick]]:
    """Where trainings run, and their bar. What they print is no result: to stderr."""
    from ..executors import open_executor

    opened = open_executor(trainings.where, cpus=trainings.cpus, gpus=trainings.gpus)
    with redirect_stdout(sys.stderr), bar(title) as tick, opened as executor:
        yield executor, tick


def teller(tick: Tick) -> Callable[[Step], None]:
    """A line for each trial that has ended."""

    def told(step: Step) -> None:
        left = time_left(step.seconds_left)
        tick(left, step.done, step.total)
        for result in step.results:
            outcome = f"failed: {result.failure}" if result.failure else f"{result.accuracy:.1%}"
            messages.print(f"[{step.done}/{step.total}] {result.trial}: {outcome}, {left}")

    return told


def leave(
    trainings: Trainings,
    document: About,
    draw: Callable[[Path], None],
    table: Table,
    lines: Iterable[str] = (),
) -> None:
    """Write the document and its picture; show the table with `lines` below, or the document as JSON."""
    from ..documents import to_document, write_document

    write_document(trainings.document, document)
    messages.print(f"document: {trainings.document}")
    try:
        draw(trainings.picture)
        messages.print(f"picture: {trainings.picture}")
    except SubtuneError as error:  # hours of training are not lost for want of a picture
        messages.print(f"no picture: {error.message}; {error.hint}")
    if trainings.as_json:
        print_json(to_document(document))
    else:
        print_table(*table)
        for line in lines:
            click.echo(line)
