"""A network as a torch.fx graph with its blocks as leaves.

Only what surrounds the blocks is traced. A branch on sizes is decided by evaluating it for the deployed input
size. Where a module's own code still cannot be traced the module becomes a leaf and the trace starts again, so
that only the outermost level must be traceable. In-place operations are replaced by their results, since the
compiler reorders and copies values.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel

from .errors import ModelError

PROBE_BATCHES = (2, 3)  # two sizes tell a batch axis from a fixed one; 1 would broadcast
FAKE = FakeTensorMode(allow_non_fake_inputs=True)  # shapes without arithmetic
_ORIGINAL_CALL, _ORIGINAL_GETATTR = nn.Module.__call__, nn.Module.__getattr__
ASSERTIONS = {"_assert", "_shape_assert"}


class _Opaque(Exception):  # noqa: N818 - a signal, not an error
    """Raised through a trace: the module at `path` must be a leaf."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


@contextmanager
def _untraced() -> Iterator[None]:
    """fx patches module calls while it traces; inside, modules just run."""
    patched_call, patched_getattr = nn.Module.__call__, nn.Module.__getattr__
    nn.Module.__call__, nn.Module.__getattr__ = _ORIGINAL_CALL, _ORIGINAL_GETATTR  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.__call__, nn.Module.__getattr__ = patched_call, patched_getattr  # type: ignore[method-assign]


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # buffers stay named, they are not baked in as constants

    def __init__(self, leaves: Collection[str], shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.leaves, self.shape = leaves, shape
        self.known: dict[tuple[fx.Node, int], Any] = {}

    def to_bool(self, obj: fx.Proxy) -> bool:
        """A condition that two batch sizes answer alike is a fact about the model, not about its input."""
        first, second = (self._value(obj.node, batch) for batch in PROBE_BATCHES)
        if isinstance(first, (bool, int)) and first == second:
            return bool(first)
        return super().to_bool(obj)

    def _value(self, node: fx.Node, batch: int) -> Any:
        if (node, batch) not in self.known:
            with FAKE, torch.no_grad(), _untraced():
                self.known[node, batch] = self._computed(node, batch)
        return self.known[node, batch]

    def _computed(self, node: fx.Node, batch: int) -> Any:
        if node.op == "placeholder":
            return torch.empty(batch, *self.shape)
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self.root)
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: self._value(source, batch))
        if node.op == "call_module":
            return self.root.get_submodule(str(node.target))(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        childless = next(m.children(), None) is None
        return childless or module_qualified_name in self.leaves or isinstance(m, nn.MultiheadAttention)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        path = self.path_of_module(m)
        try:
            return super().call_module(m, forward, args, kwargs)
        except _Opaque:
            raise
        except Exception as error:  # whatever a forward raises on a proxy: the module is not traceable
            raise _Opaque(path) from error


def trace_graph(
    model: nn.Module, leaves: Iterable[str], shape: tuple[int, int, int]
) -> tuple[fx.Graph, frozenset[str]]:
    """(graph of `model` with `leaves` and every untraceable module as leaf nodes, all leaf paths).

    `shape`: (channels, height, width) of the pictures.
    """
    known = set(leaves)
    while True:
        tracer = _Tracer(known, shape)
        try:
            graph = tracer.trace(model, concrete_args=_defaults(model))
        except _Opaque as signal:
            if signal.path in known:
                raise ModelError(
                    f"module {signal.path} cannot be traced: {signal.__cause__}",
                    "name other blocks with --blocks",
                ) from signal
            known.add(signal.path)
        except Exception as error:
            raise ModelError(
                f"the model cannot be traced: {type(error).__name__}: {error}",
                "its outermost forward must not branch on the input; move such code into a submodule",
            ) from error
        else:
            return _cleaned(graph, model), frozenset(known)


def _defaults(model: nn.Module) -> dict[str, Any]:
    """Optional arguments of forward keep their defaults; only the picture is an input."""
    parameters = list(inspect.signature(model.forward).parameters.values())[1:]
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def _cleaned(graph: fx.Graph, model: nn.Module) -> fx.Graph:
    for node in reversed(list(graph.nodes)):
        target = getattr(node.target, "__name__", str(node.target))
        if node.op == "call_function" and target in ASSERTIONS:
            graph.erase_node(node)
    extras = [node for node in graph.nodes if node.op == "placeholder"][1:]
    graph.eliminate_dead_code(is_impure_node=lambda node: not set(node.all_input_nodes) & set(extras))
    for extra in extras:
        if extra.users:
            raise ModelError(
                f"the model needs a second input, {extra.name}", "only single-input models can be deployed"
            )
        graph.erase_node(extra)
    graph.owning_module = model  # type: ignore[assignment]
    graph.lint()
    return graph


def replace_in_place(graph: fx.Graph, mutations: Iterable[tuple[fx.Node, fx.Node]]) -> None:
    """For each (node, argument it changed in place): later readers of the argument read the node instead."""
    order = {node: index for index, node in enumerate(graph.nodes)}
    for node, changed in mutations:
        for user in list(changed.users):
            if order[user] > order[node]:
                user.replace_input_with(changed, node)
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op in {"placeholder", "output"})


def example(shape: tuple[int, int, int], batch: int, seed: int = 0) -> torch.Tensor:
    """A reproducible, non-zero batch (N, C, H, W)."""
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed))


@contextmanager
def plain_attention() -> Iterator[None]:
    """Without the fused operators, which torch can neither count through, nor batch over weights."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
