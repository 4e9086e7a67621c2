"""What host this is, and whether two results were taken on hosts that may be compared.

Linux tells it in /proc and /sys; what a system does not say is None. No library is imported.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from .spec import format_layers as as_ranges

ROOT = Path("/")
"""Below it lie proc and sys; functions take another folder in its place."""

INFERENCE = (
    *("subtune-deploy", "numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "torch"),
    *("tensorrt", "tensorrt-cu12", "tensorrt-cu13", "tensorrt-rtx", "tensorrt-rtx-cu12", "tensorrt-rtx-cu13"),
    *("onnxruntime-ep-nv-tensorrt-rtx", "onnxruntime-ep-nv-tensorrt-rtx-cu12", "pycuda"),
)
"""Libraries that take part when an engine runs, by the names that they are installed under."""
LIBRARIES = (*INFERENCE, "onnx", "torchvision", "timm", "torch-pruning")

SAME = (
    "machine",
    "cpu",
    "stepping",
    "instructions",
    "last_level_cache",
    "cores",
    "affinity",
    "quota",
    "hypervisor",
    "governor",
    "turbo",
)
"""Keys of `describe` that `identity` takes over as they are."""

THREADS = ("OMP_", "KMP_", "GOMP_", "MKL_NUM_THREADS", "MKL_DYNAMIC", "OPENBLAS_NUM_THREADS")
"""How the environment variables begin that change how many threads work, and how they wait."""

GPU = {
    "name": "name",
    "driver": "driver_version",
    "memory_mib": "memory.total",
    "power_limit_watts": "power.limit",
    "clock_max_mhz": "clocks.max.sm",
}
"""Our keys, and what nvidia-smi calls them."""
SMI_SECONDS = 5
"""nvidia-smi answers within a second unless its driver is in trouble."""

Cpuinfo = dict[str, list[str]]


def describe(root: Path = ROOT) -> dict[str, Any]:
    """Facts of this host as JSON values; None where the system does not say.

    `quota` is in CPUs; `clock_mhz` is the highest that the CPU may reach, where that is told; a container sees
    its host's `cores` and `memory_bytes`.
    """
    cpus = cpuinfo(root)
    return {
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu": _cpu_model(root, cpus),
        "stepping": _stepping(cpus),
        "instructions": _instructions(cpus),
        "last_level_cache": last_level_cache(root),
        "cores": os.cpu_count(),
        "affinity": affinity(),
        "quota": _quota(root),
        "memory_bytes": kilobytes(root / "proc/meminfo", "MemTotal"),
        "hypervisor": "hypervisor" in cpus["flags"][0].split() if "flags" in cpus else None,
        "governor": read(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "clock_mhz": _highest_clock(root, cpus),
        "turbo": _turbo(root),
        "gpus": nvidia_smi(GPU),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "thread_variables": {k: v for k, v in sorted(os.environ.items()) if k.startswith(THREADS)},
        "python": platform.python_version(),
        "libraries": {name: version for name in LIBRARIES if (version := _version(name))},
    }


def identity(host: Mapping[str, Any]) -> dict[str, Any]:
    """Of what `describe` gave, the facts that must agree before two results are put side by side.

    They are what changes a latency and holds still: processor, the CPUs and the quota that the process may
    use, virtual or not, governor and turbo, GPUs with driver and power limit, variables that set threads,
    system, Python's minor version, and the libraries that take part when an engine runs. Not taken: load,
    which is a condition; the kernel's build and the size of the memory, which an update of a cloud's image
    changes and latencies do not show; the clock in MHz, which virtual machines measure anew at each start;
    libraries that only build graphs, for a graph is told by its own manifest. Two machines of one make and
    set-up are taken for the same. What is unknown is left out.
    """
    libraries, version = host.get("libraries") or {}, str(host.get("python") or "").split(".")
    facts = {
        **{key: host.get(key) for key in SAME},
        **{f"gpu {i}": _gpu_text(gpu) for i, gpu in enumerate(host.get("gpus") or ())},
        **(host.get("thread_variables") or {}),
        "system": str(host.get("platform") or "").partition("-")[0] or None,
        "python": ".".join(version[:2]) or None,
        **{name: libraries.get(name) for name in INFERENCE},
    }
    return {key: value for key, value in facts.items() if value is not None}


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """One short text for each fact in which two hosts' identities differ, as in "openvino 2026.1.0 / none".

    Takes what `describe` gave. A fact that only one of them knows differs.
    """
    left, right = identity(one), identity(other)
    return [
        f"{key} {_text(left.get(key))} / {_text(right.get(key))}"
        for key in dict.fromkeys((*left, *right))
        if left.get(key) != right.get(key)
    ]


def last_level_cache(root: Path = ROOT) -> int:
    """Bytes of the CPU's last-level cache; 32 MiB where the system does not say."""
    caches = root.glob("sys/devices/system/cpu/cpu0/cache/index*")
    sizes = [(number(each / "level") or 0, _bytes(read(each / "size"))) for each in caches]
    return max(sizes, default=(0, 0))[1] or 32 << 20


def multiplies_int8_exactly(root: Path = ROOT) -> bool:
    """Whether the CPU's quick way to multiply integers of 8 bits is exact, as it is but for x86 without VNNI.

    There (`vpmaddubsw`) two neighbouring products are added in 16 bits, which hold them all only where one factor has
    7 bits. Where the system does not tell, x86 is taken for such.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    return "vnni" in cpuinfo(root).get("flags", [""])[0]


def affinity() -> list[int] | None:
    """Numbers of the CPUs that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def cpuinfo(root: Path = ROOT) -> Cpuinfo:
    """What /proc/cpuinfo says: for each key its values, in the order of the CPUs."""
    found: Cpuinfo = {}
    for line in (read(root / "proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if value.strip():
            found.setdefault(key.strip(), []).append(value.strip())
    return found


def control_groups(root: Path = ROOT) -> list[Path]:
    """Folders of the control groups that ration this process's CPU time, of both versions, innermost first."""
    found = []
    for line in (read(root / "proc/self/cgroup") or "").splitlines():
        controllers, _, inner = line.partition(":")[2].partition(":")
        if not controllers or "cpu" in controllers.split(","):
            top = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
            group = top / inner.lstrip("/")
            found += [each for each in (group, *group.parents) if each.is_relative_to(top)]
    return found


def nvidia_smi(fields: Mapping[str, str]) -> list[dict[str, Any]]:
    """For each NVIDIA GPU, under our keys, what nvidia-smi answers to its own; numbers in its units.

    None where it has no answer; nothing at all where it is not installed, or fails.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, f"--query-gpu={','.join(fields.values())}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=SMI_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]
    return [_gpu(fields, row) for row in rows if len(row) == len(fields)]


def read(path: Path) -> str | None:
    """A small file's text without white space around it; None if it is empty or cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n") or None
    except OSError:
        return None


def number(path: Path) -> float | None:
    """The number that a file holds."""
    return _number(read(path))


def kilobytes(path: Path, key: str) -> int | None:
    """Of a file with lines such as "VmHWM:  1736 kB" the one of `key`, in bytes."""
    lines = (read(path) or "").splitlines()
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(f"{key}:")), None)


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _cpu_model(root: Path, cpus: Cpuinfo) -> str | None:
    """x86 and some ARM boards name it; other boards name themselves; servers on ARM give numbers."""
    for key in ("model name", "Model"):
        if key in cpus:
            return cpus[key][0]
    parts = [cpus[key][0] for key in ("CPU implementer", "CPU part") if key in cpus]
    return read(root / "proc/device-tree/model") or " ".join(parts) or platform.processor() or None


def _stepping(cpus: Cpuinfo) -> str | None:
    """Family, model and stepping: clouds call several generations of a processor by one name."""
    keys = ("cpu family", "model", "stepping")
    return "/".join(cpus[key][0] for key in keys) if all(key in cpus for key in keys) else None


def _instructions(cpus: Cpuinfo) -> str | None:
    """The vector and matrix extensions, which decide what kernels a library takes."""
    flags = (cpus.get("flags") or cpus.get("Features") or [""])[0].split()
    found = sorted(
        f for f in flags if f.startswith(("avx", "amx", "fma", "sve", "sme", "asimd", "bf16", "i8mm"))
    )
    return " ".join(found) or None


def usable_cores() -> int:
    """Threads that can run at once: the CPUs that this process may use, or fewer where a quota grants fewer."""
    cores, quota = len(affinity() or ()) or os.cpu_count() or 1, _quota(ROOT)
    return max(1, min(cores, int(quota))) if quota else cores


def _quota(root: Path) -> float | None:
    """CPUs that the tightest control group grants: a container may have fewer than it sees."""
    found = [quota for group in control_groups(root) if (quota := _granted(group)) is not None]
    return min(found, default=None)


def _granted(group: Path) -> float | None:
    version_1 = f"{read(group / 'cpu.cfs_quota_us')} {read(group / 'cpu.cfs_period_us')}"
    allowed, _, period = (read(group / "cpu.max") or version_1).partition(" ")
    return int(allowed) / int(period) if allowed.isdigit() and period.isdigit() else None


def _highest_clock(root: Path, cpus: Cpuinfo) -> float | None:
    """In MHz. What /proc/cpuinfo tells is the clock of now, which holds still where none can be set."""
    highest = number(root / "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")
    now = [clock for text in cpus.get("cpu MHz", ()) if (clock := _number(text)) is not None]
    return highest / 1000 if highest is not None else max(now, default=None)


def _turbo(root: Path) -> bool | None:
    system = root / "sys/devices/system/cpu"
    off, on = number(system / "intel_pstate/no_turbo"), number(system / "cpufreq/boost")
    if off is not None:
        return off == 0
    return None if on is None else on == 1


def _bytes(text: str | None) -> int:
    """ "1024K" -> 1 << 20; 0 for anything else."""
    shift = {"K": 10, "M": 20, "G": 30}.get((text or "?")[-1])
    return int(text[:-1]) << shift if text and shift and text[:-1].isdigit() else 0


def _gpu(fields: Mapping[str, str], row: list[str]) -> dict[str, Any]:
    """Versions stay texts, 470.10 is not 470.1; what cannot be told is in brackets."""
    return {
        key: None if cell.startswith("[") else cell if field in ("name", "driver_version") else _number(cell)
        for (key, field), cell in zip(fields.items(), row, strict=True)
    }


def _gpu_text(gpu: Mapping[str, Any]) -> str:
    limit = gpu.get("power_limit_watts")
    return f"{gpu.get('name')}, driver {gpu.get('driver')}" + (f", {limit:g} W" if limit else "")


def _text(value: object) -> str:
    if isinstance(value, list):
        return as_ranges(value)
    return "none" if value is None else str(value)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
