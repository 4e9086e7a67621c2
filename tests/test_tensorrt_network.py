"""The records of a parsed network say what the ONNX file said."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper
from tiny_parsed import bf16, layers, parsed, records, rtx, write

from subtune_deploy.backends.tensorrt.interpreter import open_interpreter
from subtune_deploy.backends.tensorrt.network import Tensor, read

RANDOM = np.random.default_rng(0)
KERNEL = RANDOM.standard_normal((4, 3, 3, 2)).astype(np.float32)
BIAS = RANDOM.standard_normal(4).astype(np.float32)


def convolution(folder: Path, batch: int | str = 2) -> Path:
    """conv -> relu -> max pool, all with attributes that differ from the defaults."""
    nodes = [
        helper.make_node(
            "Conv", ["input", "kernel", "bias"], ["a"], strides=[2, 1], pads=[1, 0, 2, 1], dilations=[1, 2]
        ),
        helper.make_node("LeakyRelu", ["a"], ["b"], alpha=0.25),
        helper.make_node("MaxPool", ["b"], ["output"], kernel_shape=[2, 3], strides=[1, 2]),
    ]
    return write(folder / "g.onnx", nodes, {"kernel": KERNEL, "bias": BIAS}, (batch, 3, 8, 9))


def test_a_convolution_comes_with_its_attributes_and_weights(tmp_path: Path) -> None:
    (layer,) = layers(records(convolution(tmp_path)), "CONVOLUTION")
    expected = {
        "num_output_maps": 4,
        "kernel_size_nd": (3, 2),
        "stride_nd": (2, 1),
        "pre_padding": (1, 0),
        "post_padding": (2, 1),
        "dilation_nd": (1, 2),
        "num_groups": 1,
        "padding_mode": "EXPLICIT_ROUND_DOWN",
    }
    assert {name: layer.attributes[name] for name in expected} == expected
    assert layer.weights["kernel"].dtype == "FLOAT"
    assert np.array_equal(layer.weights["kernel"].values.reshape(KERNEL.shape), KERNEL)
    assert np.array_equal(layer.weights["bias"].values, BIAS)


def test_enumerations_are_told_by_name(tmp_path: Path) -> None:
    network = records(convolution(tmp_path))
    assert [layer.attributes["type"] for layer in layers(network, "ACTIVATION")] == ["LEAKY_RELU"]
    assert layers(network, "ACTIVATION")[0].attributes["alpha"] == 0.25
    assert [layer.attributes["type"] for layer in layers(network, "POOLING")] == ["MAX"]


def test_inputs_and_outputs_are_named_typed_and_shaped(tmp_path: Path) -> None:
    network = records(convolution(tmp_path, "batch"))
    assert network.inputs == (Tensor("input", "FLOAT", (None, 3, 8, 9)),)
    (output,) = network.outputs
    assert (output.name, output.dtype, output.shape[:2]) == ("output", "FLOAT", (None, 4))
    made = {"input"}
    for layer in network.layers:
        assert {each.name for each in layer.inputs if each is not None} <= made
        made |= {each.name for each in layer.outputs}


def test_records_outlive_the_parser(tmp_path: Path) -> None:
    held = parsed(convolution(tmp_path))
    network = read(rtx, held.network)
    del held
    gc.collect()
    answer = open_interpreter(network).run(np.ones((2, 3, 8, 9), np.float32))["output"]
    assert np.isfinite(answer).all()
    assert answer.std() > 0


def test_reading_twice_gives_the_same(tmp_path: Path) -> None:
    held = parsed(convolution(tmp_path))
    first, second = read(rtx, held.network), read(rtx, held.network)
    assert [(each.type, each.attributes, each.inputs) for each in first.layers] == [
        (each.type, each.attributes, each.inputs) for each in second.layers
    ]


def test_half_precision_weights_keep_their_bits(tmp_path: Path) -> None:
    half = KERNEL.astype(np.float16)
    nodes = [
        helper.make_node("Cast", ["input"], ["a"], to=TensorProto.FLOAT16),
        helper.make_node("Conv", ["a", "kernel"], ["b"]),
        helper.make_node("Cast", ["b"], ["output"], to=TensorProto.FLOAT),
    ]
    network = records(write(tmp_path / "g.onnx", nodes, {"kernel": half}, (1, 3, 8, 9)))
    found = [each for layer in network.layers for each in layer.weights.values() if each.dtype == "HALF"]
    assert [each.values.tobytes() for each in found] == [half.tobytes()]


def test_bfloat16_weights_keep_their_bits(tmp_path: Path) -> None:
    kernel = bf16(KERNEL, "kernel")
    nodes = [
        helper.make_node("Cast", ["input"], ["a"], to=TensorProto.BFLOAT16),
        helper.make_node("Conv", ["a", "kernel"], ["b"]),
        helper.make_node("Cast", ["b"], ["output"], to=TensorProto.FLOAT),
    ]
    network = records(write(tmp_path / "g.onnx", nodes, {"kernel": kernel}, (1, 3, 8, 9), opset=22))
    found = [each for layer in network.layers for each in layer.weights.values() if each.dtype == "BF16"]
    assert [each.values.tobytes() for each in found] == [kernel.raw_data]
    assert found[0].values.dtype == np.uint16


def test_int8_weights_and_their_scales_are_read(tmp_path: Path) -> None:
    numbers = RANDOM.integers(-127, 128, KERNEL.shape).astype(np.int8)
    scales = RANDOM.uniform(0.01, 0.1, 4).astype(np.float32)
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "one"], ["a"], output_dtype=TensorProto.INT8),
        helper.make_node("DequantizeLinear", ["a", "one"], ["b"]),
        helper.make_node("DequantizeLinear", ["numbers", "scales"], ["kernel"], axis=0),
        helper.make_node("Conv", ["b", "kernel"], ["output"]),
    ]
    one = np.array(0.02, np.float32)
    weights = {"numbers": numbers, "scales": scales, "one": one}
    network = records(write(tmp_path / "g.onnx", nodes, weights, (1, 3, 8, 9), opset=21))
    found = [each.values.tobytes() for layer in network.layers for each in layer.weights.values()]
    assert numbers.tobytes() in found
    assert scales.tobytes() in found


def test_lengths_that_an_input_gives_are_none(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["input"], ["lengths"]),
        helper.make_node("Gather", ["lengths", "order"], ["wanted"]),
        helper.make_node("Reshape", ["input", "wanted"], ["output"]),
    ]
    path = write(tmp_path / "g.onnx", nodes, {"order": np.array([0, 2, 1])}, ("batch", 3, 4))
    shuffles = [each for each in layers(records(path), "SHUFFLE") if len(each.inputs) == 2]
    assert [each.attributes["reshape_dims"] for each in shuffles] == [None]


def test_no_two_values_can_have_one_name(tmp_path: Path) -> None:
    held = parsed(convolution(tmp_path))
    held.network.get_layer(0).get_output(0).name = "output"
    names = [tensor.name for layer in read(rtx, held.network).layers for tensor in layer.outputs]
    assert len(set(names)) == len(names)
