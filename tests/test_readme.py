"""The README's commands and its Python, run as they stand, in an empty folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_forks import forked

from subtune_deploy.backbone import trace
from subtune_deploy.checkpoint import write_state
from subtune_deploy.cli import main
from subtune_deploy.models import load_model
from subtune_deploy.references import sample_pictures
from subtune_deploy.tasks import candidate_task, standalone

README = (Path(__file__).parent.parent / "README.md").read_text()
COMMANDS = [
    line.split("#")[0].strip() for line in README.splitlines() if line.startswith("    subtune-deploy ")
]
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands name: a base, two fine-tuned checkpoints, a picture."""
    folder = tmp_path_factory.mktemp("readme")
    backbone = trace(load_model("resnet18"))
    torch.save(backbone.model.state_dict(), folder / "base.pt")
    birds = standalone(backbone, candidate_task(backbone, "birds", (6, 7), seed=1, classes=5))
    torch.save({"state_dict": birds.state_dict()}, folder / "birds.pt")
    signs = standalone(backbone, candidate_task(backbone, "signs", (8,), seed=2, classes=3))
    write_state(folder / "signs.safetensors", signs.state_dict(), {})
    shutil.copy(sample_pictures()[0], folder / "picture.jpg")
    camera = "export --model resnet18 --weights base.pt --task signs=signs.safetensors -o engines/camera"
    run_imported(["subtune-deploy", *camera.split()], folder)
    return folder


def run(arguments: list[str], folder: Path) -> str:
    """A program, as a shell would start it."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_imported(arguments: list[str], folder: Path) -> str:
    """A command in a process of its own."""
    out, err = folder / "stdout.txt", folder / "stderr.txt"
    process = forked(_command, arguments[1:], folder, out, err)
    process.join()
    assert process.exitcode == 0, err.read_text()
    return out.read_text()


def _command(arguments: list[str], folder: Path, out: Path, err: Path) -> None:
    os.chdir(folder)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    main(arguments)


def test_the_readme_shows_the_main_commands() -> None:
    shown = {command.split()[1] for command in COMMANDS}
    assert shown >= {
        "blocks",
        "export",
        "compile",
        "bench",
        "throughput",
        "verify",
        "sweep",
        "results",
        "cost",
        "calibrate",
        "profile",
        "pareto",
        "choose",
        "optimize",
        "report",
        "tune",
        "run",
        "ship",
        "unpack",
        "graft",
    }
    assert len(PYTHON) == 1


def test_the_commands_do_what_they_say(folder: Path) -> None:
    printed = {command: run_imported(command.split(), folder) for command in COMMANDS}
    (blocks,) = [text for command, text in printed.items() if " blocks " in command]
    assert "layer4.2" in blocks
    assert run(["subtune-deploy", "blocks", "--model", "resnet50"], folder) == blocks  # as it is installed
    (answers,) = [text for command, text in printed.items() if " run " in command]
    assert all(task in answers for task in ("base", "birds", "signs"))
    (timing,) = [text for command, text in printed.items() if " bench engines" in command]
    assert re.search(r"[+-]\d+\.\d%", timing)
    (profiled,) = [text for command, text in printed.items() if " profile " in command]
    assert "best: " in profiled
    (choice,) = [text for command, text in printed.items() if " pareto " in command]
    assert "chosen: 7, accuracy " in choice  # the one fork that was both trained and timed
    (shown,) = [text for command, text in printed.items() if " report " in command]
    assert "2 measured points on cpu" in shown
    (together,) = [text for command, text in printed.items() if " choose " in command]
    assert "by this model none is better" in together
    (optimized,) = [text for command, text in printed.items() if " optimize " in command]
    assert "bundle: optimized/bundle" in optimized
    (swept,) = [text for command, text in printed.items() if " sweep " in command]
    (table,) = [text for command, text in printed.items() if " results " in command]
    (compared,) = [text for command, text in printed.items() if " --compare " in command]
    for fork in ("7", "2,8"):
        assert fork in swept
        assert fork in table
        assert re.search(rf"{fork}.* no difference shown", compared)


def test_the_python_runs(folder: Path) -> None:
    assert "stand-alone model" in run([sys.executable, "-c", PYTHON[0]], folder)
