"""Jobs as tasks of a Ray cluster. Ray is imported here alone, by the functions that use it."""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..errors import CheckFailed, Unavailable
from .remote import Deaths, J, R, S, answer, arrived

REACH_SECONDS = 5
"""For a cluster to take a connection; Ray itself goes on trying for minutes."""


@dataclass(frozen=True)
class Cluster:
    """As many tasks at a time as the cluster has CPUs and GPUs for. `cpus` and `gpus`: of each task."""

    workers: int
    cpus: float
    gpus: float

    def run(
        self, function: Callable[[S, J], R], shared: S, jobs: Sequence[J]
    ) -> Generator[tuple[int, R | Exception], None, None]:
        import ray

        # Jobs are given again by us, since Ray goes on for ever where memory runs out.
        task = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=0)(answer)
        kept, threads, deaths = ray.put(shared), max(1, int(self.cpus)), Deaths()
        running = {task.remote(function, kept, job, threads): index for index, job in enumerate(jobs)}
        try:
            while running:
                (done,), _ = ray.wait(list(running))
                index = running.pop(done)
                found = _found(done)
                if not isinstance(found, ray.exceptions.RayError):
                    yield index, found
                elif deaths.again(index):
                    running[task.remote(function, kept, jobs[index], threads)] = index
                else:
                    yield index, deaths.outcome(index, f"with {_told(found)}")
        finally:
            for each in running:
                ray.cancel(each, force=True)


def _found(done: Any) -> Any:
    """The outcome of a task that ended, or a RayError where its worker died."""
    import ray

    try:
        return arrived(ray.get(done))
    except ray.exceptions.RayTaskError as error:  # our code catches what a job raises: it did not get there
        return CheckFailed(
            f"a worker could not begin: {_told(error)}", "install the same subtune-deploy on every node"
        )
    except ray.exceptions.RayError as error:
        return error


def _told(error: Exception) -> str:
    """Its name and the last line of what it says; above that Ray puts where it happened."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[-1]}"


@contextmanager
def open_cluster(address: str, cpus: float, gpus: float) -> Iterator[Cluster]:
    """Connected to Ray for the time of the block; a connection that was there before stays.

    No `address` means the cluster that this process is connected to, or that the environment variable
    RAY_ADDRESS names, or else one of this machine, started for it. Raises Unavailable.
    """
    if importlib.util.find_spec("ray") is None:
        raise Unavailable(
            "the executor ray needs Ray, which is not installed", "pip install 'subtune-deploy[ray]'"
        )
    import ray

    ours = bool(address) or not ray.is_initialized()
    if ours:
        _connect(address or os.environ.get("RAY_ADDRESS") or "local")
    try:
        yield _cluster(cpus, gpus)
    finally:
        if ours:
            ray.shutdown()


def _cluster(cpus: float, gpus: float) -> Cluster:
    import ray

    there = ray.cluster_resources()
    wanted = {"CPU": cpus, "GPU": gpus}
    for what, count in wanted.items():
        if there.get(what, 0) < count:
            message = f"a job wants {count:g} {what} where the cluster has {there.get(what, 0):g}"
            raise Unavailable(message, "ask for fewer")
    at_once = min(there[what] // count for what, count in wanted.items() if count)
    return Cluster(int(at_once), cpus, gpus)


def _connect(address: str) -> None:
    import ray

    _check_reach(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # or it reports to its makers
    options: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address, logging_level=logging.ERROR, log_to_driver=False, **options)
    except (OSError, RuntimeError, ValueError) as error:  # ConnectionError is an OSError
        raise Unavailable(
            f"Ray at {address!r} cannot be used: {error}", "see `ray status` there, and that versions agree"
        ) from error


def _check_reach(address: str) -> None:
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise Unavailable(
            f"no Ray cluster answers at {address!r}: {error}",
            "give the address that `ray start` printed, or ray for one of this machine",
        ) from error
