"""RAM for streamed weights that the ranks of several GPUs share: read once, and page-locked by each of them."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch

from ..memory.placement import Placement
from ..memory.rounding import round_up
from .pinned import HostBuffer


class _Memory(Protocol):
    def resize(self, num_bytes: int) -> None: ...

    def tensor(self, num_bytes: int) -> torch.Tensor: ...


class SharedHome:
    """Memory of several processes, and which of its parts this one fills."""

    def __init__(
        self, memory: _Memory, placement: Placement, rank: int, size: int, meet: Callable[[bool], None]
    ) -> None:
        """Args:
        memory: that all of them see.
        placement: of the one that streams most: all of that is in the memory.
        rank, size: this one's number, and how many there are.
        meet: waits for all of them; raises where this one says True and another one False.
        """
        self.placement = placement
        self._memory = memory
        self._rank, self._size = rank, size
        self._meet = meet

    @contextmanager
    def meeting(self) -> Iterator[None]:
        """Do this process's part, then wait for the others; where one of them fails or is stopped, all are."""
        is_well = False
        try:
            yield
            is_well = True
        finally:
            self._meet(is_well)

    def buffers(self, sizes: Sequence[int]) -> list[HostBuffer]:
        """Return buffers of these sizes, the same memory in every process that asks for the same ones."""
        ends = [round_up(size, mmap.PAGESIZE) for size in sizes]
        self._memory.resize(sum(ends))
        memory = self._memory.tensor(sum(ends))
        starts = [sum(ends[:index]) for index in range(len(ends))]
        return [
            HostBuffer(size, memory[start : start + end]) for size, start, end in zip(sizes, starts, ends, strict=True)
        ]

    def is_mine(self, index: int) -> bool:
        """Say whether this process fills a buffer."""
        return index % self._size == self._rank
