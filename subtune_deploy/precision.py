"""Graphs in another precision, for compilers that take the precision from the graph.

fp16 and bf16: one pass over the graph. Its input and its outputs stay float32, with a Cast behind and before them;
all else that was float32 is narrow. Names of weights stay. int8: `quantization`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .backends.base import ROLES, Batch, Target, not_compiled, provider, source_file
from .calibration import check_calibration
from .environment import multiplies_int8_exactly
from .errors import BundleError, InputError, ModelError, SubtuneError, did_you_mean
from .quantization import FUSED, INTEGER, SIGNED, Form, belongs, quantized
from .spec import BASE, INPUT

if TYPE_CHECKING:
    import onnx_ir as ir

NARROW = {"fp16": "FLOAT16", "bf16": "BFLOAT16"}
PRECISIONS = (*NARROW, "int8")

FLOAT32_INPUTS = {"Resize": (1, 2), "Upsample": (1,)}
"""By operator, the inputs that it takes in float32 alone: regions and scales."""
BF16_OPSET = 22
"""The first version of the operators of which convolutions take bfloat16."""


def carried(target: Target) -> bool:
    """Whether the target's precision is one of the graph, not one that its backend is asked for."""
    return target.precision in (("int8",) if _on_cpu(target) else PRECISIONS)


def int8_form(target: Target) -> Form:
    """What is rounded in the target's int8: what its compiler takes, and runs fastest."""
    own = INTEGER if target.backend == "onnxruntime" else FUSED
    form = own if _on_cpu(target) else SIGNED
    return replace(form, weight_bits=weight_bits(target))


def weight_bits(target: Target) -> int:
    """Of weights in the target's int8: as the recipe says, else 8, or 7 for a CPU if this one needs that."""
    return target.weight_bits or (8 if not _on_cpu(target) or multiplies_int8_exactly() else 7)


def _on_cpu(target: Target) -> bool:
    return target.backend in ("openvino", "torch") or (
        target.backend == "onnxruntime" and provider(target) == "cpu"
    )


def converted(
    source: Path,
    out: Path,
    precision: str,
    calibration: Batch | None,
    *,
    form: Form = SIGNED,
    keep: Collection[str] = (),
    roles: Sequence[str] = ROLES,
) -> None:
    """Write graph.onnx and base.onnx of `source`, both float32, into the folder `out` in fp16, bf16 or int8.

    `calibration`: for int8, inputs float32 (n, C, H, W) like those that will be met; `form`: what of it is rounded;
    `keep`: units of it that stay in float32. `roles`: one of the two graphs alone. Weights that lie beside a graph
    (`NAME.data`) will do so again. The same files give the same bytes. Raises BundleError (no such graph), InputError
    (calibration, a unit that graph.onnx has not), ModelError (a weight that the precision cannot hold).
    """
    if precision not in PRECISIONS:
        raise InputError(f"no graph can be in precision {precision!r}", did_you_mean(precision, PRECISIONS))
    import onnx_ir as ir

    for role in roles:
        path = source_file(source, f"{role}.onnx")
        model = _load(path)
        if role == "graph":  # the other has no forks
            _check_kept(model, keep)
        own = keep if role == "graph" else [_ungrouped(unit) for unit in keep]
        try:
            model = (
                narrowed(model, precision) if precision in NARROW else _in_int8(model, calibration, form, own)
            )
        except SubtuneError:
            raise
        except Exception as error:  # the passes' and onnxruntime's own, which share no base class
            raise not_compiled(path, error) from error
        beside = f"{path.name}.data" if Path(f"{path}.data").exists() else None
        ir.save(model, out / path.name, external_data=beside)


def narrowed(model: ir.Model, precision: str) -> ir.Model:
    """`model`, changed in place, in "fp16" or "bf16". Raises ModelError for a weight that it cannot hold."""
    import onnx_ir as ir
    from onnx_ir.passes import common

    wanted = ir.DataType[NARROW[precision]]
    if precision == "bf16":
        _raise_opset(model)
    common.InlinePass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    kept = _kept(model)
    for graph in model.graphs():
        for weight in graph.initializers.values():
            if weight not in kept and weight.dtype is ir.DataType.FLOAT:
                _narrow_weight(weight, wanted, precision)
        for node in graph:
            _narrow_node(node, wanted)
    for node in list(model.graph.all_nodes()):
        _cast_kept_inputs(node, kept)
    _cast_input(model.graph, wanted)
    _cast_outputs(model.graph, wanted)
    return model


def _load(path: Path) -> ir.Model:
    import onnx_ir as ir

    try:
        model = ir.load(path)
    except Exception as error:  # protobuf's, whose module depends on its version
        raise not_compiled(path, error) from error
    names = [value.name for value in model.graph.inputs]
    if names != [INPUT] or model.graph.inputs[0].dtype is not ir.DataType.FLOAT:
        raise BundleError(
            f"{path} does not take the one float32 input {INPUT!r}", "give a graph that this tool exported"
        )
    return model


def _check_kept(model: ir.Model, keep: Collection[str]) -> None:
    names = [str(node.name) for node in model.graph]
    for unit in keep:
        if not any(belongs(name, (unit,)) for name in names):
            scopes = [name.partition("/")[0].split(".") for name in names if "." in name]
            known = dict.fromkeys(".".join(scope[:n]) for scope in scopes for n in (1, 2))
            raise InputError(f"keep names {unit!r}, which the graph has not", did_you_mean(unit, known))


def _ungrouped(unit: str) -> str:
    """What the lone base has in the place of several versions that run as one operator."""
    block, dot, rest = unit.partition(".grouped")
    return f"{block}.{BASE}{rest}" if dot else unit


def _in_int8(model: ir.Model, calibration: Batch | None, form: Form, keep: Collection[str]) -> ir.Model:
    if calibration is None:
        raise InputError(
            "int8 needs calibration data, none was given", "give pictures like those to be deployed on"
        )
    shape = model.graph.inputs[0].shape
    assert shape is not None
    checked = check_calibration(calibration, shape[1:])
    return quantized(model, checked, form, keep)


def _kept(model: ir.Model) -> set[ir.Value]:
    """Constants that nothing reads but inputs which must be float32."""
    weights = (weight for graph in model.graphs() for weight in graph.initializers.values())
    return {
        weight
        for weight in weights
        if weight.uses() and all(use.idx in FLOAT32_INPUTS.get(use.node.op_type, ()) for use in weight.uses())
    }


def _narrow_weight(weight: ir.Value, wanted: ir.DataType, precision: str) -> None:
    import onnx_ir as ir

    if weight.const_value is None:
        return
    array = weight.const_value.numpy()
    with np.errstate(over="ignore"):
        narrow = array.astype(wanted.numpy())
    lost = np.isfinite(array) & ~np.isfinite(narrow)
    hint = "compile for bf16, which has the range of fp32, or for fp32"
    if lost.any():
        raise ModelError(
            f"weight {weight.name} holds {array[lost][0]:.6g}, which is beyond the range of {precision}", hint
        )
    if array.any() and not narrow.any():
        largest = np.abs(array).max()
        raise ModelError(
            f"weight {weight.name} reaches {largest:.3g}, which {precision} takes for zero", hint
        )
    weight.const_value = ir.tensor(narrow, dtype=wanted, name=weight.name)
    weight.type = ir.TensorType(wanted)


def _narrow_node(node: ir.Node, wanted: ir.DataType) -> None:
    """What the node makes: its declared types, and the attributes that decide on them."""
    import onnx_ir as ir

    float32 = ir.DataType.FLOAT
    for value in node.outputs:
        if value.dtype is float32:
            value.type = ir.TensorType(wanted)
    for name in ("to", "dtype"):
        if name in node.attributes and node.attributes[name].as_int() == float32:
            node.attributes[name] = ir.AttrInt64(name, int(wanted))
    if node.op_type in ("RandomNormal", "RandomUniform") and "dtype" not in node.attributes:
        node.attributes["dtype"] = ir.AttrInt64("dtype", int(wanted))
    if node.op_type == "ConstantOfShape":
        value = node.attributes["value"].as_tensor() if "value" in node.attributes else None
        if value is None or value.dtype is float32:
            fill = np.zeros(1) if value is None else value.numpy()
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(fill.astype(wanted.numpy()), wanted))


def _cast_kept_inputs(node: ir.Node, kept: set[ir.Value]) -> None:
    import onnx_ir as ir

    for index in FLOAT32_INPUTS.get(node.op_type, ()):
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is not None and value not in kept:
            cast = _cast(value, ir.DataType.FLOAT, f"{node.name}/Cast_{index}")
            node.prepend(cast)
            node.replace_input_with(index, cast.outputs[0])


def _cast_input(graph: ir.Graph, wanted: ir.DataType) -> None:
    (value,) = graph.inputs
    cast = _cast(value, wanted, f"{value.name}/Cast")
    for user, index in list(value.uses()):
        if user is not cast:
            user.replace_input_with(index, cast.outputs[0])
    graph.insert_before(graph[0], cast)


def _cast_outputs(graph: ir.Graph, wanted: ir.DataType) -> None:
    import onnx_ir as ir

    for position, value in enumerate(graph.outputs):
        if value.dtype is wanted:
            name = str(value.name)
            value.name = f"{name}/{wanted.name.lower()}"
            cast = _cast(value, ir.DataType.FLOAT, f"{name}/Cast")
            cast.outputs[0].name = name
            graph.append(cast)
            graph.outputs[position] = cast.outputs[0]


def _cast(value: ir.Value, to: ir.DataType, name: str) -> ir.Node:
    import onnx_ir as ir

    cast = ir.node("Cast", [value], {"to": int(to)}, name=name)
    cast.outputs[0].name = f"{name}_output"
    cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(to), value.shape
    return cast


def _raise_opset(model: ir.Model) -> None:
    """To operators that are specified for bfloat16."""
    from onnxscript import version_converter

    if model.opset_imports[""] < BF16_OPSET:
        version_converter.convert_version(model, BF16_OPSET)
