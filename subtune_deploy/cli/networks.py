"""Commands on networks, which need PyTorch: blocks, export, tune."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import LayersError, TaskError, did_you_mean
from ..spec import format_layers, parse_layers
from .common import bar, json_option, messages, network_options, pairs, print_json, print_table, read_backbone

if TYPE_CHECKING:
    from ..backbone import Backbone
    from ..tasks import Task


@click.command()
@network_options
@json_option
def blocks(model: str, weights: str, input_size: str | None, pattern: str | None, as_json: bool) -> None:
    """The block table of a model: what can be tuned, and what it weighs."""
    backbone = read_backbone(model, weights, input_size, pattern)
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
    "--layers", metavar="LAYERS", help="The fork, as in 13-14 or 2,14; with --task: what it must be."
)
@click.option(
    "--task", "files", multiple=True, metavar="NAME=FILE", help="A task and its checkpoint; repeatable."
)
@click.option("--tasks", "count", type=click.IntRange(1, 256), help="So many latency candidates on --layers.")
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
@click.option("--batch", default="1", show_default=True, metavar="N|dynamic", help="Pictures per call.")
@click.option("--merge", type=click.Choice(["auto", "always", "never"]), default="auto", show_default=True)
@click.option(
    "--lowering", type=click.Choice(["auto", "branch", "grouped"]), default="auto", show_default=True
)
@click.option(
    "--picture",
    "pictures",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A real input for the parity check; default: two photographs of the package.",
)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="The bundle; default: engines/MODEL_LAYERS."
)
def export(
    model: str,
    weights: str,
    input_size: str | None,
    pattern: str | None,
    layers: str | None,
    files: tuple[str, ...],
    count: int | None,
    siamese: tuple[str, ...],
    drift: Any,
    out: Path | None,
    batch: str,
    pictures: tuple[Path, ...],
    **choices: Any,
) -> None:
    """ONE multi-task ONNX graph, checked against every task's stand-alone model."""
    from ..build import BuildOptions, build, parse_batch

    options = BuildOptions(batch=parse_batch(batch), **choices)
    checkpoints = pairs(files, "--task")
    if not layers and not checkpoints:
        raise LayersError("no fork was given", "give --layers 13-14, or --task NAME=CHECKPOINT")
    if checkpoints and count:
        raise TaskError(
            "--task and --tasks were both given", "--tasks makes candidates, --task takes checkpoints"
        )
    backbone = read_backbone(model, weights, input_size, pattern)
    fork = parse_layers(layers, len(backbone.blocks)) if layers else None
    if checkpoints:
        tasks = _from_checkpoints(backbone, checkpoints, fork, drift, siamese)
    else:
        tasks = _candidates(backbone, fork or (), count or 1, siamese)
    out = out or Path("engines", _folder_name(model, fork, checkpoints))
    bundle = build(backbone, tasks, out, options, pictures=pictures, say=lambda line: messages.print(line))
    _report(bundle)


def _candidates(
    backbone: Backbone, fork: tuple[int, ...], count: int, siamese: Collection[str]
) -> list[Task]:
    from ..tasks import candidate_task

    names = [f"task{number}" for number in range(1, count + 1)]
    _check_known(siamese, names)
    messages.print(
        f"latency candidate: fork {format_layers(fork)} of {backbone.name}, weights {backbone.weights}; the "
        f"{'tasks' if count > 1 else 'task'} {', '.join(names)} got random weights that differ from the base's"
    )
    return [
        candidate_task(backbone, name, fork, seed=seed, siamese=name in siamese)
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
                f"task {name} is not siamese", "its head takes the features of one stream, not of two"
            )
        kind = ", siamese head" if task.siamese else ""
        tuned = format_layers(tuned_blocks(backbone, task))
        messages.print(f"task {name}: tuned blocks {tuned}, {task.classes} classes{kind}")
        for note in task.notes:
            messages.print(f"task {name}: {note}")
        tasks.append(task)
    return tasks


def _check_known(names: Collection[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            raise TaskError(f"--siamese names {name!r}, which is no task", did_you_mean(name, known))


def _folder_name(model: str, fork: tuple[int, ...] | None, files: Collection[str]) -> str:
    plain = "".join(letter if letter.isalnum() else "_" for letter in model.removeprefix("timm:"))
    return f"{plain}_{'_'.join(files) if files else format_layers(fork or ())}"


def _report(bundle: Any) -> None:
    manifest = bundle.manifest
    print_table(
        ("output", "blocks", "classes", "worst error", "same class"),
        (
            (
                task.name,
                format_layers(task.layers) if task.layers else "-",
                task.classes,
                f"{max(figure['error'] for figure in _of(manifest, task.name)):.1e}",
                f"{min(figure['agreeing'] for figure in _of(manifest, task.name)):.0%}",
            )
            for task in manifest.tasks
        ),
    )
    click.echo(f"bundle: {bundle.path}")


def _of(manifest: Any, task: str) -> list[Any]:
    return [f for f in manifest.parity if f["task"] == task and f["against"] == "stand-alone model"]


@click.command()
@network_options
@click.option(
    "--layers", required=True, metavar="LAYERS", help="Blocks to tune, as in 13-14; none: the head alone."
)
@click.option(
    "--data", required=True, help="A folder of class folders, or digits (5,000 real ones, offline)."
)
@click.option("--name", default="task", show_default=True, help="The task.")
@click.option("--train", type=click.IntRange(2), help="Pictures to train on; default: four fifths.")
@click.option("--test", type=click.IntRange(1), help="Pictures held out; default: a fifth.")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="The task's checkpoint.")
def tune(
    model: str,
    weights: str,
    input_size: str | None,
    pattern: str | None,
    layers: str,
    data: str,
    name: str,
    train: int | None,
    test: int | None,
    out: Path,
    **settings: Any,
) -> None:
    """SubTuning of one task: train the blocks and a new head, everything else frozen."""
    from ..checkpoint import write_state
    from ..tasks import task_state
    from ..tuning.data import load_data
    from ..tuning.train import TrainConfig
    from ..tuning.train import tune as train_task

    config = TrainConfig(**settings)
    backbone = read_backbone(model, weights, input_size, pattern)
    fork = () if layers == "none" else parse_layers(layers, len(backbone.blocks))
    found = load_data(data, train=train, test=test, seed=config.seed)
    for line in found.skipped:
        messages.print(f"skipped: {line}")
    with bar(f"tuning {name}") as tick:
        tuned = train_task(backbone, name, found.train, found.test, fork, config, progress=tick)
    write_state(out, *task_state(backbone, tuned.task))
    click.echo(f"{name}: blocks {layers}, {tuned.accuracy:.1%} of {len(found.test)} held-out pictures; {out}")


def _training_options(command: click.Command) -> click.Command:
    """One option for each field of TrainConfig, so that neither is declared twice."""
    from ..tuning.settings import TrainConfig

    for setting in reversed(dataclasses.fields(TrainConfig)):
        flag = f"--{setting.name.replace('_', '-')}"
        kind = type(setting.default)
        command.params.append(click.Option([flag], type=kind, default=setting.default, show_default=True))
    return command


COMMANDS = (blocks, export, _training_options(tune))
