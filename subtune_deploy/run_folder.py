"""The folder of a run: who may write to it, and what was swept or trained, where and how.

`run.json` describes the run; a file of JSON lines (`results.jsonl` of a sweep) has a line for each result, written
as it comes; `cache/` holds work that need not be done again, `bundles/` what the user wants to keep. One process
at a time; one way of measuring or training; what else must not be mixed, the description says.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock

from .backends.base import Target
from .bundle import open_bundle
from .environment import differences
from .errors import InputError
from .lines import drop_torn_line
from .manifest import MANIFEST
from .records import to_record
from .results import LINES
from .staging import PREFIX, remove, replaced_file

RUN, CACHE, KEPT, LOCK = "run.json", "cache", "bundles", "lock"
SCHEMA = 1
SWEEP = "sweep"
"""Kind of a run; where run.json names none, it is this one."""

_ANOTHER = "give another folder, or do as before"


@contextmanager
def open_run(run: Path, description: Mapping[str, Any], lines: str = LINES) -> Iterator[Path]:
    """Hold the folder `run`, made if need be, for the time of the block; what a killed process left is tidied.

    `description`: two keys have a meaning, where they are given: `host` (as `environment.describe` gives it), whose
    changes that do not count are let pass, and `targets` (recipes by name), which may be added to later. All others
    stay as they are; `kind` is `sweep` where it is not given. `lines`: name of the file of results. Raises
    InputError if another process holds the folder, if it holds other things, or if its description does not go
    together with this one.
    """
    _check_kind(run)
    run.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(run / LOCK, timeout=0):  # the system releases it, however a process ends
            _describe(run / RUN, description)
            drop_torn_line(run / lines)
            _tidy(run)
            yield run
    except filelock.Timeout as error:
        raise InputError(
            f"{run} is in use by another process", "wait until it is done, or give another folder"
        ) from error


def blocks_of(run: Path) -> tuple[str, ...] | None:
    """Names of the blocks that forks of a run's results are counted in; None where its files do not tell."""
    if (run / MANIFEST).is_file():
        return tuple(block.name for block in open_bundle(run).manifest.blocks)
    blocks = _read(run / RUN).get("blocks") if (run / RUN).is_file() else None
    return tuple(map(str, blocks)) if isinstance(blocks, list) else None


def check_blocks(run: Path, blocks: Sequence[str], whose: str) -> None:
    """Raise InputError where the results of `run` count other blocks than `blocks`, which are those of `whose`."""
    mine = blocks_of(run)
    if mine is not None and mine != tuple(blocks):
        told = " has {} blocks, {} to {}".format
        raise InputError(
            f"{run}{told(len(mine), mine[0], mine[-1])}; {whose}{told(len(blocks), blocks[0], blocks[-1])}",
            "a fork of one is none of the other: give both of one --blocks",
        )


def _check_kind(run: Path) -> None:
    if run.exists() and not run.is_dir():
        raise InputError(f"{run} is a file", "give a folder for the run")
    if not run.is_dir() or (run / RUN).is_file():
        return
    if any(path.name != LOCK and not path.name.startswith(PREFIX) for path in run.iterdir()):
        raise InputError(f"{run} holds other things (no {RUN})", "give a new folder, or that of a run")


def _tidy(run: Path) -> None:
    """Remove what a killed process had not given its final name yet."""
    for leftover in [path for place in ("", "*/", "*/*/") for path in run.glob(f"{place}{PREFIX}*")]:
        remove(leftover)


def _describe(path: Path, now: Mapping[str, Any]) -> None:
    """Enter `now` in `path`, targets added to those that are there."""
    document = {"schema": SCHEMA, **now}
    if path.is_file():
        before = _read(path)
        if found := _changed(before, document):
            raise InputError(f"{path.parent} was made differently: {'; '.join(found)}", _ANOTHER)
        document = {**before, **_grown(before, now)}
    with replaced_file(path) as pending:
        pending.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}", _ANOTHER) from error
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise InputError(f"{path} is not of schema version {SCHEMA}", _ANOTHER)
    if _kind(found) == SWEEP and not all(isinstance(found.get(key), dict) for key in ("host", "targets")):
        raise InputError(f"{path} does not say on which host and targets it was measured", _ANOTHER)
    return found


def _kind(description: Mapping[str, Any]) -> object:
    return description.get("kind", SWEEP)


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    if _kind(before) != _kind(now):
        return [f"it is of kind {_kind(before)}, not {_kind(now)}"]
    found = differences(before.get("host", {}), now.get("host", {}))
    found += changes(before, {key: value for key, value in now.items() if key not in ("host", "targets")})
    recipes, others = before.get("targets", {}), now.get("targets", {})
    changed = [name for name in others if name in recipes and not _alike(recipes[name], others[name])]
    return found + [f"the recipe of target {name} changed" for name in changed]


def _alike(before: Any, now: Any) -> bool:
    """Whether two recipes ask for the same: what an older version had no key for, it left as it is by default."""
    try:
        return to_record(Target, before) == to_record(Target, now)
    except InputError:  # a key of a newer version, or no recipe
        return False


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`epochs was 2, is 3`, for each key of `now` that had another value."""
    return [
        f"{key} was {before.get(key)}, is {value}" for key, value in now.items() if before.get(key) != value
    ]


def _grown(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    return {"targets": {**before["targets"], **now["targets"]}} if "targets" in now else {}
