"""Other plans for the tasks of a plan: packed or grouped otherwise, by what is special about them.

ways_to_pack(backbone, tasks, plan)["not merged"]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from .backbone import Backbone
from .build import grouped_units, plan_as
from .plan import Merge, Plan
from .tasks import Task

LATE, SINGLE = 3, 4
"""Stages at which packing may begin, and forked blocks up to which each is tried as the only grouped one."""
BATCHES = (4, 8, 16)
"""Streams that are packed at most, where there are more."""

Plans = Mapping[str, Plan]


def ways_to_pack(backbone: Backbone, tasks: Sequence[Task], plan: Plan) -> Plans:
    """Packing always, never, not before the next stages of the backbone begin, or no more than some streams at once."""
    nodes = backbone.topology.nodes
    always = plan_as(backbone, tasks, "always", plan.grouped, plan.apart)
    if not always.rejoins:
        return {}
    first = [node.name for node in nodes].index(always.rejoins[0])
    late = [place for place in _stage_starts(backbone) if place > first][:LATE]
    ways: dict[str, Merge] = {"merged": "always", "not merged": "never"}
    ways |= {
        f"merged from {nodes[place].name} on": tuple(node.name for node in nodes[place:] if node.macs)
        for place in late
    }
    plans = {name: plan_as(backbone, tasks, way, plan.grouped, plan.apart) for name, way in ways.items()}
    widest = max(len(step.streams) for step in always.steps)
    return plans | {
        f"merged by {most}": plan_as(backbone, tasks, "always", plan.grouped, plan.apart, most)
        for most in BATCHES
        if most < widest
    }


def _stage_starts(backbone: Backbone) -> list[int]:
    """Places of the nodes at which a block begins whose answers have another shape than those of the block before."""
    units = [node.unit for node in backbone.topology.nodes]
    starts = [f"block{b.index}" for a, b in pairwise(backbone.blocks) if a.output_shape != b.output_shape]
    return [units.index(unit) for unit in starts if unit in units]


def ways_to_group(backbone: Backbone, tasks: Sequence[Task], plan: Plan) -> Plans:
    """Branches, or all forked blocks grouped that can be, or one of them; all need a fixed batch."""
    units = grouped_units(backbone, tasks, plan.apart)
    singles = [(unit,) for unit in units] if 1 < len(units) <= SINGLE else []
    ways = {"branches": (), **{f"grouped {', '.join(way)}": way for way in (units, *singles) if way}}
    return {
        name: plan_as(backbone, tasks, plan.merge, way, plan.apart, plan.most) for name, way in ways.items()
    }


def distinct(plans: Plans, best: Plan) -> dict[str, Plan]:
    """Those whose steps are not those of `best`, nor of one before."""
    found, seen = dict[str, Plan](), [best.steps]
    for name, plan in plans.items():
        if plan.steps not in seen:
            seen.append(plan.steps)
            found[name] = plan
    return found
