"""Bundles spoilt by one who knows the format: every hash and the manifest's checksum are made anew.

Without a signature only what makes no sense can be noticed; with one, everything.
"""

from __future__ import annotations

import base64
import io
import json
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tampering_kinds import Json, Way, Workshop, any_file, forged, other_signature

from subtune_deploy.manifest import MANIFEST, RECIPE, SIGNATURE
from subtune_deploy.parity import FILE as REFERENCES

Place = tuple[Any, ...]

NONSENSE: tuple[tuple[Place, Any], ...] = (
    (("schema",), 1),
    (("schema",), 99),
    (("schema",), True),
    (("batch",), 0),
    (("batch",), -1),
    (("batch",), 5_000),
    (("batch",), 10**15),
    (("batch",), 1.5),
    (("input", "shape"), [3, 8]),
    (("input", "shape"), [3, 8, -8]),
    (("input", "shape"), [3, 9, 9]),
    (("input", "shape"), [3, 10**9, 10**9]),
    (("input", "shape"), [1, 8, 8]),
    (("input", "mean"), []),
    (("input", "std"), [0.5, 0.0, 0.5]),
    (("input", "crop"), 0),
    (("input", "crop"), 1e300),
    (("tasks",), []),
    (("tasks", 0, "name"), "birds"),
    (("tasks", 1, "name"), "base"),
    (("tasks", 1, "name"), "fish"),
    (("tasks", 1, "name"), "../birds"),
    (("tasks", 1, "name"), "b" * 100_000),
    (("tasks", 1, "name"), "bi\ud800rds"),
    (("tasks", 1, "classes"), 4),
    (("tasks", 1, "classes"), 0),
    (("tasks", 0, "classes"), 10),
    (("tasks", 0, "classes"), 10**12),
    (("tasks", 1, "labels"), ["heron"]),
    (("tasks", 1, "layers"), [2]),
    (("tasks", 1, "layers"), [-1]),
    (("blocks",), []),
    (("engines", "cpu", "backend"), "nonsense"),
    (("engines", "cpu", "backend"), "openvino"),
    (("engines", "cpu", "precision"), "int4"),
    (("engines", "cpu", "precision"), "fp16"),
    (("engines", "cpu", "versions"), {}),
    (("engines", "cpu", "versions"), {"onnxruntime": "0.1.0"}),
    (("engines", "cpu", "files"), []),
    (("engines", "cpu", "files"), ["graph.onnx"]),
    (("engines", "cpu", "files"), ["cpu/../graph.onnx"]),
    (("engines", "cpu", "files"), ["cpu/" + "x" * 1_000_000]),
    (("files", "../escaped"), "0" * 64),
    (("files", "/etc/passwd"), "0" * 64),
    (("files", "graph.onnx/x"), "0" * 64),
    (("files", "a\u001b[2Jb"), "0" * 64),
    (("files", "graph.onnx"), "0" * 63),
    (("files", "graph.onnx"), "0" * 64),
    (("files", MANIFEST), "0" * 64),
    (("files", SIGNATURE), "0" * 64),
    (("files",), {}),
)


def makes_no_sense(chance: random.Random, copy: Path, _: Workshop) -> None:
    """A field of a value that cannot be."""
    place, value = chance.choice(NONSENSE)

    def change(document: Json) -> None:
        inside: Any = document
        for key in place[:-1]:
            inside = inside[key]
        inside[place[-1]] = value

    forged(copy, change)


def other_engine_name(chance: random.Random, copy: Path, _: Workshop) -> None:
    """An engine whose name leads elsewhere."""
    name = chance.choice(("../canary", "/etc", "..", ".", "", "cpu/../cpu", "c pu", "cpu\0", "x" * 300))

    def change(document: Json) -> None:
        document["engines"] = {name: {**document["engines"]["cpu"], "files": []}}

    forged(copy, change)


def recipe(chance: random.Random, copy: Path, _: Workshop) -> None:
    """The engine's own recipe is not one, or not this engine's."""
    path = copy / "cpu" / RECIPE
    document = json.loads(path.read_text())
    edits: tuple[Callable[[], object], ...] = (
        lambda: document.update(backend="nonsense"),
        lambda: document.update(backend="../onnxruntime"),
        lambda: document.update(backend="tensorrt"),
        lambda: document.update(precision="fp3"),
        lambda: document.update(precision="int8"),
        lambda: document.update(name="../other"),
        lambda: document.update(name="other"),
        lambda: document.update(threads=-1),
        lambda: document.update(threads=10**12),
        lambda: document.update(threads="many"),
        lambda: document.update(options={"session.no_such": 1}),
        lambda: document.update(options={"x" * 200_000: 1}),
        lambda: document.pop("backend"),
        lambda: document.update(secret=1),
    )
    chance.choice(edits)()
    texts = ("", "{", "[" * 100_000, "null", "\udcff")
    text = chance.choice(texts) if chance.random() < 0.3 else json.dumps(document)
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    forged(copy, lambda _: None, f"cpu/{RECIPE}")


def engine_file(chance: random.Random, copy: Path, _: Workshop) -> None:
    """An engine file that is none, is cut, or is the other role's."""
    path, twin = chance.sample([copy / "cpu" / "graph.onnx", copy / "cpu" / "base.onnx"], 2)
    content, other = path.read_bytes(), twin.read_bytes()
    cut = content[: chance.randrange(len(content) // 2)]
    path.write_bytes(chance.choice((b"", cut, other, chance.randbytes(2000), b"\x08\x0a" * 5000)))
    forged(copy, lambda _: None, f"cpu/{path.name}")


def references(chance: random.Random, copy: Path, _: Workshop) -> None:
    """Reference answers that are none: an archive that is broken, lies, bursts, or would run code."""
    path = copy / REFERENCES
    ways: tuple[Callable[[], bytes], ...] = (
        lambda: b"",
        lambda: path.read_bytes()[: chance.randrange(1, path.stat().st_size)],
        lambda: chance.randbytes(3000),
        lambda: _archive(b"not an array"),
        lambda: _archive(_npy("<f4", (10**6, 10**6))),
        lambda: _archive(_npy("<f4", (2, 3, 8, 8)), names=("inputs.npy",)),
        lambda: _archive(_npy("<f4", (2, 3)), answers=_npy("<f4", (5, 3))),
        lambda: _archive(_npy("|O", (1,)) + b"\x80\x04."),
        lambda: _archive(_npy("<f4", (1, 3, 4096, 4096)) + bytes(3 << 26), method=zipfile.ZIP_DEFLATED),
        lambda: _nothing_to_compare(path),
    )
    path.write_bytes(chance.choice(ways)())
    forged(copy, lambda _: None, REFERENCES)


def _npy(kind: str, shape: tuple[int, ...]) -> bytes:
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"
    header += " " * (-(len(header) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()


def _archive(
    inputs: bytes,
    *,
    answers: bytes = b"",
    names: tuple[str, ...] = ("inputs.npy", "kinds.npy", "answers/base.npy", "answers/birds.npy"),
    method: int = zipfile.ZIP_STORED,
) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name in names:
            archive.writestr(name, inputs if name == "inputs.npy" else answers or inputs)
    return stream.getvalue()


def _nothing_to_compare(path: Path) -> bytes:
    """Good inputs, but no answers: a check of nothing would pass."""
    with np.load(path) as archive:
        inputs, kinds = archive["inputs"], archive["kinds"]
    stream = io.BytesIO()
    np.savez(stream, inputs=inputs, kinds=kinds)
    return stream.getvalue()


FORGERIES: dict[str, Way] = {
    "a value that cannot be": makes_no_sense,
    "an engine's name that leads elsewhere": other_engine_name,
    "an engine's recipe": recipe,
    "an engine file": engine_file,
    "reference answers": references,
}


# with the right hashes and the right sense: only a signature notices


def sensible_edit(chance: random.Random, copy: Path, _: Workshop) -> None:
    """A manifest that says something else, and is well formed."""
    edits: tuple[Callable[[Json], object], ...] = (
        lambda d: d["tasks"][1]["labels"].reverse(),
        lambda d: d["input"].update(mean=[0.4, 0.5, 0.6]),
        lambda d: d["input"].update(interpolation="nearest"),
        lambda d: d["tasks"][1].update(notes=["trust me"]),
        lambda d: d.update(weights="better ones"),
        lambda d: d.update(measurements=[{"target": "cpu", "added": 0.0}]),
        lambda d: d["engines"].clear(),
    )
    forged(copy, chance.choice(edits))


def file_and_hash(chance: random.Random, copy: Path, _: Workshop) -> None:
    """Any file altered, its hash made anew."""
    path = any_file(chance, copy)
    while path.name in (MANIFEST, SIGNATURE):
        path = any_file(chance, copy)
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)
    forged(copy, lambda _: None, path.relative_to(copy).as_posix())


def file_added(chance: random.Random, copy: Path, _: Workshop) -> None:
    """A file more, listed with its hash."""
    name = chance.choice(("cpu/extra.bin", ".gitignore", ".git/config", "notes.txt"))
    (copy / name).parent.mkdir(exist_ok=True)
    (copy / name).write_bytes(chance.randbytes(20))
    forged(copy, lambda _: None, name)


def file_dropped(chance: random.Random, copy: Path, _: Workshop) -> None:
    """A file less, and no longer listed."""
    name = chance.choice(("base.onnx", "references.npz", "graph.onnx"))
    (copy / name).unlink()
    forged(copy, lambda d: d["files"].pop(name))


def other_bundle(_: random.Random, copy: Path, shop: Workshop) -> None:
    """Another bundle of the same signer, under this one's signature; or the other way round."""
    kept = (copy / SIGNATURE).read_bytes()
    shutil.rmtree(copy)
    shutil.copytree(shop.folder / "other", copy)
    (copy / SIGNATURE).write_bytes(kept)


def signed_by_another(_: random.Random, copy: Path, shop: Workshop) -> None:
    """A good signature, of a key that nobody trusts."""
    other_signature(copy, shop)


def signature_gone(chance: random.Random, copy: Path, shop: Workshop) -> None:
    """No signature, or no plain file of that name."""
    path = copy / SIGNATURE
    path.rename(copy.parent / "canary" / SIGNATURE)
    ways: tuple[Callable[[], object], ...] = (
        lambda: None,
        lambda: path.symlink_to(copy.parent / "canary" / SIGNATURE),
        path.mkdir,
        path.touch,
        lambda: path.write_text("[" * 200_000),
        lambda: path.write_text("{}"),
    )
    chance.choice(ways)()


def signature_edited(chance: random.Random, copy: Path, shop: Workshop) -> None:
    """What it claims to have signed is something else; or it names the right key over a signature of another."""
    path = copy / SIGNATURE
    document = json.loads(path.read_text())
    if chance.random() < 0.5:
        envelope = document["dsseEnvelope"]
        payload = json.loads(base64.b64decode(envelope["payload"]))
        payload["predicate"]["resources"][0]["digest"] = "0" * 64
        envelope["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()
    else:
        other_signature(copy, shop)
        hint = document["verificationMaterial"]
        document = json.loads(path.read_text())
        document["verificationMaterial"] = hint
    path.write_text(json.dumps(document, separators=(",", ":")))


def signature_flipped(chance: random.Random, copy: Path, _: Workshop) -> None:
    """One bit of the signature's file."""
    path = copy / SIGNATURE
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


UNSIGNED: dict[str, Way] = {
    "a sensible edit of the manifest": sensible_edit,
    "a file altered": file_and_hash,
    "a file added": file_added,
    "a file dropped": file_dropped,
    "another bundle": other_bundle,
    "signed by another": signed_by_another,
    "the signature gone": signature_gone,
    "the signature edited": signature_edited,
    "a bit of the signature flipped": signature_flipped,
}
