"""A device that has only what it needs: environments that hold certain packages of this one, and no others.

They are built without a network: the folders of the wanted distributions, and of what these require, are linked
into a new virtual environment. What is not linked cannot be imported there, whatever this environment holds.
"""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tiny_bundle import TARGETS, expected, make_bundle, manifest, pictures, write_graphs

from subtune_deploy.bundle import Bundle, add_engine, seal
from subtune_deploy.parity import References

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PHOTOGRAPH = ROOT / "subtune_deploy" / "assets" / "chelsea.jpg"
HEAVY = ("torch", "torchvision", "onnx", "onnx_ir", "onnxscript", "scipy")
CLI = "from subtune_deploy.cli import main; main()"
COMMAND = ("click", "rich", "filelock")

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")


@dataclass(frozen=True)
class Device:
    """A virtual environment, and what was linked into it."""

    python: Path
    distributions: frozenset[str]

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Python there, away from this environment's variables and folders."""
        command = [str(each) for each in (self.python, "-I", *arguments)]
        return subprocess.run(command, cwd=self.python.parent, capture_output=True, text=True, check=False)


def required(names: Iterable[str]) -> frozenset[str]:
    """The distributions `names`, given as requirements, and all that they require, directly or not."""
    found: set[str] = set()
    waiting = [Requirement(name) for name in names]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in found or not applies(requirement):
            continue
        found.add(name)
        waiting += [Requirement(each) for each in metadata.requires(name) or ()]
    return frozenset(found)


def applies(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})


def device(folder: Path, names: Iterable[str]) -> Device:
    """A new environment in `folder` with these requirements, and this package."""
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python3*/site-packages")
    distributions = required(names)
    for name in distributions:
        link(tops(name), site)
    (site / "subtune_deploy").mkdir()
    link((ROOT / "subtune_deploy").iterdir(), site / "subtune_deploy")
    (site / "subtune_deploy" / "recipes").symlink_to(ROOT / "engines")  # as the wheel has them
    return Device(folder / "bin" / "python", distributions)


def link(paths: Iterable[Path], folder: Path) -> None:
    """Under their own names; a folder that several distributions share is linked once."""
    for path in paths:
        if not (folder / path.name).exists():
            (folder / path.name).symlink_to(path)


def tops(name: str) -> set[Path]:
    """What a distribution put into site-packages: folders, and modules that stand alone."""
    distribution = metadata.distribution(name)
    files = [path for path in distribution.files or () if path.parts[0] not in ("..", "__pycache__")]
    return {Path(str(distribution.locate_file(path.parts[0]))) for path in files}


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def runtime_only(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Device:
    """numpy, Pillow and one backend: not even the command line's own packages."""
    folder = tmp_path_factory.mktemp(request.param) / "venv"
    return device(folder, ["numpy", "pillow", request.param])


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Device:
    """What `pip install subtune-deploy onnxruntime` brings."""
    return device(tmp_path_factory.mktemp("core") / "venv", [*PROJECT["dependencies"], "onnxruntime"])


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """By backend: a bundle with its engine."""
    folder = tmp_path_factory.mktemp("bundles")
    return {
        backend: add_engine(make_bundle(folder / backend), TARGETS[backend])
        for backend in ("onnxruntime", "openvino")
    }


def test_the_environment_has_nothing_else(runtime_only: Device) -> None:
    assert not runtime_only.distributions & {*HEAVY, *COMMAND, "safetensors"}
    code = "import importlib.util as u, json, sys; print(json.dumps([n for n in sys.argv[1:] if u.find_spec(n)]))"
    found = runtime_only.run("-c", code, *HEAVY, *COMMAND, "safetensors", "numpy", "PIL", "subtune_deploy")
    assert json.loads(found.stdout) == ["numpy", "PIL", "subtune_deploy"]


def test_a_bundle_runs_with_the_runtimes_requirements_alone(
    runtime_only: Device, bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    (backend,) = runtime_only.distributions & set(bundles)
    code = f"""
import sys
import numpy as np
from subtune_deploy.runtime import Bundle
bundle = Bundle.open({str(bundles[backend].path)!r})
np.savez(sys.argv[1], **bundle.run(np.load(sys.argv[2])))
print(bundle.top([{str(PHOTOGRAPH)!r}])[0]["birds"][0][0])
"""
    np.save(tmp_path / "images.npy", pictures(3))
    done = runtime_only.run("-c", code, tmp_path / "answers.npz", tmp_path / "images.npy")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() in ("heron", "jay", "wren")
    with np.load(tmp_path / "answers.npz") as answers:
        for task, wanted in expected(pictures(3)).items():
            np.testing.assert_allclose(answers[task], wanted, rtol=1e-4, atol=1e-5)


def test_a_backend_that_is_not_there_is_told(runtime_only: Device, bundles: dict[str, Bundle]) -> None:
    (missing,) = set(bundles) - runtime_only.distributions
    code = f"""
from subtune_deploy.errors import Unavailable
from subtune_deploy.runtime import Bundle
try:
    Bundle.open({str(bundles[missing].path)!r})
except Unavailable as error:
    print(error.message, "|", error.hint)
"""
    told = runtime_only.run("-c", code)
    assert told.stdout.strip() == f"backend {missing} is not installed | pip install {missing}", told.stderr


def test_the_package_itself_requires_no_torch(installed: Device) -> None:
    assert not installed.distributions & {"torch", "torchvision", "onnx", "onnx-ir", "onnxscript", "scipy"}


def test_the_command_line_runs_a_bundle_there(installed: Device, bundles: dict[str, Bundle]) -> None:
    path = bundles["onnxruntime"].path
    for command in (["run", path, PHOTOGRAPH], ["doctor"], ["targets"], ["blocks", "--help"]):
        done = installed.run("-c", CLI, *command)
        assert done.returncode == 0, done.stderr


def test_engines_are_compiled_and_verified_there(installed: Device, tmp_path: Path) -> None:
    write_graphs(tmp_path)
    References(pictures(4), ("random",) * 4, expected(pictures(4))).save(tmp_path)
    seal(tmp_path, manifest())
    for command in (["compile", tmp_path, "--target", "cpu"], ["verify", tmp_path]):
        done = installed.run("-c", CLI, *command)
        assert done.returncode == 0, done.stderr
    assert "every task answers as its stand-alone model" in done.stdout


@pytest.mark.parametrize(
    "command",
    [["blocks", "--model", "resnet18"], ["export", "--layers", "7-8"], ["demo"]],
    ids=lambda c: c[0],
)
def test_a_command_that_needs_torch_says_how_to_get_it(installed: Device, command: list[str]) -> None:
    done = installed.run("-c", CLI, *command)
    assert done.returncode == 3, done.stderr
    error, hint = done.stderr.strip().splitlines()
    assert error == "error: this command needs torch, which is not installed"
    assert hint == "hint: pip install 'subtune-deploy[export]'"
