"""One function over many jobs: in this process, in processes of this machine, or on a Ray cluster.

    with open_executor("processes:4") as executor:
        for index, outcome in executor.run(function, shared, jobs):
            ...

An outcome is what `function(shared, jobs[index])` returned, or the exception that it raised. A job whose worker
died (killed, out of memory, its machine gone) is given to another one, RETRIES times; after that its outcome is a
WorkerDied. Nothing here knows what a job is.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from ..errors import InputError
from ..memory import available
from .cluster import open_cluster
from .processes import Processes
from .remote import J, R, S, limited, outcome


class Executor(Protocol):
    """Where jobs run.

    `workers`: how many of them at a time. What each of them can count on: `memory`, bytes of its host that are free
    for it, and `gpu`, a part of a GPU, 0 to 1.
    """

    @property
    def workers(self) -> int: ...

    @property
    def memory(self) -> int: ...

    @property
    def gpu(self) -> float: ...

    def run(
        self, function: Callable[[S, J], R], shared: S, jobs: Sequence[J]
    ) -> Generator[tuple[int, R | Exception], None, None]:
        """(index of a job, its outcome), as they end. `function` is a module's own; `shared` is sent once.

        Closing it ends what still runs.
        """
        ...


@dataclass(frozen=True)
class Here:
    """One job after the other, in this process, with so many threads of PyTorch; None: as many as it is set to."""

    workers: int = 1
    gpu: float = 1
    threads: int | None = None

    @property
    def memory(self) -> int:
        """All that is free."""
        return available()

    def run(
        self, function: Callable[[S, J], R], shared: S, jobs: Sequence[J]
    ) -> Generator[tuple[int, R | Exception], None, None]:
        for index, job in enumerate(jobs):
            with limited(self.threads):
                found = outcome(function, shared, job)
            yield index, found


@contextmanager
def open_executor(text: str = "here", *, cpus: float | None = None, gpus: float = 0) -> Iterator[Executor]:
    """The executor that `text` names: `here`, `processes:N`, `ray` or `ray:ADDRESS`.

    `cpus`: of each job, and as many threads of PyTorch; None: one, but `here` as many as PyTorch is set to. Sums
    depend on the number of threads, so that outcomes are the same whichever executor only if that is equal.
    `gpus`: of each job on Ray. `ray` alone means the cluster that this process is connected to, or that the
    environment variable RAY_ADDRESS names, or else one of this machine, for the time of the block.

    Every node of a cluster needs this package, and the files that jobs name under the same paths.
    Raises InputError; Unavailable where Ray is not installed, its cluster out of reach or too small.
    """
    kind, _, rest = text.partition(":")
    each = 1 if cpus is None else cpus
    if each <= 0 or gpus < 0:
        raise InputError(f"a job cannot have {each:g} CPUs and {gpus:g} GPUs", "give more than 0 CPUs")
    if gpus and kind != "ray":
        raise InputError(f"executor {text!r} cannot give {gpus:g} GPUs to each job", "use the executor ray")
    if kind == "ray":
        with open_cluster(rest, each, gpus) as cluster:
            yield cluster
    elif kind == "processes":
        yield Processes(_count(text, rest), max(1, int(each)))
    elif text == "here":
        yield Here(threads=None if cpus is None else max(1, int(cpus)))
    else:
        raise InputError(f"executor {text!r} is unknown", "give here, processes:N, ray or ray:HOST:PORT")


def _count(text: str, rest: str) -> int:
    if not rest.isdecimal() or not 1 <= int(rest) <= 1024:
        raise InputError(f"executor {text!r} names no number of processes", "give 1 or more, as processes:4")
    return int(rest)
