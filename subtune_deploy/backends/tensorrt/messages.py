"""What TensorRT says while it works: collected, filtered, and turned into the one line of an error.

TensorRT keeps one logger per process, whichever object it was given to first: so there is one here too.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable
from functools import cache
from typing import Any, Protocol

KEPT = 500
"""Messages between two calls of `take`, the oldest are dropped."""

SEVERITIES = {"INTERNAL_ERROR": "error", "ERROR": "error", "WARNING": "warning"}

_NO_DRIVER = re.compile(
    r"cudaErrorInsufficientDriver|driver version is insufficient|cuda.*error:? ?35\b", re.I
)
_PLACE = re.compile(r"^(\[[\w./\\]+\.(cpp|h|cu)[^\]]*\]\s*)|(\s*\(?In \w+ at [\w./\\]+:\d+\)?\s*$)")


class Logger(Protocol):
    """An `ILogger` of the library that keeps what it is told."""

    def take(self) -> list[str]:
        """Warnings and errors since the last take, as "error: ..." and "warning: ...", and forget them."""
        ...


@cache
def logger(api: Any) -> Any:
    """The logger of library `api`, always the same one (see `Logger`)."""

    class Collector(api.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            api.ILogger.__init__(self)
            self.kept: deque[str] = deque(maxlen=KEPT)

        def log(self, severity: Any, text: str) -> None:
            kind = SEVERITIES.get(severity.name)
            if kind is not None and not noise(text):
                self.kept.append(f"{kind}: {tidy(text)}")

        def take(self) -> list[str]:
            taken: list[str] = []
            while self.kept:
                taken.append(self.kept.popleft())
            return taken

    return Collector()


def noise(text: str) -> bool:
    """Whether a message only says that this machine has no GPU driver, which `probe` says better."""
    return _NO_DRIVER.search(text) is not None


def tidy(text: str) -> str:
    """A message on one line, without the place in the library's source."""
    return _PLACE.sub("", " ".join(text.split())).strip()


def words(taken: Iterable[str]) -> str:
    """The library's own words for a failure: the first error, which the later ones follow from."""
    lines = list(taken)
    for kind in ("error: ", "warning: "):
        for line in lines:
            if line.startswith(kind):
                return line.removeprefix(kind)
    return "it gave no reason"
