"""How far a build is, and how it is stopped: TensorRT's progress monitor, driving a plain callable.

The library swallows what a callback raises, and a signal that arrives while it works would be lost with it.
So the first exception is kept, the build is asked to stop, and the exception is raised when it has.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..base import Progress


@dataclass
class Phase:
    """A part of the build, `steps` long, of which `done` are done; a part of `parent` where that is given."""

    parent: str | None
    steps: int
    done: float = 0.0


class Tracker:
    """The phases that are under way, as one fraction of the whole, for `progress`; the reason to stop, if any."""

    def __init__(self, what: str, progress: Progress) -> None:
        self.what, self.progress = what, progress
        self.phases: dict[str, Phase] = {}
        self.shown = 0.0
        self.failure: BaseException | None = None

    def start(self, name: str, parent: str | None, steps: int) -> None:
        self.phases[name] = Phase(parent if parent in self.phases else None, max(steps, 1))

    def step(self, name: str, step: int) -> None:
        if name in self.phases:
            self.phases[name].done = step + 1
            self._show(name)

    def finish(self, name: str) -> None:
        phase = self.phases.pop(name, None)
        if phase is not None and phase.parent is None:
            self.shown = 1.0
            self.progress(self.what, 1.0, 1.0)

    def stop(self, reason: BaseException) -> None:
        """Ask the build to stop; the first reason is the one that counts."""
        self.failure = self.failure or reason

    def _show(self, name: str) -> None:
        fraction = 0.0
        at: str | None = name
        while at is not None and at in self.phases:  # innermost first: a phase is one step of its parent
            phase = self.phases[at]
            fraction = min((int(phase.done) + fraction) / phase.steps, 1.0)
            at = phase.parent
        self.shown = max(self.shown, fraction)  # phases may start late: never go back
        self.progress(self.what, self.shown, 1.0)


def monitor(api: Any, tracker: Tracker) -> Any:
    """An `IProgressMonitor` of library `api` that tells `tracker`."""

    def told(tell: Callable[[], None]) -> bool:
        try:
            if tracker.failure is None:
                tell()
        except BaseException as error:  # noqa: BLE001 - raised again once the build has stopped
            tracker.stop(error)
        return tracker.failure is None

    class Monitor(api.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            api.IProgressMonitor.__init__(self)

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            told(lambda: tracker.start(name, parent, steps))

        def step_complete(self, name: str, step: int) -> bool:
            return told(lambda: tracker.step(name, step))

        def phase_finish(self, name: str) -> None:
            told(lambda: tracker.finish(name))

    return Monitor()


@contextmanager
def stoppable(tracker: Tracker) -> Iterator[None]:
    """Ctrl-C stops the build; raises the reason to stop, if there was one, when the block ends."""
    ours = threading.current_thread() is threading.main_thread()
    if ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: tracker.stop(KeyboardInterrupt()))
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    else:
        yield
    if tracker.failure is not None:
        raise tracker.failure
