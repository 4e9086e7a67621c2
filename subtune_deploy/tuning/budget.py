"""What a fork may cost: parameters, and added latency, measured or predicted. No torch here.

budget = Budget({1: 900, 2: 3600}, head=70, max_parameters=2000)
budget.allows(frozenset({1}))                    # True
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from ..errors import InputError
from ..results import Result, check_comparable, check_one_batch, nearest_heads, of_target, read_results
from ..run_folder import check_blocks
from ..spec import format_layers
from .documents import Cost

if TYPE_CHECKING:
    from ..backbone import Backbone

Layers: TypeAlias = frozenset[int]


class Added(NamedTuple):
    """Latency that a fork adds, relative to the base (0.1 is 10 %), and how that is known, see `Cost`."""

    value: float
    estimated: bool = False
    predicted: bool = False


Latency: TypeAlias = Callable[[Layers], Added]


@dataclass(frozen=True)
class Budget:
    """`parameters`: of each block, and `head`: of a task's new head; `latency`: what a fork adds, if that counts.

    Raises InputError for limits that are not above 0.
    """

    parameters: Mapping[int, int]
    head: int = 0
    latency: Latency | None = None
    max_parameters: int | None = None
    max_added: float | None = None

    def __post_init__(self) -> None:
        for limit in (self.max_parameters, self.max_added):
            if limit is not None and not limit > 0:
                raise InputError(f"a budget of {limit} allows nothing", "give a limit above 0")

    def cost(self, fork: Collection[int]) -> Cost:
        """Of the fork with its head."""
        parameters = self.head + sum(self.parameters[layer] for layer in fork)
        return Cost(parameters, *(self.latency(frozenset(fork)) if self.latency else ()))

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


def as_timed(latencies: Mapping[Layers, float]) -> Latency:
    """What was timed. A fork that was not is taken to be as slow as the slowest timed one that lies in it.

    That is a lower bound: whatever else it tunes can only add.
    """

    def added(fork: Layers) -> Added:
        if fork in latencies:
            return Added(latencies[fork])
        parts = (latencies[part] for part in latencies if part <= fork)
        return Added(max(parts, default=0.0), estimated=True)

    return added


def added_latencies(
    path: Path, backbone: Backbone, target: str | None = None, classes: int | None = None
) -> dict[Layers, float]:
    """Added latency of one task by its fork, not pruned, from the results of a sweep of `backbone` on one target.

    `classes`: of the task; of each fork the nearest number that was timed.

    Raises InputError where they are of another model, input or block table, or of several targets, do not belong
    together, or lack one of the single blocks, without which nothing is known of a longer fork.
    """
    results = [each for each in read_results(path) if each.tasks == 1 and each.prune is None]
    _check_network(path, results, backbone)
    chosen = nearest_heads(of_target(path, results, target), classes)
    check_comparable(chosen)
    check_one_batch(path, chosen)
    found = {frozenset(each.layers): each.added for each in chosen}
    if missing := [layer for layer in range(1, len(backbone.blocks) + 1) if frozenset({layer}) not in found]:
        heads = f" --classes {classes}" if classes else ""
        raise InputError(
            f"{path} has no latency of block {format_layers(missing)} by itself",
            f"measure all: subtune-deploy sweep --model {backbone.name} --span 1{heads} -o {path}",
        )
    return found


def _check_network(path: Path, results: Sequence[Result], backbone: Backbone) -> None:
    model, shape = backbone.name, backbone.input.shape
    others = dict.fromkeys(each.model for each in results if each.model != model)
    if others or not results:
        what = f"is of {', '.join(others)}, not of {model}" if others else "has no result with one task"
        raise InputError(f"{path} {what}", f"sweep {model}, or give the run of its sweep")
    check_blocks(path, [block.name for block in backbone.blocks], model)
    if other := next((each.input_shape for each in results if each.input_shape != shape), None):
        sizes = ("x".join(map(str, each)) for each in (other, shape))
        raise InputError(
            "{} was measured on input {}, where {} is trained on".format(path, *sizes),
            "give both of one size",
        )
