"""What benchmarks/roofline.py, plans.py and plans_spared.py say: what is counted, and what follows from it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from subtune_deploy.backbone import trace
from subtune_deploy.build import plan_as
from subtune_deploy.costs import count_costs
from subtune_deploy.export import export
from subtune_deploy.models import load_model
from subtune_deploy.tasks import candidate_task

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
peers, plans, plans_spared, roofline = map(
    importlib.import_module, ("peers", "plans", "plans_spared", "roofline")
)


@pytest.mark.parametrize("model", ["resnet18", "vit_b_16", "mobilenet_v2"])
def test_multiply_adds_are_those_that_pytorch_counts(model: str) -> None:
    """Two counters that know nothing of each other: of ONNX nodes, and of PyTorch's own operators."""
    network = trace(load_model(model, input_size=(3, 64, 64)))
    tasks = [candidate_task(network, "birds", (), seed=1)]
    exported = export(network, tasks, plan_as(network, tasks, "always", (), ()))
    counted = sum(macs for macs, _ in roofline.sums(exported.lone))
    assert counted == sum(cost.macs for cost in count_costs(network).costs.values())
    assert sum(macs for macs, _ in roofline.sums(exported.graph)) > counted


def test_an_operator_takes_the_longer_of_its_two_times() -> None:
    """1,000 multiply-adds at 100 a second take 10 s, 50 bytes at 10 a second 5 s."""
    assert roofline.bound([(1000, 50)], 100, 10) == 10
    assert roofline.bound([(1000, 50), (0, 50)], 100, 10) == 15
    assert roofline.bound([(1000, 50)], 100, 1) == 50


def test_what_is_added_is_over_what_the_work_allows() -> None:
    """The base takes 2 s of at least 1, the graph 5 s of at least 2: 3 s are added where 1 must be."""
    line = {
        "model": "m", "fork": "1", "tasks": 1, "group": "openvino", "samples": {"base": [2.0] * 40, "ours": [5.0] * 40},
    }  # fmt: skip
    document = {
        "ceilings": {"macs": {"openvino-cpu": 100}, "bytes": 1e9},
        "sums": {str(peers.Key("m", "1", 1, "")): {"base": [[100, 4]], "ours": [[200, 4]]}},
    }
    (found,) = roofline.distances(document, [line], 1.0)
    assert (found.base, found.graph, found.tasks, found.relative) == pytest.approx((2.0, 2.5, 3.0, 1.5))


def test_a_search_is_judged_by_the_better_of_both_plain_plans() -> None:
    line = {
        "samples": {"base": [1.0] * 60, "always": [3.0] * 60, "never": [2.0] * 60, "auto": [1.8] * 60},
        "loads": [10] * 6,
    }
    assert plans._over_better(line).value == pytest.approx(0.9)
    del line["samples"]["auto"]  # the exported plan was kept, which merges always
    assert plans._over_better(line).value == pytest.approx(1.5)


def test_what_a_calibration_would_have_spared_was_slower() -> None:
    """EfficientNet-B0's kept search in ONNX Runtime, predicted from kept measurements of other graphs."""
    line = next(
        each for each in plans.lines() if (each["model"], each["target"]) == ("efficientnet_b0", "cpu")
    )
    asked = list(plans_spared.asked(line))
    assert len(asked) == 5
    assert [each.name for each in asked if each.spared]
    assert all(each.measured.low > 1 for each in asked if each.spared)
