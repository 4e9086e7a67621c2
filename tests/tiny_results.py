"""Results that were never measured, for the tests of what is done with results."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from subtune_deploy.measure import Protocol
from subtune_deploy.results import Result, Timing
from subtune_deploy.stats import Ratio

HOST = {"cpu": "tiny CPU", "cores": 2, "python": "3.12.1", "libraries": {"onnxruntime": "1.20.0"}}


def timing(seconds: float) -> Timing:
    return Timing(
        seconds,
        seconds * 0.99,
        seconds * 1.01,
        seconds,
        seconds * 1.1,
        seconds * 1.2,
        seconds * 2,
        1000,
        5000,
    )


def result(
    added: float = 0.25, width: float = 0.01, layers: tuple[int, ...] = (3, 4), **other: Any
) -> Result:
    value = 1 + added
    made = Result(
        model="tiny",
        weights="random",
        input_shape=(3, 8, 8),
        batch=1,
        layers=layers,
        forks={"task1": layers},
        merge="always",
        grouped=(),
        target="cpu",
        backend="onnxruntime",
        precision="fp32",
        threads=1,
        protocol=Protocol(),
        inputs="fresh",
        ratio=Ratio(value, value - width, value + width),
        settled=True,
        base=timing(0.01),
        graph=timing(0.01 * value),
        started="2026-01-01T00:00:00+00:00",
        host=HOST,
        conditions={"others": 0.0},
        warnings=(),
        samples={"base": (0.01, 0.0100000004), "graph": (0.0125, 0.0125)},
    )
    return replace(made, **other)
