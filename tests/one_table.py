"""PyTorch's exporter makes its table of operators anew for each export, for a third of the export's time.

Nothing in the tests adds to the table, so that where this is imported one serves all exports of the process, and of
those that are forked from it.
"""

from __future__ import annotations

from functools import cache


def keep_one_table() -> None:
    """The table has no public name: where it is called otherwise, each export makes its own."""
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        make = ONNXRegistry.from_torchlib.__func__
    except (ImportError, AttributeError):
        return
    ONNXRegistry.from_torchlib = classmethod(cache(make))


keep_one_table()
