"""Every operation of the interpreter against ONNX Runtime, on tiny graphs that the real parser has read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import NodeProto, TensorProto, helper
from tiny_parsed import bf16, records, write

from subtune_deploy.backends.onnxruntime import open_literally
from subtune_deploy.backends.tensorrt.interpreter import OPERATIONS, open_interpreter
from subtune_deploy.errors import BundleError, InputError, ParityError, Unavailable

RANDOM = np.random.default_rng(5)
SHAPE = (2, 4, 6, 5)


def floats(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


@dataclass(frozen=True)
class Case:
    """A graph from `input` (numbers between `low` and `high`) to `output`."""

    id: str
    nodes: Sequence[NodeProto]
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    shape: tuple[int, ...] = SHAPE
    low: float = -3
    high: float = 3
    opset: int = 20

    def write(self, folder: Path, batch: int | str | None = None) -> Path:
        shape = (batch or self.shape[0], *self.shape[1:])
        return write(folder / "g.onnx", self.nodes, self.weights, shape, opset=self.opset)

    def batch(self, size: int | None = None) -> np.ndarray:
        shape = (size or self.shape[0], *self.shape[1:])
        return np.random.default_rng(1).uniform(self.low, self.high, shape).astype(np.float32)


def one(kind: str, *operands: np.ndarray | None, name: str = "", to: int | None = None, **given: Any) -> Case:
    """One operator on the input and constant operands; `to`: the input is cast to that type before."""
    case = {key: given.pop(key) for key in ("shape", "low", "high", "opset") if key in given}
    names = ["" if value is None else f"operand{index}" for index, value in enumerate(operands)]
    weights = {key: value for key, value in zip(names, operands, strict=True) if value is not None}
    nodes = [] if to is None else [helper.make_node("Cast", ["input"], ["typed"], to=to)]
    nodes.append(helper.make_node(kind, ["input" if to is None else "typed", *names], ["raw"], **given))
    nodes.append(helper.make_node("Cast", ["raw"], ["output"], to=TensorProto.FLOAT))
    return Case(name or kind, nodes, weights, **case)


def chain(
    name: str, *nodes: tuple[Any, ...], weights: dict[str, np.ndarray] | None = None, **case: Any
) -> Case:
    """Nodes as (operator, inputs, output, attributes), names separated by blanks."""
    made = [
        helper.make_node(kind, inputs.split(" "), outputs.split(" "), **(rest[0] if rest else {}))
        for kind, inputs, outputs, *rest in nodes
    ]
    return Case(name, made, weights or {}, **case)


INT32, INT64 = TensorProto.INT32, TensorProto.INT64

ACTIVATIONS = [
    *(one(kind) for kind in ("Relu", "Sigmoid", "Tanh", "Softsign", "Softplus", "HardSwish", "Mish")),
    one("LeakyRelu", alpha=0.2),
    one("Elu", alpha=0.7),
    one("Celu", alpha=0.7),
    one("Selu", alpha=1.2, gamma=0.9),  # the parser's defaults are the standard's, cut to five digits
    one("HardSigmoid", alpha=0.3, beta=0.4),
    one("ThresholdedRelu", alpha=0.5),
    one("Gelu", name="Gelu, exact"),
    one("Gelu", name="Gelu, tanh", approximate="tanh"),
    one("Clip", np.float32(-0.5), np.float32(1.5)),
    one("Clip", None, np.float32(1.5), name="Clip above"),
    one("PRelu", floats(4, 1, 1)),
]

UNARY = [
    *(
        one(kind)
        for kind in [
            "Exp",
            "Reciprocal",
            "Abs",
            "Neg",
            "Sin",
            "Cos",
            "Tan",
            "Sinh",
            "Cosh",
            "Atan",
            "Asinh",
            "Ceil",
            "Floor",
            "Erf",
            "Sign",
            "Round",
        ]
    ),
    *(one(kind, low=0.05, high=0.95) for kind in ("Log", "Sqrt", "Asin", "Acos", "Atanh")),
    one("Acosh", low=1.1),
    chain(
        "Not, IsNaN, IsInf",
        ("Sqrt", "input", "root"),
        ("IsNaN", "root", "nan"),
        ("Div", "input zero", "quotient"),
        ("IsInf", "quotient", "inf"),
        ("Or", "nan inf", "either"),
        ("Not", "either", "neither"),
        ("Cast", "neither", "output", {"to": 1}),
        weights={"zero": np.repeat(np.float32([0, 1]), [2, 3])},
    ),
]

ELEMENTWISE = [
    *(one(kind, floats(4, 1, 5)) for kind in ("Add", "Sub", "Mul", "Div", "Max", "Min")),
    *(one(kind, floats(4, 6, 5)) for kind in ("Greater", "Less", "GreaterOrEqual", "LessOrEqual")),
    one("Pow", np.float32(2.5), low=0.1),
    one("Mod", floats(4, 1, 1), fmod=1),
    one("Equal", ints(1), to=INT64),
    one("Div", ints(2), to=INT64, name="Div of integers"),
    one("Mod", ints(3), to=INT64, name="Mod of integers"),
    one("Mul", np.array([3], np.int32), to=INT32, name="Mul of int32"),
    *(
        chain(
            kind,
            ("Greater", "input low", "a"),
            ("Less", "input high", "b"),
            (kind, "a b", "c"),
            ("Cast", "c", "output", {"to": 1}),
            weights={"low": np.float32([-1]), "high": np.float32([1])},
        )
        for kind in ("And", "Or", "Xor")
    ),
    chain(
        "Where",
        ("Greater", "input zero", "a"),
        ("Where", "a input other", "output"),
        weights={"zero": np.float32([0]), "other": floats(4, 1, 5)},
    ),
]

REDUCTIONS = [
    *(
        one(f"Reduce{kind}", ints(*axes), keepdims=keep, name=f"Reduce{kind} {axes} {keep}")
        for kind in ("Sum", "Mean", "Max", "Min", "Prod")
        for axes, keep in (((2, 3), 1), ((1,), 0), ((-1,), 0))
    ),
    *(one(f"Reduce{kind}", ints(1, 2)) for kind in ("L1", "L2", "SumSquare", "LogSumExp")),
    one("ReduceSum", ints(1), to=INT64, name="ReduceSum of integers"),
    one("CumSum", np.array(2), name="CumSum"),
    one("CumSum", np.array(1), name="CumSum, reverse and exclusive", reverse=1, exclusive=1),
    one("Softmax", axis=1, name="Softmax 1"),
    one("Softmax", axis=-1, name="Softmax -1"),
    one("LogSoftmax", axis=-1),
    one("ArgMax", axis=1, keepdims=1),
    one("ArgMin", axis=2, keepdims=0),
]

POOLS = [
    one("MaxPool", kernel_shape=[3, 2], strides=[2, 1], name="MaxPool"),
    one("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], name="MaxPool, padded"),
    one("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[0, 1, 1, 0], name="MaxPool, one side"),
    one("MaxPool", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1, name="MaxPool, rounded up"),
    one("MaxPool", kernel_shape=[3, 2], strides=[2, 2], auto_pad="SAME_UPPER", name="MaxPool, same upper"),
    one("MaxPool", kernel_shape=[3, 2], strides=[2, 2], auto_pad="SAME_LOWER", name="MaxPool, same lower"),
    one("MaxPool", kernel_shape=[3, 3], pads=[1] * 4, high=-1, name="MaxPool, all negative"),
    one("AveragePool", kernel_shape=[3, 2], strides=[2, 1], name="AveragePool"),
    *(
        one(
            "AveragePool",
            kernel_shape=[3, 3],
            strides=[2, 2],
            pads=pads,
            count_include_pad=counted,
            ceil_mode=ceil,
            name=f"AveragePool {pads} counted {counted} ceil {ceil}",
        )
        for pads in ([1, 1, 1, 1], [0, 1, 1, 0])
        for counted in (0, 1)
        for ceil in (0, 1)
    ),
    one("AveragePool", kernel_shape=[2, 2, 2], shape=(1, 2, 4, 4, 4), name="AveragePool, three axes"),
    one("MaxPool", kernel_shape=[2], strides=[2], shape=(1, 2, 7), name="MaxPool, one axis"),
    one("GlobalAveragePool"),
    one("GlobalMaxPool"),
]

CONVOLUTIONS = [
    one("Conv", floats(3, 4, 3, 2), floats(3), name="Conv"),
    one("Conv", floats(3, 4, 3, 2), name="Conv, no bias"),
    one("Conv", floats(6, 2, 3, 3), floats(6), group=2, pads=[1] * 4, name="Conv, two groups"),
    one("Conv", floats(8, 1, 3, 3), group=4, strides=[2, 2], pads=[1] * 4, name="Conv, depthwise"),
    one("Conv", floats(3, 4, 2, 2), dilations=[3, 2], name="Conv, dilated"),
    one("Conv", floats(3, 4, 3, 3), pads=[0, 2, 1, 3], strides=[2, 1], name="Conv, pads of all kinds"),
    one("Conv", floats(3, 4, 3, 2), auto_pad="SAME_UPPER", strides=[2, 2], name="Conv, same upper"),
    one("Conv", floats(3, 4, 3, 2), auto_pad="SAME_LOWER", strides=[2, 2], name="Conv, same lower"),
    one("Conv", floats(3, 4, 3), floats(3), shape=(2, 4, 9), name="Conv, one axis"),
    one("Conv", floats(3, 2, 2, 2, 2), shape=(1, 2, 4, 5, 4), name="Conv, three axes"),
    chain(
        "Conv, computed kernel",
        ("ReduceMean", "input axes", "mean", {"keepdims": 1}),
        ("Mul", "weight mean", "kernel"),
        ("Conv", "input kernel bias", "output"),
        weights={"axes": ints(0, 1, 2, 3), "weight": floats(3, 4, 2, 2), "bias": floats(3)},
    ),
]

NORMALIZATIONS = [
    one("BatchNormalization", floats(4), floats(4), floats(4), np.abs(floats(4)) + 0.5, epsilon=1e-3),
    one("LayerNormalization", floats(5), floats(5), axis=-1, epsilon=1e-3, name="LayerNormalization"),
    one("LayerNormalization", floats(5), axis=-1, name="LayerNormalization, no bias"),
    one("LayerNormalization", floats(4, 6, 5), floats(4, 6, 5), axis=1, name="LayerNormalization 1"),
    one("InstanceNormalization", floats(4), floats(4), epsilon=1e-3),
    one("GroupNormalization", floats(4), floats(4), num_groups=2, opset=21),
]

PRODUCTS = [
    one("MatMul", floats(5, 3), name="MatMul, broadcast"),
    one("MatMul", floats(4, 5, 3), name="MatMul, batched"),
    one("MatMul", floats(5), name="MatMul, vector"),
    one("Gemm", floats(7, 3), floats(3), shape=(2, 7), name="Gemm"),
    one("Gemm", floats(3, 7), floats(3), shape=(2, 7), transB=1, alpha=0.5, beta=2.0, name="Gemm, scaled"),
    one("Gemm", floats(2, 3), shape=(2, 7), transA=1, name="Gemm, turned"),
    one("Einsum", floats(4, 5, 3), equation="nchw,cwk->nhk"),
    chain(
        "attention",
        ("Transpose", "input", "keys", {"perm": [0, 1, 3, 2]}),
        ("MatMul", "input keys", "scores"),
        ("Softmax", "scores", "shares", {"axis": -1}),
        ("MatMul", "shares input", "output"),
    ),
]

SHUFFLES = [
    one("Transpose", perm=[0, 2, 3, 1]),
    one("Reshape", ints(0, -1), name="Reshape, keeping the first"),
    one("Reshape", ints(2, 2, -1, 5), name="Reshape"),
    one("Reshape", ints(), shape=(1, 1), name="Reshape to a scalar"),
    one("Flatten", axis=1),
    one("Flatten", axis=2, name="Flatten 2"),
    one("Squeeze", ints(1, -1), shape=(2, 1, 3, 1)),
    one("Squeeze", shape=(2, 1, 3, 1), name="Squeeze, every axis of one"),
    one("Unsqueeze", ints(0, 3)),
    one("DepthToSpace", blocksize=2),
    one("SpaceToDepth", blocksize=2, shape=(1, 3, 4, 6)),
    one("Expand", ints(3, 4, 6, 5), shape=(1, 4, 1, 5)),
    one("Tile", ints(1, 2, 1, 3)),
    one("Identity"),
    one("Dropout"),
    one("Concat", floats(*SHAPE), floats(2, 2, 6, 5), axis=1),
    one("Slice", ints(1, 0), ints(-1, 6), ints(1, 2), ints(1, 2), shape=(2, 6, 7), name="Slice"),
    one("Slice", ints(2, 0), ints(4, 9), ints(1, 2), ints(2, 3)),
    one("Slice", ints(-1), ints(-9), ints(2), ints(-2), name="Slice, backwards"),
    chain(
        "Split",
        ("Split", "input lengths", "a b", {"axis": 1}),
        ("Concat", "b a", "output", {"axis": 1}),
        weights={"lengths": ints(1, 3)},
    ),
    one("Pad", ints(0, 0, 1, 2, 0, 0, 2, 0), np.float32(0.5), name="Pad, a number"),
    one("Pad", ints(0, 0, 1, -2, 0, 0, -2, 3), name="Pad, widths of both signs"),
    *(
        one("Pad", ints(0, 0, 1, 2, 0, 0, 2, 3), mode=mode, name=f"Pad, {mode}")
        for mode in ("reflect", "edge", "wrap")
    ),
    one("Trilu", upper=1),
]

GATHERS = [
    one("Gather", ints(2, 0, -1), axis=1),
    one("Gather", ints(0, 3, 1, 1).reshape(2, 2), axis=1, name="Gather, two axes of indices"),
    one("Gather", np.array(-1), axis=2, name="Gather, one"),
    one("GatherElements", RANDOM.integers(-6, 6, (2, 4, 3, 5)), axis=2),
    one("GatherND", RANDOM.integers(0, 2, (3, 2))),
    one(
        "ScatterElements",
        RANDOM.permuted(np.tile(ints(*range(6)), (2, 4, 5, 1)), axis=3)[..., :3].transpose(0, 1, 3, 2),
        floats(2, 4, 3, 5),
        axis=2,
    ),
    one("ScatterND", ints(1, 3, 0, 2).reshape(2, 2), floats(2, 6, 5)),
    chain(
        "TopK",
        ("TopK", "input three", "values places", {"axis": 2}),
        ("Cast", "places", "numbers", {"to": 1}),
        ("Concat", "values numbers", "output", {"axis": 1}),
        weights={"three": ints(3)},
    ),
    chain(
        "TopK, smallest",
        ("TopK", "input three", "values places", {"axis": 1, "largest": 0}),
        ("Cast", "places", "numbers", {"to": 1}),
        ("Add", "values numbers", "output"),
        weights={"three": ints(3)},
    ),
    one("OneHot", np.array(4), np.float32([-1, 2]), to=INT64, axis=1, low=-3.5, high=3.5),
]

DYNAMIC = [
    chain(
        "Shape, Gather, Reshape",
        ("Shape", "input", "lengths"),
        ("Gather", "lengths order", "wanted"),
        ("Reshape", "input wanted", "output"),
        weights={"order": ints(0, 3, 1, 2)},
    ),
    chain(
        "Range",
        ("Shape", "input", "lengths"),
        ("Gather", "lengths first", "count"),
        ("Range", "zero count two", "numbers"),
        ("Cast", "numbers", "places", {"to": 1}),
        ("Unsqueeze", "places axes", "column"),
        ("Add", "input column", "output"),
        weights={"first": np.array(2), "zero": np.array(-6), "two": np.array(2), "axes": ints(1)},
    ),
    chain(
        "ConstantOfShape, Expand",
        ("Shape", "input", "lengths"),
        ("ConstantOfShape", "lengths", "ones", {"value": helper.make_tensor("v", 1, [1], [2.5])}),
        ("Mul", "input ones", "output"),
    ),
    chain(
        "Slice to the end",
        ("Shape", "input", "lengths"),
        ("Slice", "lengths two three", "end"),
        ("Slice", "input one end two", "output"),
        weights={"one": ints(1), "two": ints(2), "three": ints(3)},
    ),
]

RESIZES = [
    *(
        one(
            "Resize",
            None,
            np.float32([1, 1, *scales]),
            mode=mode,
            coordinate_transformation_mode=where,
            name=f"Resize {mode} {where} {scales}",
        )
        for mode in ("nearest", "linear", "cubic")
        for where in ("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel")
        for scales in ((2.0, 3.0), (0.5, 1.4))
    ),
    *(
        one(
            "Resize",
            None,
            np.float32([1, 1, 1.7, 0.6]),
            mode="nearest",
            nearest_mode=rounding,
            name=f"Resize nearest {rounding}",
        )
        for rounding in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
    ),
    one("Resize", None, None, ints(2, 4, 9, 7), mode="linear", name="Resize to sizes"),
    one("Resize", None, None, ints(2, 4, 1, 1), mode="cubic", exclude_outside=1, name="Resize to one"),
]

CASES = [
    *ACTIVATIONS,
    *UNARY,
    *ELEMENTWISE,
    *REDUCTIONS,
    *POOLS,
    *CONVOLUTIONS,
    *NORMALIZATIONS,
    *PRODUCTS,
    *SHUFFLES,
    *GATHERS,
    *DYNAMIC,
    *RESIZES,
]


def executed(path: Path, batch: np.ndarray) -> np.ndarray:
    return open_interpreter(records(path)).run(batch)["output"]


def expected(path: Path, batch: np.ndarray) -> np.ndarray:
    return open_literally(path).run(batch)["output"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_an_operation_answers_as_onnx_runtime(tmp_path: Path, case: Case) -> None:
    path, batch = case.write(tmp_path), case.batch()
    wanted = expected(path, batch)
    got = executed(path, batch)
    assert got.dtype == np.float32
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=2e-6 * max(1, float(np.nanmax(np.abs(wanted)))))


@pytest.mark.parametrize(
    "case", [*DYNAMIC, SHUFFLES[1], SHUFFLES[4], CONVOLUTIONS[0]], ids=lambda case: case.id
)
def test_a_dynamic_batch_takes_any_number(tmp_path: Path, case: Case) -> None:
    path = case.write(tmp_path, "batch")
    engine, other = open_interpreter(records(path)), open_literally(path)
    assert engine.shape == (None, *case.shape[1:])
    for size in (1, 3):
        batch = case.batch(size)
        np.testing.assert_allclose(
            engine.run(batch)["output"], other.run(batch)["output"], rtol=2e-5, atol=1e-5
        )
    with pytest.raises(InputError, match="the engine takes"):
        engine.run(case.batch(1)[..., :-1])


def quantised(kernel_axis: int, low: float, high: float) -> Case:
    """Q, DQ, convolution with int8 weights, Q, DQ: as an int8 graph comes."""
    numbers = RANDOM.integers(-127, 128, (6, 4, 3, 3)).astype(np.int8)
    scales = RANDOM.uniform(0.002, 0.03, 6).astype(np.float32)
    zero = np.array(0, np.int8)
    return chain(
        f"int8 {low} {high}",
        ("QuantizeLinear", "input fine zero", "a"),
        ("DequantizeLinear", "a fine zero", "b"),
        ("DequantizeLinear", "numbers scales zeros", "kernel", {"axis": kernel_axis}),
        ("Conv", "b kernel", "c"),
        ("QuantizeLinear", "c coarse zero", "d"),
        ("DequantizeLinear", "d coarse zero", "output"),
        weights={
            "numbers": numbers,
            "scales": scales,
            "zeros": np.zeros(6, np.int8),
            "fine": np.float32(1 / 64),
            "coarse": np.float32(0.05),
            "zero": zero,
        },
        low=low,
        high=high,
    )


@pytest.mark.parametrize("high", [1.5, 4.0], ids=["inside", "saturating"])
def test_int8_is_rounded_and_saturated_exactly(tmp_path: Path, high: float) -> None:
    case = quantised(0, -high, high)
    path, batch = case.write(tmp_path), case.batch()
    batch.reshape(-1)[:8] = np.arange(-4, 4) / 64 + 1 / 128  # halves, which round to even
    assert np.array_equal(executed(path, batch), expected(path, batch))


def half_network(to: int, weights: dict[str, Any]) -> Case:
    return chain(
        "half",
        ("Cast", "input", "a", {"to": to}),
        ("Conv", "a kernel", "b", {"pads": [1, 1, 1, 1]}),
        ("Sigmoid", "b", "gate"),
        ("Mul", "b gate", "c"),
        ("GlobalAveragePool", "c", "d"),
        ("Flatten", "d", "e"),
        ("MatMul", "e matrix", "f"),
        ("Cast", "f", "output", {"to": 1}),
        weights=weights,
    )


def by_torch(batch: np.ndarray, kernel: np.ndarray, matrix: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    x, w, m = (torch.from_numpy(each).to(dtype) for each in (batch, kernel, matrix))
    y = torch.nn.functional.silu(torch.nn.functional.conv2d(x, w, padding=1))
    return np.array((y.mean((2, 3)) @ m).float())


def test_float16_agrees_with_onnx_runtime_to_its_last_bits(tmp_path: Path) -> None:
    kernel, matrix = floats(8, 4, 3, 3), floats(8, 3)
    case = half_network(
        TensorProto.FLOAT16, {"kernel": kernel.astype(np.float16), "matrix": matrix.astype(np.float16)}
    )
    path, batch = case.write(tmp_path), case.batch()
    got, wanted = executed(path, batch), expected(path, batch)
    assert np.abs(got - wanted).max() < 3e-3 * np.abs(wanted).max()
    exact = by_torch(batch, kernel, matrix, torch.float32)
    assert 1e-6 < np.abs(got - exact).max() / np.abs(exact).max() < 5e-3, (
        "computed in float16, not in float32"
    )


def test_bfloat16_agrees_with_torch_to_its_last_bits(tmp_path: Path) -> None:
    kernel, matrix = floats(8, 4, 3, 3), floats(8, 3)
    weights = {"kernel": bf16(kernel, "kernel"), "matrix": bf16(matrix, "matrix")}
    case = half_network(TensorProto.BFLOAT16, weights)
    path, batch = case.write(tmp_path), case.batch()
    got, exact = executed(path, batch), by_torch(batch, kernel, matrix, torch.float32)
    assert 1e-4 < np.abs(got - exact).max() / np.abs(exact).max() < 4e-2, "computed in bfloat16"


def test_every_value_has_the_type_of_the_network(tmp_path: Path) -> None:
    case = half_network(
        TensorProto.FLOAT16,
        {"kernel": floats(8, 4, 3, 3).astype(np.float16), "matrix": floats(8, 3).astype(np.float16)},
    )
    network = records(case.write(tmp_path))
    inside = [tensor for layer in network.layers for tensor in layer.outputs if tensor.name != "output"]
    assert {tensor.dtype for tensor in inside} <= {"HALF", "INT32", "INT64"}


def test_what_is_not_known_is_named_not_skipped(tmp_path: Path) -> None:
    case = chain("LRN", ("LRN", "input", "output", {"size": 3}))
    network = records(case.write(tmp_path))
    with pytest.raises(Unavailable, match=r"layer 'node_of_output' has type LRN") as caught:
        open_interpreter(network)
    assert caught.value.exit_status == 3
    assert "LRN" not in OPERATIONS


def test_an_unknown_kind_of_a_known_layer_is_named(tmp_path: Path) -> None:
    network = records(one("Relu").write(tmp_path))
    layers = tuple(
        replace(layer, attributes={**layer.attributes, "type": "SNAKE"})
        if layer.type == "ACTIVATION"
        else layer
        for layer in network.layers
    )
    with pytest.raises(Unavailable, match="of type ACTIVATION has type SNAKE"):
        open_interpreter(replace(network, layers=layers)).run(one("Relu").batch())


def test_an_answer_that_the_parser_did_not_announce_is_caught(tmp_path: Path) -> None:
    case = one("MaxPool", kernel_shape=[2, 2])
    network = records(case.write(tmp_path))
    layers = tuple(
        replace(layer, attributes={**layer.attributes, "stride_nd": (2, 2)})
        if layer.type == "POOLING"
        else layer
        for layer in network.layers
    )
    with pytest.raises(ParityError, match=r"of type POOLING answers .* the parsed network announces"):
        open_interpreter(replace(network, layers=layers)).run(case.batch())


def test_a_network_with_another_input_is_refused(tmp_path: Path) -> None:
    network = records(one("Relu").write(tmp_path))
    other = replace(network, inputs=(replace(network.inputs[0], name="picture"),))
    with pytest.raises(BundleError, match="takes picture, not the one input 'input'"):
        open_interpreter(other)


def test_the_batch_is_left_as_it_was_and_answers_are_the_callers_own(tmp_path: Path) -> None:
    case = chain("nothing", ("Identity", "input", "output"))
    engine, batch = open_interpreter(records(case.write(tmp_path))), case.batch()
    answer = engine.run(batch)["output"]
    answer += 1
    assert np.array_equal(batch, case.batch())
    assert np.array_equal(engine.run(batch)["output"], batch)
