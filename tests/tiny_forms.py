"""The forms of int8 with as many bits for weights as this CPU multiplies exactly, for tests that run them on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from subtune_deploy import quantization
from subtune_deploy.bias_correction import LARGEST
from subtune_deploy.precision import weight_bits
from subtune_deploy.targets import load_target

BITS = weight_bits(load_target("cpu-int8"))
SIGNED, INTEGER, FUSED = (
    replace(form, weight_bits=BITS)
    for form in (quantization.SIGNED, quantization.INTEGER, quantization.FUSED)
)
FORMS = {"signed": SIGNED, "integer": INTEGER, "fused": FUSED}
COARSER = LARGEST[8] / LARGEST[BITS]
"""How much wider the steps between weights are than of 8 bits: so much more may an answer be off."""


def constants(graph: Path) -> dict[str, np.ndarray]:
    """What an ONNX file holds, by name."""
    weights = ir.load(graph).graph.initializers
    return {name: value.const_value.numpy() for name, value in weights.items() if value.const_value}
