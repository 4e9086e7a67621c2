"""Jobs for executors, which other processes import: they say where they ran, fail, and die."""

from __future__ import annotations

import math
import multiprocessing
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subtune_deploy.errors import CheckFailed, InputError

if TYPE_CHECKING:
    from torch import Tensor

    from subtune_deploy.backbone import Backbone
    from subtune_deploy.tuning.settings import Fork
    from subtune_deploy.tuning.study import Sent


def multiplied(shared: int, job: int) -> int:
    return shared * job


def fails(shared: None, job: str) -> str:
    if job == "ours":
        raise InputError("3 folds where 2 can be", "give fewer")
    if job == "foreign":
        raise KeyError("block3")
    if job == "untold":
        raise Unsendable(threading.Lock())
    return job


class Unsendable(Exception):  # noqa: N818
    """Holds what cannot be pickled."""


def where(shared: object, job: int) -> tuple[int, int]:
    """(number of this process, threads of PyTorch)"""
    import torch

    time.sleep(0.3)  # so that one worker does not take all
    return os.getpid(), torch.get_num_threads()


def losses(shared: Sent, job: Fork) -> list[float]:
    """Of each epoch of a training: they show what accuracies of a few pictures hide."""
    from subtune_deploy.tuning.train import train_together

    study = shared.study
    (tuned,) = train_together(study.backbone, [job], *study.data[:2], study.config)
    return [epoch.loss for epoch in tuned.history]


def locks(shared: list[object], job: int) -> int:
    """Leaves a lock of the system behind, as libraries do that are imported: `shared` lives as long as the process."""
    shared.append(multiprocessing.get_context("spawn").Lock())
    return job


def waits_once(shared: Path, job: int) -> tuple[int, int]:
    """Job 1, at its first attempt, tells its process in a file and waits to be killed."""
    told = shared / f"{job}"
    attempts = len(told.read_text().split()) if told.exists() else 0
    with told.open("a") as stream:
        stream.write(f"{os.getpid()}\n")
    if job == 1 and attempts == 0:
        time.sleep(600)
    return job, attempts + 1


def waits(shared: Path, job: int) -> None:
    (shared / f"{os.getpid()}").touch()
    time.sleep(600)


def dies(shared: Path, job: int) -> int:
    """Job 0 always kills its own process."""
    if job == 0:
        with (shared / "deaths").open("a") as stream:
            stream.write(".")
        os.kill(os.getpid(), 9)
    return job


class Fussy:
    """Cannot be unpickled."""

    def __reduce__(self) -> Any:
        return _refused, ()


def _refused() -> None:
    raise CheckFailed("not in this process", "try another")


def arrival(payload: bytes, job: int) -> tuple[Any, ...]:
    """What of a backbone that was sent is compared with the one that stayed; answers to `job` pictures."""
    import torch

    from subtune_deploy.backbone import identity
    from subtune_deploy.executors.travel import unpacked

    backbone, *others = unpacked(payload)
    with torch.no_grad():
        answers = backbone.model(pictures(backbone, job))
    return identity(backbone), (backbone.labels, backbone.weights), answers.tolist(), tuple(others)


def pictures(backbone: Backbone, count: int) -> Tensor:
    import torch

    return torch.linspace(-1, 1, count * math.prod(backbone.input.shape)).reshape(
        count, *backbone.input.shape
    )
