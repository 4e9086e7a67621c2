"""What benchmarks/published_ranges.py says of the published latencies, and the functions that it says it with."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from subtune_deploy.backbone import trace
from subtune_deploy.cost_model import Machine
from subtune_deploy.costs import count_costs
from subtune_deploy.models import load_model

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))
ranges: Any = importlib.import_module("published_ranges")


@pytest.fixture(scope="module")
def graphs() -> Any:
    network = trace(load_model("resnet50"))
    return ranges.Graphs(network, count_costs(network).costs)


def test_a_launch_takes_what_makes_the_published_base(graphs: Any) -> None:
    machine = Machine(78e12, 2039e9)
    for name, seconds, launch in ranges.with_launches(graphs.base, machine):
        assert seconds(graphs.base) == pytest.approx(3.4e-3), name
        assert 15e-6 < launch < 25e-6
    assert ranges.launch_time(graphs.base, machine, 1e-3) < ranges.launch_time(graphs.base, machine, 2e-3)


def test_on_top_is_dearer_than_a_floor(graphs: Any) -> None:
    machine = replace(Machine(78e12, 2039e9), launch=1e-7)
    assert ranges.overlap(machine, graphs.base) < ranges.one_after_the_other(machine, graphs.base)
    assert ranges.launching(2.0, graphs.base) == 2 * ranges.launches(graphs.base)


def test_fused_operators_of_resnet50_are_its_convolutions_its_classifier_and_two_pools(graphs: Any) -> None:
    fused = ranges.fused_costs(graphs.backbone, graphs.costs)
    assert sum(cost.launches for cost in fused.values()) == 53 + 1 + 2
    assert fused["layer4_0"] == replace(graphs.costs["layer4_0"], launches=4)


def test_forks_are_all_runs_of_blocks_and_inside_is_counted() -> None:
    assert ranges.consecutive(3, (1, 2)) == [(1,), (2,), (3,), (1, 2), (2, 3)]
    found = ranges.Predicted("m", "r", 1.0, None, {(1,): 0.0501, (2,): 0.04, (3,): 0.1101, (1, 2): 0.1})
    assert found.range(1) == (0.04, 0.1101)
    assert found.inside(1) == (2, 3)
    assert found.inside(2) == (1, 1)


def test_the_kept_results_are_what_the_script_predicts(graphs: Any) -> None:
    """Launches explain one block, peak rates do not."""
    kept = json.loads((BENCHMARKS / "results" / "published_ranges.json").read_text())
    found = ranges.predictions(graphs.backbone)
    assert json.loads(json.dumps(ranges.document(found))) == kept
    assert (BENCHMARKS / "results" / "published_ranges.md").read_text() == ranges.summary(found)
    by_name = {(each.model, each.rates): each for each in found}
    assert by_name["launches alone", "none"].inside(1) == (16, 16)
    assert by_name["as printed", "TF32"].base < 1e-4
    assert by_name["as printed", "TF32"].inside(1)[0] < 3
