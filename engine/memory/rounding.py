"""Sizes rounded up, as buffers and torch's allocator take them."""

from __future__ import annotations

# Start of every tensor in a buffer: what CUDA's allocator gives, so that kernels are chosen alike.
ALIGNMENT = 512


def round_up(number: int, multiple: int = ALIGNMENT) -> int:
    """Return the next multiple."""
    return -(-number // multiple) * multiple
