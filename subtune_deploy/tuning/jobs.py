"""Trials that see the same pictures become jobs: as many together as memory takes, as many jobs as workers.

The plan is kept while it is worked off, so that a job which was interrupted is found again as it was, even if
memory or workers are others by then.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..lines import append_line, read_lines
from ..records import to_plain, to_record
from ..staging import replaced_file
from .trials import Trial

PLAN = "jobs.jsonl"
"""In a run's cache."""

Chunks = Callable[[Sequence[Trial]], Sequence[Sequence[Trial]]]
"""Trials on the same pictures, in the groups in which they fit into memory together."""


@dataclass(frozen=True)
class Job:
    """Trials that are trained together. `keep`: where the training is kept after each epoch."""

    trials: tuple[Trial, ...]
    keep: Path | None = None


def plan(trials: Iterable[Trial], chunks: Chunks, workers: int) -> list[tuple[Trial, ...]]:
    """Groups of trials that differ in their forks alone; `workers` of them, where there are trials enough."""
    alike: dict[tuple[object, ...], dict[Trial, None]] = {}
    for trial in trials:
        alike.setdefault((trial.seed, trial.examples, trial.fold), {})[trial] = None
    groups = [tuple(some) for same in alike.values() for some in chunks(list(same))]
    while len(groups) < workers and max(map(len, groups), default=0) > 1:
        groups.sort(key=len)  # stable: what comes first stays first among equals
        longest = groups.pop()
        groups += [longest[: len(longest) // 2], longest[len(longest) // 2 :]]
    return groups


def planned(cache: Path | None, left: Sequence[Trial], chunks: Chunks, workers: int) -> tuple[Job, ...]:
    """Jobs for the trials `left`: those begun in folder `cache` before, then new ones. The plan is kept there."""
    kept = [group for group in _kept(cache) if set(group) <= set(left)]
    known = {trial for group in kept for trial in group}
    groups = kept + plan([trial for trial in left if trial not in known], chunks, workers - len(kept))
    if cache is not None:
        _keep(cache, groups)
    return tuple(Job(group, cache and cache / _name(group)) for group in groups)


def _kept(cache: Path | None) -> list[tuple[Trial, ...]]:
    """Those of a plan from before whose training has begun; the others are better planned anew."""
    if cache is None or not (cache / PLAN).is_file():
        return []
    try:
        documents = [document for _, document in read_lines(cache / PLAN)]
        groups = [tuple(to_record(Trial, each) for each in group["trials"]) for group in documents]  # type: ignore[index]
    except (InputError, TypeError, KeyError):  # of another version: it saves time only
        return []
    return [group for group in groups if (cache / _name(group)).is_file()]


def _keep(cache: Path, groups: Sequence[tuple[Trial, ...]]) -> None:
    cache.mkdir(exist_ok=True)
    with replaced_file(cache / PLAN) as pending:
        pending.touch()
        for group in groups:
            append_line(pending, {"trials": to_plain(group)})
    needed = {PLAN, *map(_name, groups)}
    for path in cache.iterdir():
        if path.name not in needed:
            path.unlink()


def _name(group: Sequence[Trial]) -> str:
    text = json.dumps(to_plain(tuple(group)), sort_keys=True)
    return f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.pt"
