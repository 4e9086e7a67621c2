"""The description of a host, and what of it must agree before results are compared."""

from __future__ import annotations

import copy
import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from subtune_deploy.environment import (
    THREADS,
    describe,
    differences,
    identity,
    last_level_cache,
    multiplies_int8_exactly,
    nvidia_smi,
)

HOST = {
    "platform": "Linux-6.8.0-45-generic-x86_64-with-glibc2.39",
    "machine": "x86_64",
    "cpu": "AMD EPYC 7763",
    "cores": 4,
    "affinity": [0, 1, 2, 3],
    "quota": None,
    "memory_bytes": 16 << 30,
    "hypervisor": True,
    "governor": "performance",
    "clock_mhz": 3500.0,
    "turbo": True,
    "gpus": [{"name": "NVIDIA L4", "driver": "570.86.15", "power_limit_watts": 72.0}],
    "load_average": [0.1, 0.2, 0.3],
    "thread_variables": {"OMP_NUM_THREADS": "4"},
    "python": "3.11.7",
    "libraries": {"numpy": "2.4.1", "onnxruntime": "1.31.0", "timm": "1.0.20"},
}


def files(root: Path, contents: dict[str, str]) -> Path:
    """A folder in place of /, with such files below it."""
    for name, text in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def changed(**facts: Any) -> dict[str, Any]:
    return {**copy.deepcopy(HOST), **facts}


def test_the_description_is_json_and_true_of_this_host() -> None:
    host = describe()
    assert json.loads(json.dumps(host)) == host
    assert host["python"] == platform.python_version()
    assert host["cores"] >= len(host["affinity"] or [0]) >= 1
    assert host["libraries"]["onnxruntime"] == metadata.version("onnxruntime")
    assert host["cpu"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_tensorrt_rtx_is_told_under_the_name_that_it_is_installed_by() -> None:
    version = metadata.version("tensorrt-rtx-cu13")  # an extra of ours
    assert describe()["libraries"]["tensorrt-rtx-cu13"] == version
    assert identity(describe())["tensorrt-rtx-cu13"] == version


def test_on_linux_memory_and_hypervisor_are_those_that_the_system_tells() -> None:
    host = describe()
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert host["memory_bytes"] == pytest.approx(pages, rel=0.01)
    flags = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")]
    assert host["hypervisor"] is (" hypervisor" in flags[0] if flags else None)


def test_describing_imports_none_of_the_libraries() -> None:
    code = (
        "import sys; from subtune_deploy.environment import describe; describe(); "
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'openvino', 'timm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_system_that_says_nothing_is_described_by_what_python_knows(tmp_path: Path) -> None:
    host = describe(tmp_path)
    silent = ("quota", "memory_bytes", "hypervisor", "governor", "clock_mhz", "turbo")
    assert {key: host[key] for key in silent} == dict.fromkeys(silent)
    assert host["python"] == platform.python_version()
    assert host["cores"] == os.cpu_count()


def test_a_laptop_with_an_intel_cpu(tmp_path: Path) -> None:
    cpu = "sys/devices/system/cpu"
    root = files(
        tmp_path,
        {
            "proc/cpuinfo": "processor\t: 0\nmodel name\t: Intel(R) Core(TM) i7\nflags\t\t: fpu vme sse\n"
            "cpu MHz\t\t: 800.123\n\nprocessor\t: 1\nmodel name\t: Intel(R) Core(TM) i7\ncpu MHz\t\t: 3000.5\n",
            "proc/meminfo": "MemTotal:       16000000 kB\nMemFree:        1 kB\n",
            f"{cpu}/cpu0/cpufreq/scaling_governor": "powersave\n",
            f"{cpu}/cpu0/cpufreq/cpuinfo_max_freq": "4700000\n",
            f"{cpu}/intel_pstate/no_turbo": "1\n",
        },
    )
    host = describe(root)
    assert host["cpu"] == "Intel(R) Core(TM) i7"
    assert host["hypervisor"] is False
    assert host["memory_bytes"] == 16_000_000 * 1024
    assert (host["governor"], host["clock_mhz"], host["turbo"]) == ("powersave", 4700.0, False)


def test_a_virtual_machine_tells_its_clock_in_cpuinfo_alone(tmp_path: Path) -> None:
    text = "model name\t: AMD EPYC\ncpu MHz\t: 2596.122\nflags\t: fpu hypervisor sse\n"
    host = describe(files(tmp_path, {"proc/cpuinfo": text, "sys/devices/system/cpu/cpufreq/boost": "1\n"}))
    assert (host["hypervisor"], host["clock_mhz"], host["turbo"]) == (True, 2596.122, True)


@pytest.mark.parametrize(
    "machine, flags, exact",
    [
        ("x86_64", "fma avx2 avx512f avx512_vnni", True),
        ("AMD64", "fma avx2 avx_vnni", True),
        ("x86_64", "fma avx2 avx512f avx512bw", False),
        ("x86_64", "", False),
        ("aarch64", "", True),
    ],
)
def test_only_x86_without_vnni_multiplies_8_bits_inexactly(
    tmp_path: Path, machine: str, flags: str, exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    root = files(tmp_path, {"proc/cpuinfo": f"processor\t: 0\nflags\t\t: {flags}\n"} if flags else {})
    assert multiplies_int8_exactly(root) is exact


@pytest.mark.parametrize(
    "contents, name",
    [
        ({"proc/cpuinfo": "processor\t: 0\nModel\t\t: Raspberry Pi 5 Model B\n"}, "Raspberry Pi 5 Model B"),
        (
            {"proc/cpuinfo": "CPU part\t: 0xd42\n", "proc/device-tree/model": "NVIDIA Jetson Orin Nano\0"},
            "NVIDIA Jetson Orin Nano",
        ),
        ({"proc/cpuinfo": "CPU implementer\t: 0x41\nCPU part\t: 0xd40\n"}, "0x41 0xd40"),
    ],
)
def test_arm_boards_are_told_apart(tmp_path: Path, contents: dict[str, str], name: str) -> None:
    host = describe(files(tmp_path, contents))
    assert host["cpu"] == name
    assert host["hypervisor"] is None  # these CPUs have no such flag


@pytest.mark.parametrize(
    "contents, quota",
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        (
            {
                "proc/self/cgroup": "0::/slice/service\n",
                "sys/fs/cgroup/slice/cpu.max": "200000 100000\n",
                "sys/fs/cgroup/slice/service/cpu.max": "400000 100000\n",
            },
            2.0,
        ),
        (
            {  # a container that sees its host's path, but its own folder at the top
                "proc/self/cgroup": "4:memory:/docker/1\n3:cpu,cpuacct:/docker/1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            0.5,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
    ],
)
def test_the_quota_is_the_tightest_of_the_control_groups(
    tmp_path: Path, contents: dict[str, str], quota: float | None
) -> None:
    assert describe(files(tmp_path, contents))["quota"] == quota


def test_variables_that_change_threads_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(THREADS)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("KMP_BLOCKTIME", "0")
    monkeypatch.setenv("OMPI_OF_SOMETHING_ELSE", "1")
    host = describe()
    assert host["thread_variables"] == {"KMP_BLOCKTIME": "0", "OMP_NUM_THREADS": "1"}
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert differences(host, describe()) == ["OMP_NUM_THREADS 1 / 2"]


def test_the_last_level_cache_is_that_of_the_highest_level(tmp_path: Path) -> None:
    cache = "sys/devices/system/cpu/cpu0/cache"
    levels = [("index0", 1, "48K"), ("index1", 1, "32K"), ("index2", 3, "36M"), ("index10", 2, "2048K")]
    for index, level, size in levels:
        files(tmp_path, {f"{cache}/{index}/level": f"{level}\n", f"{cache}/{index}/size": f"{size}\n"})
    assert last_level_cache(tmp_path) == 36 << 20


def test_a_cache_that_is_not_told_is_taken_for_32_mib(tmp_path: Path) -> None:
    assert last_level_cache(tmp_path) == 32 << 20
    files(tmp_path, {"sys/devices/system/cpu/cpu0/cache/index0/level": "1\n"})
    assert last_level_cache(tmp_path) == 32 << 20


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for a program nvidia-smi that stands in for the real one."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    path = tmp_path / "nvidia-smi"
    path.touch(mode=0o755)
    return path


@pytest.mark.skipif(os.name != "posix", reason="a shell script")
def test_gpus_are_those_that_nvidia_smi_lists(program: Path) -> None:
    rows = "NVIDIA H100 80GB HBM3, 570.10, 81559, 700.00, 1980\\nNVIDIA Orin, 540.4, [N/A], [N/A], [N/A]\\n"
    program.write_text(
        "#!/bin/sh\n"
        '[ "$*" = "--query-gpu=name,driver_version,memory.total,power.limit,clocks.max.sm '
        '--format=csv,noheader,nounits" ] || exit 2\n'
        f"printf '{rows}'\n"
    )
    first, second = describe()["gpus"]
    assert first == {
        "name": "NVIDIA H100 80GB HBM3",
        "driver": "570.10",
        "memory_mib": 81559.0,
        "power_limit_watts": 700.0,
        "clock_max_mhz": 1980.0,
    }
    assert second["name"] == "NVIDIA Orin"
    assert second["driver"] == "540.4"
    assert second["power_limit_watts"] is None


@pytest.mark.skipif(os.name != "posix", reason="a shell script")
@pytest.mark.parametrize(
    "script",
    [
        "#!/bin/sh\necho 'NVIDIA-SMI has failed because it could not communicate with the driver.'\nexit 9\n",
        "#!/bin/sh\necho 'No devices were found'\n",
        "#!/no/such/interpreter\n",
    ],
)
def test_an_nvidia_smi_without_a_gpu_behind_it_is_none(program: Path, script: str) -> None:
    program.write_text(script)
    assert describe()["gpus"] == []


@pytest.mark.skipif(os.name != "posix", reason="a shell script")
def test_an_nvidia_smi_that_hangs_is_given_up(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr("subtune_deploy.environment.SMI_SECONDS", 0.2)
    assert nvidia_smi({"name": "name", "driver": "driver_version"}) == []


def test_one_host_is_identical_to_itself_at_another_time() -> None:
    host = describe()
    assert differences(host, json.loads(json.dumps(describe()))) == []
    later = changed(load_average=[9.0, 9.0, 9.0], platform="Linux-6.8.0-99-generic", python="3.11.9")
    later |= {"clock_mhz": 3499.9, "memory_bytes": 1 << 30}
    later["libraries"]["timm"] = "1.0.31"
    assert differences(HOST, later) == []
    assert identity(HOST) == identity(later)


@pytest.mark.parametrize(
    "facts, text",
    [
        ({"cpu": "Intel Xeon"}, "cpu AMD EPYC 7763 / Intel Xeon"),
        ({"machine": "aarch64"}, "machine x86_64 / aarch64"),
        ({"cores": 8}, "cores 4 / 8"),
        ({"affinity": [0, 2, 3]}, "affinity 0-3 / 0,2-3"),
        ({"quota": 2.0}, "quota none / 2.0"),
        ({"hypervisor": False}, "hypervisor True / False"),
        ({"governor": "powersave"}, "governor performance / powersave"),
        ({"turbo": None}, "turbo True / none"),
        ({"python": "3.12.1"}, "python 3.11 / 3.12"),
        ({"platform": "Windows-11"}, "system Linux / Windows"),
        ({"thread_variables": {}}, "OMP_NUM_THREADS 4 / none"),
        ({"libraries": {"numpy": "2.4.1", "onnxruntime": "1.32.0"}}, "onnxruntime 1.31.0 / 1.32.0"),
        ({"libraries": {"numpy": "2.4.1"}}, "onnxruntime 1.31.0 / none"),
        ({"gpus": []}, "gpu 0 NVIDIA L4, driver 570.86.15, 72 W / none"),
        (
            {"gpus": [{"name": "NVIDIA L4", "driver": "575.1", "power_limit_watts": 72.0}]},
            "gpu 0 NVIDIA L4, driver 570.86.15, 72 W / NVIDIA L4, driver 575.1, 72 W",
        ),
    ],
)
def test_what_differs_is_named_and_nothing_else(facts: dict[str, Any], text: str) -> None:
    assert differences(HOST, changed(**facts)) == [text]
    assert len(differences(changed(**facts), HOST)) == 1


def test_a_fact_that_only_one_host_knows_differs_and_one_that_neither_knows_does_not() -> None:
    older = {key: value for key, value in HOST.items() if key not in ("turbo", "quota", "gpus")}
    assert differences(older, HOST) == ["turbo none / True", "gpu 0 none / NVIDIA L4, driver 570.86.15, 72 W"]
    assert differences({}, {}) == []
    assert len(differences({}, HOST)) == len(identity(HOST))
