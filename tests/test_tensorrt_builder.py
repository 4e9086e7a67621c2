"""Engines built by the real compiler, TensorRT-RTX, on a machine without a GPU; and what it must refuse."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_bundle import SPEC, write_graphs

from subtune_deploy.backends.base import Target
from subtune_deploy.backends.tensorrt import RTX, STANDARD, header, messages
from subtune_deploy.backends.tensorrt.builder import (
    add_profile,
    build,
    capability_report,
    is_forked,
    parse,
)
from subtune_deploy.backends.tensorrt.graphs import Refused
from subtune_deploy.backends.tensorrt.settings import Settings
from subtune_deploy.errors import BundleError, SubtuneError, TargetError, Unavailable

api: Any = pytest.importorskip("tensorrt_rtx")

GENERIC = ("8.6", "8.9", "12.0")
TARGET = Target("rtx", "tensorrt_rtx", "fp32", "", options={"capabilities": " ".join(GENERIC)})


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    write_graphs(folder, batch=2)
    return folder


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dynamic")
    write_graphs(folder)
    return folder


def plan(path: Path, settings: Settings = Settings(), **more: Any) -> bytes:  # noqa: B008 - it is frozen
    return build(api, parse(api, path, settings), settings, **more)


def engine(folder: Path, source: Path, settings: Settings = Settings()) -> Path:  # noqa: B008
    path = folder / "graph.engine"
    path.write_bytes(plan(source / "graph.onnx", settings))
    return path


# building


def test_an_engine_is_built_and_its_header_says_what_it_is(source: Path, tmp_path: Path) -> None:
    path = engine(tmp_path, source, Settings(capabilities=GENERIC))
    facts = header.check(path, api)
    assert facts == {
        "library": "tensorrt_rtx",
        "version": facts["version"],
        "size": path.stat().st_size,
        "capabilities": list(GENERIC),
    }
    assert header.same_version(facts["version"], api.__version__)


@pytest.mark.parametrize("chosen", [("8.9",), ("8.6", "8.9"), ("8.0", "8.6", "8.9", "12.0"), ("12.0", "8.6")])
def test_the_header_says_for_which_gpus_it_is(source: Path, tmp_path: Path, chosen: tuple[str, ...]) -> None:
    facts = header.check(engine(tmp_path, source, Settings(capabilities=chosen)), api)
    assert sorted(facts["capabilities"]) == sorted(chosen)


@pytest.mark.parametrize("profile", [None, (1, 1, 1), (2, 8, 32)])
def test_a_graph_of_dynamic_batch_gets_the_profile_of_its_recipe(
    dynamic: Path, profile: tuple[int, int, int] | None
) -> None:
    settings = Settings(profile=profile)
    parsed = parse(api, dynamic / "graph.onnx", settings)
    config = parsed.builder.create_builder_config()
    added = add_profile(parsed, config, settings)
    assert [shape[0] for shape in added.get_shape("input")] == list(profile or (1, 4, 16))
    assert config.num_optimization_profiles == 1
    assert build(api, parsed, settings).startswith(b"vtrt")


def test_a_graph_of_fixed_batch_needs_no_profile(source: Path) -> None:
    parsed = parse(api, source / "graph.onnx", Settings(profile=(1, 2, 3)))
    assert add_profile(parsed, parsed.builder.create_builder_config(), Settings(profile=(1, 2, 3))) is None


@pytest.mark.parametrize("profile", [(4, 1, 16), (1, 16, 4), (16, 4, 1)])
def test_a_profile_in_the_wrong_order_is_refused_in_the_library_s_words(
    dynamic: Path, profile: tuple[int, int, int]
) -> None:
    with pytest.raises(TargetError, match="no optimisation profile") as caught:
        plan(dynamic / "graph.onnx", Settings(profile=profile))
    assert "rising order" in caught.value.hint
    assert caught.value.message.rsplit(": ", 1)[1] != "it gave no reason"


def test_the_same_graph_of_fixed_batch_gives_the_same_bytes(source: Path, tmp_path: Path) -> None:
    RTX.compile(source, tmp_path, "base", TARGET)
    facts = RTX.examine(source, tmp_path, "base", TARGET)
    assert facts["deterministic"] is True
    assert "differing_bytes" not in facts


def test_an_engine_that_another_build_would_not_give_is_said_to_be_so_and_kept(
    source: Path, tmp_path: Path
) -> None:
    engine(tmp_path, source, Settings(capabilities=GENERIC, optimization_level=1, tf32=True))
    facts = RTX.examine(source, tmp_path, "graph", TARGET)
    assert facts["deterministic"] is False
    assert facts["differing_bytes"] > 0


@pytest.mark.parametrize(
    "settings",
    [
        Settings(auxiliary_streams=0),
        Settings(workspace_mib=64),
        Settings(optimization_level=1),
        Settings(profiling_verbosity="detailed"),
        Settings(profiling_verbosity="none"),
        Settings(tf32=True),
    ],
)
def test_every_setting_builds(source: Path, settings: Settings) -> None:
    assert plan(source / "graph.onnx", settings).startswith(b"vtrt")


def test_the_choice_of_tf32_reaches_the_engine(source: Path) -> None:
    assert plan(source / "graph.onnx", Settings(tf32=True)) != plan(
        source / "graph.onnx", Settings(tf32=False)
    )


def test_nothing_is_printed(source: Path, capfd: pytest.CaptureFixture[str]) -> None:
    plan(source / "graph.onnx")
    assert capfd.readouterr() == ("", "")


def test_weights_beside_the_graph_are_found(source: Path, tmp_path: Path) -> None:
    write_graphs(tmp_path, batch=2, external=True)
    assert (tmp_path / "graph.onnx.data").stat().st_size > 0
    assert plan(tmp_path / "graph.onnx") == plan(source / "graph.onnx")


def test_weights_that_should_lie_beside_the_graph_and_do_not_are_named(tmp_path: Path) -> None:
    write_graphs(tmp_path, batch=2, external=True)
    (tmp_path / "graph.onnx.data").rename(tmp_path.parent / "elsewhere.data")
    with pytest.raises(BundleError, match=r"'graph\.onnx\.data', which is no file beside it"):
        plan(tmp_path / "graph.onnx")


def test_weights_outside_the_folder_of_the_graph_are_not_read(tmp_path: Path) -> None:
    write_graphs(tmp_path, batch=2, external=True)
    graph = onnx.load(tmp_path / "graph.onnx", load_external_data=False)
    (tmp_path / "graph.onnx.data").rename(tmp_path.parent / "outside.data")
    for held in graph.graph.initializer:
        next(each for each in held.external_data if each.key == "location").value = "../outside.data"
    (tmp_path / "graph.onnx").write_bytes(graph.SerializeToString())
    with pytest.raises(BundleError, match="no file beside it"):
        plan(tmp_path / "graph.onnx")


@pytest.mark.parametrize(("capability", "close"), [("8.5", "8.6"), ("9.0", "12.0"), ("99.9", "8.9")])
def test_a_capability_that_the_library_does_not_know_is_refused(
    source: Path, capability: str, close: str
) -> None:
    with pytest.raises(TargetError, match=f"option capabilities is '{capability}'") as caught:
        plan(source / "graph.onnx", Settings(capabilities=(capability,)))
    assert close in caught.value.hint


# progress and cancelling


def test_progress_only_grows_and_ends_at_the_end(source: Path) -> None:
    seen: list[tuple[str, float, float]] = []
    plan(source / "graph.onnx", progress=lambda *step: seen.append(step))
    assert len(seen) > 10
    assert {what for what, _, _ in seen} == {"compiling graph.onnx"}
    done = [fraction / total for _, fraction, total in seen]
    assert done == sorted(done)
    assert done[0] < 0.5
    assert done[-1] == 1.0


class Stop(Exception):  # noqa: N818 - not an error
    pass


@pytest.mark.parametrize("reason", [Stop, KeyboardInterrupt])
def test_what_progress_raises_stops_the_build_and_arrives(source: Path, reason: type[BaseException]) -> None:
    calls = []

    def progress(what: str, done: float, total: float) -> None:
        calls.append(done)
        raise reason("enough")

    with pytest.raises(reason, match="enough"):
        plan(source / "graph.onnx", progress=progress)
    assert len(calls) == 1
    assert plan(source / "graph.onnx").startswith(b"vtrt")


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A shell starts background jobs deaf to Ctrl-C, and the tests may be one."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_stops_the_build_and_leaves_the_handler_as_it_was(source: Path) -> None:
    calls = []

    def progress(what: str, done: float, total: float) -> None:
        calls.append(done)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        plan(source / "graph.onnx", progress=progress)
    assert calls[-1] < 1.0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_cancelled_compilation_writes_nothing(source: Path, tmp_path: Path) -> None:
    def progress(what: str, done: float, total: float) -> None:
        raise Stop

    with pytest.raises(Stop):
        RTX.compile(source, tmp_path, "graph", TARGET, progress)
    assert list(tmp_path.iterdir()) == []


# graphs that cannot be compiled


def model(nodes: list[onnx.NodeProto], opset: int = 18, weights: dict[str, np.ndarray] | None = None) -> Any:
    floats = TensorProto.FLOAT
    inputs = [helper.make_tensor_value_info("input", floats, [2, *SPEC.shape])]
    outputs = [helper.make_tensor_value_info("base", floats, None)]
    held = [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()]
    graph = helper.make_graph(nodes, "own", inputs, outputs, held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def strange(folder: Path) -> Path:
    """A graph with two operators that TensorRT does not have, and one that it has."""
    nodes = [
        helper.make_node("Bernoulli", ["input"], ["a"], name="block1.base/Bernoulli"),
        helper.make_node("Relu", ["a"], ["b"], name="block2.base/Relu"),
        helper.make_node("MelWeightMatrix", ["b"] * 5, ["base"], name="block3.birds/Mel"),
    ]
    onnx.save(model(nodes), folder / "graph.onnx")
    return folder / "graph.onnx"


def test_unsupported_operators_are_named_with_their_nodes(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"block1\.base/Bernoulli \(Bernoulli\)") as caught:
        plan(strange(tmp_path))
    assert "\n" not in caught.value.message
    assert "Bernoulli" in caught.value.hint


def test_the_report_names_every_node_that_the_target_cannot_take(tmp_path: Path) -> None:
    report = capability_report(api, strange(tmp_path))
    assert [(each.node, each.operator) for each in report] == [
        ("block1.base/Bernoulli", "Bernoulli"),
        ("block3.birds/Mel", "MelWeightMatrix"),
    ]
    assert all(isinstance(each, Refused) for each in report)
    assert {each.reason for each in report} == {"the compiler gives no reason"}  # its own word is "false"


def test_the_report_on_a_graph_that_is_supported_is_empty(source: Path) -> None:
    assert capability_report(api, source / "graph.onnx") == ()


def good(folder: Path) -> bytes:
    write_graphs(folder, batch=2)
    return (folder / "graph.onnx").read_bytes()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda whole: b"", "holds no graph"),
        (lambda whole: whole[: len(whole) // 2], "not an ONNX graph"),
        (lambda whole: b"PK\x03\x04" + bytes(500), "not an ONNX graph|holds no graph"),
        (lambda whole: b"vtrt" + bytes(500), "not an ONNX graph|holds no graph"),
        (lambda whole: b"graph" * 50, "not an ONNX graph|holds no graph"),
    ],
    ids=["empty", "cut", "zip", "engine", "text"],
)
def test_a_file_that_is_no_graph_is_refused_before_anything_is_written(
    tmp_path: Path, spoil: Any, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "graph.onnx").write_bytes(spoil(good(tmp_path)))
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(BundleError, match=message) as caught:
        RTX.compile(tmp_path, out, "graph", TARGET)
    assert "\n" not in caught.value.message
    assert list(out.iterdir()) == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("opset", [0, 99])
def test_an_operator_set_that_does_not_exist_is_refused(tmp_path: Path, opset: int) -> None:
    nodes = [helper.make_node("Relu", ["input"], ["base"])]
    onnx.save(model(nodes, opset), tmp_path / "graph.onnx")
    with pytest.raises(BundleError, match=f"operator set {opset}"):
        plan(tmp_path / "graph.onnx")


def test_a_graph_of_another_input_is_refused(tmp_path: Path) -> None:
    foreign = model([helper.make_node("Relu", ["pixels"], ["base"])])
    foreign.graph.input[0].name = "pixels"
    onnx.save(foreign, tmp_path / "graph.onnx")
    with pytest.raises(BundleError, match=r"takes \['pixels'\]"):
        plan(tmp_path / "graph.onnx")


def test_a_graph_that_the_parser_takes_and_the_compiler_does_not_is_refused_in_its_words(
    tmp_path: Path,
) -> None:
    weights = {"shape": np.asarray([7, 7], np.int64)}
    onnx.save(
        model([helper.make_node("Reshape", ["input", "shape"], ["base"])], weights=weights),
        tmp_path / "graph.onnx",
    )
    with pytest.raises(BundleError, match=r"cannot be (compiled|read) by tensorrt_rtx") as caught:
        plan(tmp_path / "graph.onnx")
    assert "it gave no reason" not in caught.value.message


# refit


@pytest.mark.parametrize(
    ("name", "forked"),
    [
        ("block13.birds.conv1.weight", True),
        ("head.birds.weight", True),
        ("block13.base.conv1.weight", False),
        ("head.base.bias", False),
        ("val_7", False),
        ("conv.weight", False),
    ],
)
def test_weights_of_forks_and_heads_are_told_by_their_names(name: str, forked: bool) -> None:
    assert is_forked(name) is forked


def forked(folder: Path) -> Path:
    rng = np.random.default_rng(1)
    weights = {
        "conv.base.weight": rng.standard_normal((4, 3, 1, 1)).astype(np.float32),
        "conv.birds.weight": rng.standard_normal((4, 4, 1, 1)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["input", "conv.base.weight"], ["shared"], name="conv.base/Conv"),
        helper.make_node("Conv", ["shared", "conv.birds.weight"], ["base"], name="conv.birds/Conv"),
    ]
    onnx.save(model(nodes, weights=weights), folder / "graph.onnx")
    return folder / "graph.onnx"


def test_only_the_weights_of_forks_are_marked_for_refitting(tmp_path: Path) -> None:
    network = parse(api, forked(tmp_path), Settings(refit=True)).network
    assert network.are_weights_marked_refittable("conv.birds.weight")
    assert not network.are_weights_marked_refittable("conv.base.weight")


def test_a_graph_without_forks_has_nothing_to_refit(source: Path) -> None:
    with pytest.raises(BundleError, match="no weights of forks"):
        plan(source / "graph.onnx", Settings(refit=True))


def test_a_refittable_engine_without_a_gpu_is_unavailable_and_says_why(tmp_path: Path) -> None:
    if RTX.probe().runs:
        pytest.skip("a GPU is here")
    with pytest.raises(Unavailable, match="refitted here") as caught:
        plan(forked(tmp_path), Settings(refit=True))
    assert caught.value.exit_status == 3
    assert "refit = false" in caught.value.hint


# the engine's file


def spoilt(path: Path, **fields: Any) -> Path:
    """The engine with some bytes of its header overwritten."""
    content = bytearray(path.read_bytes())
    for place, value in fields.items():
        start = int(place.removeprefix("at"))
        content[start : start + len(value)] = value
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"at0": b"PK\x03\x04"}, "no engine of TensorRT"),
        ({"at0": b"ftrt"}, "an engine of tensorrt, not of tensorrt_rtx"),
        ({"at4": struct.pack("<I", 7)}, "layout 7"),
        ({"at16": struct.pack("<Q", 10)}, "its header says 10"),
        ({"at24": bytes([1, 2, 3, 4])}, r"built by tensorrt_rtx 1\.2\.3\.4, here is"),
    ],
)
def test_a_header_that_is_not_this_library_s_is_refused(
    source: Path, tmp_path: Path, fields: dict[str, bytes], message: str
) -> None:
    with pytest.raises(BundleError, match=message) as caught:
        header.check(spoilt(engine(tmp_path, source), **fields), api)
    assert "\n" not in caught.value.message
    assert "compile" in caught.value.hint


@pytest.mark.parametrize("kept", [0, 3, 30, 63, 64, 5000])
def test_an_engine_that_is_cut_short_is_refused(source: Path, tmp_path: Path, kept: int) -> None:
    path = engine(tmp_path, source)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(BundleError):
        header.check(path, api)


def test_an_engine_for_other_gpus_is_refused_and_says_for_which_it_is(source: Path, tmp_path: Path) -> None:
    path = engine(tmp_path, source, Settings(capabilities=("8.6", "8.9")))
    header.check(path, api, "8.9")
    with pytest.raises(BundleError, match=r"for GPUs of capability 8\.6, 8\.9, this one has 12\.0"):
        header.check(path, api, "12.0")


@pytest.mark.parametrize(
    ("capability", "runs"), [("8.0", True), ("12.1", True), ("13.0", True), ("7.5", False), ("9.0", False)]
)
def test_an_engine_without_capabilities_is_for_all_that_the_library_knows_and_for_newer_ones(
    source: Path, tmp_path: Path, capability: str, runs: bool
) -> None:
    assert header.serves(header.read(engine(tmp_path, source)).capabilities, capability) is runs


def test_the_header_of_standard_tensorrt_is_read_too(tmp_path: Path) -> None:
    # As trtexec reads it: the tag, a serialization version of 0, and the version in bytes 24 to 27.
    start = b"ftrt" + bytes(20) + bytes([10, 16, 1, 11])
    (tmp_path / "a.engine").write_bytes(start + bytes(1000))
    assert header.read(tmp_path / "a.engine") == header.Header("tensorrt", "10.16.1.11", None, ())


# what the library says


def test_there_is_one_logger() -> None:
    assert messages.logger(api) is messages.logger(api)


def test_messages_are_taken_once(dynamic: Path) -> None:
    logger = messages.logger(api)
    logger.take()
    with pytest.raises(SubtuneError):
        plan(dynamic / "graph.onnx", Settings(profile=(4, 1, 16)))
    logger.log(api.ILogger.Severity.WARNING, "take care")
    logger.log(api.ILogger.Severity.INFO, "by the way")
    assert logger.take()[-1] == "warning: take care"
    assert logger.take() == []


@pytest.mark.parametrize(
    ("text", "noise"),
    [
        ("CUDA initialization failure with error: 35. Please check your CUDA installation", True),
        ("Unable to determine GPU: cudaErrorInsufficientDriver", True),
        ("CUDA driver version is insufficient for CUDA runtime version", True),
        ("CUDA error 222 loading a module", False),
        ("kernel weights has count 35 but 36 was expected", False),
    ],
)
def test_that_no_driver_is_here_is_not_repeated_with_every_message(text: str, noise: bool) -> None:
    assert messages.noise(text) is noise


def test_an_error_is_told_in_the_words_of_the_first_error() -> None:
    taken = ["warning: slow", "error: the cause", "error: what followed"]
    assert messages.words(taken) == "the cause"
    assert messages.words(["warning: slow"]) == "slow"
    assert messages.words([]) == "it gave no reason"


# the backend


def test_the_backend_compiles_both_roles(source: Path, tmp_path: Path) -> None:
    for role in ("graph", "base"):
        RTX.compile(source, tmp_path, role, TARGET)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.engine", "graph.engine"]


def test_a_source_without_the_graph_is_a_bundle_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"has no graph\.onnx"):
        RTX.compile(tmp_path, tmp_path, "graph", TARGET)


def test_without_onnx_nothing_is_compiled_and_it_says_so(source: Path) -> None:
    code = f"""
import sys
sys.modules["onnx"] = None
from pathlib import Path
import tensorrt_rtx
from subtune_deploy.backends.tensorrt.builder import Settings, parse
from subtune_deploy.errors import Unavailable
try:
    parse(tensorrt_rtx, Path({str(source / "graph.onnx")!r}), Settings())
except Unavailable as error:
    print(error.message, "|", error.hint)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("needs onnx, which is not installed | pip install onnx")


def test_the_library_is_here_and_says_what_is_missing_to_run_engines() -> None:
    available = RTX.probe()
    assert available.ok
    assert available.version == ".".join(api.__version__.split("+")[0].split("-")[0].split(".")[:4])
    assert available.runs == (not available.detail)
    assert bool(available.remedy) == (not available.runs)


def test_a_library_that_is_not_installed_is_said_so() -> None:
    available = STANDARD.probe()
    if available.ok:
        pytest.skip("standard TensorRT is here")
    assert "tensorrt" in available.detail
    assert available.remedy.startswith("pip install")


def test_an_engine_is_checked_before_a_gpu_is_asked_for(source: Path, tmp_path: Path) -> None:
    spoilt(engine(tmp_path, source), at24=bytes([1, 2, 3, 4]))
    with pytest.raises(BundleError, match=r"built by tensorrt_rtx 1\.2\.3\.4"):
        RTX.load(tmp_path, "graph", TARGET)


def test_an_engine_without_a_gpu_is_unavailable(source: Path, tmp_path: Path) -> None:
    if RTX.probe().runs:
        pytest.skip("a GPU is here")
    engine(tmp_path, source)
    with pytest.raises(Unavailable) as caught:
        RTX.load(tmp_path, "graph", TARGET)
    assert caught.value.exit_status == 3


def wide(folder: Path) -> Path:
    """A graph with a forked convolution of as many channels as real ones have."""
    rng = np.random.default_rng(2)
    shapes = {
        "stem.base.weight": (64, 3, 1, 1),
        "block1.base.weight": (64, 64, 3, 3),
        "block1.birds.weight": (64, 64, 3, 3),
    }
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    nodes = [
        helper.make_node("Conv", ["input", "stem.base.weight"], ["stem"]),
        helper.make_node("Conv", ["stem", "block1.base.weight"], ["base"]),
        helper.make_node("Conv", ["stem", "block1.birds.weight"], ["birds"]),
    ]
    made = model(nodes, weights=weights)
    made.graph.output.append(helper.make_tensor_value_info("birds", TensorProto.FLOAT, None))
    onnx.save(made, folder / "graph.onnx")
    return folder


def test_examine_says_what_lies_in_the_engine(tmp_path: Path) -> None:
    source = wide(tmp_path)
    RTX.compile(source, tmp_path, "graph", TARGET)
    facts = RTX.examine(source, tmp_path, "graph", TARGET)
    assert facts["capabilities"] == list(GENERIC)
    assert facts["size"] == (tmp_path / "graph.engine").stat().st_size
    assert facts["weights"]["share"] == 1.0
    assert set(facts["weights"]["by_version"]) == {"base", "birds"}
    json.dumps(facts)


def test_examine_refuses_the_engine_of_another_task(tmp_path: Path) -> None:
    source = wide(tmp_path)
    RTX.compile(source, tmp_path, "graph", TARGET)
    other = onnx.load(source / "graph.onnx")
    held = next(each for each in other.graph.initializer if each.name == "block1.birds.weight")
    held.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(held) + 1, held.name))
    onnx.save(other, source / "graph.onnx")
    with pytest.raises(BundleError, match="weights of birds"):
        RTX.examine(source, tmp_path, "graph", TARGET)
    refittable = replace(
        TARGET, options={**TARGET.options, "refit": True}
    )  # nobody has seen how these are laid out
    assert RTX.examine(source, tmp_path, "graph", refittable)["weights"]["share"] < 1


def test_examine_refuses_an_engine_for_other_gpus_than_the_recipe_s(source: Path, tmp_path: Path) -> None:
    engine(tmp_path, source, Settings(capabilities=("8.9",)))
    with pytest.raises(BundleError, match="the recipe says"):
        RTX.examine(source, tmp_path, "graph", TARGET)


def test_the_parsed_network_answers_as_numpy_does(source: Path) -> None:
    from tiny_bundle import expected, pictures

    batch = pictures(2)
    answers = RTX.interpret(source, "graph", TARGET).run(batch)
    for name, wanted in expected(batch).items():
        np.testing.assert_allclose(answers[name], wanted, rtol=1e-4, atol=1e-5)
