"""Which offload mode and which decode fit: pure arithmetic on byte counts."""

from __future__ import annotations

from dataclasses import dataclass

from ..constants import GIB

# Activations of one forward pass, bytes per token and model width, BF16. Measured on LightX2V FP8 at
# 832x480x81 and 1280x720x81 (peak allocated minus weights: 3.8 GiB / 32,760 tokens and 8.8 GiB /
# 75,600 tokens at width 5120; docs/benchmarks.md).
ACTIVATION_BYTES_PER_TOKEN_AND_DIM = 24
# The caching allocator holds more than is allocated: reserved / allocated up to 1.15 where weights stay.
ALLOCATOR_SLACK = 1.15
# CUDA context, cuBLAS workspaces and a desktop's own use.
VRAM_RESERVE_BYTES = GIB // 2
# Whole decode in BF16 with base width 96: bytes of VRAM reserved per output pixel of one frame. Measured on
# an H200 with torch 2.11: 5.97 GiB at 832x480, 14.5 GiB at 1280x720 (tools/bench/vae.py).
DECODE_BYTES_PER_PIXEL = 17_000
DECODE_BASE_DIM = 96


@dataclass(frozen=True, kw_only=True)
class OffloadPlan:
    """A chosen offload mode and why."""

    mode: str
    """none | block | phase | disk."""
    reason: str


def plan_offload(
    mode: str, *, weight_bytes: int, dim: int, tokens: int, vram_bytes: int | None, ram_bytes: int
) -> OffloadPlan:
    """Choose how the transformer's weights are held.

    Args:
        mode: what the user chose; anything but "auto" is taken as it is.
        weight_bytes: bytes of the checkpoint's transformer.
        dim: width of the transformer.
        tokens: number of tokens of the clip.
        vram_bytes: free VRAM, or None without a GPU.
        ram_bytes: RAM that can be taken without swapping.
    """
    if mode != "auto":
        return OffloadPlan(mode=mode, reason="chosen in the offload node")
    if vram_bytes is None:
        return OffloadPlan(mode="none", reason="no GPU: weights are mapped from their files")
    activations = tokens * dim * ACTIVATION_BYTES_PER_TOKEN_AND_DIM
    needed = int((weight_bytes + activations) * ALLOCATOR_SLACK) + VRAM_RESERVE_BYTES
    sizes = f"resident needs {needed / GIB:.1f} GiB of VRAM, {vram_bytes / GIB:.1f} GiB free"
    if needed <= vram_bytes:
        return OffloadPlan(mode="none", reason=sizes)
    if weight_bytes * 1.1 <= ram_bytes:
        return OffloadPlan(mode="block", reason=sizes)
    return OffloadPlan(
        mode="disk", reason=f"{sizes}; weights need {weight_bytes / GIB:.1f} GiB of RAM, {ram_bytes / GIB:.1f} GiB free"
    )


def whole_decode_bytes(height: int, width: int, base_dim: int, element_bytes: int) -> int:
    """Return the bytes a whole (untiled) decode takes on its device, weights included."""
    per_pixel = DECODE_BYTES_PER_PIXEL * base_dim / DECODE_BASE_DIM * element_bytes / 2
    return int(height * width * per_pixel)


def use_tiles(mode: str, *, needed_bytes: int, free_bytes: int) -> bool:
    """Decide tiled or whole decode; "auto" tiles when the whole decode would not fit with a tenth to spare."""
    return mode == "on" or (mode == "auto" and needed_bytes * 1.1 > free_bytes)
