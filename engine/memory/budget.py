"""What this process can have of VRAM and RAM: the one place where free memory is summed, for a run and its forecast."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from .. import system
from ..constants import GIB
from .plan import Budget, HostPolicy, Need

# Windows lends RAM to the GPU when VRAM is short, so that a run gets slow instead of failing: keep away from there.
_WINDOWS_RESERVE_BYTES = 2 * GIB // 5


def _nothing(*_: Any) -> None:
    """Do nothing: what a host does that has no memory manager."""


@dataclass(frozen=True, kw_only=True)
class Host:
    """The program around the engine: what it asks of a plan, and how it makes room."""

    policy: HostPolicy = field(default_factory=HostPolicy)
    claim: Callable[[Any, int], None] = _nothing
    """Called before a stage with its handle and the bytes it takes beside the handle's own `num_bytes`."""
    make_room: Callable[[int], None] = _nothing
    """Called with bytes of VRAM that shall be free."""


def find_budget(policy: HostPolicy, vram_budget_gib: float, held: Need, *, others_leave: bool) -> Budget:
    """Return the memory that a run can have.

    Args:
        policy: of the host.
        vram_budget_gib: all that the process may reserve; 0 is no limit.
        held: what the pack holds now; the run uses it again or gives it back.
        others_leave: count what else torch holds in this process as free, as before the host made room for the run.
    """
    ram = system.free_ram_bytes() + held.ram
    if system.compute_device().type != "cuda":
        return Budget(vram=None, ram=ram)
    free, _ = torch.cuda.mem_get_info()
    total = torch.cuda.get_device_properties(system.compute_device()).total_memory
    reserved, allocated = torch.cuda.memory_reserved(), torch.cuda.memory_allocated()
    staying = 0 if others_leave else max(allocated - held.vram, 0)
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
