"""Tars and packs spoilt, by accident and by those who know their format."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pickle
import random
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tampering_forgeries import file_added, file_and_hash, sensible_edit
from tampering_kinds import Way, Workshop, append, empty, flip_bit, other_signature, overwrite, truncate
from tiny_shipping import BLOCK, edited, joined, members, named

from subtune_deploy.archive import unpack, write_archive
from subtune_deploy.bundle import open_bundle
from subtune_deploy.manifest import MANIFEST, SIGNATURE

# tars


def of_members(change: Callable[[random.Random, list[bytes]], list[bytes]]) -> Way:
    """The tar with other members."""

    def way(chance: random.Random, copy: Path, _: Workshop) -> None:
        copy.write_bytes(joined(change(chance, members(copy.read_bytes()))))

    return way


def rearranged(chance: random.Random, parts: list[bytes]) -> list[bytes]:
    """Twice, missing, in another order, or one too many."""
    number = chance.randrange(len(parts))
    without = [*parts[:number], *parts[number + 1 :]]
    return chance.choice(
        (
            [*parts, parts[number]],
            [*parts[:number], parts[number], *parts[number:]],
            without,
            [*without, parts[number]] if number < len(parts) - 1 else parts[::-1],
            [*parts, named(parts[number], b"zzz")],
            [],
        )
    )


NAMES = (
    b"../escaped", b"../../../../tmp/escaped", b"/tmp/escaped", b"/etc/passwd", b"cpu/../../escaped", b"./graph.onnx",
    b"cpu//graph.onnx", b"C:\\escaped", b"\\\\host\\share", b"", b".", b"..", b"~/escaped", b"cpu", b"graph.onnx/x",
    b"gr\xc3\xa4ph.onnx", b"\xff\xfe", b"graph.onnx ", b"GRAPH.ONNX", b"\x1b[2J", b"a" * 100, b"con", b"graph.onnx\0x",
)  # fmt: skip


def other_name(chance: random.Random, parts: list[bytes]) -> list[bytes]:
    """A member whose name leads elsewhere."""
    number = chance.randrange(len(parts))
    name = chance.choice(NAMES)
    change = {"prefix": b"../.."} if chance.random() < 0.2 else {"name": name}
    new = edited(parts[number], fill=100 if "name" in change else 0, **change)
    return [*parts[:number], new, *parts[number + 1 :]]


def other_kind(chance: random.Random, parts: list[bytes]) -> list[bytes]:
    """A link, device, folder, pipe, sparse file or extension; in a member's place, or before it."""
    number = chance.randrange(len(parts))
    kind = chance.choice(b"123456789ASLKgxXVNDM\0")
    target = chance.choice((b"/etc/passwd", b"../canary/song.txt", b"manifest.json", b""))
    new = edited(parts[number], fill=100, link=target)
    new = edited(new, type=bytes([kind]))
    return [*parts[:number], new, *parts[number + (chance.random() < 0.5) :]]


def through_a_link(chance: random.Random, parts: list[bytes]) -> list[bytes]:
    """A link to a folder outside, then a file below it."""
    empty_member = edited(parts[1][:BLOCK], fill=100, name=b"cpu", link=b"../canary")
    link = edited(empty_member, type=b"2", size=b"00000000000")
    return [parts[0], link, *parts[1:]]


def other_size(chance: random.Random, parts: list[bytes]) -> list[bytes]:
    """A size that is not the member's."""
    sizes = (
        b"77777777777", b"00000000000", b"00000000001", b"\x80" + bytes(10), b"\xff" * 11, b"-0000000001",
        b"         77", b"0x000000fff", b"99999999999", b"00100000000",
    )  # fmt: skip
    number = chance.randrange(len(parts))
    size = chance.choice([each for each in sizes if each != parts[number][124:135]])
    return [*parts[:number], edited(parts[number], size=size), *parts[number + 1 :]]


def other_field(chance: random.Random, parts: list[bytes]) -> list[bytes]:
    """Another owner, time, mode, magic or checksum."""
    number = chance.randrange(len(parts))
    part = parts[number]
    new = chance.choice(
        (
            edited(part, mode=b"0004755"),
            edited(part, mode=b"0100644"),
            edited(part, uid=b"0001750"),
            edited(part, uname=b"root"),
            edited(part, mtime=b"14712345670"),
            edited(part, magic=b"ustar  \0"),
            edited(part, magic=bytes(8)),
            part[:148] + b"000000\0 " + part[156:],
        )
    )
    return [*parts[:number], new, *parts[number + 1 :]]


def swapped_contents(chance: random.Random, parts: list[bytes]) -> list[bytes]:
    """Two members under each other's names."""
    one, other = sorted(chance.sample(range(len(parts)), 2))
    names = [parts[index][:100].rstrip(b"\0") for index in (one, other)]
    parts[one], parts[other] = named(parts[other], names[0]), named(parts[one], names[1])
    return parts


def manifest_inside(chance: random.Random, parts: list[bytes]) -> list[bytes]:
    """Another manifest: none, deep, with a way out, longer than any."""
    size = int(parts[0][124:135], 8)
    text = parts[0][BLOCK : BLOCK + size]
    document: dict[str, Any] = json.loads(text)
    document["files"]["../escaped"] = "0" * 64
    content = chance.choice(
        (
            b"",
            b"null",
            b"[" * 1_000_000,
            json.dumps(document).encode(),
            text.replace(b'"tiny"', b'"tinu"'),
            text[: size // 2],
            text + b" " * 1000,
            chance.randbytes(size),
        )
    )
    header = edited(parts[0], size=b"%011o" % len(content))[:BLOCK]
    return [header + content + bytes(-len(content) % BLOCK), *parts[1:]]


def of_another_program(chance: random.Random, copy: Path, shop: Workshop) -> None:
    """The right files, in a tar as other programs write them, or packed."""
    form = chance.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT))
    mode = chance.choice(("w", "w:gz", "w:xz", "w:bz2"))
    stream = io.BytesIO()
    folder = shop.folder / "bundle"
    with tarfile.open(fileobj=stream, mode=mode, format=form) as tar:  # type: ignore[call-overload]
        if chance.random() < 0.5:
            tar.add(folder, arcname=chance.choice((".", "", "bundle")))
        else:
            for name in (MANIFEST, *sorted(open_bundle(folder).manifest.files)):
                tar.add(folder / name, name)
    copy.write_bytes(stream.getvalue())


def no_tar(chance: random.Random, copy: Path, shop: Workshop) -> None:
    """Something else, or nothing that can be read to its end."""
    kind = chance.choice(("noise", "zeros", "gzip", "holes", "pipe", "folder", "pack", "twice"))
    content = copy.read_bytes()
    if kind == "holes":
        os.truncate(copy, 64 << 20)
    elif kind == "pipe":
        copy.unlink()
        os.mkfifo(copy)
    elif kind == "folder":
        copy.unlink()
        copy.mkdir()
    else:
        copy.write_bytes(
            {
                "noise": chance.randbytes(20_000),
                "zeros": bytes(10_240),
                "gzip": gzip.compress(content),
                "pack": (shop.folder / "birds.pack").read_bytes(),
                "twice": content + content,
            }[kind]
        )


TARS: dict[str, Way] = {
    "a bit flipped": flip_bit,
    "bytes overwritten": overwrite,
    "truncated": truncate,
    "extended": append,
    "emptied": empty,
    "members rearranged": of_members(rearranged),
    "a name that leads elsewhere": of_members(other_name),
    "a link, device or extension": of_members(other_kind),
    "a file through a link": of_members(through_a_link),
    "another size": of_members(other_size),
    "another field of a header": of_members(other_field),
    "contents swapped": of_members(swapped_contents),
    "another manifest": of_members(manifest_inside),
    "a tar of another program": of_another_program,
    "no tar": no_tar,
}


def remade(change: Way, signature: str) -> Way:
    """Unpacked, changed with hashes that fit, packed again; the signature old, another's, or none."""

    def way(chance: random.Random, copy: Path, shop: Workshop) -> None:
        folder = copy.parent / "remaking"
        unpack(copy, folder)
        change(chance, folder, shop)
        if signature == "other":
            other_signature(folder, shop)
        elif signature == "none":
            (folder / SIGNATURE).unlink()
        write_archive(open_bundle(folder), copy)
        shutil.rmtree(folder)

    return way


def unchanged(_: random.Random, folder: Path, shop: Workshop) -> None:
    """As it was: only the signature is another."""


def other_file(chance: random.Random, folder: Path, shop: Workshop) -> None:
    """A file altered, added, or the manifest edited."""
    chance.choice((file_and_hash, file_added, sensible_edit))(chance, folder, shop)


SIGNED_TARS: dict[str, Way] = {
    "altered under the old signature": remade(other_file, "old"),
    "altered and signed by another": remade(other_file, "other"),
    "altered and not signed": remade(other_file, "none"),
    "signed by another": remade(unchanged, "other"),
    "not signed": remade(unchanged, "none"),
    "a bit flipped": flip_bit,
}


# packs

ZEROS = "0" * 64


def refashioned(
    content: bytes, change: Callable[[dict[str, Any]], object], data: bytes | None = None
) -> bytes:
    """A pack with another header, and the digest that belongs to it."""
    length = int.from_bytes(content[:8], "little")
    document = json.loads(content[8 : 8 + length])
    metadata = document["__metadata__"]
    change(document)
    document["__metadata__"] = {**metadata, **document["__metadata__"], "sha256": ZEROS}
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    whole = len(text).to_bytes(8, "little") + text + (content[8 + length :] if data is None else data)
    return whole.replace(ZEROS.encode(), hashlib.sha256(whole).hexdigest().encode(), 1)


def forged_metadata(chance: random.Random, copy: Path, _: Workshop) -> None:
    """A pack that says of itself what cannot be, or is of another base."""
    edits: tuple[dict[str, str], ...] = (
        {"base": ZEROS.replace("0", "a")},
        {"base": "x"},
        {"model": "resnet50"},
        {"task": "../birds"},
        {"task": "base"},
        {"classes": "-1"},
        {"classes": "4"},
        {"classes": "[" * 100_000},
        {"classes": "9" * 10_000},
        {"labels": '["a"]'},
        {"layers": "99999999999999"},
        {"layers": "1-999999999"},
        {"layers": "x"},
        {"input": "{}"},
        {"input": '{"shape": [3, 64, 64]}'},
        {"siamese": "3"},
        {"schema": "99"},
        {"format": "other"},
        {"notes": "{}"},
        {"no_such": "1"},
    )
    edit = chance.choice(edits)
    copy.write_bytes(refashioned(copy.read_bytes(), lambda document: document["__metadata__"].update(edit)))


def forged_tensors(chance: random.Random, copy: Path, _: Workshop) -> None:
    """Tensors that overlap, leave the file, or are of an impossible kind, shape or name."""

    def change(document: dict[str, Any]) -> None:
        name = chance.choice([key for key in document if key != "__metadata__"])
        entry = document[name]
        edits: tuple[Callable[[], object], ...] = (
            lambda: entry.update(shape=[10**12, 10**12]),
            lambda: entry.update(shape=[-1]),
            lambda: entry.update(shape=[0]),
            lambda: entry.update(shape=[1] * 1000),
            lambda: entry.update(data_offsets=[0, 1 << 62]),
            lambda: entry.update(data_offsets=[5, 1]),
            lambda: entry.update(data_offsets=[0, 4]),
            lambda: entry.update(dtype="F128"),
            lambda: entry.update(dtype="I32"),
            lambda: entry.update(secret=1),
            lambda: document.pop(name),
            lambda: document.update({f"{name}.x": document.pop(name)}),
            lambda: document.update({name: None}),
            document.clear,
        )
        chance.choice(edits)()
        document.setdefault("__metadata__", {})

    copy.write_bytes(refashioned(copy.read_bytes(), change))


def forged_header(chance: random.Random, copy: Path, _: Workshop) -> None:
    """A header of an absurd length, deep, huge, or none."""
    content = copy.read_bytes()
    sizes = (0, 1, 1 << 24, 1 << 40, (1 << 64) - 1)
    headers = (b"[" * 1_000_000, b"{" * 70, b" " * (17 << 20), b"null", b"\xff" * 1000)
    if chance.random() < 0.5:
        copy.write_bytes(chance.choice(sizes).to_bytes(8, "little") + content[8:])
        return
    header = content[8:35] + chance.choice(headers) if chance.random() < 0.5 else chance.choice(headers)
    copy.write_bytes(len(header).to_bytes(8, "little") + header)


class _Harm:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("harm-done",))


def no_pack(chance: random.Random, copy: Path, shop: Workshop) -> None:
    """Another file, or none."""
    kind = chance.choice(("pickle", "tar", "onnx", "noise", "pipe", "folder", "gone", "twice"))
    content = copy.read_bytes()
    copy.unlink()
    if kind == "pipe":
        os.mkfifo(copy)
    elif kind == "folder":
        copy.mkdir()
    elif kind != "gone":
        copy.write_bytes(
            {
                "pickle": pickle.dumps(_Harm()),
                "tar": (shop.folder / "one.tar").read_bytes(),
                "onnx": (shop.folder / "bundle" / "graph.onnx").read_bytes(),
                "noise": chance.randbytes(5000),
                "twice": content + content,
            }[kind]
        )


PACKS: dict[str, Way] = {
    "a bit flipped": flip_bit,
    "bytes overwritten": overwrite,
    "truncated": truncate,
    "extended": append,
    "emptied": empty,
    "forged metadata": forged_metadata,
    "forged tensors": forged_tensors,
    "a forged header": forged_header,
    "no pack": no_pack,
}
