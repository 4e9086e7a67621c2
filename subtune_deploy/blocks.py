"""Which modules of a network are its blocks: the repeated units that SubTuning tunes.

A block is a composite (at least two weighted layers) that stands in a list of its like: a bottleneck in
`layer3`, an encoder layer, an inverted residual. Stages (composites that hold such a list) are looked into.
Networks without lists fall back to repeated children of the root (Inception), then to convolutions (VGG),
then to linear layers. A pattern on module paths overrides all of this.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from torch import nn

from .errors import ModelError

LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def find_blocks(model: nn.Module, pattern: str | None = None) -> tuple[str, ...]:
    """Paths of the block modules, in the order of registration (execution order needs a trace)."""
    if pattern is not None:
        return _by_pattern(model, pattern)
    for found in (
        _in_lists(model),
        _children_of_root(model),
        _layers(model, nn.Conv2d),
        _layers(model, nn.Linear),
    ):
        if found:
            return found
    raise ModelError(
        "this model has no blocks to tune", "name its blocks with --blocks REGEX on module paths"
    )


def _by_pattern(model: nn.Module, pattern: str) -> tuple[str, ...]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ModelError(
            f"block pattern {pattern!r} is no regular expression: {error}", "mend the pattern"
        ) from error
    paths = [path for path, _ in model.named_modules() if path and expression.fullmatch(path)]
    if not paths:
        some = ", ".join([path for path, _ in model.named_modules() if path][:6])
        raise ModelError(f"block pattern {pattern!r} matches no module", f"paths look like: {some}")
    return tuple(path for path in paths if not any(path.startswith(f"{outer}.") for outer in paths))


def _weighted_layers(module: nn.Module) -> int:
    """Norms do not count: their parameters have one dimension."""
    return sum(parameter.dim() >= 2 for parameter in module.parameters())


def _is_composite(module: nn.Module) -> bool:
    return not isinstance(module, LISTS) and any(module.children()) and _weighted_layers(module) >= 2


def _members(module: nn.Module) -> Iterator[nn.Module]:
    """Direct members of a list, looking through nested lists."""
    for child in module.children():
        if isinstance(child, LISTS):
            yield from _members(child)
        else:
            yield child


def _repeated(module: nn.Module) -> set[type[nn.Module]]:
    counts = Counter(type(member) for member in _members(module) if _is_composite(member))
    return {kind for kind, count in counts.items() if count >= 2}


def _in_lists(model: nn.Module) -> tuple[str, ...]:
    lists = {
        path for path, module in model.named_modules() if isinstance(module, LISTS) and _repeated(module)
    }
    kinds = {kind for path in lists for kind in _repeated(model.get_submodule(path))}

    def holds_list(path: str) -> bool:
        return any(other == path or path == "" or other.startswith(f"{path}.") for other in lists)

    def walk(path: str, module: nn.Module, listed: bool) -> Iterator[str]:
        if holds_list(path) or (listed and isinstance(module, LISTS)):
            for name, child in module.named_children():
                inside = listed or isinstance(module, LISTS)
                yield from walk(f"{path}.{name}" if path else name, child, inside)
        elif listed and (_is_composite(module) or type(module) in kinds):
            yield path

    return tuple(walk("", model, False)) if lists else ()


def _children_of_root(model: nn.Module) -> tuple[str, ...]:
    root, prefix = model, ""
    while len(children := list(root.named_children())) == 1:
        prefix, root = f"{prefix}{children[0][0]}.", children[0][1]
    if not _repeated(root):
        return ()
    return tuple(f"{prefix}{name}" for name, child in root.named_children() if _is_composite(child))


def _layers(model: nn.Module, kind: type[nn.Module]) -> tuple[str, ...]:
    paths = tuple(path for path, module in model.named_modules() if isinstance(module, kind))
    return paths if len(paths) >= 2 else ()
