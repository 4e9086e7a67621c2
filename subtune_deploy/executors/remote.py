"""What passes between this process and a worker, whoever started that worker."""

from __future__ import annotations

import pickle
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ..errors import WorkerDied

S = TypeVar("S")
J = TypeVar("J")
R = TypeVar("R")

RETRIES = 3
"""How often a job is given again after its worker died."""


@dataclass(frozen=True)
class _Raised:
    """An exception as it travels: its traceback stays behind, as text."""

    error: Exception
    text: str


def outcome(function: Callable[[S, J], R], shared: S, job: J) -> R | Exception:
    """What `function` returns, or the exception that it raises."""
    try:
        return function(shared, job)
    except Exception as error:  # noqa: BLE001 - handed on, whatever it is
        return error


@contextmanager
def limited(threads: int | None) -> Iterator[None]:
    """So many threads of PyTorch for the time of the block; None: as many as it is set to."""
    torch = sys.modules.get("torch")  # it came with the function, if that needs it
    if torch is None or threads is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def answer(function: Callable[[Any, Any], Any], shared: Any, job: Any, threads: int) -> Any:
    """In the worker: the outcome as it can be sent, computed with so many threads of PyTorch."""
    with limited(threads):
        found = outcome(function, shared, job)
    return _sendable(found) if isinstance(found, Exception) else found


def _sendable(error: Exception) -> _Raised:
    text = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - it cannot travel; its text can
        return _Raised(RuntimeError(f"{type(error).__name__}: {error}"), text)
    return _Raised(error, text)


def arrived(sent: Any) -> Any:
    """In this process: the outcome. An exception has the worker's traceback as its cause."""
    if not isinstance(sent, _Raised):
        return sent
    sent.error.__cause__ = RuntimeError(f"in a worker:\n{sent.text}")
    return sent.error


@dataclass(frozen=True)
class Deaths:
    """How many workers each job has cost."""

    counts: Counter[int] = field(default_factory=Counter)

    def again(self, job: int) -> bool:
        """Count one more; whether the job is to be given again."""
        self.counts[job] += 1
        return self.counts[job] <= RETRIES

    def outcome(self, job: int, last: str) -> WorkerDied:
        """For a job that is given up; `last` says how its last worker died."""
        return WorkerDied(
            f"its worker died {self.counts[job]} times, at last {last}",
            "free memory or give fewer workers, then run again: what is finished is kept",
        )
