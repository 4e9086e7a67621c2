"""A task: what differs from the base, found from a checkpoint or made up as a candidate to be measured.

From a file to what the multi-task graph must reproduce:

    birds = task_from_checkpoint(backbone, "birds", read_state("birds.pt"))
    tuned_blocks(backbone, birds)                     # (13, 14)
    standalone(backbone, birds)(picture)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from .backbone import Backbone
from .checkpoint import Checkpoint, fingerprint
from .diff import STATISTICS, compare
from .errors import CheckpointError, InputError, LayersError, ModelError, TaskError
from .heads import classes_of, features_of, is_siamese, resized_state
from .pruning import prune as thinned
from .records import to_plain, to_record
from .spec import BASE, TASK_FORMAT, Pruning, check_task_name, format_layers
from .versions import Version, assemble, flow, thinner
from .widths import conform

Drift: TypeAlias = Literal["refuse", "base", "fork"]
"""What to do about batch-norm statistics that moved in blocks that were not tuned."""


@dataclass(frozen=True)
class Task:
    """`versions`: the task's own weights by unit, its head always among them; none for the base.

    A `siamese` head reads the base's features followed by the task's own. `notes` are sentences for people.
    `prune`: how its blocks were made thinner, where they were.
    """

    name: str
    versions: Mapping[str, Version]
    classes: int
    labels: tuple[str, ...] = ()
    siamese: bool = False
    notes: tuple[str, ...] = ()
    prune: Pruning | None = None


def base_task(backbone: Backbone) -> Task:
    """The deployed task: the base's own weights everywhere."""
    return Task(BASE, {}, _classes(backbone, {}), backbone.labels)


def task_of(backbone: Backbone, name: str, versions: Mapping[str, Version]) -> Task:
    """The task with these weights, its classes and whether it is Siamese told from them.

    Raises CheckpointError where heads disagree, or blocks fit neither each other nor the backbone.
    """
    features: Mapping[str, int] = {}
    if thinner(backbone, versions):
        try:
            features = flow(backbone, versions).features
        except ModelError as error:
            raise CheckpointError(error.message, error.hint) from error
    return Task(name, versions, _classes(backbone, versions), siamese=_siamese(backbone, versions, features))


def check_names(names: Iterable[str]) -> None:
    """Raise TaskError for a name that is unfit for an output, or given twice."""
    seen: set[str] = set()
    for name in names:
        if check_task_name(name) in seen:
            raise TaskError(f"task name {name!r} is given twice", "give each task its own name")
        seen.add(name)


def task_from_checkpoint(
    backbone: Backbone,
    name: str,
    checkpoint: Checkpoint,
    *,
    drift: Drift = "refuse",
    layers: tuple[int, ...] | None = None,
    labels: Sequence[str] = (),
) -> Task:
    """The task that a fine-tuned checkpoint holds; `layers`, where given, must be the blocks it tuned.

    A unit is tuned where a weight differs from the base's bit by bit. Where only batch-norm statistics
    differ it has drifted: `drift` refuses that, takes the base's statistics, or forks the unit too.

    Raises CheckpointError (not of this backbone, drift, nothing tuned), LayersError, TaskError.
    """
    check_names([name])
    found = compare(backbone, checkpoint)
    notes = _settle_drift(backbone, checkpoint, found.drifted, drift)
    forked = {*found.tuned, *(found.drifted if drift == "fork" else ())}
    if not forked:
        raise CheckpointError(
            f"{checkpoint.path} equals the base everywhere, its head included: nothing was tuned",
            "give the checkpoint of a tuned task; the base itself is always in the graph",
        )
    units = [unit for unit in backbone.units if unit in forked or unit in backbone.heads]
    try:
        versions = {unit: _version(backbone, unit, found.parts[unit]) for unit in units}
        task = task_of(backbone, name, versions)
        prune = _read_pruning(checkpoint.metadata.get("prune", "null"))
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint.path}: {error.message}", error.hint) from error
    _check_layers(backbone, task, layers, checkpoint)
    return replace(task, labels=_labels(task, checkpoint, tuple(labels)), notes=notes, prune=prune)


def _read_pruning(text: str) -> Pruning | None:
    """How a task file says that it was pruned, as JSON, null where it was not. Raises CheckpointError."""
    try:
        document = json.loads(text)
        return None if document is None else to_record(Pruning, document)
    except (ValueError, RecursionError, InputError) as error:
        raise CheckpointError(
            f"what it says of its pruning is malformed: {error}", "write it again"
        ) from error


def _settle_drift(
    backbone: Backbone, checkpoint: Checkpoint, drifted: Sequence[str], drift: Drift
) -> tuple[str, ...]:
    if not drifted:
        return ()
    where = _named(backbone, drifted)
    if drift == "refuse":
        raise CheckpointError(
            f"{checkpoint.path}: batch-norm statistics drifted in frozen {where}",
            "--drift base takes the base's statistics there, --drift fork forks these blocks too",
        )
    outcome = "the base's are used" if drift == "base" else "forked as well"
    return (f"batch-norm statistics drifted in frozen {where}: {outcome}",)


def _named(backbone: Backbone, units: Iterable[str]) -> str:
    blocks = _block_indices(backbone, units)
    others = [unit for unit in units if _index(backbone, unit) is None]
    numbered = [f"block{'s' if len(blocks) > 1 else ''} {format_layers(blocks)}"] if blocks else []
    return " and ".join(numbered + ([", ".join(others)] if others else []))


def _index(backbone: Backbone, unit: str) -> int | None:
    return next((block.index for block in backbone.blocks if unit == f"block{block.index}"), None)


def _block_indices(backbone: Backbone, units: Iterable[str]) -> tuple[int, ...]:
    return tuple(sorted(index for unit in units if (index := _index(backbone, unit)) is not None))


def tuned_blocks(backbone: Backbone, task: Task) -> tuple[int, ...]:
    """Indices, from 1, of the blocks that the task has its own weights for."""
    return _block_indices(backbone, task.versions)


def _check_layers(
    backbone: Backbone, task: Task, layers: tuple[int, ...] | None, checkpoint: Checkpoint
) -> None:
    tuned = tuned_blocks(backbone, task)
    if layers is not None and tuple(sorted(set(layers))) != tuned:
        raise LayersError(
            f"{checkpoint.path} tuned blocks {format_layers(tuned)}, not {format_layers(layers)} as given",
            "leave --layers away: the fork is found from the checkpoint",
        )


def _module(backbone: Backbone, unit: str) -> nn.Module:
    return backbone.model.get_submodule(backbone.units[unit])


def _version(backbone: Backbone, unit: str, part: Mapping[str, Tensor]) -> Version:
    return part[""].clone() if "" in part else conform(_module(backbone, unit), part)


def _head(backbone: Backbone, versions: Mapping[str, Version], unit: str) -> nn.Module:
    head = versions.get(unit, _module(backbone, unit))
    assert isinstance(head, nn.Module)  # a head is called, so it is a module
    return head


def _classes(backbone: Backbone, versions: Mapping[str, Version]) -> int:
    counts = {classes_of(_head(backbone, versions, unit)) for unit in backbone.heads}
    if len(counts) != 1:
        raise CheckpointError(f"the heads have {sorted(counts)} classes", "give all heads the same classes")
    return counts.pop()


def own_classes(backbone: Backbone, classes: int | None) -> int | None:
    """`classes` as candidates tell it: None where they are as many as the base's."""
    return None if classes == _classes(backbone, {}) else classes


def _siamese(backbone: Backbone, versions: Mapping[str, Version], features: Mapping[str, int]) -> bool:
    found = {
        is_siamese(_module(backbone, each), _head(backbone, versions, each), features.get(each))
        for each in backbone.heads
    }
    if len(found) != 1:
        raise CheckpointError(
            "only some of the heads read twice the features", "make all heads Siamese, or none"
        )
    return found.pop()


def _labels(task: Task, checkpoint: Checkpoint, given: tuple[str, ...]) -> tuple[str, ...]:
    try:
        labels = given or tuple(str(label) for label in json.loads(checkpoint.metadata.get("labels", "[]")))
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"{checkpoint.path} has malformed labels", "labels are a JSON list of names"
        ) from error
    if labels and len(labels) != task.classes:
        raise CheckpointError(
            f"{checkpoint.path} has {task.classes} classes, but there are {len(labels)} labels",
            "give one label for each class, in the order of the head's outputs",
        )
    return labels


def task_state(backbone: Backbone, task: Task) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(state, metadata) of a small file with the task's own weights alone, for `task_from_checkpoint`."""
    state = {
        f"{backbone.units[unit]}.{key}" if key else backbone.units[unit]: tensor
        for unit, version in task.versions.items()
        for key, tensor in _state(version).items()
    }
    metadata = {
        "format": TASK_FORMAT,
        "task": task.name,
        "model": backbone.name,
        "base": fingerprint(backbone.model.state_dict()),
        "layers": format_layers(tuned_blocks(backbone, task)),
        "labels": json.dumps(task.labels),
        "prune": json.dumps(to_plain(task.prune)),
    }
    return state, metadata


def _state(version: Version) -> Mapping[str, Tensor]:
    return version.state_dict() if isinstance(version, nn.Module) else {"": version}


def candidate_task(
    backbone: Backbone,
    name: str,
    layers: Sequence[int],
    *,
    seed: int,
    classes: int | None = None,
    siamese: bool = False,
    prune: Pruning | None = None,
) -> Task:
    """A task to measure before it is trained: copies of `layers` and the head, every weight moved a little.

    The weights differ from the base's and from those of every other `seed`, since compilers merge equal
    ones and would make the fork look free. With `prune` the blocks are thinner, and what reads fewer channels is
    louder, so that parity has something to compare.

    Raises LayersError for a block that the backbone has not; what `pruning.prune` raises.
    """
    check_names([name])
    if unknown := sorted(set(layers) - {block.index for block in backbone.blocks}):
        raise LayersError(
            f"blocks {format_layers(unknown)} are outside 1..{len(backbone.blocks)}", "see the block table"
        )
    generator = torch.Generator().manual_seed(seed)
    thin = thinned(backbone, layers, prune) if prune else {}
    versions: dict[str, Version] = {}
    for unit in backbone.units:
        if unit in backbone.heads or _index(backbone, unit) in layers:
            module = thin.get(unit, _module(backbone, unit))
            state = _louder(module.state_dict(), _module(backbone, unit).state_dict())
            if unit in backbone.heads:
                state = _head_state(backbone, unit, module, classes, siamese)
            versions[unit] = conform(module, _perturbed(module, state, generator))
    return replace(task_of(backbone, name, versions), prune=prune)


def _head_state(
    backbone: Backbone, unit: str, head: nn.Module, classes: int | None, siamese: bool
) -> dict[str, Tensor]:
    count, features = classes or _classes(backbone, {}), features_of(_module(backbone, unit))
    return resized_state(head, count, siamese, features)


def _louder(state: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights on fewer channels than in `whole` scaled so that random ones keep the variance of their sums."""
    return {
        name: tensor * (whole[name].shape[1] / tensor.shape[1]) ** 0.5 if tensor.dim() > 1 else tensor
        for name, tensor in state.items()
    }


def _perturbed(
    module: nn.Module, state: Mapping[str, Tensor], generator: torch.Generator
) -> dict[str, Tensor]:
    learned = {name for name, _ in module.named_parameters()}
    moving = {name for name in state if name in learned or name.endswith(STATISTICS)}
    return {name: _moved(name, each, generator) if name in moving else each for name, each in state.items()}


def _moved(name: str, tensor: Tensor, generator: torch.Generator) -> Tensor:
    """A tenth of the tensor's own size is added as noise; what is nearly zero becomes small noise."""
    noise = torch.randn(tensor.shape, generator=generator).to(tensor)
    if name.endswith("running_var"):  # stays positive
        return tensor * torch.exp(0.1 * noise)
    size = float(tensor.float().square().mean().sqrt())
    return tensor + noise * (0.1 * size if size > 1e-4 else 0.02)


def owners(tasks: Sequence[Task]) -> dict[str, dict[str, str]]:
    """task -> unit -> the first task that has the same weights there, bit by bit (often the task itself).

    Units that a task takes from the base are absent.
    """
    first: dict[tuple[str, str], str] = {}
    return {
        task.name: {
            unit: first.setdefault((unit, fingerprint(_state(version))), task.name)
            for unit, version in task.versions.items()
        }
        for task in tasks
    }


def standalone(backbone: Backbone, task: Task) -> nn.Module:
    """The task's own complete model, (N, C, H, W) -> (N, classes), with copies of all weights.

    Made without tracing, so that it can bear witness against the multi-task graph.
    """
    return assemble(backbone, task.versions, siamese=task.siamese)
