"""Commands that carry bundles: ship, unpack, graft."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from .common import UNASKED, bundle_argument, calibrate_option, key_option, messages, read_inputs, status

_FILE = click.Path(path_type=Path)


@click.command()
@bundle_argument
@click.option(
    "--as",
    "kind",
    type=click.Choice(["tar", "triton", "pack"]),
    required=True,
    help="tar: engines for a device. triton: a model repository. pack: one task's own blocks and head.",
)
@click.option("-o", "--out", type=_FILE, required=True, help="The file, or Triton's model repository.")
@click.option(
    "--target", "targets", multiple=True, metavar="NAME", help="An engine; tar: repeatable, default all."
)
@click.option("--task", metavar="NAME", help="The task of a pack.")
@click.option("--sign", "key", type=_FILE, metavar="KEY", help="Sign the tar with a private key in PEM.")
def ship(
    folder: Path, kind: str, out: Path, targets: tuple[str, ...], task: str | None, key: Path | None
) -> None:
    """Engines for a device or a server, or one task as a pack.

    A tar holds engines, what proves them, and the manifest; subtune-deploy unpack takes it. With --sign, a device
    can insist on your signature (--key). Keys: openssl ecparam -name prime256v1 -genkey -noout -out key.pem; openssl
    ec -in key.pem -pubout -out key.pub.
    """
    from ..ship import ship as write

    with status(f"writing {out}"):
        written = write(folder, kind, out, task=task, targets=targets, key=key, say=messages.print)
    click.echo(f"{kind}: {written}, {_bytes(written):,} bytes{', signed' if key else ''}")


@click.command()
@click.argument("archive", metavar="FILE", type=_FILE)
@click.option("-o", "--out", type=_FILE, required=True, help="The bundle's folder.")
@key_option
def unpack(archive: Path, out: Path, key: Path | None) -> None:
    """A shipped tar as a bundle, every file compared with its hash."""
    from ..archive import unpack as read
    from ..manifest import SIGNATURE
    from ..signing import check_signature

    check = partial(check_signature, public_key=key) if key else None
    with status(f"unpacking {archive}"):
        bundle = read(archive, out, check=check)
    if key is None and (out / SIGNATURE).is_file():
        messages.print(UNASKED)
    click.echo(f"{len(bundle.manifest.files)} files are as they were made{', and signed' if key else ''}")
    click.echo(f"bundle: {out}")


@click.command()
@bundle_argument
@click.argument("pack", metavar="PACK", type=_FILE)
@click.option("-o", "--out", type=_FILE, help="The new bundle; default: in place of the old one.")
@click.option("--model", metavar="MODEL", help="The backbone, where the bundle's own name of it is a file.")
@click.option("--name", metavar="NAME", help="The task's name here; default: the pack's.")
@calibrate_option
@click.option(
    "--rounding", is_flag=True, help="Take other tasks' answers that differ by rounding, up to 1e-4 relative."
)
@click.option("--without", multiple=True, metavar="TARGET", help="An engine to leave out; repeatable.")
def graft(
    folder: Path,
    pack: Path,
    out: Path | None,
    model: str | None,
    name: str | None,
    calibrate: Path | None,
    rounding: bool,
    without: tuple[str, ...],
) -> None:
    """Add a pack's task to a bundle, or replace it; every engine is compiled again."""
    from ..graft import graft as rebuild

    bundle = rebuild(
        folder,
        pack,
        out,
        model=model,
        name=name,
        calibration=read_inputs(calibrate, folder),
        rounding=rounding,
        without=without,
        say=messages.print,
    )
    click.echo(f"tasks: {', '.join(task.name for task in bundle.manifest.tasks)}")
    click.echo(f"engines: {', '.join(bundle.manifest.engines) or 'none'}")
    click.echo(f"bundle: {bundle.path}")


def _bytes(path: Path) -> int:
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return sum(each.stat().st_size for each in files)


COMMANDS = (ship, unpack, graft)
