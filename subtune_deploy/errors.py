"""Every error that a user can cause or meet, in one tree.

    SubtuneError
    ├── CheckFailed        exit 1: a check that was asked for did not hold
    │   ├── ParityError
    │   └── WorkerDied
    ├── InputError         exit 2: something that was given is wrong
    │   ├── ModelError         a model that is unknown, or cannot be traced
    │   ├── LayersError        a layer range that does not fit the backbone
    │   ├── CheckpointError    a file that is no checkpoint, or not one of this backbone
    │   ├── TaskError          task names, heads
    │   ├── PictureError       a picture that cannot be read
    │   ├── TargetError        a recipe that is unknown or malformed
    │   └── BundleError        a folder or graph that is not a bundle, or was altered
    └── Unavailable        exit 3: a backend or device that is not here

A message says what was given and what was expected; the hint says what to do next.
Anything else that escapes is a defect of this package.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST = 2000
"""Letters of a message."""


class SubtuneError(Exception):
    """Base of the tree. `message` and `hint` are one line each."""

    exit_status = 1

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message, self.hint = _line(message), _line(hint)

    def __reduce__(self) -> tuple[type[SubtuneError], tuple[str, str]]:
        """So that one raised in another process arrives: exceptions are made again from the message alone."""
        return type(self), (self.message, self.hint)


def _line(text: str) -> str:
    """One line, whatever a hostile file put into it: no control characters, and no more than can be read."""
    plain = "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))
    return plain if len(plain) <= LONGEST else f"{plain[:LONGEST]}..."


class CheckFailed(SubtuneError):  # noqa: N818 - the check is what failed
    """A check did not hold."""


class ParityError(CheckFailed):
    """A task of a graph or engine differs from its stand-alone model beyond tolerance."""


class WorkerDied(CheckFailed):
    """Each worker that was given a job died with it, most likely because memory ran out."""


class InputError(SubtuneError):
    """Something that was given is wrong."""

    exit_status = 2


class ModelError(InputError):
    """A model that is unknown, or cannot be traced."""


class LayersError(InputError):
    """A layer range that does not fit the backbone."""


class CheckpointError(InputError):
    """A file that is no checkpoint, or not one of this backbone."""


class TaskError(InputError):
    """Task names, heads."""


class PictureError(InputError):
    """A picture that cannot be read."""


class TargetError(InputError):
    """A recipe that is unknown or malformed."""


class BundleError(InputError):
    """A folder or graph that is not a bundle, or was altered."""


class Unavailable(SubtuneError):  # noqa: N818 - a state of the machine
    """A backend or device that is not available here."""

    exit_status = 3


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """A hint that names the closest known spellings, or all of them when few are known."""
    names = [name for name in known if len(name) <= 100][:1000]  # difflib takes minutes for more
    close = difflib.get_close_matches(given[:100], names, n=3, cutoff=0.55)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"known: {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}"
