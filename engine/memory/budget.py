"""What this process can have of VRAM and RAM: the one place where free memory is summed, for a run and its forecast."""

from __future__ import annotations

import sys

import torch

from .. import system
from ..constants import GIB
from ..settings import HostPolicy
from .needs import Budget, Need

# Windows lends RAM to the GPU when VRAM is short, so that a run gets slow instead of failing: keep away from there.
_WINDOWS_RESERVE_BYTES = 2 * GIB // 5


def find_budget(
    device: torch.device, policy: HostPolicy, vram_budget_gib: float, held: Need, *, assume_evicted: bool
) -> Budget:
    """Return the memory that a run can have.

    Args:
        device: that computes.
        policy: of the host.
        vram_budget_gib: all that the process may reserve; 0 is no limit.
        held: what the pack holds now; the run uses it again or gives it back.
        assume_evicted: count what else torch holds in this process as free, as before the host made room for the run.
    """
    ram = system.free_ram_bytes() + held.ram
    if device.type != "cuda":
        return Budget(vram=None, ram=ram)
    free, _ = torch.cuda.mem_get_info()
    total = torch.cuda.get_device_properties(device).total_memory
    reserved, allocated = torch.cuda.memory_reserved(), torch.cuda.memory_allocated()
    staying = 0 if assume_evicted else max(allocated - held.vram, 0)
    left_to_others = policy.reserved_vram_bytes or (_WINDOWS_RESERVE_BYTES if sys.platform == "win32" else 0)
    limits = {"--reserve-vram" if policy.reserved_vram_bytes else "": free + reserved - left_to_others}
    limits["the share that torch was allowed"] = int(total * _memory_fraction())
    if vram_budget_gib:
        limits["vram_budget_gib of LightX2V Offload"] = int(vram_budget_gib * GIB)
    name, vram = min(limits.items(), key=lambda item: item[1])
    return Budget(vram=max(vram - staying, 0), ram=ram, vram_limit=name)


def _memory_fraction() -> float:
    """Return the share of the device's memory that torch lets this process take; older versions do not tell."""
    return float(getattr(torch.cuda, "get_per_process_memory_fraction", lambda: 1.0)())
