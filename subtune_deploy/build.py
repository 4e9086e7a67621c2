"""From a backbone and its tasks to a bundle: plan, lower, export, check, seal."""

from __future__ import annotations

import gc
import importlib.metadata
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch.export import ExportedProgram

from .backbone import Backbone
from .bundle import Bundle, not_a_bundles, seal
from .checkpoint import fingerprint
from .compiling import check_graph
from .errors import InputError, TaskError
from .export import export, save_program
from .grouped import groupable
from .manifest import LARGEST_BATCH, Manifest, TaskEntry
from .parity import References
from .plan import Merge, Plan, make_plan
from .references import compute_references
from .sources import write_sources
from .staging import staged
from .tasks import Task, base_task, check_names, owners, tuned_blocks
from .versions import narrow_streams

Say = Callable[[str], None]
LIBRARIES = ("torch", "torchvision", "timm", "torch-pruning", "onnx", "onnx-ir", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class BuildOptions:
    """How the graph is made. `batch`: pictures per call, None for any number.

    `merge`: whether shared blocks after a fork run all tasks' streams packed in one batch. `lowering`: a
    forked block as one operator per task, or as one grouped operator for all, which needs a fixed batch. auto:
    as has paid off so far, always and branch. Raises InputError.
    """

    batch: int | None = 1
    merge: Literal["auto", "always", "never"] = "auto"
    lowering: Literal["auto", "branch", "grouped"] = "auto"

    def __post_init__(self) -> None:
        if self.batch is not None and not 1 <= self.batch <= LARGEST_BATCH:
            raise InputError(f"a batch of {self.batch} is none", f"give 1 to {LARGEST_BATCH:,}, or dynamic")
        if self.lowering == "grouped" and self.batch is None:  # torch.vmap makes a constant of the batch size
            raise InputError(
                "grouped lowering does not take a dynamic batch", "give --batch 1, or --lowering branch"
            )


def build(
    backbone: Backbone,
    tasks: Sequence[Task],
    out: Path | str,
    options: BuildOptions | None = None,
    *,
    pictures: Sequence[Path] = (),
    sources: bool = True,
    like: References | None = None,
    apart: Sequence[str] = (),
    say: Say = lambda line: None,
) -> Bundle:
    """One verified multi-task graph in the bundle `out`, which replaces an older bundle there.

    `pictures`: real inputs for the parity check, by default two photographs that come with the package.
    `like`: take the inputs of an older bundle's references instead. `sources`: also write the weights, for task
    packs and grafts, and the program that the torch backend reads. `apart`: tasks whose streams are packed
    with no others.
    Raises TaskError, ModelError, PictureError, BundleError, and ParityError; then nothing is left behind.
    """
    out, options = Path(out), options or BuildOptions()
    check_names(task.name for task in tasks)
    if not tasks:
        raise TaskError("no task was given", "give --layers 13-14 for a candidate, or --task NAME=CHECKPOINT")
    plan = plan_for(backbone, tasks, options, apart)
    for task, stream in plan.outputs:
        if task != stream:
            raise TaskError(f"task {task} equals {stream} in every weight", f"give {stream} alone")
    with staged(out, not_a_bundles) as folder:
        say("the stand-alone models answer")
        compute_references(backbone, tasks, pictures, like=like).save(folder)
        say("exporting")
        program = _write_graphs(folder, backbone, tasks, plan, options)
        if sources:
            save_program(*program, folder)
            write_sources(folder, backbone, tasks)
        del program
        say("checking the graph against the stand-alone models")
        figures = check_graph(folder, options.batch)
        manifest = seal(folder, _manifest(backbone, tasks, plan, options, figures))
    return Bundle(out, manifest)


def _write_graphs(
    folder: Path, backbone: Backbone, tasks: Sequence[Task], plan: Plan, options: BuildOptions
) -> tuple[ExportedProgram, tuple[str, ...]]:
    """The program that they were made of, and its outputs. The graphs themselves hold weights of their own: they go."""
    exported = export(backbone, tasks, plan, batch=options.batch)
    exported.save(folder, program=False)
    program = exported.program, exported.outputs
    del exported
    gc.collect()  # the nodes and values of a graph refer to each other
    return program


def plan_for(
    backbone: Backbone, tasks: Sequence[Task], options: BuildOptions, apart: Sequence[str] = ()
) -> Plan:
    """The plan that `options` ask for; streams of the tasks `apart` are packed with no others."""
    merge: Merge = "never" if options.merge == "never" else "always"
    grouped = grouped_units(backbone, tasks, apart) if options.lowering == "grouped" else ()
    return plan_as(backbone, tasks, merge, grouped, apart)


def plan_as(
    backbone: Backbone,
    tasks: Sequence[Task],
    merge: Merge,
    grouped: Sequence[str],
    apart: Sequence[str],
    most: int = 0,
) -> Plan:
    """As `make_plan`; streams of tasks that are narrower than the base's are `apart` too."""
    return make_plan(
        backbone.topology,
        owners(tasks),
        siamese=[task.name for task in tasks if task.siamese],
        merge=merge,
        grouped=grouped,
        apart=_apart(backbone, tasks, apart),
        most=most,
    )


def grouped_units(backbone: Backbone, tasks: Sequence[Task], apart: Sequence[str]) -> tuple[str, ...]:
    """Forked units that can run as one operator for all tasks that are not `apart`."""
    lone = _apart(backbone, tasks, apart)
    return groupable(backbone, [task for task in tasks if task.name not in lone])


def _apart(backbone: Backbone, tasks: Sequence[Task], apart: Sequence[str]) -> tuple[str, ...]:
    narrow = [task.name for task in tasks if narrow_streams(backbone, task.versions)]
    return tuple(dict.fromkeys((*apart, *narrow)))


def _manifest(
    backbone: Backbone,
    tasks: Sequence[Task],
    plan: Plan,
    options: BuildOptions,
    figures: Sequence[dict[str, Any]],
) -> Manifest:
    return Manifest(
        model=backbone.name,
        weights=backbone.weights,
        input=backbone.input,
        batch=options.batch,
        blocks=backbone.blocks,
        tasks=tuple(_entry(backbone, task) for task in (base_task(backbone), *tasks)),
        plan=plan.to_json(),
        versions={name: version for name in LIBRARIES if (version := _version(name))},
        base=fingerprint(backbone.model.state_dict()),
        merge=options.merge,
        lowering=options.lowering,
        parity=tuple(figures),
    )


def _entry(backbone: Backbone, task: Task) -> TaskEntry:
    labels = tuple(task.labels) or None
    layers = tuned_blocks(backbone, task)
    return TaskEntry(task.name, layers, task.classes, labels, task.siamese, task.notes, task.prune)


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def parse_batch(text: str) -> int | None:
    """`"dynamic"` -> None, `"4"` -> 4. Raises InputError."""
    if text == "dynamic":
        return None
    if not re.fullmatch(r"[1-9]\d{0,8}", text):
        raise InputError(f"batch {text!r} is not a size", "give --batch 1, another whole number, or dynamic")
    return int(text)
