"""Stand-ins for a smaller machine: what they refuse, and whose memory they count."""

import mmap
import threading
import time

import pytest
import torch
from lightx2v_pack.engine.constants import GIB
from lightx2v_pack.tools.bench import machine_limits

CARD = torch.device("cuda", 0)


@pytest.fixture
def card(monkeypatch):
    """Say how many GiB of the card are in use beside torch."""

    def pretend(gib):
        monkeypatch.setattr(machine_limits, "context_bytes", lambda _: int(gib * GIB))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")
        monkeypatch.setattr(machine_limits, "_gpu_processes", lambda: "python, 19900 MiB, 17")

    return pretend


def test_a_card_with_another_program_is_refused(card):
    card(0.6)
    assert machine_limits.check_alone(CARD) == int(0.6 * GIB)
    card(1.2)  # two processes, each with nothing but its context
    with pytest.raises(machine_limits.SharedCardError) as error:
        machine_limits.check_alone(CARD)
    assert "1.2 GiB of NVIDIA H200 are in use beside torch; expected at most 1.0" in str(error.value)
    assert "python, 19900 MiB, 17" in str(error.value) and "CUDA_VISIBLE_DEVICES" in str(error.value)


def test_without_the_drivers_tool_programs_are_unknown(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert machine_limits._gpu_processes() == "unknown"


def test_the_peak_of_ram_is_of_the_block_alone():
    with machine_limits.watch_ram() as before:
        pass
    # From the system itself: an allocator may have as much left of an earlier test.
    with machine_limits.watch_ram() as peak, mmap.mmap(-1, 64 * 2**20) as memory:
        memory.write(bytes(len(memory)))
        time.sleep(0.1)
    assert peak.num_bytes - before.num_bytes > 0.9 * 64 * 2**20
    with machine_limits.watch_ram() as after:
        pass
    assert after.num_bytes < peak.num_bytes - 32 * 2**20


def test_weights_are_written_by_one_process_at_a_time(tmp_path):
    pytest.importorskip("fcntl")
    order = []

    def enter(name):
        with machine_limits.one_at_a_time(tmp_path / "writing"):
            order.append(name)

    with machine_limits.one_at_a_time(tmp_path / "writing"):
        other = threading.Thread(target=enter, args=("second",))
        other.start()
        other.join(0.2)
        order.append("first")
    other.join(10)
    assert order == ["first", "second"]
