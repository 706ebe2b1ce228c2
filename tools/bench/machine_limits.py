"""Stand for a smaller machine: less VRAM, less RAM; and watch what this process takes.

Imported as `lightx2v_pack.tools.bench.machine_limits`, after the script has registered the pack.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
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
# CUDA's context with nothing else takes less on every card: 0.6 GiB on an H200.
_MOST_CONTEXT_BYTES = GIB


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
        f"{taken / GIB:.1f} GiB of {torch.cuda.get_device_name(device)} are in use beside torch; expected at most "
        f"{_MOST_CONTEXT_BYTES / GIB:.1f}, this process's own CUDA context. Other programs: {_gpu_processes()}. End "
        "them, or choose another card with CUDA_VISIBLE_DEVICES."
    )


def _gpu_processes() -> str:
    """Return what the driver tells of programs on all cards, e.g. "python, 1200 MiB, 17" (its process id)."""
    command = ["nvidia-smi", "--query-compute-apps=name,used_memory,pid", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    lines = (line for line in found.stdout.splitlines() if not line.endswith(f" {os.getpid()}"))
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


@contextlib.contextmanager
def one_at_a_time(lock: Path) -> Iterator[None]:
    """Let one process at a time into the block; where the system has no such locks (Windows), every one."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


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
