"""The backbone: a traced network, its blocks and its other weighted units, and how values carry the batch.

backbone = trace(load_model("resnet50"))
backbone.blocks[12]          # Block(index=13, name="layer3.5", ...)
backbone.units["block13"]    # "layer3.5"
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import fx, nn

from .blocks import find_blocks
from .checkpoint import fingerprint
from .errors import ModelError
from .models import Model
from .probing import Seen, Shape, carry_of, elements_of, input_errors, probe
from .records import to_plain
from .spec import Block, InputSpec
from .topology import Node, Topology
from .tracing import PROBE_BATCHES, example, plain_attention, replace_in_place, trace_graph


@dataclass(frozen=True)
class Backbone:
    """A traced model.

    `units` maps every holder of weights (`block13`, `conv1`, `pos_embed`) to its path in `model`, in
    execution order; every weight that is used lies in exactly one. `heads` are the units that classify.
    `unused` names the state that is never executed, such as auxiliary heads.
    """

    name: str
    model: nn.Module
    input: InputSpec
    labels: tuple[str, ...]
    weights: str
    graph: fx.Graph
    topology: Topology
    blocks: tuple[Block, ...]
    units: Mapping[str, str]
    heads: tuple[str, ...]
    unused: frozenset[str]

    @property
    def macs(self) -> int:
        """Multiply-adds for one picture, the whole network."""
        return sum(node.macs for node in self.topology.nodes)

    @property
    def parameters(self) -> int:
        """Parameters that are executed, the whole network."""
        used = (p for name, p in self.model.named_parameters() if name not in self.unused)
        return sum(parameter.numel() for parameter in used)


def trace(model: Model, pattern: str | None = None) -> Backbone:
    """Trace `model` and number its blocks. `pattern`: a regular expression on module paths of blocks.

    Raises ModelError for a model that has no blocks, cannot be traced, or refuses its input size.
    """
    network = model.module
    _check_float32(model)
    candidates = find_blocks(network, pattern)
    with input_errors(model), plain_attention(), torch.no_grad():
        answer = network(example(model.input.shape, 1))  # also fills what models cache at their first run
    if not isinstance(answer, torch.Tensor):
        raise ModelError(
            f"{model.name} answers a {type(answer).__name__}, not one tensor of class scores",
            "wrap it in a module whose forward returns the class scores alone",
        )
    graph, leaves = trace_graph(network, candidates, model.input.shape)
    small, large = (probe(graph, model, batch) for batch in PROBE_BATCHES)
    for node in graph.nodes:
        node.meta["writes"] = {changed.name for changed in small[node].mutated}
    replace_in_place(graph, [(node, changed) for node in graph.nodes for changed in small[node].mutated])
    heads = _heads(graph, network, candidates)
    blocks = _executed_blocks(graph, candidates, leaves - set(heads))
    units = _units(graph, network, blocks)
    return Backbone(
        name=model.name,
        model=network,
        input=model.input,
        labels=model.labels,
        weights=model.weights,
        graph=graph,
        topology=_topology(graph, units, heads, small, large),
        blocks=tuple(_block_rows(graph, network, blocks, small)),
        units=units,
        heads=tuple(unit for unit, path in units.items() if path in heads),
        unused=frozenset(_unused(network, units)),
    )


def identity(backbone: Backbone) -> dict[str, Any]:
    """What must be equal before two runs are of one backbone, as JSON values."""
    return {
        "model": backbone.name,
        "weights": fingerprint(backbone.model.state_dict()),
        "blocks": [block.name for block in backbone.blocks],
        "network": architecture(backbone),
        "input": to_plain(backbone.input),
    }


def architecture(backbone: Backbone) -> str:
    """A digest of its graph and its block table, shapes included: of all that a latency hangs on."""
    return hashlib.sha256(repr((backbone.topology, backbone.blocks)).encode()).hexdigest()


def _check_float32(model: Model) -> None:
    for name, tensor in model.module.state_dict().items():
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ModelError(
                f"{model.name} has weights in {str(tensor.dtype).removeprefix('torch.')}: {name}",
                "give the network in float32 (.float()); targets choose the precision of an engine",
            )


def _topology(
    graph: fx.Graph,
    units: Mapping[str, str],
    heads: tuple[str, ...],
    small: Mapping[fx.Node, Seen],
    large: Mapping[fx.Node, Seen],
) -> Topology:
    unit_of = {path: unit for unit, path in units.items()}
    nodes = (
        Node(
            node.name,
            node.op,
            tuple(dict.fromkeys(source.name for source in node.all_input_nodes)),
            _unit_of_node(node, unit_of),
            carry_of(small[node].value, large[node].value),
            small[node].macs,
            elements_of(small[node].value) // PROBE_BATCHES[0],
        )
        for node in graph.nodes
    )
    return Topology(tuple(nodes), tuple(unit_of[path] for path in heads))


def _weighted_path(node: fx.Node, network: nn.Module) -> str | None:
    """Path of the module or tensor whose state this node uses, if it has any."""
    path = str(node.target)
    if node.op == "get_attr":
        return (
            path if isinstance(attrgetter(path)(network), nn.Parameter) or path in _buffers(network) else None
        )
    return path if node.op == "call_module" and network.get_submodule(path).state_dict() else None


def _buffers(network: nn.Module) -> set[str]:
    return {name for name, _ in network.named_buffers()}


def _heads(graph: fx.Graph, network: nn.Module, candidates: tuple[str, ...]) -> tuple[str, ...]:
    """From the output backwards: the first nodes with weight matrices."""
    (output,) = [node for node in graph.nodes if node.op == "output"]
    found, queue, seen = [], list(output.all_input_nodes), set()
    while queue:
        node = queue.pop(0)
        if node in seen:
            continue
        seen.add(node)
        path = _weighted_path(node, network) if node.op == "call_module" else None
        if path and any(parameter.dim() >= 2 for parameter in network.get_submodule(path).parameters()):
            found.append(path)
        else:
            queue.extend(node.all_input_nodes)
    if not found:
        raise ModelError(
            "no classifier leads to this model's output", "give a classification model with a head"
        )
    for path in found:
        if path in candidates and any(network.get_submodule(path).children()):
            raise ModelError(
                f"this model has no classifier: its answer comes straight from {path}",
                "give a classification model with a head",
            )
    return tuple(dict.fromkeys(found))


def _executed_blocks(graph: fx.Graph, candidates: tuple[str, ...], leaves: frozenset[str]) -> tuple[str, ...]:
    """Block paths in execution order; an untraceable module around candidates takes their place."""
    wanted = {
        leaf for leaf in leaves for block in candidates if leaf == block or block.startswith(f"{leaf}.")
    }  # fmt: skip
    executed = [
        str(node.target) for node in graph.nodes if node.op == "call_module" and node.target in wanted
    ]
    if not executed:
        raise ModelError(
            "none of the blocks is executed", "name other blocks with --blocks REGEX on module paths"
        )
    return tuple(dict.fromkeys(executed))


def _units(graph: fx.Graph, network: nn.Module, blocks: tuple[str, ...]) -> dict[str, str]:
    paths = dict.fromkeys(path for node in graph.nodes if (path := _weighted_path(node, network)))
    outermost = [path for path in paths if not any(path.startswith(f"{other}.") for other in paths)]
    names: dict[str, str] = {}
    for path in outermost:
        name = f"block{blocks.index(path) + 1}" if path in blocks else _plain(path, names)
        names[name] = path
    return names


def _plain(path: str, taken: Mapping[str, str]) -> str:
    name = "".join(letter if letter.isalnum() else "_" for letter in path)
    if name.startswith("block"):
        name = f"unit_{name}"  # blockN is reserved
    while name in taken:
        name += "_"
    return name


def _unit_of_node(node: fx.Node, unit_of: Mapping[str, str]) -> str | None:
    if node.op not in {"call_module", "get_attr"}:
        return None
    parts = str(node.target).split(".")
    prefixes = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
    return next((unit_of[prefix] for prefix in prefixes if prefix in unit_of), None)


def _block_rows(
    graph: fx.Graph, network: nn.Module, blocks: tuple[str, ...], seen: Mapping[fx.Node, Seen]
) -> Iterator[Block]:
    for index, path in enumerate(blocks, start=1):
        calls = [node for node in graph.nodes if node.op == "call_module" and node.target == path]
        parameters = list(network.get_submodule(path).parameters())
        yield Block(
            index=index,
            name=path,
            parameters=sum(parameter.numel() for parameter in parameters),
            macs=sum(seen[node].macs for node in calls),
            weight_bytes=sum(parameter.numel() * parameter.element_size() for parameter in parameters),
            output_shape=_first_shape(seen[calls[-1]].value)[1:],
        )


def _first_shape(value: Any) -> tuple[int, ...]:
    while not isinstance(value, Shape):
        value = next(iter(value.values())) if isinstance(value, dict) else value[0]
    return value.sizes


def _unused(network: nn.Module, units: Mapping[str, str]) -> Iterator[str]:
    for name in network.state_dict():
        if not any(name == path or name.startswith(f"{path}.") for path in units.values()):
            yield name
