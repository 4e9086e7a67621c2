"""What went on while something was measured, and whether that makes its timings doubtful."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .environment import ROOT, affinity, control_groups, cpuinfo, number, nvidia_smi, read
from .stats import median, percentile

LOAD = 0.5
"""Of the cores: beyond, an engine with a thread for each shares most of them. Less is left to `OTHERS`, which
does not remember the last minute."""
OTHERS = 0.2
"""CPUs: with a fifth of one taken, a thread of an engine that uses all of them must wait in one run of five."""
STOLEN = 0.01
"""Of the CPU time: as much as the precision that medians are taken to."""
SLOWER = 0.05
"""Of the clock: more than a step of 100 MHz, which any governor may take."""
HOT = 90.0
"""Degrees Celsius: most CPUs and GPUs slow down between here and 105."""
SPREAD = 1.5
"""Times the median: an engine does the same work in each run, so one sample in ten beyond is disturbance."""
SHORTEST = 0.5
"""Seconds: CPU time is told in steps of 10 ms, of which a shorter block holds too few."""

GPU = {"power_watts": "power.draw", "temperature_c": "temperature.gpu", "clock_mhz": "clocks.sm"}
SENSORS = ("cpu", "pkg", "soc", "core", "k10temp", "zenpower")
"""In the names of sensors that are in or at the CPU."""


@dataclass
class Watch:
    """`conditions`, JSON values by name, are there once the block of `watch` has ended."""

    conditions: dict[str, Any] = field(default_factory=dict)


@contextmanager
def watch(root: Path = ROOT) -> Iterator[Watch]:
    """Observe the machine while the block runs, from counters read before and after: nothing runs meanwhile.

    seconds                               that the block took
    load_before, load_after               load average over a minute; the second holds the block's own load
    others                                CPUs that other processes kept busy, mean
    stolen                                part of the CPU time that the hypervisor gave to others, 0..1
    throttled                             how often a control group's quota stopped its processes
    context_switches                      how often a thread of this process had to make way for another
    clock_mhz_before, clock_mhz_after     of the fastest core just then
    temperature_c                         of the hottest sensor at the CPU, afterwards
    power_watts                           mean of the CPU packages (RAPL; mostly for root alone)
    on_battery                            of machines with one
    gpus                                  power_watts, temperature_c, clock_mhz of each, just afterwards

    None where the system does not say. `others` and `stolen` are of those CPUs that this process may use, and
    count whatever ran on them; in a container that has CPUs of its own they are its own, in one that has a
    quota they are the whole host's. A child process is ours once it was waited for; one that still runs is
    among the others.
    """
    seen, load, clock = Watch(), _load_average(), _clock(root)
    before = _snapshot(root)
    try:
        yield seen
    finally:
        after = _snapshot(root)
        seen.conditions = {
            **_between(before, after),
            "load_before": load,
            "load_after": _load_average(),
            "clock_mhz_before": clock,
            "clock_mhz_after": _clock(root),
            "temperature_c": _temperature(root),
            "on_battery": _on_battery(root),
            "gpus": nvidia_smi(GPU),
        }


def noise_warnings(
    host: Mapping[str, Any], samples: Sequence[float] = (), conditions: Mapping[str, Any] | None = None
) -> list[str]:
    """One line, remedy included, for each thing that makes timings on this host doubtful.

    `host` is what `describe` gave before measuring; `samples` are seconds of one engine; `conditions` are
    those of a `Watch` over the measurement.
    """
    during = conditions or {}
    found = (
        _load(host, during),
        _governor(host),
        _rationed(host, during),
        *_beyond_limits(during),
        _slowed(during),
        _hot_gpu(during),
        _scattered(samples),
    )
    return [text for text in found if text]


def _load(host: Mapping[str, Any], during: Mapping[str, Any]) -> str | None:
    """The last minute's load may have been our own, of building engines; `others` tells them apart."""
    if during.get("others") is not None:
        return None
    cores, load = host.get("cores") or 1, host.get("load_average")
    if load and load[0] > LOAD * cores:
        return f"load average is {load[0]:.1f} on {cores} cores: stop other programs, then measure again"
    return None


def _governor(host: Mapping[str, Any]) -> str | None:
    if host.get("governor") not in (None, "performance"):
        return (
            f"CPU governor is {host['governor']}, clocks will wander: cpupower frequency-set -g performance"
        )
    return None


def _rationed(host: Mapping[str, Any], during: Mapping[str, Any]) -> str | None:
    """A quota below the CPUs in sight stops whoever starts a thread on each; afterwards we know if it did."""
    quota, usable = host.get("quota"), len(host.get("affinity") or ()) or host.get("cores") or 1
    if quota and quota < usable and during.get("throttled") is None:
        return (
            f"the quota is {quota:g} of {usable} CPUs: set threads in the recipe to {max(1, int(quota))}, "
            "or lift the quota"
        )
    return None


_LIMITS = (
    ("others", OTHERS, "other processes kept {:.1f} CPUs busy: stop them, then measure again"),
    (
        "stolen",
        STOLEN,
        "the hypervisor gave {:.1%} of the CPU time to others: use a machine with CPUs of its own",
    ),
    (
        "throttled",
        1,
        "the quota stopped the process {} times: set fewer threads in the recipe, or lift the quota",
    ),
    (
        "temperature_c",
        HOT,
        "the CPU is at {:.0f} °C and will slow down: cool it better, or pause between runs",
    ),
    ("on_battery", True, "the machine runs on its battery, clocks are held down: plug it in"),
)


def _beyond_limits(during: Mapping[str, Any]) -> list[str]:
    return [text.format(during[key]) for key, limit, text in _LIMITS if (during.get(key) or 0) >= limit]


def _slowed(during: Mapping[str, Any]) -> str | None:
    before, after = during.get("clock_mhz_before"), during.get("clock_mhz_after")
    if before and after and after < (1 - SLOWER) * before:
        return f"the clock fell from {before:.0f} to {after:.0f} MHz: turn turbo off, or cool the CPU better"
    return None


def _hot_gpu(during: Mapping[str, Any]) -> str | None:
    hottest = max((gpu.get("temperature_c") or 0 for gpu in during.get("gpus") or ()), default=0)
    if hottest >= HOT:
        return f"a GPU is at {hottest:.0f} °C and will slow down: cool it better, or pause between runs"
    return None


def _scattered(samples: Sequence[float]) -> str | None:
    if samples and percentile(samples, 90) > SPREAD * median(samples):
        return (
            f"one sample in ten took over {SPREAD:g} times the median: trust ratios only, "
            "or use a quieter machine"
        )
    return None


@dataclass(frozen=True)
class _Ticks:
    """Seconds of CPU time since the start, over the CPUs that this process may use."""

    busy: float
    stolen: float
    total: float


@dataclass(frozen=True)
class _Snapshot:
    """Counters: `own` seconds of CPU time of this process, `energy` in joules and where each wraps around."""

    seconds: float
    own: float
    ticks: _Ticks | None
    throttled: int | None
    switches: int | None
    energy: tuple[tuple[float, float], ...]


def _snapshot(root: Path) -> _Snapshot:
    return _Snapshot(
        seconds=time.perf_counter(),
        own=sum(os.times()[:4]),
        ticks=_ticks(root),
        throttled=_throttled(root),
        switches=_switches(),
        energy=_energy(root),
    )


def _between(before: _Snapshot, after: _Snapshot) -> dict[str, Any]:
    seconds = after.seconds - before.seconds
    others, stolen = _shares(before, after, seconds)
    return {
        "seconds": seconds,
        "others": others,
        "stolen": stolen,
        "throttled": _difference(before.throttled, after.throttled),
        "context_switches": _difference(before.switches, after.switches),
        "power_watts": _power(before, after, seconds),
    }


def _shares(before: _Snapshot, after: _Snapshot, seconds: float) -> tuple[float | None, float | None]:
    """`others` and `stolen`; some sandboxes have a /proc/stat in which nothing ever moves."""
    first, last = before.ticks, after.ticks
    if first is None or last is None or seconds < SHORTEST or last.total <= first.total:
        return None, None
    others = last.busy - first.busy - (after.own - before.own)
    return max(0.0, others / seconds), (last.stolen - first.stolen) / (last.total - first.total)


def _difference(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before


def _power(before: _Snapshot, after: _Snapshot, seconds: float) -> float | None:
    if not before.energy or len(before.energy) != len(after.energy):
        return None
    pairs = zip(before.energy, after.energy, strict=True)
    return sum((last - first) % wrap for (first, wrap), (last, _) in pairs) / seconds


def _ticks(root: Path) -> _Ticks | None:
    usable = {f"cpu{i}" for i in affinity() or ()}
    lines = (read(root / "proc/stat") or "").splitlines()
    rows = [line.split() for line in lines if line.startswith("cpu")]
    ours = [[int(cell) for cell in row[1:9]] for row in rows if row[0] in usable]
    if not ours:
        return None
    hertz = os.sysconf("SC_CLK_TCK")
    user, nice, system, idle, waiting, irq, softirq, stolen = (
        sum(c) / hertz for c in zip(*ours, strict=True)
    )
    busy = user + nice + system + irq + softirq
    return _Ticks(busy, stolen, busy + idle + waiting + stolen)


def _throttled(root: Path) -> int | None:
    lines = [line for group in control_groups(root) for line in (read(group / "cpu.stat") or "").splitlines()]
    found = [int(line.split()[1]) for line in lines if line.startswith("nr_throttled ")]
    return sum(found) if found else None


def _switches() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _energy(root: Path) -> tuple[tuple[float, float], ...]:
    """Nothing unless every package can be read."""
    found = []
    for folder in sorted(root.glob("sys/class/powercap/intel-rapl:*")):  # AMD's are called that too
        if (read(folder / "name") or "").startswith("package"):
            used, wrap = number(folder / "energy_uj"), number(folder / "max_energy_range_uj")
            if used is None or not wrap:
                return ()
            found.append((used / 1e6, wrap / 1e6))
    return tuple(found)


def _load_average() -> float | None:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _clock(root: Path) -> float | None:
    folders = (root / f"sys/devices/system/cpu/cpu{i}/cpufreq" for i in affinity() or ())
    clocks = [clock / 1000 for each in folders if (clock := number(each / "scaling_cur_freq")) is not None]
    return max(clocks or map(float, cpuinfo(root).get("cpu MHz", ())), default=None)


def _temperature(root: Path) -> float | None:
    zones = [(path.parent / "type", path) for path in root.glob("sys/class/thermal/thermal_zone*/temp")]
    inputs = [(path.parent / "name", path) for path in root.glob("sys/class/hwmon/hwmon*/temp*_input")]
    at_cpu = [path for name, path in zones + inputs if any(s in (read(name) or "").lower() for s in SENSORS)]
    return max((found / 1000 for path in at_cpu if (found := number(path)) is not None), default=None)


def _on_battery(root: Path) -> bool | None:
    """Whether nothing is plugged in; None without a battery (those of a mouse and the like do not count)."""
    supplies = list(root.glob("sys/class/power_supply/*"))
    batteries = [each for each in supplies if read(each / "type") == "Battery"]
    if all(read(each / "scope") == "Device" for each in batteries):
        return None
    return not any(number(each / "online") for each in supplies if each not in batteries)
