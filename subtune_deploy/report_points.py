"""What a report shows of one graph, measured or predicted: plain values, as JSON has them.

measured_point(result, accuracy)               # {"fork": "13-14", "added": [0.28, 0.27, 0.29], "samples": {...}, ...}
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .backends.base import Target
from .cost_model import machine_of, plan_times, total
from .environment import differences
from .errors import InputError
from .latency_model import Anchor, LatencyModel, anchor
from .pareto import check_added, check_interval
from .results import Result
from .spec import format_forks
from .stats import Interval, Ratio
from .tradeoff import accuracies, predictable
from .tuning.documents import Profile, Row

if TYPE_CHECKING:
    from .predictor import Costing, Predictor

STATUSES = ("measured", "predicted", "not run on hardware")
"""Where a point's latency comes from."""

BINS = 36
REACH = 95.0
"""Per cent of the samples that a histogram shows; the slowest are counted, not drawn."""


@dataclass(frozen=True)
class Predicted:
    """Graphs that were not measured on `target`, whose base alone takes `base_seconds`; by what `model`, in words.

    `precision`: of its engines. `status`: predicted from measurements there, or not run on hardware.
    """

    target: str
    base_seconds: float
    anchors: tuple[Anchor, ...]
    model: str
    precision: str = "fp32"
    status: str = STATUSES[1]


def predictions(
    profile: Profile,
    results: Sequence[Result],
    predictor: Predictor,
    found: LatencyModel,
    *,
    across: bool = False,
) -> Predicted:
    """Forks of the profile that were not measured on the target of `found`, as many tasks and classes as were.

    Raises InputError where the target was measured on another host than that of `found`, unless `across`.
    """
    target = found.target
    here = next((each for each in results if each.target == target.name), None)
    if here and not across and (other := differences(here.host, found.host)):
        raise InputError(
            f"the runs on {target.name} and its calibration are of two hosts or versions: {'; '.join(other)}",
            "give a calibration of that host, or --across",
        )
    wanted = tuple(
        replace(predictor, classes=classes).predicted(row.layers, count, row.prune)
        for row, count, classes in _wanted(profile, results, target.name)
    )
    return Predicted(target.name, found.base_seconds, wanted, f"By {found}.", target.precision)


def from_datasheet(
    profile: Profile, results: Sequence[Result], costing: Costing, target: Target
) -> Predicted:
    """The same for a device that is not here, by the paper's overlap with peak rates; how far off that is nobody knows.

    Raises InputError where the recipe has no datasheet.
    """
    machine = machine_of(target)
    base = total(plan_times(costing.base, machine))

    def graph(row: Row, count: int, classes: int | None) -> Anchor:
        works = costing.works([row.layers] * count, row.prune, classes)
        ratio = Ratio(total(plan_times(works, machine)) / base, -math.inf, math.inf)
        heads = (classes,) * count if classes else ()
        return Anchor((row.layers,) * count, ratio, prune=row.prune, classes=heads)

    wanted = tuple(graph(*each) for each in _wanted(profile, results, target.name))
    told = f"{target.name}: calculated from its datasheet; nothing was run on such a device, and no interval is known."
    return Predicted(target.name, base, wanted, told, target.precision, STATUSES[2])


def _wanted(
    profile: Profile, results: Sequence[Result], target: str
) -> Iterator[tuple[Row, int, int | None]]:
    """Forks of the profile, with as many tasks and classes as were measured on the target, or else on others.

    What was measured with more pictures at once is not what is predicted.
    """
    here = [anchor(each) for each in results if each.target == target and each.batch in (1, None)]
    known = {(each.forks, each.prune, each.head) for each in here}
    ways = dict.fromkeys((len(each.forks), each.head) for each in here or map(anchor, results))
    for count, classes in ways:
        for row in predictable(profile):
            if ((row.layers,) * count, row.prune, classes) not in known:
                yield row, count, classes


def predicted_points(predicted: Predicted, profile: Profile | None, place: int) -> list[dict[str, Any]]:
    """Without samples; `place`: index of the target."""
    found = accuracies(profile, predicted.anchors) if profile else [None] * len(predicted.anchors)
    base = _milliseconds(predicted.base_seconds)
    return [
        _graph(each, accuracy) | {
            "status": predicted.status,
            "base": [base, None, None, None],
            "graph": [_milliseconds(predicted.base_seconds * part) for part in astuple(each.ratio)] + [None],
            "samples": None,
            "rounds": 0,
            "settled": True,
            "started": "",
            "target": place,
            "warnings": [],
        }
        for each, accuracy in zip(predicted.anchors, found, strict=True)
    ]  # fmt: skip


def _graph(each: Anchor, accuracy: Interval | None) -> dict[str, Any]:
    """What is known of a graph, measured or predicted."""
    check_interval(each.fork, "added latency", each.added)
    check_added(each.fork, each.added)
    if accuracy:
        check_interval(each.fork, "accuracy", accuracy)
    return {
        "fork": each.fork,
        "name": _short(each),
        "layers": sorted({layer for fork in each.forks for layer in fork}),
        "forks": [list(layers) for layers in each.forks],
        "pruned": each.prune is not None,
        "tasks": len(each.forks),
        "added": bounds(each.added),
        "accuracy": accuracy and bounds(accuracy),
    }


def measured_point(result: Result, accuracy: Interval | None) -> dict[str, Any]:
    """With its samples as a histogram."""
    return _graph(anchor(result), accuracy) | {
        "status": STATUSES[0],
        "base": [_milliseconds(getattr(result.base, name)) for name in ("seconds", "low", "high", "p99")],
        "graph": [_milliseconds(getattr(result.graph, name)) for name in ("seconds", "low", "high", "p99")],
        "samples": histogram(result.samples),
        "rounds": len(result.samples["graph"]),
        "settled": result.settled,
        "started": result.started,
    }


def _short(each: Anchor) -> str:
    """What stands beside a point: how a graph was lowered only where that is unusual."""
    thinner = f", pruned {each.prune.ratio:g}" if each.prune else ""
    apart = {"always": f", merged by {each.most}" if each.most else "", "never": ", not merged"}
    merged = apart.get(str(each.merge), ", partly merged")
    return f"{format_forks(each.forks)}{thinner}{merged}{', grouped' if each.grouped else ''}"


def bounds(interval: Interval) -> list[float | None]:
    """Unrounded, since equals must stay equal; null for a bound that is none."""
    return [_finite(each) for each in (interval.value, interval.low, interval.high)]


def _milliseconds(seconds: float) -> float | None:
    return float(f"{1e3 * seconds:.6g}") if math.isfinite(seconds) else None


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def histogram(samples: Mapping[str, Sequence[float]]) -> dict[str, Any] | None:
    """Counts in `BINS` equal bins from the fastest on, in ms; `beyond`: how many were slower than the last."""
    taken = {name: np.array(samples[name]) * 1e3 for name in ("base", "graph")}
    taken = {name: values[np.isfinite(values)] for name, values in taken.items()}
    if not all(len(values) for values in taken.values()):
        return None
    low = min(float(values.min()) for values in taken.values())
    high = max(float(np.percentile(values, REACH)) for values in taken.values())
    high = high if high > low else low + max(abs(low), 1e-6) / 100
    counts = {name: np.histogram(values, BINS, (low, high))[0].tolist() for name, values in taken.items()}
    beyond = [int((values > high).sum()) for values in taken.values()]
    return {"low": float(f"{low:.6g}"), "high": float(f"{high:.6g}"), **counts, "beyond": beyond}
