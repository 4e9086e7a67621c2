"""What a fork may cost: parameters, and added latency as a sweep measured it. No torch here.

budget = Budget({1: 900, 2: 3600}, head=70, max_parameters=2000)
budget.allows(frozenset({1}))                    # True
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from ..errors import InputError
from ..results import Result, check_comparable, nearest_heads, of_target, read_results
from ..spec import format_layers
from .documents import Cost

Layers: TypeAlias = frozenset[int]


@dataclass(frozen=True)
class Budget:
    """`parameters`: of each block, and `head`: of a task's new head; `latencies`: added, by fork (0.1 is 10 %).

    Raises InputError for limits that are not above 0.
    """

    parameters: Mapping[int, int]
    head: int = 0
    latencies: Mapping[Layers, float] = field(default_factory=dict)
    max_parameters: int | None = None
    max_added: float | None = None

    def __post_init__(self) -> None:
        for limit in (self.max_parameters, self.max_added):
            if limit is not None and not limit > 0:
                raise InputError(f"a budget of {limit} allows nothing", "give a limit above 0")

    def cost(self, fork: Collection[int]) -> Cost:
        """A fork that was not timed is taken to be as slow as the slowest timed fork that lies in it.

        That is a lower bound: whatever else it tunes can only add.
        """
        parameters = self.head + sum(self.parameters[layer] for layer in fork)
        if not self.latencies:
            return Cost(parameters)
        own = frozenset(fork)
        timed = own in self.latencies
        parts = [own] if timed else [part for part in self.latencies if part <= own]
        return Cost(parameters, max((self.latencies[part] for part in parts), default=0.0), not timed)

    def allows(self, fork: Collection[int]) -> bool:
        """Whether the fork is within the limits."""
        return self._excess(self.cost(fork)) <= 1

    def check(self) -> None:
        """Raise InputError, naming the nearest, if no single block is within the limits."""
        nearest = min(self.parameters, key=lambda layer: self._excess(self.cost({layer})))
        cost = self.cost({nearest})
        if self._excess(cost) > 1:
            latency = "" if cost.added is None else f" and adds {cost.added:.1%} of latency"
            raise InputError(
                f"no fork is within {self}: the nearest, block {nearest}, has {cost.parameters:,} parameters "
                f"with its head{latency}",
                "raise the limit",
            )

    def _excess(self, cost: Cost) -> float:
        """How often the cost contains its limit; the largest of these."""
        parameters = cost.parameters / self.max_parameters if self.max_parameters else 0.0
        return max(parameters, (cost.added or 0.0) / self.max_added if self.max_added else 0.0)

    def __str__(self) -> str:
        parts = (
            "" if self.max_parameters is None else f"{self.max_parameters:,} parameters",
            "" if self.max_added is None else f"{self.max_added:.1%} of added latency",
        )
        return " and ".join(filter(None, parts)) or "any budget"


def added_latencies(
    path: Path, model: str, blocks: int, target: str | None = None, classes: int | None = None
) -> dict[Layers, float]:
    """Added latency of one task by its fork, not pruned, from the results of a sweep of `model` on one target.

    `classes`: of the task; of each fork the nearest number that was timed.

    Raises InputError where they are of another model or of several targets, do not belong together, or lack one
    of the single `blocks`, without which nothing is known of a longer fork.
    """
    results = [each for each in read_results(path) if each.tasks == 1 and each.prune is None]
    _check_model(path, results, model)
    chosen = nearest_heads(of_target(path, results, target), classes)
    check_comparable(chosen)
    found = {frozenset(each.layers): each.added for each in chosen}
    if missing := [layer for layer in range(1, blocks + 1) if frozenset({layer}) not in found]:
        heads = f" --classes {classes}" if classes else ""
        raise InputError(
            f"{path} has no latency of block {format_layers(missing)} by itself",
            f"measure all: subtune-deploy sweep --model {model} --span 1{heads} -o {path}",
        )
    return found


def _check_model(path: Path, results: Sequence[Result], model: str) -> None:
    others = dict.fromkeys(each.model for each in results if each.model != model)
    if others or not results:
        what = f"is of {', '.join(others)}, not of {model}" if others else "has no result with one task"
        raise InputError(f"{path} {what}", f"sweep {model}, or give the run of its sweep")
