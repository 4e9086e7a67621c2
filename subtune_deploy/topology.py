"""The backbone as data: nodes in execution order, who owns their weights, how their values carry the batch.

Pure and torch-free, so that plans can be made, searched and tested without a network.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Carry: TypeAlias = 'int | Literal["size", "opaque"] | tuple[Carry, ...] | list[Carry] | None'
"""How a value carries the batch: a tensor's batch axis, `"size"` for an integer proportional to the batch,
None for a value that does not depend on it, `"opaque"` for one that depends on it in another way (it can
be neither packed nor split), a tuple or list for a value that is one."""


@dataclass(frozen=True)
class Node:
    """One operation. `unit` names the weights it uses (None: it has none).

    For one picture: `macs`, multiply-adds, and `elements`, of what comes out. These follow from the blocks' shapes, and
    stay out of the digest of the topology.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    unit: str | None
    carry: Carry
    macs: int = 0
    elements: int = field(default=0, repr=False)


@dataclass(frozen=True)
class Topology:
    """Nodes in execution order. The last one is the output; `heads` are the units that classify."""

    nodes: tuple[Node, ...]
    heads: tuple[str, ...]

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for node in self.nodes:
            missing = set(node.inputs) - seen
            if node.name in seen or missing:
                raise ValueError(f"node {node.name}: duplicate, or inputs {sorted(missing)} not yet computed")
            seen.add(node.name)


def depends_on_batch(carry: Carry) -> bool:
    """Whether streams give different values here at all."""
    return any(map(depends_on_batch, carry)) if isinstance(carry, (tuple, list)) else carry is not None


def packable(carry: Carry) -> bool:
    """Whether streams can be packed along the batch and split again."""
    return all(map(packable, carry)) if isinstance(carry, (tuple, list)) else carry != "opaque"
