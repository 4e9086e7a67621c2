"""Task packs: one file with a task's own blocks and head, and all that says onto which base they belong.

    pack = read_pack("birds.pack")         every byte as it was written, or CheckpointError
    pack.about.layers, pack.about.base     "13-14", the base's fingerprint

A bundle keeps one for each of its tasks, so shipping a task is a check and a copy. A pack is also a checkpoint
of the task, for `export --task NAME=FILE`. It holds numbers and text; nothing in it is run. No torch.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import __version__
from .bundle import Bundle
from .errors import BundleError, CheckpointError, InputError, TaskError, did_you_mean
from .records import to_plain, to_record
from .spec import BASE, TASK_FORMAT, InputSpec, Pruning, check_task_name, parse_layers
from .staging import replaced_file
from .tensorfile import StoredTensor, read_tensors, write_tensors

SCHEMA = "1"
SUFFIX = ".pack"
WEIGHTS = "weights"
"""Folder of a bundle with the weights that it was made from."""

BLOCKS = 10_000
"""More than any network has: a layer range beyond it is nonsense."""


@dataclass(frozen=True)
class About:
    """What a pack says of itself.

    `base`: fingerprint of the base's weights. `layers`: the tuned blocks, as in `13-14`; `none` for a head
    alone. `input`: the pictures that the task was tuned for. `labels`: by class number, or none at all. `prune`: how
    its blocks were made thinner, if they were.
    """

    task: str
    model: str
    base: str
    input: InputSpec
    layers: str
    classes: int
    labels: tuple[str, ...] = ()
    siamese: bool = False
    notes: tuple[str, ...] = ()
    prune: Pruning | None = None
    tool_version: str = __version__


@dataclass(frozen=True)
class Pack:
    """A pack that was read: `tensors` by their names in the base's state dict, whole units of it."""

    path: Path
    about: About
    tensors: Mapping[str, StoredTensor]


def stored_weights(name: str) -> str:
    """Where a bundle keeps the weights of the task `name`, or of the base."""
    return f"{WEIGHTS}/{name}.safetensors"


def save_pack(path: Path, about: About, tensors: Mapping[str, StoredTensor]) -> None:
    """Write the pack `path`, the same bytes for the same task. Raises OSError."""
    own = {key: value if isinstance(value, str) else _json(value) for key, value in _fields(about).items()}
    write_tensors(path, tensors, {"format": TASK_FORMAT, "schema": SCHEMA, **own})


def _fields(about: About) -> dict[str, Any]:
    return {field.name: getattr(about, field.name) for field in dataclasses.fields(about)}


def _json(value: object) -> str:
    return json.dumps(to_plain(value), allow_nan=False)


def read_pack(path: Path | str) -> Pack:
    """The pack in file `path`. Raises CheckpointError for anything else, and for one that was altered."""
    path = Path(path)
    metadata, tensors = read_tensors(path)
    if metadata.pop("format", None) != TASK_FORMAT:
        raise CheckpointError(
            f"{path} is no task pack", "give a file that subtune-deploy ship --as pack wrote"
        )
    if (schema := metadata.pop("schema", None)) != SCHEMA:
        raise CheckpointError(
            f"{path} is a pack of schema version {schema}, this version reads {SCHEMA}",
            "update subtune-deploy",
        )
    try:
        about = _about(metadata)
        _check(about)
        if not tensors:
            raise InputError("it holds no weights", "have the pack made again")
    except InputError as error:
        raise CheckpointError(f"pack {path}: {error.message}", error.hint) from error
    return Pack(path, about, tensors)


def _about(metadata: Mapping[str, str]) -> About:
    plain = {field.name for field in dataclasses.fields(About) if field.type == "str"}
    try:
        values = {key: text if key in plain else json.loads(text) for key, text in metadata.items()}
    except (ValueError, RecursionError) as error:
        raise InputError(f"its metadata is malformed: {error}", "have the pack made again") from error
    return to_record(About, values)


def _check(about: About) -> None:
    check_task_name(about.task)
    if not re.fullmatch(r"[0-9a-f]{64}", about.base):
        raise InputError("it names no base", "the fingerprint of a base has 64 hexadecimal digits")
    if about.classes < 1 or (about.labels and len(about.labels) != about.classes):
        raise InputError(
            f"task {about.task} has {about.classes} classes and {len(about.labels)} labels",
            "labels are one per class, or none",
        )
    if about.layers != "none":
        parse_layers(about.layers, BLOCKS)


def write_pack(bundle: Bundle, task: str, out: Path | str) -> Path:
    """Ship `task` of `bundle` as one file: `out`, or `<task>.pack` in the folder `out`; where it was written.

    Raises TaskError (no such task), BundleError (altered, without weights, a place that cannot be written to).
    """
    name = _stored(bundle, task)
    bundle.verify_hashes([name])
    read_pack(bundle.path / name)
    final = Path(out) / f"{task}{SUFFIX}" if Path(out).is_dir() else Path(out)
    if final.resolve().is_relative_to(bundle.path.resolve()):
        raise BundleError(f"{final} would lie inside the bundle", "give a place outside, as in -o birds.pack")
    with replaced_file(final) as pending:
        shutil.copyfile(bundle.path / name, pending)
    return final


def _stored(bundle: Bundle, task: str) -> str:
    tasks = [entry.name for entry in bundle.manifest.tasks if entry.name != BASE]
    if task == BASE:
        raise TaskError("the base is no task, packs are grafted onto it", f"give one of {', '.join(tasks)}")
    if task not in tasks:
        raise TaskError(f"{bundle.path} has no task {task!r}", did_you_mean(task, tasks))
    return check_weights(bundle, [task])[0]


def check_weights(bundle: Bundle, names: Iterable[str]) -> list[str]:
    """Files of the bundle with the weights of these tasks. Raises BundleError where it has none."""
    files = [stored_weights(name) for name in names]
    if missing := [file for file in files if file not in bundle.manifest.files]:
        raise BundleError(
            f"{bundle.path} holds only graphs and engines, not the weights they were made from: {missing[0]}",
            "take the bundle that export wrote; one that was shipped, or swept, has no weights",
        )
    return files


def refittable(old: Pack, new: Pack) -> bool:
    """Whether an engine's weights for task `old` can be overwritten with those of `new`: same units, same shapes.

    Names, shapes and kinds of head agree then, so both make the same graph, but for the numbers in it.
    """
    shapes = [{name: tensor.shape for name, tensor in pack.tensors.items()} for pack in (old, new)]
    return shapes[0] == shapes[1] and old.about.siamese == new.about.siamese
