"""What a measurement was disturbed by, and the warnings that follow."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from subtune_deploy.conditions import SHORTEST, noise_warnings, watch
from subtune_deploy.environment import describe

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and /sys")

QUIET = {"cores": 8, "load_average": [0.3, 0.2, 0.1], "governor": "performance"}
STEADY = [0.010, 0.0101, 0.0099] * 10
CALM = {
    "seconds": 20.0,
    "others": 0.05,
    "stolen": 0.0,
    "throttled": 0,
    "context_switches": 12,
    "clock_mhz_before": 3500.0,
    "clock_mhz_after": 3450.0,
    "temperature_c": 61.0,
    "power_watts": 35.0,
    "on_battery": False,
    "gpus": [{"power_watts": 60.0, "temperature_c": 55.0, "clock_mhz": 1980.0}],
}
BUSY = "import time; end = time.process_time() + {}\nwhile time.process_time() < end: pass"
HERTZ = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def write_stat(root: Path, *, busy: float = 0, idle: float = 0, stolen: float = 0) -> None:
    """A /proc/stat with so many seconds spent on the first CPU that this process may use, all day on others."""
    first = min(os.sched_getaffinity(0))
    user, system = round(busy * HERTZ / 2), round(busy * HERTZ / 2)
    ours = f"cpu{first} {user} 0 {system} {round(idle * HERTZ)} 0 0 0 {round(stolen * HERTZ)} 0 0\n"
    everyone = "cpu 86400 86400 86400 86400 0 0 0 86400 0 0\n"
    elsewhere = f"cpu4096 {time.time_ns()} 0 0 0 0 0 0 {time.time_ns()} 0 0\n"
    write(root, "proc/stat", f"{everyone}{ours}{elsewhere}intr 1 2 3\nctxt 5\n")


def watched(root: Path, meanwhile: Callable[[], object]) -> dict[str, Any]:
    with watch(root) as seen:
        meanwhile()
    return seen.conditions


def cpu_seconds(pid: int) -> float:
    """CPU time of a process: user and system ticks."""
    cells = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(cells[11]) + int(cells[12])) / HERTZ


def burn(seconds: float) -> None:
    exec(BUSY.format(seconds), {})


def test_conditions_are_json_and_there_after_the_block() -> None:
    with watch() as seen:
        time.sleep(0.02)
        assert seen.conditions == {}
    assert json.loads(json.dumps(seen.conditions)) == seen.conditions
    assert 0.02 <= seen.conditions["seconds"] < 10  # a busy machine wakes late
    assert set(CALM) | {"load_before", "load_after"} == set(seen.conditions)


def test_conditions_are_kept_of_a_block_that_fails() -> None:
    with pytest.raises(KeyError), watch() as seen:
        raise KeyError("of the block")
    assert seen.conditions["seconds"] > 0


@linux
def test_a_process_that_is_not_ours_is_among_the_others() -> None:
    shell = f'"{sys.executable}" -c "{BUSY.format(5)}" > /dev/null & echo $!'
    started = subprocess.run(["sh", "-c", shell], stdout=subprocess.PIPE, text=True, check=True)
    pid = int(started.stdout)  # its shell has ended: it is nobody's child
    try:
        time.sleep(0.1)
        before = cpu_seconds(pid)
        with watch() as seen:
            time.sleep(0.8)
        used = cpu_seconds(pid) - before
    finally:
        os.kill(pid, signal.SIGKILL)
    assert used > 0.1, "it did not run, so there was nothing to see"
    assert seen.conditions["others"] * seen.conditions["seconds"] > 0.8 * used - 0.04


@linux
def test_our_own_time_is_not_that_of_others(tmp_path: Path) -> None:
    write_stat(tmp_path, busy=100)

    def work() -> None:
        before, start = sum(os.times()[:4]), time.perf_counter()
        burn(0.3)
        subprocess.run([sys.executable, "-c", BUSY.format(0.2)], check=True)  # waited for: ours too
        time.sleep(max(0.0, 1.0 - (time.perf_counter() - start)))
        ours = sum(os.times()[:4]) - before
        assert ours >= 0.45
        write_stat(tmp_path, busy=100 + ours, idle=1.0)

    assert watched(tmp_path, work)["others"] == pytest.approx(0.0, abs=0.05)


@linux
def test_others_and_stolen_time_are_shares_of_the_cpus_that_we_may_use(tmp_path: Path) -> None:
    write_stat(tmp_path, busy=100, idle=100, stolen=7)

    def sleep() -> None:
        time.sleep(0.8)
        write_stat(tmp_path, busy=100.4, idle=100.3, stolen=7.1)

    found = watched(tmp_path, sleep)
    assert found["others"] == pytest.approx(0.4 / found["seconds"], abs=0.06)
    assert found["stolen"] == pytest.approx(0.1 / 0.8, abs=0.02)


@linux
@pytest.mark.parametrize("seconds, later", [(SHORTEST + 0.05, 0.0), (0.05, 1.0)])
def test_counters_that_do_not_move_or_too_short_a_block_say_nothing(
    tmp_path: Path, seconds: float, later: float
) -> None:
    write_stat(tmp_path)

    def sleep() -> None:
        time.sleep(seconds)
        write_stat(tmp_path, busy=later)

    found = watched(tmp_path, sleep)
    assert (found["others"], found["stolen"]) == (None, None)


@linux
def test_processes_that_share_one_cpu_make_way_for_each_other() -> None:
    code = f"""
import json, os, subprocess, sys
from subtune_deploy.conditions import watch
os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}})
rival = subprocess.Popen([sys.executable, "-c", {BUSY.format(0.5)!r}])
with watch() as seen:
    {BUSY.format(0.4).replace(chr(10), chr(10) + "    ")}
rival.wait()
print(json.dumps(seen.conditions["context_switches"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) >= 10


@linux
def test_sensors_clocks_energy_and_throttling_are_read_where_they_are(tmp_path: Path) -> None:
    cpu = f"sys/devices/system/cpu/cpu{min(os.sched_getaffinity(0))}/cpufreq/scaling_cur_freq"
    package, core = "sys/class/powercap/intel-rapl:0", "sys/class/powercap/intel-rapl:0:0"
    supply = "sys/class/power_supply"
    for name, text in {
        "proc/self/cgroup": "0::/box\n",
        "sys/fs/cgroup/box/cpu.stat": "usage_usec 1\nnr_periods 9\nnr_throttled 5\nthrottled_usec 7\n",
        cpu: "3500000\n",
        f"{package}/name": "package-0\n",
        f"{package}/energy_uj": "90000000\n",
        f"{package}/max_energy_range_uj": "100000000\n",
        f"{core}/name": "core\n",
        f"{core}/energy_uj": "1\n",
        "sys/class/thermal/thermal_zone0/type": "x86_pkg_temp\n",
        "sys/class/thermal/thermal_zone0/temp": "71000\n",
        "sys/class/thermal/thermal_zone1/type": "iwlwifi\n",
        "sys/class/thermal/thermal_zone1/temp": "120000\n",
        "sys/class/hwmon/hwmon0/name": "coretemp\n",
        "sys/class/hwmon/hwmon0/temp2_input": "84000\n",
        f"{supply}/BAT0/type": "Battery\n",
        f"{supply}/mouse/type": "Battery\n",
        f"{supply}/mouse/scope": "Device\n",
        f"{supply}/mouse/online": "1\n",
        f"{supply}/AC/type": "Mains\n",
        f"{supply}/AC/online": "1\n",
    }.items():
        write(tmp_path, name, text)

    def unplug() -> None:
        time.sleep(0.1)
        write(tmp_path, "sys/fs/cgroup/box/cpu.stat", "nr_periods 99\nnr_throttled 17\n")
        write(tmp_path, cpu, "2800000\n")
        write(tmp_path, f"{package}/energy_uj", "10000000\n")  # its counter began anew: 20 J
        write(tmp_path, f"{supply}/AC/online", "0\n")

    found = watched(tmp_path, unplug)
    assert found["throttled"] == 12
    assert (found["clock_mhz_before"], found["clock_mhz_after"]) == (3500.0, 2800.0)
    assert found["power_watts"] == pytest.approx(20 / found["seconds"])
    assert found["temperature_c"] == 84.0
    assert found["on_battery"] is True
    assert len(noise_warnings(QUIET, STEADY, found)) == 3


@linux
def test_a_desktop_with_a_wireless_mouse_is_on_no_battery(tmp_path: Path) -> None:
    for name, text in {
        "mouse/type": "Battery",
        "mouse/scope": "Device",
        "usb/type": "USB",
        "usb/online": "0",
    }.items():
        write(tmp_path, f"sys/class/power_supply/{name}", text)
    assert watched(tmp_path, int)["on_battery"] is None


def test_where_nothing_can_be_read_there_is_none(tmp_path: Path) -> None:
    found = watched(tmp_path, int)
    told = {"seconds", "load_before", "load_after", "context_switches", "gpus"}  # by Python and nvidia-smi
    assert {value for key, value in found.items() if key not in told} == {None}
    assert noise_warnings(QUIET, STEADY, found) == []


@pytest.mark.skipif(os.name != "posix", reason="a shell script")
def test_gpus_are_asked_after_the_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidia-smi").write_text(
        "#!/bin/sh\n"
        '[ "$1" = "--query-gpu=power.draw,temperature.gpu,clocks.sm" ] && echo "350.25, 91, 1410"\n'
    )
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    found = watched(tmp_path, int)
    assert found["gpus"] == [{"power_watts": 350.25, "temperature_c": 91.0, "clock_mhz": 1410.0}]
    (hot,) = noise_warnings(QUIET, STEADY, found)
    assert "a GPU is at 91 °C" in hot


def test_a_quiet_host_gives_no_warning() -> None:
    assert noise_warnings(QUIET, STEADY) == []
    assert noise_warnings(QUIET, STEADY, CALM) == []
    assert noise_warnings({"cores": 2, "load_average": None, "governor": None}) == []
    assert noise_warnings({}) == []


@pytest.mark.parametrize(
    "facts, what, remedy",
    [
        ({"load_average": [6.0, 1.0, 1.0]}, "load average is 6.0 on 8 cores", "stop other programs"),
        ({"governor": "powersave"}, "CPU governor is powersave", "cpupower frequency-set -g performance"),
        ({"quota": 2.5}, "the quota is 2.5 of 8 CPUs", "set threads in the recipe to 2"),
        ({"quota": 0.5, "affinity": [3]}, "the quota is 0.5 of 1 CPUs", "set threads in the recipe to 1"),
    ],
)
def test_what_the_host_tells_beforehand(facts: dict[str, Any], what: str, remedy: str) -> None:
    (line,) = noise_warnings({**QUIET, **facts}, STEADY)
    assert what in line
    assert remedy in line
    assert "\n" not in line


@pytest.mark.parametrize(
    "facts, what, remedy",
    [
        ({"others": 0.3}, "other processes kept 0.3 CPUs busy", "stop them"),
        ({"stolen": 0.034}, "3.4% of the CPU time", "use a machine with CPUs of its own"),
        ({"throttled": 4}, "stopped the process 4 times", "lift the quota"),
        ({"clock_mhz_after": 3300.0}, "fell from 3500 to 3300 MHz", "turn turbo off"),
        ({"temperature_c": 90.0}, "the CPU is at 90 °C", "cool it better"),
        ({"gpus": [{"temperature_c": None}, {"temperature_c": 93.0}]}, "a GPU is at 93 °C", "cool it better"),
        ({"on_battery": True}, "runs on its battery", "plug it in"),
    ],
)
def test_what_happened_meanwhile(facts: dict[str, Any], what: str, remedy: str) -> None:
    (line,) = noise_warnings(QUIET, STEADY, {**CALM, **facts})
    assert what in line
    assert remedy in line
    assert "\n" not in line


def test_samples_that_scatter() -> None:
    (spread,) = noise_warnings(QUIET, STEADY + [0.02] * 6)
    assert "1.5 times the median" in spread
    assert "trust ratios only" in spread


def test_a_quota_that_was_never_hit_is_no_matter_afterwards() -> None:
    assert len(noise_warnings({**QUIET, "quota": 2.0}, STEADY, {**CALM, "throttled": None})) == 1
    assert noise_warnings({**QUIET, "quota": 2.0}, STEADY, CALM) == []
    assert noise_warnings({**QUIET, "quota": 8.0}) == []


def test_this_host_can_be_judged() -> None:
    with watch() as seen:
        time.sleep(SHORTEST)
    assert all("\n" not in line for line in noise_warnings(describe(), STEADY, seen.conditions))
