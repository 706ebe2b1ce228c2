"""ComfyUI's launch flags as a memory policy."""

import pytest
from lightx2v_pack.engine.adapters.comfy.host_flags import policy_of
from lightx2v_pack.engine.constants import GIB
from lightx2v_pack.engine.settings import HostPolicy


def test_without_flags_nothing_is_asked():
    assert policy_of("NORMAL_VRAM") == HostPolicy()


@pytest.mark.parametrize(
    ("flags", "state", "prefer"),
    [
        ("--lowvram", "LOW_VRAM", "streaming"),
        ("--novram", "NO_VRAM", "least"),
        ("--highvram or --gpu-only", "HIGH_VRAM", "speed"),
        ("--cpu", "DISABLED", "speed"),
        ("of a later version", "SOME_VRAM", "speed"),
    ],
)
def test_vram_flags(flags, state, prefer):
    assert policy_of(state) == HostPolicy(prefer=prefer), flags


def test_reserved_vram_is_in_gib():
    assert policy_of("NORMAL_VRAM", reserve_vram_gib=2.5).reserved_vram_bytes == 5 * GIB // 2


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, None),
        ({"max_pinned_bytes": -1}, None),
        ({"max_pinned_bytes": 100.5}, 100),
        ({"max_pinned_bytes": 100, "is_pinning_disabled": True}, 0),
        ({"is_pinning_disabled": True}, 0),
    ],
    ids=str,
)
def test_page_locked_memory(limits, expected):
    assert policy_of("NORMAL_VRAM", **limits).pinned_limit_bytes == expected
