"""Folders and files that appear whole under their final name, or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import BundleError, SubtuneError

PREFIX = ".subtune-tmp-"
"""How names begin of what is not complete yet; the number of the process that makes it follows."""

Foreign = Callable[[Path], str]
"""Given a folder that is in the way: what in it is not ours to remove, in words; "" for nothing."""

_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_RIGHTS = {errno.EACCES, errno.EPERM, errno.EROFS}


def without(kind: str) -> Foreign:
    """All of a folder, unless it holds the file `kind`, which only ours do."""
    return lambda folder: "" if (folder / kind).is_file() else f"no {kind}"


@contextmanager
def staged(path: Path, foreign: Foreign = lambda folder: "something") -> Iterator[Path]:
    """A temporary folder beside `path`, which takes that name when the block ends well.

    An existing folder is replaced only if it is empty or has nothing that is `foreign`; it stays as it is until the
    new one is complete. On any failure, interruption too, nothing new is left. Raises BundleError for anything in the
    way, a full disk, or missing rights.
    """
    final = Path(path).resolve()
    _check_free(final, foreign)
    made = _missing_parents(final)
    temporary = _temporary(final)
    try:
        with told_as(temporary, final), _write_errors(final):
            _make(temporary, final)
            yield temporary
            _check_free(final, foreign)
            _exchange(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        _remove_empty(made)
        raise


@contextmanager
def told_as(path: Path, name: Path) -> Iterator[None]:
    """Errors from the block say `name` where they would say `path`, which will be gone when they are read."""
    try:
        yield
    except SubtuneError as error:
        error.message, error.hint = (
            text.replace(str(path), str(name)) for text in (error.message, error.hint)
        )
        error.args = (error.message,)
        raise


def checked_place(path: Path) -> Path:
    """The whole path of a file that is to be written. Raises BundleError, before long work, where none can be."""
    final = Path(path).resolve()
    if final.is_dir() or not final.parent.is_dir():
        what = "is a folder" if final.is_dir() else "lies in no existing folder"
        raise BundleError(f"{final} {what}, a file is to be written there", "choose another place")
    if not os.access(final.parent, os.W_OK):
        raise _explained(PermissionError(errno.EACCES, os.strerror(errno.EACCES)), final)
    return final


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`; what the block writes there then replaces `path`."""
    final = checked_place(path)
    temporary = _temporary(final)
    try:
        with _write_errors(final):
            yield temporary
            os.replace(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(final: Path) -> Path:
    return final.parent / f"{PREFIX}{os.getpid()}-{secrets.token_hex(4)}"


def remove_abandoned(folder: Path) -> None:
    """What processes of this machine that were killed had not given its final name in `folder` yet."""
    if os.name != "posix":  # elsewhere to ask for a process may end it
        return
    for path in folder.glob(f"{PREFIX}*"):
        number = path.name.removeprefix(PREFIX).partition("-")[0]
        if number.isdecimal() and not _lives(int(number)):
            remove(path)


def remove(path: Path) -> None:
    """A folder or a file, as far as that can be done."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)  # it may be somebody else's
    return True


def _make(temporary: Path, final: Path) -> None:
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise _explained(error, final) from error


def _check_free(final: Path, foreign: Foreign) -> None:
    hint = "choose another folder, or move what is there out of the way"
    try:
        if not final.exists():
            return
        if not final.is_dir():
            raise BundleError(f"{final} is a file, a folder is to be written there", hint)
        told = foreign(final) if any(final.iterdir()) else ""
    except OSError as error:
        raise _explained(error, final) from error
    if told:
        raise BundleError(f"folder {final} holds other things ({told}), it is not replaced", hint)


def _exchange(temporary: Path, final: Path) -> None:
    """Give `temporary` the final name. The older folder steps aside first, and back if that fails."""
    if not final.exists():
        os.rename(temporary, final)
        return
    aside = _temporary(final)
    os.rename(final, aside)
    try:
        os.rename(temporary, final)
    except BaseException:
        os.rename(aside, final)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _missing_parents(final: Path) -> list[Path]:
    return [parent for parent in final.parents if not parent.exists()]


def _remove_empty(folders: list[Path]) -> None:
    """Remove the folders that were made for nothing, innermost first, as far as they are still empty."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return


@contextmanager
def _write_errors(final: Path) -> Iterator[None]:
    """Turn what a full disk or missing rights make of any writer into BundleError."""
    try:
        yield
    except OSError as error:
        ours = error.filename is None or Path(str(error.filename)).is_relative_to(final.parent)
        if error.errno in _SPACE or (ours and error.errno in _RIGHTS):
            raise _explained(error, final) from error
        raise
    except Exception as error:
        passes = isinstance(error, SubtuneError) and not isinstance(error, BundleError)
        if passes or not _disk_full(final):  # libraries in C++ report a failed write in words of their own
            raise
        raise _explained(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), final) from error


def _disk_full(final: Path) -> bool:
    folder = next(parent for parent in final.parents if parent.exists())
    return shutil.disk_usage(folder).free < 1 << 20


def _explained(error: OSError, final: Path) -> BundleError:
    hint = "choose another folder"
    if error.errno in _SPACE:
        hint = "free some space, or choose a folder on another disk"
    if error.errno in _RIGHTS:
        hint = "choose a folder that you may write to"
    return BundleError(f"{final} cannot be written: {error.strerror or error}", hint)
