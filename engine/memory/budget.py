"""What this process can have of VRAM and RAM: the one place where free memory is summed, for a run and its forecast."""

from __future__ import annotations

import sys

import torch

from .. import system
from ..constants import GIB
from ..sentences.memory import Memory
from ..settings import HostPolicy
from .needs import Budget, Need

# Windows lends RAM to the GPU when VRAM is short, so that a run gets slow instead of failing: keep away from there, as
# far as ComfyUI does (EXTRA_RESERVED_VRAM in its comfy/model_management.py, 0.3.64), and further on larger cards.
_WINDOWS_RESERVE_BYTES, _LARGE_CARD_BYTES, _LARGE_CARD_RESERVE_BYTES = 600 * 2**20, 15 * GIB, 700 * 2**20


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
    asked = policy.reserved_vram_bytes
    left_to_others = _usual_reserve(total) if asked is None else asked
    limits = {"--reserve-vram" if asked else "": free + reserved - left_to_others}
    limits[Memory.SHARE_OF_TORCH()] = int(total * _memory_fraction())
    if vram_budget_gib:
        limits[Memory.BUDGET_OF_OFFLOAD()] = int(vram_budget_gib * GIB)
    name, vram = min(limits.items(), key=lambda item: item[1])
    return Budget(vram=max(vram - staying, 0), ram=ram, vram_limit=name)


def _usual_reserve(total_vram: int) -> int:
    """Return the VRAM that is left to others where nobody says how much."""
    if sys.platform != "win32":
        return 0
    return _LARGE_CARD_RESERVE_BYTES if total_vram > _LARGE_CARD_BYTES else _WINDOWS_RESERVE_BYTES


def _memory_fraction() -> float:
    """Return the share of the device's memory that torch lets this process take; older versions do not tell."""
    return float(getattr(torch.cuda, "get_per_process_memory_fraction", lambda: 1.0)())
