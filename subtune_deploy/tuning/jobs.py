"""Trials that see the same pictures become jobs: as many together as memory takes, and none of the workers idle.

The plan is kept while it is worked off, so that a job which was interrupted is found again, even if memory or workers
are others by then. Of what was kept of it each of its forks can go on by itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile
from typing import TypeAlias

from ..errors import InputError
from ..lines import append_line, read_lines
from ..records import to_plain, to_record
from ..staging import replaced_file
from .trials import Trial

PLAN = "jobs.jsonl"
"""In a run's cache."""

Group: TypeAlias = tuple[Trial, ...]
"""Trials that are trained together."""
Chunks = Callable[[Sequence[Trial]], Sequence[Sequence[Trial]]]
"""Trials on the same pictures, in the groups in which they fit into memory together."""


@dataclass(frozen=True)
class Job:
    """Trials that are trained together. `keep`: where the training is kept after each epoch."""

    trials: Group
    keep: Path | None = None


def plan(trials: Iterable[Trial], chunks: Chunks, workers: int, begun: int = 0) -> list[Group]:
    """Groups of trials that differ in their forks alone, so many that no worker idles while the last ones train.

    `begun`: jobs that go before them.
    """
    alike: dict[tuple[object, ...], dict[Trial, None]] = {}
    for trial in trials:
        alike.setdefault((trial.seed, trial.examples, trial.fold), {})[trial] = None
    groups = [tuple(some) for same in alike.values() for some in chunks(list(same))]
    last = min((begun + len(groups)) % workers, len(groups))
    rest = len(groups) - last
    return groups[:rest] + _split(groups[rest:], -(begun + len(groups)) % workers)


def _split(groups: list[Group], more: int) -> list[Group]:
    """The longest are halved, `more` times if they can be. A fork takes the longer the earlier it begins: every second
    one goes into each half."""
    for _ in range(more):
        groups = sorted(groups, key=len, reverse=True)  # stable: what comes first stays first among equals
        if not groups or len(groups[0]) == 1:
            break
        longest, *others = groups
        groups = [*others, longest[::2], longest[1::2]]
    return groups


def planned(
    cache: Path | None,
    left: Sequence[Trial],
    chunks: Chunks,
    workers: int,
    say: Callable[[str], object] = lambda text: None,
    done: Set[Trial] = frozenset(),
) -> tuple[Job, ...]:
    """Jobs for the trials `left`: those begun in folder `cache` before, then new ones. The plan is kept there.

    A job that was begun goes on where it was, in groups that fit into memory now, which `say` hears. What of it is
    not among `left` stays as it is, for another call, but for those that are `done`.
    """
    begun, later = _resumed(cache, set(left), done, chunks, say)
    known = {trial for group in begun for trial in group}
    groups = begun + plan([trial for trial in left if trial not in known], chunks, workers, len(begun))
    if cache is not None:
        _keep(cache, groups + later)
    return tuple(Job(group, cache and cache / _name(group)) for group in groups)


def _resumed(
    cache: Path | None, wanted: Set[Trial], done: Set[Trial], chunks: Chunks, say: Callable[[str], object]
) -> tuple[list[Group], list[Group]]:
    """(groups that were begun and go on now, those that are left for another call), each with its own file."""
    going, later = list[Group](), list[Group]()
    for group, file in _begun(cache).items():
        now, others = _parted([trial for trial in group if trial not in done], wanted, chunks)
        if len(now) > 1:
            many = sum(map(len, now))
            say(f"{many} forks do not fit into memory together any more: they go on in {len(now)} groups")
        for part in (*now, *others):
            if part != group:
                _copy(file, file.with_name(_name(part)))
        going, later = going + now, later + others
    return going, later


def _parted(group: Sequence[Trial], wanted: Set[Trial], chunks: Chunks) -> tuple[list[Group], list[Group]]:
    """(what of a group goes on now, what does not)"""
    mine = [trial for trial in group if trial in wanted]
    others = tuple(trial for trial in group if trial not in wanted)
    return [tuple(part) for part in chunks(mine)] if mine else [], [others] if others else []


def _copy(file: Path, to: Path) -> None:
    with replaced_file(to) as pending:
        copyfile(file, pending)


def _begun(cache: Path | None) -> dict[Group, Path]:
    """Groups of a plan from before whose training has begun, with what is kept of it; others are planned anew."""
    if cache is None or not (cache / PLAN).is_file():
        return {}
    try:
        documents = [document for _, document in read_lines(cache / PLAN)]
        groups = [tuple(to_record(Trial, each) for each in group["trials"]) for group in documents]  # type: ignore[index]
    except (InputError, TypeError, KeyError):  # of another version: it saves time only
        return {}
    files = {group: cache / _name(group) for group in groups}
    return {group: file for group, file in files.items() if file.is_file()}


def _keep(cache: Path, groups: Sequence[Group]) -> None:
    """The plan is replaced before files go: one that was copied counts from then on, its origin until then."""
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
