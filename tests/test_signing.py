"""Signatures: made and checked without a network; nothing in a signed folder can change unseen."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_cli import cli
from tiny_shipping import key_pair, proven_bundle, tree

from subtune_deploy.bundle import open_bundle
from subtune_deploy.errors import CheckFailed, InputError, Unavailable
from subtune_deploy.signing import check_signature, sign


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return key_pair(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def signed(keys: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = proven_bundle(tmp_path_factory.mktemp("signed") / "tiny")
    sign(bundle.path, keys[0])
    return bundle.path


@pytest.fixture
def folder(signed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(signed, tmp_path / "copy"))


def test_a_signature_holds_for_the_folder_wherever_it_lies(folder: Path, keys: tuple[Path, Path]) -> None:
    check_signature(folder, keys[1])
    assert (folder / "model.sig").is_file()


def test_a_signed_bundle_verifies_and_its_manifest_is_what_it_was(folder: Path) -> None:
    bundle = open_bundle(folder)
    bundle.verify_hashes()
    assert "model.sig" not in bundle.manifest.files


def test_signing_again_replaces_the_signature(folder: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    private, public = key_pair(tmp_path, "other")
    assert sign(folder, private) == folder / "model.sig"
    check_signature(folder, public)
    with pytest.raises(CheckFailed):
        check_signature(folder, keys[1])


def test_timing_a_signed_bundle_leaves_its_signature_good(folder: Path, keys: tuple[Path, Path]) -> None:
    before = tree(folder)
    ran = cli("bench", folder, "--seconds", 0.1)
    assert ran.status == 0, ran.err
    assert "not kept in the bundle, whose signature would hold no longer" in ran.err
    assert " cpu " in ran.out
    check_signature(folder, keys[1])
    assert tree(folder) == before


def test_who_compiles_into_a_signed_bundle_is_told_to_sign_it_again(
    folder: Path, keys: tuple[Path, Path]
) -> None:
    ran = cli("compile", folder, "--target", "cpu")
    assert ran.status == 0, ran.err
    assert ran.err.splitlines()[-1] == "the old signature does not hold for the new bundle: sign it again"
    with pytest.raises(CheckFailed):
        check_signature(folder, keys[1])


def test_a_signature_has_one_spelling(folder: Path, keys: tuple[Path, Path]) -> None:
    path = folder / "model.sig"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=3))  # the same payload, still signed
    with pytest.raises(CheckFailed, match="its file was edited"):
        check_signature(folder, keys[1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no signature": (lambda f: (f / "model.sig").unlink(), "is not signed: it holds no model.sig"),
    "an altered file": (lambda f: flip(f / "cpu" / "graph.onnx"), "does not hold: .*cpu/graph.onnx"),
    "an altered manifest": (lambda f: flip(f / "manifest.json"), "does not hold: .*manifest.json"),
    "an added file": (lambda f: (f / "cpu" / "extra.bin").write_text("x"), "does not hold: .*extra.bin"),
    "a git file": (lambda f: (f / ".gitignore").write_text("x"), "does not hold: .*gitignore"),
    "a missing file": (lambda f: (f / "base.onnx").unlink(), "does not hold: .*base.onnx"),
    "a link": (lambda f: (f / "link").symlink_to("/etc/hostname"), "does not hold: .*symlink"),
    "an altered signature": (lambda f: flip(f / "model.sig"), "does not hold"),
    "a cut signature": (lambda f: (f / "model.sig").write_text('{"mediaType"'), "does not hold"),
    "an empty signature": (lambda f: (f / "model.sig").write_bytes(b""), "does not hold"),
    "a deep signature": (lambda f: (f / "model.sig").write_text("[" * 100_000), "does not hold"),
    "a signature of nothing": (lambda f: (f / "model.sig").write_text("{}"), "does not hold"),
    "a folder for a signature": (
        lambda f: ((f / "model.sig").unlink(), (f / "model.sig").mkdir()),
        "is not signed",
    ),
    "a linked signature": (
        lambda f: (f / "model.sig").rename(f.parent / "s") and (f / "model.sig").symlink_to(f.parent / "s"),
        "is not signed",
    ),
    "a huge signature": (lambda f: (f / "model.sig").write_bytes(bytes(17 << 20)), "is no signature"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_changes_is_noticed(name: str, folder: Path, keys: tuple[Path, Path]) -> None:
    change, complaint = CHANGES[name]
    change(folder)
    with pytest.raises(CheckFailed, match=complaint) as caught:
        check_signature(folder, keys[1])
    assert "\n" not in caught.value.message
    assert caught.value.exit_status == 1


def test_another_key_and_another_bundles_signature_are_noticed(
    folder: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    other_private, other_public = key_pair(tmp_path, "other")
    with pytest.raises(CheckFailed, match=r"[Kk]ey"):
        check_signature(folder, other_public)
    another = proven_bundle(tmp_path / "another", batch=2)
    sign(another.path, keys[0])
    shutil.copy(another.path / "model.sig", folder / "model.sig")
    with pytest.raises(CheckFailed, match="does not hold"):
        check_signature(folder, keys[1])
    sign(another.path, other_private)
    with pytest.raises(CheckFailed):
        check_signature(another.path, keys[1])


def test_a_forger_without_the_key_gains_nothing_by_naming_it(
    folder: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    """The hint of the right key over a signature of another, as the file's outer part is not signed itself."""
    import json

    hint = json.loads((folder / "model.sig").read_text())["verificationMaterial"]
    sign(folder, key_pair(tmp_path, "forger")[0])
    forged = json.loads((folder / "model.sig").read_text())
    forged["verificationMaterial"] = hint
    (folder / "model.sig").write_text(json.dumps(forged))
    with pytest.raises(CheckFailed, match="does not hold"):
        check_signature(folder, keys[1])


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "cannot be read: No such file"),
        (b"", "is no key for this"),
        (b"ssh-rsa AAAA", "is no key for this"),
    ],
)
def test_what_is_no_key_is_named(folder: Path, tmp_path: Path, content: bytes | None, complaint: str) -> None:
    key = tmp_path / "key"
    if content is not None:
        key.write_bytes(content)
    before = tree(folder)
    for use in (sign, check_signature):
        with pytest.raises(InputError, match=complaint) as caught:
            use(folder, key)
        assert "openssl ecparam" in caught.value.hint
    assert tree(folder) == before


def test_keys_of_other_kinds_are_refused(folder: Path, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    kinds = {
        "ed25519": (ed25519.Ed25519PrivateKey.generate(), form.NoEncryption()),
        "curve": (ec.generate_private_key(ec.SECP256K1()), form.NoEncryption()),
        "password": (ec.generate_private_key(ec.SECP256R1()), form.BestAvailableEncryption(b"secret")),
    }
    for name, (key, protection) in kinds.items():
        path = tmp_path / name
        path.write_bytes(key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, protection))
        with pytest.raises(InputError, match="is no key for this"):
            sign(folder, path)


def test_neither_signing_nor_checking_touches_the_network(folder: Path, keys: tuple[Path, Path]) -> None:
    code = f"""
import socket
def refuse(*_, **__):
    raise SystemExit("the network was asked")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
from pathlib import Path
from subtune_deploy.signing import check_signature, sign
sign(Path({str(folder)!r}), Path({str(keys[0])!r}))
check_signature(Path({str(folder)!r}), Path({str(keys[1])!r}))
print("held")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "held\n", done.stderr


def test_without_the_library_what_is_missing_is_said(
    folder: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("signing", "verifying", "hashing"):
        monkeypatch.setitem(sys.modules, f"model_signing.{part}", None)
    for use, key in ((sign, keys[0]), (check_signature, keys[1])):
        with pytest.raises(Unavailable, match="model-signing cannot be imported") as caught:
            use(folder, key)
        assert caught.value.hint == "pip install 'subtune-deploy[sign]'"
        assert caught.value.exit_status == 3
