"""What is taken was shown twice to be faster."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from subtune_deploy.measure import Measurement, Protocol
from subtune_deploy.racing import Tried, race
from subtune_deploy.stats import Ratio


def raced(*seconds: dict[str, float]) -> tuple[str, list[Tried], list[tuple[str, ...]]]:
    """Seconds by name, 1 where not given, in the first and in the second run."""
    runs, asked = iter(seconds), list[tuple[str, ...]]()

    def measured(names: Sequence[str]) -> Measurement:
        asked.append(tuple(names))
        mine = next(runs)
        return Measurement(Protocol(), {name: (mine.get(name, 1.0),) * 24 for name in names}, True)

    return *race("old", ["a", "b"], measured), asked


def test_the_fastest_is_run_once_more_alone() -> None:
    winner, tried, asked = raced({"a": 0.9, "b": 0.8}, {"b": 0.85})
    assert (winner, asked) == ("b", [("old", "a", "b"), ("old", "b")])
    assert [(each.name, each.ratio.value) for each in tried if each.ratio] == [
        ("a", pytest.approx(0.9)), ("b", pytest.approx(0.8)), ("b", pytest.approx(0.85))
    ]  # fmt: skip


def test_what_runs_besides_is_told_and_never_taken() -> None:
    def measured(names: Sequence[str]) -> Measurement:
        seconds = {"a": 0.9, "quick": 0.1}
        return Measurement(Protocol(), {name: (seconds.get(name, 1.0),) * 24 for name in names}, True)

    winner, tried = race("old", ["a"], measured, ["quick"])
    assert winner == "a"
    assert [(each.name, each.ratio.value) for each in tried if each.ratio] == [
        ("a", pytest.approx(0.9)), ("quick", pytest.approx(0.1)), ("a", pytest.approx(0.9))
    ]  # fmt: skip
    assert race("old", [], measured, ["quick"])[0] == "old"


def test_what_is_not_shown_again_is_not_taken() -> None:
    assert raced({"b": 0.8}, {"b": 1.0})[0] == "old"


@pytest.mark.parametrize("span", [1.0, 1.2])
def test_what_is_no_faster_is_not_run_again(span: float) -> None:
    winner, tried, asked = raced({"a": span, "b": span})
    assert (winner, len(tried), len(asked)) == ("old", 2, 1)


def test_what_is_faster_but_not_for_sure_does_not_win(monkeypatch: pytest.MonkeyPatch) -> None:
    ratios = {"a": Ratio(0.7, 0.4, 1.1), "b": Ratio(0.9, 0.85, 0.95)}
    monkeypatch.setattr(Measurement, "ratio", lambda self, name: ratios[name])
    assert raced({}, {})[0] == "b"
