"""Rows for heads between ranks over torch.distributed: NCCL between GPUs, gloo where ranks compute on the CPU.

Row and head counts may differ between ranks: nothing is padded.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from .split import length, split_evenly, split_rows

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
        own, count, dim = part.shape
        heads = [length(run) for run in split_evenly(count, self.size)]
        rows = [length(run) for run in split_rows(tokens, self.size)]
        mine = heads[self.rank]
        # To each rank its heads of this rank's rows, one rank behind the other.
        sent = torch.cat([each.flatten() for each in torch.split(part, heads, dim=1)])
        out = part.new_empty(tokens, mine, dim)
        work = dist.all_to_all_single(
            out.view(-1),
            sent,
            [count * mine * dim for count in rows],
            [own * count * dim for count in heads],
            async_op=True,
        )

        def wait() -> torch.Tensor:
            work.wait()
            return out

        return wait

    def share(self, heads: slice, index: int, parts: int) -> slice:
        return split_evenly(length(heads), parts)[index]

    def to_rows(
        self, part: torch.Tensor, num_heads: int, out: torch.Tensor, share: tuple[int, int]
    ) -> Callable[[], None]:
        index, parts = share
        rows = [length(run) for run in split_rows(len(part), self.size)]
        shares = [_share(run, index, parts) for run in split_evenly(num_heads, self.size)]
        own, mine, dim = rows[self.rank], length(shares[self.rank]), part.shape[2]
        sizes = [own * length(heads) * dim for heads in shares]
        arrived = part.new_empty(sum(sizes))
        sent = part.contiguous()
        work = dist.all_to_all_single(
            arrived, sent.view(-1), sizes, [count * mine * dim for count in rows], async_op=True
        )

        def wait() -> None:
            work.wait()
            for heads, each in zip(shares, torch.split(arrived, sizes), strict=True):
                out[:, heads] = each.view(own, length(heads), dim)

        return wait

    def gather(self, part: torch.Tensor, tokens: int) -> torch.Tensor:
        rows = [length(run) for run in split_rows(tokens, self.size)]
        out = part.new_empty(tokens, *part.shape[1:])
        width = out[:1].numel()
        mine = part.contiguous().view(-1)
        # Everybody gets the same rows of this rank.
        dist.all_to_all_single(
            out.view(-1), mine.repeat(self.size), [count * width for count in rows], [mine.numel()] * self.size
        )
        return out

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
        sent = torch.zeros(self.size, device=device)
        dist.all_to_all_single(torch.empty_like(sent), sent)
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


def is_available(backend: str) -> bool:
    """Say whether this torch can connect ranks: backend nccl | gloo."""
    return dist.is_available() and (dist.is_nccl_available() if backend == "nccl" else dist.is_gloo_available())


def is_lost_neighbour(error: BaseException) -> bool:
    """Say whether an exception says of another rank that it does not answer."""
    return isinstance(error, dist.DistError) or "Connection closed by peer" in str(error) or "gloo" in str(error)
