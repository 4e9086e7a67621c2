"""What is taken was shown twice to be faster, the second time over several loads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny_factories import network as tiny

from subtune_deploy.backends.base import Engine
from subtune_deploy.build import build
from subtune_deploy.bundle import Bundle
from subtune_deploy.compiling import compile_bundle
from subtune_deploy.measure import LOADS, Measurement, Protocol
from subtune_deploy.racing import Course, Tried, race
from subtune_deploy.runtime import load_engine
from subtune_deploy.stats import Ratio
from subtune_deploy.targets import load_target
from subtune_deploy.tasks import candidate_task

Seconds = dict[str, float]


class Told:
    """A course on which engines take what is told, by name, 1 where not given; `asked`: which ran."""

    def __init__(self, turns: Seconds, again: Seconds) -> None:
        self.turns, self.again, self.asked = turns, again, list[tuple[str, ...]]()
        self.loads, self.protocol = (4,) * LOADS, Protocol()

    def by_turns(self, names: Sequence[str]) -> Measurement:
        return self._told(names, self.turns)

    def over_loads(self, names: Sequence[str]) -> Measurement:
        return self._told(names, self.again, self.loads)

    def _told(self, names: Sequence[str], seconds: Seconds, loads: tuple[int, ...] = ()) -> Measurement:
        self.asked.append(tuple(names))
        samples = {name: (seconds.get(name, 1.0),) * 24 for name in names}
        return Measurement(Protocol(), samples, True, loads=loads)


def raced(turns: Seconds, again: Seconds) -> tuple[str, list[Tried], list[tuple[str, ...]]]:
    course: Any = Told(turns, again)
    return *race(course, "old", ["a", "b"]), course.asked


def ratios(tried: Sequence[Tried]) -> list[tuple[str, Any]]:
    return [(each.name, pytest.approx(each.ratio.value)) for each in tried if each.ratio]


def test_the_fastest_is_run_once_more_alone() -> None:
    winner, tried, asked = raced({"a": 0.9, "b": 0.8}, {"b": 0.85})
    assert (winner, asked) == ("b", [("old", "a", "b"), ("old", "b")])
    assert ratios(tried) == [("a", 0.9), ("b", 0.8), ("b", 0.85)]


def test_what_runs_besides_is_told_and_never_taken() -> None:
    course: Any = Told({"a": 0.9, "quick": 0.1}, {"a": 0.9})
    winner, tried = race(course, "old", ["a"], ["quick"])
    assert (winner, ratios(tried)) == ("a", [("a", 0.9), ("quick", 0.1), ("a", 0.9)])
    assert race(course, "old", [], ["quick"])[0] == "old"


def test_what_loads_too_slowly_to_be_shown_over_several_loads_is_not_taken() -> None:
    course: Any = Told({"a": 0.5}, {"a": 0.5})
    course.loads = ()
    winner, tried = race(course, "old", ["a"])
    assert winner == "old"
    assert tried[-1] == Tried(
        "a", "old", failed="not shown over several loads: to load takes longer than 20 s"
    )


def test_what_is_not_shown_again_is_not_taken() -> None:
    assert raced({"b": 0.8}, {"b": 1.0})[0] == "old"


@pytest.mark.parametrize("span", [1.0, 1.2])
def test_what_is_no_faster_is_not_run_again(span: float) -> None:
    winner, tried, asked = raced({"a": span, "b": span}, {})
    assert (winner, len(tried), len(asked)) == ("old", 2, 1)


def test_what_is_faster_but_not_for_sure_does_not_win(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"a": Ratio(0.7, 0.4, 1.1), "b": Ratio(0.9, 0.85, 0.95)}
    monkeypatch.setattr(Measurement, "ratio", lambda self, name: found[name])
    assert raced({}, {})[0] == "b"


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    task = candidate_task(tiny(), "task", (1,), seed=1)
    return compile_bundle(build(tiny(), [task], tmp_path / "b"), load_target("cpu"))


def test_engines_are_opened_once_and_then_for_each_load(bundle: Bundle) -> None:
    """Or else what one load happens to take would be shown twice."""
    opened = list[tuple[str, ...]]()

    def load(names: Sequence[str]) -> dict[str, Engine]:
        opened.append(tuple(names))
        return {name: load_engine(bundle, "cpu", "graph") for name in names}

    course = Course(bundle, load, Protocol(seconds=0.2, warmup=1), 1)
    turns = course.by_turns(("old", "a"))
    assert (opened, set(turns.samples)) == ([("old", "a")], {"old", "a"})
    over = course.over_loads(("old", "a"))
    assert len(opened) - 1 == len(over.loads) >= LOADS
    assert sum(over.loads) == len(over.samples["a"])
