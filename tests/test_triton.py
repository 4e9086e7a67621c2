"""Triton model repositories: what the real schema accepts, and what only a comparison with the model finds."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import onnx
import pytest
from google.protobuf import text_format
from tiny_bundle import TARGETS, WEIGHTS
from tiny_shipping import proven_bundle, tree

from subtune_deploy.backends.base import Target
from subtune_deploy.bundle import Bundle, add_engine, open_bundle, seal
from subtune_deploy.errors import BundleError, Unavailable
from subtune_deploy.manifest import EngineEntry
from subtune_deploy.triton import check_repository, write_repository
from subtune_deploy.triton.check import _schema

PLAN = Target("a100", "tensorrt", "fp16", "", options={"profile": "1 2 8"}, not_run_on_hardware=True)


def with_plan(folder: Path, batch: int | None = None) -> Bundle:
    """A bundle with an engine file that stands for a TensorRT plan: none can be built here, and none is read."""
    from subtune_deploy.records import to_plain

    bundle = proven_bundle(folder, batch=batch)
    (folder / "a100").mkdir()
    (folder / "a100" / "graph.engine").write_bytes(b"ptrt" + bytes(64))
    (folder / "a100" / "base.engine").write_bytes(b"ptrt" + bytes(32))
    (folder / "a100" / "target.json").write_text(json.dumps(to_plain(PLAN)))
    files = tuple(f"a100/{name}" for name in ("base.engine", "graph.engine", "target.json"))
    entry = EngineEntry("tensorrt", "fp16", {"tensorrt": "10.16.0"}, files)
    seal(folder, replace(bundle.manifest, engines={**bundle.manifest.engines, "a100": entry}))
    return open_bundle(folder)


def config_of(model: Path) -> object:
    """The configuration as Triton's schema reads it."""
    return text_format.Parse((model / "config.pbtxt").read_text(), _schema()())


@pytest.fixture(scope="module")
def free(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return proven_bundle(tmp_path_factory.mktemp("free") / "tiny 1", ("onnxruntime", "openvino"))


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return proven_bundle(tmp_path_factory.mktemp("fixed") / "tiny", ("onnxruntime", "openvino"), batch=2)


def test_the_schema_is_tritons_own() -> None:
    fields = {field.name for field in _schema().DESCRIPTOR.fields}
    assert {"name", "platform", "backend", "max_batch_size", "input", "output", "instance_group"} <= fields
    with pytest.raises(text_format.ParseError):
        text_format.Parse("no_such_field: 1", _schema()())
    with pytest.raises(text_format.ParseError):
        text_format.Parse("input { data_type: TYPE_FP33 }", _schema()())
    assert "grpc" not in sys.modules


def test_a_dynamic_onnx_model(free: Bundle, tmp_path: Path) -> None:
    model = write_repository(free, "cpu", tmp_path / "models")
    assert model == tmp_path / "models" / "tiny_1_cpu"
    assert sorted(tree(tmp_path / "models")) == [
        "tiny_1_cpu",
        "tiny_1_cpu/1",
        "tiny_1_cpu/1/model.onnx",
        "tiny_1_cpu/birds_labels.txt",
        "tiny_1_cpu/config.pbtxt",
    ]
    config = config_of(model)
    assert (config.name, config.platform, config.max_batch_size) == ("tiny_1_cpu", "onnxruntime_onnx", 16)
    (taken,) = config.input
    assert (taken.name, taken.data_type, list(taken.dims)) == ("input", 11, [3, 8, 8])  # TYPE_FP32
    assert {each.name: list(each.dims) for each in config.output} == {"base": [300], "birds": [3]}
    assert {each.name: each.label_filename for each in config.output} == {
        "base": "",
        "birds": "birds_labels.txt",
    }
    assert (model / "birds_labels.txt").read_text() == "heron\njay\nwren\n"
    assert [(group.count, group.kind) for group in config.instance_group] == [(1, 2)]  # KIND_CPU
    assert config.parameters["intra_op_thread_count"].string_value == "1"
    assert (model / "1" / "model.onnx").read_bytes() == (free.path / "cpu" / "graph.onnx").read_bytes()
    check_repository(tmp_path / "models")


def test_a_fixed_batch_is_part_of_the_dims(fixed: Bundle, tmp_path: Path) -> None:
    for target in ("cpu", "openvino-cpu"):
        config = config_of(write_repository(fixed, target, tmp_path))
        assert config.max_batch_size == 0
        assert list(config.input[0].dims) == [2, 3, 8, 8]
        assert {each.name: list(each.dims) for each in config.output} == {"base": [2, 300], "birds": [2, 3]}
    check_repository(tmp_path)


def test_an_openvino_model_keeps_its_batch_free(free: Bundle, tmp_path: Path) -> None:
    model = write_repository(free, "openvino-cpu", tmp_path)
    config = config_of(model)
    assert (config.backend, config.platform, config.max_batch_size) == ("openvino", "", 0)
    assert list(config.input[0].dims) == [-1, 3, 8, 8]
    assert {each.name: list(each.dims) for each in config.output} == {"base": [-1, 300], "birds": [-1, 3]}
    assert config.parameters["PERFORMANCE_HINT"].string_value == "LATENCY"
    assert config.parameters["INFERENCE_NUM_THREADS"].string_value == "1"
    assert "HINT_BF16" not in config.parameters
    assert sorted(path.name for path in (model / "1").iterdir()) == ["model.bin", "model.xml"]


def test_bf16_is_told_to_openvino(tmp_path: Path) -> None:
    bundle = proven_bundle(tmp_path / "tiny", ())
    bundle = add_engine(bundle, replace(TARGETS["openvino"], name="half", precision="bf16"))
    config = config_of(write_repository(bundle, "half", tmp_path / "models"))
    assert config.parameters["HINT_BF16"].string_value == "YES"


def test_a_tensorrt_plan_is_described_by_the_graph_it_was_built_from(tmp_path: Path) -> None:
    bundle = with_plan(tmp_path / "tiny")
    config = config_of(write_repository(bundle, "a100", tmp_path / "models"))
    assert (config.platform, config.max_batch_size) == ("tensorrt_plan", 8)  # the profile's largest
    assert list(config.input[0].dims) == [3, 8, 8]
    assert config.instance_group[0].kind == 1  # KIND_GPU
    check_repository(tmp_path / "models", bundle.path / "graph.onnx")
    with pytest.raises(Unavailable, match=r"model\.plan can be read only on its GPU"):
        check_repository(tmp_path / "models")
    converted = bundle.path / "a100" / "source"
    converted.mkdir()
    graph = onnx.load(bundle.path / "graph.onnx")
    for output in graph.graph.output:
        output.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    onnx.save(graph, converted / "graph.onnx")
    config = config_of(write_repository(bundle, "a100", tmp_path / "models"))
    assert [each.data_type for each in config.output] == [10, 10]  # TYPE_FP16


@pytest.mark.parametrize("profile", ["2 4 8", "4 4 4"])
def test_a_profile_whose_smallest_batch_is_not_1_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, profile: str
) -> None:
    """Triton forms batches of 1 to max_batch_size, and can be told no other smallest."""
    monkeypatch.setitem(PLAN.options, "profile", profile)
    bundle = with_plan(tmp_path / "tiny")
    with pytest.raises(
        BundleError, match=rf"a100 takes batches from {profile[0]}.*Triton would send"
    ) as caught:
        write_repository(bundle, "a100", tmp_path / "models")
    assert f"--batch {profile[-1]}" in caught.value.hint
    assert not (tmp_path / "models").exists()


def test_a_profile_does_not_matter_where_the_batch_is_fixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PLAN.options, "profile", "2 4 8")
    config = config_of(write_repository(with_plan(tmp_path / "tiny", 2), "a100", tmp_path / "models"))
    assert (config.max_batch_size, list(config.input[0].dims)) == (0, [2, 3, 8, 8])


@pytest.mark.parametrize(("provider", "accelerators"), [("cuda", []), ("tensorrt", ["tensorrt"])])
def test_an_onnx_model_for_a_gpu(
    free: Bundle, tmp_path: Path, provider: str, accelerators: list[str]
) -> None:
    bundle = for_provider(free, tmp_path / "tiny", provider)
    config = config_of(write_repository(bundle, "cpu", tmp_path / "models"))
    assert config.instance_group[0].kind == 1  # KIND_GPU
    chosen = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert [each.name for each in chosen] == accelerators


@pytest.mark.parametrize(
    ("provider", "options", "told"),
    [
        ("cuda", {"use_tf32": False}, {"use_tf32": "0"}),
        ("tensorrt", {"trt_fp16_enable": True}, {"precision_mode": "FP16"}),
        ("tensorrt", {"trt_int8_enable": True, "trt_max_workspace_size": 1 << 30, "trt_fp16_enable": False},
         {"precision_mode": "INT8", "max_workspace_size_bytes": "1073741824"}),
        ("tensorrt", {"trt_auxiliary_streams": 0}, {"trt_auxiliary_streams": "0"}),
    ],
)  # fmt: skip
def test_a_provider_keeps_the_options_of_its_recipe(
    free: Bundle, tmp_path: Path, provider: str, options: dict[str, Any], told: dict[str, str]
) -> None:
    bundle = for_provider(free, tmp_path / "tiny", provider, options)
    config = config_of(write_repository(bundle, "cpu", tmp_path / "models"))
    (chosen,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert (chosen.name, dict(chosen.parameters)) == (provider, told)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"trt_fp16_enable": True, "trt_int8_enable": True}, "FP16 and INT8"),
        ({"trt_op_types_to_exclude": "MaxPool"}, "provider.trt_op_types_to_exclude"),
    ],
)
def test_options_that_triton_has_no_word_for_are_refused(
    free: Bundle, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    bundle = for_provider(free, tmp_path / "tiny", "tensorrt", options)
    with pytest.raises(BundleError, match=words):
        write_repository(bundle, "cpu", tmp_path / "models")
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("captured", [True, False])
def test_a_plan_whose_launches_are_captured_is_run_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, captured: bool
) -> None:
    monkeypatch.setitem(PLAN.options, "cuda_graph", captured)
    config = config_of(write_repository(with_plan(tmp_path / "tiny"), "a100", tmp_path / "models"))
    assert config.optimization.cuda.graphs == captured


def for_provider(
    bundle: Bundle, folder: Path, provider: str, own: Mapping[str, Any] = MappingProxyType({})
) -> Bundle:
    """A copy whose recipe names another of ONNX Runtime's providers: only its description is looked at here."""
    shutil.copytree(bundle.path, folder)
    recipe = folder / "cpu" / "target.json"
    options = {"provider": provider} | {f"provider.{key}": value for key, value in own.items()}
    recipe.write_text(json.dumps({**json.loads(recipe.read_text()), "options": options}))
    seal(folder, bundle.manifest)
    return open_bundle(folder)


def test_weights_beside_an_onnx_model_go_with_it(free: Bundle, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(free.path, tmp_path / "tiny"))
    path = folder / "cpu" / "graph.onnx"
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="graph.onnx.data", size_threshold=0)
    entry = free.manifest.engines["cpu"]
    entry = replace(entry, files=(*entry.files, "cpu/graph.onnx.data"))
    seal(folder, replace(free.manifest, engines={**free.manifest.engines, "cpu": entry}))
    model = write_repository(open_bundle(folder), "cpu", tmp_path / "models")
    assert sorted(each.name for each in (model / "1").iterdir()) == ["graph.onnx.data", "model.onnx"]
    loaded = onnx.load(model / "1" / "model.onnx")  # finds its weights there
    assert sum(len(each.raw_data) for each in loaded.graph.initializer) >= 4 * WEIGHTS["base"].size


def test_models_lie_side_by_side_and_are_replaced_one_by_one(free: Bundle, tmp_path: Path) -> None:
    for target in ("cpu", "openvino-cpu"):
        write_repository(free, target, tmp_path)
    before = tree(tmp_path)
    (tmp_path / "tiny_1_cpu" / "1" / "model.onnx").write_bytes(b"old")
    write_repository(free, "cpu", tmp_path)
    assert tree(tmp_path) == before
    (tmp_path / "other").mkdir()
    shutil.rmtree(tmp_path / "tiny_1_cpu")
    (tmp_path / "tiny_1_cpu").mkdir()
    (tmp_path / "tiny_1_cpu" / "thesis.txt").write_text("mine")
    with pytest.raises(BundleError, match="holds other things"):
        write_repository(free, "cpu", tmp_path)


def sub(pattern: str, text: str) -> Callable[[Path], object]:
    """A change of the configuration's text, which must change it."""

    def change(model: Path) -> None:
        path = model / "config.pbtxt"
        before = path.read_text()
        after = re.sub(pattern, text, before, count=1)
        assert after != before
        path.write_text(after)

    return change


def rewrite_model(change: Callable[[onnx.ModelProto], object]) -> Callable[[Path], object]:
    def apply(model: Path) -> None:
        graph = onnx.load(model / "1" / "model.onnx")
        change(graph)
        onnx.save(graph, model / "1" / "model.onnx")

    return apply


def rename_output(graph: onnx.ModelProto) -> None:
    graph.graph.output[1].name = "fish"
    for node in graph.graph.node:
        node.output[:] = ["fish" if name == "birds" else name for name in node.output]


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "bogus platform": (sub("onnxruntime_onnx", "onnxruntime_bogus"), "has platform 'onnxruntime_bogus'"),
    "no platform": (sub('platform: "onnxruntime_onnx"\n', ""), "has platform ''"),
    "another backend": (sub('platform: "onnxruntime_onnx"', 'backend: "python"'), "backend 'python'"),
    "platform of another model": (sub("onnxruntime_onnx", "tensorrt_plan"), r"model\.plan is missing"),
    "unknown field": (sub("max_batch_size", "max_batches"), "is not as Triton reads it"),
    "bad enum": (sub("KIND_CPU", "KIND_TPU"), "is not as Triton reads it"),
    "no text": (lambda m: (m / "config.pbtxt").write_bytes(b"\xff\xfe"), "is not as Triton reads it"),
    "no input": (sub(r"input \{[^\n]*\}\n", ""), r"inputs are \[\], the model has \['input'\]"),
    "no dims": (sub(r" dims: \[ 3, 8, 8 \]", ""), r"input input has dims \[\], the model \[3, 8, 8\]"),
    "other dims": (sub("3, 8, 8", "3, 8, 9"), r"dims \[3, 8, 9\], the model \[3, 8, 8\]"),
    "no type": (sub(" data_type: TYPE_FP32", ""), "input input is TYPE_INVALID, the model has TYPE_FP32"),
    "other type": (sub('"birds" data_type: TYPE_FP32', '"birds" data_type: TYPE_FP16'), "birds is TYPE_FP16"),
    "output misspelt": (sub('"birds"', '"brids"'), r"outputs are \['base', 'brids'\]"),
    "output missing": (sub(r'output \{ name: "base"[^\n]*\}\n', ""), r"outputs are \['birds'\]"),
    "output twice": (sub(r'(output \{ name: "base"[^\n]*\}\n)', r"\1\1"), "outputs are"),
    "other classes": (sub(r"\[ 300 \]", "[ 301 ]"), r"dims \[301\], the model \[300\]"),
    "no batch": (
        sub("max_batch_size: 16", "max_batch_size: 0"),
        r"dims \[3, 8, 8\], the model \[-1, 3, 8, 8\]",
    ),
    "negative batch": (sub("max_batch_size: 16", "max_batch_size: -1"), "max_batch_size is -1"),
    "another name": (sub('name: "tiny_1_cpu"', 'name: "tiny"'), "the name is 'tiny', the folder's is"),
    "no labels": (lambda m: (m / "birds_labels.txt").unlink(), "has no label file 'birds_labels.txt'"),
    "labels elsewhere": (sub("birds_labels.txt", "../birds_labels.txt"), "has no label file"),
    "a label too few": (
        lambda m: (m / "birds_labels.txt").write_text("heron\njay\n"),
        "not one line for each",
    ),
    "no model": (lambda m: (m / "1" / "model.onnx").unlink(), r"model\.onnx is missing"),
    "no onnx": (lambda m: (m / "1" / "model.onnx").write_bytes(b"\xff" * 9), "cannot be read"),
    "another model's output": (rewrite_model(rename_output), r"the model has \['base', 'fish'\]"),
    "a fixed batch in the model": (
        rewrite_model(lambda g: setattr(g.graph.input[0].type.tensor_type.shape.dim[0], "dim_value", 1)),
        "max_batch_size is 16, the model's batch is 1",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_configuration_that_does_not_fit_its_model_is_refused(
    name: str, free: Bundle, tmp_path: Path
) -> None:
    change, complaint = FAULTS[name]
    change(write_repository(free, "cpu", tmp_path))
    with pytest.raises(BundleError, match=complaint) as caught:
        check_repository(tmp_path)
    assert "\n" not in caught.value.message


def test_an_openvino_model_is_compared_too(free: Bundle, tmp_path: Path) -> None:
    model = write_repository(free, "openvino-cpu", tmp_path)
    check_repository(tmp_path)
    sub("-1, 300", "-1, 299")(model)
    with pytest.raises(BundleError, match=r"dims \[-1, 299\], the model \[-1, 300\]"):
        check_repository(tmp_path)
    (model / "1" / "model.xml").write_text("<?xml nonsense")
    with pytest.raises(BundleError, match="cannot be read"):
        check_repository(tmp_path)
    (model / "1" / "model.bin").unlink()
    with pytest.raises(BundleError, match=r"model\.bin is missing"):
        check_repository(tmp_path)


def test_what_triton_cannot_run_is_refused_with_nothing_left(free: Bundle, tmp_path: Path) -> None:
    bundle = with_plan(tmp_path / "tiny")
    recipe = bundle.path / "a100" / "target.json"
    recipe.write_text(recipe.read_text().replace('"tensorrt"', '"tensorrt_rtx"'))
    entry = replace(bundle.manifest.engines["a100"], backend="tensorrt_rtx")
    seal(bundle.path, replace(bundle.manifest, engines={"a100": entry}))
    before = tree(tmp_path)
    with pytest.raises(BundleError, match="runs no engines of tensorrt_rtx"):
        write_repository(open_bundle(bundle.path), "a100", tmp_path / "models")
    new = for_provider(free, tmp_path / "new", "tensorrt_rtx")
    before = tree(tmp_path)
    with pytest.raises(BundleError, match="runs no engines of onnxruntime's tensorrt_rtx"):
        write_repository(new, "cpu", tmp_path / "models")
    with pytest.raises(BundleError, match="has no engine for target 'cpi'") as caught:
        write_repository(free, "cpi", tmp_path / "models")
    assert "did you mean cpu" in caught.value.hint
    assert tree(tmp_path) == before


def test_an_altered_engine_is_not_shipped(free: Bundle, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(free.path, tmp_path / "tiny"))
    (folder / "cpu" / "graph.onnx").write_bytes(b"altered")
    with pytest.raises(BundleError, match=r"altered: cpu/graph\.onnx"):
        write_repository(open_bundle(folder), "cpu", tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_a_folder_without_a_model_is_no_repository(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="holds no model"):
        check_repository(tmp_path)


def test_without_the_schema_a_repository_is_written_but_not_checked(
    free: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("subtune_deploy.triton.check.PACKAGE", "no_such_package")
    _schema.cache_clear()
    try:
        write_repository(free, "cpu", tmp_path)
        with pytest.raises(Unavailable, match="schema is not installed") as caught:
            check_repository(tmp_path)
    finally:
        _schema.cache_clear()
    assert caught.value.hint == "pip install 'subtune-deploy[triton]'"
