"""One training with its outcome, as a line of `trials.jsonl`. No torch here.

for result in read_trials(Path("profile.run")):
    print(result.trial.fork, result.accuracy)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..lines import append_line, read_lines
from ..records import to_plain, to_record
from .settings import Fork

SCHEMA = 1
LINES = "trials.jsonl"
"""In a run's folder: its trials."""


@dataclass(frozen=True)
class Trial:
    """What is trained: a fork, from `seed`, on `examples` pictures (None: all), with `fold` of them held out.

    Trials that differ in their fork alone see the same pictures in the same order.
    """

    fork: Fork
    seed: int = 0
    examples: int | None = None
    fold: int | None = None

    def __str__(self) -> str:
        """`13-14 seed 0, 100 examples, fold 2`: the fold is counted from 0."""
        words = f"{self.fork} seed {self.seed}"
        words += "" if self.examples is None else f", {self.examples} examples"
        return words + ("" if self.fold is None else f", fold {self.fold}")


@dataclass(frozen=True)
class TrialResult:
    """What came of a trial.

    `accuracy`: share of the `tested` pictures named rightly; `train_accuracy`: of the `trained` ones, during the
    last epoch, while weights moved. `parameters`: those that were trained, head included. `seconds`: this
    trial's share of the time of those trained together with it, after an interruption of the rest of it; it is
    no measurement, since other work may have gone on. `host`: the processor it ran on. `failure`: why there is
    no outcome; accuracies are 0 then.
    """

    trial: Trial
    accuracy: float
    train_accuracy: float
    tested: int
    trained: int
    parameters: int
    seconds: float
    host: str = ""
    failure: str = ""


def failed(trial: Trial, reason: str) -> TrialResult:
    """The outcome of a trial that has none."""
    return TrialResult(trial, 0.0, 0.0, 0, 0, 0, 0.0, failure=reason)


def append_trials(path: Path, results: Iterable[TrialResult]) -> None:
    """Add a line for each, on the disk when this returns."""
    for result in results:
        append_line(path, {"schema": SCHEMA, **to_plain(result)})


def read_trials(path: Path) -> tuple[TrialResult, ...]:
    """Of a run's folder, or a file of JSON lines, in the order in which they ended; failures too.

    The torn last line of a process that was killed is no result. Raises InputError.
    """
    lines = path / LINES if path.is_dir() else path
    if not lines.is_file():
        raise InputError(f"{path} holds no trials", f"give the folder of a run, or its {LINES}")
    return tuple(_result(document, place) for place, document in read_lines(lines))


def finished(results: Iterable[TrialResult]) -> dict[Trial, TrialResult]:
    """Those with an outcome, by trial."""
    return {result.trial: result for result in results if not result.failure}


def lost(results: Iterable[TrialResult]) -> dict[Fork, str]:
    """Forks of which some trial failed, with the reason of the last one."""
    return {result.trial.fork: result.failure for result in results if result.failure}


def _result(document: object, place: str) -> TrialResult:
    given: Any = document.get("schema") if isinstance(document, dict) else None
    if given != SCHEMA:
        raise InputError(f"{place} has schema version {given!r}, expected {SCHEMA}", "update subtune-deploy")
    assert isinstance(document, dict)
    fields = {key: value for key, value in document.items() if key != "schema"}
    try:
        return to_record(TrialResult, fields)
    except InputError as error:
        raise InputError(f"{place}: {error.message}", error.hint) from error
