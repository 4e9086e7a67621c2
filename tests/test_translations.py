"""Attention of any rank becomes ONNX: structure where the exporter has its own, numbers against torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from onnxscript.function_libs.torch_lib.ops.nn import aten_scaled_dot_product_attention
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from subtune_deploy.translations import TRANSLATIONS

LIBRARY = dict.fromkeys(TRANSLATIONS, aten_scaled_dot_product_attention)
"""Named, since the exporter remembers a table in what it exports later."""


class Attending(nn.Module):
    """`shape` is that of queries, keys and values, made of the one input: pictures times all else."""

    def __init__(self, shape: tuple[int, ...], masked: bool, scale: float | None) -> None:
        super().__init__()
        self.shape, self.scale = shape, scale
        tokens = shape[-2]
        mask = torch.randn(tokens, tokens, generator=torch.Generator().manual_seed(1))
        self.mask = nn.Parameter(mask) if masked else None

    def forward(self, x: Tensor) -> Tensor:
        query = x.reshape(self.shape)
        key, value = query.flip(-1) * 0.7, query.flip(-2) + 0.1
        return scaled_dot_product_attention(query, key, value, self.mask, scale=self.scale)


def exported(module: nn.Module, given: Tensor, table: dict[object, object]) -> torch.onnx.ONNXProgram:
    with torch.no_grad():  # else attention comes in parts
        program = torch.onnx.export(
            module, (given,), dynamo=True, verbose=False, custom_translation_table=table
        )
    assert program is not None
    return program


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(6, 5, 8), (2, 3, 5, 8), (2, 2, 3, 5, 8), (1, 2, 2, 3, 5, 8)])
def test_answers_are_those_of_torch(
    tmp_path: Path, shape: tuple[int, ...], masked: bool, scale: float | None
) -> None:
    module = Attending(shape, masked, scale).eval()
    given = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    exported(module, given, TRANSLATIONS).save(tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {session.get_inputs()[0].name: given.numpy()})
    np.testing.assert_allclose(answer, module(given).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_four_axes_are_left_to_the_library() -> None:
    module, given = Attending((2, 3, 5, 8), True, None).eval(), torch.randn(2, 3, 5, 8)
    plain, ours = (
        [node.op_type for node in exported(module, given, table).model.graph]
        for table in (LIBRARY, TRANSLATIONS)
    )
    assert ours == plain


@pytest.mark.parametrize("shape", [(6, 5, 8), (2, 2, 3, 5, 8)])
@pytest.mark.parametrize(
    "what", ["causal", "boolean", "grouped", "fewer axes of keys", "fewer axes of values"]
)
def test_what_is_left_to_the_library_it_refuses(shape: tuple[int, ...], what: str) -> None:
    class Other(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            key, value, mask = x.flip(-1), x.flip(-2), x[..., :5] > 0
            return scaled_dot_product_attention(
                x,
                key[0] if what == "fewer axes of keys" else key,
                value[0] if what == "fewer axes of values" else value,
                mask if what == "boolean" else None,
                is_causal=what == "causal",
                enable_gqa=what == "grouped",
            )

    with pytest.raises(torch.onnx.errors.OnnxExporterError):
        exported(Other().eval(), torch.randn(shape), TRANSLATIONS)


def test_the_library_refuses_other_ranks() -> None:
    """When it no longer does, the translation can go."""
    module, given = Attending((6, 5, 8), False, None).eval(), torch.randn(6, 5, 8)
    with pytest.raises(torch.onnx.errors.OnnxExporterError):
        exported(module, given, LIBRARY)
