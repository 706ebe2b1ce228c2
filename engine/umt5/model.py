"""UMT5's encoder in plain torch, without its embedding: what a text encoder's weights are computed with.

transformers has the same model; importing that takes seconds, which the first prompt would wait for.
Source: arXiv 1910.10683 (T5) and transformers models/umt5: no biases, root mean square norms, scores that are not
divided, gated GELU; UMT5 has relative positions of its own in every block.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import functional

from ..checkpoints.formats import TextEncoderFormat
from .linear import StoredLinear

_EPS = 1e-6
# Distances from here on share a bucket.
_MAX_DISTANCE = 128

Get = Callable[[str], torch.Tensor]
"""Returns a tensor by transformers' name."""
GetLinear = Callable[[str], StoredLinear]


class TextModel(torch.nn.Module):
    """The blocks and the last norm. What is no linear layer is in buffers, so that `.to` moves and casts it."""

    norm: torch.Tensor

    def __init__(self, text_format: TextEncoderFormat, get: Get, get_linear: GetLinear) -> None:
        super().__init__()
        self._num_buckets = text_format.num_buckets
        self.blocks = torch.nn.ModuleList(
            _Block(f"encoder.block.{index}.layer", text_format.num_heads, get, get_linear)
            for index in range(text_format.num_layers)
        )
        self.register_buffer("norm", get("encoder.final_layer_norm.weight"))

    def forward(self, rows: torch.Tensor, num_tokens: int, before_block: Callable[[int], None]) -> torch.Tensor:
        """Encode embedded rows [N, d_model], of which those from `num_tokens` on are padding, to rows of that shape.

        `before_block` is called with every block's index before it computes.
        """
        places = torch.arange(len(rows), device=rows.device)
        buckets = position_buckets(places[None] - places[:, None], self._num_buckets)
        is_padding = places >= num_tokens
        for index, block in enumerate(self.blocks):
            before_block(index)
            rows = block(rows, buckets, is_padding)
        return _normalize(rows, self.norm)


class _Block(torch.nn.Module):
    """Self-attention, then feed-forward, each added to its input."""

    norm1: torch.Tensor
    norm2: torch.Tensor
    bias: torch.Tensor

    def __init__(self, path: str, num_heads: int, get: Get, get_linear: GetLinear) -> None:
        super().__init__()
        self._num_heads = num_heads
        self.register_buffer("norm1", get(f"{path}.0.layer_norm.weight"))
        self.register_buffer("norm2", get(f"{path}.1.layer_norm.weight"))
        self.register_buffer("bias", get(f"{path}.0.SelfAttention.relative_attention_bias.weight"))
        self.q, self.k, self.v, self.o = (get_linear(f"{path}.0.SelfAttention.{name}.weight") for name in "qkvo")
        self.gate, self.up, self.down = (
            get_linear(f"{path}.1.DenseReluDense.{name}.weight") for name in ("wi_0", "wi_1", "wo")
        )

    def forward(self, rows: torch.Tensor, buckets: torch.Tensor, is_padding: torch.Tensor) -> torch.Tensor:
        """Args: rows [N, d_model]; buckets [N, N] of query and key; is_padding [N]."""
        normal = _normalize(rows, self.norm1)
        q, k, v = (self._split(linear(normal)) for linear in (self.q, self.k, self.v))
        bias = self.bias[buckets].permute(2, 0, 1).masked_fill(is_padding, -math.inf)[None]
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        rows = rows + self.o(attended[0].transpose(0, 1).flatten(1))
        normal = _normalize(rows, self.norm2)
        wide = functional.gelu(self.gate(normal), approximate="tanh").mul_(self.up(normal))
        out: torch.Tensor = rows + self.down(wide)
        return out

    def _split(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows [N, heads * d_kv] as [1, heads, N, d_kv]."""
        return rows.view(1, len(rows), self._num_heads, -1).transpose(1, 2)


def position_buckets(distances: torch.Tensor, num_buckets: int) -> torch.Tensor:
    """Return the bucket of each distance (key - query): half of them for keys that come later.

    Of each half, one half is for single small distances, the other for ranges that grow with the logarithm.
    """
    half = num_buckets // 2
    exact = half // 2
    sizes = distances.abs()
    growth = torch.log(sizes.float() / exact) / math.log(_MAX_DISTANCE / exact) * (half - exact)
    # The logarithm of distance 0 is not used.
    ranges = (exact + growth.clamp(min=0).long()).clamp(max=half - 1)
    return torch.where(sizes < exact, sizes, ranges) + (distances > 0).long() * half


def _normalize(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return rows divided by their root mean square, in fp32, times weight."""
    wide = rows.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + _EPS)).to(rows.dtype) * weight
