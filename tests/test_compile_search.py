"""`compile` with plans and settings that are searched: what the bundle keeps of it, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from tiny_cli import Ran, cli, write_calibration, write_network
from tiny_racing import Favour, favouring

from subtune_deploy import onnx_file, plan_search
from subtune_deploy.bundle import engine_target, open_bundle
from subtune_deploy.measure import Protocol
from subtune_deploy.runtime import load_engine
from subtune_deploy.timing import time_bundle

QUICK = Protocol(seconds=0.2)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan_search")
    write_network(folder)
    exported(folder, "--layers", "2-3", "--tasks", 2)
    return folder


def exported(place: Path, *asked: object, name: str = "bundle") -> None:
    network = ("--model", f"{place}/net.py:Net", "--weights", place / "base.pt")
    ran = cli("export", *network, *asked, "-o", place / name)
    assert ran.status == 0, ran.err


@pytest.fixture
def favour(monkeypatch: pytest.MonkeyPatch) -> Favour:
    return favouring(monkeypatch)


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_search, "usable_cores", lambda: 2)


def compiled(place: Path, *asked: object, target: str = "cpu") -> Ran:
    return cli("compile", place / "bundle", "--target", target, "--model", f"{place}/net.py:Net", *asked)


def test_the_engine_keeps_its_own_graph_and_what_it_was_held_against(
    place: Path, favour: Favour, tmp_path: Path
) -> None:
    favour({"grouped block2, block3": 0.5})
    ran = compiled(place, "--merge", "auto", "--lowering", "auto")
    assert ran.status == 0, ran.err
    assert "plan: grouped block2, block3" in ran.out
    bundle = open_bundle(place / "bundle")
    facts = bundle.manifest.engines["cpu"].facts
    assert facts["plan"]["grouped"] == ["block2", "block3"]
    assert {each["name"] for each in facts["searched"]} >= {"not merged", "grouped block2"}
    own = onnx.load(place / "bundle" / "cpu" / "source" / "graph.onnx")
    assert any(each.name == "group" and each.i > 1 for node in own.graph.node for each in node.attribute)
    result = time_bundle(bundle, "cpu", QUICK)
    assert (result.merge, result.grouped) == ("always", ("block2", "block3"))
    assert cli("verify", place / "bundle", "--deep").status == 0
    batch = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    searched = load_engine(bundle, "cpu").run(batch)
    shipped = tmp_path / "shipped.tar"
    assert cli("ship", place / "bundle", "--as", "tar", "-o", shipped).status == 0
    assert compiled(place).status == 0  # as exported again
    bundle = open_bundle(place / "bundle")
    assert not bundle.manifest.engines["cpu"].facts.keys() & {"plan", "searched"}
    assert not (place / "bundle" / "cpu" / "source").exists()
    for name, answer in load_engine(bundle, "cpu").run(batch).items():
        np.testing.assert_allclose(searched[name], answer, rtol=1e-4, atol=1e-5)


def test_weights_that_lie_beside_a_graph_come_along(
    tmp_path: Path, favour: Favour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of a network that protobuf cannot hold do."""
    monkeypatch.setattr(onnx_file, "PROTOBUF_LIMIT", 1000)
    favour({"not merged": 0.5})
    write_network(tmp_path)
    exported(tmp_path, "--layers", "2")
    assert (tmp_path / "bundle" / "base.onnx.data").is_file()
    ran = compiled(tmp_path, "--merge", "auto")
    assert ran.status == 0, ran.err
    source = tmp_path / "bundle" / "cpu" / "source"
    assert {path.name for path in source.iterdir()} == {
        f"{role}.onnx{end}" for role in ("graph", "base") for end in ("", ".data")
    }
    assert cli("verify", tmp_path / "bundle", "--deep").status == 0


def test_the_engine_keeps_for_which_batch_it_was_searched(place: Path, favour: Favour) -> None:
    favour({"not merged": 0.5})
    bundle = place / "dynamic"
    exported(place, "--layers", "2", "--batch", "dynamic", name="dynamic")
    ran = cli("compile", bundle, "--model", f"{place}/net.py:Net", "--merge", "auto", "--for-batch", 4)
    assert ran.status == 0, ran.err
    facts = open_bundle(bundle).manifest.engines["cpu"].facts
    assert (facts["pictures"], facts["plan"]["merge"]) == (4, "never")


@pytest.mark.parametrize("target", ["cpu", "openvino-cpu"])
def test_the_engine_keeps_the_settings_that_were_fastest(
    place: Path, favour: Favour, two_cores: None, target: str
) -> None:
    favour({"1 thread": 0.5})
    ran = cli("compile", place / "bundle", "--target", target, "--settings", "auto")  # no network is needed
    assert ran.status == 0, ran.err
    assert "settings: threads 1" in ran.out
    bundle = open_bundle(place / "bundle")
    assert engine_target(bundle, target).threads == 1
    assert load_engine(bundle, target).threads == 1
    assert time_bundle(bundle, target, QUICK).options == engine_target(bundle, target).options
    assert {each["name"] for each in bundle.manifest.engines[target].facts["searched"]} >= {"1 thread"}
    assert cli("verify", place / "bundle").status == 0
    assert compiled(place, target=target).status == 0
    assert engine_target(open_bundle(place / "bundle"), target).threads == 0


def test_a_calibration_spares_what_it_predicts_to_be_slow(
    place: Path, favour: Favour, tmp_path: Path
) -> None:
    """Of a device that pays for weights what it pays for blocks, and nothing for streams; then of the reverse."""
    dear, cheap = (write_calibration(place, tmp_path / f"{fixed}.json", fixed) for fixed in (0.2, 0.0))
    ran = favour()
    assert compiled(place, "--merge", "auto", "--calibration", dear).status == 0
    assert ran == []
    (spared,) = open_bundle(place / "bundle").manifest.engines["cpu"].facts["searched"]
    assert (spared["name"], spared["failed"].split(" to take ")[0]) == (
        "not merged",
        "not compiled: predicted",
    )
    told = compiled(place, "--merge", "auto", "--calibration", cheap)
    assert (told.status, ran) == (0, [("as exported", "not merged")]), told.err


def test_the_torch_backend_keeps_the_program_too(place: Path, favour: Favour) -> None:
    favour({"not merged": 0.5})
    ran = compiled(place, "--merge", "auto", target="torch-cpu")
    assert ran.status == 0, ran.err
    assert "plan: not merged" in ran.out
    assert cli("verify", place / "bundle").status == 0


def test_measured_for_real_it_is_never_taken_unless_shown_to_be_faster(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_search.fastest_plan.__wrapped__, "__kwdefaults__", {
        **plan_search.fastest_plan.__wrapped__.__kwdefaults__, "protocol": QUICK,
    })  # fmt: skip
    ran = compiled(place, "--merge", "auto")
    assert ran.status == 0, ran.err
    facts = open_bundle(place / "bundle").manifest.engines["cpu"].facts
    shown = [each for each in facts["searched"] if each["ratio"] and each["ratio"]["high"] < 1]
    assert ("plan" in facts) <= bool(shown)
    assert facts["searched"][0]["against"] == "as exported"


def test_bad_input_is_one_line(place: Path, tmp_path: Path) -> None:
    found = write_calibration(place, tmp_path / "found.json", 0.1)
    searched = ("--model", f"{place}/net.py:Net", "--merge", "auto", "--calibration", found)
    for arguments, says in {
        ("--target", "cpu", "--merge", "auto"): "which is not run unasked",
        ("--target", "cpu", "--merge", "fast"): "'fast' is not one of",
        ("--target", "cpu", "--for-batch", 8): "--for-batch goes with a search",
        ("--target", "cpu", "--settings", "auto", "--for-batch", 8): "takes batches of 1, not 8",
        ("--target", "cpu", "--calibration", found): "--calibration goes with --merge auto",
        ("--target", "openvino-cpu", *searched): "was measured on cpu, with another recipe than openvino-cpu",
        ("--target", "cpu", "--target", "torch-cpu", *searched): "with another recipe than torch-cpu",
        ("--target", "cpu", *searched, "--for-batch", 8): "takes batches of 1, not 8",
    }.items():
        ran = cli("compile", place / "bundle", *arguments)
        assert (ran.status, ran.out) == (2, ""), ran.err
        assert says in ran.err


def test_a_backend_without_settings_has_none_to_choose(place: Path, favour: Favour) -> None:
    ran = favour()
    asked = compiled(place, "--settings", "auto", target="torch-cpu")
    assert (asked.status, ran) == (0, []), asked.err
