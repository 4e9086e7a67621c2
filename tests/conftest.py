"""What keeps the whole suite short."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest

FIRST = ("test_readme.py", "test_tensorrt_networks.py", "test_sweep.py", "test_coverage.py")
"""The files that take longest begin first, or the other workers wait for one at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: places.get(item.path.name, len(FIRST)))  # stable


@pytest.fixture(scope="session", autouse=True)
def one_table_of_operators() -> Iterator[None]:
    """PyTorch's exporter makes its table of operators anew for each export, for a third of the export's time.

    Nothing here adds to the table, so that one serves all. It has no public name: where it is called otherwise, each
    export makes its own.
    """
    with pytest.MonkeyPatch.context() as patch:
        try:
            from torch.onnx._internal.exporter._registration import ONNXRegistry

            make = ONNXRegistry.from_torchlib.__func__
        except (ImportError, AttributeError):
            pass
        else:
            patch.setattr(ONNXRegistry, "from_torchlib", classmethod(cache(make)))
        yield
