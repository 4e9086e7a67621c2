"""What of a network can be thinned: groups of channels, as torch-pruning finds them, and heads of attention."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from .attention import heads_of
from .channels import Group, Part
from .errors import ModelError, Unavailable
from .tracing import plain_attention
from .widths import MATRICES, NORMS


def find_groups(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Group, ...]:
    """The groups of `module`, which is run on inputs of these shapes; not all of them may be thinned.

    Raises Unavailable without torch-pruning, ModelError where that cannot follow the module.
    """
    try:
        import torch_pruning  # noqa: F401
    except ImportError as error:
        raise Unavailable("torch-pruning is not installed", "pip install 'subtune-deploy[prune]'") from error
    network = copy.deepcopy(module).requires_grad_(True)
    inputs, named = tree_map_only(
        Tensor, lambda each: torch.zeros(each.shape, dtype=each.dtype), (args, dict(kwargs))
    )
    try:
        with warnings.catch_warnings(), torch.enable_grad(), plain_attention():
            warnings.simplefilter("ignore")  # its doubts about shapes: what it finds is tried out
            found = list(_traced(network, lambda: network(*inputs, **named)))
    except Exception as error:  # whatever it raises on operations that it does not know
        reason = (str(error) or repr(error)).splitlines()[0]
        raise ModelError(
            f"torch-pruning cannot follow {type(module).__name__}: {reason}",
            "leave it whole, or choose other blocks",
        ) from error
    return (*found, *_attention(module))


def _attention(module: nn.Module) -> Iterator[Group]:
    for path, each in module.named_modules():
        if heads := heads_of(each):
            owners = torch.arange(heads.count).repeat_interleave(heads.width)
            prefix = f"{path}." if path else ""
            parts = (
                Part(f"{prefix}{name}", axis, owners.repeat(times))
                for name, (axis, times) in heads.parts.items()
            )
            yield Group(path, "heads", heads.count, heads.width, tuple(parts))


def _traced(network: nn.Module, run: Callable[[], Any]) -> Iterator[Group]:
    """torch-pruning's groups, in the order in which their first layers are registered."""
    import torch_pruning

    graph = torch_pruning.DependencyGraph().build_dependency(
        network, example_inputs=None, forward_fn=lambda *_: run(), verbose=False
    )
    _plain_reshapes(torch_pruning, graph)
    paths: dict[nn.Module, list[str]] = {}
    for path, module in network.named_modules(remove_duplicate=False):
        paths.setdefault(module, []).append(path)
    order = {module: index for index, module in enumerate(paths)}
    found = list(graph.get_all_groups(root_module_types=list(MATRICES)))
    for group in sorted(found, key=lambda each: order[each[0].dep.target.module]):
        converted = _converted(graph, group, paths)
        if converted:
            yield converted


def _plain_reshapes(torch_pruning: Any, graph: Any) -> None:
    """Let channels keep their numbers where a value is reshaped.

    torch-pruning guesses at what becomes of them, and around the loops of attention its guesses multiply until
    memory is full. A group for which this is wrong does not fit any more and is left alone.
    """
    kinds = torch_pruning.ops.OPTYPE
    reshapes = {node for node in graph.module2node.values() if node.type == kinds.RESHAPE}
    for node in reshapes:
        node.type = kinds.ELEMENTWISE
    for node in graph.module2node.values():
        for dependency in node.dependencies:
            if node in reshapes or dependency.target in reshapes:
                dependency.index_mapping = [None, None]


def _converted(graph: Any, group: Any, paths: Mapping[nn.Module, list[str]]) -> Group | None:
    """None where the group runs through something that cannot be narrowed as a selection."""
    root = group[0].dep.target.module
    channels = graph.get_out_channels(root)
    size = max((_channel_groups(item.dep.target.module) for item in group), default=1)
    atoms, parts = channels // size, list[Part]()
    for item in group:
        module = item.dep.target.module
        if isinstance(module, nn.Module) and (module not in paths or not module.state_dict()):
            continue  # an operation without weights
        places = _places(graph, item, paths)
        if places is None or None in item.root_idxs or channels % size:
            return None
        pairs = list(zip(item.idxs, item.root_idxs, strict=True))
        for name, axis, length in places:
            owner = _owner(pairs, length, atoms)
            if owner is None:
                return None
            parts.append(Part(name, axis, owner))
    return Group(paths[root][0], "channels", atoms, size, tuple(parts))


def _channel_groups(module: Any) -> int:
    if isinstance(module, nn.Conv2d):
        return 1 if _depthwise(module) else module.groups
    return module.num_groups if isinstance(module, nn.GroupNorm) else 1


def _depthwise(module: nn.Conv2d) -> bool:
    return 1 < module.groups == module.out_channels == module.in_channels


def _places(graph: Any, item: Any, paths: Mapping[nn.Module, list[str]]) -> list[tuple[str, int, int]] | None:
    """(tensor, axis, length of the axis) of what the item narrows; None for kinds that are not known."""
    module, outwards = item.dep.target.module, graph.is_out_channel_pruning_fn(item.dep.handler)
    if isinstance(module, nn.Parameter):
        axis = item.dep.target.pruning_dim % module.dim()
        return [(graph._param_to_name[module], axis, module.shape[axis])]
    if not isinstance(module, (*MATRICES, *NORMS, nn.PReLU)):
        return None
    tensors = {name: tensor for name, tensor in module.state_dict().items() if tensor.dim()}
    if isinstance(module, NORMS) and any(tensor.dim() > 1 for tensor in tensors.values()):
        return None
    inwards = isinstance(module, MATRICES) and not outwards
    if isinstance(module, nn.Conv2d) and _depthwise(module):
        inwards = False
    chosen = {"weight": tensors["weight"]} if inwards else tensors
    return [
        (f"{path}.{name}" if path else name, int(inwards), tensor.shape[int(inwards)])
        for path in paths[module]
        for name, tensor in chosen.items()
    ]


def _owner(pairs: Iterable[tuple[int, int]], length: int, atoms: int) -> Tensor | None:
    """Atoms by position; an axis shorter than its channels, a grouped convolution's, is counted through again.

    None where one position would belong to two atoms.
    """
    owner = torch.full((length,), -1, dtype=torch.long)
    claimed: dict[int, int] = {}
    for position, channel in pairs:
        if claimed.setdefault(position % length, channel % atoms) != channel % atoms:
            return None
    positions = torch.tensor(list(claimed), dtype=torch.long)
    owner[positions] = torch.tensor(list(claimed.values()), dtype=torch.long)
    return owner
