"""What `manifest.json` says of a bundle: read strictly, since it may have been edited on the way."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any

from . import __version__
from .errors import BundleError, InputError, did_you_mean
from .records import to_plain, to_record
from .spec import BASE, Block, InputSpec, Pruning, check_task_name
from .targets import NAME

MANIFEST = "manifest.json"
SIGNATURE = "model.sig"
"""Beside the manifest, in a signed bundle."""
SIGN_AGAIN = "the old signature does not hold for the new bundle: sign it again"
RECIPE = "target.json"
"""In an engine's folder: the target it was compiled for."""
SCHEMA = 3
LARGEST = 64 << 20
"""Bytes of a manifest that are read; one with all measurements has a few million."""
LARGEST_BATCH = 1 << 16

NO_BUNDLE = "give the folder that subtune-deploy export wrote"
RESTORE = "restore the files, or export and compile the bundle again"


@dataclass(frozen=True)
class TaskEntry:
    """One output of the graph; the first is the base. `labels` are by class number; `prune` tells thinner forks."""

    name: str
    layers: tuple[int, ...]
    classes: int
    labels: tuple[str, ...] | None = None
    siamese: bool = False
    notes: tuple[str, ...] = ()
    prune: Pruning | None = None


@dataclass(frozen=True)
class EngineEntry:
    """A compiled target; its files lie in the folder of its name.

    `facts` are what the backend found out about the engine. `ran` is false where it was compiled without its
    device: then nobody has run it, and parity is that of the network which the compiler was given.
    """

    backend: str
    precision: str
    versions: Mapping[str, str]
    files: tuple[str, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    ran: bool = True


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says, beside its schema version. Batch None is dynamic; hashes are SHA-256.

    `base` is the fingerprint of the base's weights: a task pack fits bundles of the same base. `merge` and
    `lowering` are what was asked for; what became of it is in the plan.
    """

    model: str
    weights: str
    input: InputSpec
    batch: int | None
    blocks: tuple[Block, ...]
    tasks: tuple[TaskEntry, ...]
    plan: Mapping[str, Any]
    versions: Mapping[str, str]
    base: str = ""
    merge: str = "auto"
    lowering: str = "auto"
    parity: tuple[Mapping[str, Any], ...] = ()
    measurements: tuple[Mapping[str, Any], ...] = ()
    engines: Mapping[str, EngineEntry] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    tool_version: str = __version__


def to_json(manifest: Manifest) -> str:
    """The text of manifest.json. Raises BundleError for more than is read."""
    text = sealed({"schema": SCHEMA, **to_plain(manifest)})
    if len(text) > LARGEST:  # JSON is of ASCII letters here
        raise BundleError(
            f"the manifest would have {len(text) >> 20} MiB, of which {LARGEST >> 20} are read",
            "measure for a shorter time, or with --json or sweep, whose results lie elsewhere",
        )
    return text


def sealed(document: Mapping[str, Any]) -> str:
    """JSON of a document with one more entry, last: the SHA-256 of the text without it."""
    return _text({**document, "sha256": hashlib.sha256(_text(document).encode()).hexdigest()})


def _text(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def read_manifest(path: Path) -> Manifest:
    """The manifest in file `path`. Raises BundleError."""
    try:
        if path.stat().st_size > LARGEST:
            raise BundleError(f"{path} has more than {LARGEST >> 20} MiB, no manifest has", RESTORE)
        text = path.read_bytes().decode()
        document = json.loads(text)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}", NO_BUNDLE) from error
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not JSON: {error}", RESTORE) from error
    try:
        manifest = _from_json(document)
        _check(manifest)
        if text != to_json(manifest):  # one spelling only: no doubled keys, no other order
            raise InputError("it was edited or damaged after it was written", RESTORE)
    except InputError as error:
        raise BundleError(f"{path}: {error.message}", error.hint) from error
    except (RecursionError, ValueError) as error:
        raise BundleError(
            f"{path} is nested too deeply, or holds numbers that JSON has not", RESTORE
        ) from error
    return manifest


def _from_json(document: object) -> Manifest:
    if not isinstance(document, dict) or "schema" not in document:
        raise InputError("not a manifest: it has no schema version", NO_BUNDLE)
    if document["schema"] != SCHEMA:
        given = document["schema"]
        raise InputError(f"schema version is {given!r}, this version reads {SCHEMA}", "update subtune-deploy")
    missing = [each.name for each in fields(Manifest) if each.name not in document]
    if missing:
        raise InputError(f"missing: {', '.join(missing)}", RESTORE)
    return to_record(
        Manifest, {key: value for key, value in document.items() if key not in ("schema", "sha256")}
    )


def _check(manifest: Manifest) -> None:
    for path, digest in manifest.files.items():
        _check_path(path)
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise InputError(f"the hash of {path!r} is {digest!r}", "a SHA-256 has 64 hexadecimal digits")
    for name, entry in manifest.engines.items():
        if not re.fullmatch(NAME, name) or f"{name}/{RECIPE}" not in entry.files:
            raise InputError(f"engine {name!r} has no folder of its name with a {RECIPE}", RESTORE)
        for path in entry.files:
            if path not in manifest.files or not path.startswith(f"{name}/"):
                raise InputError(
                    f"engine {name!r} claims the file {path!r}", did_you_mean(path, manifest.files)
                )
    _check_tasks(manifest)
    _check_input(manifest.input, manifest.batch)


def _check_path(path: str) -> None:
    plain = PurePosixPath(path)
    odd = not re.fullmatch(r"[!-~ ]{1,200}", path) or "\\" in path or ":" in path or ".." in plain.parts
    if odd or plain.is_absolute() or str(plain) != path or path in (".", MANIFEST, SIGNATURE):
        raise InputError(f"{path!r} is no path inside a bundle", "files are named relative to the bundle")


def _check_tasks(manifest: Manifest) -> None:
    names = [task.name for task in manifest.tasks]
    if not names or names[0] != BASE or len(set(names)) != len(names):
        raise InputError(f"tasks are {names}", f"{BASE} comes first, and each name once")
    for task in manifest.tasks:
        if task.name != BASE:
            check_task_name(task.name)
        if task.classes < 1 or (task.labels is not None and len(task.labels) != task.classes):
            raise InputError(f"task {task.name} has {task.classes} classes", "labels are one per class")
        if not set(task.layers) <= {block.index for block in manifest.blocks}:
            raise InputError(
                f"task {task.name} tuned {list(task.layers)}", "layers are indices of the blocks"
            )


def _check_input(spec: InputSpec, batch: int | None) -> None:
    per_channel = len(spec.mean) == len(spec.std) == spec.shape[0]
    if min(spec.shape) < 1 or not per_channel or not 0 < spec.crop <= 1 or 0 in spec.std:
        raise InputError(f"input is {to_plain(spec)}", "a shape, and mean and std per channel, are expected")
    if batch is not None and not 1 <= batch <= LARGEST_BATCH:
        raise InputError(
            f"batch is {batch}", f"a batch is 1 to {LARGEST_BATCH:,}, or null where it is dynamic"
        )
