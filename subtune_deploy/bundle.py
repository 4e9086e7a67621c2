"""The folder that ships: graphs, engines, and a manifest that accounts for every file."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any

from . import __version__
from .backends import get_backend
from .backends.base import ROLES, Backend, Target
from .errors import BundleError, InputError, did_you_mean
from .records import to_plain, to_record
from .spec import BASE, Block, InputSpec, check_task_name
from .staging import replaced_file, staged

MANIFEST = "manifest.json"
RECIPE = "target.json"
"""In an engine's folder: the target it was compiled for."""
SCHEMA = 1

_NOT_ONE = "give the folder that subtune-deploy export wrote"
_RESTORE = "restore the files, or export and compile the bundle again"

Check = Callable[[Path], Sequence[Mapping[str, Any]]]
"""Given an engine's folder before it gets its final name, its parity figures; raises to refuse the engine."""


@dataclass(frozen=True)
class TaskEntry:
    """One output of the graph; the first is the base. `labels` are by class number."""

    name: str
    layers: tuple[int, ...]
    classes: int
    labels: tuple[str, ...] | None = None
    siamese: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class EngineEntry:
    """A compiled target; its files lie in the folder of its name."""

    backend: str
    precision: str
    versions: Mapping[str, str]
    files: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says, beside its schema version. Batch None is dynamic; hashes are SHA-256."""

    model: str
    weights: str
    input: InputSpec
    batch: int | None
    blocks: tuple[Block, ...]
    tasks: tuple[TaskEntry, ...]
    plan: Mapping[str, Any]
    versions: Mapping[str, str]
    parity: tuple[Mapping[str, Any], ...] = ()
    measurements: tuple[Mapping[str, Any], ...] = ()
    engines: Mapping[str, EngineEntry] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    tool_version: str = __version__


@dataclass(frozen=True)
class Bundle:
    """An opened bundle. Its manifest is well formed; its files are as they are, until hashes are verified."""

    path: Path
    manifest: Manifest

    def verify_hashes(self, only: Iterable[str] | None = None) -> None:
        """Raise BundleError naming files that were altered, are missing, or that the manifest does not know.

        With `only`, those files alone are looked at.
        """
        known = self.manifest.files if only is None else {name: self.manifest.files[name] for name in only}
        present = _files(self.path)
        altered = [n for n, digest in known.items() if n in present and _sha256(self.path / n) != digest]
        missing = [name for name in known if name not in present]
        surplus = sorted(present - set(known)) if only is None else []
        found = (("altered", altered), ("missing", missing), ("not in the manifest", surplus))
        told = "; ".join(f"{what}: {', '.join(names)}" for what, names in found if names)
        if told:
            raise BundleError(f"bundle {self.path} is not as it was made: {told}", _RESTORE)


def open_bundle(path: Path | str) -> Bundle:
    """The bundle in folder `path`. Raises BundleError for anything else, and for a malformed manifest."""
    path = Path(path)
    if not path.is_dir():
        what = "does not exist" if not path.exists() else "is a file, not a bundle"
        raise BundleError(f"{path} {what}", _NOT_ONE)
    if not (path / MANIFEST).is_file():
        raise BundleError(f"{path} is not a bundle: it holds no {MANIFEST}", _NOT_ONE)
    _files(path)
    return Bundle(path, _read_manifest(path / MANIFEST))


def seal(folder: Path, manifest: Manifest) -> Manifest:
    """Write the manifest into `folder`, with the hash of every file that lies there now."""
    complete = replace(manifest, files=_hashes(folder, ""))
    save_manifest(folder, complete)
    return complete


def save_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace the manifest in `folder` at once; hashes are taken as they stand in it."""
    with replaced_file(folder / MANIFEST) as pending:
        pending.write_text(_to_json(manifest), encoding="utf-8")


def add_engine(bundle: Bundle, target: Target, check: Check | None = None) -> Bundle:
    """Compile both graphs for `target` into the folder of its name, and enter it in the manifest.

    An engine of that name is replaced, with its parity figures and measurements. Nothing changes if
    compiling or `check` fails. Raises BundleError, TargetError, Unavailable, and what `check` raises.
    """
    backend = get_backend(target.backend)
    built = {name for entry in bundle.manifest.engines.values() for name in entry.files}
    bundle.verify_hashes(name for name in bundle.manifest.files if name not in built)
    with (
        replaced_file(bundle.path / MANIFEST) as pending,
        staged(bundle.path / target.name, replace_kind=RECIPE) as folder,
    ):
        for role in ROLES:
            backend.compile(bundle.path, folder, role, target)
        (folder / RECIPE).write_text(json.dumps(to_plain(target), indent=1) + "\n", encoding="utf-8")
        figures = check(folder) if check is not None else ()
        current = _read_manifest(bundle.path / MANIFEST)  # it may have changed while we compiled
        manifest = _with_engine(current, target, backend, _hashes(folder, f"{target.name}/"), figures)
        pending.write_text(_to_json(manifest), encoding="utf-8")
    return Bundle(bundle.path, manifest)


def engine_target(bundle: Bundle, name: str) -> Target:
    """The target that engine `name` of this bundle was compiled for. Raises BundleError."""
    path = bundle.path / name / RECIPE
    try:
        return to_record(Target, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read: {error}", _RESTORE) from error
    except InputError as error:
        raise BundleError(f"{path}: {error.message}", _RESTORE) from error


def _with_engine(
    manifest: Manifest,
    target: Target,
    backend: Backend,
    hashes: Mapping[str, str],
    figures: Sequence[Mapping[str, Any]],
) -> Manifest:
    old = manifest.engines[target.name].files if target.name in manifest.engines else ()
    versions = {target.backend: backend.probe().version, "subtune-deploy": __version__}
    entry = EngineEntry(target.backend, target.precision, versions, tuple(hashes))
    kept = {name: digest for name, digest in manifest.files.items() if name not in old}
    return replace(
        manifest,
        engines={**manifest.engines, target.name: entry},
        files={**kept, **hashes},
        parity=(
            *_of_others(manifest.parity, "engine", target),
            *({**each, "engine": target.name} for each in figures),
        ),
        measurements=_of_others(manifest.measurements, "target", target),
    )


def _of_others(
    records: Iterable[Mapping[str, Any]], key: str, target: Target
) -> tuple[Mapping[str, Any], ...]:
    return tuple(record for record in records if record.get(key) != target.name)


def _to_json(manifest: Manifest) -> str:
    return json.dumps({"schema": SCHEMA, **to_plain(manifest)}, indent=1, allow_nan=False) + "\n"


def _read_manifest(path: Path) -> Manifest:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}", _NOT_ONE) from error
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not JSON: {error}", _RESTORE) from error
    try:
        manifest = _from_json(document)
        _check(manifest)
    except InputError as error:
        raise BundleError(f"{path}: {error.message}", error.hint) from error
    return manifest


def _from_json(document: object) -> Manifest:
    if not isinstance(document, dict) or "schema" not in document:
        raise InputError("not a manifest: it has no schema version", _NOT_ONE)
    if document["schema"] != SCHEMA:
        given = document["schema"]
        raise InputError(f"schema version is {given!r}, this version reads {SCHEMA}", "update subtune-deploy")
    missing = [each.name for each in fields(Manifest) if each.name not in document]
    if missing:
        raise InputError(f"missing: {', '.join(missing)}", _RESTORE)
    return to_record(Manifest, {key: value for key, value in document.items() if key != "schema"})


def _check(manifest: Manifest) -> None:
    for path, digest in manifest.files.items():
        _check_path(path)
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise InputError(f"the hash of {path!r} is {digest!r}", "a SHA-256 has 64 hexadecimal digits")
    for name, entry in manifest.engines.items():
        for path in entry.files:
            if path not in manifest.files or not path.startswith(f"{name}/"):
                raise InputError(
                    f"engine {name!r} claims the file {path!r}", did_you_mean(path, manifest.files)
                )
    _check_tasks(manifest)
    _check_input(manifest.input, manifest.batch)


def _check_path(path: str) -> None:
    plain = PurePosixPath(path)
    odd = "\\" in path or ":" in path or "\0" in path or ".." in plain.parts
    if odd or plain.is_absolute() or str(plain) != path or path in (".", MANIFEST):
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
    if batch is not None and batch < 1:
        raise InputError(f"batch is {batch}", "a batch is at least 1, or null where it is dynamic")


def _files(root: Path) -> set[str]:
    """Every file below `root` but the manifest, as relative paths; BundleError for a link."""
    found: set[str] = set()
    for folder, folders, names in os.walk(root):
        for name in (*folders, *names):
            path = Path(folder, name)
            if path.is_symlink():
                raise BundleError(f"{path} is a link", "a bundle holds plain files; copy what it points to")
        found.update(Path(folder, name).relative_to(root).as_posix() for name in names)
    return found - {MANIFEST}


def _hashes(folder: Path, prefix: str) -> dict[str, str]:
    return {prefix + name: _sha256(folder / name) for name in sorted(_files(folder))}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
