"""Files of tensors in the safetensors format, alike every time they are written, and whole or refused when read.

The format itself has no checksum, and its own library writes metadata in random order. Here the first entry of
the metadata is a SHA-256 over the whole file, taken with zeros in its own place: header, names, shapes,
metadata and data alike. Other readers of the format take these files as any others. No torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import CheckpointError, InputError
from .records import to_record

DAMAGED_ARRAYS: tuple[type[Exception], ...] = (
    OSError, ValueError, KeyError, EOFError, MemoryError, OverflowError, RuntimeError, zipfile.BadZipFile, zlib.error,
    tokenize.TokenError,
)  # fmt: skip
"""What NumPy and the libraries below it raise on .npy and .npz files that lie about themselves."""

SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
"""Bytes of one value, by the format's names of types."""

START = b'{"__metadata__":{"sha256":"'
ZEROS = b"0" * 64
LIMIT = 1 << 32  # bytes of a file that is read
HEADER_LIMIT = 1 << 24
DIMENSIONS, LENGTH = 8, 1 << 40

_AT = 8 + len(START)
_AGAIN = "have it written again, or copied whole"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as it lies in a file: `dtype` one of `SIZES`, `data` its bytes, little-endian, in C order."""

    dtype: str
    shape: tuple[int, ...]
    data: memoryview


@dataclass(frozen=True)
class _Entry:
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def write_tensors(path: Path, tensors: Mapping[str, StoredTensor], metadata: Mapping[str, str]) -> None:
    """Write `path`, the same bytes for the same content. Raises OSError."""
    names = sorted(tensors, key=lambda name: (-SIZES[tensors[name].dtype], name))  # aligned without gaps
    header = _header({name: tensors[name] for name in names}, metadata)
    digest = hashlib.sha256(header)
    for name in names:
        digest.update(tensors[name].data)
    with path.open("wb") as stream:
        stream.write(header[:_AT] + digest.hexdigest().encode() + header[_AT + len(ZEROS) :])
        for name in names:
            stream.write(tensors[name].data)


def _header(tensors: Mapping[str, StoredTensor], metadata: Mapping[str, str]) -> bytes:
    """The length and the header, with zeros for the digest, padded so that the data is aligned."""
    document: dict[str, Any] = {"__metadata__": {"sha256": ZEROS.decode(), **dict(sorted(metadata.items()))}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.data.nbytes
        document[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, StoredTensor]]:
    """(metadata, tensors) of a file that `write_tensors` wrote, every byte of it as it was written.

    Nothing in it is run. Raises CheckpointError.
    """
    content = _content(path)
    start = 8 + int.from_bytes(content[:8], "little")
    if content[8:_AT] != START:
        raise _refused(path, "it does not begin as a file of subtune-deploy's own does")
    if not _AT + len(ZEROS) < start <= min(len(content), HEADER_LIMIT):
        raise _refused(path, f"it has {len(content)} bytes, and a header of {start - 8}")
    if content[_AT : _AT + len(ZEROS)] != _digest(content):
        raise _refused(path, "its bytes do not give the SHA-256 that it carries, so it was altered or cut")
    try:
        return _parsed(content[8:start], memoryview(content)[start:])
    except (ValueError, RecursionError) as error:
        raise _refused(path, f"its header is not JSON of the right kind: {error}") from error
    except InputError as error:
        raise _refused(path, error.message) from error


def _refused(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path} is refused: {reason}", _AGAIN)


def _content(path: Path) -> bytearray:
    if not path.is_file():  # neither a folder nor a pipe, which would block
        what = "is not a file" if path.exists() else "does not exist"
        raise CheckpointError(f"{path} {what}", "check the path")
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size > LIMIT:
                raise _refused(path, f"it has {size} bytes, more than {LIMIT}")
            return bytearray(stream.read(size + 1))
    except (OSError, MemoryError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}", "check its rights, and free memory"
        ) from error


def _digest(content: bytearray) -> bytes:
    view = memoryview(content)
    digest = hashlib.sha256(view[:_AT])
    digest.update(ZEROS)
    digest.update(view[_AT + len(ZEROS) :])
    return digest.hexdigest().encode()


def _parsed(header: bytearray, data: memoryview) -> tuple[dict[str, str], dict[str, StoredTensor]]:
    document = json.loads(header, object_pairs_hook=_unique)
    metadata = document.pop("__metadata__")
    if not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("metadata that is not text")
    tensors, end = {}, 0
    for name, value in document.items():
        entry = to_record(_Entry, value, "entry")
        _check_entry(name, entry, end)
        begin, end = entry.data_offsets
        tensors[name] = StoredTensor(entry.dtype, entry.shape, data[begin:end])
    if end != len(data):
        raise ValueError(f"tensors of {end} bytes in {len(data)}")
    del metadata["sha256"]
    return metadata, tensors


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is given twice")
    return found


def _check_entry(name: str, entry: _Entry, begin: int) -> None:
    """One tensor after the other, without gaps, each as long as its shape says."""
    sane = len(entry.shape) <= DIMENSIONS and all(0 <= length < LENGTH for length in entry.shape)
    if entry.dtype not in SIZES or not sane:
        raise ValueError(f"tensor {name[:60]!r} of an impossible type or shape")
    if entry.data_offsets != (begin, begin + math.prod(entry.shape) * SIZES[entry.dtype]):
        raise ValueError(f"tensor {name[:60]!r} does not lie where its shape says")
