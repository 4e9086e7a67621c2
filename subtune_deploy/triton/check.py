"""A model repository against Triton's own schema, and against its model files.

The schema takes a platform that no server has, and inputs without type or dims; so what it says yes to is compared
with the model file.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import BundleError, Unavailable
from ..spec import INPUT
from .config import CONFIG, PLATFORMS, VERSION, Tensor, without_batch
from .models import WRITE_AGAIN, read_signature

PACKAGE = "tritonclient"
"""Brings the schema."""

_INSTALL = "pip install 'subtune-deploy[triton]'"
_REFER = "see docs.nvidia.com: Triton Inference Server, Model Configuration"


def has_schema() -> bool:
    """Whether Triton's schema is installed."""
    return find_spec(PACKAGE) is not None


def check_repository(repository: Path, graph: Path | None = None) -> None:
    """Raise BundleError unless every model's configuration fits Triton's schema and its model file.

    `graph`: the ONNX file that a TensorRT plan was built from. Raises Unavailable without the schema, or
    without the library that reads a model file.
    """
    models = sorted(path.parent for path in repository.glob(f"*/{CONFIG}"))
    if not models:
        raise BundleError(f"{repository} holds no model: no */{CONFIG}", WRITE_AGAIN)
    for folder in models:
        check_model(folder, folder.name, graph)


def check_model(folder: Path, name: str, graph: Path | None) -> None:
    """`check_repository` for one model, which is to be called `name`."""
    config = _read_config(folder / CONFIG)
    platform = next((each for each in PLATFORMS.values() if getattr(config, each.key) == each.value), None)
    if platform is None:
        told = f"platform {config.platform!r} and backend {config.backend!r}"
        known = " or ".join(f"{each.key} {each.value!r}" for each in PLATFORMS.values())
        raise BundleError(f"{folder / CONFIG} has {told}", f"give {known}")
    found = read_signature(platform, folder / VERSION, graph)
    wanted = without_batch(found, config.max_batch_size)
    faults = (
        *_in_general(config, name, found.inputs),
        *_differences("input", config.input, wanted.inputs),
        *_differences("output", config.output, wanted.outputs),
        *_in_labels(config, folder),
    )
    if faults:
        raise BundleError(f"{folder / CONFIG}: {'; '.join(faults)}", _REFER)


def _in_general(config: Any, name: str, inputs: tuple[Tensor, ...]) -> Iterator[str]:
    if config.name != name:
        yield f"the name is {config.name!r}, the folder's is {name!r}"
    if [each.name for each in inputs] != [INPUT]:
        yield f"the model does not take the one input {INPUT!r}"
    if config.max_batch_size < 0:
        yield f"max_batch_size is {config.max_batch_size}"
    if config.max_batch_size > 0 and inputs and inputs[0].dims[:1] != (-1,):
        yield f"max_batch_size is {config.max_batch_size}, the model's batch is {inputs[0].dims[0]}"


def _differences(what: str, given: Any, wanted: tuple[Tensor, ...]) -> Iterator[str]:
    told, names = {each.name: each for each in given}, [each.name for each in given]
    if sorted(names) != sorted(each.name for each in wanted):
        yield f"{what}s are {names}, the model has {[each.name for each in wanted]}"
        return
    for tensor in wanted:
        each = told[tensor.name]
        kind = each.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[each.data_type].name
        if kind != tensor.data_type:
            yield f"{what} {tensor.name} is {kind}, the model has {tensor.data_type}"
        if tuple(each.dims) != tensor.dims:
            yield f"{what} {tensor.name} has dims {list(each.dims)}, the model {list(tensor.dims)}"


def _in_labels(config: Any, folder: Path) -> Iterator[str]:
    for output in config.output:
        path = folder / output.label_filename
        if not output.label_filename:
            continue
        if path.parent != folder or not path.is_file():
            yield f"output {output.name} has no label file {output.label_filename!r}"
        elif list(output.dims)[-1:] != [len(path.read_text(encoding="utf-8").splitlines())]:
            yield f"output {output.name}: {output.label_filename} has not one line for each class"


def _read_config(path: Path) -> Any:
    from google.protobuf import text_format

    config = _schema()()
    try:
        text_format.Parse(path.read_text(encoding="utf-8"), config)
    except (OSError, ValueError, text_format.ParseError) as error:
        raise BundleError(f"{path} is not as Triton reads it: {error}", _REFER) from error
    return config


@cache
def _schema() -> Any:
    """The class of Triton's message ModelConfig.

    Importing the package's module would need gRPC and an older protobuf; the schema in it is a string of
    bytes, and needs neither.
    """
    from google.protobuf import descriptor_pool, message_factory

    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise Unavailable("Triton's schema is not installed", _INSTALL)
    module = Path(spec.submodule_search_locations[0], "grpc", "model_config_pb2.py")
    try:
        pool = descriptor_pool.DescriptorPool()
        pool.AddSerializedFile(_serialized(module))
        return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))
    except (OSError, KeyError, TypeError, ValueError, StopIteration) as error:
        raise Unavailable(f"{module} holds no schema of Triton: {error}", _INSTALL) from error


def _serialized(module: Path) -> bytes:
    """The argument of the call `AddSerializedFile(b"...")`."""
    calls = (node for node in ast.walk(ast.parse(module.read_bytes())) if isinstance(node, ast.Call))
    named = (call for call in calls if getattr(call.func, "attr", "") == "AddSerializedFile")
    data: bytes = ast.literal_eval(next(named).args[0])
    return data
