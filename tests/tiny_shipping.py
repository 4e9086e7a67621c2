"""What the tests of shipping share: a bundle with engines and references, key pairs, and tars taken apart."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

from tiny_bundle import TARGETS, expected, manifest, pictures, write_graphs

from subtune_deploy.bundle import Bundle, add_engine, open_bundle, seal
from subtune_deploy.parity import References

BLOCK = 512


def proven_bundle(
    folder: Path, backends: Iterable[str] = ("onnxruntime",), batch: int | None = None
) -> Bundle:
    """A bundle of the tiny network with its references and an engine for each backend."""
    folder.mkdir(parents=True)
    write_graphs(folder, batch or "batch")
    inputs = pictures(2)
    References(inputs, ("random", "random"), expected(inputs)).save(folder)
    seal(folder, manifest(batch))
    bundle = open_bundle(folder)
    for backend in backends:
        bundle = add_engine(bundle, TARGETS[backend])
    return bundle


def key_pair(folder: Path, name: str = "key") -> tuple[Path, Path]:
    """An elliptic private and public key, as files in PEM."""
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()))
    public.write_bytes(
        key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


def tree(folder: Path) -> dict[str, str]:
    """What lies below a folder: hashes of files, and where links point; nothing is followed or opened twice."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "folder" if path.is_dir() else "other"
    return found


def members(archive: bytes) -> list[bytes]:
    """A shipped tar as its members, each a header and what follows it; the end is left out."""
    found, place = [], 0
    while archive[place : place + BLOCK].strip(b"\0"):
        size = int(archive[place + 124 : place + 135], 8)
        length = BLOCK + size + -size % BLOCK
        found.append(archive[place : place + length])
        place += length
    return found


def joined(parts: Iterable[bytes]) -> bytes:
    """The inverse of `members`."""
    return b"".join(parts) + bytes(2 * BLOCK)


FIELDS = {
    "name": 0,
    "mode": 100,
    "uid": 108,
    "size": 124,
    "mtime": 136,
    "type": 156,
    "link": 157,
    "magic": 257,
}
FIELDS |= {"uname": 265, "prefix": 345}
"""Where the fields of a tar's header begin."""


def edited(member: bytes, *, fill: int = 0, **fields: bytes) -> bytes:
    """A member with other fields in its header, and the checksum that belongs to them.

    A `fill` replaces as many bytes of the field, so that a shorter value leaves nothing of the old one.
    """
    header = bytearray(member[:BLOCK])
    for field, value in fields.items():
        start = FIELDS[field]
        header[start : start + max(len(value), fill)] = value.ljust(fill, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + member[BLOCK:]


def named(member: bytes, name: bytes) -> bytes:
    """A member under another name."""
    return edited(member, fill=100, name=name)


Change = Callable[[list[bytes]], Iterable[bytes]]
