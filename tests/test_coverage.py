"""A representative few of benchmarks/coverage.py, and its table against its results."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SPEC = importlib.util.spec_from_file_location("coverage_benchmark", ROOT / "benchmarks" / "coverage.py")
assert SPEC is not None
assert SPEC.loader is not None
coverage = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(coverage)


@pytest.mark.parametrize(
    "name", ["shufflenet_v2_x0_5", "efficientnet_b0", "timm:deit_tiny_patch16_224", "timm:crossvit_tiny_240"]
)
def test_an_architecture_compiles_with_three_different_forks(name: str) -> None:
    record = coverage.cover(name)
    assert record["ok"], record
    assert record["error"] <= coverage.TOLERANCE
    assert record["spread"] > 0.01  # the answers differ from class to class: not zeros compared with zeros


def test_the_table_is_made_from_the_results() -> None:
    known = coverage.finished()
    records = [known[name] for name in coverage.model_names()]
    assert coverage.TABLE.read_text() == "\n".join(coverage._table(records)) + "\n"
    passed = [record for record in records if record["ok"]]
    assert len([r for r in passed if not r["model"].startswith("timm:")]) == 80
    assert len([r for r in passed if r["model"].startswith("timm:")]) >= 85
