"""PyTorch itself, running the exported program: the reference that needs no other runtime.

`program.pt2` answers every task and, last, the untouched backbone under the name `base_alone`; the extra file
`outputs.json` of the archive lists the names. One program serves both roles: the operators that a role does
not need are removed when it is loaded.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from ..errors import BundleError, TargetError
from ..spec import BASE, LONE
from . import probe_library
from .base import (
    Availability,
    Batch,
    Engine,
    Progress,
    Shape,
    Target,
    check_batch,
    engine_file,
    not_loaded,
    silent,
    source_file,
)

if TYPE_CHECKING:
    from torch.fx import GraphModule

name = "torch"

PROGRAM = "program.pt2"
OUTPUTS = "outputs.json"


@dataclass(frozen=True)
class TorchEngine:
    """A graph module with one role's operators; see `Engine`."""

    module: GraphModule
    outputs: tuple[str, ...]
    shape: Shape
    threads: int

    def run(self, batch: Batch) -> dict[str, npt.NDArray[Any]]:
        import torch

        batch = check_batch(batch, self.shape)
        tensor = torch.from_numpy(batch if batch.flags.writeable else batch.copy())
        with _threads(self.threads), torch.inference_mode():
            answers = self.module(tensor)
        return {name: answer.numpy() for name, answer in zip(self.outputs, answers, strict=True)}


def probe() -> Availability:
    """Whether torch can be imported."""
    return probe_library(name)


def compile(source: Path, folder: Path, role: str, target: Target, progress: Progress = silent) -> None:
    """Copy `program.pt2`, once for both roles, after loading it for `role`."""
    path = source_file(source, PROGRAM)
    _role(path, role)
    if not (folder / PROGRAM).exists():
        shutil.copyfile(path, folder / PROGRAM)


def load(folder: Path, role: str, target: Target) -> Engine:
    """Open `program.pt2` and keep what `role` needs."""
    import torch

    from .torch_passes import fold_batch_norms, lay_channels_last

    if target.options:
        raise TargetError(
            f"target {target.name}: backend torch takes no options", "remove the table [options]"
        )
    module, outputs = _role(engine_file(folder, PROGRAM), role)
    fold_batch_norms(module)
    lay_channels_last(module)
    value = next(node for node in module.graph.nodes if node.op == "placeholder").meta["val"]
    shape = tuple(length if isinstance(length, int) else None for length in value.shape)
    return TorchEngine(module, outputs, shape, target.threads or torch.get_num_threads())


def _role(path: Path, role: str) -> tuple[GraphModule, tuple[str, ...]]:
    """The program reduced to what `role` answers, and the names of its outputs."""
    module, names = _read(path)
    if names.count(LONE) != 1 or BASE not in names:
        raise BundleError(f"{path} answers {names}, not {BASE} and {LONE}", "export the bundle again")
    kept = [i for i, each in enumerate(names) if (each == LONE) == (role == "base")]
    _keep_outputs(module, kept)
    return module, (BASE,) if role == "base" else tuple(names[i] for i in kept)


def _read(path: Path) -> tuple[GraphModule, list[str]]:
    import torch

    if not zipfile.is_zipfile(path):  # torch would log a traceback before it raises
        raise not_loaded(path, ValueError("not an exported program"))
    files: dict[str, Any] = {OUTPUTS: ""}
    try:
        program = torch.export.load(path, extra_files=files)
        names = [str(each) for each in json.loads(files[OUTPUTS])]
        module = program.module()
    except Exception as error:  # unpickling, the schema and the archive each raise their own
        raise not_loaded(path, error) from error
    return module, names


def _keep_outputs(module: GraphModule, kept: list[int]) -> None:
    """Return the outputs at the positions `kept`, as a tuple, without the operators that they do not need."""
    from torch.fx.graph import CodeGen

    graph = module.graph
    output = graph.output_node()
    output.args = (tuple(output.args[0][i] for i in kept),)  # type: ignore[index]
    for node in list(graph.nodes):
        if node.op == "call_module" and not node.users:  # the exporter's checks of the input; ours come first
            graph.erase_node(node)
    graph.set_codegen(CodeGen())  # the exporter's would unflatten a fixed number of outputs
    graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """torch keeps one number of threads per process: set it for this run only."""
    import torch

    before = torch.get_num_threads()
    if before == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
