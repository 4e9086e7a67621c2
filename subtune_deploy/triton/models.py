"""What a model file says of its inputs and outputs, in Triton's words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..backends import get_backend
from ..errors import BundleError, Unavailable
from .config import Platform, Signature, Tensor

TYPES = {"FLOAT": "FP32", "FLOAT16": "FP16", "BFLOAT16": "BF16", "DOUBLE": "FP64"}
TYPES |= {"F32": "FP32", "F16": "FP16", "F64": "FP64"}
"""Where Triton's name of a type is not ONNX's, or OpenVINO's."""

WRITE_AGAIN = "write it again: subtune-deploy ship BUNDLE --as triton"


def read_signature(platform: Platform, folder: Path, graph: Path | None) -> Signature:
    """Inputs and outputs of the model in `folder`; dims with the batch.

    `graph`: what a TensorRT plan was built from. Raises BundleError, Unavailable.
    """
    model = folder / platform.model
    for name in platform.required:
        if not (folder / name).is_file():
            raise BundleError(f"{folder / name} is missing", WRITE_AGAIN)
    if platform.value == "openvino":
        return _openvino_signature(model)
    if platform.value == "onnxruntime_onnx":
        return _onnx_signature(model)
    if model.stat().st_size == 0:
        raise BundleError(f"{model} is empty", WRITE_AGAIN)
    if graph is None:
        raise Unavailable(f"{model} can be read only on its GPU", "give the ONNX file that it was built from")
    return _onnx_signature(graph)


def _onnx_signature(path: Path) -> Signature:
    import onnx

    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception as error:  # protobuf's, whose module depends on its version, and the system's
        raise BundleError(f"{path} cannot be read: {error}", WRITE_AGAIN) from error

    def tensor(value: Any) -> Tensor:
        kind = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)
        dims = value.type.tensor_type.shape.dim
        return _tensor(value.name, kind, [d.dim_value if d.HasField("dim_value") else -1 for d in dims])

    return Signature(tuple(map(tensor, graph.input)), tuple(map(tensor, graph.output)))


def _openvino_signature(path: Path) -> Signature:
    get_backend("openvino")
    from ..backends.openvino import open_core

    try:
        model = open_core().read_model(path)
    except RuntimeError as error:
        raise BundleError(f"{path} cannot be read: {error}", WRITE_AGAIN) from error

    def tensor(port: Any) -> Tensor:
        kind = port.get_element_type().get_type_name().upper()
        shape = port.get_partial_shape()
        # Of several names of a tensor, Triton's backend takes the one that this call gives.
        return _tensor(port.get_any_name(), kind, [d.get_length() if d.is_static else -1 for d in shape])

    return Signature(tuple(map(tensor, model.inputs)), tuple(map(tensor, model.outputs)))


def _tensor(name: str, kind: str, dims: list[int]) -> Tensor:
    return Tensor(name, f"TYPE_{TYPES.get(kind, kind)}", tuple(dims))
