"""Free memory, summed in one place for runs and forecasts."""

from types import SimpleNamespace

import pytest
import torch
from lightx2v_pack.engine.constants import GIB
from lightx2v_pack.engine.memory import budget
from lightx2v_pack.engine.memory.budget import find_budget
from lightx2v_pack.engine.memory.needs import Need
from lightx2v_pack.engine.settings import HostPolicy
from support.pretended_card import pretend_card

CARD, CPU = torch.device("cuda", 0), torch.device("cpu")


@pytest.fixture
def card(monkeypatch):
    """A card of 12 GiB: 5 free; torch has 6 reserved, of which 4 allocated."""
    pretend_card(monkeypatch, "NVIDIA GeForce RTX 4070", (8, 9), 12, 5, ram_gib=20)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 6 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 4 * GIB)
    return monkeypatch


def vram(held=0, assume_evicted=True, budget=0.0, reserve=None):
    policy = HostPolicy(reserved_vram_bytes=None if reserve is None else reserve * GIB)
    found = find_budget(CARD, policy, budget, Need(vram=held * GIB, ram=0), assume_evicted=assume_evicted)
    return found.vram / GIB


def test_what_torch_holds_is_free_when_others_leave(card):
    assert vram() == 11
    # Of the 4 allocated, 3 are ours; 1 belongs to a model that the host keeps.
    assert vram(held=3, assume_evicted=False) == 10
    assert vram(held=0, assume_evicted=False) == 7


def test_limits_on_what_torch_may_reserve_count(card):
    assert vram(budget=8) == 8
    assert vram(budget=8, held=3, assume_evicted=False) == 7
    assert vram(budget=100) == 11
    assert vram(reserve=2) == 9
    # What is left to others is not of the budget.
    assert vram(budget=8, reserve=2) == 8
    card.setattr(torch.cuda, "get_per_process_memory_fraction", lambda: 0.5)
    assert vram() == 6  # of the 12 the card has
    card.setattr(torch.cuda, "memory_allocated", lambda: 20 * GIB)
    assert vram(assume_evicted=False) == 0


@pytest.mark.parametrize(("total", "reserve"), [(8, 600), (12, 600), (15, 600), (16, 700), (24, 700)])
def test_windows_keeps_as_much_for_others_as_comfyui_does(card, total, reserve):
    card.setattr(budget, "sys", SimpleNamespace(platform="win32"))
    card.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=total * GIB))
    assert vram() == min(11 - reserve / 1024, total)
    # What the user says goes before that, nothing too.
    assert vram(reserve=0) == min(11, total) and vram(reserve=2) == min(9, total)


def test_an_older_torch_has_no_fraction(card):
    card.delattr(torch.cuda, "get_per_process_memory_fraction")
    assert vram() == 11


def test_ram_counts_what_is_held(card):
    assert find_budget(CARD, HostPolicy(), 0.0, Need(vram=0, ram=3 * GIB), assume_evicted=True).ram == 23 * GIB


def test_where_the_cpu_computes_there_is_ram_only(card):
    """Whatever card lies beside it."""
    found = find_budget(CPU, HostPolicy(), 5.0, Need(vram=GIB, ram=2 * GIB), assume_evicted=True)
    assert found.vram is None and found.ram == 22 * GIB
