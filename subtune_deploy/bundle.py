"""The folder that ships: graphs, engines, and a manifest that accounts for every file."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from . import __version__
from .backends import get_backend
from .backends.base import ROLES, Backend, Batch, Progress, Target, silent, without_paths
from .errors import BundleError, InputError
from .manifest import (
    MANIFEST,
    NO_BUNDLE,
    RECIPE,
    RESTORE,
    SIGNATURE,
    EngineEntry,
    Manifest,
    read_manifest,
    to_json,
)
from .precision import carried, converted, int8_form, weight_bits
from .records import to_plain, to_record
from .staging import PREFIX, remove_abandoned, replaced_file, staged, told_as, without
from .targets import check_target

NAMED = 10
"""Files that an error names; of more it gives the number."""
SOURCE = "source"
"""In an engine's folder: the graphs it was compiled from, where those are not the bundle's own."""
PATIENCE = 60
"""Seconds to wait for who holds a bundle: it is held for the time of renaming, not of compiling."""


@dataclass(frozen=True)
class Checked:
    """What a check found out about an engine: parity figures, facts; `ran`: the engine itself was run."""

    figures: Sequence[Mapping[str, Any]] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    ran: bool = True


Compile = Callable[[Path, Path, str, Target, Progress], None]
"""As `Backend.compile`."""

Check = Callable[[Path], Checked]
"""Given an engine's folder before it gets its final name; raises to refuse the engine."""


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
        told = "; ".join(f"{what}: {_listed(names)}" for what, names in found if names)
        if told:
            raise BundleError(f"bundle {self.path} is not as it was made: {told}", RESTORE)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def open_bundle(path: Path | str) -> Bundle:
    """The bundle in folder `path`. Raises BundleError for anything else, and for a malformed manifest."""
    path = Path(path)
    if not path.is_dir():
        what = "does not exist" if not path.exists() else "is a file, not a bundle"
        raise BundleError(f"{path} {what}", NO_BUNDLE)
    if not (path / MANIFEST).is_file():
        raise BundleError(f"{path} is not a bundle: it holds no {MANIFEST}", NO_BUNDLE)
    _files(path)
    return Bundle(path, read_manifest(path / MANIFEST))


def not_a_bundles(folder: Path) -> str:
    """What in `folder` no bundle's manifest accounts for, in words: a folder with such is not replaced."""
    try:
        document = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError):
        return f"no {MANIFEST} of a bundle"
    ours = isinstance(document, dict) and {"schema", "sha256"} <= document.keys()
    if not (ours and isinstance(document.get("files"), dict)):
        return f"{MANIFEST} is no bundle's"
    return _listed(sorted(_files(folder) - document["files"].keys()))


def seal(folder: Path, manifest: Manifest) -> Manifest:
    """Write the manifest into `folder`, with the hash of every file that lies there now."""
    complete = replace(manifest, files=_hashes(folder, ""))
    save_manifest(folder, complete)
    return complete


def save_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace the manifest in `folder` at once; hashes are taken as they stand in it."""
    with replaced_file(folder / MANIFEST) as pending:
        pending.write_text(to_json(manifest), encoding="utf-8")


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Nobody else who asks for the bundle in `folder` reads or replaces its manifest meanwhile. Raises BundleError."""
    import filelock  # a tenth of the time that importing the runtime takes, which holds nothing

    try:
        with filelock.FileLock(
            _lock(folder), timeout=PATIENCE
        ):  # the system releases it, however a process ends
            yield
    except filelock.Timeout as error:
        raise BundleError(f"{folder} is held by another process", "wait until that is done") from error


def _lock(folder: Path) -> Path:
    """A file of the user's that stands for the bundle, which itself holds nothing but what its manifest names."""
    try:
        place = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "subtune-deploy", "locks")
        place.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # also where there is no home
        raise BundleError(
            f"no folder for locks can be made: {error}", "set XDG_CACHE_HOME to a folder of your own"
        ) from error
    return place / f"{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]}.lock"


def add_engine(
    bundle: Bundle,
    target: Target,
    check: Check = lambda folder: Checked(),
    *,
    make: Compile | None = None,
    calibration: Batch | None = None,
    progress: Progress = silent,
    graphs: Path | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Bundle:
    """Compile both graphs for `target` into the folder of its name, and enter it in the manifest.

    An engine of that name is replaced, with its parity figures and measurements. `make` takes the place of the
    backend's `compile`. `calibration`: inputs (n, C, H, W) that an int8 target needs. `graphs`: a folder with other
    graphs of these tasks, which the engine keeps with it; `facts`: told of it besides. Nothing changes if compiling
    or `check` fails. Raises BundleError, TargetError, InputError (calibration), Unavailable, and what `check`
    raises.
    """
    backend = get_backend(target.backend)
    built = {name for entry in bundle.manifest.engines.values() for name in entry.files}
    bundle.verify_hashes(name for name in bundle.manifest.files if name not in built)
    with (
        ExitStack() as last,
        replaced_file(bundle.path / MANIFEST) as pending,
        staged(bundle.path / target.name, without(RECIPE)) as folder,
    ):
        source = compiler_source(graphs or bundle.path, folder, target, calibration)
        if source == graphs:
            shutil.copytree(graphs, folder / SOURCE)
        with told_as(source, bundle.path):  # a converted graph that is refused is not kept: say whose it was
            for role in ROLES:
                (make or backend.compile)(source, folder, role, target, progress)
        (folder / RECIPE).write_text(json.dumps(_recipe(target), indent=1) + "\n", encoding="utf-8")
        checked = check(folder)
        last.enter_context(held(bundle.path))  # until folder and manifest have their names
        remove_abandoned(bundle.path)
        current = read_manifest(bundle.path / MANIFEST)  # it may have changed while we compiled
        checked = replace(checked, facts={**checked.facts, **(facts or {})})
        manifest = _with_engine(current, target, backend, _hashes(folder, f"{target.name}/"), checked)
        pending.write_text(to_json(manifest), encoding="utf-8")
    return Bundle(bundle.path, manifest)


def _recipe(target: Target) -> dict[str, Any]:
    """As a bundle carries it: without what goes without saying, for a device's older version knows no such keys."""
    bits = weight_bits(target) if target.precision == "int8" else 0
    plain = to_plain(replace(without_paths(target), weight_bits=bits))
    usual: dict[str, tuple[Any, ...]] = {"keep": ([],), "weight_bits": (0, 8)}
    return {key: value for key, value in plain.items() if value not in usual.get(key, ())}


def compiler_source(graphs: Path, folder: Path, target: Target, calibration: Batch | None) -> Path:
    """Where a compiler reads: `graphs`, or the same in the target's precision, which is then made in `folder`."""
    if not carried(target):
        return graphs
    source = folder / SOURCE
    source.mkdir()
    converted(graphs, source, target.precision, calibration, form=int8_form(target), keep=target.keep)
    return source


def engine_source(bundle: Bundle, folder: Path, target: Target) -> Path:
    """Where the graphs lie that the engine in `folder` was compiled from."""
    own = folder / SOURCE
    return own if carried(target) or own.is_dir() else bundle.path


def engine_target(bundle: Bundle, name: str) -> Target:
    """The target that engine `name` of this bundle was compiled for, without any paths. Raises BundleError."""
    path, entry = bundle.path / name / RECIPE, bundle.manifest.engines[name]
    try:
        target = to_record(Target, json.loads(path.read_text(encoding="utf-8")))
        if target.precision == "int8" and not target.weight_bits:
            target = replace(target, weight_bits=8)
        check_target(target)
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read: {error}", RESTORE) from error
    except InputError as error:
        raise BundleError(f"{path}: {error.message}", RESTORE) from error
    if (target.name, target.backend, target.precision) != (name, entry.backend, entry.precision):
        raise BundleError(f"{path} is not the recipe of engine {name!r}", RESTORE)
    return without_paths(target)


def _with_engine(
    manifest: Manifest,
    target: Target,
    backend: Backend,
    hashes: Mapping[str, str],
    checked: Checked,
) -> Manifest:
    old = manifest.engines[target.name].files if target.name in manifest.engines else ()
    versions = {target.backend: backend.probe().version, "subtune-deploy": __version__}
    files = tuple(hashes)
    entry = EngineEntry(target.backend, target.precision, versions, files, checked.facts, checked.ran)
    kept = {name: digest for name, digest in manifest.files.items() if name not in old}
    return replace(
        manifest,
        engines={**manifest.engines, target.name: entry},
        files={**kept, **hashes},
        parity=(
            *_of_others(manifest.parity, "engine", target),
            *({**each, "engine": target.name} for each in checked.figures),
        ),
        measurements=_of_others(manifest.measurements, "target", target),
    )


def _of_others(
    records: Iterable[Mapping[str, Any]], key: str, target: Target
) -> tuple[Mapping[str, Any], ...]:
    return tuple(record for record in records if record.get(key) != target.name)


def _files(root: Path) -> set[str]:
    """Every file below `root` but manifest, signature and what is being made, as relative paths; BundleError for a
    link."""
    found: set[str] = set()
    for folder, folders, names in os.walk(root):
        if folder == str(root):
            folders[:], names[:] = (
                [each for each in some if not each.startswith(PREFIX)] for some in (folders, names)
            )
        for name in (*folders, *names):
            path = Path(folder, name)
            if path.is_symlink():
                raise BundleError(f"{path} is a link", "a bundle holds plain files; copy what it points to")
            if not path.is_file() and not path.is_dir():  # reading a pipe would wait for ever
                raise BundleError(f"{path} is not a plain file", RESTORE)
        found.update(Path(folder, name).relative_to(root).as_posix() for name in names)
    return found - {MANIFEST, SIGNATURE}


def _hashes(folder: Path, prefix: str) -> dict[str, str]:
    return {prefix + name: _sha256(folder / name) for name in sorted(_files(folder))}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
