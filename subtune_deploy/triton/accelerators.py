"""What Triton's backend for ONNX Runtime is told of a provider for GPUs: the options of the recipe, in its own words.

After the table in the backend's README and its parser (src/onnxruntime.cc), which refuses keys that it does not know.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..backends.base import Target, provider, provider_options
from ..errors import BundleError

PRECISIONS = {"trt_fp16_enable": "FP16", "trt_bf16_enable": "BF16", "trt_int8_enable": "INT8"}
"""Of ONNX Runtime's options those that are one parameter of Triton, `precision_mode`, whose default is FP32."""
RENAMED = {
    "trt_max_workspace_size": "max_workspace_size_bytes",
    "trt_int8_calibration_table_name": "int8_calibration_table_name",
    "trt_int8_use_native_calibration_table": "int8_use_native_calibration_table",
}
SAME = {
    "trt_auxiliary_streams",
    "trt_build_heuristics_enable",
    "trt_builder_optimization_level",
    "trt_context_memory_sharing_enable",
    "trt_cuda_graph_enable",
    "trt_detailed_build_log",
    "trt_dla_core",
    "trt_dla_enable",
    "trt_engine_cache_enable",
    "trt_engine_cache_prefix",
    "trt_force_sequential_engine_build",
    "trt_force_timing_cache",
    "trt_layer_norm_fp32_fallback",
    "trt_max_partition_iterations",
    "trt_min_subgraph_size",
    "trt_profile_max_shapes",
    "trt_profile_min_shapes",
    "trt_profile_opt_shapes",
    "trt_sparsity_enable",
    "trt_tactic_sources",
    "trt_timing_cache_enable",
}
"""Those of one name in both; of a bundle's recipe none is a path."""


@dataclass(frozen=True)
class Accelerator:
    """As `gpu_execution_accelerator` of a model's configuration has it."""

    name: str
    parameters: Mapping[str, str]


def accelerator(target: Target) -> Accelerator | None:
    """Of the target's provider; None for the CPU, and for CUDA as it is by itself. Raises BundleError."""
    chosen, options = provider(target), provider_options(target)
    if chosen == "tensorrt":
        return Accelerator(chosen, dict(_tensorrt(target.name, options)))
    return Accelerator(chosen, options) if chosen != "cpu" and options else None


def _tensorrt(name: str, options: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    precisions = [
        text for key, text in PRECISIONS.items() if options.get(key, "0") not in ("0", "False", "false")
    ]
    if len(precisions) > 1:
        raise BundleError(
            f"target {name} allows TensorRT {' and '.join(precisions)}, Triton can be told one of them",
            "compile with a recipe of one precision",
        )
    yield from (("precision_mode", text) for text in precisions)
    for key, value in options.items():
        if key in RENAMED or key in SAME:
            yield RENAMED.get(key, key), value
        elif key not in PRECISIONS:
            raise BundleError(
                f"target {name} has provider.{key}, which Triton's backend for ONNX Runtime has no word for",
                "compile with a recipe that does without it",
            )
