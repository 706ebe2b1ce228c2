"""Rows for heads between ranks over torch.distributed: NCCL between GPUs, gloo where ranks compute on the CPU.

Row and head counts may differ between ranks: nothing is padded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from .split import length, split_evenly, split_rows

T = TypeVar("T")

# The widest type that torch copies.
_UNIT = torch.complex128
# A rank whose neighbour does not answer for so long fails.
_PATIENCE = timedelta(seconds=120)


class StoppedError(Exception):
    """The clip is to be given up; every rank raises it before the same block."""


class Ranks:
    """The ranks that compute a clip, as one of them sees them; implements wan/parallel.py's Exchange."""

    def __init__(
        self, rank: int, size: int, device: torch.device, store: Path, is_stopping: Callable[[], bool], patience: float
    ) -> None:
        """Join the others; returns when all have come.

        Args:
            rank, size: this one's number, and how many there are.
            device: that computes.
            store: a file that all of them can write, and nobody else.
            is_stopping: whether this rank has been told to give up the clip.
            patience: seconds that a rank may not answer; 0 is the usual.
        """
        self.rank, self.size = rank, size
        self._is_stopping = is_stopping
        timeout = timedelta(seconds=patience) if patience else _PATIENCE
        backend = "nccl" if device.type == "cuda" else "gloo"
        # With a device the communicator is made here, and not in the middle of the first block.
        options: dict[str, Any] = {"device_id": device} if device.type == "cuda" else {}
        dist.init_process_group(
            backend, init_method=store.as_uri(), rank=rank, world_size=size, timeout=timeout, **options
        )
        self._flags = dist.new_group(backend="gloo", timeout=timeout) if backend != "gloo" else dist.group.WORLD
        self._asked: tuple[torch.Tensor, Any] | None = None
        self.block = 0
        """Of the pass that runs or was the last: blocks, or phases of them, that were begun."""
        self._connect(device)

    def rows(self, tokens: int) -> slice:
        return split_rows(tokens, self.size)[self.rank]

    def heads(self, count: int) -> slice:
        return split_evenly(count, self.size)[self.rank]

    def to_heads(self, part: torch.Tensor, tokens: int) -> Callable[[], torch.Tensor]:
        heads = split_evenly(part.shape[1], self.size)
        rows = split_rows(tokens, self.size)
        mine = heads[self.rank]
        out = part.new_empty(tokens, length(mine), part.shape[2])
        sent = [_packed(part[:, run]) for run in self._of_others(heads)]
        work = self._swap(sent, [out[run] for run in self._of_others(rows)])
        _copy(part[:, mine], out[rows[self.rank]])

        def wait() -> torch.Tensor:
            work()
            return out

        return wait

    def share(self, heads: slice, index: int, parts: int) -> slice:
        return split_evenly(length(heads), parts)[index]

    def to_rows(
        self, part: torch.Tensor, num_heads: int, out: torch.Tensor, share: tuple[int, int]
    ) -> Callable[[], None]:
        rows = split_rows(len(part), self.size)
        shares = [_share(run, *share) for run in split_evenly(num_heads, self.size)]
        own = rows[self.rank]
        sent = [_packed(part[run]) for run in self._of_others(rows)]
        arrived = [part.new_empty(length(own), length(run), part.shape[2]) for run in self._of_others(shares)]
        work = self._swap(sent, arrived)
        _copy(part[own], out[:, shares[self.rank]])

        def wait() -> None:
            work()
            for run, each in zip(self._of_others(shares), arrived, strict=True):
                _copy(each, out[:, run])

        return wait

    def gather(self, part: torch.Tensor, tokens: int) -> torch.Tensor:
        rows = split_rows(tokens, self.size)
        out = part.new_empty(tokens, *part.shape[1:])
        mine = part.contiguous()
        work = self._swap([mine] * (self.size - 1), [out[run] for run in self._of_others(rows)])
        out[rows[self.rank]] = mine
        work()
        return out

    def _of_others(self, each: Sequence[T]) -> list[T]:
        """Return of what there is for each rank that of the others."""
        return [one for rank, one in enumerate(each) if rank != self.rank]

    def _swap(self, sent: list[torch.Tensor], arrived: list[torch.Tensor]) -> Callable[[], None]:
        """Start to send something to each other rank, and to take something from it, all contiguous.

        Returns:
            what waits until it is there; what is sent may be overwritten then.
        """
        others = self._of_others(range(self.size))
        moves = [
            dist.P2POp(operation, each, other)
            for operation, parts in ((dist.isend, sent), (dist.irecv, arrived))
            for other, each in zip(others, parts, strict=True)
            if each.numel()
        ]
        works = dist.batch_isend_irecv(moves) if moves else []

        def wait() -> None:
            for work in works:
                work.wait()
            # Until here: what is sent is memory of nobody else.
            moves.clear()

        return wait

    def begin_pass(self) -> None:
        self._asked = None
        self.block = 0

    def check_block(self) -> None:
        # What was asked a block ago is known by now; the answer to what is asked here stops the next one.
        if self._settle():
            raise StoppedError("Cancelled.")
        self.block += 1
        flag = torch.tensor([int(self._is_stopping())], dtype=torch.int32)
        self._asked = flag, dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._flags, async_op=True)

    def end_pass(self) -> None:
        # A wish to stop that came with the last block stops nothing: the pass is done.
        self._settle()

    def meet(self, is_well: bool) -> None:
        """Wait for all ranks to come here.

        Raises:
            StoppedError: this one is well, and another one is not.
        """
        flag = torch.tensor([int(not is_well)], dtype=torch.int32)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._flags)
        if flag.item() and is_well:
            raise StoppedError("Another GPU has stopped.")

    def _connect(self, device: torch.device) -> None:
        """Exchange a little with everybody, so that the memory that connections take is taken before it is planned."""
        self.gather(torch.zeros(length(self.rows(self.size)), device=device), self.size)
        if device.type == "cuda":
            torch.cuda.synchronize()

    def _settle(self) -> bool:
        asked, self._asked = self._asked, None
        if asked is None:
            return False
        flag, work = asked
        work.wait()
        return bool(flag.item())


def _share(run: slice, index: int, parts: int) -> slice:
    """Return one of so many parts of a run."""
    part = split_evenly(length(run), parts)[index]
    return slice(run.start + part.start, run.start + part.stop)


def _packed(part: torch.Tensor) -> torch.Tensor:
    """Return rows [N, H, D] one behind the other: themselves where they are."""
    if part.is_contiguous():
        return part
    packed = part.new_empty(part.shape)
    _copy(part, packed)
    return packed


def _copy(source: torch.Tensor, target: torch.Tensor) -> None:
    """Copy rows [N, H, D] that may lie apart; in units of 16 bytes, which take torch a fraction of the time."""
    unit = _UNIT.itemsize // source.element_size()
    strides = (*source.stride()[:-1], *target.stride()[:-1], source.storage_offset(), target.storage_offset())
    if not any(each % unit for each in (source.shape[-1], *strides)):
        source, target = source.view(_UNIT), target.view(_UNIT)
    target.copy_(source)


def is_available(backend: str) -> bool:
    """Say whether this torch can connect ranks: backend nccl | gloo."""
    return dist.is_available() and (dist.is_nccl_available() if backend == "nccl" else dist.is_gloo_available())


def is_lost_neighbour(error: BaseException) -> bool:
    """Say whether an exception says of another rank that it does not answer."""
    return isinstance(error, dist.DistError) or "Connection closed by peer" in str(error) or "gloo" in str(error)
