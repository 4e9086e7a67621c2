"""Which of several engines is fastest, if that can be shown: all by turns, then the winner against the one to beat.

The least of several noisy numbers flatters itself, and one load of an engine differs from the next. So what is taken
must be shown twice: the second time over several loads, each of which is one observation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from .backends.base import Batch, Engine
from .bundle import Bundle
from .errors import InputError
from .loads import measure_loads
from .measure import LOADS, Measurement, Protocol, fresh_batches, measure
from .runtime import engine_errors
from .stats import Ratio

COMPARISON = Protocol(seconds=10.0, precision=0.005)
"""Of several by turns, and of the winner and the one to beat alone."""

ONE_LOAD = "not shown over several loads: to load takes longer than"


@dataclass(frozen=True)
class Tried:
    """A plan or settings in words, and the latency relative to what was to be beaten, or why there is none."""

    name: str
    against: str
    ratio: Ratio | None = None
    failed: str = ""


@dataclass(frozen=True)
class Course:
    """Where engines of the bundle's tasks run: `load` opens those that are named, `pictures` are in a batch.

    Both ways to run them raise what `load` does, and CheckFailed.
    """

    bundle: Bundle
    load: Callable[[Sequence[str]], Mapping[str, Engine]]
    protocol: Protocol
    pictures: int

    def by_turns(self, names: Sequence[str]) -> Measurement:
        """All of them, loaded once; ratios are to the first one."""
        engines = self.load(names)
        with engine_errors(", ".join(names)):
            return measure(engines, self._batches(), self.protocol)

    def over_loads(self, names: Sequence[str]) -> Measurement:
        """The same in as much time, loaded anew several times."""
        with engine_errors(", ".join(names)):
            return measure_loads(
                partial(self.load, names), self._batches(), replace(self.protocol, loads=LOADS)
            )

    def _batches(self) -> list[Batch]:
        return fresh_batches(self.bundle.manifest.input, self.pictures)


def race(
    course: Course, best: str, others: Sequence[str], besides: Sequence[str] = ()
) -> tuple[str, list[Tried]]:
    """The fastest of `others` whose 95 % interval lies below `best`, by turns with all and over loads alone, or `best`.

    `besides` run with them, and are told; whatever they take, they are not chosen.
    """
    seen = course.by_turns((best, *others, *besides))
    ratios = {name: seen.ratio(name) for name in (*others, *besides)}
    tried = [Tried(name, best, ratio) for name, ratio in ratios.items()]
    shown = [name for name in others if ratios[name].high < 1]
    if not shown:
        return best, tried
    winner = min(shown, key=lambda name: ratios[name].value)
    again = course.over_loads((best, winner))
    if not again.loads:
        return best, [*tried, Tried(winner, best, failed=f"{ONE_LOAD} {course.protocol.seconds:g} s")]
    ratio = again.ratio(winner)
    return (winner if ratio.high < 1 else best), [*tried, Tried(winner, best, ratio)]


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
