"""Files of tensors: what other readers of the format see, alike each time, and refused when anything changed."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from subtune_deploy.errors import CheckpointError
from subtune_deploy.tensorfile import ZEROS, StoredTensor, read_tensors, write_tensors

AT = 8 + len('{"__metadata__":{"sha256":"')


def stored(array: np.ndarray, dtype: str) -> StoredTensor:
    return StoredTensor(dtype, array.shape, memoryview(array.tobytes()))


def example() -> dict[str, StoredTensor]:
    rng = np.random.default_rng(0)
    return {
        "head.weight": stored(rng.standard_normal((3, 4)).astype(np.float32), "F32"),
        "half": stored(rng.integers(0, 1 << 16, (2, 2), dtype=np.uint16), "BF16"),
        "steps": stored(np.array(7, dtype=np.int64), "I64"),
        "none": stored(np.zeros((0, 5), dtype=np.float32), "F32"),
        "mask": stored(np.array([True, False, True]), "BOOL"),
    }


METADATA = {"format": "test", "labels": '["heron", "\\u00e9"]', "said": 'a "quoted" é'}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_tensors(tmp_path / "a", example(), METADATA)
    return tmp_path / "a"


def sealed(content: bytes) -> bytes:
    """`content` with the digest that it should carry: what somebody who knows the format would forge."""
    zeroed = content[:AT] + ZEROS + content[AT + 64 :]
    return content[:AT] + hashlib.sha256(zeroed).hexdigest().encode() + content[AT + 64 :]


def forged(content: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """The same file with another header, its digest made anew."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header, separators=(",", ":")).encode()
    return sealed(len(text).to_bytes(8, "little") + text + content[8 + length :])


def test_what_is_written_is_read(path: Path) -> None:
    metadata, tensors = read_tensors(path)
    assert metadata == METADATA
    assert tensors == example()


def test_the_formats_own_library_reads_the_same(path: Path) -> None:
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == set(example())
        assert file.get_tensor("half").dtype.itemsize == 2
        assert {key: file.metadata()[key] for key in METADATA} == METADATA
        expected = np.frombuffer(example()["head.weight"].data, np.float32).reshape(3, 4)
        assert np.array_equal(file.get_tensor("head.weight").numpy(), expected)
    write_tensors(path, {"x": example()["head.weight"]}, {})
    assert np.array_equal(load_file(path)["x"], expected)


def test_files_are_alike_in_every_process(path: Path, tmp_path: Path) -> None:
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_tensorfile import METADATA, example, write_tensors
write_tensors(Path({str(tmp_path / "b")!r}), dict(reversed(example().items())), dict(reversed(METADATA.items())))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "b").read_bytes() == path.read_bytes()


def test_data_is_aligned(path: Path) -> None:
    content = path.read_bytes()
    assert int.from_bytes(content[:8], "little") % 8 == 0
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert [name for name in header if name != "__metadata__"] == [
        "steps",
        "head.weight",
        "none",
        "half",
        "mask",
    ]


def refused(path: Path, content: bytes) -> CheckpointError:
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_tensors(path)
    assert "\n" not in caught.value.message + caught.value.hint
    assert len(caught.value.message) < 400
    return caught.value


def corruptions(content: bytes, seed: int) -> bytes:
    """One of the ways in which a file comes out wrong; never the file itself."""
    chance = random.Random(seed)
    place = chance.randrange(len(content))
    other = bytearray(content)
    kind = chance.choice(("bit", "bit", "byte", "cut", "longer", "zeros", "moved", "length", "twice"))
    if kind == "bit":
        other[place] ^= 1 << chance.randrange(8)
    elif kind == "byte":
        other[place] = (other[place] + chance.randrange(1, 256)) % 256
    elif kind == "cut":
        del other[place:]
    elif kind == "longer":
        other += chance.randbytes(chance.randrange(1, 100))
    elif kind == "zeros":
        other[place : place + chance.randrange(1, 50)] = bytes(chance.randrange(1, 50))
    elif kind == "moved":
        del other[place : place + chance.randrange(1, 9)]
    elif kind == "length":
        other[:8] = chance.choice((0, 1, 1 << 20, 1 << 40, 1 << 63, (1 << 64) - 1)).to_bytes(8, "little")
    else:
        other += content
    return bytes(other) if bytes(other) != content else corruptions(content, seed + 1_000_000)


def test_nothing_in_a_file_can_change_unnoticed(path: Path) -> None:
    content = path.read_bytes()
    for seed in range(600):
        refused(path, corruptions(content, seed))


def test_every_single_byte_matters(path: Path) -> None:
    content = path.read_bytes()
    for place in range(len(content)):
        refused(path, content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])


def shift(name: str, *offsets: int) -> Callable[[dict[str, Any]], object]:
    return lambda header: header[name].update(data_offsets=list(offsets))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            lambda h: h.update(extra={"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}),
            "does not lie where",
        ),
        (lambda h: h.pop("mask"), "tensors of"),
        (lambda h: h["steps"].update(dtype="F128"), "impossible type"),
        (lambda h: h["steps"].update(dtype=3), "entry.dtype"),
        (lambda h: h["steps"].update(shape=[-1, -1]), "impossible type or shape"),
        (lambda h: h["steps"].update(shape=[1 << 62] * 4), "impossible type or shape"),
        (lambda h: h["steps"].update(shape=[1] * 100), "impossible type or shape"),
        (lambda h: h["steps"].update(shape=[True]), "entry.shape"),
        (lambda h: h["steps"].update(shape=[2]), "does not lie where its shape says"),
        (lambda h: h["steps"].update(surplus=1), "unknown key"),
        (lambda h: h.update(steps=[]), "the document|entry"),
        (shift("steps", 0, 1 << 70), "does not lie"),
        (shift("steps", 8, 0), "does not lie"),
        (shift("steps", -8, 0), "does not lie"),
        (shift("head.weight", 0, 48), "does not lie"),
        (shift("head.weight", 8), "data_offsets"),
        (lambda h: h["__metadata__"].update(format=1), "not text"),
        (lambda h: h["__metadata__"].update(format={"a": "b"}), "not text"),
    ],
)
def test_a_forged_header_with_a_right_digest_is_refused(path: Path, change: Any, complaint: str) -> None:
    assert re.search(complaint, refused(path, forged(path.read_bytes(), change)).message)


def test_a_name_that_is_given_twice_is_refused(path: Path) -> None:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    text = content[8 : 8 + length].rstrip()
    twice = text[:-1] + b',"none":{"dtype":"F32","shape":[0,5],"data_offsets":[56,56]}}'
    error = refused(path, sealed(len(twice).to_bytes(8, "little") + twice + content[8 + length :]))
    assert "given twice" in error.message


def test_a_deeply_nested_header_is_refused(path: Path) -> None:
    text = b'{"__metadata__":{"sha256":"' + ZEROS + b'"},"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    assert "not JSON" in refused(path, sealed(len(text).to_bytes(8, "little") + text)).message


@pytest.mark.parametrize("content", [b"", b"PK", b"\0" * 8, b"\xff" * 200, b"{}" * 200, b"\x80\x04." * 50])
def test_other_files_are_refused(path: Path, content: bytes) -> None:
    assert "does not begin" in refused(path, content).message


def test_a_file_of_the_formats_own_library_is_refused(path: Path) -> None:
    save_file({"a": np.ones(3)}, path)
    assert "does not begin" in refused(path, path.read_bytes()).message


def test_a_huge_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "huge").open("wb") as stream:
        stream.truncate(1 << 40)  # takes no space
    with pytest.raises(CheckpointError, match="more than"):
        read_tensors(tmp_path / "huge")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # opening it would wait forever
    for name, complaint in ((".", "is not a file"), ("nothing", "does not exist"), ("pipe", "is not a file")):
        with pytest.raises(CheckpointError, match=complaint):
            read_tensors(tmp_path / name)
