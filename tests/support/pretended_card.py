"""A CUDA card as torch reports it, and packages beside it, on a machine without them: only what decisions read."""

from types import MappingProxyType, SimpleNamespace

import torch
from lightx2v_pack.engine import system
from lightx2v_pack.engine.adapters.lightx2v import bootstrap
from lightx2v_pack.engine.backends import trials
from lightx2v_pack.engine.constants import GIB

NO_PACKAGES = MappingProxyType({})


def pretend_card(
    monkeypatch, name, capability, total_gib, free_gib, ram_gib=64, packages=NO_PACKAGES, has_lightx2v=False
):
    """Let torch report one card; `free_gib` of its memory and `ram_gib` of RAM can be had.

    Of the optional packages those in `packages` (name -> version) are installed and no other, whatever there is here.
    No kernel has had a trial run yet.
    """
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
    monkeypatch.setattr(system, "free_ram_bytes", lambda: int(ram_gib * GIB))
    absent = {name: f"package {name} is not installed" for name in trials.OPTIONAL_PACKAGES if name not in packages}
    monkeypatch.setattr(trials, "find_packages", lambda: (packages, absent))
    monkeypatch.setattr(trials, "_outcomes", {})
    monkeypatch.setattr(bootstrap, "missing_packages", lambda: [] if has_lightx2v else ["lightx2v"])
    if has_lightx2v:
        monkeypatch.setattr(bootstrap, "unavailable_reason", lambda: None)
