"""RAM that CUDA copies from at full speed: of exact size, page-locked within a limit for the whole process."""

from __future__ import annotations

import contextlib
import logging
import mmap
import weakref
from typing import Any

import numpy as np
import torch

from ..memory.rounding import round_up
from ..sentences.kernels import Running

logger = logging.getLogger(__name__)

_buffers: weakref.WeakSet[HostBuffer] = weakref.WeakSet()


class HostBuffer:
    """RAM of an exact size that can be page-locked; unlocked and given back when dropped.

    torch's own pinned memory is rounded up to a power of two.
    """

    def __init__(self, num_bytes: int, memory: torch.Tensor | None = None) -> None:
        """Args: memory: whole pages, uint8, that are to be used; None takes new ones."""
        self.tensor = _take_pages(round_up(num_bytes, mmap.PAGESIZE)) if memory is None else memory
        self.is_locked = False
        _buffers.add(self)

    @property
    def num_bytes(self) -> int:
        return self.tensor.numel()

    def lock(self) -> bool:
        """Page-lock the memory, so that copies from it run beside compute; False where the system refuses.

        Write the memory first: locking pages that were never used is several times slower.
        """
        self.is_locked = _lock_pages(self.tensor)
        if self.is_locked:
            weakref.finalize(self, _unlock_pages, self.tensor).atexit = False
        return self.is_locked


def _take_pages(size: int) -> torch.Tensor:
    """Return new memory uint8 [size], which is a number of pages."""
    # numpy asks Linux for huge pages, which halves the time to fill and lock the memory. Its pages are taken when they
    # are first written.
    memory = np.empty(size + mmap.PAGESIZE, np.uint8)
    start = -memory.ctypes.data % mmap.PAGESIZE
    # Whole pages of its own: a page cannot be locked twice. The tensor's storage begins there too, which is where torch
    # looks to tell pinned memory.
    return torch.from_numpy(memory[start : start + size])


def staging_buffer(num_bytes: int, pinned_limit_bytes: int) -> HostBuffer:
    """Return memory to copy through, page-locked unless the process would then have locked more than the limit."""
    buffer = HostBuffer(num_bytes)
    if locked_bytes() + buffer.num_bytes <= pinned_limit_bytes:
        buffer.tensor.zero_()
        buffer.lock()
    return buffer


def locked_bytes() -> int:
    """Return the RAM that is page-locked by this pack now."""
    return sum(buffer.num_bytes for buffer in list(_buffers) if buffer.is_locked)


def _lock_pages(memory: torch.Tensor) -> bool:
    """Page-lock CPU memory for CUDA copies; False where the system refuses."""
    if not torch.cuda.is_available():
        return False
    cuda: Any = torch.cuda
    status = int(cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.numel(), 0))
    if status == 0:
        return True
    # The refusal stays behind as this thread's last CUDA error, and its next kernel launch would report it.
    with contextlib.suppress(RuntimeError):
        torch.zeros(1, device="cuda").add_(1)
    logger.debug("LightX2V: %s", Running.NOT_PAGE_LOCKED(num_bytes=memory.numel(), status=status))
    return False


def _unlock_pages(memory: torch.Tensor) -> None:
    cuda: Any = torch.cuda
    cuda.synchronize()
    cuda.cudart().cudaHostUnregister(memory.data_ptr())
