"""The files that take longest begin first, or one of two workers waits for the other at the end."""

from __future__ import annotations

import pytest

FIRST = ("test_readme.py", "test_tensorrt_networks.py", "test_sweep.py", "test_coverage.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: places.get(item.path.name, len(FIRST)))  # stable
