"""Trials as lines of a file: what is written is read back, failures have no outcome."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from subtune_deploy.errors import InputError
from subtune_deploy.spec import Pruning
from subtune_deploy.tuning.settings import Fork
from subtune_deploy.tuning.trials import (
    LINES,
    Trial,
    TrialResult,
    append_trials,
    failed,
    finished,
    read_trials,
)

FORKS = (
    Fork(()),
    Fork("all"),
    Fork((2, 13, 14), siamese=True),
    Fork((3,), init="random"),
    Fork((14, 15), prune=Pruning(0.5, scope="global")),
)
RESULT = TrialResult(Trial(Fork((3,))), 0.75, 1.0, 20, 80, 1234, 0.5, "a processor")


@pytest.mark.parametrize("fork", FORKS, ids=str)
def test_what_is_written_is_read_back(fork: Fork, tmp_path: Path) -> None:
    results = (
        replace(RESULT, trial=Trial(fork)),
        replace(RESULT, trial=Trial(fork, 7, 100, 2), accuracy=1 / 3),
    )
    append_trials(tmp_path / LINES, results)
    assert read_trials(tmp_path) == read_trials(tmp_path / LINES) == results
    assert len((tmp_path / LINES).read_text().splitlines()) == 2


def test_a_failure_is_no_outcome_until_the_trial_ends_well(tmp_path: Path) -> None:
    append_trials(tmp_path / LINES, [failed(RESULT.trial, "it diverged")])
    assert finished(read_trials(tmp_path)) == {}
    append_trials(tmp_path / LINES, [RESULT])
    assert finished(read_trials(tmp_path)) == {RESULT.trial: RESULT}


def test_the_torn_line_of_a_killed_process_is_left_out(tmp_path: Path) -> None:
    append_trials(tmp_path / LINES, [RESULT, RESULT])
    whole = (tmp_path / LINES).read_bytes()
    (tmp_path / LINES).write_bytes(whole[:-5])
    assert read_trials(tmp_path) == (RESULT,)


def test_a_trial_says_what_it_is() -> None:
    assert str(Trial(Fork((13, 14)))) == "13-14 seed 0"
    assert str(Trial(Fork(()), 3, 100, 2)) == "none seed 3, 100 examples, fold 2"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "trials.jsonl:1 is not JSON"),
        ("[]", "trials.jsonl:1 has schema version None, expected 1"),
        ('{"schema": 2}', "has schema version 2"),
        ('{"schema": 1, "trial": {}}', "trials.jsonl:1: key 'accuracy' is missing"),
    ],
)
def test_other_lines_are_refused_by_their_place(line: str, told: str, tmp_path: Path) -> None:
    (tmp_path / LINES).write_text(f"{line}\n")
    with pytest.raises(InputError) as caught:
        read_trials(tmp_path)
    assert told in caught.value.message


def test_blocks_are_numbers_or_all(tmp_path: Path) -> None:
    append_trials(tmp_path / LINES, [replace(RESULT, trial=Trial(Fork("all")))])
    text = (tmp_path / LINES).read_text()
    (tmp_path / LINES).write_text(text.replace('"all"', '"some"'))
    with pytest.raises(InputError, match=r"trials.jsonl:1: trial.fork.layers is 'some'"):
        read_trials(tmp_path)


def test_a_folder_without_trials_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no trials"):
        read_trials(tmp_path)
