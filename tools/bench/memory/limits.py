"""Stand for a smaller machine: less VRAM, less RAM; and watch what this process takes."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import torch

from .. import pack
from ..harness import nvidia_smi

_V2, _V1 = Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory")
# Control groups of Linux: their folder, and the file of a group's limit.
_MEMORY_GROUPS = ((_V2, "memory.max"), (_V1, "memory.limit_in_bytes"))
_GROUP = "lightx2v-bench-"
_WATCH_SECONDS = 0.02
# CUDA's context with nothing else takes less on every card: 0.6 GiB on an H200.
_MOST_CONTEXT_BYTES = pack.GIB


class SharedCardError(RuntimeError):
    """Another program is on the card that is to be measured."""


def check_alone(device: torch.device) -> int:
    """Return `context_bytes` of a process that has not run anything yet.

    Raises:
        SharedCardError: another process holds memory of the same card, which would count as this one's.
    """
    taken = context_bytes(device)
    if taken <= _MOST_CONTEXT_BYTES:
        return taken
    raise SharedCardError(
        f"{taken / pack.GIB:.1f} GiB of {torch.cuda.get_device_name(device)} are in use beside torch; expected at most "
        f"{_MOST_CONTEXT_BYTES / pack.GIB:.1f}, this process's own CUDA context. Other programs: {_gpu_processes()}. "
        "End them, or choose another card with CUDA_VISIBLE_DEVICES."
    )


def _gpu_processes() -> str:
    """Return what the driver tells of programs on all cards, e.g. "python, 1200 MiB, 17" (its process id)."""
    found = nvidia_smi("--query-compute-apps=name,used_memory,pid")
    lines = [line for line in found if not line.endswith(f" {os.getpid()}")]
    return "; ".join(lines) or "unknown"


def context_bytes(device: torch.device) -> int:
    """Return the VRAM in use beside torch's own: CUDA's context and loaded kernels (and other programs)."""
    if device.type != "cuda":
        return 0
    torch.zeros(1, device=device).add_(1)
    torch.cuda.synchronize(device)
    free, total = _mem_get_info(device)
    return total - free - torch.cuda.memory_reserved(device)


def limit_vram(cap_gib: float, device: torch.device) -> None:
    """Let torch take no more than a card of `cap_gib` would leave it, and report such a card's free memory."""
    total = torch.cuda.get_device_properties(device).total_memory
    context = context_bytes(device)
    torch.cuda.set_per_process_memory_fraction((cap_gib * pack.GIB - context) / total, device)

    def mem_get_info(*_: object) -> tuple[int, int]:
        return max(int(cap_gib * pack.GIB) - context - torch.cuda.memory_reserved(device), 0), int(cap_gib * pack.GIB)

    torch.cuda.mem_get_info = mem_get_info


_mem_get_info = torch.cuda.mem_get_info


def limit_ram(gib: float) -> bool:
    """Report a machine of so much RAM as free memory; return whether the system enforces it too (Linux, as root)."""
    real, num_bytes = psutil.virtual_memory, int(gib * pack.GIB)

    def virtual_memory() -> object:
        memory = real()
        return memory._replace(total=num_bytes, available=max(min(memory.available, num_bytes - own_ram_bytes()), 0))

    psutil.virtual_memory = virtual_memory
    for root, limit in _MEMORY_GROUPS:
        group = root / f"{_GROUP}{os.getpid()}"
        with contextlib.suppress(OSError):
            group.mkdir()
            # The kernel makes this file with the group; where it is missing there is no such thing.
            with (group / limit).open("r+") as file:
                file.write(str(num_bytes))
            (group / "cgroup.procs").write_text(str(os.getpid()))
            return True
    return False


def remove_limits() -> None:
    """Remove the control groups of processes that have ended."""
    for root, _ in _MEMORY_GROUPS:
        for group in root.glob(f"{_GROUP}*"):
            with contextlib.suppress(OSError):
                group.rmdir()


def drop_page_cache() -> bool:
    """Forget every file the system has cached, so that the next read is from the drive; needs root."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("1")
    except OSError:
        return False
    return True


def own_ram_bytes() -> int:
    """Return the RAM of this process that the system cannot drop: all but pages mapped from files."""
    status = Path("/proc/self/status")
    if not status.exists():
        resident: int = psutil.Process().memory_info().rss
        return resident
    sizes = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return sum(int(sizes[name].split()[0]) * 1024 for name in ("RssAnon", "RssShmem") if name in sizes)


@contextlib.contextmanager
def watch_ram() -> Iterator[SimpleNamespace]:
    """Yield an object whose `num_bytes` becomes the peak of `own_ram_bytes` in the block."""
    peak, done = SimpleNamespace(num_bytes=own_ram_bytes()), threading.Event()

    def watch() -> None:
        while not done.wait(_WATCH_SECONDS):
            peak.num_bytes = max(peak.num_bytes, own_ram_bytes())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()
        peak.num_bytes = max(peak.num_bytes, own_ram_bytes())
