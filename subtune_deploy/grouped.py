"""Several versions of a block as one operator: stacked weights under `torch.vmap`."""

from __future__ import annotations

import copy
import operator
from collections import Counter
from collections.abc import Sequence

import torch
from torch import nn

from .backbone import Backbone
from .tasks import Task
from .tracing import plain_attention


def groupable(backbone: Backbone, tasks: Sequence[Task]) -> tuple[str, ...]:
    """Forked units outside the heads that can run as one grouped operator: versions of the same shapes,
    called with nothing but values."""
    forked = dict.fromkeys(unit for task in tasks for unit in task.versions if unit not in backbone.heads)
    calls = {node.name: node for node in backbone.graph.nodes}
    once = Counter(record.unit for record in backbone.topology.nodes)
    plain = {
        record.unit
        for record in backbone.topology.nodes
        if not (call := calls[record.name]).kwargs
        and not call.meta["writes"]
        and once[record.unit] == 1
        and call.args == tuple(dict.fromkeys(call.all_input_nodes))
    }
    return tuple(unit for unit in forked if unit in plain and _same_shapes(backbone, tasks, unit))


def _same_shapes(backbone: Backbone, tasks: Sequence[Task], unit: str) -> bool:
    versions = [task.versions[unit] for task in tasks if unit in task.versions]
    modules = [version for version in versions if isinstance(version, nn.Module)]
    base = shapes(backbone.model.get_submodule(backbone.units[unit])) if modules else None
    return len(modules) == len(versions) and all(shapes(module) == base for module in modules)


def shapes(module: nn.Module) -> dict[str, torch.Size]:
    """Of every weight and buffer, by name."""
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


class Grouped(nn.Module):
    """k versions of a module as one: stacked weights under `torch.vmap` (convolutions become grouped ones,
    matrix products batched ones).

    Input i: all k versions' values packed on axis `axes[i]`, or one value for all where `shared[i]`.
    Output: packed on `out_axis`.
    """

    def __init__(
        self, versions: Sequence[nn.Module], axes: tuple[int, ...], shared: tuple[bool, ...], out_axis: int
    ) -> None:
        super().__init__()
        self.axes, self.shared, self.out_axis, self.count = axes, shared, out_axis, len(versions)
        template = same_tensors(versions[0])
        self._template = [template]  # in a list: its own weights are not part of this module
        states = [version.state_dict() for version in versions]
        self.names = tuple(states[0])
        for name in self.names:
            outer, _, leaf = name.rpartition(".")
            container(self, outer).register_buffer(leaf, torch.stack([state[name] for state in states]))

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        weights = {name: operator.attrgetter(name)(self) for name in self.names}
        apart = [
            value if shared else value.unflatten(axis, (self.count, -1))  # type: ignore[no-untyped-call]
            for value, axis, shared in zip(inputs, self.axes, self.shared, strict=True)
        ]
        in_axes = [None if shared else axis for axis, shared in zip(self.axes, self.shared, strict=True)]

        def one(own: dict[str, torch.Tensor], *values: torch.Tensor) -> torch.Tensor:
            return torch.func.functional_call(self._template[0], own, values, tie_weights=False)  # type: ignore[no-any-return]

        with plain_attention():
            results = torch.vmap(one, in_dims=(0, *in_axes), out_dims=self.out_axis)(weights, *apart)
        return results.flatten(self.out_axis, self.out_axis + 1)


def container(root: nn.Module, path: str) -> nn.Module:
    """The submodule at `path`, empty modules being made on the way."""
    for part in path.split(".") if path else ():
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root._modules[part]  # type: ignore[assignment]
    return root


def same_tensors(module: nn.Module) -> nn.Module:
    """A copy of the module's structure that shares its tensors."""
    tensors = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, memo={id(tensor): tensor for tensor in tensors})
