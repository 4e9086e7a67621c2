"""Folders of runs other than sweeps (whose own are in test_sweep): what may be mixed in one, and what not."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from subtune_deploy.errors import InputError
from subtune_deploy.records import to_plain
from subtune_deploy.run_folder import open_run
from subtune_deploy.targets import load_target

TRIALS = {"kind": "trials", "model": "net", "epochs": 3}
CPU, OTHER = (to_plain(load_target(name)) for name in ("cpu", "openvino-cpu"))
SWEEP = {"model": "net", "host": {"cpu": "one"}, "targets": {"cpu": CPU}}


def opened(run: Path, description: dict[str, Any]) -> dict[str, Any]:
    """What the folder says after it was opened."""
    with open_run(run, description, "trials.jsonl"):
        found: dict[str, Any] = json.loads((run / "run.json").read_text())
    return found


def test_a_run_needs_neither_host_nor_targets(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert opened(run, TRIALS) == {"schema": 1, **TRIALS}
    assert opened(run, TRIALS) == {"schema": 1, **TRIALS}


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        (TRIALS, {**TRIALS, "epochs": 4}, "epochs was 3, is 4"),
        (TRIALS, {**TRIALS, "folds": 2}, "folds was None, is 2"),
        (TRIALS, SWEEP, "it is of kind trials, not sweep"),
        (SWEEP, TRIALS, "it is of kind sweep, not trials"),
        (SWEEP, {**SWEEP, "host": {"cpu": "two"}}, "cpu one / two"),
        (SWEEP, {**SWEEP, "targets": {"cpu": CPU | {"threads": 2}}}, "the recipe of target cpu changed"),
        ({**SWEEP, "targets": {"cpu": CPU | {"later": 1}}}, SWEEP, "the recipe of target cpu changed"),
        ({**SWEEP, "targets": {"cpu": 7}}, SWEEP, "the recipe of target cpu changed"),
    ],
)
def test_what_was_made_differently_is_refused(
    before: dict[str, Any], now: dict[str, Any], told: str, tmp_path: Path
) -> None:
    opened(tmp_path / "run", before)
    text = (tmp_path / "run" / "run.json").read_text()
    with pytest.raises(InputError, match=told):
        opened(tmp_path / "run", now)
    assert (tmp_path / "run" / "run.json").read_text() == text


def test_targets_of_a_sweep_may_be_added(tmp_path: Path) -> None:
    opened(tmp_path / "run", SWEEP)
    more = {**SWEEP, "targets": {"other": OTHER}}
    assert opened(tmp_path / "run", more)["targets"] == {"cpu": CPU, "other": OTHER}


def test_a_run_of_an_older_version_whose_recipes_had_fewer_keys_goes_on(tmp_path: Path) -> None:
    older = {key: value for key, value in CPU.items() if key not in ("keep", "weight_bits", "width_multiple")}
    opened(tmp_path / "run", {**SWEEP, "targets": {"cpu": older}})
    assert opened(tmp_path / "run", SWEEP)["targets"] == {"cpu": CPU}
    with pytest.raises(InputError, match="the recipe of target cpu changed"):
        opened(tmp_path / "run", {**SWEEP, "targets": {"cpu": CPU | {"width_multiple": 4}}})


def test_what_a_killed_process_left_is_tidied(tmp_path: Path) -> None:
    opened(tmp_path, TRIALS)
    (tmp_path / "trials.jsonl").write_bytes(b"{}\n{to")
    (tmp_path / ".subtune-tmp-1").write_text("half")
    opened(tmp_path, TRIALS)
    assert (tmp_path / "trials.jsonl").read_bytes() == b"{}\n"
    assert ".subtune-tmp-1" not in os.listdir(tmp_path)


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    with (
        open_run(tmp_path / "run", TRIALS),
        pytest.raises(InputError, match="in use by another process"),
    ):
        opened(tmp_path / "run", TRIALS)
