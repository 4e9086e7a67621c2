"""Engines of one cell: a base and K tasks with one fork, in every way that a target's peers know.

cell = open_cell(backbone, "13-14", 1, folder)
for name, make in makers(cell, "cpu").items():
    engine = make()                                  where a peer does not apply, `make` is the reason why
    check(name, engine, cell.references)
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from cells import tasks_on
from peer_networks import (
    Fork,
    GroupedBranches,
    Stacked,
    has_convolutions,
    own_graph,
    shared_prefix,
    side_by_side,
)
from torch import nn

from subtune_deploy.backbone import Backbone
from subtune_deploy.backends import get_backend
from subtune_deploy.backends.base import Batch, Engine
from subtune_deploy.errors import ParityError
from subtune_deploy.export import export
from subtune_deploy.measure import Several
from subtune_deploy.onnx_file import save_onnx
from subtune_deploy.parity import References, relative_errors, run_all
from subtune_deploy.plan import make_plan
from subtune_deploy.references import compute_references, sample_pictures
from subtune_deploy.spec import BASE, GRAPH, LONE_GRAPH, parse_layers
from subtune_deploy.targets import load_target
from subtune_deploy.tasks import Task, base_task, owners, standalone

TOLERANCE = 1e-3
OURS, UNMERGED = "ours", "ours, not merged"
ENGINES, ONE_GRAPH = "K+1 engines", "K+1 networks, one graph"
EAGER, COMPILED, GROUPED, ENSEMBLE = (
    "shared prefix eager",
    "torch.compile",
    "TorchScript grouped",
    "torch.func ensemble",
)
COLUMNS = {
    "cpu": (OURS, UNMERGED, ENGINES, ONE_GRAPH),
    "openvino-cpu": (OURS, UNMERGED, ENGINES, ONE_GRAPH),
    "torch-cpu": (OURS, EAGER, COMPILED, GROUPED, ENSEMBLE),
}
"""What is compared with the base, by target."""
TARGETS = tuple(COLUMNS)

Make = Callable[[], Engine]


@dataclass(frozen=True)
class Cell:
    """A folder in `folder` for each of `OURS`, `UNMERGED`, `ONE_GRAPH`, "base" and every task's own network.

    `seconds`: what exporting and saving each took; the networks of `ENGINES` and `ONE_GRAPH` are cut from the
    unmerged graph, in which every task has a stream of its own.
    """

    backbone: Backbone
    layers: tuple[int, ...]
    tasks: tuple[Task, ...]
    folder: Path
    references: References
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        return (BASE, *(task.name for task in self.tasks))

    def models(self) -> list[nn.Module]:
        """The stand-alone network of the base and of each task."""
        return [standalone(self.backbone, task) for task in (base_task(self.backbone), *self.tasks)]


def open_cell(backbone: Backbone, fork: str, count: int, folder: Path) -> Cell:
    """`count` candidate tasks on one fork, their graphs in `folder`, and what the stand-alone networks answer."""
    tasks = tuple(tasks_on(backbone, fork, count))
    references = compute_references(backbone, tasks, sample_pictures()[:1], random_inputs=1)
    cell = Cell(backbone, parse_layers(fork, len(backbone.blocks)), tasks, folder, references)
    with _timed(cell, OURS):
        export(backbone, tasks, make_plan(backbone.topology, owners(tasks))).save(_folder(cell, OURS))
    with _timed(cell, UNMERGED):
        exported = export(backbone, tasks, make_plan(backbone.topology, owners(tasks), merge="never"))
        save_onnx(exported.graph, _folder(cell, UNMERGED) / GRAPH)
    networks = {BASE: exported.lone} | {task.name: own_graph(exported.graph, task.name) for task in tasks}
    with _timed(cell, ENGINES):
        for name, network in networks.items():
            save_onnx(network, _folder(cell, name) / LONE_GRAPH)
    with _timed(cell, ONE_GRAPH):
        save_onnx(side_by_side(networks), _folder(cell, ONE_GRAPH) / GRAPH)
    return cell


@contextmanager
def _timed(cell: Cell, name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    cell.seconds[name] = time.perf_counter() - start


def _folder(cell: Cell, name: str) -> Path:
    (cell.folder / name).mkdir()
    return cell.folder / name


def makers(cell: Cell, target: str, *, compiled: str = "") -> dict[str, Make | str]:
    """How to make each engine for a target, `base` first, or why there is none.

    `compiled`: why torch.compile is left out, if it is.
    """
    found: dict[str, Make | str] = {
        BASE: lambda: _opened(cell, OURS, "base", target),
        OURS: lambda: _opened(cell, OURS, "graph", target),
    }
    if target == "torch-cpu":
        return found | _torch_makers(cell, compiled)
    return found | {
        UNMERGED: lambda: _opened(cell, UNMERGED, "graph", target),
        ENGINES: lambda: _several(cell, target),
        ONE_GRAPH: lambda: _opened(cell, ONE_GRAPH, "graph", target),
    }


def _opened(cell: Cell, name: str, role: str, target_name: str) -> Engine:
    """An engine as `subtune-deploy compile` makes it; only OpenVINO's own form differs from the exported one."""
    target, source = load_target(target_name), cell.folder / name
    backend = get_backend(target.backend)
    if target.backend == "openvino":
        backend.compile(source, source, role, target)
    return backend.load(source, role, target)


def _several(cell: Cell, target: str) -> Several:
    return Several({name: _opened(cell, name, "base", target) for name in cell.names})


@dataclass(frozen=True)
class TorchPeer:
    """A module with one answer, or a tuple of them."""

    module: Callable[..., Any]
    outputs: tuple[str, ...]

    @property
    def threads(self) -> int:
        return torch.get_num_threads()

    def run(self, batch: Batch) -> dict[str, npt.NDArray[Any]]:
        with torch.inference_mode():
            answers = self.module(torch.from_numpy(batch))
        each = (answers,) if isinstance(answers, torch.Tensor) else answers
        return {name: answer.numpy() for name, answer in zip(self.outputs, each, strict=True)}


def _torch_makers(cell: Cell, compiled: str) -> dict[str, Make | str]:
    def network(fork: Fork | None = None) -> nn.Module:
        return shared_prefix(cell.models(), cell.layers, fork)

    convolutional = has_convolutions(cell.backbone.model)
    return {
        BASE: lambda: TorchPeer(cell.backbone.model, (BASE,)),
        EAGER: lambda: TorchPeer(network(), cell.names),
        COMPILED: compiled or (lambda: TorchPeer(compile_network(network()), cell.names)),
        GROUPED: (lambda: TorchPeer(_scripted(network(GroupedBranches), cell), cell.names))
        if convolutional
        else "its blocks hold no convolutions to be grouped",
        ENSEMBLE: lambda: TorchPeer(network(Stacked), cell.names),
    }


def compile_network(module: nn.Module, backend: str = "inductor") -> Callable[..., Any]:
    """With freezing, which folds and packs weights. `fullgraph`: a fall back to eager is an error, not a slow row."""
    torch.compiler.reset()  # past eight networks of a class it would give up on it
    options = {"freezing": True} if backend == "inductor" else None
    return torch.compile(module, fullgraph=True, backend=backend, options=options)


def _scripted(module: nn.Module, cell: Cell) -> Callable[..., Any]:
    picture = torch.from_numpy(cell.references.inputs[:1])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated; it is what the authors used
        frozen = torch.jit.freeze(torch.jit.trace(module, picture))  # type: ignore[no-untyped-call]
        return torch.jit.optimize_for_inference(frozen)


def check(name: str, engine: Engine, references: References) -> float:
    """The worst relative error of the engine's answers; ParityError, naming the tasks, past the tolerance.

    The base's engine is asked for the base alone, every other one for all tasks.
    """
    answers = run_all(engine, references.inputs, 1)
    wanted = (BASE,) if name == BASE else tuple(references.answers)
    if set(answers) != set(wanted):
        raise ParityError(f"{name} answers {', '.join(answers)}", f"it has to answer {', '.join(wanted)}")
    pairs = {task: (answers[task], references.answers[task]) for task in wanted}
    errors = {task: float(relative_errors(*pair).max()) for task, pair in pairs.items()}
    if wrong := {task: error for task, error in errors.items() if not error <= TOLERANCE}:
        told = ", ".join(f"{task} by {error:.2g}" for task, error in wrong.items())
        raise ParityError(f"{name} differs from the stand-alone models: {told}", f"{TOLERANCE:g} is allowed")
    return float(np.max(list(errors.values())))
