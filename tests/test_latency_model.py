"""A calibration's file: what it says, what it refuses, and what comes of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_results import HOST, result

from subtune_deploy.documents import from_document, read_document, to_document, write_document
from subtune_deploy.errors import InputError
from subtune_deploy.latency_model import LatencyModel, anchor, latency_model
from subtune_deploy.spec import Pruning
from subtune_deploy.stats import Ratio
from subtune_deploy.targets import load_target

RESULTS = [
    result(0.2, layers=(4,)),
    result(0.5, layers=(1, 4), forks={"task1": (4,), "task2": (1,), "task3": (4,)}, prune=Pruning(0.5)),
    result(0.3, layers=(2,), merge=["add_3"], started="2026-01-02T10:30:00+00:00"),
]


def made() -> LatencyModel:
    return latency_model(RESULTS, "digest", load_target("cpu"))


def test_it_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    write_document(tmp_path / "x.json", made())
    assert read_document(LatencyModel, tmp_path / "x.json") == made()
    assert "samples" not in (tmp_path / "x.json").read_text()


def test_it_says_when_where_and_on_what_it_was_fitted() -> None:
    assert str(made()) == (
        "cpu (onnxruntime, fp32) on tiny CPU, fitted 2026-01-02 10:30 UTC to 3 measurements: "
        "4, 4 x2 + 1 pruned 0.5 local l1, 2"
    )
    assert made().base_seconds == 0.01


def test_an_anchor_keeps_how_the_graph_was_made() -> None:
    three = anchor(RESULTS[1])
    assert three.forks == ((4,), (1,), (4,))
    assert three.prune == Pruning(0.5)
    assert anchor(RESULTS[2]).merge == ("add_3",)
    assert three.added.value == pytest.approx(0.5)
    assert three.added.low == pytest.approx(0.49)


def test_it_grows() -> None:
    later = result(0.1, layers=(3,), started="2026-03-01T00:00:00+00:00")
    grown = made().grown(later)
    assert [*map(str, grown.anchors)][-1] == "3"
    assert grown.fitted == "2026-03-01T00:00:00+00:00"
    assert grown.grown(RESULTS[0]).fitted == grown.fitted


def test_another_host_version_or_network_is_refused() -> None:
    made().check_host(HOST)
    made().check_network("tiny", "digest")
    with pytest.raises(InputError, match=r"another host or versions: onnxruntime 1\.20\.0 / 1\.21\.0"):
        made().check_host(HOST | {"libraries": {"onnxruntime": "1.21.0"}})
    with pytest.raises(InputError, match="cpu tiny CPU / big CPU"):
        made().check_host(HOST | {"cpu": "big CPU"})
    with pytest.raises(InputError, match="is of tiny on input 3x8x8, not of this tiny"):
        made().check_network("tiny", "another")


@pytest.mark.parametrize("ratio", [float("nan"), float("inf"), -0.5, 0.0])
def test_ratios_that_no_engine_has_are_refused(tmp_path: Path, ratio: float) -> None:
    document = to_document(made())
    document["anchors"][0]["ratio"] = {"value": ratio, "low": ratio, "high": ratio}
    with pytest.raises(InputError, match="times the base"):
        from_document(LatencyModel, document)
    with pytest.raises(InputError):
        replace(made(), anchors=(replace(made().anchors[0], ratio=Ratio(ratio, ratio, ratio)),))
    with pytest.raises(InputError, match="has no measurement"):
        replace(made(), anchors=())
    with pytest.raises(InputError, match="no measurement to calibrate with"):
        latency_model([], "digest", load_target("cpu"))


def test_results_that_do_not_belong_together_make_none() -> None:
    with pytest.raises(InputError, match="do not belong together"):
        latency_model([RESULTS[0], replace(RESULTS[1], inputs="hot")], "digest", load_target("cpu"))


def test_a_file_that_was_edited_is_refused_in_one_line() -> None:
    document = to_document(made())
    with pytest.raises(InputError, match="was fitted 'soon', which is no date"):
        from_document(LatencyModel, {**document, "fitted": "soon"})
    few = {**document["anchors"][1], "classes": [10]}
    with pytest.raises(InputError, match="has 3 tasks, and classes of 1"):
        from_document(LatencyModel, {**document, "anchors": [few]})
