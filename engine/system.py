"""What the machine has: the compute device, free VRAM, RAM, and how much of it may be page-locked.

And how CUDA and its libraries say that the VRAM is full.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

# Part of the RAM that may be page-locked. Windows itself stops at half of it.
_LOCKABLE_SHARE = 0.45 if sys.platform == "win32" else 0.9

# What CUDA and its libraries say instead of raising torch's own exception.
_OUT_OF_MEMORY_WORDS = (
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "Triton Error [CUDA]: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
# What cuBLAS and cuDNN say when there is no memory for a handle or a workspace, and in a few other cases.
_LIKELY_WORDS = (
    "CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate",
    "CUDNN_STATUS_NOT_INITIALIZED",
    "unable to find an engine to execute this computation",
)

_is_cpu_only = False


def use_cpu_only(is_cpu_only: bool = True) -> None:
    """Compute on the CPU although there may be a GPU, in this whole process: what ComfyUI's --cpu says."""
    global _is_cpu_only
    _is_cpu_only = is_cpu_only


def compute_device() -> torch.device:
    """Return the GPU in use, with its index, or the CPU."""
    if not _is_cpu_only and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def card_name(device: torch.device) -> str:
    """Return the card's name as torch reports it, or "CPU"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def lends_ram_to_gpu() -> bool:
    """Say whether the system lends a full GPU slow RAM instead of an error: Windows, and Linux inside of it."""
    return sys.platform == "win32" or "microsoft" in platform.release().lower()


def free_vram_bytes() -> int | None:
    """Return the VRAM this process could still take, its own cached blocks included; None without a GPU."""
    if compute_device().type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info()
    return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()


def total_ram_bytes() -> int:
    """Return the machine's RAM, or a container's share of it."""
    total: int = psutil.virtual_memory().total
    container = _container_ram()
    return min(total, container.limit_bytes) if container else total


def free_ram_bytes() -> int:
    """Return the RAM that can be taken without swapping."""
    available: int = psutil.virtual_memory().available
    container = _container_ram()
    return max(0, min(available, container.limit_bytes - container.used_bytes)) if container else available


def page_lock_limit(wanted_bytes: int | None = None) -> int:
    """Return the RAM that this process may page-lock: the system's limit, or less where `wanted_bytes` says so."""
    limit = int(total_ram_bytes() * _LOCKABLE_SHARE)
    return limit if wanted_bytes is None else min(limit, wanted_bytes)


@functools.cache
def driver_version() -> str:
    """Return the NVIDIA driver's version, or "" without one."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip().partition("\n")[0] if done.returncode == 0 else ""


@functools.cache
def cpu_name() -> str:
    """Return what the processor calls itself."""
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        if names:
            return names[0]
    return platform.processor() or platform.machine()


def release_memory(device: torch.device) -> None:
    """Give memory that nothing uses back to the system: VRAM that torch's allocator keeps, RAM that the C library does.

    glibc keeps hundreds of MB that Triton's compiler took and freed.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        # Other C libraries have no such function, and keep less.
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Say whether an exception means that the GPU's memory was full, for all that is known."""
    return is_surely_out_of_memory(error) or any(words in str(error) for words in _LIKELY_WORDS)


def is_surely_out_of_memory(error: RuntimeError) -> bool:
    """Say whether an exception can mean nothing but that the GPU's memory was full."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY_WORDS)


@dataclass(frozen=True)
class _Container:
    limit_bytes: int
    used_bytes: int
    """Without the cached file contents, which give way."""


@dataclass(frozen=True)
class _ControlGroups:
    """How Linux keeps the RAM of control groups: a folder a group, in it a file each."""

    root: str
    """Where the hierarchy is mounted, below the system's root."""
    controller: str
    """What its line in /proc/self/cgroup names."""
    limit: str
    usage: str
    cached: tuple[str, ...]
    """Lines of memory.stat."""


# https://docs.kernel.org/admin-guide/cgroup-v2.html, and version 1 of it.
_CONTROL_GROUPS = (
    _ControlGroups("sys/fs/cgroup", "", "memory.max", "memory.current", ("active_file", "inactive_file")),
    _ControlGroups(
        "sys/fs/cgroup/memory",
        "memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        ("total_active_file", "total_inactive_file"),
    ),
)


def _container_ram(system_root: Path = Path("/")) -> _Container | None:
    """Return the RAM of the control groups that this process is in; None where there is no limit.

    A limit holds for everything below its group, so the groups above this process's own count too. In a container the
    hierarchy is mounted from the container's group on, and /proc may name groups that are not to be seen.
    """
    found = []
    for groups in _CONTROL_GROUPS:
        root = system_root / groups.root
        group = _own_group(system_root, groups.controller)
        for folder in (root / group, *(root / group).parents):
            container = _read_group(folder, groups)
            if container is not None:
                found.append(container)
            if folder == root:
                break
    if not found:
        return None
    limit = min(container.limit_bytes for container in found)
    left = min(container.limit_bytes - container.used_bytes for container in found)
    return _Container(limit, limit - left)


def _own_group(system_root: Path, controller: str) -> str:
    """Return this process's group below the hierarchy of a controller ("": version 2); "" where that is not known."""
    try:
        lines = (system_root / "proc/self/cgroup").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return ""
    # number:controllers:path; the path may hold colons.
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if controller in controllers.split(","):
            # A group outside the namespace is shown as /../name.
            return "" if ".." in path.split("/") else path.strip("/")
    return ""


def _read_group(folder: Path, groups: _ControlGroups) -> _Container | None:
    try:
        limit = int((folder / groups.limit).read_text())
        usage = int((folder / groups.usage).read_text())
        lines = (folder / "memory.stat").read_text().splitlines()
        stat = {name: int(value) for name, value in (line.split() for line in lines)}
    except (OSError, ValueError):
        # No such group here, or "max".
        return None
    return _Container(limit, max(0, usage - sum(stat.get(name, 0) for name in groups.cached)))
