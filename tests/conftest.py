"""What keeps the whole suite short."""

from __future__ import annotations

import one_table  # noqa: F401
import pytest

FIRST = ("test_readme.py", "test_tensorrt_networks.py", "test_sweep.py", "test_coverage.py")
"""The files that take longest begin first, or the other workers wait for one at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: places.get(item.path.name, len(FIRST)))  # stable
