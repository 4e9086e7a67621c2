"""What a plan asks of a machine: layer by layer, which costs are paid, by how many streams, with how many weights.

    works = plan_works(topology, plan, costs)          # costs of the base's nodes and of the tasks' own
    sum(work.macs for work in works)

A layer is what runs from one unit's weights to the next one's: `relu` belongs to the convolution before it. Pure data
from pure data, as the plan is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from typing import TypeAlias

from .packing import packings
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
    """What a node costs, and how often that is paid: pictures of `streams` streams go through `versions` sets of
    weights, in `runs` executions. The last two are equal but where versions run as one grouped operator, and where
    the node's values are only packed or unpacked, which takes no weights: `versions` is 0."""

    node: str
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
        nodes = Counter[str]()
        for use in self.uses:
            nodes[use.node] += use.streams if use.versions else 0
        return max(nodes.values(), default=0)


def layers_of(topology: Topology) -> dict[str, str]:
    """By node, in execution order: the unit to whose layer it belongs, `input` before the first."""
    found: dict[str, str] = {}
    current = "input"
    for node in topology.nodes:
        current = node.unit or current
        found[node.name] = current
    return found


def plan_works(topology: Topology, plan: Plan, costs: Costs) -> tuple[Work, ...]:
    """What `plan` does, by layer in execution order; versions that cost the same at a node are told together.

    Packing and unpacking are the layer's that reads what comes of it.
    """
    layers = layers_of(topology)
    uses: dict[str, list[Use]] = {unit: [] for unit in layers.values()}
    elements = {node.name: node.elements for node in topology.nodes}
    for each in packings(topology, plan):
        moving = Cost(activations=2 * elements[each.source], launches=1)
        uses[layers[each.reader]].append(Use(each.source, moving, each.streams, 0, each.operators))
    for node, steps in groupby(plan.steps, lambda step: step.node):
        uses[layers[node]] += _uses(node, list(steps), costs)
    return tuple(Work(unit, tuple(found)) for unit, found in uses.items())


def unpacked(works: Iterable[Work]) -> tuple[Work, ...]:
    """Without packing and unpacking, which depend on what else is in the graph."""
    return tuple(Work(work.unit, tuple(use for use in work.uses if use.versions)) for work in works)


def _uses(node: str, steps: Sequence[Step], costs: Costs) -> list[Use]:
    paid: dict[Cost, list[Step]] = {}
    for step in steps:
        for version in step.versions:
            paid.setdefault(costs.get(version, {}).get(node, costs[BASE][node]), []).append(step)
    return [
        Use(
            node,
            cost,
            streams=sum(len(step.streams) // len(step.versions) for step in mine),
            versions=len(mine),
            runs=len(dict.fromkeys(mine)),
        )
        for cost, mine in paid.items()
        if cost != NOTHING
    ]
