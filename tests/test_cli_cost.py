"""The command `cost`, on the kept sweep of ResNet-50 and on bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_cli import cli
from tiny_results import result

from subtune_deploy.backbone import trace
from subtune_deploy.cli.costing import fit_run, results_of
from subtune_deploy.models import load_model
from subtune_deploy.predictor import Costing
from subtune_deploy.results import append_result

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
SWEEP, PRUNED = RESULTS / "resnet50_sweep", RESULTS / "pruning_sweep"


def test_a_fork_of_resnet50_by_all_models() -> None:
    asked = ("--layers", "13-14", "--target", "a100-sxm4-80gb-fp16", "--run", SWEEP)
    document = cli("cost", *asked, "--json").document
    predicted = {name: each["ratio"] for name, each in document["predicted"].items()}
    assert set(predicted) == {
        "multiply-adds", "plan, a100-sxm4-80gb-fp16", "paper, a100-sxm4-80gb-fp16", "calibrated, cpu"
    }  # fmt: skip
    assert predicted["calibrated, cpu"] == pytest.approx(1.28, abs=0.04)  # measured: 1.28
    assert predicted["plan, a100-sxm4-80gb-fp16"] < predicted["paper, a100-sxm4-80gb-fp16"]
    assert document["held_out"]["calibrated"]["count"] == 35
    assert document["held_out"]["calibrated"]["added"] < document["held_out"]["multiply-adds"]["added"]
    assert len(document["fitted"]) == 10
    works = {work["unit"]: work for work in document["works"]}
    assert (works["block12"]["streams"], works["block13"]["streams"]) == (1, 2)
    assert works["block14"]["weights"] == 2 * 6_049_792
    assert works["block15"]["weights"] == 4_468_736
    shown = cli("cost", *asked)
    assert shown.status == 0
    assert shown.row("block15")[1:3] == ["2", "436,731,904"]
    assert "35 measurements that were held out" in shown.out
    assert "nothing of this was run on that device" in shown.err


def test_many_tasks_scattered_and_thinner_forks_cost_what_they_ask() -> None:
    def macs(*arguments: str) -> float:
        ran = cli("cost", "--model", "resnet18", *arguments, "--json")
        return ran.document["predicted"]["multiply-adds"]["ratio"]

    one, eight = macs("--layers", "7-8"), macs("--layers", "7-8", "--tasks", "8")
    assert eight - 1 == pytest.approx(8 * (one - 1))
    both = macs("--layers", "7", "--layers", "2,8")
    assert both - 1 == pytest.approx(macs("--layers", "7") - 1 + macs("--layers", "2,8") - 1)
    assert macs("--layers", "7", "--layers", "7") == macs("--layers", "7", "--tasks", "2")
    assert 1 < macs("--layers", "7-8", "--prune", "0.5") < one
    assert macs("--layers", "none") < 1.001
    assert macs("--layers", "2,7") == pytest.approx(
        macs("--layers", "2")
    )  # all after 2 runs once more anyway


def test_pruned_forks_are_told_from_ten_of_them_where_multiply_adds_are_not() -> None:
    """Kept by benchmarks/pruning_curve.py: two forks of EfficientNet-Lite0, whole and thinner, on two engines."""
    costing = Costing(trace(load_model("timm:tf_efficientnet_lite0")))  # what takes long, for both
    for target in ("cpu", "openvino-cpu"):
        _, told = fit_run(results_of(PRUNED, costing.backbone, target), costing, 10)
        held_out = told["held_out"]
        assert held_out["calibrated"]["count"] == 19
        assert held_out["calibrated"]["total"] < 0.01
        assert held_out["calibrated"]["added"] < 0.04 < 0.2 < held_out["multiply-adds"]["added"]


def test_one_result_that_was_held_out_has_no_rank(tmp_path: Path) -> None:
    for layers, added in (((7, 8), 0.3), ((2,), 0.9)):
        each = result(added, layers=layers, model="resnet18", input_shape=(3, 64, 64))
        append_result(tmp_path / "two.jsonl", each)
    asked = ("cost", "--model", "resnet18", "--input-size", "3x64x64", "--layers", "8", "--run")
    document = cli(*asked, tmp_path / "two.jsonl", "--json").document
    assert document["held_out"]["calibrated"]["rank"] is None
    ran = cli(*asked, tmp_path / "two.jsonl")
    assert ran.status == 0
    assert "1 measurement that was held out" in ran.out
    assert "rank" not in ran.out


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    other, two, line = tmp_path / "other.jsonl", tmp_path / "two.jsonl", "not JSON\n{}\n"
    append_result(other, result(0.2))
    for target in ("cpu", "openvino-cpu"):
        append_result(two, result(0.2, target=target))
    two.write_text(two.read_text().replace('"tiny"', '"resnet18"'))
    (tmp_path / "broken.jsonl").write_text(line)
    small = json.loads(two.read_text().splitlines()[0])
    (tmp_path / "small.jsonl").write_text(json.dumps(small | {"input_shape": [3, 64, 64]}) + "\n")
    for arguments, says in {
        ("--layers", "7-8", "--run", str(other)): "is of tiny, not of resnet18",
        ("--layers", "7-8", "--run", str(two)): "several targets: cpu, openvino-cpu",
        ("--layers", "7-8", "--run", str(tmp_path / "broken.jsonl")): "broken.jsonl",
        ("--layers", "7-8", "--run", str(tmp_path / "small.jsonl")): "measured on input 3x64x64",
        ("--layers", "7-8", "--run", str(tmp_path / "none")): "holds no results",
        ("--layers", "7-8", "--target", "cpu"): "no datasheet number",
        ("--layers", "7-8", "--target", "abacus"): "abacus",
        ("--layers", "7-8", "--run", str(two), "--calibration", str(two)): "both of --run and --calibration",
        ("--layers", "9"): "9",
        ("--layers", "7-8", "--measurements", "0"): "0",
        ("--layers", "7-8", "--prune", "1"): "1",
    }.items():
        ran = cli("cost", "--model", "resnet18", *arguments)
        assert ran.status == 2, arguments
        assert says in ran.err, ran.err
        assert "hint: " in ran.err
        assert "Traceback" not in ran.err
