"""An engine as a model of NVIDIA's Triton Inference Server.

    <repository>/<name>/config.pbtxt          what the server is told
    <repository>/<name>/<task>_labels.txt     class names, one a line, where the task has them
    <repository>/<name>/1/<model file>        model.plan, model.onnx, or model.xml and model.bin

Names, types and shapes come from the model file itself; a TensorRT plan can be read only where its GPU is, so for
it from the graph that it was built from. Written after the server's documentation and sources; not yet run in a
server.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from ..backends.base import Target, eight_bits_on_cpu, provider
from ..bundle import SOURCE, Bundle, engine_target
from ..errors import BundleError, did_you_mean
from ..staging import staged, without
from .accelerators import accelerator
from .check import check_model, check_repository, has_schema
from .config import CONFIG, PLATFORMS, VERSION, Config, Platform, Signature, to_text, without_batch
from .models import read_signature

__all__ = ["check_repository", "write_repository"]

PROVIDERS = ("cpu", "cuda", "tensorrt")
"""Of ONNX Runtime, those that Triton's backend can be told to use."""
EIGHT_BITS = (
    "warning: weights have 8 bits: a server whose x86 CPU has no VNNI would answer wrongly, and Triton does not ask; "
    "for such a one compile with weight_bits = 7"
)
MAX_BATCH = 16
"""Largest batch of a dynamic graph whose recipe states no profile, as for TensorRT's own default."""


def write_repository(
    bundle: Bundle, target_name: str, out: Path, say: Callable[[str], object] = lambda line: None
) -> Path:
    """Write the engine of a target as model `<bundle's name>_<target>` into the repository `out`; its folder.

    A model of that name is replaced, others in `out` stay. Where Triton's schema is installed, the model is
    checked as by `check_repository` before it is there. `say` hears what is not checked, here or by Triton. Raises
    BundleError (no such engine, altered, none that Triton runs), Unavailable (the library that reads the engine).
    """
    target = _checked_target(bundle, target_name)
    platform = _platform(target)
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", f"{bundle.path.resolve().name}_{target_name}")
    graph = _source_graph(bundle, target_name)
    with staged(out / name, without(CONFIG)) as folder:
        _copy_model(bundle.path / target_name, platform, folder / VERSION)
        tensors = read_signature(platform, folder / VERSION, graph)
        config = _config(bundle, target, name, platform, tensors)
        _write_labels(bundle, config, folder)
        (folder / CONFIG).write_text(to_text(config), encoding="utf-8")
        if has_schema():
            check_model(folder, name, graph)
        else:
            say("not checked against Triton's schema: pip install 'subtune-deploy[triton]'")
    if eight_bits_on_cpu(target):
        say(EIGHT_BITS)
    return out / name


def _checked_target(bundle: Bundle, name: str) -> Target:
    entry = bundle.manifest.engines.get(name)
    if entry is None:
        hint = did_you_mean(name, bundle.manifest.engines)
        raise BundleError(f"{bundle.path} has no engine for target {name!r}", hint)
    bundle.verify_hashes(entry.files)
    return engine_target(bundle, name)


def _platform(target: Target) -> Platform:
    if target.backend not in PLATFORMS or provider(target) not in PROVIDERS:
        what = target.backend if target.backend not in PLATFORMS else f"{target.backend}'s {provider(target)}"
        raise BundleError(
            f"Triton runs no engines of {what} (target {target.name})",
            f"ship an engine of {', '.join(PLATFORMS)}",
        )
    return PLATFORMS[target.backend]


def _source_graph(bundle: Bundle, target_name: str) -> Path:
    """The ONNX file that the compiler read: converted to the target's precision, or the bundle's own."""
    converted = bundle.path / target_name / SOURCE / "graph.onnx"
    return converted if converted.is_file() else bundle.path / "graph.onnx"


def _copy_model(engine: Path, platform: Platform, folder: Path) -> None:
    folder.mkdir()
    for ours, theirs in platform.files.items():
        if (engine / ours).is_file():
            shutil.copyfile(engine / ours, folder / theirs)
        elif theirs in platform.required:
            raise BundleError(f"engine file {engine / ours} is missing", "compile it again")


def _config(bundle: Bundle, target: Target, name: str, platform: Platform, found: Signature) -> Config:
    batch = _max_batch(target, found)
    labels = {task.name: f"{task.name}_labels.txt" for task in bundle.manifest.tasks if task.labels}
    tensors = without_batch(found, batch)
    captured = target.backend == "tensorrt" and bool(target.options.get("cuda_graph"))
    return Config(
        name, platform, batch, tensors, _on_gpu(target), labels, _parameters(target), accelerator(target), captured
    )  # fmt: skip


def _max_batch(target: Target, found: Signature) -> int:
    """0 for a fixed batch: the model takes just that one.

    For OpenVINO 0 as well: told a size, Triton's backend makes it the only one, while dims of -1 keep it free.
    """
    if found.inputs[0].dims[0] != -1 or target.backend == "openvino":
        return 0
    profile = str(target.options.get("profile", f"1 {MAX_BATCH}"))
    sizes = profile.split()
    if not sizes or not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise BundleError(f"target {target.name}: profile is {profile!r}", 'give sizes, as in "1 4 16"')
    if int(sizes[0]) > 1:  # its configuration has a largest batch, and preferred ones, but no smallest
        raise BundleError(
            f"target {target.name} takes batches from {sizes[0]} (profile {profile!r}), Triton would send smaller ones",
            f"compile it with a profile from 1, or export the bundle with a fixed batch: --batch {sizes[-1]}",
        )
    return int(sizes[-1])


def _on_gpu(target: Target) -> bool:
    return target.backend == "tensorrt" or provider(target) != "cpu"


def _parameters(target: Target) -> dict[str, str]:
    """What of a recipe a backend of Triton can be told. (OpenVINO's has no word for fp32: see `to_text`.)"""
    if target.backend == "onnxruntime":
        return {"intra_op_thread_count": str(target.threads)} if target.threads else {}
    if target.backend != "openvino":
        return {}
    threads = {"INFERENCE_NUM_THREADS": str(target.threads)} if target.threads else {}
    bf16 = {"HINT_BF16": "YES"} if target.precision == "bf16" else {}
    return {"PERFORMANCE_HINT": "LATENCY", **threads, **bf16}


def _write_labels(bundle: Bundle, config: Config, folder: Path) -> None:
    for task in bundle.manifest.tasks:
        if task.labels:
            lines = [" ".join(label.split()) for label in task.labels]
            (folder / config.labels[task.name]).write_text("\n".join(lines) + "\n", encoding="utf-8")
