"""What was measured, as versioned JSON lines: one `Result` a line, raw samples in seconds included.

    for result in read_results("runs/resnet50"):     # a sweep's folder, a .jsonl file, or a bundle
        print(result.fork, result.tasks, f"{result.added:+.1%}")

The schema is docs/results.schema.json; `schema()` makes it from the records below.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .backends.base import ROLES
from .bundle import open_bundle
from .environment import differences
from .errors import InputError
from .lines import append_line, read_lines
from .manifest import MANIFEST
from .measure import Protocol
from .records import json_schema, to_plain, to_record
from .spec import Pruning, format_forks
from .stats import Ratio

SCHEMA = 1
LINES = "results.jsonl"
"""In a sweep's folder: its results."""


@dataclass(frozen=True)
class Timing:
    """One engine. Times in seconds, host to host; sizes in bytes.

    `seconds` is what the protocol calls latency: the median; of several repeats the mean of their medians, of several
    loads the median of theirs. `low` and `high` are the 95 % interval that would hold if samples (repeats, loads) were
    independent. `peak_rss_bytes` is of a process that does nothing but run this engine; null where not measured.
    """

    seconds: float
    low: float
    high: float
    p50: float
    p95: float
    p99: float
    worst: float
    engine_bytes: int
    peak_rss_bytes: int | None = None


@dataclass(frozen=True)
class Result:
    """What a graph with all its tasks costs beside the backbone alone, measured interleaved.

    `batch`: pictures per call, null for a graph that takes any number (then measured with the fewest that the engine
    takes). `layers`: blocks that any task tuned; `forks`: those of each task; `prune`: how all were made thinner, if
    they were; `classes`: of each task, empty from an older version, which gave all as many as the base has. `merge`:
    always, never, or the nodes that merge, `most` streams in one batch at most, 0 for any number; `grouped`: units
    lowered as one operator.
    `options` and `keep`: as in the engine's recipe, but for paths; null from an older version.
    `inputs`: fresh, or hot for the flattered number. `ratio`: graph over base, host to host; `device_ratio`: of the
    device's own work, where engines tell it. `samples` and `device`: raw seconds by engine (base, graph), index i of
    each from round i; `loads`: rounds of each load of the two, empty for one load, or an older version.
    """

    model: str
    weights: str
    input_shape: tuple[int, ...]
    batch: int | None
    layers: tuple[int, ...]
    forks: Mapping[str, tuple[int, ...]]
    merge: Any
    grouped: tuple[str, ...]
    target: str
    backend: str
    precision: str
    threads: int
    protocol: Protocol
    inputs: str
    ratio: Ratio
    settled: bool
    base: Timing
    graph: Timing
    started: str
    host: Mapping[str, Any]
    conditions: Mapping[str, Any]
    warnings: tuple[str, ...]
    samples: Mapping[str, tuple[float, ...]]
    device_ratio: Ratio | None = None
    device: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    prune: Pruning | None = None
    classes: Mapping[str, int] = field(default_factory=dict)
    most: int = 0
    loads: tuple[int, ...] = ()
    options: Mapping[str, Any] | None = None
    keep: tuple[str, ...] | None = None

    @property
    def added(self) -> float:
        """Added latency relative to the base: 0.17 is 17 %."""
        return self.ratio.value - 1

    @property
    def tasks(self) -> int:
        """Tasks beside the base."""
        return len(self.forks)

    @property
    def head(self) -> int | None:
        """Classes of every task; None where they differ, or are not told."""
        found = set(self.classes.values())
        return found.pop() if len(found) == 1 else None

    @property
    def subject(self) -> tuple[object, ...]:
        """What of a backbone it is of, heads aside: the same for two measurements of one graph."""
        lowered = str(self.merge), self.grouped, self.most
        return self.target, self.batch, tuple(sorted(self.forks.items())), self.prune, lowered

    @property
    def fork(self) -> str:
        """`"13-14"`, `"13-14 pruned 0.5 local l1"`; tasks with different forks are told apart: `"13-14 + 16"`."""
        return f"{self.forked} {self.prune}" if self.prune else self.forked

    @property
    def forked(self) -> str:
        """The same without what was pruned."""
        return format_forks(self.forks.values())


def to_document(result: Result) -> dict[str, Any]:
    """What JSON holds: `schema` and `added` beside the fields, samples to the nanosecond."""
    document = {"schema": SCHEMA, "added": result.added, **to_plain(result)}
    for name in ("samples", "device"):
        document[name] = {key: [round(s, 9) for s in taken] for key, taken in document[name].items()}
    return document


def from_document(document: object, place: str = "the result") -> Result:
    """The inverse, from parsed JSON. Raises InputError, naming `place`."""
    given = document.get("schema") if isinstance(document, dict) else None
    if given != SCHEMA:
        raise InputError(f"{place} has schema version {given!r}, expected {SCHEMA}", "update subtune-deploy")
    assert isinstance(document, dict)
    fields = {key: value for key, value in document.items() if key not in ("schema", "added")}
    try:
        result = to_record(Result, fields)
    except InputError as error:
        raise InputError(f"{place}: {error.message}", error.hint) from error
    counts = {len(result.samples.get(role, ())) for role in ROLES}
    if len(counts) != 1 or 0 in counts:
        raise InputError(f"{place} has not as many samples of base and graph", "measure again")
    return result


def append_result(path: Path, result: Result) -> None:
    """Add a line, on the disk when this returns."""
    append_line(path, to_document(result))


def read_results(path: Path | str) -> tuple[Result, ...]:
    """Results of a sweep's folder, a file of JSON lines, or a bundle that was benched, in the order taken.

    The torn last line of a process that was killed is no result. Raises InputError, BundleError.
    """
    path = Path(path)
    if (path / MANIFEST).is_file():
        found = [(path / MANIFEST, each) for each in open_bundle(path).manifest.measurements]
        return tuple(from_document(dict(each), str(place)) for place, each in found)
    lines = path / LINES if path.is_dir() else path
    if not lines.is_file():
        raise InputError(
            f"{path} holds no results", "give a sweep's folder, a .jsonl file, or a benched bundle"
        )
    return tuple(from_document(document, place) for place, document in read_lines(lines))


def of_target(path: Path, results: Sequence[Result], target: str | None = None) -> list[Result]:
    """Those of `path` that are on `target`, or on its only one. Raises InputError, naming the targets."""
    targets = list(dict.fromkeys(each.target for each in results))
    if target is None and len(targets) > 1:
        raise InputError(f"{path} is of several targets: {', '.join(targets)}", f"give --target {targets[0]}")
    chosen = [each for each in results if target in (None, each.target)]
    if not chosen:
        raise InputError(f"{path} has no result on {target}", f"give one of {', '.join(targets)}")
    return chosen


def nearest_heads(results: Iterable[Result], classes: int | None) -> list[Result]:
    """Of graphs that differ in their heads alone, the one whose tasks come nearest to so many classes; None: all.

    Where a number is not told it is the base's, which is taken to be the farthest. Of equals the latest stays.
    """
    if classes is None:
        return list(results)
    kept = dict[Any, tuple[float, Result]]()
    for each in results:
        far = abs(each.head - classes) if each.head else math.inf
        if each.subject not in kept or far <= kept[each.subject][0]:
            kept[each.subject] = far, each
    return [each for _, each in kept.values()]


def check_comparable(results: Iterable[Result]) -> None:
    """Raise InputError, naming what differs, unless all were measured on one host in one way."""
    first, *others = results
    for other in others:
        if found := mixed(first, other):
            raise InputError(
                f"these results do not belong together: {'; '.join(found)}",
                "measure all on one host in one way, or give --across to see them together all the same",
            )


def check_one_batch(path: Path, results: Iterable[Result]) -> None:
    """Raise InputError where one fork could have two latencies: one for each size of batch."""
    sizes = dict.fromkeys(str(each.batch or "dynamic") for each in results)
    if len(sizes) > 1:
        raise InputError(
            f"{path} was measured with several batches: {', '.join(sizes)}", "give the results of one"
        )


def mixed(one: Result, other: Result) -> list[str]:
    """How the ways in which two results were measured differ, fork and task count aside."""
    ways = (
        ("protocol", _told(one.protocol), _told(other.protocol)),
        ("inputs", one.inputs, other.inputs),
        ("input size", one.input_shape, other.input_shape),
        *(_recipes(one, other) if one.target == other.target else ()),
    )
    found = [f"{what} {left} / {right}" for what, left, right in ways if left != right]
    return [*differences(one.host, other.host), *found]


def _recipes(one: Result, other: Result) -> Iterator[tuple[str, object, object]]:
    """As far as both tell theirs."""
    yield "precision", one.precision, other.precision
    if one.options is not None and other.options is not None:
        yield "options", dict(one.options), dict(other.options)
        yield "units in float32", one.keep, other.keep


def _told(protocol: Protocol) -> str:
    if protocol.rounds:
        return f"{protocol.name} {protocol.repeats} x ({protocol.warmup} + {protocol.rounds})"
    loads = f" over {protocol.loads} loads" if protocol.loads > 1 else ""
    return f"{protocol.name} {protocol.precision:.2%} in {protocol.seconds:g} s{loads}"


def schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of one line."""
    document = json_schema(Result)
    document["properties"] |= {"schema": {"const": SCHEMA}, "added": {"type": "number"}}
    document["required"] += ["schema", "added"]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "subtune-deploy result",
        **document,
    }
