"""What the machine has: RAM of a container, and how much may be page-locked."""

import ctypes
import sys
from types import SimpleNamespace

import psutil
import pytest
import torch
from lightx2v_pack.engine import system
from lightx2v_pack.engine.constants import GIB


@pytest.fixture
def machine(monkeypatch):
    """A machine of 64 GiB with 40 GiB free, in no container."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=64 * GIB, available=40 * GIB))
    monkeypatch.setattr(system, "_container_ram", lambda: None)
    return monkeypatch


@pytest.mark.parametrize(
    ("wanted", "share", "expected"),
    [(None, 0.9, 57.6), (None, 0.45, 28.8), (10, 0.9, 10), (100, 0.9, 57.6), (0, 0.45, 0)],
)
def test_page_locked_memory_is_limited_by_the_system_and_the_user(machine, wanted, share, expected):
    machine.setattr(system, "_LOCKABLE_SHARE", share)
    limit = system.page_lock_limit(None if wanted is None else wanted * GIB)
    assert limit == pytest.approx(expected * GIB, abs=1)


def test_a_container_has_less_than_its_machine(machine):
    assert system.total_ram_bytes() == 64 * GIB and system.free_ram_bytes() == 40 * GIB
    for limit, used, free in ((16, 10, 6), (16, 20, 0), (100, 10, 40)):
        container = system._Container(limit * GIB, used * GIB)
        machine.setattr(system, "_container_ram", lambda container=container: container)
        assert system.total_ram_bytes() == min(limit, 64) * GIB
        assert system.free_ram_bytes() == free * GIB


@pytest.mark.parametrize(
    ("group", "stat"),
    [
        (system._CONTROL_GROUPS[0], "anon 5\nactive_file 30\ninactive_file 20\n"),
        (system._CONTROL_GROUPS[1], "active_file 1\ntotal_active_file 30\ntotal_inactive_file 20\n"),
    ],
    ids=["version 2", "version 1"],
)
def test_ram_of_a_container_without_its_file_cache(tmp_path, group, stat):
    group = system._ControlGroup(tmp_path, group.limit, group.usage, group.cached)
    assert system._container_ram((group,)) is None
    (tmp_path / group.limit).write_text("1000\n")
    (tmp_path / group.usage).write_text("300\n")
    (tmp_path / "memory.stat").write_text(stat)
    assert system._container_ram((group,)) == system._Container(1000, 250)
    (tmp_path / group.limit).write_text("max\n")
    assert system._container_ram((group,)) is None


def test_the_cpu_can_be_chosen_although_there_is_a_gpu(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert system.compute_device() == torch.device("cuda", 1)
    system.use_cpu_only()
    assert system.compute_device() == torch.device("cpu")
    assert system.free_vram_bytes() is None


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"),
    reason="this C library has no malloc_trim",
)
def test_freed_memory_goes_back_to_the_system():
    """Small blocks that were freed below one in use stay with the process until it is asked for them."""

    def resident():
        return psutil.Process().memory_info().rss

    library = ctypes.CDLL(None)
    library.malloc.restype = ctypes.c_void_p
    library.malloc.argtypes, library.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
    blocks = [library.malloc(64_000) for _ in range(1000)]
    for block in blocks:
        ctypes.memset(block, 1, 64_000)
    for block in blocks[:-1]:
        library.free(block)
    held = resident()
    system.release_memory(torch.device("cpu"))
    given_back = held - resident()
    library.free(blocks[-1])
    assert given_back > 50e6
