"""What is corrupted in benchmarks/tampering.py, and how: good victims, and ways to spoil a bundle's folder.

A way is a function of a random generator, the copy that it spoils, and the workshop with all good victims.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent / "tests"))

from tiny_cli import PHOTOGRAPH, cli, tuned, write_network
from tiny_shipping import key_pair, proven_bundle

from subtune_deploy.manifest import MANIFEST, SIGNATURE
from subtune_deploy.ship import ship
from subtune_deploy.signing import sign

Json = dict[str, Any]


@dataclass(frozen=True)
class Workshop:
    """The good victims, by name, and what it takes to use them. Everything lies in `folder`."""

    folder: Path
    answers: Any

    @classmethod
    def opened(cls, folder: Path) -> Workshop:
        """The workshop that `make_workshop` filled."""
        return cls(folder, json.loads((folder / "answers.json").read_text()))

    @property
    def victims(self) -> Mapping[str, Path]:
        """Victim -> its good file or folder."""
        return {
            "bundle": self.folder / "bundle",
            "forged bundle": self.folder / "bundle",
            "signed bundle": self.folder / "signed",
            "tar": self.folder / "one.tar",
            "signed tar": self.folder / "signed.tar",
            "pack": self.folder / "birds.pack",
        }

    @property
    def picture(self) -> Path:
        """What `run` is asked about."""
        return PHOTOGRAPH

    def arguments(self, victim: str, copy: Path, out: Path) -> list[object]:
        """The command that takes in a victim."""
        key = ["--key", self.folder / "key.pub"]
        camera = ["graft", self.folder / "camera", copy, "-o", out]
        return {
            "bundle": ["verify", copy],
            "forged bundle": ["verify", copy],
            "signed bundle": ["verify", copy, *key],
            "tar": ["unpack", copy, "-o", out],
            "signed tar": ["unpack", copy, "-o", out, *key],
            "pack": [*camera, "--model", f"{self.folder / 'net.py'}:Net"],
        }[victim]


def make_workshop(folder: Path) -> Workshop:
    """Good victims in a new folder: bundles and tars of a tiny network, and a pack of a real small one."""
    folder.mkdir()
    private, _ = key_pair(folder)
    key_pair(folder, "forger")
    bundle = proven_bundle(folder / "bundle")
    shutil.copytree(bundle.path, folder / "signed")
    sign(folder / "signed", private)
    proven_bundle(folder / "other", batch=2)
    sign(folder / "other", private)
    ship(bundle.path, "tar", folder / "one.tar")
    ship(bundle.path, "tar", folder / "signed.tar", key=private)
    base = write_network(folder)
    _save(tuned(base, [3], 3), folder / "birds.pt")
    network = ["--model", f"{folder / 'net.py'}:Net", "--weights", folder / "base.pt"]
    _done("export", *network, "--task", f"birds={folder / 'birds.pt'}", "-o", folder / "camera")
    _done("ship", folder / "camera", "--as", "pack", "--task", "birds", "-o", folder / "birds.pack")
    ran = cli("run", bundle.path, PHOTOGRAPH, "--json").document
    (folder / "answers.json").write_text(json.dumps(ran["pictures"][0]["answers"]))
    return Workshop.opened(folder)


def _save(state: object, path: Path) -> None:
    import torch

    torch.save(state, path)


def _done(*arguments: object) -> None:
    ran = cli(*arguments)
    if ran.status:
        raise RuntimeError(f"{arguments}: {ran.err}")


Way = Callable[[random.Random, Path, Workshop], object]
Edit = Callable[[random.Random, Json], object]


# any file


def any_file(chance: random.Random, folder: Path) -> Path:
    """One of the files of a bundle; or the file itself."""
    if folder.is_file():
        return folder
    return chance.choice(sorted(path for path in folder.rglob("*") if path.is_file()))


def flip_bit(chance: random.Random, copy: Path, _: Workshop) -> None:
    """One bit, anywhere."""
    path = any_file(chance, copy)
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def overwrite(chance: random.Random, copy: Path, _: Workshop) -> None:
    """A run of bytes becomes noise, or zeros."""
    path = any_file(chance, copy)
    content = bytearray(path.read_bytes())
    length = min(len(content), chance.choice((1, 8, 512, 4096)))
    start = chance.randrange(len(content) - length + 1)
    new = bytes(length) if chance.random() < 0.3 else chance.randbytes(length)
    if content[start : start + length] == new:
        new = bytes(each ^ 255 for each in new)
    content[start : start + length] = new
    path.write_bytes(content)


def truncate(chance: random.Random, copy: Path, _: Workshop) -> None:
    """The end is missing."""
    path = any_file(chance, copy)
    os.truncate(path, chance.randrange(path.stat().st_size))


def append(chance: random.Random, copy: Path, _: Workshop) -> None:
    """Something follows."""
    with any_file(chance, copy).open("ab") as stream:
        stream.write(chance.choice((b"\0", b"\n", b" ", bytes(512), bytes(10240), chance.randbytes(100))))


def empty(chance: random.Random, copy: Path, _: Workshop) -> None:
    """A file of no bytes."""
    os.truncate(any_file(chance, copy), 0)


def swap_files(chance: random.Random, copy: Path, _: Workshop) -> None:
    """Two files change places."""
    files = sorted(path for path in copy.rglob("*") if path.is_file())
    one, other = chance.sample(files, 2)
    one.rename(copy / "aside")
    other.rename(one)
    (copy / "aside").rename(other)


def remove_file(chance: random.Random, copy: Path, _: Workshop) -> None:
    any_file(chance, copy).unlink()


def add_file(chance: random.Random, copy: Path, _: Workshop) -> None:
    name = chance.choice(
        ("x", ".hidden", "cpu/graph.onnx.data", "cpu/source/x", "__pycache__/x.pyc", "a/b/c/d")
    )
    path = copy / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(chance.randbytes(9))


def rename_file(chance: random.Random, copy: Path, _: Workshop) -> None:
    path = any_file(chance, copy)
    path.rename(path.with_name(path.name.upper()))


def link_file(chance: random.Random, copy: Path, _: Workshop) -> None:
    """A symbolic link in a file's place: to the same content elsewhere, to the system's, to nothing."""
    path = any_file(chance, copy)
    kept = copy.parent / "canary" / "kept"
    path.rename(kept)
    path.symlink_to(chance.choice((kept, "/etc/passwd", "/dev/zero", "nowhere", path)))


def link_folder(chance: random.Random, copy: Path, _: Workshop) -> None:
    (copy / "cpu").rename(copy.parent / "canary" / "cpu")
    (copy / "cpu").symlink_to(chance.choice((copy.parent / "canary" / "cpu", "/", copy)))


def hard_link(chance: random.Random, copy: Path, _: Workshop) -> None:
    """A file becomes another name of one outside."""
    path = any_file(chance, copy)
    path.unlink()
    os.link(copy.parent / "canary" / "song.txt", path)


def special_file(chance: random.Random, copy: Path, _: Workshop) -> None:
    """A pipe, a device without end or a folder; in a file's place, or beside."""
    path = any_file(chance, copy) if chance.random() < 0.7 else copy / "cpu" / "extra"
    path.unlink(missing_ok=True)
    kind = chance.choice(("pipe", "device", "folder"))
    if kind == "folder":
        (path / "x").mkdir(parents=True)
        (path / "x" / "y").write_text("z")
    elif kind == "device" and os.geteuid() == 0:
        os.mknod(path, 0o20666, os.makedev(1, 5))  # /dev/zero
    else:
        os.mkfifo(path)


FILES: dict[str, Way] = {
    "a bit flipped": flip_bit,
    "bytes overwritten": overwrite,
    "a file truncated": truncate,
    "a file extended": append,
    "a file emptied": empty,
    "two files swapped": swap_files,
    "a file removed": remove_file,
    "a file added": add_file,
    "a file renamed": rename_file,
    "a symbolic link for a file": link_file,
    "a symbolic link for a folder": link_folder,
    "a hard link to elsewhere": hard_link,
    "a pipe, device or folder": special_file,
}


# the manifest


def leaves(value: Any, place: tuple[Any, ...] = ()) -> Iterable[tuple[Any, ...]]:
    """The places of all values in a JSON document."""
    if isinstance(value, dict) and value:
        for key, each in value.items():
            yield from leaves(each, (*place, key))
    elif isinstance(value, list) and value:
        for index, each in enumerate(value):
            yield from leaves(each, (*place, index))
    else:
        yield place


def holder(document: Any, place: tuple[Any, ...]) -> Any:
    """What holds the value at a place."""
    for key in place[:-1]:
        document = document[key]
    return document


def manifest_text(change: Callable[[random.Random, str], str | bytes]) -> Way:
    """The manifest's text, changed and never sealed again."""

    def way(chance: random.Random, copy: Path, _: Workshop) -> None:
        path = copy / MANIFEST
        new = change(chance, path.read_text(encoding="utf-8"))
        path.write_bytes(new if isinstance(new, bytes) else new.encode())

    return way


def field_edited(chance: random.Random, text: str) -> str:
    """Any value anywhere becomes another."""
    document = json.loads(text)
    place = chance.choice(list(leaves(document)))
    inside, key = holder(document, place), place[-1]
    others = (None, True, 0, -1, 10**30, 1e300, "", "x", "../x", [], {}, [[1]], "y" * 10_000)
    inside[key] = chance.choice([each for each in others if each != inside[key]])
    return json.dumps(document, indent=1) + "\n"


def key_gone(chance: random.Random, text: str) -> str:
    """A key anywhere is missing, or has another name."""
    document = json.loads(text)
    places = [place for place in leaves(document) if isinstance(place[-1], str)]
    place = chance.choice(places)[: chance.choice((1, None))]
    inside = holder(document, place)
    value = inside.pop(place[-1])
    if chance.random() < 0.4:
        inside[f"{place[-1]}s"] = value
    return json.dumps(document, indent=1) + "\n"


def key_doubled(chance: random.Random, text: str) -> str:
    """A key twice, of which JSON's reader keeps the last."""
    lines = text.splitlines(keepends=True)
    numbers = [n for n, line in enumerate(lines) if '": ' in line and line.rstrip().endswith(",")]
    number = chance.choice(numbers)
    return "".join([*lines[:number], lines[number], *lines[number:]])


def written_otherwise(chance: random.Random, text: str) -> str:
    """The same values in another form."""
    ways = (
        lambda: json.dumps(json.loads(text)),
        lambda: json.dumps(json.loads(text), indent=1, sort_keys=True) + "\n",
        lambda: text.replace("\n", "\r\n"),
        lambda: text + "\n",
        lambda: "\ufeff" + text,
    )
    return chance.choice(ways)()


def no_document(chance: random.Random, text: str) -> str | bytes:
    """JSON of another kind, or none."""
    return chance.choice(("null", "[]", '"x"', "3", "NaN", "{}", "{", text[1:], b"\xff\xfe\x00", b"\0" * 99))


def deep(chance: random.Random, text: str) -> str:
    """Nested deeper than any reader goes; or just deep enough to trouble who comes after the reader."""
    depth = chance.choice((500, 995, 3_000, 20_000, 1_000_000))
    nested = chance.choice(("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth))
    if chance.random() < 0.5:
        return nested
    return text.replace('"plan": {', f'"plan": {{"deep": {nested},', 1)


def huge(chance: random.Random, text: str) -> str:
    """More than a manifest ever has: blanks, digits, a list, one long name."""
    ways = (
        lambda: text + " " * (66 << 20),
        lambda: text.replace('"batch": null', '"batch": ' + "9" * 1_000_000, 1),
        lambda: text.replace('"layers": [', '"layers": [' + "1," * 1_000_000, 1),
        lambda: text.replace('"model": "', '"model": "' + "m" * 5_000_000, 1),
        lambda: text.replace('"files": [', '"files": ["' + "f" * 200_000 + '",', 1),
    )
    return chance.choice(ways)()


def odd_letters(chance: random.Random, text: str) -> str:
    """Names that a terminal would obey, or cannot print."""
    letters = chance.choice((r"\ud800", r"\u001b[2J", r"\u202e", r"\u0000", r"\n\n", r"\u00e9"))
    old = chance.choice(('"graph.onnx"', '"cpu"', '"birds"', '"tiny"', '"cpu/graph.onnx"'))
    return text.replace(old, old[:2] + letters + old[2:])


MANIFESTS: dict[str, Way] = {
    "manifest: a value edited": manifest_text(field_edited),
    "manifest: a key gone or renamed": manifest_text(key_gone),
    "manifest: a key twice": manifest_text(key_doubled),
    "manifest: written otherwise": manifest_text(written_otherwise),
    "manifest: no document": manifest_text(no_document),
    "manifest: deep": manifest_text(deep),
    "manifest: huge": manifest_text(huge),
    "manifest: odd letters": manifest_text(odd_letters),
}


def forged(folder: Path, change: Callable[[Json], object], *altered: str) -> None:
    """Change the manifest and seal it again, with the hashes that the `altered` files have now."""
    path = folder / MANIFEST
    document = json.loads(path.read_text(encoding="utf-8"))
    document.pop("sha256")
    change(document)
    for name in altered:
        document["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    path.write_text(sealed(document), encoding="utf-8")


def sealed(document: Json) -> str:
    """A manifest's text with its checksum, as one who knows the format writes it, sensible or not."""
    text = json.dumps(document, indent=1) + "\n"
    return json.dumps({**document, "sha256": hashlib.sha256(text.encode()).hexdigest()}, indent=1) + "\n"


def other_signature(folder: Path, shop: Workshop) -> None:
    """A signature by a key of the forger's."""
    (folder / SIGNATURE).unlink(missing_ok=True)
    sign(folder, shop.folder / "forger.pem")
