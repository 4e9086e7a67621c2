"""What benchmarks/roofline.py, plans.py and plans_spared.py say: what is counted, and what follows from it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

from subtune_deploy.backbone import trace
from subtune_deploy.build import plan_as
from subtune_deploy.costs import count_costs
from subtune_deploy.export import export
from subtune_deploy.models import load_model
from subtune_deploy.tasks import candidate_task

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
plans, plans_spared, roofline, tables = map(
    importlib.import_module, ("plans", "plans_spared", "roofline", "roofline_tables")
)


@pytest.mark.parametrize("model", ["resnet18", "vit_b_16", "mobilenet_v2"])
def test_multiply_adds_are_those_that_pytorch_counts(model: str) -> None:
    """Two counters that know nothing of each other: of ONNX nodes, and of PyTorch's own operators."""
    network = trace(load_model(model, input_size=(3, 64, 64)))
    tasks = [candidate_task(network, "birds", (), seed=1)]
    exported = export(network, tasks, plan_as(network, tasks, "always", (), ()))
    counted = sum(macs * count for macs, _, count in roofline.sums(exported.lone))
    assert counted == sum(cost.macs for cost in count_costs(network).costs.values())
    assert sum(macs * count for macs, _, count in roofline.sums(exported.graph)) > counted


def test_an_operator_takes_the_longer_of_its_two_times() -> None:
    """1,000 multiply-adds at 100 a second take 10 s, 50 elements at 10 a second 5 s."""
    assert tables.bound([(1000, 50, 1)], 100, 10) == 10
    assert tables.bound([(1000, 50, 2), (0, 50, 3)], 100, 10) == 35
    assert tables.bound([(1000, 50, 1)], 100, 1) == 50


@pytest.mark.parametrize(("target", "width"), [("openvino-cpu", 4), ("openvino-cpu-bf16", 2)])
def test_what_is_added_is_over_what_the_work_allows(target: str, width: int) -> None:
    """The base takes 2 s of at least 1, the graph 5 s of at least 2: 3 s are added where 1 must be."""
    bandwidth = 2 * tables.COPIED / 0.5
    line = {
        "model": "m", "fork": "1", "tasks": 1, "target": target,
        "samples": {
            "base": [2.0] * 40, "graph": [5.0] * 40, "product": [1.0] * 40, "copy": [0.5] * 40,
        },
        "sums": {"base": [(tables.SIDE**3, 4, 1)], "graph": [(0, int(bandwidth / width), 2)]},
    }  # fmt: skip
    found = tables.distance(line)
    assert (found.base, found.graph, found.tasks, found.relative) == pytest.approx((2.0, 2.5, 3.0, 1.5))
    assert tables.distance(line, 0.5).graph == pytest.approx(1.25)


def test_the_ceiling_is_the_product_that_it_is_said_to_be(tmp_path: Path) -> None:
    """Against NumPy: a library that left some of it out would set the ceiling too high."""
    engines = roofline.ceilings(tmp_path, "cpu")
    assert set(engines) == {"product", "copy"}
    product = roofline.matrix_product(tmp_path / "again", "cpu")
    given = np.random.default_rng(0).standard_normal((1, 1, tables.SIDE, tables.SIDE), dtype=np.float32)
    matrix = np.random.default_rng(1).standard_normal((tables.SIDE, tables.SIDE), dtype=np.float32)
    np.testing.assert_allclose(product.run(given)["base"][0, 0], given[0, 0] @ matrix, rtol=1e-3, atol=1e-2)


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
