"""A CUDA card as torch reports it, on a machine without one: only what decisions read."""

from types import SimpleNamespace

import torch
from lightx2v_pack.engine import system
from lightx2v_pack.engine.backends.trials import find_machine
from lightx2v_pack.engine.constants import GIB


def pretend_card(monkeypatch, name, capability, total_gib, free_gib, ram_gib=64):
    """Let torch report one card; `free_gib` of its memory and `ram_gib` of RAM can be had."""
    device = torch.device("cuda", 0)
    properties = SimpleNamespace(name=name, total_memory=total_gib * GIB, major=capability[0], minor=capability[1])
    for function, value in (
        ("is_available", True),
        ("current_device", 0),
        ("get_device_name", name),
        ("get_device_properties", properties),
        ("get_device_capability", capability),
        ("mem_get_info", (int(free_gib * GIB), int(total_gib * GIB))),
        ("memory_reserved", 0),
        ("memory_allocated", 0),
        ("get_per_process_memory_fraction", 1.0),
    ):
        monkeypatch.setattr(torch.cuda, function, lambda *_, value=value: value, raising=False)
    monkeypatch.setattr(system, "compute_device", lambda: device)
    monkeypatch.setattr(system, "free_ram_bytes", lambda: int(ram_gib * GIB))
    find_machine.cache_clear()
