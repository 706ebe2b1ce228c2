"""Stand for a smaller machine: less VRAM, less RAM; and watch what this process takes.

Imported as `lightx2v_pack.tools.bench.machine_limits`, after the script has registered the pack.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from ...engine.constants import GIB

# Control groups of Linux, version 2 and 1: their folder, and the file of a group's limit.
_MEMORY_GROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
)
_GROUP = "lightx2v-bench-"
_WATCH_SECONDS = 0.02


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
    torch.cuda.set_per_process_memory_fraction((cap_gib * GIB - context) / total, device)

    def mem_get_info(*_: object) -> tuple[int, int]:
        return max(int(cap_gib * GIB) - context - torch.cuda.memory_reserved(device), 0), int(cap_gib * GIB)

    torch.cuda.mem_get_info = mem_get_info


_mem_get_info = torch.cuda.mem_get_info


def limit_ram(gib: float) -> bool:
    """Report a machine of so much RAM as free memory; return whether the system enforces it too (Linux, as root)."""
    real = psutil.virtual_memory

    def virtual_memory() -> object:
        memory = real()
        free = min(memory.available, max(int(gib * GIB) - own_ram_bytes(), 0))
        return memory._replace(total=int(gib * GIB), available=free)

    psutil.virtual_memory = virtual_memory
    return any(_enforce_ram(int(gib * GIB), root, limit) for root, limit in _MEMORY_GROUPS)


def _enforce_ram(num_bytes: int, root: Path, limit: str) -> bool:
    """Move this process into a new control group of so much RAM; return whether that went well."""
    group = root / f"{_GROUP}{os.getpid()}"
    try:
        group.mkdir()
        # The kernel makes these files with the group; elsewhere writing them would mean nothing.
        if not (group / limit).exists():
            group.rmdir()
            return False
        (group / limit).write_text(str(num_bytes))
        (group / "cgroup.procs").write_text(str(os.getpid()))
    except OSError:
        return False
    return True


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


@dataclass
class Peak:
    """Most RAM seen."""

    num_bytes: int = 0


@contextlib.contextmanager
def watch_ram() -> Iterator[Peak]:
    """Yield what becomes the peak of `own_ram_bytes` in the block."""
    peak, done = Peak(own_ram_bytes()), threading.Event()

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
