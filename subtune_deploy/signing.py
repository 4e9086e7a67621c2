"""Bundles signed with a key, through OpenSSF's model-signing; no network, no account.

    openssl ecparam -name prime256v1 -genkey -noout -out key.pem      stays with whoever ships
    openssl ec -in key.pem -pubout -out key.pub                       goes to every device

Hashes in a manifest show what broke on the way. Against someone who changes a file and its hash alike only a
signature helps: `model.sig` lists every other file of the folder with its hash, and no file may be added.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

from .errors import CheckFailed, InputError, Unavailable
from .manifest import SIGNATURE
from .staging import replaced_file

LIMIT = 16 << 20
"""Bytes of the largest signature that is read."""

_KEYS = "keys are elliptic (P-256, P-384, P-521), in PEM without a password: openssl ecparam -name prime256v1 -genkey"
_DISTRUST = "do not run this bundle; get it again from whoever signs yours, or check that this is their key"


def sign(folder: Path, private_key: Path) -> Path:
    """Sign all files in `folder` with the key in a PEM file; the signature's path, `folder/model.sig`.

    A signature that is there already is replaced. Raises InputError (the key), Unavailable (no model-signing).
    """
    config = _library("signing").Config()
    with _key_errors(private_key):
        config.use_elliptic_key_signer(private_key=private_key)
    with replaced_file(folder / SIGNATURE) as pending:
        config.set_hashing_config(_hashing()).sign(folder, pending)
    return folder / SIGNATURE


def check_signature(folder: Path, public_key: Path) -> None:
    """Raise CheckFailed unless all files in `folder` are as the holder of the key signed them, and no other.

    `public_key` is a PEM file. Raises InputError (the key) and Unavailable (no model-signing) too.
    """
    config = _library("verifying").Config()
    with _key_errors(public_key):
        config.use_elliptic_key_verifier(public_key=public_key)
    path = folder / SIGNATURE
    if path.is_symlink() or not path.is_file():
        raise CheckFailed(f"{folder} is not signed: it holds no {SIGNATURE}", _DISTRUST)
    if path.stat().st_size > LIMIT:
        raise CheckFailed(f"{path} is no signature: it has {path.stat().st_size} bytes", _DISTRUST)
    try:
        _check_form(path.read_text(encoding="utf-8"))
        with redirect_stdout(sys.stderr):  # it prints what it thinks of old signatures
            config.set_hashing_config(_hashing()).verify(folder, path)
    except Exception as error:  # what a hostile file makes of its parsers is not foreseeable, and never a yes
        told = str(error) or "it was not made with this key"
        raise CheckFailed(f"the signature of {folder} does not hold: {told}", _DISTRUST) from error


def _check_form(text: str) -> None:
    """The signature covers its payload alone; the rest of the file may have no form but the one it was written in."""
    from sigstore_models.bundle.v1 import Bundle as Envelope

    if Envelope.from_json(text).to_json() != text:
        raise ValueError("its file was edited")


def _hashing() -> Any:
    """Every file counts but the signature itself; a link is refused."""
    config = _library("hashing").Config()
    return config.set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)


def _library(part: str) -> Any:
    try:
        return import_module(f"model_signing.{part}")
    except ImportError as error:
        raise Unavailable(
            f"model-signing cannot be imported: {error}", "pip install 'subtune-deploy[sign]'"
        ) from error


@contextmanager
def _key_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"key {path} cannot be read: {error.strerror}", _KEYS) from error
    except Exception as error:  # cryptography's, of several kinds
        raise InputError(f"{path} is no key for this: {error}", _KEYS) from error
