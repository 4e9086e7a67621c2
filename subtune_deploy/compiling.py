"""A bundle -> an engine in it, kept if every task answers rightly. Without PyTorch: some engines must be compiled on
the device that runs them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from .backends import get_backend
from .backends.base import (
    ROLES,
    Batch,
    Engine,
    Inspectable,
    Progress,
    Target,
    arithmetic,
    silent,
    source_file,
)
from .backends.onnxruntime import open_literally
from .bundle import Bundle, Checked, Compile, add_engine, compiler_source, engine_source
from .errors import BundleError, Unavailable
from .manifest import RESTORE
from .parity import References, ask, judge
from .proof import prove
from .runtime import engine_errors, open_engine
from .spec import GRAPH


def compile_bundle(
    bundle: Bundle,
    target: Target,
    *,
    make: Compile | None = None,
    calibration: Batch | None = None,
    progress: Progress = silent,
    graphs: Path | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Bundle:
    """Build the engine of `target` in the bundle, checked before it gets its name; see `add_engine`."""
    checks = partial(check_engine, bundle, target, deep=True)
    return add_engine(
        bundle,
        target,
        checks,
        make=make,
        calibration=calibration,
        progress=progress,
        graphs=graphs,
        facts=facts,
    )


def make_engine(
    graphs: Path, folder: Path, target: Target, calibration: Batch | None, make: Compile | None = None
) -> None:
    """Both roles of `graphs` for `target` in an empty folder, neither checked nor entered in a bundle.

    For what is tried and may be left. `make` takes the place of the backend's `compile`. Raises what compiling does.
    """
    backend, source = get_backend(target.backend), compiler_source(graphs, folder, target, calibration)
    for role in ROLES:
        (make or backend.compile)(source, folder, role, target, silent)


def check_engine(bundle: Bundle, target: Target, folder: Path, *, deep: bool = False) -> Checked:
    """Parity of the engine files in `folder`, run here.

    `deep`: where the backend lets us, also of the network that its compiler was given, and facts of the files;
    then an engine whose device is not here is not run. A device that runs its engines can do without PyTorch,
    and so without that. Raises ParityError, BundleError, Unavailable, CheckFailed for one that fails while it runs.
    """
    backend, batch, references = get_backend(target.backend), bundle.manifest.batch, _references(bundle)
    proven, runs = Checked(), backend.probe().runs
    if deep and isinstance(backend, Inspectable) and (not runs or find_spec("torch")):
        source = engine_source(bundle, folder, target)
        if not (source / GRAPH).is_file():  # shipped: a device gets engines alone
            raise Unavailable(
                f"{bundle.path} is without the graphs of {target.name}", "verify it --deep at home"
            )
        figures, facts = prove(source, folder, target, backend, references, batch)
        proven = Checked(figures, facts, runs)
        if not runs:
            return proven
    with engine_errors(target.name):
        graph, lone = (ask(open_engine(bundle, target, folder, role), references, batch) for role in ROLES)
    ran = judge(graph, lone, references, precision=arithmetic(target))
    return Checked((*proven.figures, *ran), proven.facts)


def _references(bundle: Bundle) -> References:
    """Of all tasks of the manifest, and of no others. Raises BundleError."""
    found, manifest = References.load(bundle.path), bundle.manifest
    classes = {task: int(np.prod(answers.shape[1:])) for task, answers in found.answers.items()}
    if classes != {task.name: task.classes for task in manifest.tasks}:
        told = ", ".join(f"{task} with {count}" for task, count in classes.items())
        raise BundleError(f"{bundle.path} stores answers of other tasks or classes: {told}", RESTORE)
    if found.inputs.shape[1:] != manifest.input.shape:
        raise BundleError(f"{bundle.path} stores answers to inputs {found.inputs.shape[1:]}", RESTORE)
    return found


def check_graph(folder: Path, batch: int | None) -> list[dict[str, Any]]:
    """Parity figures of the ONNX files themselves, as ONNX Runtime runs them. Raises ParityError."""
    references = References.load(folder)
    graph, lone = (ask(_open_graph(folder, role), references, batch) for role in ROLES)
    figures = judge(graph, lone, references, precision="fp32")
    return [{**figure, "engine": GRAPH} for figure in figures]


def _open_graph(folder: Path, role: str) -> Engine:
    """The ONNX file of `role`, operator by operator as ONNX Runtime runs it on the CPU: its optimiser would take
    twice the weights more memory. Raises BundleError, Unavailable."""
    get_backend("onnxruntime")  # is it here?
    return open_literally(source_file(folder, f"{role}.onnx"))
