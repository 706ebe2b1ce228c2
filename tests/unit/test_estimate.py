"""Predicted seconds and bytes, against what was measured (docs/benchmarks.md) and what others published."""

from pathlib import Path

import pytest
from lightx2v_pack.engine.constants import GIB
from lightx2v_pack.engine.logic import estimate
from lightx2v_pack.engine.logic.checkpoint_files import TransformerFiles
from lightx2v_pack.engine.logic.checkpoint_formats import TransformerFormat, WanArchitecture
from lightx2v_pack.engine.logic.estimate import Clip, History, Setup, decode_bytes, ram_bytes, sampling_vram_bytes

WAN_14B = WanArchitecture(
    dim=5120, ffn_dim=13824, num_heads=40, num_layers=40, in_dim=16, out_dim=16, freq_dim=256, text_dim=4096
)
TOKENS_480P, TOKENS_720P = 32_760, 75_600
CLIP_480P = Clip(width=832, height=480, num_frames=81, tokens=TOKENS_480P)
CLIP_720P = Clip(width=1280, height=720, num_frames=81, tokens=TOKENS_720P)
H200, RTX_4090 = "NVIDIA H200", "NVIDIA GeForce RTX 4090"


def setup(
    card=H200, engine="lightx2v", scheme="fp8", attention="sage_attn2", matmul=None, compiled=False, offload="none"
):
    return Setup(
        card=card,
        architecture=WAN_14B,
        engine=engine,
        scheme=scheme,
        attention=attention,
        matmul=matmul or {"fp8": "scaled_mm", "int8": "int_mm", "bf16": "bf16"}[scheme],
        is_compiled=compiled,
        offload=offload,
    )


def files(scheme="fp8", num_bytes=15_010_000_000):
    layout = TransformerFormat(scheme=scheme, scale_suffix=None, prefix="", architecture=WAN_14B)
    return TransformerFiles(files=(Path("x"),), layout="single", format=layout, num_bytes=num_bytes)


@pytest.mark.parametrize(
    ("what", "tokens", "measured"),
    [
        (setup(attention="sdpa_cudnn"), TOKENS_480P, 3.03),
        (setup(attention="sdpa_cudnn"), TOKENS_720P, 11.96),
        (setup(), TOKENS_480P, 2.60),
        (setup(), TOKENS_720P, 8.46),
        (setup(compiled=True), TOKENS_480P, 2.02),
        (setup(scheme="bf16"), TOKENS_480P, 2.45),
        (setup(engine="portable"), TOKENS_480P, 2.98),
        (setup(engine="portable", compiled=True), TOKENS_480P, 2.01),
        (setup(engine="portable", scheme="bf16", attention="sdpa_cudnn"), TOKENS_480P, 3.18),
    ],
)
def test_an_h200_is_predicted_within_a_tenth_of_what_was_measured(what, tokens, measured):
    assert estimate.step_seconds(what, tokens) == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize(
    ("clip", "published"),
    # I2V-14B on the same blocks: 4 steps, text, image encoder and decode. Source: LightX2V's benchmark page.
    [(CLIP_480P, 63), (CLIP_720P, 171)],
)
def test_an_rtx_4090_is_predicted_within_a_quarter_of_what_is_published(clip, published):
    duration = History().predict(setup(card=RTX_4090, offload="block"), clip, is_tiled=True)
    assert duration.basis == "estimate"
    assert duration.seconds == pytest.approx(published, rel=0.25)


def test_a_card_without_fp8_is_slower_with_fp8_weights_than_with_int8():
    ampere = "NVIDIA GeForce RTX 3090"
    fp8 = estimate.step_seconds(setup(card=ampere, matmul="dequantize"), TOKENS_480P)
    int8 = estimate.step_seconds(setup(card=ampere, scheme="int8"), TOKENS_480P)
    assert fp8 > 1.5 * int8


@pytest.mark.parametrize("card", ["CPU", "NVIDIA GeForce RTX 4090 Laptop GPU", "AMD Radeon RX 7900 XTX"])
def test_an_unlisted_card_gets_no_number(card):
    duration = History().predict(setup(card=card), CLIP_480P, is_tiled=False)
    assert (duration.seconds, duration.basis) == (None, "unknown")


@pytest.mark.parametrize("name", estimate.CARDS)
def test_listed_rates_are_consistent(name):
    rates = estimate.CARDS[name]
    assert rates.int8 == pytest.approx(4 * rates.bf16, rel=0.03) or rates.int8 == pytest.approx(
        2 * rates.bf16, rel=0.03
    )
    assert rates.fp8 is None or rates.bf16 * 1.9 < rates.fp8 <= rates.int8


def test_a_run_of_the_same_kind_goes_before_the_estimate():
    history = History()
    history.add_steps(setup(), TOKENS_480P, [[9.0, 4.0, 5.0, 6.0]])
    history.add_decode(H200, CLIP_480P, 2.5, is_tiled=False)
    same = history.predict(setup(), CLIP_480P, is_tiled=False)
    assert (same.basis, same.step_seconds, same.seconds) == ("measured", 5.0, pytest.approx(4 * 5.0 + 2.5))
    larger = history.predict(setup(), CLIP_720P, is_tiled=False)
    ratio = estimate.step_seconds(setup(), TOKENS_720P) / estimate.step_seconds(setup(), TOKENS_480P)
    assert (larger.basis, larger.step_seconds) == ("scaled", pytest.approx(5.0 * ratio))
    assert history.predict(setup(offload="block"), CLIP_480P, is_tiled=False).basis == "estimate"


def test_a_first_run_makes_an_unlisted_card_known():
    history = History()
    history.add_steps(setup(card="CPU"), 1000, [[2.0]])
    assert history.predict(setup(card="CPU"), CLIP_480P, is_tiled=False).basis == "scaled"
    twice = history.predict(setup(card="CPU"), Clip(width=1, height=1, num_frames=1, tokens=2000), is_tiled=False)
    # Attention grows with the square, the rest in proportion.
    assert 2 * 2.0 < twice.step_seconds < 4 * 2.0


def test_a_batch_takes_as_often_as_long():
    one, four = (
        History().predict(
            setup(), Clip(width=832, height=480, num_frames=81, tokens=TOKENS_480P, batch=n), is_tiled=True
        )
        for n in (1, 4)
    )
    assert four.seconds == pytest.approx(4 * one.seconds)


@pytest.mark.parametrize(
    ("mode", "tokens", "allocated"),
    # Peak of what was allocated; the allocator holds more where there is room, and a reserve is on top.
    [
        ("none", TOKENS_480P, 17.4),
        ("block", TOKENS_480P, 5.0),
        ("phase", TOKENS_480P, 5.3),
        ("block", TOKENS_720P, 10.1),
    ],
)
def test_predicted_vram_covers_the_measured_peaks(mode, tokens, allocated):
    assert allocated < sampling_vram_bytes(mode, files(), tokens) / GIB < allocated * 1.4


def test_streamed_modes_need_less_vram_and_disk_needs_less_ram():
    vram = {mode: sampling_vram_bytes(mode, files(), TOKENS_480P) for mode in ("none", "block", "phase", "disk")}
    assert vram["none"] > vram["block"] == vram["disk"] > vram["phase"]
    ram = {mode: ram_bytes(mode, files(), CLIP_480P) for mode in ("none", "block", "disk")}
    assert ram["block"] / GIB == pytest.approx(13.1 + 2, abs=0.2)
    assert ram["none"] < 4 * GIB and ram["disk"] < 4 * GIB


def test_tiles_bound_the_memory_of_decoding():
    whole, tiled = (decode_bytes(CLIP_720P, 2, is_tiled=is_tiled) for is_tiled in (False, True))
    assert whole / GIB == pytest.approx(10.3, rel=0.5)
    assert tiled < whole / 3
    assert decode_bytes(CLIP_480P, 4, is_tiled=False) == 2 * decode_bytes(CLIP_480P, 2, is_tiled=False)
