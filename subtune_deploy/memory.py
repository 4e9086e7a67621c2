"""How much memory is free, and whether an error says that it ran out. No torch."""

from __future__ import annotations

import os
from pathlib import Path

from .environment import ROOT, control_groups, kilobytes, number

UNKNOWN = 2 << 30
"""What is taken to be free where the system does not say."""

SIGNS = ("can't allocate memory", "out of memory", "bad_alloc", "bad allocation")
"""In messages of PyTorch's allocators, for CPU and GPU, and of its libraries."""


def available(root: Path = ROOT) -> int:
    """Bytes that this process can still take without swapping: of the host, and of its control groups."""
    groups = (_left(group) for group in control_groups(root))
    found = [kilobytes(root / "proc/meminfo", "MemAvailable"), *groups]
    return min((size for size in found if size is not None), default=_pages())


def _left(group: Path) -> int | None:
    """What the group may still take; files that it has read and can do without count as free."""
    limit, used = number(group / "memory.max"), number(group / "memory.current")
    if limit is None or used is None:
        return None
    stat = dict(line.split(maxsplit=1) for line in _lines(group / "memory.stat"))
    return max(0, int(limit - used) + int(stat.get("inactive_file", 0)))


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


def _pages() -> int:
    """Half of all memory, where nobody says how much of it is free."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):  # Windows
        return UNKNOWN


def ran_out(error: BaseException) -> bool:
    """Whether it was raised because memory ran out."""
    told = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(s in told for s in SIGNS)
    )
