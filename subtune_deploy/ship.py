"""What leaves the workshop: engines for a device, for a server, or one task for those who have the base.

ship(bundle, "tar", "out.tar", targets=["cpu"], key="key.pem")     engines, references, manifest; signed
ship(bundle, "triton", "models", targets=["cpu"])                  a Triton model repository
ship(bundle, "pack", "birds.pack", task="birds")                   a task's own blocks and head
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from .archive import write_archive
from .bundle import SOURCE, Bundle, open_bundle, save_manifest
from .errors import BundleError, InputError, did_you_mean
from .manifest import Manifest
from .pack import write_pack
from .parity import FILE as REFERENCES
from .signing import sign
from .staging import PREFIX, replaced_file
from .triton import write_repository

KINDS = ("tar", "triton", "pack")


def ship(
    bundle_path: Path | str,
    kind: str,
    out: Path | str,
    *,
    task: str | None = None,
    targets: Sequence[str] = (),
    key: Path | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> Path:
    """Write what `kind` asks for to `out`; where it was written.

    `targets`: engines, for a tar (default: all) and for Triton (one). `task`: for a pack. `key`: signs a tar.
    `say` hears what the receiver does not check. What is shipped is verified first. Raises InputError, BundleError,
    TaskError, Unavailable.
    """
    _check_options(kind, task, targets, key)
    bundle, out = open_bundle(bundle_path), Path(out)
    if out.resolve().is_relative_to(bundle.path.resolve()):
        raise BundleError(f"{out} would lie inside the bundle", "give a place outside of it")
    if kind == "pack":
        assert task is not None
        return write_pack(bundle, task, out)
    if kind == "triton":
        return write_repository(bundle, _one(bundle, targets), out, say)
    return _ship_tar(bundle, out, _chosen(bundle, targets), key)


def device_manifest(manifest: Manifest, targets: Sequence[str]) -> Manifest:
    """The manifest of a device's bundle: these engines and the references, without the engines' sources."""
    engines = {
        name: replace(entry, files=tuple(f for f in entry.files if not f.startswith(f"{name}/{SOURCE}/")))
        for name, entry in manifest.engines.items()
        if name in targets
    }
    names = {REFERENCES, *(file for entry in engines.values() for file in entry.files)}
    return replace(
        manifest,
        engines=engines,
        files={name: digest for name, digest in manifest.files.items() if name in names},
        parity=tuple(each for each in manifest.parity if each.get("engine") in engines),
        measurements=tuple(each for each in manifest.measurements if each.get("target") in engines),
    )


def _check_options(kind: str, task: str | None, targets: Sequence[str], key: Path | None) -> None:
    if kind not in KINDS:
        raise InputError(f"a bundle ships as no {kind!r}", did_you_mean(kind, KINDS))
    if (kind == "pack") != (task is not None):
        given = "no task was given" if task is None else f"task {task!r} was given"
        raise InputError(f"{given} to ship as {kind}", "a pack holds one task: --as pack --task NAME")
    if kind == "pack" and targets:
        raise InputError("a pack has no target", "leave --target away: it fits every engine of its base")
    if kind != "tar" and key is not None:
        raise InputError(f"a {kind} is not signed", "sign a tar: --as tar --sign KEY")


def _chosen(bundle: Bundle, targets: Sequence[str]) -> tuple[str, ...]:
    engines = bundle.manifest.engines
    if not engines:
        raise BundleError(
            f"{bundle.path} has no engine to ship", f"compile one: subtune-deploy compile {bundle.path}"
        )
    for name in targets:
        if name not in engines:
            raise BundleError(f"{bundle.path} has no engine {name!r}", did_you_mean(name, engines))
    return tuple(targets) or tuple(engines)


def _one(bundle: Bundle, targets: Sequence[str]) -> str:
    chosen = _chosen(bundle, targets)
    if len(set(chosen)) != 1:
        raise BundleError(f"a model is one engine, not {', '.join(chosen)}", "choose: --target NAME")
    return chosen[0]


def _ship_tar(bundle: Bundle, out: Path, targets: Sequence[str], key: Path | None) -> Path:
    bundle.verify_hashes()
    manifest = device_manifest(bundle.manifest, targets)
    with (
        replaced_file(out) as pending,
        TemporaryDirectory(prefix=PREFIX, dir=pending.parent) as temporary,
    ):
        device = Bundle(Path(temporary), manifest)
        for name in manifest.files:
            (device.path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.path / name, device.path / name)
        save_manifest(device.path, manifest)
        if key is not None:
            sign(device.path, key)
        write_archive(device, pending)
    return out
