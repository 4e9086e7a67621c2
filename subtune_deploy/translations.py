"""Operators of PyTorch of which its exporter to ONNX knows a part, and more of them.

Of attention it takes four axes alone (pictures, heads, tokens, channels). Windows of pictures come as a fifth, as in
Twins, Nest and Hiera, and heads may share the axis of pictures, as in Segment Anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from onnxscript import FLOAT, opset18
from onnxscript.function_libs.torch_lib.ops.nn import aten_scaled_dot_product_attention


def attention(
    query: FLOAT,
    key: FLOAT,
    value: FLOAT,
    attn_mask: FLOAT | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> FLOAT:
    """`torch.nn.functional.scaled_dot_product_attention` (..., tokens, channels), at inference.

    Source: its documentation's formula. Masks of booleans, causal ones, grouped queries, and queries, keys and values
    with unlike numbers of axes are left to the exporter, as is all that has four. A token whose mask hides all others
    attends to NaN, as it does there.
    """
    rank, boolean = len(query.shape), attn_mask is not None and attn_mask.dtype.name == "BOOL"
    unlike = len(key.shape) != rank or len(value.shape) != rank
    if rank == 4 or unlike or boolean or is_causal or enable_gqa:
        return aten_scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa
        )
    factor = opset18.CastLike(1 / math.sqrt(query.shape[-1]) if scale is None else scale, query)
    turned = opset18.Transpose(key, perm=[*range(rank - 2), rank - 1, rank - 2])
    scores = opset18.MatMul(opset18.Mul(query, factor), turned)
    if attn_mask is not None:
        scores = opset18.Add(scores, attn_mask)
    return opset18.MatMul(opset18.Softmax(scores, axis=-1), value)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.scaled_dot_product_attention.default: attention
}
