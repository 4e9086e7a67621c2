"""A bundle as one file: a tar that has one form, so that whatever has another form is refused.

    manifest.json, then model.sig where the bundle is signed, then every file of the manifest, by name

Each is a plain file whose header holds its name and size, and of the rest what `_header` writes: no owner, no
time, no link, no extension. Any tar reads it; equal bundles give equal bytes. `unpack` takes nothing else.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .bundle import Bundle, not_a_bundles, open_bundle
from .errors import BundleError, SubtuneError
from .manifest import LARGEST, MANIFEST, SIGNATURE
from .staging import staged

BLOCK = 512
CHUNK = 1 << 20

LIMIT = 64 << 30
"""Bytes of the largest archive that is unpacked, unless a caller says otherwise."""
LIMITS = {MANIFEST: LARGEST, SIGNATURE: 16 << 20}
"""Bytes of the largest manifest and signature."""
FILES = 10_000
"""Files in a bundle, at most."""

_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"5": "a folder",
    b"6": "a pipe",
    b"S": "a sparse file",
    b"K": "a GNU extension",
    b"L": "a GNU extension",
    b"g": "a pax extension",
    b"x": "a pax extension",
}
_AGAIN = "get the archive again from where it was shipped: subtune-deploy ship writes it"

Check = Callable[[Path], object]
"""Given the unpacked folder before it gets its final name; raises to refuse it."""


def write_archive(bundle: Bundle, out: Path) -> None:
    """Write the bundle's manifest, signature and files to the file `out`, in place.

    Raises BundleError for a name or a file that the format cannot hold (100 letters, 8 GB).
    """
    signed = [SIGNATURE] if (bundle.path / SIGNATURE).is_file() else []
    with out.open("wb") as stream:
        for name in (MANIFEST, *signed, *sorted(bundle.manifest.files)):
            _add(stream, bundle.path / name, name)
        stream.write(bytes(2 * BLOCK))


def unpack(archive: Path, out: Path, *, limit: int = LIMIT, check: Check | None = None) -> Bundle:
    """Unpack an archive of `write_archive` into the folder `out`, every hash compared.

    The folder appears when all is well, or not at all; an older bundle of that name is replaced. Nothing is
    written outside it. `check` sees it first. Raises BundleError, and what `check` raises.
    """
    with (
        _opened(archive, limit, out) as stream,
        staged(out, not_a_bundles) as folder,
        _told_of(archive, folder),
    ):
        _extract(stream, folder, MANIFEST)
        bundle = open_bundle(folder)
        names = sorted(bundle.manifest.files)
        if len(names) > FILES:
            raise BundleError(f"{archive} lists {len(names)} files, the most is {FILES}", _AGAIN)
        if _next_name(stream) == SIGNATURE:
            _extract(stream, folder, SIGNATURE)
        for name in names:
            _extract(stream, folder, name)
        _check_end(stream)
        bundle.verify_hashes()
        if check is not None:
            check(folder)
    return Bundle(out, bundle.manifest)


def _add(stream: BinaryIO, path: Path, name: str) -> None:
    with path.open("rb") as source:
        size = os.fstat(source.fileno()).st_size
        if not name.isascii() or len(name) > 100 or size >= 8 << 30:
            raise BundleError(
                f"{path} has {size} bytes, and a name of {len(name)} letters",
                "an archive takes 8 GB per file, and names of 100 ASCII letters; ship fewer engines, or the folder",
            )
        stream.write(_header(name, size))
        shutil.copyfileobj(source, stream, CHUNK)
        stream.write(bytes(-size % BLOCK))
        if source.tell() != size:
            raise BundleError(f"{path} was written to meanwhile", "ship the bundle again")


def _header(name: str, size: int) -> bytes:
    """The only header for this name and size (POSIX ustar, a plain file, mode 0644)."""
    start = name.encode("ascii").ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2
    start += b"%011o\0" % size + b"%011o\0" % 0
    end = b"0" + bytes(100) + b"ustar\0" + b"00" + bytes(64) + b"0000000\0" * 2 + bytes(155 + 12)
    return start + b"%06o\0 " % sum(start + b" " * 8 + end) + end


@contextmanager
def _opened(archive: Path, limit: int, out: Path) -> Iterator[BinaryIO]:
    """The archive, if it is a plain file of a bearable size, and the disk has room for what it holds."""
    if not archive.is_file():
        raise BundleError(f"{archive} is {'no file' if archive.exists() else 'not there'}", "give a tar file")
    size = archive.stat().st_size
    if size > limit:
        raise BundleError(f"{archive} has {size} bytes, the most is {limit}", "raise the limit, or ship less")
    free = shutil.disk_usage(next(each for each in out.resolve().parents if each.exists())).free
    if size > free:
        raise BundleError(f"{archive} has {size} bytes, the disk of {out} has {free} left", "free some space")
    try:
        stream = archive.open("rb")
    except OSError as error:
        raise BundleError(f"{archive} cannot be read: {error.strerror}", "check its permissions") from error
    with stream:
        yield stream


@contextmanager
def _told_of(archive: Path, folder: Path) -> Iterator[None]:
    """Errors about the folder for the time being are errors of the archive."""
    try:
        yield
    except SubtuneError as error:
        raise type(error)(error.message.replace(str(folder), str(archive)), error.hint) from error
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        named = Path(str(error.filename)).name
        raise BundleError(f"{archive}: {named} is both a file and a folder", _AGAIN) from error


def _extract(stream: BinaryIO, folder: Path, expected: str) -> None:
    """Write the next member, which must be the file `expected`. Raises BundleError."""
    name, size = _read_header(stream)
    if name != expected:
        raise BundleError(f"{folder} holds {name!r} where {expected!r} is due", _AGAIN)
    if size > LIMITS.get(name, _left(stream)):
        raise BundleError(f"{folder}: {name} is said to have {size} bytes", _AGAIN)
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as target:
        while size > 0:
            chunk = stream.read(min(size, CHUNK))
            if not chunk:
                raise BundleError(f"{folder} ends within {name}", _AGAIN)
            target.write(chunk)
            size -= len(chunk)
        padding = -target.tell() % BLOCK
    if stream.read(padding) != bytes(padding):
        raise BundleError(f"{folder}: {name} is not filled up with zeros", _AGAIN)


def _read_header(stream: BinaryIO) -> tuple[str, int]:
    """Name and size of the next member, whose header must be just what we would write for them."""
    block = stream.read(BLOCK)
    try:
        name, size = block[:100].rstrip(b"\0").decode("ascii"), int(block[124:135], 8)
        usual = size >= 0 and len(name) <= 100 and block == _header(name, size)
    except ValueError:
        name, usual = block[:100].rstrip(b"\0").decode("ascii", "replace"), False
    if usual:
        return name, size
    if len(block) < BLOCK or not any(block):
        raise BundleError("the archive ends too early", _AGAIN)
    kind = _KINDS.get(block[156:157], "of an odd form") if block[257:262] == b"ustar" else "of an odd form"
    raise BundleError(f"the archive's member {name!r} is {kind}, plain files alone are taken", _AGAIN)


def _next_name(stream: BinaryIO) -> str:
    """The name in the next header, which stays unread."""
    place = stream.tell()
    name = stream.read(BLOCK)[:100].rstrip(b"\0").decode("ascii", "replace")
    stream.seek(place)
    return name


def _left(stream: BinaryIO) -> int:
    return os.fstat(stream.fileno()).st_size - stream.tell()


def _check_end(stream: BinaryIO) -> None:
    rest = stream.read(2 * BLOCK + 1)
    if rest != bytes(2 * BLOCK):
        told = "ends too early" if len(rest) < 2 * BLOCK else "holds something after its last file"
        raise BundleError(f"the archive {told}", _AGAIN)
