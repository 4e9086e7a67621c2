"""The description of a host, and warnings when it is too noisy."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from importlib import metadata

from subtune_deploy.environment import describe, noise_warnings

QUIET = {"cores": 8, "load_average": [0.3, 0.2, 0.1], "governor": "performance"}
STEADY = [0.010, 0.0101, 0.0099] * 10


def test_the_description_is_json_and_true_of_this_host() -> None:
    host = describe()
    assert json.loads(json.dumps(host)) == host
    assert host["python"] == platform.python_version()
    assert host["cores"] >= len(host["affinity"] or [0]) >= 1
    assert host["libraries"]["onnxruntime"] == metadata.version("onnxruntime")
    assert host["cpu"]


def test_describing_imports_none_of_the_libraries() -> None:
    code = (
        "import sys; from subtune_deploy.environment import describe; describe(); "
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'openvino', 'timm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_quiet_host_gives_no_warning() -> None:
    assert noise_warnings(QUIET, STEADY) == []
    assert noise_warnings({"cores": 2, "load_average": None, "governor": None}) == []


def test_each_disturbance_is_named_with_its_remedy() -> None:
    (load,) = noise_warnings({**QUIET, "load_average": [6.0, 1.0, 1.0]}, STEADY)
    assert "load average is 6.0 on 8 cores" in load
    assert "stop other programs" in load
    (governor,) = noise_warnings({**QUIET, "governor": "powersave"})
    assert "cpupower" in governor
    (spread,) = noise_warnings(QUIET, STEADY + [0.02] * 6)
    assert "1.5 times the median" in spread
