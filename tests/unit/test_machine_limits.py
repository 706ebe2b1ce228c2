"""Stand-ins for a smaller machine: what they refuse, and whose memory they count."""

import mmap
import time

import pytest
import torch
from lightx2v_pack.engine.constants import GIB
from lightx2v_pack.tools.bench.memory import limits

CARD = torch.device("cuda", 0)


@pytest.fixture
def card(monkeypatch):
    """Say how many GiB of the card are in use beside torch."""

    def pretend(gib):
        monkeypatch.setattr(limits, "context_bytes", lambda _: int(gib * GIB))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")
        monkeypatch.setattr(limits, "_gpu_processes", lambda: "python, 19900 MiB, 17")

    return pretend


def test_a_card_with_another_program_is_refused(card):
    card(0.6)
    assert limits.check_alone(CARD) == int(0.6 * GIB)
    card(1.2)  # two processes, each with nothing but its context
    with pytest.raises(limits.SharedCardError) as error:
        limits.check_alone(CARD)
    assert "1.2 GiB of NVIDIA H200 are in use beside torch; expected at most 1.0" in str(error.value)
    assert "python, 19900 MiB, 17" in str(error.value) and "CUDA_VISIBLE_DEVICES" in str(error.value)


def test_without_the_drivers_tool_programs_are_unknown(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert limits._gpu_processes() == "unknown"


def test_the_peak_of_ram_is_of_the_block_alone():
    with limits.watch_ram() as before:
        pass
    # From the system itself: an allocator may have as much left of an earlier test.
    with limits.watch_ram() as peak, mmap.mmap(-1, 64 * 2**20) as memory:
        memory.write(bytes(len(memory)))
        time.sleep(0.1)
    assert peak.num_bytes - before.num_bytes > 0.9 * 64 * 2**20
    with limits.watch_ram() as after:
        pass
    assert after.num_bytes < peak.num_bytes - 32 * 2**20


def test_less_ram_is_reported_and_enforced_where_there_are_control_groups(tmp_path, monkeypatch):
    """What the kernel does, a folder does here: it makes the file of the limit with the group."""

    class Group(type(tmp_path)):
        def mkdir(self, *arguments, **options):
            super().mkdir(*arguments, **options)
            (self / "memory.max").write_text("max\n")

    monkeypatch.setattr(limits.psutil, "virtual_memory", limits.psutil.virtual_memory)
    monkeypatch.setattr(limits, "_MEMORY_GROUPS", ((tmp_path, "memory.max"),))
    assert not limits.limit_ram(6.0)  # nothing makes the file
    limits.remove_limits()
    assert not list(tmp_path.iterdir())

    monkeypatch.setattr(limits, "_MEMORY_GROUPS", ((Group(tmp_path), "memory.max"),))
    assert limits.limit_ram(6.0)

    (group,) = tmp_path.iterdir()
    assert (group / "memory.max").read_text().startswith(str(6 * GIB))
    assert limits.psutil.virtual_memory().total == 6 * GIB
    assert limits.psutil.virtual_memory().available <= 6 * GIB - limits.own_ram_bytes() + 2**26
