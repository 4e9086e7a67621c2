"""A lowered module becomes ONNX: one file for all tasks, and beside it the backbone alone to compare with.

Both come out of one pass of PyTorch's exporter: the module computes every task and, unpacked, the base once
more; nodes that only one of the two needs are dropped from the other.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import torch
from onnx_ir.passes import common
from onnxscript.optimizer import optimize_ir
from torch import fx

from . import __version__
from .backbone import Backbone
from .errors import ModelError
from .folding import fold_batch_norms
from .multitask import lower
from .onnx_file import save_onnx
from .plan import Plan, make_plan
from .pooling import pool_means
from .spec import BASE, GRAPH, INPUT, LONE, LONE_GRAPH
from .tasks import Task, tuned_blocks
from .tracing import example
from .translations import TRANSLATIONS

PROGRAM = "program.pt2"
SCOPES = "pkg.torch.onnx.name_scopes"
"""Where PyTorch's exporter says which modules a node comes from."""


@dataclass(frozen=True)
class Exported:
    """`graph`: outputs `base` and the tasks. `lone`: the backbone alone, output `base`. `program`: both, in
    torch's own form, outputs in the order of `outputs`."""

    graph: ir.Model
    lone: ir.Model
    program: torch.export.ExportedProgram
    outputs: tuple[str, ...]

    def save(self, folder: Path, *, program: bool = True) -> None:
        """Write graph.onnx, base.onnx and, for the torch backend alone, program.pt2 into an existing folder."""
        for model, name in ((self.graph, GRAPH), (self.lone, LONE_GRAPH)):
            save_onnx(model, folder / name)
        if program:
            save_program(self.program, self.outputs, folder)


def save_program(program: torch.export.ExportedProgram, outputs: Sequence[str], folder: Path) -> None:
    """Write program.pt2 into an existing folder."""
    archive = io.BytesIO()  # torch's own writer aborts the process when a disk is full
    torch.export.save(program, archive, extra_files={"outputs.json": json.dumps(outputs)})
    (folder / PROGRAM).write_bytes(archive.getbuffer())


def export(backbone: Backbone, tasks: Sequence[Task], plan: Plan, *, batch: int | None = 1) -> Exported:
    """Lower `plan` and export it. `batch`: pictures per call, None for any number (a symbolic dimension).

    Raises ModelError where PyTorch cannot export the network.
    """
    module = lower(backbone, tasks, plan, make_plan(backbone.topology, {}))
    outputs = (*plan.tasks, LONE)
    program = _to_onnx(backbone, module, outputs, batch, _hint(plan, batch))
    assert program.exported_program is not None
    lone = _only(program.model.clone(), {-1: BASE})
    graph = _all_tasks(program.model, backbone, tasks, plan)
    return Exported(graph, lone, program.exported_program, outputs)


def export_graph(backbone: Backbone, tasks: Sequence[Task], plan: Plan, *, batch: int | None = 1) -> ir.Model:
    """The graph that `export` makes, without what is beside it: for another plan of tasks that were exported."""
    module = lower(backbone, tasks, plan)
    program = _to_onnx(backbone, module, plan.tasks, batch, _hint(plan, batch))
    return _all_tasks(program.model, backbone, tasks, plan)


def _all_tasks(model: ir.Model, backbone: Backbone, tasks: Sequence[Task], plan: Plan) -> ir.Model:
    """`model` loses its weights to what is made of it."""
    graph = _only(_released(model), dict(enumerate(plan.tasks)))
    graph.metadata_props.update(_metadata(backbone, tasks, plan))
    return graph


def _released(model: ir.Model) -> ir.Model:
    """A copy with the weights: onnxscript's rules remember what they matched last, and with it that whole graph."""
    copy = model.clone()
    for value in model.graph.initializers.values():
        value.const_value = None
    return copy


def _to_onnx(
    backbone: Backbone, module: fx.GraphModule, outputs: Sequence[str], batch: int | None, hint: str
) -> torch.onnx.ONNXProgram:
    picture = example(backbone.input.shape, batch or 2)  # the exporter takes 0 and 1 for constants
    dynamic = None if batch else ({0: torch.export.Dim("batch")},)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # the exporter's own deprecations
            program = torch.onnx.export(
                module,
                (picture,),
                dynamo=True,
                verbose=False,
                input_names=[INPUT],
                output_names=list(outputs),
                dynamic_shapes=dynamic,
                custom_translation_table=TRANSLATIONS,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        reason = next(
            (line for line in str(error.__cause__ or error).splitlines() if line.strip()), repr(error)
        )
        raise ModelError(f"{backbone.name} cannot be exported to ONNX: {reason}", hint) from error
    assert program is not None
    fold_batch_norms(program.model.graph)
    pool_means(program.model.graph)
    return program


def _hint(plan: Plan, batch: int | None) -> str:
    if plan.grouped:
        return "try --lowering branch: not every block can run as a grouped operator"
    return (
        "give a fixed batch with --batch 1"
        if batch is None
        else "PyTorch's exporter has no way to express it"
    )


def _only(model: ir.Model, outputs: dict[int, str]) -> ir.Model:
    """`model` with only these outputs, by position, renamed, and only the nodes and weights that they need."""
    kept = list(model.graph.outputs)
    model.graph.outputs.clear()
    for value in [value for node in model.graph for value in node.outputs]:
        if value in kept or value.name in outputs.values():
            value.name = f"value/{value.name}"  # frees the names: a task may be called "relu"
    for position, name in outputs.items():
        kept[position].name = name
        model.graph.outputs.append(kept[position])
    common.RemoveUnusedNodesPass()(model)
    common.IdentityEliminationPass()(model)
    optimize_ir(model)  # again: it joins operators more of which have one reader now
    model = _released(model)
    _name_batch(model.graph)
    _forget(model)
    _name(model.graph)
    return model


def _name_batch(graph: ir.Graph) -> None:
    """Without this, two outputs may call the same batch dimension by different names."""
    batch = graph.inputs[0].shape[0] if graph.inputs[0].shape else None
    for value in graph.outputs:
        if value.shape is not None and isinstance(value.shape[0], ir.SymbolicDim):
            value.shape = ir.Shape([batch, *value.shape[1:]])


def _name(graph: ir.Graph) -> None:
    """By what a graph is alone: a backbone that computes the same is the same file whatever was exported beside it.

    Nodes are named after the unit and version they belong to, values after nodes; weights come in the order of their
    use.
    """
    taken: dict[str, int] = {}
    for node in graph:
        scope = _module(node)
        name = f"{scope}/{node.op_type}" if scope else node.op_type
        taken[name] = taken.get(name, 0) + 1
        node.name = name if taken[name] == 1 else f"{name}_{taken[name]}"
        node.metadata_props.clear()
        for index, value in enumerate(node.outputs):
            if not value.is_graph_output():
                value.name = f"value/{node.name}" + (f".{index}" if index else "")
    _name_weights(graph)


def _module(node: ir.Node) -> str:
    """Of its weight, else of its call: a convolution that took in a batch-norm is one still. "" for neither."""
    weights = [str(value.name) for value in node.inputs if value is not None and value.is_initializer()]
    if owner := next((name.rpartition(".")[0] for name in weights if "." in name), ""):
        return owner
    scopes = json.loads(node.metadata_props.get(SCOPES, "[]").replace("'", '"'))
    return scopes[-2] if len(scopes) > 1 else ""


def _name_weights(graph: ir.Graph) -> None:
    """A bias that comes from a batch-norm is called one; what has no name in the network is numbered."""
    named, weights = set(graph.initializers), dict.fromkeys(graph.initializers.values())
    used = dict.fromkeys(value for node in graph.all_nodes() for value in node.inputs if value in weights)
    graph.initializers.clear()
    for number, value in enumerate(used | weights):
        better = str(value.name).replace(".weight_bias", ".bias")
        if "." not in better and not value.is_graph_output():
            value.name = f"constant/{number}"
        elif better not in named:
            value.name = better
        graph.register_initializer(value)


def _forget(model: ir.Model) -> None:
    """The exporter's diaries, which tell of what was exported beside it."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    values = [*model.graph.initializers.values(), *(value for node in model.graph for value in node.outputs)]
    for each in (*values, *(value.const_value for value in values), *model.graph):
        if each is not None:
            each.doc_string = None
    for value in values:
        value.metadata_props.clear()
        if value.const_value is not None:
            value.const_value.metadata_props.clear()


def _metadata(backbone: Backbone, tasks: Sequence[Task], plan: Plan) -> dict[str, str]:
    layers = {task.name: list(tuned_blocks(backbone, task)) for task in tasks}
    return {
        "subtune.version": __version__,
        "subtune.model": backbone.name,
        "subtune.weights": backbone.weights,
        "subtune.layers": json.dumps(layers),
        "subtune.plan": json.dumps(plan.to_json(), separators=(",", ":")),
    }
