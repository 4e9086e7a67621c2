"""Executors: the same outcomes wherever jobs run, whatever becomes of a worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny_jobs
import torch

from subtune_deploy.errors import CheckFailed, InputError, Unavailable, WorkerDied
from subtune_deploy.executors import Executor, Here, open_executor
from subtune_deploy.executors.cluster import Cluster, fitted
from subtune_deploy.executors.processes import Processes
from subtune_deploy.executors.remote import RETRIES

KINDS = ("here", "processes", "ray")
OTHERS = ("processes", "ray")


@pytest.fixture(scope="module")
def on_ray() -> Iterator[Executor]:
    """One Ray of this machine for all tests, two workers; its processes find the jobs of `tiny_jobs`."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        patch.delenv("RAY_ADDRESS", raising=False)
        ray.init("local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
        with open_executor("ray") as executor:
            yield executor
        assert ray.is_initialized(), "a connection that was there before stays"
        ray.shutdown()


@pytest.fixture
def executor(request: pytest.FixtureRequest) -> Executor:
    made: dict[str, Callable[[], Executor]] = {
        "here": Here,
        "processes": lambda: Processes(2),
        "ray": lambda: request.getfixturevalue("on_ray"),  # type: ignore[no-any-return]
    }
    return made[request.param]()


@pytest.mark.parametrize("executor", KINDS, indirect=True)
def test_each_job_has_its_outcome_once(executor: Executor) -> None:
    outcomes = dict(executor.run(tiny_jobs.multiplied, 7, range(5)))
    assert outcomes == {0: 0, 1: 7, 2: 14, 3: 21, 4: 28}
    assert list(executor.run(tiny_jobs.multiplied, 7, [])) == []


@pytest.mark.parametrize("executor", KINDS, indirect=True)
def test_what_a_job_raises_is_its_outcome(executor: Executor) -> None:
    outcomes = dict(executor.run(tiny_jobs.fails, None, ["ours", "foreign", "fine", "untold"]))
    ours, foreign, untold = outcomes[0], outcomes[1], outcomes[3]
    assert isinstance(ours, InputError)
    assert (ours.message, ours.hint) == ("3 folds where 2 can be", "give fewer")
    assert isinstance(foreign, KeyError)
    assert outcomes[2] == "fine"
    assert "Unsendable" in f"{type(untold).__name__}: {untold}"
    if not isinstance(executor, Here):
        assert "tiny_jobs.py" in str(foreign.__cause__), "where it was raised is told"


@pytest.mark.parametrize("executor", OTHERS, indirect=True)
def test_two_workers_share_the_jobs_with_one_thread_each(executor: Executor) -> None:
    assert executor.workers == 2
    places = [place for _, place in executor.run(tiny_jobs.where, torch.zeros(1), range(6))]
    assert len({process for process, _ in places}) >= 2  # type: ignore[misc]
    assert os.getpid() not in {process for process, _ in places}  # type: ignore[misc]
    assert {threads for _, threads in places} == {1}  # type: ignore[misc]


@pytest.mark.parametrize("executor", OTHERS, indirect=True)
def test_the_job_of_a_worker_that_is_killed_is_given_to_another(executor: Executor, tmp_path: Path) -> None:
    killer = threading.Thread(target=kill_first, args=(tmp_path / "1",))
    killer.start()
    outcomes = dict(executor.run(tiny_jobs.waits_once, tmp_path, range(4)))
    killer.join()
    assert outcomes == {0: (0, 1), 1: (1, 2), 2: (2, 1), 3: (3, 1)}


def kill_first(told: Path) -> None:
    while not told.exists() or "\n" not in told.read_text():
        time.sleep(0.02)
    os.kill(int(told.read_text()), signal.SIGKILL)


@pytest.mark.parametrize("executor", OTHERS, indirect=True)
def test_a_job_that_kills_every_worker_is_given_up(executor: Executor, tmp_path: Path) -> None:
    outcomes = dict(executor.run(tiny_jobs.dies, tmp_path, range(3)))
    assert isinstance(outcomes[0], WorkerDied)
    assert outcomes[0].message.startswith(f"its worker died {RETRIES + 1} times, at last ")
    assert {1: outcomes[1], 2: outcomes[2]} == {1: 1, 2: 2}
    assert (tmp_path / "deaths").read_text() == "." * (RETRIES + 1)


@pytest.mark.parametrize("executor", OTHERS, indirect=True)
def test_what_cannot_be_rebuilt_in_a_worker_is_told(executor: Executor) -> None:
    ((_, outcome),) = executor.run(tiny_jobs.multiplied, tiny_jobs.Fussy(), [1])  # type: ignore[arg-type]
    assert isinstance(outcome, CheckFailed)
    assert "not in this process" in outcome.message


@pytest.mark.parametrize("stop", ["interrupt", "kill"])
def test_no_process_outlives_the_one_that_began_it(stop: str, tmp_path: Path) -> None:
    code = (
        "import tiny_jobs\nfrom pathlib import Path\n"
        "from subtune_deploy.executors.processes import Processes\n"
        f"list(Processes(2).run(tiny_jobs.waits, Path({str(tmp_path)!r}), [1, 2]))"
    )
    begin = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n{code}"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    parent = subprocess.Popen(
        [sys.executable, "-c", begin], env=environment, stderr=subprocess.DEVNULL, start_new_session=True
    )
    while len(list(tmp_path.iterdir())) < 2:
        assert parent.poll() is None
        time.sleep(0.05)
    if stop == "interrupt":
        os.killpg(parent.pid, signal.SIGINT)  # as a terminal does
    else:
        parent.kill()
    parent.wait(20)
    workers = [int(path.name) for path in tmp_path.iterdir()]
    for _ in range(200):
        if not any(map(lives, workers)):
            return
        time.sleep(0.05)
    raise AssertionError(f"of {workers} some still live")


def lives(process: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_closing_the_iterator_ends_what_still_runs(tmp_path: Path) -> None:
    outcomes = Processes(2).run(tiny_jobs.waits_once, tmp_path, [0, 1])
    assert next(outcomes) == (0, (0, 1))
    while not (tmp_path / "1").exists():
        time.sleep(0.02)
    outcomes.close()
    assert not lives(int((tmp_path / "1").read_text()))


def test_workers_leave_nothing_behind_that_python_warns_of() -> None:
    code = """
import tiny_jobs
from subtune_deploy.executors import open_executor

if __name__ == "__main__":
    with open_executor("processes:2") as executor:
        print(sorted(executor.run(tiny_jobs.locks, [], [1, 2, 3])))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ran.stdout, ran.stderr) == ("[(0, 1), (1, 2), (2, 3)]\n", "")


def test_here_a_job_has_as_many_threads_as_are_asked_for_and_those_of_the_caller_come_back() -> None:
    before = torch.get_num_threads()
    for cpus, threads in ((None, before), (before + 1, before + 1), (0.5, 1)):
        with open_executor("here", cpus=cpus) as executor:
            for _, place in executor.run(tiny_jobs.where, None, range(2)):
                assert place == (os.getpid(), threads)
                assert torch.get_num_threads() == before


def test_executors_by_name() -> None:
    with open_executor() as executor:
        assert executor == Here()
    with open_executor("here", cpus=2) as executor:
        assert executor == Here(threads=2)
    with open_executor("processes:3", cpus=2) as executor:
        assert executor == Processes(3, threads=2)
    with open_executor("processes:3") as executor:
        assert executor == Processes(3, threads=1)


@pytest.mark.parametrize(
    ("text", "options", "told"),
    [
        ("there", {}, "executor 'there' is unknown"),
        ("here:2", {}, "executor 'here:2' is unknown"),
        ("processes", {}, "names no number of processes"),
        ("processes:0", {}, "names no number of processes"),
        ("processes:-2", {}, "names no number of processes"),
        ("processes:2", {"gpus": 1}, "cannot give 1 GPUs to each job"),
        ("here", {"cpus": 0}, "cannot have 0 CPUs"),
    ],
)
def test_an_executor_that_cannot_be(text: str, options: dict[str, float], told: str) -> None:
    with pytest.raises(InputError, match=told), open_executor(text, **options):
        raise AssertionError("opened")


def test_a_cluster_is_found_by_its_address_and_says_nothing_on_stdout(on_ray: Executor) -> None:
    ray = pytest.importorskip("ray")
    address = ray.get_runtime_context().gcs_address
    for name, set_ in ((f"ray:{address}", {}), ("ray", {"RAY_ADDRESS": address})):
        ran = subprocess.run(
            [sys.executable, "-c", USE.format(name)],
            env={**os.environ, **set_},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (ran.returncode, ran.stdout) == (0, f"{address} [6, 8]\n"), ran.stderr


USE = """
import ray, tiny_jobs
from subtune_deploy.executors import open_executor

with open_executor({!r}) as executor:
    outcomes = dict(executor.run(tiny_jobs.multiplied, 2, [3, 4]))
    print(ray.get_runtime_context().gcs_address, sorted(outcomes.values()))
assert not ray.is_initialized()
"""


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "[::1]:99999"])
def test_a_cluster_out_of_reach_is_told_in_one_line_and_soon(address: str) -> None:
    pytest.importorskip("ray")
    start = time.monotonic()
    with (
        pytest.raises(Unavailable, match="no Ray cluster answers") as caught,
        open_executor(f"ray:{address}"),
    ):
        raise AssertionError("opened")
    assert "\n" not in caught.value.message
    assert time.monotonic() - start < 10


def test_a_cluster_too_small_for_a_job_is_told(on_ray: Executor) -> None:
    for options, told in (({"cpus": 64.0}, "64 CPU where"), ({"gpus": 8.0}, "8 GPU where")):
        with pytest.raises(Unavailable, match=told), open_executor("ray", **options):
            raise AssertionError("opened")


def node(cpus: float, gpus: float = 0, gigabytes: float = 8) -> dict[str, float]:
    """What Ray tells of one."""
    return {"CPU": cpus, **({"GPU": gpus} if gpus else {}), "memory": gigabytes * 1e9, "node:10.0.0.1": 1.0}


@pytest.mark.parametrize(
    ("nodes", "cpus", "gpus", "told"),
    [
        ([node(4), node(4)], 8, 0, "wants 8 CPU where a node of the cluster has 4 CPU$"),
        ([node(4), node(2)], 8, 0, "has 4 CPU, or 2 CPU$"),
        ([node(8), node(2, 1)], 4, 1, "wants 4 CPU and 1 GPU where .* 8 CPU and 0 GPU, or 2 CPU and 1 GPU$"),
    ],
)
def test_a_job_must_fit_one_node_of_a_cluster(
    nodes: list[dict[str, float]], cpus: float, gpus: float, told: str
) -> None:
    """Ray would wait for ever."""
    with pytest.raises(Unavailable, match=told):
        fitted(nodes, cpus, gpus)


def test_a_cluster_has_as_many_workers_as_its_nodes_hold_and_the_memory_of_the_poorest() -> None:
    assert fitted([node(4), node(4)], 3, 0) == Cluster(2, 3, 0, 8_000_000_000)
    assert (
        fitted([node(4, gigabytes=16), node(2, gigabytes=4), node(0, gigabytes=1)], 1, 0).memory
        == 2_000_000_000
    )
    found = fitted([node(8, 2), node(64)], 1, 0.5)
    assert (found.workers, found.memory, found.gpu) == (4, 2_000_000_000, 0.5)
    assert (fitted([node(8)], 1, 0).gpu, fitted([node(8, 4)], 1, 2).gpu) == (0, 1)


def test_workers_of_one_machine_share_its_memory_and_its_gpu(on_ray: Executor) -> None:
    one, four = Here(), Processes(4)
    assert four.memory == pytest.approx(one.memory / 4, rel=0.2)
    assert (one.gpu, four.gpu) == (1, 0.25)
    assert 1e8 < on_ray.memory * on_ray.workers < 1 << 50
