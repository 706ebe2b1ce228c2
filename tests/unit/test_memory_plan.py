import pytest
from lightx2v_pack.engine.constants import GIB
from lightx2v_pack.engine.logic.memory_plan import plan_offload, use_tiles, whole_decode_bytes

TOKENS_480P = 32_760
TOKENS_720P = 75_600


def plan(mode="auto", weights=14.5, tokens=TOKENS_480P, vram=24.0, ram=64.0):
    return plan_offload(
        mode,
        weight_bytes=int(weights * GIB),
        dim=5120,
        tokens=tokens,
        vram_bytes=None if vram is None else int(vram * GIB),
        ram_bytes=int(ram * GIB),
    )


@pytest.mark.parametrize(
    ("case", "mode"),
    [
        ({"vram": 24.0}, "none"),
        ({"vram": 24.0, "tokens": TOKENS_720P}, "block"),
        ({"vram": 16.0}, "block"),
        ({"vram": 8.0}, "block"),
        ({"vram": 8.0, "ram": 12.0}, "disk"),
        ({"vram": 24.0, "weights": 28.6}, "block"),
        ({"vram": None}, "none"),
    ],
)
def test_auto_takes_the_fastest_mode_that_fits(case, mode):
    assert plan(**case).mode == mode


@pytest.mark.parametrize("mode", ["none", "block", "phase", "disk"])
def test_a_named_mode_is_taken(mode):
    assert plan(mode, vram=6.0).mode == mode


def test_the_reason_names_the_sizes():
    assert "VRAM, 16.0 GiB free" in plan(vram=16.0).reason
    assert "14.5 GiB of RAM, 12.0 GiB free" in plan(vram=8.0, ram=12.0).reason


def test_whole_decode_estimate_covers_the_measured_peaks():
    assert 5.97 < whole_decode_bytes(480, 832, 96, 2) / GIB < 5.97 * 1.1
    assert 14.5 < whole_decode_bytes(720, 1280, 96, 2) / GIB < 14.5 * 1.1


@pytest.mark.parametrize(
    ("mode", "free", "tiled"), [("on", 99, True), ("off", 0, False), ("auto", 99, False), ("auto", 10, True)]
)
def test_auto_tiles_only_when_whole_does_not_fit(mode, free, tiled):
    assert use_tiles(mode, needed_bytes=10, free_bytes=free) is tiled
