"""A double for the clock of races: engines are opened and run as they are, how long they take is made up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from subtune_deploy import racing
from subtune_deploy.backends.base import Engine
from subtune_deploy.measure import LOADS, Measurement, Protocol

Measure = Callable[[Mapping[str, Engine], Any, Protocol], Measurement]
Favour = Callable[..., list[tuple[str, ...]]]


def time_by(monkeypatch: pytest.MonkeyPatch, measure: Measure) -> None:
    """Let `measure` tell what engines take, by turns and over loads, of which there is one then."""

    def measure_loads(
        load: Callable[[], Mapping[str, Engine]], batches: Any, protocol: Protocol
    ) -> Measurement:
        found = measure(load(), batches, protocol)
        rounds = len(next(iter(found.samples.values())))
        return replace(found, loads=(rounds // LOADS,) * LOADS)

    monkeypatch.setattr(racing, "measure", measure)
    monkeypatch.setattr(racing, "measure_loads", measure_loads)


def favouring(monkeypatch: pytest.MonkeyPatch) -> Favour:
    """Sets how long plans seem to take, by name, 1 where not given, and tells which were run by turns."""
    ran = list[tuple[str, ...]]()

    def choose(spans: Mapping[str, float] | None = None) -> list[tuple[str, ...]]:
        def measure(engines: Mapping[str, Engine], batches: Any, protocol: Protocol) -> Measurement:
            for engine in engines.values():
                assert engine.run(batches[0])
            ran.append(tuple(engines))
            return Measurement(
                protocol, {name: ((spans or {}).get(name, 1.0),) * 24 for name in engines}, True
            )

        time_by(monkeypatch, measure)
        return ran

    return choose
