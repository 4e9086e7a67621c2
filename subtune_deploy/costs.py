"""What the nodes of a backbone cost, counted by PyTorch on shapes alone: no picture is computed.

counted = count_costs(backbone)
counted.costs["layer3_5"]                             # Cost(macs=218365952, activations=..., weights=..., launches=...)
counted.uncounted                                     # {"aten.relu_": 49, ...}: operators without multiply-adds
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from .backbone import Backbone
from .plan import Merge, candidate_owners, make_plan
from .spec import BASE, Pruning, format_layers
from .tasks import Task, candidate_task
from .tracing import PROBE_BATCHES
from .versions import Version, flow, version_of
from .work import Cost, Costs, Work, plan_works

NO_KERNEL = {"aten._unsafe_view", "aten.as_strided_", "aten.new_empty"}
"""Views and allocations that PyTorch does not call so."""


class CandidateFork(NamedTuple):
    """One task of a graph: the blocks of its fork, how they are thinned, and its classes, None for the base's."""

    layers: tuple[int, ...]
    prune: Pruning | None = None
    classes: int | None = None

    def __str__(self) -> str:
        """`13-14`, `none`, `14-16 pruned 0.5 local l1`."""
        return " ".join(filter(None, (format_layers(self.layers), str(self.prune or ""))))


@dataclass(frozen=True)
class Counted:
    """`costs` by node; `uncounted`: operators for which PyTorch's counter knows no multiply-adds, and how many."""

    costs: Mapping[str, Cost]
    uncounted: Mapping[str, int]


def count_costs(backbone: Backbone, versions: Mapping[str, Version] | None = None) -> Counted:
    """Of every node, with `versions` in the place of the backbone's weights. Raises ModelError where they do not fit.

    The head of a task is counted by its weights.
    """
    versions, watches = versions or {}, dict[str, _Watch]()
    seen = flow(backbone, versions, lambda node: watches.setdefault(node, _Watch()))
    weights = _weights(backbone, versions)
    costs = {
        node: Cost(seen.macs[node], watch.elements // PROBE_BATCHES[0], weights.get(node, 0), watch.launches)
        for node, watch in watches.items()
    }
    heads = {node.name: node.unit for node in backbone.topology.nodes if node.unit in backbone.heads}
    costs |= {node: _head(backbone, versions, unit, costs[node]) for node, unit in heads.items() if unit}
    return Counted(costs, dict(sum((watch.uncounted for watch in watches.values()), Counter[str]())))


def task_costs(backbone: Backbone, tasks: Sequence[Task]) -> Costs:
    """Those of the base and, at the nodes that they own, of `tasks`: what `plan_works` takes."""
    return {BASE: count_costs(backbone).costs, **{task.name: _own_costs(backbone, task) for task in tasks}}


def _own_costs(backbone: Backbone, task: Task) -> dict[str, Cost]:
    """At the nodes that it owns."""
    found = count_costs(backbone, task.versions).costs
    return {node.name: found[node.name] for node in backbone.topology.nodes if node.unit in task.versions}


class Candidates:
    """What graphs with any candidate tasks do; what the nodes of a fork cost is counted once.

    `base`: the backbone's costs, where they are known.
    """

    def __init__(self, backbone: Backbone, base: Counted | None = None) -> None:
        self.backbone, self.base = backbone, (base or count_costs(backbone)).costs
        self._own: dict[CandidateFork, Mapping[str, Cost]] = {}

    def works(
        self,
        forks: Sequence[CandidateFork],
        *,
        merge: Merge = "always",
        grouped: Iterable[str] = (),
        most: int = 0,
    ) -> tuple[Work, ...]:
        """Of a graph with a task for each of `forks`; without any, the backbone. Raises what pruning does."""
        owners = candidate_owners(self.backbone.topology, [fork.layers for fork in forks])
        own = zip(owners, map(self._costs, forks), strict=True)
        plan = make_plan(self.backbone.topology, owners, merge=merge, grouped=grouped, most=most)
        return plan_works(self.backbone.topology, plan, {BASE: self.base, **dict(own)})

    def _costs(self, fork: CandidateFork) -> Mapping[str, Cost]:
        """At the nodes where they are not the base's: whole blocks cost as much, whatever their weights."""
        if fork.prune is None and fork.classes is None:
            return {}
        fork = fork if fork.prune else fork._replace(layers=())
        if fork not in self._own:
            task = candidate_task(
                self.backbone, "task", fork.layers, seed=0, classes=fork.classes, prune=fork.prune
            )
            self._own[fork] = _own_costs(self.backbone, task)
        return self._own[fork]


def _weights(backbone: Backbone, versions: Mapping[str, Version]) -> dict[str, int]:
    """Elements by node; a unit that several nodes use is loaded for each."""
    sizes = {unit: _elements(version_of(backbone, versions, unit)) for unit in backbone.units}
    return {node.name: sizes[node.unit] for node in backbone.topology.nodes if node.unit}


def _elements(version: Version) -> int:
    tensors = version.state_dict().values() if isinstance(version, nn.Module) else (version,)
    return sum(tensor.numel() for tensor in tensors if tensor.is_floating_point())


def _head(backbone: Backbone, versions: Mapping[str, Version], unit: str, cost: Cost) -> Cost:
    """Classifiers multiply by each of their weights as often as the base's does."""
    own, base = (_elements(version_of(backbone, each, unit)) for each in (versions, {}))
    return Cost(cost.macs * own // base, cost.activations, own, cost.launches)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what is launched, and what it reads and writes that is no weight."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements, self.launches, self.uncounted = 0, 0, Counter[str]()
        self.turned: dict[int, Tensor] = {}  # views of weights, held so that their ids are not given again

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        moved = [
            *filter(self._flows, given),
            *(each for each in tree_leaves(result) if isinstance(each, Tensor)),
        ]
        if func.is_view and not any(map(self._flows, given)):
            self.turned |= {id(each): each for each in tree_leaves(result)}
        elif given and _has_kernel(func):
            self.launches += 1
            self.elements += sum(each.numel() for each in moved)
            if func.overloadpacket not in flop_registry:
                self.uncounted[str(func.overloadpacket)] += 1
        return result

    def _flows(self, tensor: Tensor) -> bool:
        """Weights are real tensors, or views of these."""
        return isinstance(tensor, FakeTensor) and id(tensor) not in self.turned


def _has_kernel(func: Any) -> bool:
    """Views and allocations start none."""
    return func.namespace == "aten" and not func.is_view and str(func.overloadpacket) not in NO_KERNEL
