"""Weights of 7 bits, where the CPU adds products of 8 bits in 16: by structure, by numbers, and in what ships."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_bundle import TARGETS, make_bundle, pictures
from tiny_forms import BITS, constants

from subtune_deploy.backends import base, get_backend
from subtune_deploy.backends.base import Engine, Target
from subtune_deploy.backends.onnxruntime import open_literally
from subtune_deploy.bundle import add_engine, engine_target, open_bundle
from subtune_deploy.environment import multiplies_int8_exactly
from subtune_deploy.errors import TargetError, Unavailable
from subtune_deploy.manifest import RECIPE
from subtune_deploy.parity import relative_errors
from subtune_deploy.precision import converted, int8_form
from subtune_deploy.quantization import SIGNED
from subtune_deploy.runtime import Bundle, load_engine
from subtune_deploy.ship import ship
from subtune_deploy.targets import load_target

INT8 = {"onnxruntime": "cpu-int8", "openvino": "openvino-cpu-int8"}
CHANNELS = 32
SHAPES = {"Conv": (1, CHANNELS, 6, 6), "Gemm": (1, CHANNELS, 1, 1), "MatMul": (1, 2, 4, CHANNELS)}
WEIGHTS = {"Conv": (8, CHANNELS, 3, 3), "Gemm": (CHANNELS, 8), "MatMul": (CHANNELS, 8)}


def graph(folder: Path, operator: str) -> None:
    """One operator whose weights and inputs are all positive and large: what is added grows as fast as it can."""
    values = np.random.default_rng(0).uniform(0.8, 1, WEIGHTS[operator]).astype(np.float32)
    flat = [helper.make_node("Flatten", ["input"], ["flat"])] if operator == "Gemm" else []
    bias = [] if operator == "MatMul" else ["b"]
    node = helper.make_node(
        operator, ["flat" if flat else "input", "w", *bias], ["base"], name=f"block1.base/{operator}"
    )
    made = helper.make_graph(
        [*flat, node],
        "one",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, SHAPES[operator])],
        [helper.make_tensor_value_info("base", TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(values, "w"),
            *(numpy_helper.from_array(values.flat[:8].copy(), b) for b in bias),
        ],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(onnx.shape_inference.infer_shapes(model), folder / "graph.onnx")


def inputs(operator: str, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.8, 1, (4, *SHAPES[operator][1:])).astype(np.float32)


def made(folder: Path, operator: str, backend: str, bits: int) -> Path:
    """Its graph in int8, as that backend has it."""
    graph(folder, operator)
    form = replace(int8_form(load_target(INT8[backend])), weight_bits=bits)
    (folder / "int8").mkdir()
    converted(folder, folder / "int8", "int8", inputs(operator, 1), form=form, roles=("graph",))
    return folder / "int8"


def opened(source: Path, backend: str, target: Target) -> Engine:
    get_backend(backend).compile(source, source, "graph", target)
    return get_backend(backend).load(source, "graph", target)


def error(folder: Path, operator: str, backend: str, bits: int) -> float:
    """Of the engine, from what its graph says."""
    source = made(folder, operator, backend, bits)
    wanted = open_literally(source / "graph.onnx").run(batch := inputs(operator, 2)[:1])
    got = opened(source, backend, load_target(INT8[backend])).run(batch)
    return float(relative_errors(got["base"], wanted["base"]).max())


every_operator = pytest.mark.parametrize("operator", ["Conv", "Gemm", "MatMul"])
every_backend = pytest.mark.parametrize("backend", INT8)


@every_backend
@every_operator
@pytest.mark.parametrize("bits", sorted({7, BITS}))
def test_an_engine_answers_what_its_graph_says(
    tmp_path: Path, operator: str, backend: str, bits: int
) -> None:
    assert error(tmp_path, operator, backend, bits) < 0.01


@pytest.mark.skipif(multiplies_int8_exactly(), reason="this CPU has VNNI, or is no x86")
@every_backend
@every_operator
def test_with_8_bits_it_would_not_on_this_cpu(tmp_path: Path, operator: str, backend: str) -> None:
    assert error(tmp_path, operator, backend, 8) > 0.03


@every_backend
@every_operator
@pytest.mark.parametrize(("bits", "largest"), [(8, 127), (7, 64)])
def test_weights_have_so_many_bits(
    tmp_path: Path, operator: str, backend: str, bits: int, largest: int
) -> None:
    weights = constants(made(tmp_path, operator, backend, bits) / "graph.onnx")
    held, scale = weights["w_quantized"], weights["w_scale"]
    assert held.max() == largest
    plain = constants(tmp_path / "graph.onnx")["w"]
    channels = scale.reshape(-1, *[1] * (held.ndim - 1)) if operator == "Conv" else scale
    np.testing.assert_allclose(held * channels, plain, atol=scale.max() / 2 * 1.001)


@pytest.mark.parametrize("bits", [8, 7])
def test_biases_make_up_for_what_weights_of_so_many_bits_lose(tmp_path: Path, bits: int) -> None:
    graph(tmp_path, "Gemm")
    (tmp_path / "out").mkdir()
    form, given = replace(SIGNED, weight_bits=bits), inputs("Gemm", 1)
    converted(tmp_path, tmp_path / "out", "int8", given, form=form, roles=("graph",))
    before, after = (constants(folder / "graph.onnx") for folder in (tmp_path, tmp_path / "out"))
    lost = after["w_quantized"] * after["w_scale"] - before["w"]
    wanted = before["b"] - given.reshape(len(given), -1).mean(axis=0) @ lost
    np.testing.assert_allclose(after["b"], wanted, atol=1e-5)
    assert np.abs(lost).max() > 1e-4


@pytest.mark.parametrize(("exact", "bits"), [(True, 8), (False, 7)])
def test_a_cpu_gets_what_it_needs_unless_the_recipe_says_otherwise(
    exact: bool, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("subtune_deploy.precision.multiplies_int8_exactly", lambda: exact)
    for name in INT8.values():
        target = load_target(name)
        assert int8_form(target).weight_bits == bits
        assert int8_form(replace(target, weight_bits=7)).weight_bits == 7
    assert int8_form(load_target("rtx-int8")).weight_bits == 8


# in what ships


@pytest.fixture(params=INT8)
def target(request: pytest.FixtureRequest) -> Target:
    return replace(TARGETS[request.param], precision="int8")


def stored(folder: Path, target: Target) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / target.name / RECIPE).read_text())
    return found


def test_an_engine_says_how_many_bits_its_weights_have(tmp_path: Path, target: Target) -> None:
    bundle = add_engine(make_bundle(tmp_path / "b"), target, calibration=pictures(4))
    assert engine_target(bundle, target.name).weight_bits == BITS
    seven = replace(target, weight_bits=7)
    bundle = add_engine(bundle, seven, calibration=pictures(4))
    assert engine_target(bundle, target.name) == seven
    assert "weight_bits" not in stored(tmp_path / "b", add_engine_in_fp32(tmp_path / "b", target))
    assert load_engine(open_bundle(tmp_path / "b"), target.name).run(pictures(1))


def add_engine_in_fp32(folder: Path, target: Target) -> Target:
    other = replace(target, name="plain", precision="fp32")
    add_engine(open_bundle(folder), other)
    return other


def test_8_bits_are_refused_where_they_would_answer_wrongly(
    tmp_path: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from a machine with VNNI, by a version that knew no other weights or by this one."""
    monkeypatch.setattr("subtune_deploy.precision.multiplies_int8_exactly", lambda: True)
    monkeypatch.setattr(base, "multiplies_int8_exactly", lambda: True)
    bundle = add_engine(make_bundle(tmp_path / "b"), target, calibration=pictures(4))
    assert "weight_bits" not in stored(bundle.path, target), "older versions know no such key"
    assert Bundle.open(bundle.path).run(pictures(1))
    monkeypatch.setattr(base, "multiplies_int8_exactly", lambda: False)
    with pytest.raises(Unavailable, match="this CPU has no VNNI") as caught:
        Bundle.open(bundle.path)
    assert "weight_bits = 7" in (caught.value.hint or "")
    bundle = add_engine(bundle, replace(target, weight_bits=7), calibration=pictures(4))
    assert Bundle.open(bundle.path).run(pictures(1))


@pytest.mark.parametrize("bits", [7, 8])
def test_a_server_that_loads_engines_unasked_is_warned_of(tmp_path: Path, target: Target, bits: int) -> None:
    bundle = add_engine(
        make_bundle(tmp_path / "b"), replace(target, weight_bits=bits), calibration=pictures(4)
    )
    said = list[str]()
    ship(bundle.path, "triton", tmp_path / "models", targets=[target.name], say=said.append)
    assert [line.split(":")[1].strip() for line in said] == (["weights have 8 bits"] if bits == 8 else [])


def test_what_runs_elsewhere_is_not_asked_what_this_cpu_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "multiplies_int8_exactly", lambda: False)
    eight = replace(load_target("cpu-int8"), weight_bits=8)
    with pytest.raises(Unavailable):
        base.check_weight_bits(eight)
    base.check_weight_bits(replace(eight, options={"provider": "cuda"}))


@pytest.mark.parametrize("given", [6, 9, -1])
def test_other_numbers_of_bits_are_refused(tmp_path: Path, given: int) -> None:
    recipe = 'name = "mine"\nbackend = "onnxruntime"\nprecision = "int8"\ndescription = ""\n'
    (tmp_path / "mine.toml").write_text(f"{recipe}weight_bits = {given}\n")
    with pytest.raises(TargetError, match=f"weight_bits is {given}") as caught:
        load_target(str(tmp_path / "mine.toml"))
    assert "8 or 7" in (caught.value.hint or "")
