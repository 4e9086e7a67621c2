"""What a plan asks of a machine: layer by layer, which costs are paid, by how many streams, with how many weights.

    works = plan_works(topology, plan, costs)          # costs of the base's nodes and of the tasks' own
    sum(work.macs for work in works)

A layer is what runs from one unit's weights to the next one's: `relu` belongs to the convolution before it. Pure data
from pure data, as the plan is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from typing import Any, NamedTuple, TypeAlias

from .plan import Plan, Step
from .spec import BASE
from .topology import Topology


@dataclass(frozen=True)
class Cost:
    """Of one node, or of nodes together.

    For each picture: `macs`, multiply-adds, and `activations`, elements read and written that are no weights. For
    each time that weights are used: `weights`, elements, and `launches`, operators that compute something.
    """

    macs: int = 0
    activations: int = 0
    weights: int = 0
    launches: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(Cost)))


NOTHING = Cost()

Costs: TypeAlias = Mapping[str, Mapping[str, Cost]]
"""By version, `base` or a task: what its weights cost at a node. Where a task has no entry, it costs the base's."""


@dataclass(frozen=True)
class Use:
    """One cost, and how often it is paid: pictures of `streams` streams go through `versions` sets of weights, in
    `runs` executions. Both are equal but where versions run as one grouped operator."""

    cost: Cost
    streams: int
    versions: int
    runs: int


@dataclass(frozen=True)
class Work:
    """What a plan does in one layer: `unit` names it, `input` where no weights came yet."""

    unit: str
    uses: tuple[Use, ...]

    @property
    def macs(self) -> int:
        """Multiply-adds of all streams, for one picture each."""
        return sum(use.cost.macs * use.streams for use in self.uses)

    @property
    def activations(self) -> int:
        """Elements read and written by all streams, for one picture each."""
        return sum(use.cost.activations * use.streams for use in self.uses)

    @property
    def weights(self) -> int:
        """Elements that are loaded: weights that streams share in a batch once, weights used apart each time."""
        return sum(use.cost.weights * use.versions for use in self.uses)

    @property
    def launches(self) -> int:
        """Operators that are started."""
        return sum(use.cost.launches * use.runs for use in self.uses)

    @property
    def streams(self) -> int:
        """How many histories of activations the layer has."""
        return max((use.streams for use in self.uses), default=0)


def layers_of(topology: Topology) -> dict[str, str]:
    """By node, in execution order: the unit to whose layer it belongs, `input` before the first."""
    found: dict[str, str] = {}
    current = "input"
    for node in topology.nodes:
        current = node.unit or current
        found[node.name] = current
    return found


def plan_works(topology: Topology, plan: Plan, costs: Costs) -> tuple[Work, ...]:
    """What `plan` does, by layer in execution order; equal costs of one node are told together."""
    layers = layers_of(topology)
    paid: dict[str, list[list[_Paid]]] = {unit: [] for unit in layers.values()}
    for node, steps in groupby(plan.steps, lambda step: step.node):
        paid[layers[node]].append(
            [_Paid(_cost(costs, v, node), v, step) for step in steps for v in step.versions]
        )
    return tuple(Work(unit, tuple(_uses(nodes))) for unit, nodes in paid.items() if nodes)


class _Paid(NamedTuple):
    """A cost, for whose weights, and the execution."""

    cost: Cost
    version: str
    step: Step


def _cost(costs: Costs, version: str, node: str) -> Cost:
    return costs.get(version, {}).get(node, costs[BASE][node])


def _uses(nodes: Sequence[Sequence[_Paid]]) -> list[Use]:
    """Nodes that are paid alike are told together."""
    found: dict[tuple[Any, ...], Cost] = {}
    for paid in nodes:
        for cost in dict.fromkeys(each.cost for each in paid):
            mine = [each for each in paid if each.cost == cost]
            streams = sum(len(each.step.streams) // len(each.step.versions) for each in mine)
            runs = len({each.step.streams for each in mine})
            key = streams, len(mine), runs, tuple(each.version for each in mine)
            found[key] = found.get(key, NOTHING) + cost
    return [Use(cost, *key[:3]) for key, cost in found.items() if cost != NOTHING]
