"""What Triton is told of a model, as records and as the text of `config.pbtxt`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from .accelerators import Accelerator

CONFIG = "config.pbtxt"
VERSION = "1"
"""The folder of a model's only version."""


@dataclass(frozen=True)
class Platform:
    """How Triton knows a backend of ours: by the field `key` of its configuration, set to `value`.

    `files`: our file -> Triton's, the model itself first. `required`: those of Triton's that must be there.
    """

    key: str
    value: str
    files: Mapping[str, str]
    required: tuple[str, ...]

    @property
    def model(self) -> str:
        """The name that Triton looks for."""
        return next(iter(self.files.values()))


PLATFORMS = {
    "tensorrt": Platform("platform", "tensorrt_plan", {"graph.engine": "model.plan"}, ("model.plan",)),
    "onnxruntime": Platform(
        "platform",
        "onnxruntime_onnx",
        {"graph.onnx": "model.onnx", "graph.onnx.data": "graph.onnx.data"},  # the model knows it by that name
        ("model.onnx",),
    ),
    "openvino": Platform(
        "backend",
        "openvino",
        {"graph.xml": "model.xml", "graph.bin": "model.bin"},
        ("model.xml", "model.bin"),
    ),
}
"""By our backends' names. Triton has no backend for engines of TensorRT-RTX."""

_OPENVINO_FP32 = (
    "# on a CPU with bf16, OpenVINO may use it: Triton's backend has no parameter that forbids it"
)


@dataclass(frozen=True)
class Tensor:
    """An input or output. `data_type` as Triton spells it; in `dims`, -1 is any length."""

    name: str
    data_type: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Signature:
    """What a model takes and answers."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True)
class Config:
    """What `config.pbtxt` says. Where `max_batch` is above 0, the tensors' dims are without the batch.

    `accelerator`: what ONNX Runtime is to run the graph with on a GPU. `cuda_graph`: whether a TensorRT plan's launches
    are captured.
    """

    name: str
    platform: Platform
    max_batch: int
    tensors: Signature
    gpu: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict)
    accelerator: Accelerator | None = None
    cuda_graph: bool = False


def without_batch(found: Signature, max_batch: int) -> Signature:
    """Dims as Triton wants them: without the batch where Triton is to form batches."""
    if max_batch <= 0:
        return found
    return Signature(_shorter(found.inputs), _shorter(found.outputs))


def _shorter(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(Tensor(each.name, each.data_type, each.dims[1:]) for each in tensors)


def to_text(config: Config) -> str:
    """The configuration in protobuf's text format, one field a line."""
    lines = [
        f"name: {json.dumps(config.name)}",
        f"{config.platform.key}: {json.dumps(config.platform.value)}",
        f"max_batch_size: {config.max_batch}",
        *(f"input {{ {_tensor(each)} }}" for each in config.tensors.inputs),
        *(f"output {{ {_tensor(each)}{_label(config, each)} }}" for each in config.tensors.outputs),
        f"instance_group {{ count: 1 kind: {'KIND_GPU' if config.gpu else 'KIND_CPU'} }}",
        *(_parameter(key, value) for key, value in config.parameters.items()),
    ]
    if config.accelerator:
        lines.append(f"optimization {{ execution_accelerators {{ {_accelerator(config.accelerator)} }} }}")
    if config.cuda_graph:
        lines.append("optimization { cuda { graphs: true } }")
    if config.platform.value == "openvino" and "HINT_BF16" not in config.parameters:
        lines.append(_OPENVINO_FP32)
    return "\n".join(lines) + "\n"


def _tensor(tensor: Tensor) -> str:
    dims = ", ".join(map(str, tensor.dims))
    return f"name: {json.dumps(tensor.name)} data_type: {tensor.data_type} dims: [ {dims} ]"


def _label(config: Config, tensor: Tensor) -> str:
    file = config.labels.get(tensor.name)
    return f" label_filename: {json.dumps(file)}" if file else ""


def _accelerator(chosen: Accelerator) -> str:
    told = (
        f" parameters {{ key: {json.dumps(k)} value: {json.dumps(v)} }}" for k, v in chosen.parameters.items()
    )
    return f"gpu_execution_accelerator {{ name: {json.dumps(chosen.name)}{''.join(told)} }}"


def _parameter(key: str, value: str) -> str:
    return f"parameters {{ key: {json.dumps(key)} value {{ string_value: {json.dumps(value)} }} }}"
