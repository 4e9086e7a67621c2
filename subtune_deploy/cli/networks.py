"""Commands on networks, which need PyTorch: blocks, export."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import LayersError, TaskError, did_you_mean
from ..spec import BASE, Pruning, format_layers
from .common import (
    build_options,
    classes_option,
    json_option,
    messages,
    network_options,
    pairs,
    print_json,
    print_table,
    read_backbone,
    read_layers,
)
from .pruning import prune_candidate_options, read_pruning

if TYPE_CHECKING:
    from ..backbone import Backbone
    from ..bundle import Bundle
    from ..manifest import Manifest
    from ..tasks import Task


@click.command()
@network_options
@json_option
def blocks(as_json: bool, **network: Any) -> None:
    """The block table: what can be tuned, and what it weighs."""
    backbone = read_backbone(**network)
    if as_json:
        total = {"parameters": backbone.parameters, "macs": backbone.macs}
        rows = [dataclasses.asdict(block) for block in backbone.blocks]
        print_json({"model": backbone.name, "blocks": rows, "total": total})
        return
    print_table(
        ("block", "name", "parameters", "MACs", "weight bytes", "output"),
        (
            (
                b.index,
                b.name,
                f"{b.parameters:,}",
                f"{b.macs:,}",
                f"{b.weight_bytes:,}",
                _times(b.output_shape),
            )
            for b in backbone.blocks
        ),
    )
    click.echo(f"whole network: {backbone.parameters:,} parameters, {backbone.macs:,} MACs")


def _times(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


@click.command()
@network_options
@click.option(
    "--layers",
    metavar="LAYERS",
    help="The fork, as in 13-14 or 2,14; none: the head alone; with --task: what it must be.",
)
@click.option(
    "--task", "files", multiple=True, metavar="NAME=FILE", help="A task and its checkpoint; repeatable."
)
@click.option(
    "--tasks", "count", type=click.IntRange(1, 256), help="So many candidates on --layers: task1, task2, ..."
)
@click.option(
    "--siamese", multiple=True, metavar="NAME", help="The task's head also sees the base's features."
)
@click.option(
    "--drift",
    type=click.Choice(["refuse", "base", "fork"]),
    default="refuse",
    show_default=True,
    help="Batch-norm statistics that moved in blocks that were not tuned: take the base's, or fork them too.",
)
@classes_option
@prune_candidate_options
@build_options
@click.option(
    "--picture",
    "pictures",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A real input for the parity check; default: two photographs of the package.",
)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="The bundle; default: engines/MODEL_FORK.")
def export(
    layers: str | None,
    files: tuple[str, ...],
    count: int | None,
    classes: int | None,
    siamese: tuple[str, ...],
    drift: Any,
    batch: str,
    merge: Any,
    lowering: Any,
    pictures: tuple[Path, ...],
    out: Path | None,
    **network: Any,
) -> None:
    """ONE multi-task ONNX graph, checked against each task's own model.

    With --task NAME=FILE, once per task, the graph of a real deployment on --weights FILE. Which blocks a task
    tuned is found by comparing the two files.

    With --layers alone a latency candidate: its weights are random and differ from the base's.
    """
    from ..build import BuildOptions, build, parse_batch

    options = BuildOptions(parse_batch(batch), merge, lowering)
    checkpoints, prune = pairs(files, "--task"), read_pruning(network)
    if layers is None and not checkpoints:
        raise LayersError("no fork was given", "give --layers 13-14, or --task NAME=FILE")
    if checkpoints and count:
        raise TaskError("--task and --tasks were both given", "--task takes files, --tasks makes candidates")
    if checkpoints and prune:
        raise TaskError(
            "--task and --prune were both given", "what a task pruned is found from its checkpoint"
        )
    if checkpoints and classes:
        raise TaskError(
            "--task and --classes were both given", "a checkpoint has as many classes as its head"
        )
    backbone = read_backbone(**network)
    fork = None if layers is None else read_layers(layers, backbone)
    if checkpoints:
        tasks = _from_checkpoints(backbone, checkpoints, fork, drift, siamese)
    else:
        tasks = _candidates(backbone, fork or (), count or 1, siamese, prune, classes)
    out = out or Path("engines", _folder_name(backbone.name, fork, checkpoints, count or 1, prune, classes))
    _report(build(backbone, tasks, out, options, pictures=pictures, say=messages.print))


def _candidates(
    backbone: Backbone, fork: tuple[int, ...], count: int, siamese: Collection[str], prune: Pruning | None,
    classes: int | None,
) -> list[Task]:  # fmt: skip
    from ..tasks import candidate_task

    names = [f"task{number}" for number in range(1, count + 1)]
    _check_known(siamese, names)
    messages.print(
        f"latency candidate: fork {_told(fork, prune)} of {backbone.name}, weights {backbone.weights}; the "
        f"{'tasks' if count > 1 else 'task'} {', '.join(names)} got random weights that differ from the base's"
    )
    return [
        candidate_task(backbone, name, fork, seed=seed, classes=classes, siamese=name in siamese, prune=prune)
        for seed, name in enumerate(names, start=1)
    ]


def _from_checkpoints(
    backbone: Backbone,
    files: dict[str, str],
    fork: tuple[int, ...] | None,
    drift: Any,
    siamese: Collection[str],
) -> list[Task]:
    from ..checkpoint import read_state
    from ..tasks import check_names, task_from_checkpoint, tuned_blocks

    check_names(files)
    _check_known(siamese, files)
    tasks = []
    for name, path in files.items():
        task = task_from_checkpoint(backbone, name, read_state(path), drift=drift, layers=fork)
        if name in siamese and not task.siamese:
            raise TaskError(
                f"task {name} is not siamese: its head reads the features of one stream, not of two",
                "leave --siamese away: what a head reads is found from the checkpoint",
            )
        kind = ", siamese head" if task.siamese else ""
        tuned = format_layers(tuned_blocks(backbone, task))
        thin = f", {task.prune}" if task.prune else ""
        messages.print(f"task {name}: tuned blocks {tuned}, {task.classes} classes{kind}{thin}")
        for note in task.notes:
            messages.print(f"task {name}: {note}")
        tasks.append(task)
    return tasks


def _check_known(names: Collection[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            raise TaskError(f"--siamese names {name!r}, which is no task", did_you_mean(name, known))


def _told(fork: tuple[int, ...], prune: Pruning | None) -> str:
    return f"{format_layers(fork)} {prune}" if prune else format_layers(fork)


def _folder_name(
    model: str,
    fork: tuple[int, ...] | None,
    files: Collection[str],
    count: int,
    prune: Pruning | None,
    classes: int | None,
) -> str:
    """`resnet50_13-14`, `resnet50_13-14_x8` for eight candidates, `resnet50_13-14_pruned_0.5_local_l1`,
    `resnet50_13-14_10_classes`, `mine_make_birds_signs` for checkpoints."""
    plain = re.sub(r"\W+", "_", Path(model.removeprefix("timm:")).name.replace(".py:", ":"))
    if files:
        return f"{plain}_{'_'.join(files)}"
    parts = (
        _told(fork or (), prune),
        f"{classes} classes" if classes else "",
        f"x{count}" if count > 1 else "",
    )
    return "_".join([plain, *filter(None, parts)]).replace(" ", "_")


def _report(bundle: Bundle) -> None:
    manifest = bundle.manifest
    print_table(
        ("output", "blocks", "classes", "worst error", "same class"),
        (
            (
                task.name,
                "-" if task.name == BASE else format_layers(task.layers),
                task.classes,
                f"{max(figure['error'] for figure in _of(manifest, task.name)):.1e}",
                f"{min(figure['agreeing'] for figure in _of(manifest, task.name)):.0%}",
            )
            for task in manifest.tasks
        ),
    )
    click.echo(f"bundle: {bundle.path}")


def _of(manifest: Manifest, task: str) -> list[Mapping[str, Any]]:
    return [f for f in manifest.parity if f["task"] == task and f["against"] == "stand-alone model"]


COMMANDS = (blocks, export)
