"""Every command, on a network small enough that each takes a second or two."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_cli import PHOTOGRAPH, Ran, cli, tuned, write_network

from subtune_deploy.bundle import held, open_bundle, seal
from subtune_deploy.cli.common import parse_percent
from subtune_deploy.pictures import load_picture
from subtune_deploy.spec import InputSpec

TARGETS = ("cpu", "openvino-cpu", "torch-cpu")
PARAMETERS = 8 * 8 * 9 + 16 + 8 * 8 + 8
MACS = 16 * 16 * 8 * 8 * (9 + 1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """net.py, base.pt, and what two trainers made of it: birds on blocks 2 and 3, signs on block 4."""
    folder = tmp_path_factory.mktemp("place")
    base = write_network(folder)
    torch.save({"state_dict": tuned(base, [2, 3], 7)}, folder / "birds.pt")
    save_file(tuned(base, [4], 3, seed=1), folder / "signs.safetensors")
    return folder


@pytest.fixture(scope="module")
def deployed(place: Path) -> tuple[Path, Ran, Ran]:
    """A bundle of base, birds and signs with three engines, and how export and compile went."""
    pytest.importorskip("openvino")
    made = export(
        place, "deployed", "--task", f"birds={place}/birds.pt", "--task", f"signs={place}/signs.safetensors"
    )
    targets = [word for name in TARGETS for word in ("--target", name)]
    return place / "deployed", made, cli("compile", place / "deployed", *targets)


@pytest.fixture
def bundle(deployed: tuple[Path, Ran, Ran], tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(deployed[0], tmp_path / "bundle"))


def export(place: Path, out: str, *arguments: object) -> Ran:
    network = ("--model", f"{place}/net.py:Net", "--weights", place / "base.pt")
    return cli("export", *network, "-o", place / out, *arguments)


def session(folder: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(folder / "graph.onnx"), providers=["CPUExecutionProvider"])


def outputs(folder: Path) -> list[str]:
    return [value.name for value in session(folder).get_outputs()]


def operators(folder: Path, kind: str) -> list[onnx.NodeProto]:
    return [node for node in onnx.load(folder / "graph.onnx").graph.node if node.op_type == kind]


# This machine


def test_doctor_lists_every_backend_and_what_each_missing_one_needs() -> None:
    found = cli("doctor", "--json").document
    assert list(found["backends"]) == ["onnxruntime", "openvino", "torch", "tensorrt", "tensorrt_rtx"]
    assert found["backends"]["onnxruntime"] == {
        "ok": True, "version": onnxruntime.__version__, "detail": "", "remedy": "", "runs": True
    }  # fmt: skip
    assert all(state["ok"] or state["remedy"] for state in found["backends"].values())
    assert found["host"]["cores"] == os.cpu_count()
    table = cli("doctor")
    assert table.status == 0
    assert table.row("onnxruntime")[1:3] == ["yes", onnxruntime.__version__]
    without_gpu = "yes" if found["backends"]["tensorrt_rtx"]["runs"] else "compiles"
    assert table.row("tensorrt_rtx")[1] == without_gpu


def test_targets_are_the_recipes() -> None:
    found = {row["name"]: row for row in cli("targets", "--json").document["targets"]}
    assert set(TARGETS) <= set(found)
    assert (found["cpu"]["backend"], found["cpu"]["precision"]) == ("onnxruntime", "fp32")
    assert cli("targets").row("openvino-cpu-bf16")[1:3] == ["openvino", "bf16"]


def test_help_and_the_tables_of_this_machine_do_not_wait_for_torch() -> None:
    code = """
import sys
from subtune_deploy.cli import main
for words in ([], ["export", "-h"], ["tune", "-h"], ["targets"]):
    try:
        main(words)
    except SystemExit as leaving:
        assert leaving.code == 0
sys.exit("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for word in ("Commands:", "--lowering", "--label-smoothing", "openvino-cpu"):
        assert word in done.stdout


def test_a_misspelt_command_or_option_is_answered_in_two_lines() -> None:
    for words, error, hint in (
        (["exprot"], "there is no command 'exprot'", "did you mean export?"),
        (["blocks", "--modle", "x"], "No such option '--modle'", "see subtune-deploy blocks --help"),
        (["tune", "--data", "digits"], "Missing option '--layers'", "see subtune-deploy tune --help"),
    ):
        ran = cli(*words)
        assert (ran.status, ran.out) == (2, "")
        first, second = ran.err.splitlines()
        assert first.startswith(f"error: {error}")
        assert second == f"hint: {hint}"


def test_debug_shows_where_an_error_comes_from_wherever_it_stands() -> None:
    for words in (["--debug", "blocks", "--model", "x"], ["blocks", "--model", "x", "--debug"]):
        lines = cli(*words).err.splitlines()
        assert lines[0] == "Traceback (most recent call last):"
        assert lines[-2] == "error: unknown model 'x'"


# Blocks


def test_the_block_table_is_one_json_document(place: Path) -> None:
    rows = [
        {"index": i, "name": f"blocks.{i - 1}", "parameters": PARAMETERS, "macs": MACS, "weight_bytes": 4 * PARAMETERS,
         "output_shape": [8, 16, 16]}
        for i in range(1, 5)
    ]  # fmt: skip
    stem, fc = 8 * 3 * 3 * 3 + 8, 8 * 5 + 5
    total = {"parameters": stem + 4 * PARAMETERS + fc, "macs": 16 * 16 * 8 * 27 + 4 * MACS + 40}
    model = f"{place}/net.py:Net"
    assert cli("blocks", "--model", model, "--json").document == {
        "model": model, "blocks": rows, "total": total
    }  # fmt: skip


def test_the_block_table_for_people_is_plain_where_it_is_no_terminal(place: Path) -> None:
    ran = cli("blocks", "--model", f"{place}/net.py:Net")
    assert ran.row("2") == ["2", "blocks.1", f"{PARAMETERS}", f"{MACS:,}", f"{4 * PARAMETERS:,}", "8x16x16"]
    assert ran.out.splitlines()[-1].startswith("whole network: 2,925 parameters")
    assert "\x1b" not in ran.out
    assert all(line == line.rstrip() for line in ran.out.splitlines())


def test_what_a_factory_prints_does_not_spoil_the_document(place: Path) -> None:
    ran = cli("blocks", "--model", f"{place}/net.py:talkative", "--json")
    assert len(ran.document["blocks"]) == 4
    assert ran.err == "loading ...\n"


def test_size_and_blocks_can_be_chosen(place: Path) -> None:
    found = cli(
        "blocks", "--model", f"{place}/net.py:Net", "--input-size", "3x64x48", "--blocks", r"blocks\.[13]", "--json"
    ).document  # fmt: skip
    assert [(row["index"], row["name"]) for row in found["blocks"]] == [(1, "blocks.1"), (2, "blocks.3")]
    assert found["blocks"][0]["output_shape"] == [8, 32, 24]


# Export


def test_checkpoints_become_one_graph_and_their_forks_are_found(deployed: tuple[Path, Ran, Ran]) -> None:
    folder, made, _ = deployed
    assert made.status == 0
    assert outputs(folder) == ["base", "birds", "signs"]
    manifest = open_bundle(folder).manifest
    facts = [(task.name, task.layers, task.classes) for task in manifest.tasks]
    assert facts == [("base", (), 5), ("birds", (2, 3), 7), ("signs", (4,), 3)]
    assert "task birds: tuned blocks 2-3, 7 classes" in made.err
    assert made.row("birds")[1:3] == ["2-3", "7"]
    assert made.out.splitlines()[-1] == f"bundle: {folder}"


def test_layers_alone_make_a_latency_candidate_and_say_so(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = cli("export", "--model", f"{place}/net.py:Net", "--layers", "2,4")
    assert ran.status == 0
    assert ran.err.startswith("latency candidate: fork 2,4 of")
    assert "random weights that differ from the base's" in ran.err
    assert outputs(Path("engines", "net_Net_2,4")) == ["base", "task1"]
    assert [path.name for path in Path("engines").iterdir()] == ["net_Net_2,4"]


def test_so_many_candidates_share_a_fork_and_one_of_them_is_siamese(place: Path) -> None:
    ran = export(place, "three", "--layers", "3", "--tasks", 3, "--siamese", "task2", "--merge", "never")
    assert ran.status == 0
    manifest = open_bundle(place / "three").manifest
    assert [(task.name, task.siamese) for task in manifest.tasks] == [
        ("base", False), ("task1", False), ("task2", True), ("task3", False)
    ]  # fmt: skip
    assert all(task.layers == (3,) for task in manifest.tasks[1:])
    stem, block = 1, 2
    # stem and blocks 1 and 2 once; blocks 3 and 4 for each of four streams
    assert len(operators(place / "three", "Conv")) == stem + 2 * block + 4 * block + 4 * block


def test_merged_streams_share_what_follows_the_fork_and_grouped_blocks_are_one_operator(place: Path) -> None:
    fork = ("--layers", "3", "--tasks", 2, "--batch", 2)
    assert export(place, "branches", *fork).status == 0
    assert export(place, "grouped", *fork, "--lowering", "grouped").status == 0
    stem, block = 1, 2
    assert len(operators(place / "branches", "Conv")) == stem + 2 * block + 3 * block + block
    grouped = operators(place / "grouped", "Conv")
    assert len(grouped) == stem + 2 * block + block + block
    groups = [a.i for node in grouped for a in node.attribute if a.name == "group"]
    assert (
        groups.count(3) == 1
    )  # the block's second convolution; its first reads one stream, so it is just wide
    one, other = (session(place / name) for name in ("branches", "grouped"))
    batch = np.random.default_rng(0).standard_normal((2, 3, 32, 32), np.float32)
    for mine, theirs in zip(one.run(None, {"input": batch}), other.run(None, {"input": batch}), strict=True):
        assert mine.shape == (2, 5)
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)


def test_a_dynamic_batch_takes_any_number_of_pictures(place: Path) -> None:
    assert export(place, "dynamic", "--layers", "3", "--batch", "dynamic").status == 0
    assert open_bundle(place / "dynamic").manifest.batch is None
    assert cli("compile", place / "dynamic").status == 0
    (record,) = cli("bench", place / "dynamic", "--seconds", 0.1, "--json").document["measurements"]
    assert record["batch"] is None, "it is not the same as a graph of a fixed batch of 1"
    for size in (1, 3):
        answers = session(place / "dynamic").run(None, {"input": np.ones((size, 3, 32, 32), np.float32)})
        assert [answer.shape for answer in answers] == [(size, 5), (size, 5)]


def test_a_head_alone_is_a_fork_called_none(place: Path) -> None:
    assert export(place, "probe", "--layers", "none").status == 0
    assert open_bundle(place / "probe").manifest.tasks[1].layers == ()
    assert len(operators(place / "probe", "Conv")) == 1 + 4 * 2


def test_drifted_statistics_are_named_with_both_ways_out(place: Path, tmp_path: Path) -> None:
    state = tuned(torch.load(place / "base.pt"), [4], 3)
    state["blocks.0.norm.running_mean"] = state["blocks.0.norm.running_mean"] + 0.1
    torch.save(state, tmp_path / "drifted.pt")
    task = ("--task", f"drifted={tmp_path}/drifted.pt")
    refused = export(place, "drifted", *task)
    assert refused.status == 2
    assert "batch-norm statistics drifted in frozen block 1" in refused.err
    assert "--drift base" in refused.err
    assert not (place / "drifted").exists()
    for way, layers in (("base", (4,)), ("fork", (1, 4))):
        ran = export(place, "drifted", *task, "--drift", way)
        assert "batch-norm statistics drifted in frozen block 1" in ran.err
        assert open_bundle(place / "drifted").manifest.tasks[1].layers == layers


# Compile, verify


def test_engines_are_kept_with_their_parity(deployed: tuple[Path, Ran, Ran]) -> None:
    folder, _, compiled = deployed
    assert compiled.status == 0
    manifest = open_bundle(folder).manifest
    assert tuple(manifest.engines) == TARGETS
    for name in TARGETS:
        figures = [figure for figure in manifest.parity if figure["engine"] == name]
        assert {figure["task"] for figure in figures} == {"base", "birds", "signs"}
        assert all(figure["error"] <= 1e-4 and figure["agreeing"] == 1 for figure in figures)
        assert f"engine {name}" in compiled.out


def test_a_bundle_verifies(deployed: tuple[Path, Ran, Ran]) -> None:
    ran = cli("verify", deployed[0])
    assert ran.status == 0
    assert ran.out.startswith(f"{len(open_bundle(deployed[0]).manifest.files)} files are as they were made\n")
    for name in ("graph.onnx", *TARGETS):
        assert f"{name}: every task answers as its stand-alone model, relative error at most" in ran.out


def test_an_altered_file_fails_verification_and_is_named(bundle: Path) -> None:
    path = bundle / "cpu" / "graph.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    ran = cli("verify", bundle)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.splitlines()[0].endswith("altered: cpu/graph.onnx")


def test_an_engine_that_answers_wrongly_fails_with_status_1_and_names_the_task(bundle: Path) -> None:
    model = onnx.load(bundle / "cpu" / "graph.onnx")
    (bias,) = [each for each in model.graph.initializer if each.name == "fc.birds.bias"]
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 1, bias.name))
    onnx.save(model, bundle / "cpu" / "graph.onnx")
    seal(bundle, open_bundle(bundle).manifest)  # the hashes agree: only the answers tell
    ran = cli("verify", bundle)
    assert ran.status == 1
    assert ran.out.splitlines()[-1].startswith("graph.onnx: every task answers")
    error, hint = ran.err.splitlines()
    assert error.startswith("error: task birds differs from its stand-alone model: relative error")
    assert hint.startswith("hint: the tolerance is 0.0001")


# Bench


def test_bench_gives_raw_samples_in_seconds(bundle: Path) -> None:
    (record,) = cli("bench", bundle, "--target", "cpu", "--seconds", 3, "--json").document["measurements"]
    assert (record["schema"], record["target"], record["layers"]) == (1, "cpu", [2, 3, 4])
    assert record["forks"] == {"birds": [2, 3], "signs": [4]}
    base, graph = record["samples"]["base"], record["samples"]["graph"]
    assert len(base) == len(graph) >= 10
    assert all(0 < sample < 1 for sample in (*base, *graph))
    loads = np.split(np.array(base), np.cumsum(record["loads"])[:-1])
    assert len(loads) >= 6
    assert record["base"]["seconds"] == pytest.approx(np.median([np.median(each) for each in loads]))
    assert record["ratio"]["low"] <= record["ratio"]["value"] <= record["ratio"]["high"]
    assert record["host"]["libraries"]["onnxruntime"] == onnxruntime.__version__
    kept = json.loads((bundle / "manifest.json").read_text())["measurements"]
    assert kept == [record]
    assert cli("verify", bundle).status == 0
    assert cli("results", bundle, "--format", "json").document["results"] == [record]


def test_the_papers_protocol_takes_ten_times_three_hundred(bundle: Path) -> None:
    arguments = ("--target", "cpu", "--protocol", "paper", "--hot", "--json")
    (record,) = cli("bench", bundle, *arguments).document["measurements"]
    assert (record["protocol"]["name"], record["inputs"]) == ("paper", "hot")
    samples = np.array(record["samples"]["graph"])
    assert samples.shape == (3000,)
    assert record["graph"]["seconds"] == pytest.approx(np.median(samples.reshape(10, 300), axis=1).mean())
    assert record["graph"]["low"] <= record["graph"]["seconds"] <= record["graph"]["high"]
    cli("bench", bundle, "--target", "cpu", "--seconds", 0.1)
    kept = json.loads((bundle / "manifest.json").read_text())["measurements"]
    assert [each["protocol"]["name"] for each in kept] == ["paper", "adaptive"], (
        "one way does not replace another"
    )


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_what_was_timed_is_told_where_it_cannot_be_kept(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, form: tuple[str, ...]
) -> None:
    monkeypatch.setattr("subtune_deploy.bundle.PATIENCE", 0.1)
    with held(bundle):
        ran = cli("bench", bundle, "--target", "cpu", "--seconds", 0.1, *form)
    assert ran.status == 2
    assert "is held by another process" in ran.err
    assert json.loads(ran.out)["measurements"][0]["target"] == "cpu" if form else " cpu " in ran.out


def test_bench_times_all_engines_unless_told_and_replaces_older_numbers(bundle: Path) -> None:
    for _ in range(2):
        ran = cli("bench", bundle, "--seconds", 0.1)
        assert ran.status == 0
        rows = [line.split() for line in ran.out.splitlines()[1:]]
        assert [row[5] for row in rows] == list(TARGETS)  # after the model and `2-3 + 4`
        assert all(row[6] == "7/3" for row in rows)  # classes of birds and signs
        assert all(row[8] == row[10] == "ms" for row in rows)
    kept = json.loads((bundle / "manifest.json").read_text())["measurements"]
    assert [record["target"] for record in kept] == list(TARGETS)


# Run


def test_every_task_answers_a_real_picture_as_its_own_network_does(
    place: Path, deployed: tuple[Path, Ran, Ran]
) -> None:
    for name in TARGETS:
        found = cli("run", deployed[0], PHOTOGRAPH, "--target", name, "--json").document
        assert found["engine"] == name
        (row,) = found["pictures"]
        assert row["picture"] == str(PHOTOGRAPH)
        for task, file in (("base", "base.pt"), ("birds", "birds.pt")):
            expected = lone_answer(place, file)
            best = row["answers"][task][0]
            assert best["class"] == expected.argmax()
            assert best["probability"] == pytest.approx(float(expected.max()), rel=1e-3)


def lone_answer(place: Path, file: str) -> Any:
    state = torch.load(place / file)
    net = runpy.run_path(str(place / "net.py"))["Net"]()
    weights = state.get("state_dict", state)
    net.fc = torch.nn.Linear(8, len(weights["fc.bias"]))
    net.load_state_dict(weights)
    picture = torch.from_numpy(load_picture(PHOTOGRAPH, InputSpec((3, 32, 32))))[None]
    with torch.no_grad():
        return net.eval()(picture).softmax(1)[0].numpy()


def test_run_answers_for_people_one_line_for_each_picture_and_task(deployed: tuple[Path, Ran, Ran]) -> None:
    ran = cli("run", deployed[0], PHOTOGRAPH, PHOTOGRAPH.with_name("coffee.jpg"))
    assert ran.status == 0
    assert [line.split()[:2] for line in ran.out.splitlines()[1:]] == [
        [name, task] for name in ("chelsea.jpg", "coffee.jpg") for task in ("base", "birds", "signs")
    ]
    assert ran.row("coffee.jpg", "signs")[3].endswith("%")


# Tune


def test_a_tuned_task_goes_from_pictures_to_an_answer(place: Path, tmp_path: Path) -> None:
    for label, value in (("dark", 30), ("light", 220)):
        (tmp_path / "data" / label).mkdir(parents=True)
        for index in range(6):
            pixels = np.full((32, 32, 3), value + index, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / label / f"{index}.png")
    checkpoint = tmp_path / "shade.safetensors"
    network = ("--model", f"{place}/net.py:Net", "--weights", place / "base.pt")
    training = ("--epochs", 15, "--batch-size", 4, "--lr", 0.02, "--train", 8, "--test", 4)
    ran = cli(
        "tune", *network, "--layers", "3-4", "--data", tmp_path / "data", "--name", "shade", *training, "-o", checkpoint
    )  # fmt: skip
    assert ran.status == 0
    assert ran.out == f"shade: blocks 3-4, 100.0% of 4 held-out pictures right\ncheckpoint: {checkpoint}\n"
    with safe_open(checkpoint, framework="pt") as file:
        assert {name.split(".")[1] for name in file.keys() if name.startswith("blocks")} == {"2", "3"}  # noqa: SIM118
    assert export(place, "shade", "--task", f"shade={checkpoint}", "--layers", "3-4").status == 0
    assert cli("compile", place / "shade").status == 0
    dark = cli("run", place / "shade", tmp_path / "data" / "dark" / "0.png")
    assert dark.row("0.png", "shade")[2] == "dark"


def test_a_percentage_is_the_share_that_it_names() -> None:
    for tenths in range(1001):
        assert parse_percent("--max-changed", f"{tenths // 10}.{tenths % 10}%") == tenths / 1000
