"""Archives: one form, written the same every time; everything of another form refused with nothing left behind."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_shipping import BLOCK, edited, joined, members, named, proven_bundle, tree

from subtune_deploy import archive as archives
from subtune_deploy.archive import unpack, write_archive
from subtune_deploy.bundle import Bundle, open_bundle
from subtune_deploy.errors import BundleError, CheckFailed


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return proven_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="module")
def data(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A good archive."""
    path = tmp_path_factory.mktemp("tar") / "tiny.tar"
    write_archive(bundle, path)
    return path.read_bytes()


def refused(tmp_path: Path, content: bytes, complaint: str) -> None:
    """Unpacking `content` raises, names the archive, and leaves nothing."""
    path = tmp_path / "hostile.tar"
    path.write_bytes(content)
    before = tree(tmp_path)
    with pytest.raises(BundleError, match=complaint) as caught:
        unpack(path, tmp_path / "new" / "out")
    assert tree(tmp_path) == before
    assert "\n" not in caught.value.message + caught.value.hint
    assert ".subtune-tmp" not in caught.value.message


# writing


def test_the_same_bundle_gives_the_same_bytes(bundle: Bundle, data: bytes, tmp_path: Path) -> None:
    copy = tmp_path / "another_name"
    shutil.copytree(bundle.path, copy)
    for number, path in enumerate(sorted(copy.rglob("*"))):
        os.utime(path, (number, number))
        path.chmod(0o700 if path.is_dir() else 0o640)
    write_archive(open_bundle(copy), tmp_path / "again.tar")
    assert (tmp_path / "again.tar").read_bytes() == data


def test_any_tar_reads_it(bundle: Bundle, data: bytes, tmp_path: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        infos = tar.getmembers()
        assert [info.name for info in infos] == ["manifest.json", *sorted(bundle.manifest.files)]
        for info in infos:
            assert (info.isreg(), info.mode, info.uid, info.gid, info.mtime) == (True, 0o644, 0, 0, 0)
            content = tar.extractfile(info)
            assert content is not None
            assert content.read() == (bundle.path / info.name).read_bytes()
    (tmp_path / "good.tar").write_bytes(data)
    listed = subprocess.run(["tar", "-tf", tmp_path / "good.tar"], capture_output=True, text=True, check=True)
    assert listed.stdout.split() == [info.name for info in infos]
    assert listed.stderr == ""


def test_what_the_form_cannot_hold_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    big = Bundle(tmp_path, bundle.manifest)
    with (tmp_path / "manifest.json").open("wb") as stream:
        stream.truncate(8 << 30)  # a sparse file: nothing is written
    with pytest.raises(BundleError, match="8589934592 bytes"):
        write_archive(big, tmp_path / "out.tar")


# reading


def test_a_bundle_survives_the_journey(bundle: Bundle, data: bytes, tmp_path: Path) -> None:
    (tmp_path / "good.tar").write_bytes(data)
    there = unpack(tmp_path / "good.tar", tmp_path / "deep" / "there")
    assert there.path == tmp_path / "deep" / "there"
    assert there.manifest == bundle.manifest
    assert tree(there.path) == tree(bundle.path)
    assert open_bundle(there.path) == there


def test_an_older_bundle_is_replaced_and_other_things_are_not(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "good.tar").write_bytes(data)
    unpack(tmp_path / "good.tar", tmp_path / "there")
    (tmp_path / "there" / "graph.onnx").write_text("damaged")
    unpack(tmp_path / "good.tar", tmp_path / "there").verify_hashes()
    (tmp_path / "there" / "birds.pt").write_text("mine")
    with pytest.raises(BundleError, match=r"holds other things \(birds\.pt\)"):
        unpack(tmp_path / "good.tar", tmp_path / "there")
    assert (tmp_path / "there" / "birds.pt").read_text() == "mine"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(BundleError, match="holds other things"):
        unpack(tmp_path / "good.tar", tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "mine"


def test_a_check_sees_the_folder_before_it_is_there(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "good.tar").write_bytes(data)
    seen = []

    def refuse(folder: Path) -> None:
        seen.append(open_bundle(folder).path)
        raise CheckFailed(f"no trust in {folder}", "none")

    with pytest.raises(CheckFailed, match=r"no trust in .*good\.tar"):
        unpack(tmp_path / "good.tar", tmp_path / "there", check=refuse)
    assert len(seen) == 1
    assert sorted(tree(tmp_path)) == ["good.tar"]


CHANGES: dict[str, tuple[Callable[[list[bytes]], list[bytes]], str]] = {
    "climbs": (lambda m: [m[0], named(m[1], b"../../escaped"), *m[2:]], r"'\.\./\.\./escaped' where"),
    "absolute": (lambda m: [m[0], named(m[1], b"/tmp/escaped"), *m[2:]], "'/tmp/escaped' where"),
    "climbs in the prefix": (lambda m: [m[0], edited(m[1], prefix=b"../.."), *m[2:]], "of an odd form"),
    "another name": (lambda m: [m[0], named(m[1], b"other.onnx"), *m[2:]], "'other.onnx' where"),
    "backslashes": (lambda m: [m[0], named(m[1], b"..\\escaped"), *m[2:]], "escaped' where"),
    "not ASCII": (lambda m: [m[0], named(m[1], b"gr\xc3\xa4ph.onnx"), *m[2:]], "of an odd form"),
    "empty name": (lambda m: [m[0], named(m[1], b""), *m[2:]], "'' where"),
    "something after the name": (lambda m: [m[0], named(m[1], b"base.onnx\0x"), *m[2:]], "where"),
    "twice": (lambda m: [m[0], m[1], m[1], *m[2:]], "where"),
    "manifest twice": (lambda m: [m[0], *m], "'manifest.json' where"),
    "manifest last": (lambda m: [*m[1:], m[0]], "'manifest.json' is due"),
    "other order": (lambda m: [m[0], m[2], m[1], *m[3:]], "where"),
    "one missing": (lambda m: [m[0], *m[2:]], "where"),
    "last missing": (lambda m: m[:-1], "ends too early"),
    "one too many": (lambda m: [*m, named(m[1], b"zzz")], "something after its last file"),
    "nothing": (lambda m: [], "ends too early"),
    "contents swapped": (lambda m: [m[0], *_swapped(m[1:])], "altered: .*base.onnx"),
    "symbolic link": (
        lambda m: [m[0], edited(m[1], type=b"2", link=b"/etc/passwd"), *m[2:]],
        "a symbolic link",
    ),
    "hard link": (lambda m: [m[0], edited(m[1], type=b"1", link=b"manifest.json"), *m[2:]], "a hard link"),
    "link to a plain file": (lambda m: [m[0], edited(m[1], link=b"/etc/passwd"), *m[2:]], "of an odd form"),
    "character device": (lambda m: [m[0], edited(m[1], type=b"3"), *m[2:]], "a device"),
    "block device": (lambda m: [m[0], edited(m[1], type=b"4"), *m[2:]], "a device"),
    "folder": (lambda m: [m[0], edited(m[1], type=b"5"), *m[2:]], "a folder"),
    "pipe": (lambda m: [m[0], edited(m[1], type=b"6"), *m[2:]], "a pipe"),
    "sparse file": (lambda m: [m[0], edited(m[1], type=b"S"), *m[2:]], "a sparse file"),
    "GNU long name": (lambda m: [m[0], edited(m[1], type=b"L"), *m], "a GNU extension"),
    "pax header": (lambda m: [m[0], edited(m[1], type=b"x"), *m], "a pax extension"),
    "global pax header": (lambda m: [edited(m[1], type=b"g"), *m], "a pax extension"),
    "old type": (lambda m: [m[0], edited(m[1], type=b"\0"), *m[2:]], "of an odd form"),
    "contiguous file": (lambda m: [m[0], edited(m[1], type=b"7"), *m[2:]], "of an odd form"),
    "not ustar": (lambda m: [m[0], edited(m[1], magic=b"ustar  \0"), *m[2:]], "of an odd form"),
    "set-user-id": (lambda m: [m[0], edited(m[1], mode=b"0004755"), *m[2:]], "of an odd form"),
    "owner": (lambda m: [m[0], edited(m[1], uid=b"0001750"), *m[2:]], "of an odd form"),
    "owner's name": (lambda m: [m[0], edited(m[1], uname=b"root"), *m[2:]], "of an odd form"),
    "time": (lambda m: [m[0], edited(m[1], mtime=b"14000000000"), *m[2:]], "of an odd form"),
    "size beyond the file": (lambda m: [*m[:-1], edited(m[-1], size=b"00077777777")], "is said to have"),
    "size of 8 GB": (lambda m: [m[0], edited(m[1], size=b"77777777777"), *m[2:]], "is said to have"),
    "size in another base": (
        lambda m: [m[0], edited(m[1], size=b"\x80" + bytes(11)), *m[2:]],
        "of an odd form",
    ),
    "negative size": (lambda m: [m[0], edited(m[1], size=b"-0000000001"), *m[2:]], "of an odd form"),
    "size with blanks": (lambda m: [m[0], edited(m[1], size=b"        100"), *m[2:]], "of an odd form"),
    "no size": (lambda m: [m[0], edited(m[1], size=b"00000000000"), *m[2:]], "odd form|altered|where"),
    "manifest without end": (lambda m: [edited(m[0], size=b"00400000001"), *m[1:]], "manifest.json is said"),
    "wrong checksum": (lambda m: [m[0], m[1][:148] + b"000000\0 " + m[1][156:], *m[2:]], "of an odd form"),
    "filled up with something": (
        lambda m: [m[0][:-1] + b"x", *m[1:]],
        "filled up with zeros|altered|not JSON",
    ),
}


def _swapped(parts: list[bytes]) -> list[bytes]:
    """The contents of base.onnx and of cpu/base.onnx under each other's headers."""
    found = {part[:100].rstrip(b"\0"): part for part in parts}
    one, other = found[b"base.onnx"], found[b"cpu/base.onnx"]
    found[b"base.onnx"], found[b"cpu/base.onnx"] = named(other, b"base.onnx"), named(one, b"cpu/base.onnx")
    return list(found.values())


@pytest.mark.parametrize("name", CHANGES)
def test_an_archive_of_another_form_is_refused(name: str, data: bytes, tmp_path: Path) -> None:
    change, complaint = CHANGES[name]
    assert joined(members(data)) == data  # the tools of this test take an archive apart and together
    refused(tmp_path, joined(change(members(data))), complaint)


def test_a_truncated_archive_is_refused_wherever_it_ends(data: bytes, tmp_path: Path) -> None:
    ends = [0, 1, 100, 511, 512, 513, len(data) - 1, len(data) - 512, len(data) - 1024, len(data) - 1025]
    for end in [*ends, *range(0, len(data), len(data) // 40)]:
        refused(tmp_path, data[:end], "ends|odd form|said to have|not JSON|not filled up")


@pytest.mark.parametrize("rest", [b"\0", b"x", bytes(512), bytes(10240), b"more" * 1000])
def test_nothing_may_follow_the_last_file(rest: bytes, data: bytes, tmp_path: Path) -> None:
    refused(tmp_path, data + rest, "something after its last file")


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_tars_of_other_programs_are_not_taken(bundle: Bundle, tmp_path: Path, form: int) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as tar:
        for name in ("manifest.json", *sorted(bundle.manifest.files)):
            tar.add(bundle.path / name, name)
    refused(tmp_path, stream.getvalue(), "of an odd form|extension")


def test_what_is_no_tar_is_refused(data: bytes, tmp_path: Path) -> None:
    for content in (
        b"text",
        b"\0" * 4096,
        gzip.compress(data),
        os.urandom(5000),
        b"PK\x03\x04" + bytes(2000),
    ):
        refused(tmp_path, content, "of an odd form|ends too early")
    for path in (tmp_path / "none.tar", tmp_path):
        with pytest.raises(BundleError, match=r"is not there|is no file"):
            unpack(path, tmp_path / "out")
    os.mkfifo(tmp_path / "pipe.tar")  # opening it would wait for ever
    with pytest.raises(BundleError, match="is no file"):
        unpack(tmp_path / "pipe.tar", tmp_path / "out")


def test_an_archive_beyond_the_limit_or_the_disk_is_refused_unread(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "big.tar"
    path.write_bytes(data)
    with pytest.raises(BundleError, match=f"has {len(data)} bytes, the most is 1000"):
        unpack(path, tmp_path / "out", limit=1000)
    with path.open("r+b") as stream:
        stream.truncate(1 << 43)  # 8 TB of holes
    with pytest.raises(BundleError, match="the most is"):
        unpack(path, tmp_path / "out")
    with pytest.raises(BundleError, match=r"the disk of .* has"):
        unpack(path, tmp_path / "out", limit=1 << 44)


def test_a_manifest_that_lists_too_much_is_refused(
    data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "FILES", 3)
    refused(tmp_path, data, "lists 6 files, the most is 3")


def test_the_manifest_in_an_archive_is_read_as_strictly_as_any(data: bytes, tmp_path: Path) -> None:
    parts = members(data)
    size = int(parts[0][124:135], 8)
    document = json.loads(parts[0][BLOCK : BLOCK + size])
    document["files"]["../escaped"] = "0" * 64
    for content in (json.dumps(document).encode(), b"[" * 10_000, b"", b"\xff" * 100):
        header = edited(parts[0], size=b"%011o" % len(content))[:BLOCK]
        body = content + bytes(-len(content) % BLOCK)
        refused(tmp_path, joined([header + body, *parts[1:]]), "no path inside|is not JSON")
