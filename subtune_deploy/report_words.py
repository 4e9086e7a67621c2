"""What a report says in words: what was measured, where and how, what it leaves out. Pure; lines of plain text.

for note in notes(results, profile, accuracies):
    print(note["title"], *note["lines"], sep="\\n  ")
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .environment import INFERENCE, identity
from .latency_model import anchor
from .results import Result
from .stats import Interval
from .tradeoff import other_heads
from .tuning.documents import Profile
from .tuning.drawing import caption

LISTED = 12
"""Forks that are named before it is only told how many more there are."""

Note = dict[str, Any]


def title(results: Sequence[Result]) -> str:
    """`"Forks of resnet18 at 3×64×64"`"""
    return f"Forks of {results[0].model} at {'×'.join(map(str, results[0].input_shape))}"


def label(result: Result, results: Sequence[Result]) -> str:
    """A target's name; its batch where there are several, its host where there are several."""
    batches = {each.batch for each in results if each.target == result.target}
    hosts = {_host_key(each) for each in results}
    batch = f", batch {result.batch or 'of any size'}" if len(batches) > 1 else ""
    return f"{result.target}{batch}{f' on {host_name(result.host)}' if len(hosts) > 1 else ''}"


def host_name(host: Mapping[str, Any]) -> str:
    """Its processor, and its GPUs where it has some."""
    names = [host.get("cpu") or host.get("machine") or "an unknown host"]
    names += [gpu.get("name") for gpu in host.get("gpus") or () if isinstance(gpu, Mapping)]
    return ", ".join(str(name) for name in names)


def _host_key(result: Result) -> str:
    return str(sorted((key, str(value)) for key, value in identity(result.host).items()))


def target_facts(results: Sequence[Result]) -> list[str]:
    """Lines on one target: what ran, where, when, how, and what makes it doubtful."""
    first = results[0]
    return [
        f"{_count(len(results), 'graph')} measured with {first.backend} in {first.precision}, "
        f"{_threads(first.threads)}, {_batch(first.batch)}.",
        f"Host: {_host(first.host)}.",
        f"Versions: {_versions(first.host)}.",
        f"Date: {_dates(results)}.",
        f"Protocol: {_protocol(first)}.",
        *_doubts(results),
    ]


def notes(
    results: Sequence[Result],
    profile: Profile | None,
    found: Sequence[Interval | None],
    missing: str | None = None,
) -> list[Note]:
    """Titled lines on what all targets share. `missing`: why there is no breakdown."""
    return [
        {"title": "Measured", "lines": _measured(results)},
        {"title": "Accuracy", "lines": _accuracy(results, profile, found)},
        {"title": "Counted", "lines": _counted(results, missing)},
    ]


def _measured(results: Sequence[Result]) -> list[str]:
    weights = ", ".join(dict.fromkeys(each.weights for each in results))
    return [
        f"{_count(len(results), 'point')}. Each fork was built into one graph with the base, and both ran in turns in "
        "one process; added latency is the ratio of neighbours in time, less 1. Its interval is of 95 %.",
        "Latencies are host to host. Histograms hold the raw samples; the slowest twentieth is counted, not drawn.",
        f"Weights of the base: {weights}. Those of a fork change no latency.",
    ]


def _accuracy(
    results: Sequence[Result], profile: Profile | None, found: Sequence[Interval | None]
) -> list[str]:
    if profile is None:
        return ["Not given: the page shows what forks cost, not how good they are."]
    timed = {each.fork for each in results}
    lacking = [row.fork for row in profile.rows if row.layers and row.fork not in timed]
    untrained = list(dict.fromkeys(r.fork for r, each in zip(results, found, strict=True) if each is None))
    seeds = len(profile.seeds)
    how = f"Student's over {seeds} seeds" if seeds > 1 else "that of a share of so many test pictures"
    doubt = other_heads(profile, [anchor(each) for each in results])
    return [
        f"Of {caption(profile)}, on {profile.data.get('test', 'the')} test pictures. The interval of 95 % is {how}.",
        *([f"Trained but not timed, so not shown: {_listed(lacking)}."] if lacking else ()),
        *([f"Timed but not trained, so in the table alone: {_listed(untrained)}."] if untrained else ()),
        *([f"Latencies are {doubt}."] if doubt else ()),
    ]


def _counted(results: Sequence[Result], missing: str | None) -> list[str]:
    if missing:
        return [f"The breakdown by block is missing: {missing}."]
    ranked = any(each.prune and each.prune.scope == "global" for each in results)
    return [
        "The breakdown by block is counted on the traced network, not measured: multiply-adds, bytes read and written, "
        "operators started. An engine may fuse some of these.",
        *(["Widths of globally pruned forks are those that random weights give."] if ranked else ()),
    ]


def _host(host: Mapping[str, Any]) -> str:
    usable = len(host.get("affinity") or ()) or host.get("cores")
    parts = (
        host_name(host),
        f"{usable} cores" if usable else "",
        "virtual" if host.get("hypervisor") else "",
        f"governor {host['governor']}" if host.get("governor") else "",
        str(host.get("platform") or ""),
    )
    return ", ".join(filter(None, parts))


def _versions(host: Mapping[str, Any]) -> str:
    libraries = host.get("libraries") or {}
    known = [f"{name} {libraries[name]}" for name in INFERENCE if libraries.get(name)]
    return ", ".join([*known, f"Python {host['python']}"] if host.get("python") else known) or "not told"


def _dates(results: Sequence[Result]) -> str:
    days = sorted({each.started[:10] for each in results})
    return days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"


def _protocol(result: Result) -> str:
    way, fed = result.protocol, "" if result.inputs == "fresh" else f", inputs {result.inputs}"
    if way.rounds:
        return f"{way.name}, {way.repeats} × ({way.warmup} + {way.rounds}) rounds{fed}"
    known = "medians and ratios" if way.loads == 1 else "ratios"
    loads = "" if way.loads == 1 else f", {way.loads} loads at least"
    until = f"until {known} are known within {way.precision:.2%}, or for {way.seconds:g} s at most"
    return f"{way.name}{loads}, {until}{fed}"


def _doubts(results: Sequence[Result]) -> list[str]:
    unsettled = sum(not each.settled for each in results)
    lines = [f"{unsettled} of {len(results)} did not reach the precision asked for."] if unsettled else []
    kinds: dict[str, list[str]] = {}
    for line in (line for each in results for line in each.warnings):
        kinds.setdefault(re.sub(r"\d+(\.\d+)?", "#", line), []).append(line)
    lines += [_warned(alike) for alike in sorted(kinds.values(), key=len, reverse=True)]
    return lines or ["No warnings."]


def _warned(alike: Sequence[str]) -> str:
    """Lines that differ in their numbers are one warning."""
    such = "" if len(set(alike)) == 1 else ", such as"
    return f"Warning on {_count(len(alike), 'graph')}{such}: {max(alike)}."


def _threads(threads: int) -> str:
    return f"{_count(threads, 'thread')}" if threads else "as many threads as the backend takes"


def _batch(batch: int | None) -> str:
    return f"batch {batch}" if batch else "any batch, measured with 1"


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - LISTED} more" if len(every) > LISTED else ""
    return ", ".join(every[:LISTED]) + more
