"""How many bytes the weights of a Wan2.1 transformer take: in blocks, in thirds of a block, and outside the blocks."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from ..checkpoints.formats import WanArchitecture
from ..constants import LATENT_CHANNELS
from .activations import ALIGNMENT

_FP32 = 4
_BF16 = 2
_LINEAR_BYTES = {"fp8": 1, "int8": 1, "bf16": 2}


@dataclass(frozen=True, kw_only=True)
class WeightSizes:
    """Bytes of a transformer's weights as they lie in memory, whatever precision the file keeps the small ones in."""

    block: int
    phase: int
    """The largest of a block's three phases: self-attention, cross-attention, feed-forward."""
    num_blocks: int
    others: int
    """Embeddings, time projection and head."""

    @property
    def blocks(self) -> int:
        return self.block * self.num_blocks

    @property
    def total(self) -> int:
        return self.blocks + self.others


@functools.lru_cache(maxsize=16)
def weight_sizes(architecture: WanArchitecture, scheme: str) -> WeightSizes:
    """Return the sizes of a transformer whose blocks' linears are stored in `scheme` (fp8 | int8 | bf16)."""
    dim, ffn_dim = architecture.dim, architecture.ffn_dim
    attention = 4 * _linear(dim, dim, scheme) + 2 * _aligned(dim * _BF16)
    phases = (
        attention + _aligned(6 * dim * _FP32),
        attention + 2 * _aligned(dim * _FP32),
        _linear(dim, ffn_dim, scheme) + _linear(ffn_dim, dim, scheme),
    )
    return WeightSizes(
        block=sum(phases), phase=max(phases), num_blocks=architecture.num_layers, others=_others(architecture)
    )


def _linear(inputs: int, outputs: int, scheme: str) -> int:
    scales = 0 if scheme == "bf16" else _aligned(outputs * _FP32)
    return _aligned(inputs * outputs * _LINEAR_BYTES[scheme]) + scales + _aligned(outputs * _BF16)


def _others(architecture: WanArchitecture) -> int:
    """Return the bytes of what is not a block; time embedding and modulation are in FP32, as in native Wan."""
    dim = architecture.dim
    patch = dim * (LATENT_CHANNELS * 4 + 1)
    text = dim * (architecture.text_dim + 1) + dim * (dim + 1)
    time_embedding = dim * (architecture.freq_dim + 1) + dim * (dim + 1)
    time_projection = 6 * dim * (dim + 1)
    head = (dim + 1) * 4 * architecture.out_dim
    return _BF16 * (patch + text + time_projection + head) + _FP32 * (time_embedding + 2 * dim)


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT
