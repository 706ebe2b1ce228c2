"""How much of an attention one launch computes.

Windows resets a display card that does not answer for two seconds, and a launch cannot be counted on to give way: the
attention of a long clip takes longer on a small card.

Source: Microsoft's "Timeout Detection and Recovery (TDR)" for display drivers, TdrDelay.
"""

from __future__ import annotations

import functools
import itertools
import sys

import torch

# A quarter of what the system allows.
_SECONDS = 0.5
# Operations of a multiprocessor in a second at least, by what a kernel multiplies. An RTX 3060 has 28 of them, 25
# TFLOP/s in BF16 and 102 TOP/s in INT8 (NVIDIA), of which attention reaches about half (backends/table.py: share): a
# call at 1280x720, 81 frames, would take 10 s there with torch's memory-efficient attention and 2 s in INT8.
_RATES = {"bf16": 0.4e12, "int8": 1.6e12}


def heads_a_launch(tokens: int, head_dim: int, unit: str, processors: int) -> int:
    """Return how many heads a launch may compute.

    Args:
        tokens, head_dim: of the attention.
        unit: what its kernel multiplies, bf16 | int8.
        processors: multiprocessors of the card.
    """
    return max(1, int(_SECONDS * processors * _RATES[unit] / (4 * tokens**2 * head_dim)))


def split_heads(heads: int, most: int) -> list[slice]:
    """Return runs of at most so many heads, about equally long."""
    count = -(-heads // most)
    bounds = [heads * index // count for index in range(count + 1)]
    return [slice(start, end) for start, end in itertools.pairwise(bounds)]


def launches_for(v: torch.Tensor, unit: str) -> list[slice]:
    """Return the heads of each launch of an attention with values v [N, H, D] here: all at once but for Windows."""
    tokens, heads, head_dim = v.shape
    most = heads
    if sys.platform == "win32" and v.device.type == "cuda" and has_display(v.device):
        processors = torch.cuda.get_device_properties(v.device).multi_processor_count
        most = heads_a_launch(tokens, head_dim, unit, processors)
    return split_heads(heads, most)


@functools.cache
def has_display(device: torch.device) -> bool:
    """Say whether Windows watches a card for its display: not those for data centres, which are faster too."""
    major, minor = torch.cuda.get_device_capability(device)
    return (major, minor) != (8, 0) and major not in (9, 10)
