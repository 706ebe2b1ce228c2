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


VERSION_2 = ("sys/fs/cgroup", "memory.max", "memory.current", "anon 5\nactive_file 30\ninactive_file 20\n")
VERSION_1 = (
    "sys/fs/cgroup/memory",
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    "active_file 1\ntotal_active_file 30\ntotal_inactive_file 20\n",
)


def control_group(root, version, path, limit, usage=300):
    """Make a control group as Linux shows it."""
    mount, limit_file, usage_file, stat = version
    folder = root / mount / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in ((limit_file, f"{limit}\n"), (usage_file, f"{usage}\n"), ("memory.stat", stat)):
        (folder / name).write_text(content)


def processes_group(root, *lines):
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "self" / "cgroup").write_text("".join(f"{line}\n" for line in lines))


@pytest.mark.parametrize("version", [VERSION_2, VERSION_1], ids=["version 2", "version 1"])
def test_ram_of_a_container_without_its_file_cache(tmp_path, version):
    assert system._container_ram(tmp_path) is None
    control_group(tmp_path, version, "", 1000)
    assert system._container_ram(tmp_path) == system._Container(1000, 250)
    control_group(tmp_path, version, "", "max")
    assert system._container_ram(tmp_path) is None


@pytest.mark.parametrize(
    ("version", "line", "path"),
    [
        (VERSION_2, "0::/user.slice/run-7.scope", "user.slice/run-7.scope"),
        (VERSION_2, "0::/system.slice/a:b.service", "system.slice/a:b.service"),
        (VERSION_1, "4:memory:/slurm/uid_0/job_7", "slurm/uid_0/job_7"),
        (VERSION_1, "4:cpu,memory,pids:/job", "job"),
    ],
)
def test_the_limit_of_the_group_that_the_process_is_in(tmp_path, version, line, path):
    processes_group(tmp_path, "12:pids:/elsewhere", "1:name=systemd:/x", line)
    control_group(tmp_path, version, "", 2**63, usage=9000)
    control_group(tmp_path, version, path, 700)
    control_group(tmp_path, version, "elsewhere", 10)
    assert system._container_ram(tmp_path) == system._Container(700, 250)
    # Limits of the groups above hold too, for all that is used there.
    control_group(tmp_path, version, path.partition("/")[0], 800, usage=790)
    is_same = "/" not in path
    assert system._container_ram(tmp_path) == (system._Container(800, 740) if is_same else system._Container(700, 640))


@pytest.mark.parametrize("line", ["0::/../outside", "0::/not/to/be/seen", "0::/", "no colons", "4:memory:/x"])
def test_a_group_that_is_not_to_be_seen_leaves_what_is_mounted(tmp_path, line):
    processes_group(tmp_path, line)
    control_group(tmp_path, VERSION_2, "", 900)
    (tmp_path / "sys/fs/outside").mkdir()
    assert system._container_ram(tmp_path) == system._Container(900, 250)


def test_both_versions_side_by_side(tmp_path):
    processes_group(tmp_path, "4:memory:/job", "0::/scope")
    control_group(tmp_path, VERSION_1, "job", 700)
    control_group(tmp_path, VERSION_2, "scope", "max")
    assert system._container_ram(tmp_path) == system._Container(700, 250)
    control_group(tmp_path, VERSION_2, "scope", 600)
    assert system._container_ram(tmp_path) == system._Container(600, 250)


@pytest.mark.parametrize("content", ["", "lots\n", "-\n", "9" * 5000])
def test_a_limit_that_is_no_number_is_none(tmp_path, content):
    control_group(tmp_path, VERSION_2, "", 900)
    (tmp_path / "sys/fs/cgroup/memory.max").write_text(content)
    assert system._container_ram(tmp_path) is None


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
