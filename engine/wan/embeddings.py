"""What of Wan's transformer is neither patches nor blocks: embeddings of time, positions, text and image; the head.

Weights come as `w`, by their native names. Source: Wan2.1 wan/modules/model.py (WanModel, Head, MLPProj, rope_params).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch.nn import functional

from ..kernels.ops import Ops, Rotary
from ..lora.branch import linear
from .kernels import EPS
from .patches import Grid

Weights = Mapping[str, torch.Tensor]

_THETA = 10_000.0


def embed_time(timestep: float, w: Weights) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (embedding [D], projection [6, D]) of a model time in [0, 1000], fp32."""
    first = w["time_embedding.0.weight"]
    half = first.shape[1] // 2
    steps = torch.arange(half, dtype=torch.float64, device=first.device)
    angles = timestep * torch.exp(-math.log(_THETA) / half * steps)
    waves = torch.cat([angles.cos(), angles.sin()]).float()[None]
    embedding = linear(functional.silu(linear(waves, w, "time_embedding.0")), w, "time_embedding.2")
    projected = linear(functional.silu(embedding).to(w["time_projection.1.weight"].dtype), w, "time_projection.1")
    return embedding[0], projected.float().view(6, -1)


def embed_text(rows: torch.Tensor, w: Weights) -> torch.Tensor:
    """Return text rows [rows, text_dim] as [rows, D] BF16 on the device of the weights."""
    weight = w["text_embedding.0.weight"]
    hidden = linear(rows.to(weight.device, weight.dtype), w, "text_embedding.0")
    return linear(functional.gelu(hidden, approximate="tanh"), w, "text_embedding.2")


def embed_image(tokens: torch.Tensor, w: Weights) -> torch.Tensor:
    """Return rows of CLIP Vision [tokens, image_dim] as [tokens, D] BF16 on the device of the weights.

    Those of a first and a last frame have learned positions, where the checkpoint was trained with both.
    """
    weight = w["img_emb.proj.1.weight"]
    rows = tokens.to(weight.device, torch.float32)
    positions = w.get("img_emb.emb_pos")
    if positions is not None:
        rows = rows + positions[0, : len(rows)].float()
    hidden = linear(_layer_norm(rows, w, "img_emb.proj.0").to(weight.dtype), w, "img_emb.proj.1")
    hidden = linear(functional.gelu(hidden), w, "img_emb.proj.3")
    return _layer_norm(hidden.float(), w, "img_emb.proj.4").to(torch.bfloat16)


def _layer_norm(rows: torch.Tensor, w: Weights, name: str) -> torch.Tensor:
    """Return the layer norm of rows [.., D] in fp32, with torch's own epsilon, as the model has it here alone."""
    return functional.layer_norm(rows, rows.shape[-1:], w[f"{name}.weight"].float(), w[f"{name}.bias"].float())


def rotary_of(grid: Grid, head_dim: int, device: torch.device) -> Rotary:
    """Return cosines and sines [N, head_dim / 2] of the tokens' positions: pairs for time, then height, then width."""
    spatial = 2 * (head_dim // 6)
    cosines: list[torch.Tensor] = []
    sines: list[torch.Tensor] = []
    for axis, (length, size) in enumerate(zip(grid, (head_dim - 2 * spatial, spatial, spatial), strict=True)):
        frequencies = _THETA ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
        angles = torch.outer(torch.arange(length, dtype=torch.float64), frequencies)
        shape = [1, 1, 1, size // 2]
        shape[axis] = length
        # Only on the device they become as many as there are tokens.
        for parts, values in ((cosines, angles.cos()), (sines, angles.sin())):
            parts.append(values.float().to(device).view(shape).expand(*grid, -1))
    return Rotary(torch.cat(cosines, dim=-1).flatten(0, 2), torch.cat(sines, dim=-1).flatten(0, 2))


def project_head(
    hidden: torch.Tensor, embedding: torch.Tensor, w: Weights, ops: Ops, out: torch.Tensor
) -> torch.Tensor:
    """Return the flow of tokens [N, D] as patches [N, 64] fp32; see patches.join_patches.

    Args:
        embedding: [D], of the time.
        out: [N, D] BF16, for the normalized tokens.
    """
    shift, scale = (w["head.modulation"][0] + embedding).unbind()
    ops.norm(hidden, 1 + scale, shift, EPS, out, None)
    return linear(out, w, "head.head").float()
