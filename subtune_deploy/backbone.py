"""The backbone: a traced network, its blocks and its other weighted units, and how values carry the batch.

backbone = trace(load_model("resnet50"))
backbone.blocks[12]          # Block(index=13, name="layer3.5", ...)
backbone.units["block13"]    # "layer3.5"
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.utils.flop_counter import FlopCounterMode

from .blocks import find_blocks
from .errors import ModelError
from .models import Model
from .spec import Block, InputSpec
from .topology import Carry, Node, Topology
from .tracing import FAKE, PROBE_BATCHES, plain_attention, replace_in_place, trace_graph


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


@dataclass(frozen=True)
class _Seen:
    """What one probing run saw of a node: shapes or integers, multiply-adds, arguments changed in place."""

    value: Any
    macs: int
    mutated: tuple[fx.Node, ...]


def trace(model: Model, pattern: str | None = None) -> Backbone:
    """Trace `model` and number its blocks. `pattern`: a regular expression on module paths of blocks.

    Raises ModelError for a model that has no blocks, cannot be traced, or refuses its input size.
    """
    network = model.module
    candidates = find_blocks(network, pattern)
    with _input_errors(model), plain_attention(), torch.no_grad():
        network(torch.zeros(1, *model.input.shape))  # fills what models cache at their first run
    graph, leaves = trace_graph(network, candidates, model.input.shape)
    small, large = (_probe(graph, model, batch) for batch in PROBE_BATCHES)
    replace_in_place(graph, [(node, changed) for node in graph.nodes for changed in small[node].mutated])
    heads = _heads(graph, network)
    blocks = _executed_blocks(graph, candidates, leaves - set(heads))
    units = _units(graph, network, blocks)
    unit_of = {path: unit for unit, path in units.items()}
    head_units = tuple(unit_of[path] for path in heads)
    nodes = tuple(
        Node(
            node.name,
            node.op,
            tuple(dict.fromkeys(source.name for source in node.all_input_nodes)),
            _unit_of_node(node, unit_of),
            _carry(small[node].value, large[node].value),
            small[node].macs,
        )
        for node in graph.nodes
    )
    return Backbone(
        name=model.name,
        model=network,
        input=model.input,
        labels=model.labels,
        weights=model.weights,
        graph=graph,
        topology=Topology(nodes, head_units),
        blocks=tuple(_block_rows(graph, network, blocks, small)),
        units=units,
        heads=head_units,
        unused=frozenset(_unused(network, units)),
    )


class _Prober(fx.Interpreter):
    """Runs the graph on fake tensors: shapes and counts without arithmetic."""

    def __init__(self, graph: fx.Graph, network: nn.Module) -> None:
        super().__init__(network, graph=graph)
        self.seen: dict[fx.Node, _Seen] = {}

    def run_node(self, n: fx.Node) -> Any:
        before = {source: _version(self.env[source]) for source in n.all_input_nodes}
        with FlopCounterMode(display=False) as counter:
            result = super().run_node(n)
        mutated = tuple(source for source, version in before.items() if _version(self.env[source]) != version)
        self.seen[n] = _Seen(_shapes(result), counter.get_total_flops() // 2, mutated)
        return result


def _probe(graph: fx.Graph, model: Model, batch: int) -> dict[fx.Node, _Seen]:
    prober = _Prober(graph, model.module)
    with _input_errors(model), plain_attention(), FAKE, torch.no_grad():
        prober.run(torch.empty(batch, *model.input.shape))
    return {node: _Seen(seen.value, seen.macs // batch, seen.mutated) for node, seen in prober.seen.items()}


@contextmanager
def _input_errors(model: Model) -> Iterator[None]:
    """What a network raises on an input that it was not built for."""
    try:
        yield
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise ModelError(
            f"{model.name} cannot be compiled: what it computes depends on values, at {error.func}",
            "take the branch on values out of its forward",
        ) from error
    except (RuntimeError, AssertionError, ValueError, TypeError, IndexError) as error:
        size = "x".join(map(str, model.input.shape))
        raise ModelError(
            f"{model.name} does not run on input {size}: {(str(error) or repr(error)).splitlines()[0]}",
            "give the size that the model was built for with --input-size CxHxW",
        ) from error


def _version(value: Any) -> int:
    return value._version if isinstance(value, torch.Tensor) else 0


def _shapes(value: Any) -> Any:
    """Tensors become ("tensor", shape); integers, and anything inside tuples, lists and dicts, are kept."""
    if isinstance(value, torch.Tensor):
        return ("tensor", tuple(value.shape))
    if isinstance(value, (tuple, list)):
        return tuple(_shapes(item) for item in value)
    if isinstance(value, dict):
        return {key: _shapes(item) for key, item in value.items()}
    return value


def _carry(small: Any, large: Any) -> Carry:
    if small == large:
        return None
    first, second = PROBE_BATCHES
    if isinstance(small, tuple) and small[:1] == ("tensor",):
        differing = [axis for axis, (a, b) in enumerate(zip(small[1], large[1], strict=True)) if a != b]
        proportional = (
            len(differing) == 1 and small[1][differing[0]] * second == large[1][differing[0]] * first
        )
        return differing[0] if proportional else "opaque"
    if isinstance(small, tuple):
        return tuple(_carry(a, b) for a, b in zip(small, large, strict=True))
    if isinstance(small, int) and small * second == large * first:
        return "size"
    return "opaque"


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


def _heads(graph: fx.Graph, network: nn.Module) -> tuple[str, ...]:
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
    graph: fx.Graph, network: nn.Module, blocks: tuple[str, ...], seen: Mapping[fx.Node, _Seen]
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
    while isinstance(value, tuple) and value[:1] != ("tensor",):
        value = value[0]
    return tuple(value[1])


def _unused(network: nn.Module, units: Mapping[str, str]) -> Iterator[str]:
    for name in network.state_dict():
        if not any(name == path or name.startswith(f"{path}.") for path in units.values()):
            yield name
