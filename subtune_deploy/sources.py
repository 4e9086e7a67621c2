"""The weights that a bundle was made from, kept in it: the base's whole state, and a pack for each task.

From them the backbone and its tasks are made again, exactly, so that a bundle can take in another task.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from .backbone import Backbone, trace
from .bundle import Bundle
from .checkpoint import check_finite, check_keys, check_shapes, fingerprint
from .diff import fixed_shapes
from .errors import BundleError, CheckpointError, ModelError
from .models import load_model
from .pack import WEIGHTS, About, Pack, check_weights, read_pack, save_pack, stored_weights
from .spec import BASE, check_task_name, format_layers
from .tasks import Task, task_of, task_state, tuned_blocks
from .tensorfile import SIZES, StoredTensor, write_tensors
from .versions import Version
from .widths import conform

_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip
_NAMES = {kind: name for name, kind in _TYPES.items()}
assert set(_TYPES) == set(SIZES)


def write_sources(folder: Path, backbone: Backbone, tasks: Sequence[Task]) -> None:
    """Write weights/base.safetensors and weights/<task>.safetensors into `folder`. Raises OSError."""
    state = backbone.model.state_dict()
    metadata = {"format": "subtune-base", "model": backbone.name, "base": fingerprint(state)}
    (folder / WEIGHTS).mkdir()
    write_tensors(folder / stored_weights(BASE), _stored(state), metadata)
    for task in tasks:
        own, about = packed(backbone, task)
        save_pack(folder / stored_weights(task.name), about, own)


def packed(backbone: Backbone, task: Task) -> tuple[dict[str, StoredTensor], About]:
    """The task's own weights and what a pack says of them; `unpacked` gives the task back."""
    state, metadata = task_state(backbone, task)
    about = About(
        task=task.name,
        model=backbone.name,
        base=metadata["base"],
        input=backbone.input,
        layers=metadata["layers"],
        classes=task.classes,
        labels=tuple(task.labels),
        siamese=task.siamese,
        notes=tuple(task.notes),
        prune=task.prune,
    )
    return _stored(state), about


def _stored(state: Mapping[str, Tensor]) -> dict[str, StoredTensor]:
    return {name: _bytes(name, tensor.detach().cpu().contiguous()) for name, tensor in state.items()}


def _bytes(name: str, tensor: Tensor) -> StoredTensor:
    if tensor.dtype not in _NAMES:
        raise ModelError(
            f"{name} is of type {tensor.dtype}, which files of weights do not hold", "give float32"
        )
    data = tensor.reshape(-1).view(torch.uint8).numpy().data
    return StoredTensor(_NAMES[tensor.dtype], tuple(tensor.shape), data)


def _tensor(stored: StoredTensor) -> Tensor:
    kind = _TYPES[stored.dtype]
    flat = torch.frombuffer(stored.data, dtype=kind) if stored.data.nbytes else torch.empty(0, dtype=kind)
    return flat.reshape(stored.shape)


def read_sources(bundle: Bundle, model: str | None = None) -> tuple[Backbone, list[Task]]:
    """The backbone and the tasks that `bundle` was made from, the tasks in the order of its outputs.

    `model`: where the network's code lies now; needed where it is not a library's, since a bundle must not
    say by itself which code is run. Raises BundleError (no weights, altered), ModelError, CheckpointError.
    """
    names = [entry.name for entry in bundle.manifest.tasks]
    files = check_weights(bundle, names)
    bundle.verify_hashes(files)
    backbone = _backbone(bundle, model)
    packs = [read_pack(bundle.path / file) for file in files[1:]]
    return backbone, [unpacked(backbone, pack) for pack in packs]


def _backbone(bundle: Bundle, model: str | None) -> Backbone:
    manifest = bundle.manifest
    spec = model or _library_model(bundle)
    loaded = load_model(spec, str(bundle.path / stored_weights(BASE)), manifest.input.shape)
    labels = manifest.tasks[0].labels or ()
    known = replace(loaded, input=manifest.input, labels=labels, weights=manifest.weights)
    pattern = "|".join(re.escape(block.name) for block in manifest.blocks)
    backbone = trace(known, pattern)
    _check_same(bundle, backbone)
    return backbone


def is_code(model: str) -> bool:
    """Whether a model is made by a function of the user's own, which its name alone does not identify."""
    return ":" in model and not model.startswith("timm:")


def _library_model(bundle: Bundle) -> str:
    name = bundle.manifest.model
    if is_code(name):
        raise ModelError(
            f"the network of {bundle.path} is made by code outside it, {name}, which is not run unasked",
            f"give --model {name} if you trust that code",
        )
    return name


def _check_same(bundle: Bundle, backbone: Backbone) -> None:
    """What was traced is what the bundle says. That it also answers alike is for the caller to compare."""
    manifest = bundle.manifest
    tables = [
        [(block.name, block.parameters, block.output_shape) for block in blocks]
        for blocks in (manifest.blocks, backbone.blocks)
    ]
    if tables[0] != tables[1] or fingerprint(backbone.model.state_dict()) != manifest.base:
        raise BundleError(
            f"{backbone.name} is not the network that {bundle.path} was made from, {manifest.model}",
            "give --model with that network's code as it was",
        )


def unpacked(backbone: Backbone, pack: Pack, name: str | None = None) -> Task:
    """The task that a pack holds, called `name` if that is given.

    Raises CheckpointError where its weights are not whole units of this backbone, or not what it says of
    them; TaskError for an unfit name.
    """
    state = {key: _tensor(stored) for key, stored in pack.tensors.items()}
    parts = _parts(backbone, pack.path, state)
    try:
        versions = {unit: _version(backbone, unit, part) for unit, part in parts.items()}
        task = _task(backbone, pack.about, versions)
    except CheckpointError as error:
        raise CheckpointError(f"pack {pack.path}: {error.message}", error.hint) from error
    return replace(task, name=check_task_name(name or task.name))


def _parts(backbone: Backbone, path: Path, state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """unit -> its part of `state`, names relative to it (`""` for a bare tensor); heads are always there."""
    base = backbone.model.state_dict()
    units = {
        unit: {key: key.removeprefix(place).removeprefix(".") for key in base if _inside(key, place)}
        for unit, place in backbone.units.items()
        if unit in backbone.heads or any(_inside(key, place) for key in state)
    }
    expected = {key: base[key] for names in units.values() for key in names}
    check_keys(path, state, expected)
    check_shapes(path, state, fixed_shapes(backbone, state, expected, thinner=True))
    check_finite(path, state)
    for key in expected:
        if key in state and state[key].is_floating_point() != expected[key].is_floating_point():
            raise CheckpointError(
                f"{path}: {key} is {state[key].dtype}, the base's is {expected[key].dtype}",
                "have the pack made again",
            )
    return {
        unit: {short: state[key] for key, short in names.items() if key in state}
        for unit, names in units.items()
    }


def _inside(key: str, place: str) -> bool:
    return key == place or key.startswith(f"{place}.")


def _version(backbone: Backbone, unit: str, part: Mapping[str, Tensor]) -> Version:
    place = backbone.units[unit]
    if "" in part:
        return part[""].to(backbone.model.state_dict()[place].dtype).clone()
    return conform(backbone.model.get_submodule(place), part)


def _task(backbone: Backbone, about: About, versions: Mapping[str, Version]) -> Task:
    found = task_of(backbone, about.task, versions)
    task = replace(found, labels=about.labels, notes=about.notes, prune=about.prune)
    layers = format_layers(tuned_blocks(backbone, task))
    if (task.classes, task.siamese, layers) != (about.classes, about.siamese, about.layers):
        raise CheckpointError(
            f"its weights are of blocks {layers}, {_told(task)}; it says blocks {about.layers}, {_told(about)}",
            "have the pack made again",
        )
    return task


def _told(what: Task | About) -> str:
    return f"{what.classes} classes{', siamese' if what.siamese else ''}"
