"""Which of several engines is fastest, if that can be shown: all by turns, then the winner against the one to beat.

The least of several noisy numbers flatters itself, and one load of an engine differs from the next. So what is taken
must be shown twice, by engines that are opened anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .measure import Measurement
from .stats import Ratio

Measured = Callable[[Sequence[str]], Measurement]
"""Of engines by name, opened and run by turns; ratios are to the first one."""


@dataclass(frozen=True)
class Tried:
    """A plan or settings in words, and the latency relative to what was to be beaten, or why there is none."""

    name: str
    against: str
    ratio: Ratio | None = None
    failed: str = ""


def race(best: str, others: Sequence[str], measured: Measured) -> tuple[str, list[Tried]]:
    """The fastest of `others` whose 95 % interval lies below `best`, both by turns with all and alone; else `best`."""
    seen = measured((best, *others))
    ratios = {name: seen.ratio(name) for name in others}
    tried = [Tried(name, best, ratio) for name, ratio in ratios.items()]
    shown = [name for name, ratio in ratios.items() if ratio.high < 1]
    if not shown:
        return best, tried
    winner = min(shown, key=lambda name: ratios[name].value)
    again = measured((best, winner)).ratio(winner)
    return (winner if again.high < 1 else best), [*tried, Tried(winner, best, again)]
