"""Files of JSON lines that grow while a process may be killed: a line is on the disk, or torn and left out."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .errors import InputError


def append_line(path: Path, document: Mapping[str, Any]) -> None:
    """Add a line, on the disk when this returns."""
    with path.open("ab") as stream:
        stream.write(json.dumps(document, allow_nan=False).encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def drop_torn_line(path: Path) -> None:
    """Cut off what a killed process left of its last line; all lines before it stay."""
    if path.exists():
        whole = path.read_bytes().rfind(b"\n") + 1
        if whole < path.stat().st_size:
            os.truncate(path, whole)


def read_lines(path: Path) -> Iterator[tuple[str, object]]:
    """(place as in `trials.jsonl:3`, parsed JSON) of each line but a torn last one. Raises InputError."""
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    for number, text in enumerate(whole.decode("utf-8", "replace").splitlines(), start=1):
        yield f"{path}:{number}", _parsed(text, f"{path}:{number}")


def _parsed(text: str, place: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place} is not JSON: {error}", "give a file that subtune-deploy wrote") from error
