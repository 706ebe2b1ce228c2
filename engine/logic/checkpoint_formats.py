"""Tables: what tensor names, dtypes and shapes of a file mean. Pure: headers in, formats out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class WanArchitecture:
    """Sizes of a Wan2.1 text-to-video transformer, all read from tensor shapes."""

    dim: int
    ffn_dim: int
    num_heads: int
    """dim / 128; one head where dim is below 128."""
    num_layers: int
    in_dim: int
    out_dim: int
    freq_dim: int
    text_dim: int


@dataclass(frozen=True, kw_only=True)
class TransformerFormat:
    """How a transformer checkpoint stores its weights."""

    scheme: str
    """bf16 | fp8 | int8: the scheme of the blocks' linears (bf16 covers fp16 and fp32 files too)."""
    scale_suffix: str | None
    """What replaces `weight` to find a scale: weight_scale (LightX2V, [N, 1] or scalar) or scale_weight (ComfyUI,
    scalar); None for unquantised weights."""
    prefix: str
    """Stripped from every tensor name, e.g. `model.diffusion_model.`."""
    architecture: WanArchitecture
