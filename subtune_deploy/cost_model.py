"""Latency from a formula: layers compute while the next layer's weights are loaded (paper, section 4.1).

    machine = machine_of(load_target("l4"))
    times = plan_times(works, machine)                 # a LayerTime for each layer of any plan
    total(times)                                       # seconds

`plan_times` is the paper's model for any plan: layer i takes the longer of its streams' arithmetic and the next
layer's weights, and no less than its launches. `paper_total` is the formula for one task exactly as it is printed.
Neither has been fitted to anything; datasheet rates are peaks, which no engine reaches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from .backends.base import Target
from .errors import InputError, LayersError
from .targets import in_base_units
from .work import Work, unpacked

BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}
"""Of one element, by precision."""


@dataclass(frozen=True)
class Machine:
    """`compute` in MAC/s, `bandwidth` in byte/s, `launch` in seconds for each operator; `width`: bytes an element."""

    compute: float
    bandwidth: float
    width: int = 4
    launch: float = 0.0


def machine_of(target: Target) -> Machine:
    """The peak rates of a recipe's datasheet. Raises InputError where it has none."""
    rates = {name: in_base_units(name, rate) for name, rate in target.datasheet.items()}
    if missing := [name for name in ("compute", "bandwidth") if name not in rates]:
        raise InputError(
            f"target {target.name} has no datasheet number for {' and '.join(missing)}",
            "add [datasheet.compute] and [datasheet.bandwidth] to its recipe, or calibrate on measurements",
        )
    return Machine(rates["compute"], rates["bandwidth"], BYTES[target.precision], rates.get("launch", 0.0))


@dataclass(frozen=True)
class LayerTime:
    """Seconds of one layer: its arithmetic, the loading of the next layer's weights, its launches."""

    unit: str
    compute: float
    load: float
    launch: float

    @property
    def seconds(self) -> float:
        """All three overlap."""
        return max(self.compute, self.load, self.launch)


def plan_times(works: Sequence[Work], machine: Machine, batch: int = 1) -> tuple[LayerTime, ...]:
    """The longest of `batch` times each stream's arithmetic, the next layer's weights, and the launches, by layer.

    The first layer's own weights are not waited for, as in the paper's single-task time; nor is packing, which it does
    not know.
    """
    works = unpacked(works)
    loads = [work.weights * machine.width / machine.bandwidth for work in works[1:]] + [0.0]
    return tuple(
        LayerTime(work.unit, batch * work.macs / machine.compute, load, work.launches * machine.launch)
        for work, load in zip(works, loads, strict=True)
    )


def total(times: Sequence[LayerTime]) -> float:
    """Seconds."""
    return sum(each.seconds for each in times)


def least_added(base: Sequence[LayerTime], times: Sequence[LayerTime]) -> float:
    """Seconds that what was added to `base` adds to any other plan of its layers at the least.

    Of each layer's arithmetic, loading and launches, whichever is longest there has grown by as much as the one
    that grew least; what takes no time in a layer is never the longest.
    """
    names = ("compute", "load", "launch")
    pairs = zip(base, times, strict=True)
    return sum(
        min((getattr(b, name) - getattr(a, name) for name in names if getattr(b, name)), default=0.0)
        for a, b in pairs
    )


# As printed. `compute` and `loads` are c and s of the single-task network, by layer


def paper_total(compute: Sequence[float], loads: Sequence[float], first: int, last: int) -> float:
    """Section 4.1 exactly as printed: seconds of two tasks, the second forked on layers `first` to `last`, from 1.

        max(2 s_a, c_(a-1)) + sum_(a..b) 2 max(c_i, s_(i+1)) + sum_(b+1..N-1) max(2 c_i, s_(i+1)) + 2 c_N

    It leaves out the layers before a-1 (`paper_shared`), and at i = b charges 2 s_(b+1) although that layer is loaded
    once. c_0 is 0. Raises LayersError unless 1 <= first <= last < N: as printed, a fork of layer N counts it twice.
    """
    count = _checked(compute, loads)
    if not 1 <= first <= last < count:
        raise LayersError(
            f"layers {first} to {last} of {count}", f"give 1 to {count - 1}: the head follows what is forked"
        )
    c, s = (0.0, *compute), (0.0, *loads)
    return (
        max(2 * s[first], c[first - 1])
        + sum(2 * max(c[i], s[i + 1]) for i in range(first, last + 1))
        + sum(max(2 * c[i], s[i + 1]) for i in range(last + 1, count))
        + 2 * c[count]
    )


def paper_shared(compute: Sequence[float], loads: Sequence[float], first: int) -> float:
    """What `paper_total` leaves out: the layers before `first` - 1, which are paid once."""
    return sum(max(c, s) for c, s in list(_pairs(compute, loads))[: max(first - 2, 0)])


def paper_single(compute: Sequence[float], loads: Sequence[float]) -> float:
    """The same overlap for one task alone: sum_(i<N) max(c_i, s_(i+1)) + c_N."""
    _checked(compute, loads)
    return sum(max(c, s) for c, s in _pairs(compute, loads)) + compute[-1]


def paper_added(compute: Sequence[float], loads: Sequence[float], first: int, last: int) -> float:
    """Added latency relative to the single task, the shared layers put back: 0.17 is 17 %."""
    both = paper_total(compute, loads, first, last) + paper_shared(compute, loads, first)
    return both / paper_single(compute, loads) - 1


def paper_of_blocks(alone: Sequence[LayerTime], fork: Sequence[int]) -> float:
    """`paper_added` of a fork of the consecutive blocks `fork`, by the times of the backbone's layers, `alone`."""
    units, compute = [each.unit for each in alone], [each.compute for each in alone]
    loads = [0.0, *(each.load for each in alone[:-1])]
    first, last = (units.index(f"block{layer}") + 1 for layer in (fork[0], fork[-1]))
    return paper_added(compute, loads, first, last)


def _pairs(compute: Sequence[float], loads: Sequence[float]) -> list[tuple[float, float]]:
    """(c_i, s_(i+1)) of all layers but the last."""
    return [(c, following) for c, (_, following) in zip(compute, pairwise(loads), strict=False)]


def _checked(compute: Sequence[float], loads: Sequence[float]) -> int:
    if len(compute) != len(loads) or len(compute) < 2:
        raise LayersError(
            f"{len(compute)} times of layers and {len(loads)} of their weights", "give both for each layer"
        )
    return len(compute)
