"""A training on the disk after each epoch, so that an interrupted one goes on where it was.

kept = open_kept(Path("task.safetensors.partial"), facts(backbone, train, test, config), ["13-14"])
kept.states.get("13-14")                           # None, or what Learner.state gave
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch

from ..backbone import Backbone, identity
from ..data.dataset import Dataset
from ..errors import InputError
from ..records import to_plain
from ..run_folder import changes
from ..staging import replaced_file
from .settings import TrainConfig

State: TypeAlias = dict[str, Any]
"""Of one fork: numbers, text and tensors, so that it can be read without running code."""

SIZES = ("cache_bytes", "memory_bytes")
"""Settings that do not change what comes of a training."""


def facts(backbone: Backbone, train: Dataset, test: Dataset, config: TrainConfig) -> dict[str, Any]:
    """What must be equal for a training to go on, as JSON values."""
    return {
        **identity(backbone),
        "training pictures": train.fingerprint(),
        "test pictures": test.fingerprint(),
        **{key: value for key, value in to_plain(config).items() if key not in SIZES},
        "torch": str(torch.__version__),
    }


@dataclass(frozen=True)
class Kept:
    """States by fork, in the file `path`; without one, nothing is written."""

    path: Path | None
    about: Mapping[str, Any]
    states: dict[str, State] = field(default_factory=dict)

    def write(self, states: Mapping[str, State]) -> None:
        """Add or replace these; the file is whole at any time. Raises BundleError."""
        if self.path:
            self.states.update(states)
            with replaced_file(self.path) as pending, pending.open("wb") as stream:
                torch.save({"about": dict(self.about), "forks": self.states}, stream)

    def reread(self) -> None:
        """Take what the file has: states that were written are those of weights which have been trained on since."""
        self.states.clear()
        if self.path and self.path.exists():
            self.states.update(_read(self.path)[1])


def open_kept(path: Path | None, about: Mapping[str, Any], forks: Iterable[str]) -> Kept:
    """What the file, if there is one, has of `forks`. Raises InputError where it is of another training, or damaged."""
    if path is None or not path.exists():
        return Kept(path, about)
    before, states = _read(path)
    if changed := changes(before, about):
        raise InputError(
            f"{path} keeps a training that was begun differently: {'; '.join(changed)}",
            "do as before to go on with it, or delete it to begin anew",
        )
    return Kept(path, about, {fork: states[fork] for fork in forks if fork in states})


def drop_damaged(path: Path) -> bool:
    """Whether the file was there and could not be read: then it is no longer there, and all begins anew."""
    try:
        if path.exists():
            _read(path)
    except InputError:
        path.unlink()
        return True
    return False


def check_alone(path: Path | None, fork: str) -> None:
    """Raise InputError if the file keeps other forks than this one: they would be lost."""
    if path is None or not path.exists():
        return
    if others := [each for each in _read(path)[1] if each != fork]:
        raise InputError(
            f"{path} keeps a training of fork {'; '.join(others)}, where {fork} is to be trained",
            "give another -o, or delete it to begin anew",
        )


def forget(path: Path | None) -> None:
    """What came of the training is on the disk, or nothing will: there is nothing to go on with."""
    if path:
        path.unlink(missing_ok=True)


def _read(path: Path) -> tuple[Mapping[str, Any], dict[str, State]]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        return dict(found["about"]), dict(found["forks"])
    except Exception as error:  # whatever the reader makes of bytes that are none of ours
        raise InputError(f"{path} keeps no training that can be read", "delete it to begin anew") from error
