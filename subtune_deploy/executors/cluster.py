"""Jobs as tasks of a Ray cluster. Ray is imported here alone, by the functions that use it."""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

from ..errors import CheckFailed, Unavailable
from .remote import Deaths, J, R, S, answer, arrived

REACH_SECONDS = 5
"""For a cluster to take a connection; Ray itself goes on trying for minutes."""

Resources: TypeAlias = Mapping[str, float]
"""What Ray says that a node has: CPU, GPU, memory in bytes, and more."""


@dataclass(frozen=True)
class Cluster:
    """As many tasks at a time as its nodes have CPUs and GPUs for.

    `cpus` and `gpus`: of each task. `memory`: bytes for each, on the node that has least for one.
    """

    workers: int
    cpus: float
    gpus: float
    memory: int

    @property
    def gpu(self) -> float:
        """A part of one, or one; without any, Ray hides them from its tasks."""
        return min(1, self.gpus)

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

    return fitted([node["Resources"] for node in ray.nodes() if node["Alive"]], cpus, gpus)


def fitted(nodes: Sequence[Resources], cpus: float, gpus: float) -> Cluster:
    """What can run on `nodes` at a time: a task runs on one of them. Raises Unavailable where none can hold one."""
    wanted = {what: count for what, count in (("CPU", cpus), ("GPU", gpus)) if count}
    places = [int(min(node.get(what, 0) // count for what, count in wanted.items())) for node in nodes]
    if not any(places):
        kinds = dict.fromkeys(_counted(node, wanted) for node in nodes)
        raise Unavailable(
            f"a job wants {_counted(wanted, wanted)} where a node of the cluster has {', or '.join(kinds)}",
            "ask for no more than one node has",
        )
    memory = min(
        int(node.get("memory", 0)) // count for node, count in zip(nodes, places, strict=True) if count
    )
    return Cluster(sum(places), cpus, gpus, memory)


def _counted(resources: Resources, which: Iterable[str]) -> str:
    """`4 CPU and 1 GPU`"""
    return " and ".join(f"{resources.get(what, 0):g} {what}" for what in which)


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
