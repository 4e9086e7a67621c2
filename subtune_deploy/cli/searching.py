"""Commands that find out which blocks and pictures are worth it: profile, greedy, active."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import InputError
from .calibrating import calibration_options
from .common import messages, network_options, parse_percent, parse_span
from .pruning import prune_how_options, read_prunings
from .studies import Tick, leave, read_study, read_trainings, running, seeds_of, study_options, teller
from .tuning import data_options, read_fork, training_options

if TYPE_CHECKING:
    from ..tuning.active import Learnt
    from ..tuning.budget import Latency
    from ..tuning.documents import Profile
    from ..tuning.settings import Fork
    from ..tuning.study import Study

examples_option = click.option(
    "--examples",
    type=click.IntRange(2),
    help="Of the training pictures, so many, drawn by the seed; default: all.",
)


@click.command()
@network_options
@data_options
@examples_option
@click.option("--span", metavar="N|A-B", help="All runs of so many consecutive blocks; default: 1.")
@click.option("--pairs", is_flag=True, help="All pairs of blocks.")
@click.option(
    "--layers", "forks", multiple=True, metavar="LAYERS",
    help="A fork, as in 2,14; none: the head alone; all: everything; repeatable.",
)  # fmt: skip
@click.option("--siamese", is_flag=True, help="Each fork also with a head that sees the base's features.")
@click.option("--scratch", is_flag=True, help="Each fork also with its blocks begun anew.")
@click.option(
    "--prune", "prune_ratio", type=float, multiple=True, metavar="RATIO", help="Each fork also made thinner by this "
    "share; repeatable.",
)  # fmt: skip
@prune_how_options
@training_options
@study_options
def profile(
    examples: int | None, span: str | None, pairs: bool, forks: tuple[str, ...], siamese: bool, scratch: bool,
    **others: Any,
) -> None:  # fmt: skip
    """Accuracy of every candidate fork.

    Forks that see the same pictures are trained together in one pass, as many as memory takes; each result is
    that of separate training. Those that cannot be trained are left out, with exit status 1 at the end.
    """
    from ..tuning.profile import complete, forks_of
    from ..tuning.profile import profile as train_all
    from ..tuning.tables import best_told, profile_table

    trainings, prune = read_trainings(others), read_prunings(others)
    study, source = read_study(others)
    given, blocks = [read_fork(each, study.backbone) for each in forks], len(study.backbone.blocks)
    spanned = None if span is None and (given or pairs) else parse_span(span or "1", blocks)
    chosen = forks_of(
        blocks, spanned, pairs=pairs, others=given, siamese=siamese, scratch=scratch, prune=prune
    )
    chosen = _trainable(study, chosen, given)
    messages.print(f"{len(chosen)} forks, {trainings.count} seeds; what is done is kept in {trainings.run}")
    with running("profile", trainings) as (executor, tick):
        found = train_all(
            study, chosen, seeds=seeds_of(study, trainings), examples=examples, source=source, run=trainings.run,
            executor=executor, told=teller(tick), say=messages.print,
        )  # fmt: skip
    leave(trainings, found, partial(_draw, found, pairs=pairs), profile_table(found), [best_told(found)])
    complete(found, chosen)


def _trainable(study: Study, forks: Sequence[Fork], named: Sequence[Fork]) -> tuple[Fork, ...]:
    """Without those that cannot be pruned, which are told. Raises InputError for one on blocks that were named."""
    from ..tuning.profile import refusals

    refused = refusals(study, forks)
    for fork, error in refused.items():
        if fork.layers in {each.layers for each in named}:
            raise error
        messages.print(f"left out: {fork}: {error.message}")
    return tuple(fork for fork in forks if fork not in refused)


def _draw(profile: Profile, path: Path, *, pairs: bool) -> None:
    from ..tuning.figures import by_size, draw_profile, draw_pruning
    from ..tuning.maps import draw_pairs

    if by_size(profile):
        draw_pruning(profile, path)
    elif pairs:
        draw_pairs(profile, path)
    else:
        draw_profile(profile, path)


@click.command()
@network_options
@data_options
@examples_option
@click.option(
    "--folds",
    type=click.IntRange(2),
    default=5,
    show_default=True,
    help="Parts of the training pictures, of which each is held out once.",
)
@click.option(
    "--eps",
    type=float,
    default=0.001,
    show_default=True,
    help="Accuracy that a block must add; 0.001 is 0.1 %.",
)
@click.option("--max-parameters", type=int, metavar="N", help="Parameters of the fork and its head, at most.")
@click.option(
    "--latency", metavar="RUN", type=click.Path(path_type=Path), help="A sweep's folder, for --max-added."
)
@calibration_options
@click.option("--max-added", metavar="PERCENT", help="Added latency at most, as in 10%.")
@click.option("--target", metavar="NAME", help="Which target of RUN; default: its only one.")  # fmt: skip
@training_options
@study_options
def greedy(
    examples: int | None, folds: int, eps: float, max_parameters: int | None, latency: Path | None,
    calibration: Path | None, across: bool, max_added: str | None, target: str | None, **others: Any,
) -> None:  # fmt: skip
    """Greedy-SubTuning: which blocks to tune, found one after the other.

    Blocks are added while that helps in cross-validation on the training pictures, and while the fork stays within
    its budget: of added latency as --latency has measured it, or as --calibration predicts it. The fork that was
    found is then trained on all of them, and counted on the test pictures.
    """
    from ..tuning.greedy import budget_for
    from ..tuning.greedy import greedy as choose
    from ..tuning.maps import draw_greedy
    from ..tuning.tables import greedy_table, greedy_told

    trainings, limit = read_trainings(others), parse_percent("--max-added", max_added)
    _check_priced(latency, calibration, limit)
    study, source = read_study(others, folds)
    price = _price(study, latency, target, calibration, across)
    with running("greedy", trainings) as (executor, tick):
        found = choose(
            study, eps=eps, budget=budget_for(study, max_parameters, limit, price), examples=examples,
            seeds=seeds_of(study, trainings), source=source, run=trainings.run, executor=executor, told=teller(tick),
            say=messages.print,
        )  # fmt: skip
    leave(trainings, found, partial(draw_greedy, found), greedy_table(found), greedy_told(found))


def _check_priced(latency: Path | None, calibration: Path | None, limit: float | None) -> None:
    if latency and calibration:
        raise InputError("both of --latency and --calibration were given", "give one of them")
    if (latency is None and calibration is None) != (limit is None):
        raise InputError(
            "of --max-added and what it is held against one was given",
            "give a limit and a sweep's folder with --latency, or what calibrate left with --calibration; or neither",
        )


def _price(
    study: Study, latency: Path | None, target: str | None, calibration: Path | None, across: bool
) -> Latency | None:
    """Added latency of a fork of the study's task, as far as it was asked for."""
    from ..calibrating import read_calibration
    from ..tuning.budget import added_latencies, as_timed
    from ..tuning.greedy import as_predicted

    backbone, classes = study.backbone, len(study.data.train.classes)
    if latency:
        return as_timed(added_latencies(latency, backbone, target, classes))
    if calibration:
        return as_predicted(read_calibration(calibration, backbone, across=across, classes=classes)[0])
    return None


@click.command()
@network_options
@data_options
@click.option(
    "--layers", "forks", required=True, multiple=True, metavar="LAYERS",
    help="A fork, as in 7; none: the head alone; all: everything; repeatable.",
)  # fmt: skip
@click.option(
    "--schedule", default="100,500,1000,2500,5000,10000", show_default=True, metavar="N,...",
    help="How many pictures are labelled, step by step, as far as there are so many.",
)  # fmt: skip
@training_options
@study_options
def active(forks: tuple[str, ...], schedule: str, **others: Any) -> None:
    """Active learning: the pictures with the smallest margin are labelled next, against random choice.

    The training pictures are the pool. Both ways begin with the same random pictures, and every training with the
    pretrained weights.
    """
    from ..tuning.active import active as learn
    from ..tuning.figures import draw_active
    from ..tuning.tables import active_table

    trainings, sizes = read_trainings(others), _numbers(schedule)
    study, source = read_study(others)
    chosen = [read_fork(each, study.backbone) for each in forks]
    with running("active", trainings) as (executor, tick):
        found = learn(
            study, chosen, schedule=sizes, seeds=seeds_of(study, trainings), source=source, run=trainings.run,
            executor=executor, told=_teller(tick), say=messages.print,
        )  # fmt: skip
    leave(trainings, found, partial(draw_active, found), active_table(found))


def _numbers(text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words):
        raise InputError(f"schedule {text!r} is no list of numbers", "give it as in --schedule 100,500,1000")
    return tuple(map(int, words))


def _teller(tick: Tick) -> Callable[[int, int, Learnt | None], None]:
    def told(done: int, total: int, learnt: Learnt | None) -> None:
        tick("", done, total)
        if learnt is not None:
            what = f"{learnt.fork} seed {learnt.seed}, {learnt.examples} examples"
            messages.print(f"[{done}/{total}] {what}: {learnt.accuracy:.1%}")

    return told


COMMANDS = (profile, greedy, active)
