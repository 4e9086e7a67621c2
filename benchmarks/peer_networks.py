"""The networks that people write by hand today for a base and K tasks with one fork, in PyTorch and in ONNX.

    network = shared_prefix(models, (13, 14))     models: the stand-alone networks, the base's first
    network(picture)                              -> a tuple of their answers

The split of each architecture in stem, blocks, tail and head is written out by hand, as an engineer would who
has just this network to deploy.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby

import onnx_ir as ir
import torch
from onnx_ir.passes import common
from torch import Tensor, nn
from torchvision.models import EfficientNet, ResNet, VisionTransformer

from subtune_deploy.spec import BASE


@dataclass(frozen=True)
class Parts:
    """A network as `head(tail(block(... block(stem(picture)))))`."""

    stem: nn.Module
    blocks: tuple[nn.Module, ...]
    tail: nn.Module
    head: nn.Module


def split(model: nn.Module) -> Parts:
    """The parts of a torchvision ResNet, EfficientNet or VisionTransformer."""
    if isinstance(model, ResNet):
        stem = nn.Sequential(model.conv1, model.bn1, model.relu, model.maxpool)
        stages = (model.layer1, model.layer2, model.layer3, model.layer4)
        blocks = tuple(block for stage in stages for block in stage)
        return Parts(stem, blocks, nn.Sequential(model.avgpool, nn.Flatten()), model.fc)
    if isinstance(model, EfficientNet):
        stem, *stages, last = model.features
        blocks = tuple(block for stage in stages for block in stage)
        return Parts(stem, blocks, nn.Sequential(last, model.avgpool, nn.Flatten()), model.classifier)
    if isinstance(model, VisionTransformer):
        encoder = model.encoder
        patches = _Patches(model.conv_proj, model.class_token, encoder.pos_embedding)
        return Parts(patches, tuple(encoder.layers), nn.Sequential(encoder.ln, _ClassToken()), model.heads)
    raise TypeError(f"{type(model).__name__} has not been split by hand")


class _Patches(nn.Module):
    """Picture (N, 3, H, W) -> tokens (N, 1 + patches, width)."""

    def __init__(self, project: nn.Conv2d, token: nn.Parameter, places: nn.Parameter) -> None:
        super().__init__()
        self.project, self.token, self.places = project, token, places

    def forward(self, picture: Tensor) -> Tensor:
        patches: Tensor = self.project(picture).flatten(2).transpose(1, 2)
        return torch.cat([self.token.expand(len(picture), -1, -1), patches], dim=1) + self.places


class _ClassToken(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0]


Fork = Callable[[Sequence[nn.Module], bool], nn.Module]
"""(the versions of neighbouring forked blocks, whether they read one shared stream) -> packed streams out."""


class Network(nn.Module):
    """Stem, then segments that are shared or forked, tail, one head a task. Streams are packed on the batch."""

    def __init__(
        self, stem: nn.Module, segments: Iterable[nn.Module], tail: nn.Module, heads: Sequence[nn.Module]
    ) -> None:
        super().__init__()
        self.trunk, self.heads = nn.Sequential(stem, *segments, tail), nn.ModuleList(heads)

    def forward(self, picture: Tensor) -> tuple[Tensor, ...]:
        features = self.trunk(picture).chunk(len(self.heads))
        return tuple(head(own) for head, own in zip(self.heads, features, strict=True))


def shared_prefix(models: Sequence[nn.Module], layers: Sequence[int], fork: Fork | None = None) -> Network:
    """The prefix once, forked blocks once per model, what follows once for all; `layers` count from 1."""
    parts = [split(model) for model in models]
    segments, shared = [], True
    numbers = range(1, len(parts[0].blocks) + 1)
    for forked, run in groupby(numbers, lambda number: number in layers):
        chosen = slice((indices := list(run))[0] - 1, indices[-1])
        versions = [nn.Sequential(*part.blocks[chosen]) for part in (parts if forked else parts[:1])]
        segments.append((fork or Branches)(versions, shared) if forked else versions[0])
        shared = shared and not forked
    return Network(parts[0].stem, segments, parts[0].tail, [part.head for part in parts]).eval()


class Branches(nn.Module):
    """Each version on its own stream, one after the other."""

    def __init__(self, versions: Sequence[nn.Module], shared: bool) -> None:
        super().__init__()
        self.versions, self.shared = nn.ModuleList(versions), shared

    def forward(self, packed: Tensor) -> Tensor:
        count = len(self.versions)
        streams = [packed] * count if self.shared else packed.chunk(count)
        return torch.cat([run(stream) for run, stream in zip(self.versions, streams, strict=True)])


class GroupedBranches(nn.Module):
    """All versions as one network of grouped convolutions: streams lie side by side on the channels.

    A fork of any length is entered and left once; leaving is a reshape into the batch.
    """

    def __init__(self, versions: Sequence[nn.Module], shared: bool) -> None:
        super().__init__()
        self.count, self.shared, self.grouped = len(versions), shared, _grouped(versions)

    def forward(self, packed: Tensor) -> Tensor:
        if self.shared:
            wide = torch.cat([packed] * self.count, dim=1)
        else:
            wide = torch.unflatten(packed, 0, (self.count, -1)).transpose(0, 1).flatten(1, 2)
        return torch.unflatten(self.grouped(wide), 1, (self.count, -1)).transpose(0, 1).flatten(0, 1)


def _grouped(versions: Sequence[nn.Module]) -> nn.Module:
    """One module with the weights of all: whatever has none works on each channel by itself."""
    first = versions[0]
    if isinstance(first, nn.Conv2d):
        return _grouped_convolution(first, versions)
    if isinstance(first, nn.BatchNorm2d):
        norm = nn.BatchNorm2d(first.num_features * len(versions), eps=first.eps)
        norm.load_state_dict(_joined(versions))
        return norm
    if next(first.parameters(recurse=False), None) is not None:
        raise TypeError(f"{type(first).__name__} has no grouped form")
    result = copy.copy(first)
    result._modules = {
        name: _grouped([version.get_submodule(name) for version in versions]) for name in first._modules
    }
    return result


def _grouped_convolution(first: nn.Conv2d, versions: Sequence[nn.Module]) -> nn.Conv2d:
    count = len(versions)
    wide = nn.Conv2d(
        first.in_channels * count,
        first.out_channels * count,
        first.kernel_size,  # type: ignore[arg-type]
        first.stride,  # type: ignore[arg-type]
        first.padding,  # type: ignore[arg-type]
        first.dilation,  # type: ignore[arg-type]
        first.groups * count,
        first.bias is not None,
    )
    wide.load_state_dict(_joined(versions))
    return wide


def _joined(versions: Sequence[nn.Module]) -> dict[str, Tensor]:
    states = [version.state_dict() for version in versions]
    counters = {name for name, value in states[0].items() if value.dim() == 0}
    return {
        name: states[0][name] if name in counters else torch.cat([state[name] for state in states])
        for name in states[0]
    }


class Stacked(nn.Module):
    """All versions at once: torch.func's ensemble, weights stacked and the call vectorized over them.

    PyTorch cannot vectorize its fused attention and loops over it, with a warning. The call that fuses a whole
    attention layer is therefore off in here; looping over what remains was faster than the plain formula.
    """

    def __init__(self, versions: Sequence[nn.Module], shared: bool) -> None:
        super().__init__()
        self.count, self.shared = len(versions), shared
        self.weights = torch.func.stack_module_state(list(versions))
        self._skeleton = [copy.deepcopy(versions[0]).to("meta")]  # in a list: no part of this module

    def forward(self, packed: Tensor) -> Tensor:
        streams = packed if self.shared else torch.unflatten(packed, 0, (self.count, -1))
        with _without_fused_layers(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop")
            call = torch.vmap(self._call, in_dims=(0, 0, None if self.shared else 0))
            return call(*self.weights, streams).flatten(0, 1)

    def _call(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], stream: Tensor) -> Tensor:
        answer: Tensor = torch.func.functional_call(self._skeleton[0], (parameters, buffers), (stream,))
        return answer


@contextmanager
def _without_fused_layers() -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def has_convolutions(model: nn.Module) -> bool:
    """Whether the blocks of a network are made of what can be grouped."""
    return any(isinstance(layer, nn.Conv2d) for block in split(model).blocks for layer in block.modules())


def own_graph(unmerged: ir.Model, task: str) -> ir.Model:
    """The stand-alone network of `task`: what its output needs of a graph in which no two streams are packed."""
    model = unmerged.clone()
    (output,) = [value for value in model.graph.outputs if value.name == task]
    model.graph.outputs[:] = [output]
    common.RemoveUnusedNodesPass()(model)
    output.name = BASE
    return model


def side_by_side(models: Mapping[str, ir.Model]) -> ir.Model:
    """All networks in one graph: one input, an output for each, every weight of each. Uses `models` up."""
    host, *others = models.values()
    for name, model in models.items():
        for each in _named(model.graph):
            each.name = f"{name}/{each.name}"
        model.graph.outputs[0].name = name
    for model in others:
        _move(model.graph, host.graph)
    return host


def _named(graph: ir.Graph) -> list[ir.Value | ir.Node]:
    """What must have names of its own in a graph that holds several networks."""
    return [*graph.initializers.values(), *graph, *(value for node in graph for value in node.outputs)]


def _move(graph: ir.Graph, host: ir.Graph) -> None:
    graph.inputs[0].replace_all_uses_with(host.inputs[0])
    weights, nodes, (output,) = list(graph.initializers.values()), list(graph), list(graph.outputs)
    graph.outputs.clear()
    graph.remove(nodes)
    graph.initializers.clear()
    host.extend(nodes)
    for weight in weights:
        host.register_initializer(weight)
    host.outputs.append(output)
