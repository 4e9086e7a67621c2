"""Attention with heads taken away.

Heads of `nn.MultiheadAttention` are written into its arithmetic, so it is replaced by `ThinAttention`, which keeps
the names of its weights. timm's attention reads its widths from attributes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .errors import ModelError


@dataclass(frozen=True)
class Heads:
    """`count` heads of `width` channels each. `parts`: tensor -> (axis, how many times all heads lie on it)."""

    count: int
    width: int
    parts: Mapping[str, tuple[int, int]]


class ThinAttention(nn.Module):
    """`nn.MultiheadAttention` whose heads together may be narrower than what it reads and answers.

    Its weights say how many heads of `head_dim` channels there are. Answers (attended values, None): weights of
    the attention are not given. Takes a mask of two axes, but none per picture or head (ModelError).
    """

    _qkv_same_embed_dim = False  # keeps torch's own encoder layer off its fused path

    def __init__(self, like: nn.MultiheadAttention) -> None:
        super().__init__()
        self.head_dim: int = like.head_dim
        self.dropout, self.batch_first = like.dropout, like.batch_first
        self.in_proj_weight, self.in_proj_bias = like.in_proj_weight, like.in_proj_bias
        self.out_proj = like.out_proj

    @property
    def num_heads(self) -> int:
        """How many heads are left."""
        return len(self.in_proj_weight) // (3 * self.head_dim)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        if key_padding_mask is not None or (attn_mask is not None and attn_mask.dim() != 2):
            raise ModelError("attention with fewer heads takes no mask per picture or head", "keep all heads")
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = ~attn_mask  # there it says who is left out, here who takes part
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        q, k, v = map(self._heads, (query, key, value), self.in_proj_weight.chunk(3), biases)
        dropout = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=dropout)
        mixed = mixed.transpose(1, 2).flatten(2)
        return self.out_proj(mixed if self.batch_first else mixed.transpose(0, 1)), None

    def _heads(self, tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(batch, heads, tokens, channels of a head)"""
        tokens = tokens if self.batch_first else tokens.transpose(0, 1)
        projected = functional.linear(tokens, weight, bias)
        return projected.view(*projected.shape[:2], -1, self.head_dim).transpose(1, 2)


_TORCH = {"in_proj_weight": (0, 3), "in_proj_bias": (0, 3), "out_proj.weight": (1, 1)}
_TIMM = {
    "qkv.weight": (0, 3), "qkv.bias": (0, 3), "gate.weight": (0, 1), "gate.bias": (0, 1),
    "norm.weight": (0, 1), "norm.bias": (0, 1), "proj.weight": (1, 1),
}  # fmt: skip


def heads_of(module: nn.Module) -> Heads | None:
    """Heads that can be taken away one by one, in the kinds of attention that are known; None for all else."""
    attention: Any = module
    if isinstance(module, nn.MultiheadAttention) and not _is_plain(module):
        return None
    if isinstance(module, (nn.MultiheadAttention, ThinAttention)):
        parts = _TORCH
    elif _is_packed(module) and attention.qkv.out_features == 3 * attention.attn_dim:
        parts = _TIMM
    else:
        return None
    there = module.state_dict()
    parts = {name: place for name, place in parts.items() if name in there}
    return Heads(int(attention.num_heads), int(attention.head_dim), parts)


def _is_plain(module: nn.MultiheadAttention) -> bool:
    """Queries, keys and values are as wide as what comes out, and nothing is added to keys and values."""
    return module.in_proj_weight is not None and module.bias_k is None and not module.add_zero_attn


def _is_packed(module: nn.Module) -> bool:
    """timm's: a layer `qkv` for queries, keys and values together, a layer `proj`, widths in attributes."""
    layers = (getattr(module, name, None) for name in ("qkv", "proj"))
    widths = (getattr(module, name, None) for name in ("num_heads", "head_dim", "attn_dim"))
    return all(isinstance(layer, nn.Linear) for layer in layers) and all(isinstance(n, int) for n in widths)


def replaced(module: nn.Module, in_proj: Tensor) -> nn.Module:
    """What takes the place of `module` when `in_proj` is its weight for queries, keys and values."""
    if (
        isinstance(module, nn.MultiheadAttention)
        and _is_plain(module)
        and len(in_proj) != 3 * module.embed_dim
    ):
        return ThinAttention(module)
    return module


def declare_heads(module: nn.Module) -> None:
    """Make the attributes of timm's attention agree with its weights."""
    attention: Any = module
    if _is_packed(module):
        attention.attn_dim = len(attention.qkv.weight) // 3
        attention.num_heads = attention.attn_dim // attention.head_dim
