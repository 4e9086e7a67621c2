"""SubTuning of real digits with a real backbone: which blocks, how many pictures, and does the paper hold here?

    python benchmarks/digits_study.py [--hours 1] [--executor processes:2] [--scratch FOLDER]

EfficientNet-Lite0 with its ImageNet weights learns to read digits at 64 pixels: the head alone, every single block,
three blocks with a Siamese head, everything, and what greedy selection takes; MNIST, scikit-learn's digits, and MNIST
damaged as CIFAR-10-C is. Small tables are complete first; --hours ends it between two steps, and FOLDER keeps what is
done of a step, so that the same command goes on. benchmarks/results/digits_study holds a JSON document for each step,
which is not trained again while it lies there, the pictures, and all tables in digits_study.md, which --tables makes
anew from the documents.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
from digits_tables import RESULTS, draw, read_documents, write_tables

from subtune_deploy.backbone import Backbone, trace
from subtune_deploy.data.sources import load_data
from subtune_deploy.demo import MODEL, base_checkpoint
from subtune_deploy.documents import write_document
from subtune_deploy.executors import Executor, open_executor
from subtune_deploy.models import load_model
from subtune_deploy.tuning.documents import About
from subtune_deploy.tuning.greedy import greedy
from subtune_deploy.tuning.profile import complete, profile
from subtune_deploy.tuning.settings import Fork, TrainConfig
from subtune_deploy.tuning.study import Step as Progress
from subtune_deploy.tuning.study import Study

SIZE = (3, 64, 64)
SEEDS = (0, 1, 2)
FOLDS = 5
EPOCHS = {100: 20, 500: 8, 1000: 5, 2500: 3}
"""By number of training pictures: few pictures need more. The rates and the decay are the paper's; of its batches of
256 there would be too few."""
BATCH = 32
SETS = {"digits": (2500, 1000), "sklearn-digits": (1000, 500)}
"""Pictures to draw from and to test on."""
SIAMESE = (6, 9, 13)


@dataclass(frozen=True)
class Step:
    """One document: a profile, or with `select` a greedy selection."""

    source: str
    examples: int
    corruption: str | None = None
    select: bool = False

    @property
    def name(self) -> str:
        """`digits_fog-5_500_greedy`"""
        words = (self.source, (self.corruption or "").replace(":", "-"), str(self.examples))
        return "_".join(filter(None, (*words, "greedy" if self.select else "")))


DAMAGES = ("gaussian_noise:5", "fog:5", "zoom_blur:5")
STEPS = (
    *(Step("digits", examples) for examples in (100, 500, 1000)),
    Step("digits", 100, select=True),
    *(Step("sklearn-digits", examples) for examples in (100, 500)),
    *(Step("digits", 500, each) for each in DAMAGES),
    Step("digits", 500, select=True),
    Step("digits", 2500),
    *(Step("digits", 100, each, select=True) for each in DAMAGES[:2]),
    *(Step("digits", examples, each) for examples in (100, 1000) for each in DAMAGES),
    Step("sklearn-digits", 100, select=True),
    Step("sklearn-digits", 1000),
    Step("digits", 1000, select=True),
    Step("digits", 100, DAMAGES[2], select=True),
    *(Step("digits", 2500, each) for each in DAMAGES),
    Step("digits", 2500, select=True),
    *(Step("sklearn-digits", examples, select=True) for examples in (500, 1000)),
    *(Step("digits", examples, each, select=True) for examples in (500, 1000, 2500) for each in DAMAGES),
)
"""What tells most and takes least first."""


@click.command()
@click.option(
    "--hours", type=click.FloatRange(0), default=1.0, show_default=True, help="No step begins later."
)
@click.option("--executor", "where", default="processes:2", show_default=True)
@click.option("--scratch", type=click.Path(path_type=Path), default="runs/digits_study", show_default=True)
@click.option("--tables", is_flag=True, help="Train nothing.")
def main(hours: float, where: str, scratch: Path, tables: bool) -> None:
    """Train what is missing, write."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    if not tables:
        scratch.mkdir(parents=True, exist_ok=True)
        with open_executor(where) as executor:
            for name, document in trained(scratch, hours, executor):
                write_document(RESULTS / f"{name}.json", document)
    documents = read_documents(step.name for step in STEPS)
    if not documents.sources:
        raise click.ClickException(f"no document lies in {RESULTS}: run without --tables, for some --hours")
    draw(documents)
    click.echo(write_tables(documents, SEEDS))


def trained(scratch: Path, hours: float, executor: Executor) -> Iterator[tuple[str, About]]:
    """Step by step, until the time is up."""
    start = time.monotonic()
    backbone = trace(load_model(MODEL, str(base_checkpoint(scratch / "base.safetensors")), SIZE))
    left = [step for step in STEPS if not (RESULTS / f"{step.name}.json").exists()]
    for number, step in enumerate(left, start=1):
        hours_gone = (time.monotonic() - start) / 3600
        if hours_gone >= hours:
            click.echo(f"the time is up before {step.name}, step {number} of {len(left)}", err=True)
            return
        click.echo(f"{60 * hours_gone:.1f} min: {step.name}, step {number} of {len(left)}", err=True)
        yield step.name, document(step, backbone, scratch / step.name, executor)


def document(step: Step, backbone: Backbone, run: Path, executor: Executor) -> About:
    """What comes of one step."""
    train, test = SETS[step.source]
    data = load_data(step.source, train=train, test=test, corruption=step.corruption)
    config = TrainConfig(epochs=EPOCHS[step.examples], batch_size=BATCH)
    study = Study(backbone, data, config, FOLDS if step.select else 0)
    source = " ".join(filter(None, (step.source, step.corruption)))
    how = {"seeds": SEEDS, "examples": step.examples, "source": source, "run": run, "executor": executor}
    if step.select:
        return greedy(study, told=tell, say=click.echo, **how)
    chosen = forks(len(backbone.blocks))
    return complete(profile(study, chosen, told=tell, say=click.echo, **how), chosen)


def forks(blocks: int) -> tuple[Fork, ...]:
    """The head alone, each block, some of them Siamese, everything."""
    singles = [Fork((block,)) for block in range(1, blocks + 1)]
    return (Fork(()), *singles, *(Fork((block,), siamese=True) for block in SIAMESE), Fork("all"))


def tell(step: Progress) -> None:
    """How far a step has come."""
    if step.results:
        click.echo(f"  {step.done} of {step.total}, {(step.seconds_left or 0) / 60:.1f} min left", err=True)


if __name__ == "__main__":
    main()
