"""What a model of latency was fitted to, as a small file: which forks, how dear, on which host and engine, and when.

    found = read_document(LatencyModel, Path("resnet50_cpu.json"))
    found.check_host(describe())

Measurements are kept, not what was made of them: the model is fitted again in milliseconds wherever it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, TypeAlias

from .backends.base import Target
from .documents import Document
from .environment import differences
from .errors import InputError
from .measure import Protocol
from .results import Result, check_comparable
from .spec import Pruning, format_forks, format_layers
from .stats import Interval, Ratio, median

Predict: TypeAlias = Callable[[tuple[int, ...], Pruning | None], Interval]
"""Added latency, relative to the base, of a fork that was not measured."""


@dataclass(frozen=True)
class Anchor:
    """One measurement: the `forks` of a graph's tasks, how it was lowered, its `ratio` to the base.

    `classes`: of each task, empty for as many as the base has.
    """

    forks: tuple[tuple[int, ...], ...]
    ratio: Ratio
    merge: Any = "always"
    grouped: tuple[str, ...] = ()
    prune: Pruning | None = None
    classes: tuple[int, ...] = ()
    most: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.merge, list):  # JSON knows no tuples
            object.__setattr__(self, "merge", tuple(self.merge))

    @property
    def added(self) -> Interval:
        """Latency added to the base's, relative to it: 0.17 is 17 %."""
        return Interval(self.ratio.value - 1, self.ratio.low - 1, self.ratio.high - 1)

    @property
    def head(self) -> int | None:
        """As `Result.head`."""
        return self.classes[0] if len(set(self.classes)) == 1 else None

    @property
    def fork(self) -> str:
        """As `Result.fork` has it: `13-14`, `13-14 pruned 0.5 local l1`, `13-14 + 16`."""
        return " ".join(filter(None, (format_forks(self.forks), str(self.prune or ""))))

    def __str__(self) -> str:
        """`13-14 x8`, `2 + 5 pruned 0.5 local l1`."""
        counts = {fork: self.forks.count(fork) for fork in self.forks}
        words = [format_layers(fork) + (f" x{n}" if n > 1 else "") for fork, n in counts.items()]
        return " ".join(filter(None, (" + ".join(words), str(self.prune or ""))))


@dataclass(frozen=True)
class LatencyModel(Document):
    """Measurements of one backbone on one target, to predict others from.

    `network`: what the backbone is, by `backbone.architecture`. `target`: the recipe. `protocol` and `inputs` (fresh or
    hot): how it was measured. `base_seconds`: the backbone alone, median over the anchors. `host`: where, as
    `environment.describe` gives it; `fitted`: when the last anchor was measured, ISO 8601 in UTC. `anchors`: in the
    order in which they were learnt. Raises InputError for none, and for ratios that no engine can have.
    """

    kind = "calibrate"

    model: str
    input: tuple[int, ...]
    network: str
    target: Target
    protocol: Protocol
    inputs: str
    base_seconds: float
    fitted: str
    host: Mapping[str, Any]
    anchors: tuple[Anchor, ...]

    def __post_init__(self) -> None:
        if not self.anchors:
            raise InputError("a calibration has no measurement", "calibrate anew")
        for each in self.anchors:
            check_ratio(str(each), each.ratio)
            if len(each.classes) not in (0, len(each.forks)):
                raise InputError(
                    f"{each} has {len(each.forks)} tasks, and classes of {len(each.classes)}",
                    "calibrate anew",
                )
        _day(self.fitted)

    def check_network(self, model: str, network: str) -> None:
        """Raise InputError unless it is of this backbone at this input size."""
        if (self.model, self.network) != (model, network):
            size = "x".join(map(str, self.input))
            raise InputError(
                f"the calibration is of {self.model} on input {size}, not of this {model}",
                "calibrate this network, or give --model, --input-size and --blocks as they were then",
            )

    def check_host(self, host: Mapping[str, Any]) -> None:
        """Raise InputError, naming what differs, unless `host` is the one that it was fitted on."""
        if found := differences(self.host, host):
            raise InputError(
                f"the calibration is of another host or versions: {'; '.join(found)}",
                "calibrate here, or give --across to predict that host's latencies",
            )

    def __str__(self) -> str:
        day = _day(self.fitted).strftime("%Y-%m-%d %H:%M")
        engine = f"{self.target.name} ({self.target.backend}, {self.target.precision})"
        return (
            f"{engine} on {self.host.get('cpu')}, fitted {day} UTC to "
            f"{len(self.anchors)} measurements: {', '.join(map(str, self.anchors))}"
        )

    def grown(self, result: Result) -> LatencyModel:
        """With one measurement more."""
        seen = anchor(result)
        later = max(self.fitted, result.started)
        return replace(self, anchors=(*self.anchors, seen), fitted=later)


def _day(fitted: str) -> datetime:
    try:
        return datetime.fromisoformat(fitted)
    except ValueError as error:
        raise InputError(
            f"a calibration was fitted {fitted!r}, which is no date", "calibrate anew"
        ) from error


def latency_model(results: Sequence[Result], network: str, target: Target) -> LatencyModel:
    """Of results on `target` that belong together, in the order in which they are to be learnt. Raises InputError."""
    if not results:
        raise InputError(
            "there is no measurement to calibrate with", "measure a fork: give --measurements 10"
        )
    check_comparable(results)
    first = results[0]
    return LatencyModel(
        first.model,
        tuple(first.input_shape),
        network,
        target,
        first.protocol,
        first.inputs,
        median([each.base.seconds for each in results]),
        max(each.started for each in results),
        first.host,
        tuple(map(anchor, results)),
    )


def anchor(result: Result) -> Anchor:
    """What is kept of a result."""
    forks = tuple(tuple(layers) for layers in result.forks.values())
    classes = tuple(result.classes.values())
    return Anchor(
        forks, result.ratio, result.merge, tuple(result.grouped), result.prune, classes, result.most
    )


def check_ratio(fork: str, ratio: Ratio) -> None:
    """Raise InputError for one that no two engines can have."""
    if not 0 < ratio.low <= ratio.value <= ratio.high < float("inf"):  # NaN too
        raise InputError(
            f"fork {fork} is {ratio.value:g} times the base, {ratio.low:g} to {ratio.high:g}",
            "measure it again: a ratio of two times is above 0",
        )
