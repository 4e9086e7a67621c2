"""What benchmarks/digits_study.py says of its documents: claims of the paper, held against what they are about."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_documents as tiny
from click.testing import CliRunner

from subtune_deploy.tuning.documents import Greedy

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import digits_study
import digits_tables
from digits_tables import Found, Key, findings


def selection(source: str, first: int) -> tuple[Key, Greedy]:
    """One of 16 blocks, on 100 pictures."""
    found = tiny.greedy((first, 2))
    return Key(source, 100), replace(found, data={**found.data, "source": source})


def of_the_first_block(*selections: tuple[Key, Greedy]) -> str:
    (told,) = [str(each) for each in findings(Found({}, dict(selections))) if "first block" in each.claim]
    return told


def test_a_claim_about_damaged_pictures_is_not_held_against_clean_ones() -> None:
    clean = selection("digits", 9)
    assert of_the_first_block(clean).endswith("No selection on damaged pictures yet.")
    damaged = (selection("digits fog:5", 15), selection("digits zoom_blur:5", 14))
    told = of_the_first_block(clean, *damaged).splitlines()
    assert told[0].endswith("Held in 1 of 2 cases.")
    assert told[2:] == [
        "- holds: digits fog:5, 100: block 15 of 16",
        "- does not hold: digits zoom_blur:5, 100: block 14 of 16",
    ]


def test_a_claim_without_any_case_is_told_too() -> None:
    told = [str(each) for each in findings(Found({}, dict([selection("digits", 9)])))]
    assert sum(each.endswith("No case yet.") for each in told) == 5


def test_tables_of_nothing_are_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (digits_study, digits_tables):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    ran = CliRunner().invoke(digits_study.main, ["--tables"])
    assert (ran.exit_code, ran.output) == (
        1,
        f"Error: no document lies in {tmp_path}: run without --tables, for some --hours\n",
    )
    assert not list(tmp_path.iterdir())
