"""Lowering: a plan and the tasks' weights become one torch.fx graph.

Every version of a unit becomes a submodule `unit.version` (`block13.birds`), so that the names of the weights
say whose they are.
"""

from __future__ import annotations

import keyword
import operator
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from .backbone import Backbone
from .errors import TaskError
from .grouped import Grouped, container, same_tensors, shapes
from .heads import feature_axis
from .layouts import Layouts, Value
from .packing import one_for_all
from .plan import Plan, Step, Streams
from .spec import BASE, INPUT
from .tasks import Task


def lower(backbone: Backbone, tasks: Sequence[Task], *plans: Plan) -> fx.GraphModule:
    """One module that computes the outputs of all `plans`, in their order, sharing the steps they share.

    Input: (N, C, H, W). Output: a tuple of (N, classes) tensors, one per task of each plan.
    """
    builder = _Builder(backbone, {task.name: task for task in tasks})
    results = [result for plan in plans for result in builder.run(plan)]
    builder.graph.output(tuple(results))
    module = fx.GraphModule(builder.root, builder.graph, class_name="MultiTask")
    module.graph.eliminate_dead_code()
    module.recompile()
    return module.eval()


@dataclass
class _Builder:
    backbone: Backbone
    tasks: Mapping[str, Task]
    graph: fx.Graph = field(default_factory=fx.Graph)
    root: nn.Module = field(default_factory=nn.Module)
    emitted: dict[Hashable, Value] = field(default_factory=dict)
    produced: dict[tuple[str, str], Value] = field(default_factory=dict)  # node, stream; of the plan in hand

    def __post_init__(self) -> None:
        self.layouts = Layouts(self.graph)
        self.sources = {node.name: node for node in self.backbone.graph.nodes}
        self.records = {node.name: node for node in self.backbone.topology.nodes}

    def run(self, plan: Plan) -> list[Any]:
        """Emit the plan's steps; the node that holds each task's output."""
        self.produced = {}
        for step in plan.steps:
            value = self._emit(step)
            self.produced.update({(step.node, stream): value for stream in step.streams})
        (last,) = self.backbone.topology.nodes[-1].inputs
        return [self._pick(last, (stream,)) for _, stream in plan.outputs]

    def _emit(self, step: Step) -> Value:
        """Steps that two plans share, down to their producers, are emitted once."""
        producers = tuple(
            id(self.produced[name, stream].node) for name, streams in self._inputs(step) for stream in streams
        )
        key = (step, producers)
        if key not in self.emitted:
            self.emitted[key] = Value(self._execute(step), step.streams)
        return self.emitted[key]

    def _inputs(self, step: Step) -> list[tuple[str, Streams]]:
        return list(zip(self.records[step.node].inputs, step.inputs, strict=True))

    def _execute(self, step: Step) -> Any:
        source = self.sources[step.node]
        if source.op == "placeholder":
            return self.graph.placeholder(INPUT)
        read = {name: self._read(step, name, streams) for name, streams in self._inputs(step)}
        for name in source.meta["writes"] & read.keys():  # other versions and streams read the same value
            read[name] = fx.map_arg(read[name], lambda value: self.graph.call_method("clone", (value,)))
        if len(step.versions) > 1:
            return self._grouped(step, read)
        node = self.graph.node_copy(source, lambda argument: read[argument.name])
        node.meta.clear()  # its scope is the version it calls here, not the place it had in the backbone
        if source.op in {"call_module", "get_attr"}:
            node.target = self._holder(step, str(source.target))
        return node

    def _read(self, step: Step, name: str, streams: Streams) -> Any:
        if step.siamese:
            base, own = (self._pick(name, (stream,)) for stream in streams)
            head = self._version(str(self.records[step.node].unit), step.versions[0])
            return self.graph.call_function(torch.cat, ([base, own], feature_axis(head)))
        return self._pick(name, streams[:1] if one_for_all(step, streams) else streams)

    def _pick(self, name: str, wanted: Streams) -> Any:
        values = [self.produced[name, stream] for stream in wanted]
        return self.layouts.pick(values, wanted, self.records[name].carry)

    def _holder(self, step: Step, target: str) -> str:
        """Where the root keeps what this step calls or reads; put there on first use."""
        unit = self.records[step.node].unit
        if unit is None:
            return self._place(f"op_{step.node}", operator.attrgetter(target)(self.backbone.model))
        path, version = self.backbone.units[unit], step.versions[0]
        return (
            self._place(f"{unit}.{self._attribute(version)}", self._version(unit, version))
            + target[len(path) :]
        )

    def _attribute(self, version: str) -> str:
        """`version`, with underscores behind it until it is free: a task may be called "train" or "import"."""
        taken = {"grouped", *self.tasks} - ({version} if version != "grouped" else set())
        name = version
        while name in taken or keyword.iskeyword(name) or hasattr(nn.Module(), name):
            name += "_"
        return name

    def _version(self, unit: str, version: str) -> Any:
        if version == BASE:
            return operator.attrgetter(self.backbone.units[unit])(self.backbone.model)
        return self.tasks[version].versions[unit]

    def _place(self, target: str, value: Any) -> str:
        outer, _, name = target.rpartition(".")
        holder = container(self.root, outer)
        if not hasattr(holder, name):
            if isinstance(value, nn.Module):
                holder.add_module(name, same_tensors(value))
            else:
                holder.register_buffer(name, value.detach())
        return target

    def _grouped(self, step: Step, read: Mapping[str, Any]) -> Any:
        unit = str(self.records[step.node].unit)
        modules = [self._version(unit, version) for version in step.versions]
        if any(shapes(module) != shapes(modules[0]) for module in modules):
            raise TaskError(
                f"{unit} cannot be grouped: its versions differ in shape", "use --lowering branch"
            )
        inputs = self._inputs(step)
        shared = tuple(one_for_all(step, streams) for _, streams in inputs)
        axes = tuple(self._axis(name) for name, _ in inputs)
        group = Grouped(modules, axes, shared, self._axis(step.node))
        target = self._place(f"{unit}.grouped", group)
        return self.graph.call_module(target, tuple(read[name] for name, _ in inputs))

    def _axis(self, name: str) -> int:
        carry = self.records[name].carry
        assert isinstance(carry, int)  # the plan groups nothing else
        return carry
