"""What users may import, pinned: a change here is a change for them."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import pytest

import subtune_deploy

PUBLIC = {
    "backbone": ["Backbone", "trace"],
    "breakdown": ["Breakdown", "backbone_of", "breakdown"],
    "build": [
        "BuildOptions",
        "build",
        "parse_batch",
        "plan_for",
    ],
    "compiling": ["check_engine", "check_graph", "compile_bundle"],
    "calibrating": ["Growing", "calibrate", "read_calibration", "run_of"],
    "calibrated": ["Calibrated", "Predicted", "uncalibrated"],
    "choice": ["Choice", "Settled", "decide", "settle"],
    "checkpoint": ["Checkpoint", "fingerprint", "load_into", "match_keys", "read_state", "write_state"],
    "cost_model": [
        "LayerTime",
        "Machine",
        "least_added",
        "machine_of",
        "paper_added",
        "paper_of_blocks",
        "paper_shared",
        "paper_single",
        "paper_total",
        "plan_times",
        "total",
    ],
    "costs": ["CandidateFork", "Candidates", "Counted", "count_costs", "task_costs"],
    "fitting": [
        "Fit",
        "Score",
        "fit",
        "fit_results",
        "learn_most_telling",
        "score",
        "score_fit",
        "score_macs",
    ],
    "export": ["Exported", "export"],
    "loads": ["measure_loads"],
    "onnx_file": ["save_onnx"],
    "joint": ["BudgetError", "Choice", "Option", "Together", "choose_apart", "choose_together", "multiset"],
    "measure": [
        "DeviceTimed",
        "Measurement",
        "Protocol",
        "Several",
        "fresh_batches",
        "measure",
        "order",
        "settled",
    ],
    "models": ["Model", "load_model"],
    "goal": ["Decision", "Effort", "Goal", "Optimized"],
    "latency_model": ["Anchor", "LatencyModel", "anchor", "check_ratio", "latency_model"],
    "multitask": ["lower"],
    "pareto": ["Point", "check_interval", "choose", "dominates", "front", "knee", "open_rivals", "undecided"],
    "optimize": ["Listener", "optimize"],
    "parity": ["Figure", "References", "check", "relative_errors", "run_all"],
    "packing": ["Packing", "packings", "stretches"],
    "plan": ["Plan", "Step", "candidate_owners", "make_plan"],
    "predictor": ["Costing", "Predictor", "task_forks"],
    "report": ["gather", "make_document", "matched", "page", "write_page"],
    "report_points": ["Predicted", "histogram", "measured_point", "predicted_points"],
    "result_tables": ["compare", "markdown", "rows", "to_csv"],
    "results": [
        "Result",
        "Timing",
        "check_comparable",
        "nearest_heads",
        "of_target",
        "read_results",
        "schema",
    ],
    "runtime": ["Bundle", "engine_files", "load_engine", "load_streams", "softmax"],
    "stats": [
        "Interval",
        "Ratio",
        "bootstrap_median",
        "mean_interval",
        "median",
        "median_over_loads",
        "medians",
        "order_statistic_interval",
        "paired_ratio",
        "percentile",
        "quotient",
        "ratio_over_loads",
    ],
    "streams": ["Streamed", "counted", "measure_streams"],
    "sweep": ["Candidate", "SweepOptions", "candidates", "canonical", "sweep"],
    "throughput": ["Throughput", "Throughputs", "fitting_batches", "time_streams"],
    "timing": ["time_bundle"],
    "tasks": [
        "Task",
        "base_task",
        "candidate_task",
        "check_names",
        "own_classes",
        "owners",
        "standalone",
        "task_from_checkpoint",
        "task_state",
        "tuned_blocks",
    ],
    "tradeoff": [
        "accuracies",
        "candidates",
        "check_profiles",
        "check_same",
        "head_of",
        "draw_tradeoff",
        "head_alone",
        "in_words",
        "join",
        "latencies",
        "told",
    ],
    "work": ["Cost", "Use", "Work", "layers_of", "plan_works", "unpacked"],
}


def defined(module_name: str) -> dict[str, object]:
    """Public functions and classes that a module defines itself."""
    module = importlib.import_module(f"subtune_deploy.{module_name}")
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__ == module.__name__
    }


@pytest.mark.parametrize("module", PUBLIC)
def test_the_documented_names_are_there(module: str) -> None:
    assert set(PUBLIC[module]) <= set(defined(module))


def every_module() -> list[str]:
    walked = pkgutil.walk_packages(subtune_deploy.__path__, "subtune_deploy.")
    return [found.name.removeprefix("subtune_deploy.") for found in walked]


@pytest.mark.parametrize("module", every_module())
def test_everything_public_is_documented(module: str) -> None:
    assert inspect.getdoc(importlib.import_module(f"subtune_deploy.{module}"))
    undocumented = [name for name, value in defined(module).items() if not inspect.getdoc(value)]
    assert not undocumented
