"""Rounded weights, and biases that keep the mean answer where it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from subtune_deploy.bias_correction import LARGEST, round_weights

RANDOM = np.random.default_rng(3)
FEEDS = [np.abs(RANDOM.standard_normal((2, 4, 6, 6))).astype(np.float32) + i for i in range(3)]
"""Not of mean zero: that is what moves an answer."""

GIVEN = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 4, 6, 6])
ANSWER = helper.make_tensor_value_info("answer", TensorProto.FLOAT, None)


def weights(name: str, *shape: int) -> TensorProto:
    return numpy_helper.from_array(RANDOM.standard_normal(shape).astype(np.float32), name)


def graph(nodes: list[NodeProto], *tensors: TensorProto) -> ir.Model:
    made = helper.make_graph(nodes, "made", [GIVEN], [ANSWER], tensors)
    return ir.serde.deserialize_model(
        helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    )


def convolution(groups: int, kernel: int) -> ir.Model:
    node = helper.make_node("Conv", ["input", "w", "b"], ["answer"], group=groups)
    return graph([node], weights("w", 8, 4 // groups, kernel, kernel), weights("b", 8))


def product(transposed: int) -> ir.Model:
    nodes = [
        helper.make_node("GlobalAveragePool", ["input"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
        helper.make_node("Gemm", ["features", "w", "b"], ["answer"], transB=transposed),
    ]
    return graph(nodes, weights("w", *((5, 4) if transposed else (4, 5))), weights("b", 5))


LAYERS = {
    "pointwise": lambda: convolution(1, 1),
    "3x3": lambda: convolution(1, 3),
    "grouped": lambda: convolution(2, 3),
    "depthwise": lambda: convolution(4, 3),
    "matrix product": lambda: product(1),
    "matrix product, not transposed": lambda: product(0),
}
every_layer = pytest.mark.parametrize("layer", LAYERS)


def run(model: ir.Model) -> np.ndarray:
    """Answers to all feeds, channels first."""
    session = onnxruntime.InferenceSession(
        ir.serde.serialize_model(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    answers = np.concatenate([session.run(None, {"input": feed})[0] for feed in FEEDS])
    return np.moveaxis(answers.astype(np.float64), 1, 0).reshape(answers.shape[1], -1)


def value(model: ir.Model, name: str) -> np.ndarray:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy().copy()


@every_layer
def test_the_mean_answer_of_every_channel_stays(layer: str, tmp_path: Path) -> None:
    model = LAYERS[layer]()
    before, bias = run(model).mean(axis=1), value(model, "b")
    round_weights(model, FEEDS, tmp_path)
    after = run(model).mean(axis=1)
    model.graph.initializers["b"].const_value = ir.tensor(bias)
    uncorrected = np.abs(run(model).mean(axis=1) - before).max()
    # exact but for a kernel's borders, where the mean of what it sees is not that of the whole
    assert (
        np.abs(after - before).max()
        < (0.2 if layer in ("3x3", "grouped", "depthwise") else 1e-3) * uncorrected
    )
    assert uncorrected > 1e-3


@every_layer
@pytest.mark.parametrize("bits", LARGEST)
def test_weights_become_what_int8_holds(layer: str, bits: int, tmp_path: Path) -> None:
    model = LAYERS[layer]()
    before = value(model, "w")
    round_weights(model, FEEDS, tmp_path, bits=bits)
    after = value(model, "w")
    others = (0,) if layer.endswith("not transposed") else tuple(range(1, before.ndim))
    scale = np.abs(before).max(axis=others, keepdims=True) / LARGEST[bits]
    np.testing.assert_allclose(after / scale, np.rint(after / scale), atol=1e-3)
    assert 0 < np.abs(after - before).max() <= scale.max() / 2 * 1.001


def test_a_weight_that_has_one_scale_is_rounded_by_that(tmp_path: Path) -> None:
    model = convolution(1, 1)
    before, mean = value(model, "w"), run(model).mean(axis=1)
    round_weights(model, FEEDS, tmp_path, whole=["w"])
    scale = np.abs(before).max() / LARGEST[8]
    np.testing.assert_allclose(value(model, "w"), np.rint(before / scale) * scale, atol=1e-6)
    np.testing.assert_allclose(run(model).mean(axis=1), mean, atol=1e-4)


def test_a_bias_that_is_shared_gets_the_mean_of_both_corrections(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["input", "w", "b"], ["one"]),
        helper.make_node("Relu", ["one"], ["positive"]),
        helper.make_node("Conv", ["positive", "w", "b"], ["answer"]),
    ]
    model = graph(nodes, weights("w", 4, 4, 1, 1), weights("b", 4))
    weight, bias = value(model, "w"), value(model, "b")
    means = [np.concatenate(FEEDS).mean((0, 2, 3))]
    first = np.einsum("oi,nihw->nohw", weight[:, :, 0, 0], np.concatenate(FEEDS)) + bias[:, None, None]
    means.append(np.maximum(first, 0).mean((0, 2, 3)))
    round_weights(model, FEEDS, tmp_path)
    change = (value(model, "w") - weight)[:, :, 0, 0]
    np.testing.assert_allclose(
        value(model, "b"), bias - change @ np.mean(means, axis=0), rtol=1e-4, atol=1e-6
    )


def test_an_equal_bias_of_other_weights_is_corrected_for_each_and_kept_where_one_is_kept(
    tmp_path: Path,
) -> None:
    """Optimisers make one value of equal biases; here the same layers, the last one kept, with one and with three."""
    tensors = [weights(name, 4, 4, 1, 1) for name in ("w1", "w2", "w3")]
    zeros = [numpy_helper.from_array(np.zeros(4, np.float32), name) for name in ("b1", "b2", "b3")]

    def rounded(biases: tuple[str, str, str], scratch: Path) -> list[np.ndarray]:
        scratch.mkdir()
        nodes = [
            helper.make_node("Conv", ["input", each.name, bias], [f"y{n}"], name=f"conv{n}")
            for n, (each, bias) in enumerate(zip(tensors, biases, strict=True), start=1)
        ]
        nodes.append(helper.make_node("Sum", ["y1", "y2", "y3"], ["answer"]))
        model = graph(nodes, *tensors, *[each for each in zeros if each.name in biases])
        round_weights(model, FEEDS, scratch, {"conv3"})
        return [value(model, str(node.inputs[2].name)) for node in model.graph if node.op_type == "Conv"]

    apart = rounded(("b1", "b2", "b3"), tmp_path / "apart")
    shared = rounded(("b1", "b1", "b1"), tmp_path / "shared")
    assert np.abs(apart[0] - apart[1]).max() > 1e-4
    assert not apart[2].any()
    for one, other in zip(apart, shared, strict=True):
        np.testing.assert_array_equal(one, other)


def test_layers_without_a_constant_bias_are_left_alone(tmp_path: Path) -> None:
    model = graph([helper.make_node("Conv", ["input", "w"], ["answer"])], weights("w", 8, 4, 1, 1))
    before = value(model, "w")
    round_weights(model, FEEDS, tmp_path)
    np.testing.assert_array_equal(value(model, "w"), before)


def test_a_channel_of_zeros_stays_zero(tmp_path: Path) -> None:
    model = convolution(1, 1)
    weight = value(model, "w")
    weight[2] = 0
    model.graph.initializers["w"].const_value = ir.tensor(weight)
    round_weights(model, FEEDS, tmp_path)
    assert not value(model, "w")[2].any()
    assert np.isfinite(value(model, "b")).all()
