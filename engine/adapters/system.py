"""What the machine has free: RAM, VRAM, the compute device."""

from __future__ import annotations

import psutil
import torch


def compute_device() -> torch.device:
    """Return the GPU in use, with its index, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def free_vram_bytes() -> int | None:
    """Return the VRAM this process could still take, its own cached blocks included; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    free, _ = torch.cuda.mem_get_info()
    return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()


def free_ram_bytes() -> int:
    """Return the RAM that can be taken without swapping."""
    available: int = psutil.virtual_memory().available
    return available
