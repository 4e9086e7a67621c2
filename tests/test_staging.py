"""Nothing is half-written under a final name, and nothing that is not ours is replaced."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_bundle import TARGETS, make_bundle, tree

from subtune_deploy.bundle import Bundle, add_engine, not_a_bundles, open_bundle
from subtune_deploy.errors import BundleError
from subtune_deploy.staging import PREFIX, checked_place, replaced_file, staged, without

CPU = TARGETS["onnxruntime"]
OURS = without("manifest.json")


def write_and_raise(path: Path, failure: BaseException) -> None:
    path.write_text("new")
    raise failure


def test_a_staged_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    final = tmp_path / "new" / "deep" / "bundle"
    with staged(final, OURS) as folder:
        assert not final.exists()
        assert folder.parent == final.parent  # one disk, so that a rename is enough
        assert folder.name.startswith(".subtune-tmp-")
        (folder / "manifest.json").write_text("{}")
    assert tree(tmp_path) == {"new/deep/bundle/manifest.json": b"{}"}


@pytest.mark.parametrize(
    "failure", [RuntimeError("no"), KeyboardInterrupt(), SystemExit(1), BundleError("a", "b")]
)
@pytest.mark.parametrize("existing", [True, False])
def test_a_failure_leaves_what_was_there(tmp_path: Path, failure: BaseException, existing: bool) -> None:
    final = tmp_path / "deep" / "bundle"
    if existing:
        final.mkdir(parents=True)
        (final / "manifest.json").write_text("old")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(type(failure)), staged(final, OURS) as folder:
        write_and_raise(folder / "manifest.json", failure)
    assert sorted(tmp_path.rglob("*")) == before
    if existing:
        assert (final / "manifest.json").read_text() == "old"


def test_an_older_bundle_and_an_empty_folder_are_replaced(tmp_path: Path) -> None:
    for content in ({"manifest.json": "old", "stale.bin": "x"}, {}):
        final = tmp_path / "bundle"
        final.mkdir()
        for name, text in content.items():
            (final / name).write_text(text)
        with staged(final, OURS) as folder:
            (folder / "manifest.json").write_text("new")
        assert tree(tmp_path) == {"bundle/manifest.json": b"new"}
        shutil.rmtree(final)


def test_a_file_or_a_folder_of_other_things_is_in_the_way_before_any_work_is_done(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("mine")
    before = tree(tmp_path)
    for name, complaint in (
        ("file", "is a file"),
        ("folder", "holds other things"),
        ("file/bundle", "Not a directory"),
        ("x" * 300, "File name too long"),
    ):
        with pytest.raises(BundleError, match=complaint), staged(tmp_path / name, OURS):
            pytest.fail("the work began")
    assert tree(tmp_path) == before


def test_a_full_disk_is_told_with_what_to_do(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "graph.onnx").write_text("first part")
        Path("/dev/full").write_text("second part")

    expected = pytest.raises(BundleError, match="No space left on device")
    with expected as caught, staged(tmp_path / "bundle", OURS) as folder:
        write(folder)
    assert "free some space" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_under_a_library_in_c_is_told_too(tmp_path: Path) -> None:
    # A file-size limit stands for the full disk; the writer is this package's own compile step.
    bundle = make_bundle(tmp_path / "bundle")
    code = f"""
import resource
from subtune_deploy.bundle import add_engine, open_bundle
from subtune_deploy.errors import BundleError
from subtune_deploy.backends.base import Target
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    add_engine(open_bundle({str(bundle.path)!r}), Target("cpu", "onnxruntime", "fp32", "", 1))
except BundleError as error:
    print("refused", error.message)
"""
    before = tree(tmp_path)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("refused"), done.stderr
    assert tree(tmp_path) == before
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 2000


def test_missing_rights_are_told(tmp_path: Path) -> None:
    def denied(path: Path) -> PermissionError:
        return PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    with (
        pytest.raises(BundleError, match="Permission denied") as caught,
        staged(tmp_path / "bundle", OURS) as folder,
    ):
        raise denied(folder / "graph.onnx")
    assert "may write to" in caught.value.hint
    with pytest.raises(PermissionError), staged(tmp_path / "bundle", OURS):
        raise denied(Path("/somewhere/else"))  # reading another file is not this folder's trouble


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(BundleError, match="Permission denied"), staged(tmp_path / "bundle", OURS):
        pytest.fail("the work began")


def test_a_file_is_replaced_at_once_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replaced_file(path) as pending:
        write_and_raise(pending, KeyboardInterrupt())
    assert tree(tmp_path) == {"manifest.json": b"old"}
    with replaced_file(path) as pending:
        pending.write_text("new")
        assert path.read_text() == "old"
    assert tree(tmp_path) == {"manifest.json": b"new"}
    for place in (tmp_path, tmp_path / "none" / "file"):
        with pytest.raises(BundleError, match="a file is to be written there"), replaced_file(place):
            pytest.fail("the work began")


def test_what_appears_in_the_way_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    def appear() -> None:
        (tmp_path / "bundle").mkdir()
        (tmp_path / "bundle" / "thesis.txt").write_text("mine")

    with pytest.raises(BundleError, match="holds other things"), staged(tmp_path / "bundle", OURS):
        appear()
    assert tree(tmp_path) == {"bundle/thesis.txt": b"mine"}


def test_where_a_file_cannot_be_written_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may write anywhere, so the system's answer is made up."""
    checked_place(tmp_path / "results.json")
    monkeypatch.setattr(os, "access", lambda path, how: (path, how) != (tmp_path, os.W_OK))
    with pytest.raises(BundleError, match=r"results\.json cannot be written: Permission denied"):
        checked_place(tmp_path / "results.json")


# what a bundle may replace


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "bundle")


@pytest.mark.parametrize(
    "name, content, told",
    [
        ("thesis.txt", "mine", r"\(thesis\.txt\)"),
        ("notes/today.txt", "mine", r"\(notes/today\.txt\)"),
        ("manifest.json", '{"name": "my extension", "files": []}', "manifest.json is no bundle's"),
        ("manifest.json", '{"schema": 3, "sha256": "", "files": 5}', "manifest.json is no bundle's"),
        ("manifest.json", "[1]", "manifest.json is no bundle's"),
        ("manifest.json", "no JSON", "no manifest.json of a bundle"),
    ],
)
def test_a_bundle_replaces_no_folder_with_what_no_bundle_has(
    bundle: Bundle, name: str, content: str, told: str
) -> None:
    (bundle.path / name).parent.mkdir(exist_ok=True)
    (bundle.path / name).write_text(content)
    before = tree(bundle.path)
    with pytest.raises(BundleError, match=f"holds other things.*{told}"), staged(bundle.path, not_a_bundles):
        pytest.fail("the work began")
    assert tree(bundle.path) == before


def test_a_bundle_replaces_one_that_is_damaged_signed_or_older(bundle: Bundle) -> None:
    (bundle.path / "graph.onnx").write_text("damaged")
    (bundle.path / "base.onnx").unlink()
    (bundle.path / "model.sig").write_text("signed")
    document = json.loads((bundle.path / "manifest.json").read_text())
    (bundle.path / "manifest.json").write_text(json.dumps({**document, "schema": 2}))
    with staged(bundle.path, not_a_bundles) as folder:
        (folder / "new").write_text("new")
    assert set(tree(bundle.path)) == {"new"}


# what a killed process leaves

KILLED = """
import os, signal, sys
from subtune_deploy.bundle import add_engine, open_bundle
from subtune_deploy.backends.base import Target

def make(source, folder, role, target, progress):
    (folder / "half.bin").write_bytes(bytes(9))
    os.kill(os.getpid(), signal.SIGKILL)

add_engine(open_bundle(sys.argv[1]), Target("cpu", "onnxruntime", "fp32", "", 1), make=make)
"""


def leftovers(folder: Path) -> list[Path]:
    return list(folder.glob(f"{PREFIX}*"))


def test_a_killed_compile_spoils_no_bundle_and_the_next_one_tidies_up(bundle: Bundle) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(bundle.path)], check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (left,) = leftovers(bundle.path)
    assert (left / "half.bin").is_file()
    open_bundle(bundle.path).verify_hashes()
    living = bundle.path / f"{PREFIX}{os.getppid()}-01234567"
    living.mkdir()
    add_engine(bundle, CPU).verify_hashes()
    assert leftovers(bundle.path) == [living]


def test_a_bundle_verifies_while_an_engine_is_compiled_in_it(bundle: Bundle) -> None:
    def make(source: Path, folder: Path, *_: object) -> None:
        (folder / "graph.bin").write_bytes(bytes(9))
        open_bundle(bundle.path).verify_hashes()

    assert "cpu/graph.bin" in add_engine(bundle, CPU, make=make).manifest.files


def test_a_file_of_the_users_that_is_called_so_counts_where_it_is_not_ours(bundle: Bundle) -> None:
    """Only what lies at the top is being made."""
    (bundle.path / "deep").mkdir()
    (bundle.path / "deep" / f"{PREFIX}1-0").write_text("mine")
    with pytest.raises(BundleError, match="not in the manifest: deep/"):
        bundle.verify_hashes()
