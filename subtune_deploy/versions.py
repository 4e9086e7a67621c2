"""A task's own weights in the place of the backbone's: assembled into a model, or run for shapes alone."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch._subclasses import fake_tensor

from .backbone import Backbone
from .errors import ModelError, SubtuneError
from .heads import feature_axis, features_of
from .probing import Prober, shapes_of
from .tracing import FAKE, PROBE_BATCHES, plain_attention

Version: TypeAlias = "nn.Module | Tensor"
"""One unit's weights: a module, or the tensor where the unit is a bare parameter or buffer."""


def version_of(backbone: Backbone, versions: Mapping[str, Version], unit: str) -> Version:
    """The unit's weights: among `versions`, or the backbone's."""
    own: Version = attrgetter(backbone.units[unit])(backbone.model)
    return versions.get(unit, own)


def assemble(backbone: Backbone, versions: Mapping[str, Version], *, siamese: bool = False) -> nn.Module:
    """The backbone's model with `versions` in their places, (N, C, H, W) -> (N, classes); all weights are copies.

    A `siamese` one runs the backbone as it is beside them. Made without tracing, so that it can bear witness
    against the multi-task graph.
    """
    model = copy.deepcopy(backbone.model)
    for unit, version in versions.items():
        _replace(model, backbone.units[unit], copy.deepcopy(version))
    if siamese:
        heads = tuple(backbone.units[unit] for unit in backbone.heads)
        return _Siamese(copy.deepcopy(backbone.model), model, heads).eval()
    return model.eval()


def _replace(model: nn.Module, path: str, version: Version) -> None:
    """Put `version` at `path`, and wherever else the network uses the same module."""
    outer, _, name = path.rpartition(".")
    if isinstance(version, Tensor):
        holder = model.get_submodule(outer)
        is_parameter = name in dict(holder.named_parameters(recurse=False))
        setattr(holder, name, nn.Parameter(version, requires_grad=False) if is_parameter else version)
        return
    old = model.get_submodule(path)
    for parent in list(model.modules()):
        for child_name, child in list(parent._modules.items()):
            if child is old:
                setattr(parent, child_name, version)


class _Siamese(nn.Module):
    """Runs the base, keeps what its heads read, and puts it before what the task's heads read."""

    def __init__(self, base: nn.Module, own: nn.Module, heads: tuple[str, ...]) -> None:
        super().__init__()
        self.base, self.own = base, own
        self._features: dict[str, Tensor] = {}
        for head in heads:
            base.get_submodule(head).register_forward_pre_hook(partial(self._keep, head))
            own.get_submodule(head).register_forward_pre_hook(partial(self._join, head))

    def _keep(self, head: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._features[head] = inputs[0]

    def _join(self, head: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        return torch.cat([self._features.pop(head), inputs[0]], dim=feature_axis(module))

    def forward(self, picture: Tensor) -> Any:
        self.base(picture)
        return self.own(picture)


@contextmanager
def _shapes_alone() -> Iterator[None]:
    """On fake tensors, and without their log: here widths that do not fit are no news."""
    log = logging.getLogger(fake_tensor.__name__)
    before, log.disabled = log.disabled, True
    try:
        with FAKE, torch.no_grad(), plain_attention():
            yield
    finally:
        log.disabled = before


@dataclass(frozen=True)
class Call:
    """One execution of a block: fake inputs, and the shapes of what came out."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    shapes: Any

    def fits(self, module: nn.Module) -> bool:
        """Whether `module` takes these inputs and answers in these shapes."""
        try:
            with _shapes_alone():
                return bool(shapes_of(module(*self.args, **self.kwargs)) == self.shapes)
        except Exception:  # noqa: BLE001 - whatever a network's own code raises on widths that it cannot take
            return False


@dataclass
class Flow:
    """What a run for shapes saw. `shapes` by node, before heads; `macs` of one picture by node; `calls` by unit;
    `features`: how many each head was given."""

    shapes: dict[str, Any] = field(default_factory=dict)
    macs: dict[str, int] = field(default_factory=dict)
    calls: dict[str, list[Call]] = field(default_factory=dict)
    features: dict[str, int] = field(default_factory=dict)


Watch: TypeAlias = Callable[[str], AbstractContextManager[object]]
"""Of a node that runs for shapes: what it runs within."""


def flow(
    backbone: Backbone, versions: Mapping[str, Version], watch: Watch = lambda node: nullcontext()
) -> Flow:
    """Run the backbone with `versions` for shapes alone; what heads answer is taken to be as the base's.

    Raises ModelError where the layers of `versions` fit neither each other nor what is around them.
    """
    run = _Run(backbone, versions, watch)
    try:
        with _shapes_alone():
            run.run(torch.empty(PROBE_BATCHES[0], *backbone.input.shape))
    except SubtuneError:
        raise
    except Exception as error:  # whatever a network's own code raises on widths that it cannot take
        reason = (str(error) or repr(error)).splitlines()[0]
        raise ModelError(
            f"{run.where} of {backbone.name} does not fit what is around it: {reason}",
            "keep the widths in which blocks hand on what they compute",
        ) from error
    return run.flow


class _Run(Prober):
    """Runs the backbone's graph on fake tensors with other weights in it."""

    def __init__(self, backbone: Backbone, versions: Mapping[str, Version], watch: Watch) -> None:
        super().__init__(backbone.graph, backbone.model)
        self.backbone, self.versions, self.watch = backbone, versions, watch
        self.flow, self.where = Flow(), "the input"
        self.unit_of = {node.name: node.unit for node in backbone.topology.nodes}
        self.unit: str | None = None

    def run_node(self, n: fx.Node) -> Any:
        self.unit = self.unit_of[n.name]
        self.where = self.backbone.units[self.unit] if self.unit else n.name
        with self.watch(n.name):
            result = super().run_node(n)
        self.flow.shapes[n.name] = self.seen[n].value
        self.flow.macs[n.name] = self.seen[n].macs // PROBE_BATCHES[0]
        return result

    def fetch_attr(self, target: str) -> Any:
        return self._own(target) if self.unit else super().fetch_attr(target)

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.unit in self.backbone.heads:
            return self._head(*args)
        if not self.unit:
            return super().call_module(target, args, kwargs)
        result = self._own(target)(*args, **kwargs)
        self.flow.calls.setdefault(self.unit, []).append(Call(args, kwargs, shapes_of(result)))
        return result

    def _own(self, target: str) -> Any:
        assert self.unit
        version = version_of(self.backbone, self.versions, self.unit)
        inside = target[len(self.backbone.units[self.unit]) :].lstrip(".")
        return attrgetter(inside)(version) if inside else version

    def _head(self, features: Tensor) -> Any:
        assert self.unit
        head: Any = version_of(self.backbone, {}, self.unit)
        axis, shape = feature_axis(head), list(features.shape)
        self.flow.features[self.unit], shape[axis] = shape[axis], features_of(head)
        return head(features.new_empty(shape))


def thinner(backbone: Backbone, versions: Mapping[str, Version]) -> bool:
    """Whether a block among `versions` is not as wide as the backbone's."""
    blocks = [unit for unit in versions if unit not in backbone.heads]
    return any(_sizes(versions[unit]) != _sizes(version_of(backbone, {}, unit)) for unit in blocks)


def _sizes(version: Version) -> dict[str, torch.Size]:
    state = version.state_dict() if isinstance(version, nn.Module) else {"": version}
    return {name: tensor.shape for name, tensor in state.items()}


def narrow_streams(backbone: Backbone, versions: Mapping[str, Version]) -> bool:
    """Whether something that flows from block to block, or into a head, has another shape than in the backbone."""
    if not thinner(backbone, versions):
        return False
    return flow(backbone, versions).shapes != flow(backbone, {}).shapes
