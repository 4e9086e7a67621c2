"""What a report shows of one graph, measured or predicted: plain values, as JSON has them.

measured_point(result, accuracy)               # {"fork": "13-14", "added": [0.28, 0.27, 0.29], "samples": {...}, ...}
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import InputError
from .latency_model import Anchor, LatencyModel, anchor
from .pareto import check_interval
from .results import Result
from .spec import format_forks
from .stats import Interval
from .tradeoff import accuracies, predictable
from .tuning.documents import Profile

if TYPE_CHECKING:
    from .predictor import Predictor

STATUSES = ("measured", "predicted", "not run on hardware")
"""Where a point's latency comes from."""

BINS = 36
REACH = 95.0
"""Per cent of the samples that a histogram shows; the slowest are counted, not drawn."""


@dataclass(frozen=True)
class Predicted:
    """Graphs that were not measured on `target`, whose base alone takes `base_seconds`; by what `model`, in words."""

    target: str
    base_seconds: float
    anchors: tuple[Anchor, ...]
    model: str


def predictions(
    profile: Profile, results: Sequence[Result], predictor: Predictor, found: LatencyModel
) -> Predicted:
    """Forks of the profile that were not measured on the target of `found`, as many tasks and classes as were."""
    measured = [anchor(each) for each in results if each.target == found.target.name]
    known = {(each.forks, each.prune, each.head) for each in measured}
    wanted = [
        replace(predictor, classes=classes).predicted(row.layers, count, row.prune)
        for count, classes in dict.fromkeys((len(each.forks), each.head) for each in measured)
        for row in predictable(profile)
        if ((row.layers,) * count, row.prune, classes) not in known
    ]
    return Predicted(found.target.name, found.base_seconds, tuple(wanted), str(found))


def predicted_points(
    predicted: Predicted, profile: Profile | None, targets: Sequence[str]
) -> list[dict[str, Any]]:
    """Without samples. Raises InputError where none of the `targets` is theirs."""
    if predicted.target not in targets:
        raise InputError(
            f"the calibration is of target {predicted.target}, the runs of {', '.join(dict.fromkeys(targets))}",
            "give runs of that target too",
        )
    found = accuracies(profile, predicted.anchors) if profile else [None] * len(predicted.anchors)
    base = _milliseconds(predicted.base_seconds)
    return [
        _graph(each, accuracy) | {
            "status": STATUSES[1],
            "base": [base, None, None, None],
            "graph": [_milliseconds(predicted.base_seconds * part) for part in astuple(each.ratio)] + [None],
            "samples": None,
            "rounds": 0,
            "settled": True,
            "started": "",
            "target": targets.index(predicted.target),
            "warnings": [],
        }
        for each, accuracy in zip(predicted.anchors, found, strict=True)
    ]  # fmt: skip


def _graph(each: Anchor, accuracy: Interval | None) -> dict[str, Any]:
    """What is known of a graph, measured or predicted."""
    check_interval(each.fork, "added latency", each.added)
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
