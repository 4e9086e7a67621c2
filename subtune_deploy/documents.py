"""Records that a command leaves: a JSON file each, of a kind, read back strictly.

@dataclass(frozen=True)
class Profile(Document):
    kind = "profile"
    ...

write_document(Path("profile.json"), found)
read_document(Profile, Path("profile.json"))
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from .errors import InputError
from .records import to_plain, to_record
from .staging import replaced_file

SCHEMA = 1


@dataclass(frozen=True)
class Document:
    """`kind`: the command that leaves it."""

    kind: ClassVar[str]


Kind = TypeVar("Kind", bound=Document)


def to_document(document: Document) -> dict[str, Any]:
    """What JSON holds: `schema` and `kind` beside the fields."""
    return {"schema": SCHEMA, "kind": document.kind, **to_plain(document)}


def from_document(kind: type[Kind], document: object, place: str = "the document") -> Kind:
    """The inverse, from parsed JSON. Raises InputError, naming `place`."""
    found = document if isinstance(document, dict) else {}
    if (found.get("schema"), found.get("kind")) != (SCHEMA, kind.kind):
        raise InputError(
            f"{place} is of schema {found.get('schema')!r} and kind {found.get('kind')!r}, "
            f"expected {SCHEMA} and {kind.kind!r}",
            f"give what subtune-deploy {kind.kind} wrote",
        )
    fields = {key: value for key, value in found.items() if key not in ("schema", "kind")}
    try:
        return to_record(kind, fields)
    except InputError as error:
        raise InputError(f"{place}: {error.message}", error.hint) from error


def write_document(path: Path, document: Document) -> None:
    """As JSON; whole, or not at all. Raises BundleError."""
    with replaced_file(path) as pending:
        pending.write_text(
            json.dumps(to_document(document), indent=1, allow_nan=False) + "\n", encoding="utf-8"
        )


def read_document(kind: type[Kind], path: Path) -> Kind:
    """Raises InputError for a file that is not there, no JSON, or not of this kind."""
    hint = f"give what subtune-deploy {kind.kind} wrote"
    if not path.is_file():
        raise InputError(f"there is no file {path}", hint)
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}", hint) from error
    return from_document(kind, document, str(path))
