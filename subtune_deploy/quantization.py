"""A float32 graph with int8 weights and 8-bit activations: pairs of QuantizeLinear and DequantizeLinear (Q/DQ).

Weights are signed and symmetric, one scale for each output channel, or one for all (`_whole`). Ranges of activations
are the least and the largest value met on the calibration data; where several streams run packed through shared
blocks, they share one range, which holds what every task met. A form says what is rounded: `SIGNED` is what TensorRT's
parser takes, `INTEGER` and `FUSED` what ONNX Runtime and OpenVINO run fastest on a CPU. Units that are kept compute in
float32, on values that others may have rounded before.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .backends.base import Batch
from .bias_correction import integer, round_weights
from .spec import INPUT

if TYPE_CHECKING:
    import onnx_ir as ir

CHUNK = 8
"""Inputs at a time through a graph that takes any number."""

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
OTHERS = ("Add", "Clip", "Relu", "MaxPool", "AveragePool", "GlobalAveragePool")


@dataclass(frozen=True)
class Form:
    """`operators` compute on 8 bits; `options` are those of onnxruntime.quantization. `fuses`: what a convolution
    answers is not rounded where it enters none of them. `weight_bits`: 8, or 7 for CPUs that need it."""

    activations: str
    operators: tuple[str, ...]
    options: Mapping[str, Any]
    fuses: bool = False
    weight_bits: int = 8


SIGNED = Form(
    "QInt8",
    WEIGHTED,
    {
        "ActivationSymmetric": True,
        "QuantizeBias": False,
        "OpTypesToExcludeOutputQuantization": list(
            WEIGHTED
        ),  # else an activation could not be fused with them
    },
)
"""Only what enters operators with weights is quantised, symmetric around zero; biases stay in float32."""
INTEGER = Form(
    "QUInt8",
    (*WEIGHTED, *OTHERS, "Sigmoid", "HardSigmoid"),  # and with them what multiplies them, as in SiLU
    {"QuantizeBias": True, "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
)
"""What lies between them is quantised too, with a zero point, which makes ReLU part of the rounding. ONNX Runtime has a
convolution of integers only where its answer is rounded."""
FUSED = replace(INTEGER, operators=(*WEIGHTED, *OTHERS), fuses=True)
"""OpenVINO makes activations that stay in float32, as SiLU, part of the convolution before, if nothing is between. What
the graph answers itself is rounded all the same."""


def quantized(
    model: ir.Model, calibration: Batch, form: Form = SIGNED, keep: Collection[str] = ()
) -> ir.Model:
    """`model` in int8 but for the units `keep`; `calibration` is float32 (n, C, H, W), of the shape of its one input.

    A weight `NAME` becomes `NAME_quantized` with `NAME_scale` and `NAME_zero_point`. A graph of a fixed batch
    is fed so many at a time; the first inputs are repeated to fill the last batch. `model` is left rounded; some
    of its hard swishes may be split.
    """
    from .hard_sigmoid import as_sums, split_hard_swish

    sums = "HardSigmoid" in form.operators
    feeds = _feeds(calibration, _batch(model) or min(CHUNK, len(calibration)))
    kept = {str(node.name) for node in model.graph if belongs(str(node.name), keep)}
    if sums:
        split_hard_swish(
            model.graph, [node for node in model.graph if _is_robust(node) and node.name not in kept]
        )
    excluded, whole = [*_delicate(model), *sorted(kept)], _whole(model)
    excluded += _after_packs(model) if form.fuses else []
    with tempfile.TemporaryDirectory(prefix="subtune-") as scratch, _silenced():
        round_weights(model, feeds, Path(scratch), kept, whole, form.weight_bits)
        found = _with_pairs(model, feeds, Path(scratch), form, excluded, whole)
    if sums:
        as_sums(found.graph, excluded)
    if form.fuses:
        _without_rounding(found, _floats(model, form.operators, excluded))
    found.producer_name, found.producer_version = model.producer_name, model.producer_version
    found.metadata_props.clear()
    found.metadata_props.update(model.metadata_props)
    return found


def _with_pairs(
    model: ir.Model,
    feeds: list[Batch],
    scratch: Path,
    form: Form,
    excluded: list[str],
    whole: list[str],
) -> ir.Model:
    """What onnxruntime.quantization makes of it. `excluded`: names of nodes; `whole`: of weights with one scale."""
    import onnx_ir as ir
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    plain, result = scratch / "plain.onnx", scratch / "quantized.onnx"
    ir.save(model, plain, external_data=f"{plain.name}.data")
    quantize_static(
        plain,
        result,
        _Reader(feeds),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=list(form.operators),
        nodes_to_exclude=excluded,
        per_channel=True,
        reduce_range=form.weight_bits == 7,
        activation_type=QuantType[form.activations],
        weight_type=QuantType.QInt8,
        use_external_data_format=True,  # a single file cannot exceed 2 GB
        extra_options={
            "WeightSymmetric": True,
            "TensorQuantOverrides": {name: [{"symmetric": True}] for name in whole},
            **form.options,
        },
    )
    return ir.external_data.load_to_model(ir.load(result))


def belongs(node: str, units: Collection[str]) -> bool:
    """Whether a node, by its name (`block13.birds.conv1/Conv`), is one of these units (`block13`, `block13.birds`)."""
    scope = f"{node.partition('/')[0]}."
    return any(scope.startswith(f"{unit}.") for unit in units)


def versions(model: ir.Model) -> tuple[str, ...]:
    """Units with their versions (`block13.birds`) that have weights to round, in the order of the graph."""
    weighted = (str(node.name) for node in model.graph if node.op_type in WEIGHTED)
    scopes = (name.partition("/")[0].split(".") for name in weighted)
    return tuple(dict.fromkeys(".".join(scope[:2]) for scope in scopes if len(scope) > 1))


class _Reader:
    """The calibration data as onnxruntime asks for it: one feed after the other, then None."""

    def __init__(self, feeds: list[Batch]) -> None:
        self._feeds = iter([{INPUT: feed} for feed in feeds])

    def get_next(self) -> dict[str, Batch] | None:
        return next(self._feeds, None)


def _feeds(calibration: Batch, size: int) -> list[Batch]:
    count = -(-len(calibration) // size)
    filled = np.resize(calibration, (count * size, *calibration.shape[1:]))  # repeats from the start
    return np.split(filled, count)


def _batch(model: ir.Model) -> int | None:
    shape = model.graph.inputs[0].shape
    assert shape is not None
    return shape[0] if isinstance(shape[0], int) else None


def _delicate(model: ir.Model) -> list[str]:
    """Names of sums and sigmoids that no convolution's answer enters, and of pooling that nothing with weights reads.

    In 8 bits, its sums cost a transformer most of its accuracy, and what is pooled before a head its finer steps.
    """
    return [node.name for node in model.graph if node.name and not _is_robust(node)]


def _is_robust(node: ir.Node) -> bool:
    if node.op_type in ("Add", "Sigmoid", "HardSigmoid", "HardSwish"):
        return any(_is_convolution(value) for value in node.inputs)
    if node.op_type == "GlobalAveragePool":
        return any(use.node.op_type in WEIGHTED for use in node.outputs[0].uses())
    return True


def _after_packs(model: ir.Model) -> list[str]:
    """Names of products that read packed streams: OpenVINO gives each stream a zero point there, then refuses them."""
    return [
        str(node.name)
        for node in model.graph
        if node.op_type in ("Gemm", "MatMul") and any(_is_signed_pack(value) for value in node.inputs[:2])
    ]


def _is_signed_pack(value: ir.Value | None) -> bool:
    """One that may hold negative values, or its zero point is 0, which is none."""
    pack = None if value is None else value.producer()
    if pack is None or pack.op_type != "Concat" or integer(pack, "axis", 0) != 0:
        return False
    streams = [stream.producer() for stream in pack.inputs if stream is not None]
    return any(stream is None or stream.op_type != "Relu" for stream in streams)


def _whole(model: ir.Model) -> list[str]:
    """Names of weights that get one scale for all they hold: those that do not have one axis of output channels."""
    axes: dict[str, set[int | None]] = {}
    for node in model.graph:
        for index, value in enumerate(node.inputs[:2]):
            if node.op_type in WEIGHTED and value is not None and value.is_initializer():
                axes.setdefault(str(value.name), set()).add(_channel_axis(node, index, value))
    return [name for name, found in axes.items() if None in found or len(found) > 1]


def _channel_axis(node: ir.Node, index: int, weight: ir.Value) -> int | None:
    """Of a weight, that along which its scales lie, if it can have several.

    On the left of a product, onnxruntime.quantization would lay them along another; of stacked matrices, ONNX Runtime
    takes none; the groups of a transposed convolution share an axis, but not their bias.
    """
    assert weight.shape is not None
    if index == 0:
        return None
    if node.op_type == "MatMul":
        return 1 if weight.shape.rank() == 2 else None
    if node.op_type == "ConvTranspose":
        return 1 if integer(node, "group", 1) == 1 else None
    return 0 if node.op_type == "Conv" or integer(node, "transB", 0) else 1


def _floats(model: ir.Model, operators: Collection[str], excluded: Collection[str]) -> set[str]:
    """Names of what convolutions answer to nodes alone that compute in float32."""
    answers = [node.outputs[0] for node in model.graph if node.op_type == "Conv"]
    return {
        str(answer.name)
        for answer in answers
        if all(use.node.op_type not in operators or use.node.name in excluded for use in answer.uses())
    }


def _without_rounding(model: ir.Model, names: Collection[str]) -> None:
    """Of values of these names, in place. Those of a convolution whose ReLU went into the rounding have the ReLU's."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    for node in model.graph:
        rounding = (
            node.inputs[0].producer() if node.op_type == "DequantizeLinear" and node.inputs[0] else None
        )
        plain = None if rounding is None else rounding.inputs[0]
        if plain is not None and plain.name in names:
            node.outputs[0].replace_all_uses_with(plain)
    RemoveUnusedNodesPass()(model)


def _is_convolution(value: ir.Value | None) -> bool:
    producer = None if value is None else value.producer()
    return producer is not None and producer.op_type == "Conv"


@contextmanager
def _silenced() -> Iterator[None]:
    """Without the advice that onnxruntime.quantization gives through the root logger, and without a trace of that."""
    before, quiet = logging.root.manager.disable, logging.NullHandler()
    logging.root.addHandler(quiet)  # else logging.warning() installs a handler for good
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
        logging.root.removeHandler(quiet)
