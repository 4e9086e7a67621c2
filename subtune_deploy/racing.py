"""Which of several engines is fastest, if that can be shown: all by turns, then the winner against the one to beat.

The least of several noisy numbers flatters itself, and one load of an engine differs from the next. So what is taken
must be shown twice, by engines that are opened anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .backends.base import Engine
from .bundle import Bundle
from .errors import InputError
from .measure import Measurement, Protocol, fresh_batches, measure
from .runtime import engine_errors
from .stats import Ratio

COMPARISON = Protocol(seconds=10.0, precision=0.005)
"""Of several by turns, and of the winner and the one to beat alone."""

Measured = Callable[[Sequence[str]], Measurement]
"""Of engines by name, opened and run by turns; ratios are to the first one."""


@dataclass(frozen=True)
class Tried:
    """A plan or settings in words, and the latency relative to what was to be beaten, or why there is none."""

    name: str
    against: str
    ratio: Ratio | None = None
    failed: str = ""


def race(
    best: str, others: Sequence[str], measured: Measured, besides: Sequence[str] = ()
) -> tuple[str, list[Tried]]:
    """The fastest of `others` whose 95 % interval lies below `best`, both by turns with all and alone; else `best`.

    `besides` run with them, and are told; whatever they take, they are not chosen.
    """
    seen = measured((best, *others, *besides))
    ratios = {name: seen.ratio(name) for name in (*others, *besides)}
    tried = [Tried(name, best, ratio) for name, ratio in ratios.items()]
    shown = [name for name in others if ratios[name].high < 1]
    if not shown:
        return best, tried
    winner = min(shown, key=lambda name: ratios[name].value)
    again = measured((best, winner)).ratio(winner)
    return (winner if again.high < 1 else best), [*tried, Tried(winner, best, again)]


def batch_size(bundle: Bundle, pictures: int | None) -> int:
    """In which batches engines run by turns: `pictures` (default: 1) if the bundle's batch is open, else its own.

    Raises InputError for another one.
    """
    fixed = bundle.manifest.batch
    if fixed and pictures not in (None, fixed):
        raise InputError(
            f"{bundle.path} takes batches of {fixed}, not {pictures}",
            "leave it away, or export with --batch dynamic",
        )
    return fixed or pictures or 1


def by_turns(bundle: Bundle, engines: Mapping[str, Engine], protocol: Protocol, pictures: int) -> Measurement:
    """Engines of the bundle's tasks on batches of so many pictures. Raises CheckFailed."""
    with engine_errors(", ".join(engines)):
        return measure(engines, fresh_batches(bundle.manifest.input, pictures), protocol)
