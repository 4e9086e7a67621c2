"""Jobs in processes of this machine."""

from __future__ import annotations

import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

from ..memory import available
from .remote import Deaths, J, R, S, answer, arrived

PATIENCE = 10.0
"""Seconds that a process may take to leave."""


@dataclass(frozen=True)
class Processes:
    """So many processes, each with its own Python and so many threads of PyTorch.

    They end with the iterator, with Ctrl-C, and when this process is killed.
    """

    workers: int
    threads: int = 1

    @property
    def memory(self) -> int:
        """An equal part of what is free on this machine."""
        return available() // self.workers

    @property
    def gpu(self) -> float:
        """All use the same one."""
        return 1 / self.workers

    def run(
        self, function: Callable[[S, J], R], shared: S, jobs: Sequence[J]
    ) -> Generator[tuple[int, R | Exception], None, None]:
        pool = _Pool(pickle.dumps((function, shared)), self.threads, [], {})
        left, deaths = deque(range(len(jobs))), Deaths()
        try:
            while left or pool.busy:
                while left and len(pool.busy) < self.workers:
                    pool.give(index := left.popleft(), jobs[index])
                for index, found in pool.outcomes():
                    if not isinstance(found, _Died):
                        yield index, found
                    elif deaths.again(index):
                        left.append(index)
                    else:
                        yield index, deaths.outcome(index, found.how)
        finally:
            pool.end()


@dataclass(frozen=True)
class _Died:
    """How a process ended that should not have."""

    how: str


@dataclass
class _Pool:
    """Processes, hired when there is no idle one. `payload`: the pickled function and what its jobs share."""

    payload: bytes
    threads: int
    idle: list[_Worker]
    busy: dict[Any, tuple[_Worker, int]]

    def give(self, index: int, job: object) -> None:
        worker = self.idle.pop() if self.idle else _hired(self.payload, self.threads)
        self.busy[worker.pipe] = worker, index
        with suppress(OSError):  # it died already, as its pipe is going to tell
            worker.pipe.send(job)

    def outcomes(self) -> Iterator[tuple[int, Any]]:
        """(index, outcome or `_Died`) of all that have ended; waits until one has."""
        for pipe in connection.wait(list(self.busy)):
            worker, index = self.busy.pop(pipe)
            found = worker.outcome()
            if not isinstance(found, _Died):
                self.idle.append(worker)
            yield index, found

    def end(self) -> None:
        """The idle ones leave by themselves, once nobody is at the other end of their pipe, and clean up; others are
        killed."""
        for worker in self.idle:
            worker.pipe.close()
        for worker, _ in self.busy.values():
            worker.end()
        for worker in self.idle:
            worker.process.join(PATIENCE)
            worker.end()


@dataclass(frozen=True)
class _Worker:
    """A process that takes one job after the other through its pipe."""

    process: SpawnProcess
    pipe: Connection

    def outcome(self) -> Any:
        try:
            return arrived(self.pipe.recv())
        except (EOFError, OSError):
            self.process.join()
            found = _Died(_how(self.process.exitcode or 0))
            self.end()
            return found

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _how(status: int) -> str:
    if status == -signal.SIGKILL:
        return "killed, most likely because memory ran out"
    return f"by {signal.Signals(-status).name}" if status < 0 else f"with exit status {status}"


def _hired(payload: bytes, threads: int) -> _Worker:
    context = get_context("spawn")  # a fork would copy locks that threads of PyTorch hold
    mine, its = context.Pipe()
    process = context.Process(target=_work, args=(its, threads), daemon=True)
    process.start()
    its.close()  # so that the pipe ends when the process does
    with suppress(OSError):
        mine.send_bytes(payload)
    return _Worker(process, mine)


def _work(pipe: Connection, threads: int) -> None:
    """A worker's life. Ctrl-C is its parent's affair, which ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    with suppress(EOFError, OSError):
        function, shared = _unpacked(pipe.recv_bytes())
        while True:
            pipe.send(answer(function, shared, pipe.recv(), threads))


def _unpacked(payload: bytes) -> Any:
    """(function, shared); where that fails, a function that raises the reason for every job."""
    try:
        return pickle.loads(payload)
    except Exception as error:  # noqa: BLE001 - told as the outcome of jobs
        return _refuse, error


def _refuse(error: Exception, job: object) -> None:
    raise error


def _leave_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
