"""Which units of a graph int8 costs most, measured: the error that each alone makes while all others are in float32.

The other way round, one left in float32 of a graph in int8, tells less: of twenty errors that add up like noise one
less is hardly seen. What belongs to no unit, as pooling between two blocks, is in int8 each time. Each graph is
quantised for its unit and run on this CPU, whatever the target is, on few of the calibration inputs. That ranks units;
how many have to be left in float32 is for whoever asks on other inputs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .backends.base import Batch, source_file
from .backends.onnxruntime import open_literally
from .parity import relative_errors, run_all
from .precision import converted
from .quantization import Form, versions
from .spec import GRAPH

SAMPLE = 16
"""Inputs that a graph is quantised with, and asked about."""

Answers = Mapping[str, npt.NDArray[Any]]


def sensitivities(
    graphs: Path, calibration: Batch, *, form: Form, tasks: Collection[str], batch: int | None
) -> dict[str, float]:
    """By unit and version (`block13.birds`), greatest first: how much `tasks` err where it alone is in int8.

    `graphs`: a folder with graph.onnx in float32, which takes `batch` inputs (None: any number); `calibration`:
    float32 (n, C, H, W). An error is relative, the mean over inputs and tasks. The graph is quantised once for every
    version. Raises as `converted` does.
    """
    import onnx_ir as ir

    path, sample = source_file(graphs, GRAPH), _few(calibration)
    wanted = run_all(open_literally(path), sample, batch or 1)

    def error(alone: str) -> float:
        keep = tuple(unit for unit in units if unit != alone)
        answers = _quantised(graphs, sample, keep, form, batch)
        return float(np.mean([relative_errors(answers[task], wanted[task]).mean() for task in tasks]))

    units = versions(ir.load(path))
    errors = {unit: error(unit) for unit in units}
    return dict(sorted(errors.items(), key=lambda each: -each[1]))


def fewest(count: int, holds: Callable[[int], bool]) -> int | None:
    """The least number below `count` that holds, by doubling and then halving, as if all above it held too.

    None where not even the greatest does. Of what does not rise so steadily, one that holds.
    """
    low, last = 0, count - 1
    doubled = [1 << power for power in range(count.bit_length()) if 1 << power < last]
    for high in [*doubled, last] if last > 0 else []:
        if holds(high):
            break
        low = high
    else:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle
    return high


def _few(inputs: Batch) -> Batch:
    """Some of them, from the first to the last."""
    count = min(SAMPLE, len(inputs))
    return np.asarray(inputs[np.linspace(0, len(inputs) - 1, count).round().astype(np.int64)])


def _quantised(graphs: Path, sample: Batch, keep: tuple[str, ...], form: Form, batch: int | None) -> Answers:
    with tempfile.TemporaryDirectory(prefix="subtune-") as scratch:
        out = Path(scratch)
        converted(graphs, out, "int8", sample, form=form, keep=keep, roles=("graph",))
        return run_all(open_literally(out / GRAPH), sample, batch or 1)
