"""A backbone cut where forks begin: what no tuned weight can change is computed once, for all of them.

ends = [suffix(backbone, network, each) for each in versions]      # network: a frozen copy of backbone.model
start = prefix(backbone, network, wanted(backbone, ends))
values = start(pictures)                                           # {"layer3_4": ..., ...}
answers = [end(values) for end in ends]
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..backbone import Backbone
from ..heads import feature_axis
from ..topology import Topology
from ..versions import Version


@dataclass(frozen=True)
class Prefix:
    """The frozen network up to the nodes `wanted`: (N, C, H, W) -> their values, without gradient."""

    module: fx.GraphModule
    wanted: tuple[str, ...]

    def __call__(self, pictures: Tensor) -> dict[str, Any]:
        with torch.no_grad():
            return dict(zip(self.wanted, self.module(pictures), strict=True))


@dataclass(frozen=True)
class Suffix:
    """What follows a fork's cut, with the fork's own weights in it: values of the nodes `needs` -> (N, classes)."""

    module: fx.GraphModule
    needs: tuple[str, ...]

    def __call__(self, values: Mapping[str, Any]) -> Tensor:
        answer: Tensor = self.module(*(values[name] for name in self.needs))
        return answer


def crossing(backbone: Backbone, tuned: Collection[str], siamese: bool = False) -> tuple[str, ...]:
    """Names of the nodes whose values a fork that tunes the units `tuned` takes from the base, in order."""
    after = dependents(backbone.topology, tuned)
    features = _features(backbone) if siamese else frozenset()
    return tuple(
        node.name
        for node in backbone.graph.nodes
        if node.name in features
        or (node.name not in after and any(user.name in after for user in node.users))
    )


def picture(backbone: Backbone) -> str:
    """Name of the node that stands for the input."""
    return next(node.name for node in backbone.topology.nodes if node.op == "placeholder")


def wanted(backbone: Backbone, needs: Iterable[Collection[str]]) -> tuple[str, ...]:
    """Names of the nodes that any of several forks needs, in order."""
    names = {name for each in needs for name in each}
    return tuple(node.name for node in backbone.topology.nodes if node.name in names)


def prefix(backbone: Backbone, network: nn.Module, names: Sequence[str]) -> Prefix:
    """The way to the nodes `names`, and nothing else."""
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in _nodes(backbone):
        copies[node] = _copied(graph, node, copies)
    by_name = {node.name: copy for node, copy in copies.items()}
    graph.output(tuple(by_name[name] for name in names))
    graph.eliminate_dead_code(lambda node: node.op in {"placeholder", "output"})
    return Prefix(_assembled(backbone, network, {}, graph), tuple(names))


def suffix(
    backbone: Backbone, network: nn.Module, versions: Mapping[str, Version], siamese: bool = False
) -> Suffix:
    """What depends on the units in `versions`. Weights of all others are those of `network` itself, not copies."""
    after, needs = dependents(backbone.topology, versions), crossing(backbone, versions, siamese)
    graph = fx.Graph()
    base = {name: graph.placeholder(f"{name}_value") for name in needs}
    own = {node: base[node.name] for node in _nodes(backbone) if node.name in base and node.name not in after}
    for node in _nodes(backbone):
        if node.name in after:
            joined = _joined(backbone, versions, graph, node, base, own) if siamese else {}
            own[node] = _copied(graph, node, {**own, **joined})
    (answer,) = backbone.topology.nodes[-1].inputs
    graph.output(next(copy for node, copy in own.items() if node.name == answer))
    return Suffix(_assembled(backbone, network, versions, graph), needs)


def _nodes(backbone: Backbone) -> list[fx.Node]:
    return [node for node in backbone.graph.nodes if node.op != "output"]


def dependents(topology: Topology, tuned: Collection[str]) -> frozenset[str]:
    """Names of the nodes that use the weights of `tuned`, or anything computed with them."""
    found: set[str] = set()
    for node in topology.nodes:
        if node.unit in tuned or not found.isdisjoint(node.inputs):
            found.add(node.name)
    return frozenset(found)


def _features(backbone: Backbone) -> frozenset[str]:
    """Names of the nodes that the heads read."""
    nodes = backbone.topology.nodes
    return frozenset(name for node in nodes if node.unit in backbone.heads for name in node.inputs)


def _copied(graph: fx.Graph, node: fx.Node, known: Mapping[fx.Node, fx.Node]) -> fx.Node:
    """The node in another graph. What it changes in place is a copy: others read the same value."""

    def argument(source: fx.Node) -> fx.Node:
        value = known[source]
        return graph.call_method("clone", (value,)) if source.name in node.meta["writes"] else value

    return graph.node_copy(node, argument)


def _joined(
    backbone: Backbone,
    versions: Mapping[str, Version],
    graph: fx.Graph,
    node: fx.Node,
    base: Mapping[str, fx.Node],
    own: Mapping[fx.Node, fx.Node],
) -> dict[fx.Node, fx.Node]:
    """For a Siamese head: what the base's head reads, followed by what its own would read alone."""
    unit = next(each.unit for each in backbone.topology.nodes if each.name == node.name)
    if unit not in backbone.heads:
        return {}
    head = versions[unit]
    assert isinstance(head, nn.Module)  # a head is called, so it is a module
    return {
        source: graph.call_function(torch.cat, ([base[source.name], own[source]], feature_axis(head)))
        for source in node.all_input_nodes
    }


def _assembled(
    backbone: Backbone, network: nn.Module, versions: Mapping[str, Version], graph: fx.Graph
) -> fx.GraphModule:
    """The graph with what it calls: own versions where there are, else parts of `network`; nothing is copied."""
    paths = {backbone.units[unit]: version for unit, version in versions.items()}
    targets = {str(node.target) for node in graph.nodes if node.op in {"call_module", "get_attr"}}
    module = fx.GraphModule({target: _holder(network, paths, target) for target in targets}, graph)
    module.graph.owning_module = (
        None  # a ring of references, which would keep all weights until Python looks for rings
    )
    return module


def _holder(network: nn.Module, paths: Mapping[str, Version], target: str) -> Any:
    for path, version in paths.items():
        if target == path:
            return version
        if target.startswith(f"{path}."):
            return attrgetter(target[len(path) + 1 :])(version)
    return attrgetter(target)(network)
