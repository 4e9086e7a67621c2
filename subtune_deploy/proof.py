"""Proof on a CPU that an engine for another device was compiled from the right network.

The network that the parser handed to the compiler is executed, and every task compared with its stand-alone
model and with ONNX Runtime on the same source graph; the engine's file is looked into. What is left for the
device to show is that it runs, and how fast.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .backends.base import ROLES, Engine, Inspectable, Target, source_file
from .backends.onnxruntime import open_literally
from .errors import BundleError, Unavailable
from .parity import TOLERANCES, By, References, check, compare, run_all
from .spec import GRAPH

BY: By = "parsed network"
"""What answered, in a parity figure: not the engine itself."""

OTHER = "ONNX Runtime"

SAME_GRAPH = {**TOLERANCES, "int8": 0.2}
"""Against another runtime of the same graph: in int8 only numbers that lie between two steps may fall to either side
(0.09 at most in benchmarks/results/tensorrt_builds.md), while the model's own numbers were rounded before that."""

_BEYOND_ONNX_RUNTIME = ("bf16",)
"""Precisions for which it may lack an operator on a CPU."""


def prove(
    source: Path,
    folder: Path,
    target: Target,
    backend: Inspectable,
    references: References,
    batch: int | None,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Parity figures of the parsed network, and facts about the engine files by role; both JSON-able.

    `source`: the folder of graph.onnx and base.onnx that were compiled; `folder`: of the engines; `batch`: that
    of the graph, None for any. Raises ParityError naming task, input and class, BundleError where the engine's
    file is not as it should be. For a network with layers that cannot be executed here there are no figures, and
    the facts say so.
    """
    facts: dict[str, Any] = {role: backend.examine(source, folder, role, target) for role in ROLES}
    try:
        graph, lone = (backend.interpret(source, role, target) for role in ROLES)
    except Unavailable as error:  # a layer that our interpreter lacks; the compiler took it
        return [], {**facts, BY: f"not executed: {error.message}"}
    figures = check(graph, lone, references, batch=batch, precision=target.precision, by=BY)
    try:
        other = open_literally(source_file(source, GRAPH))
    except BundleError as error:
        if target.precision not in _BEYOND_ONNX_RUNTIME:
            raise
        facts[OTHER] = f"not compared: {error.message}"
    else:
        figures += _against(other, graph, references, batch, target.precision)
        facts[OTHER] = "compared"
    return figures, facts


def _against(
    other: Engine, graph: Engine, references: References, batch: int | None, precision: str
) -> Iterator[dict[str, Any]]:
    tolerance = SAME_GRAPH[precision]
    expected, answers = (run_all(engine, references.inputs, batch) for engine in (other, graph))
    for task in references.answers:
        for figure in compare(task, OTHER, answers[task], expected[task], references, tolerance):
            yield {**asdict(figure), "tolerance": tolerance, "by": BY}
