"""What a measurement was taken on, and whether this machine is quiet enough to take one."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from .stats import median, percentile

LIBRARIES = ("subtune-deploy", "numpy", "onnx", "onnxruntime", "openvino", "torch", "torchvision", "timm")
CPU0 = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
QUOTA = Path("/sys/fs/cgroup/cpu.max")


def describe() -> dict[str, Any]:
    """Facts of this host as JSON values; None where the system does not say. Imports no library."""
    return {
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "affinity": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "quota": _quota(),
        "governor": _first_line(CPU0),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "libraries": {name: version for name in LIBRARIES if (version := _version(name))},
    }


def noise_warnings(host: Mapping[str, Any], samples: Sequence[float] = ()) -> list[str]:
    """One line, remedy included, for each thing that makes timings on this host doubtful.

    `host` is what `describe` gave before measuring; `samples` are seconds of one engine.
    """
    found = []
    cores, load = host.get("cores") or 1, host.get("load_average")
    if load and load[0] > cores / 2:
        found.append(
            f"load average is {load[0]:.1f} on {cores} cores: stop other programs, then measure again"
        )
    if host.get("governor") not in (None, "performance"):
        found.append(
            f"CPU governor is {host['governor']}, clocks will wander: cpupower frequency-set -g performance"
        )
    if samples and percentile(samples, 90) > 1.5 * median(samples):
        found.append(
            "one sample in ten took over 1.5 times the median: trust ratios only, or use a quieter machine"
        )
    return found


def _cpu_model() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or None
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return names[0] if names else platform.processor() or None


def _quota() -> float | None:
    """CPUs that the control group may use, where one is set: a container may have fewer than it sees."""
    allowed, _, period = (_first_line(QUOTA) or "").partition(" ")
    return int(allowed) / int(period) if allowed.isdigit() and period.isdigit() else None


def _first_line(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except OSError:
        return None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
