"""An exported program as PyTorch runs it faster on a CPU: batch-norms folded, channels last."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

Constants: TypeAlias = "tuple[Node | None, ...]"


@dataclass(frozen=True)
class _Pair:
    convolution: Node
    norm: Node

    @property
    def constants(self) -> Constants:
        """Weight and bias; mean, variance, scale and shift."""
        weight, bias, *_ = (*self.convolution.args[1:], None)
        scale, shift, mean, variance = self.norm.args[1:5]
        return weight, bias, mean, variance, scale, shift  # type: ignore[return-value]

    @property
    def epsilon(self) -> Any:
        return self.norm.args[6]


def fold_batch_norms(module: GraphModule) -> int:
    """In place, wherever nothing but a batch-norm reads a convolution: it would be a pass of its own. Returns how many.

    Convolutions that share their constants, as those of several streams, share the folded ones.
    """
    pairs, folded = list(_pairs(module)), dict[Any, tuple[Any, ...]]()
    for pair in pairs:
        key = (*pair.constants, pair.epsilon)
        if key not in folded:
            folded[key] = _folded(module, pair, f"folded{len(folded)}")
        pair.convolution.args = (pair.convolution.args[0], *folded[key], *pair.convolution.args[3:])
        for first in pair.norm.users:
            first.replace_all_uses_with(pair.convolution)
    module.graph.eliminate_dead_code()
    _forget(module)
    module.recompile()
    return len(pairs)


def _pairs(module: GraphModule) -> Iterator[_Pair]:
    import torch

    aten = torch.ops.aten

    for norm in module.graph.find_nodes(
        op="call_function", target=aten._native_batch_norm_legit_no_training.default
    ):
        (before,) = norm.all_input_nodes[:1]
        if before.target is not aten.conv2d.default or len(before.users) > 1:
            continue
        values = all(each.target is operator.getitem and each.args[1] == 0 for each in norm.users)
        pair = _Pair(before, norm)
        if values and all(each is None or each.op == "get_attr" for each in pair.constants):
            yield pair


def _folded(module: GraphModule, pair: _Pair, name: str) -> tuple[Node, ...]:
    """The weight and the bias that do both, as nodes at the beginning."""
    from torch.nn.utils.fusion import fuse_conv_bn_weights

    constants: list[Any] = [each and _value(module, each) for each in pair.constants]
    weight, bias, mean, variance, scale, shift = constants
    fused = fuse_conv_bn_weights(weight, bias, mean, variance, pair.epsilon, scale, shift)
    names = (f"{name}_weight", f"{name}_bias")
    for each, tensor in zip(names, fused, strict=True):
        module.register_buffer(each, tensor.detach())
    with module.graph.inserting_before(next(iter(module.graph.nodes))):
        return tuple(module.graph.get_attr(each) for each in names)


def _value(module: GraphModule, node: Node) -> Any:
    return operator.attrgetter(str(node.target))(module)


def _forget(module: GraphModule) -> None:
    """Constants that no node reads any more."""
    read = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in (*module.named_parameters(), *module.named_buffers())]:
        if name not in read:
            holder, _, attribute = name.rpartition(".")
            delattr(module.get_submodule(holder), attribute)


def lay_channels_last(module: GraphModule) -> None:
    """In place: the weights of convolutions, and so what these answer. Views of that may have to be copies."""
    import torch

    aten = torch.ops.aten
    for node in module.graph.find_nodes(op="call_function", target=aten.view.default):
        node.target = aten.reshape.default
    for node in module.graph.find_nodes(op="call_function", target=aten.conv2d.default):
        if node.all_input_nodes[1].op == "get_attr":
            weight = _value(module, node.all_input_nodes[1])
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    module.recompile()
