"""What connects the GPUs of this machine: facts, and a copy between each pair that is timed where that is wanted."""

from __future__ import annotations

import itertools
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .exchange import is_available

_SHARED_MEMORY = Path("/dev/shm")
# Long enough that the time to begin a copy does not count, short enough for a small card.
_COPIED_BYTES, _COPIES = 256 * 2**20, 8


@dataclass(frozen=True, kw_only=True)
class Links:
    """GPUs and what is between them."""

    names: tuple[str, ...]
    peers: bool
    """Whether each of them reaches each other's memory directly."""
    nccl: str
    """Its version, "" without it."""
    has_memory: bool
    """Whether processes can share memory."""
    shared_bytes: int | None
    """Free in /dev/shm, through which NCCL goes where GPUs cannot reach each other; None where there is none."""
    system: str
    """linux | win32 | ..."""
    speeds: tuple[float, ...] = ()
    """Bytes a second from each GPU to each other one; empty where it was not measured."""


def find_links(*, measures: bool) -> Links | None:
    """Return what is here; None where there are not several GPUs.

    Args: measures: time copies too, which takes a second, and half a GiB of every GPU from then on in this process.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count < 2:
        return None
    pairs = list(itertools.permutations(range(count), 2))
    nccl: Any = torch.cuda.nccl
    version = nccl.version() if is_available("nccl") else ()
    return Links(
        names=tuple(torch.cuda.get_device_name(index) for index in range(count)),
        peers=all(torch.cuda.can_device_access_peer(*pair) for pair in pairs),
        nccl=".".join(map(str, version if isinstance(version, tuple) else (version,))),
        has_memory=hasattr(os, "memfd_create"),
        shared_bytes=_free_bytes(_SHARED_MEMORY),
        system=sys.platform,
        speeds=tuple(_time_copies(*pair) for pair in pairs) if measures else (),
    )


def _free_bytes(folder: Path) -> int | None:
    if not folder.is_dir():
        return None
    free = os.statvfs(folder)
    return free.f_bavail * free.f_frsize


def _time_copies(source: int, target: int) -> float:
    """Return the bytes a second of copies from one GPU to another."""
    sent = torch.empty(_COPIED_BYTES, dtype=torch.uint8, device=f"cuda:{source}")
    arrived = torch.empty(_COPIED_BYTES, dtype=torch.uint8, device=f"cuda:{target}")
    for number in range(_COPIES + 1):
        if number == 1:
            # The first copy opens the way.
            torch.cuda.synchronize(source)
            torch.cuda.synchronize(target)
            begun = time.perf_counter()
        arrived.copy_(sent, non_blocking=True)
    torch.cuda.synchronize(source)
    torch.cuda.synchronize(target)
    return _COPIES * _COPIED_BYTES / (time.perf_counter() - begun)
