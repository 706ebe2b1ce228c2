"""VRAM as torch's allocator counts it."""

import torch


def peak_of(call, *arguments, **named):
    """Return the most bytes allocated during a second call: the first takes what libraries keep."""
    call(*arguments, **named)
    torch.cuda.reset_peak_memory_stats()
    call(*arguments, **named)
    return torch.cuda.max_memory_allocated()
