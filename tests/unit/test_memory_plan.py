"""The memory plan at full size: for cards and computers of every kind, and what it says when nothing fits."""

import itertools
import re
from dataclasses import replace

import pytest
from lightx2v_pack.engine.backends.table import ATTENTION_BACKENDS, MATMUL_BACKENDS, Choice
from lightx2v_pack.engine.constants import GIB
from lightx2v_pack.engine.errors import NothingFitsError
from lightx2v_pack.engine.memory.clip import Clip
from lightx2v_pack.engine.memory.needs import (
    LATER_MARGIN,
    RAM_FIXED_BYTES,
    RING_BYTES,
    VAE_BASE_DIM,
    Budget,
    Need,
    activations,
    decoding_need,
    loading_need,
    resting_need,
    video_encoding_need,
    weights_ram,
)
from lightx2v_pack.engine.memory.placement import Placement
from lightx2v_pack.engine.memory.plan import Wish, plan_ranks, plan_run, plan_vae, retry_wish
from lightx2v_pack.engine.memory.tiles import Tile
from lightx2v_pack.engine.offload import reader
from lightx2v_pack.engine.settings import HostPolicy
from support.wan_14b import choose_kernels, make_sizes

P480, P720 = (832, 480), (1280, 720)
# What a desktop, the CUDA context, the system and ComfyUI leave of a card and of RAM.
CARDS = {6: 5.2, 8: 7.2, 10: 9.1, 12: 11.0, 16: 15.0, 24: 22.8, 140: 138.0}
RAMS = {16: 11.5, 32: 26.0, 64: 56.0}


def clip_of(size=P480, frames=81, batch=1):
    return Clip(width=size[0], height=size[1], num_frames=frames, batch=batch)


def sizes(precision="fp8", size=P480, frames=81, batch=1, attention="sage_attn2", **kernels):
    return make_sizes(clip_of(size, frames, batch), choose_kernels(precision, attention, **kernels))


def budget(vram=22.8, ram=56.0):
    return Budget(vram=None if vram is None else int(vram * GIB), ram=int(ram * GIB))


def decoder(tile, size=P720):
    """GiB of a decode with nothing beside it."""
    return decoding_need(clip_of(size), VAE_BASE_DIM, tile, on_gpu=True).vram / GIB


def plan_decode(clip, *arguments, **options):
    return plan_vae("decode", clip, VAE_BASE_DIM, *arguments, **options)


def plan(vram=22.8, ram=56.0, wish=None, **changes):
    return plan_run(sizes(**changes), budget(vram, ram), wish or Wish())


def placed(*arguments, **changes):
    found = plan(*arguments, **changes)
    return found.placement.mode, found.placement.resident_blocks


# Card and RAM in GiB as sold, precision, size: mode, and the least and most resident blocks.
TABLE = [
    ((6, 16, "fp8", P480, 81), "disk", (1, 8)),
    ((6, 32, "fp8", P480, 81), "block", (0, 6)),
    ((8, 16, "fp8", P480, 81), "disk", (7, 14)),
    ((8, 32, "fp8", P480, 81), "block", (4, 14)),
    ((8, 32, "int8", P480, 81), "block", (4, 14)),
    ((6, 32, "bf16", P480, 81), "disk", (0, 2)),
    ((8, 32, "bf16", P480, 81), "phase", (2, 8)),
    ((8, 64, "bf16", P480, 81), "block", (0, 6)),
    ((10, 32, "fp8", P720, 81), "block", (0, 6)),
    ((12, 32, "fp8", P720, 81), "block", (2, 12)),
    ((12, 16, "fp8", P480, 81), "block", (16, 26)),
    ((16, 16, "fp8", P480, 81), "block", (26, 36)),
    ((16, 32, "fp8", P480, 17), "block", (30, 39)),
    ((16, 64, "bf16", P720, 81), "block", (4, 14)),
    ((24, 32, "fp8", P480, 81), "none", (0, 0)),
    ((24, 32, "fp8", P720, 81), "none", (0, 0)),
    ((24, 64, "bf16", P480, 81), "block", (24, 34)),
    ((140, 16, "bf16", P720, 81), "none", (0, 0)),
]


@pytest.mark.parametrize(("computer", "mode", "blocks"), TABLE)
def test_auto_takes_the_fastest_mode_that_fits(computer, mode, blocks):
    card, ram, precision, size, frames = computer
    found = plan(CARDS[card], RAMS[ram], precision=precision, size=size, frames=frames)
    assert found.placement.mode == mode
    assert blocks[0] <= found.placement.resident_blocks <= blocks[1]


GRID = list(itertools.product(CARDS, RAMS, ("fp8", "int8", "bf16"), (P480, P720), (17, 49, 81)))


@pytest.mark.parametrize(("card", "ram", "precision", "size", "frames"), GRID)
def test_every_plan_fits_in_every_stage(card, ram, precision, size, frames):
    """Or says why not: of this grid only 720p on the smallest cards, as its activations alone take more."""
    try:
        found = plan(CARDS[card], RAMS[ram], precision=precision, size=size, frames=frames)
    except NothingFitsError:
        assert size == P720 and card <= 8 and frames > 17
        return
    assert set(found.needs) == {"encode", "load_transformer", "sample", "decode"}
    for need in found.needs.values():
        assert need.fits(found.budget)
        assert need.vram < found.budget.vram and need.ram < found.budget.ram
    # Weights need not leave for the decode, so that the next run loads nothing.
    assert found.decode.weights_stay
    assert found.needs["decode"].vram > found.needs["load_transformer"].vram


def test_the_example_workflow_fits_8_gb_with_16_gb_of_ram():
    """What such a computer has free with a desktop, a browser and ComfyUI."""
    found = plan(6.9, 10.0)
    assert found.placement.mode in ("block", "disk")
    assert plan(6.9, 6.0).placement.mode == "disk"
    assert found.decode.tile in (None, Tile())


@pytest.mark.parametrize("vram", [4.0, 5.2, 7.2, 9.1, 13.0])
def test_more_vram_keeps_more_blocks_and_streams_less_ram(vram):
    less, more = plan(vram), plan(vram + 2)
    assert more.placement.resident_blocks > less.placement.resident_blocks
    assert more.ram < less.ram and more.vram > less.vram


def test_streamed_blocks_rest_in_ram_once():
    """FP8: 40 blocks of 0.328 GiB; RAM is at most 1.15 times the checkpoint (14 GiB)."""
    found = plan(7.2, wish=Wish(mode="block"))
    assert found.needs["load_transformer"].ram / GIB == pytest.approx(40 * 0.3277 + 0.62, abs=0.01)
    assert plan(7.2, wish=Wish(mode="disk")).needs["load_transformer"].ram / GIB < 1.6


def test_stages_are_as_large_as_their_parts():
    """By hand, FP8 480p: others 0.485 GiB, two slots of 0.328; x 2, quantized 1, q|k|v 6 and attention 7 bytes."""
    found = plan(7.2, wish=Wish(mode="block"))
    weights = 0.485 + 2 * 0.328
    activations = 32_760 * 5120 * 16 / GIB
    assert found.needs["load_transformer"].vram / GIB == pytest.approx(weights, rel=0.01)
    assert found.needs["sample"].vram / GIB == pytest.approx(weights + activations, rel=0.1)
    sdpa = plan(7.2, wish=Wish(mode="block"), attention="sdpa")
    assert sdpa.needs["sample"].vram < found.needs["sample"].vram
    phase = plan(7.2, wish=Wish(mode="phase"))
    assert (found.vram - phase.vram) / GIB == pytest.approx(2 * (0.328 - 0.132), abs=0.01)


@pytest.mark.parametrize(
    ("weights", "held"),
    [(Placement(mode="none"), 0), (Placement(mode="block", resident_blocks=39), 1), (Placement(mode="disk"), 2)],
    ids=str,
)
def test_resident_blocks_load_through_a_ring(weights, held):
    """FP8 and BF16 alike: 256 MiB whatever a block takes, gone before streamed blocks (0.328 and 0.656 GiB) come."""
    for precision in ("fp8", "bf16"):
        found = sizes(precision=precision)
        loading = loading_need(found, weights, on_gpu=True).ram
        loaded = resting_need(found.weights, weights, on_gpu=True).ram
        assert weights_ram(found.weights, weights) == held * found.weights.block
        assert loaded == held * found.weights.block + RAM_FIXED_BYTES
        assert loading == max(loaded, RING_BYTES + int(0.48 * GIB))
    assert RING_BYTES == 2 * reader._NUM_THREADS * reader._PIECE_BYTES


@pytest.mark.parametrize(("precision", "allocated"), [("fp8", 5.39), ("int8", 4.67), ("bf16", 5.27)])
def test_lightx2vs_own_compute_is_planned_by_what_it_allocates(precision, allocated):
    """docs/benchmarks.md: beside the two blocks on the device, a seventh more than was measured at 480p."""
    own = plan(7.2, 64.0, precision=precision, engine="lightx2v", wish=Wish(mode="block"))
    weights = own.needs["load_transformer"].vram / GIB
    found = own.needs["sample"].vram / GIB
    assert found - weights == pytest.approx(1.15 * (allocated - weights), rel=0.02)
    assert own.needs["sample"].vram > plan(7.2, 64.0, precision=precision, wish=Wish(mode="block")).needs["sample"].vram


def test_dequantized_weights_compute_like_bf16():
    """The input of a linear is BF16 then, and one widened linear lies beside it."""
    eight_bit = sizes("fp8")
    row = next(row for row in MATMUL_BACKENDS if row.name == "dequantize")
    dequantized = replace(eight_bit.backends, matmul=Choice(task="fp8 matmul", backend=row))
    bf16, widened = activations(sizes("bf16")), activations(replace(eight_bit, backends=dequantized))
    assert widened - bf16 == 5120 * 13824 * 2
    assert widened - activations(eight_bit) > 32_760 * 5120


def test_an_fp8_file_on_a_card_without_fp8_takes_what_an_int8_file_takes():
    fp8, int8 = (sizes(precision, capability=(8, 6), fused_kernels="auto") for precision in ("fp8", "int8"))
    assert fp8.backends.requantizes and fp8.backends.matmul.name == int8.backends.matmul.name == "int_triton"
    assert activations(fp8) == activations(int8)
    assert plan_run(fp8, budget(7.2), Wish()).needs == plan_run(int8, budget(7.2), Wish()).needs


def test_in_plain_torch_requantizing_takes_a_few_chunks():
    fp8, int8 = (sizes(precision, capability=(8, 6), fused_kernels="off") for precision in ("fp8", "int8"))
    assert fp8.backends.requantizes and fp8.backends.matmul.name == "int_mm"
    assert activations(fp8) - activations(int8) == 48 * 2**20


def test_attention_in_place_saves_the_copies():
    """The output, and q and k of their own, in BF16: 6 bytes a token and unit of width."""
    in_place = sizes(attention="triton")
    assert in_place.backends.is_in_place and not sizes().backends.is_in_place
    copies = sizes(attention="triton", fused_kernels="off")
    assert copies.backends.attention.name == "triton" and not copies.backends.is_in_place
    assert activations(copies) - activations(in_place) == 32_760 * 5120 * 6


def test_every_attention_back_end_has_its_bytes():
    assert all(row.bytes > 0 for row in ATTENTION_BACKENDS)
    in_place = {row.name for row in ATTENTION_BACKENDS if row.in_place_on}
    assert (
        in_place
        == {"sage_attn2", "triton", "triton_int8"}
        == {row.name for row in ATTENTION_BACKENDS if row.in_place_bytes > 0}
    )


NAMED = ("none", "block", "phase", "disk")


@pytest.mark.parametrize("mode", NAMED)
def test_a_named_mode_is_taken_with_the_fewest_resident_blocks(mode):
    assert placed(22.8, wish=Wish(mode=mode)) == (mode, 0)


def test_a_named_mode_keeps_blocks_resident_where_ram_is_short():
    mode, blocks = placed(11.0, 9.0, wish=Wish(mode="block"))
    assert mode == "block" and blocks > 10


@pytest.mark.parametrize(
    ("mode", "vram", "ram", "advice"),
    [
        ("none", 7.2, 56.0, "Set the offload mode to 'auto': it fits then (block, "),
        ("block", 5.2, 8.0, "Set the offload mode to 'auto': it fits then (disk, "),
        ("phase", 2.9, 56.0, "Use 6"),
        ("disk", 2.9, 56.0, "Use 6"),
    ],
)
def test_a_named_mode_without_room_is_an_error(mode, vram, ram, advice):
    with pytest.raises(NothingFitsError) as error:
        plan(vram, ram, wish=Wish(mode=mode))
    text = str(error.value)
    assert f"Offload mode {mode!r} has no room for 832x480 with 81 frames in FP8" in text
    assert re.search(rf"\n  {mode}: \d+\.\d GiB of VRAM and \d+\.\d GiB of RAM\n", text)
    assert f"There are {vram} GiB of VRAM and {ram} GiB of RAM." in text
    assert advice in text


def test_the_error_lists_every_mode_and_the_largest_sizes_that_fit():
    with pytest.raises(NothingFitsError) as error:
        plan(5.2, size=P720)
    text = str(error.value)
    assert text.startswith("Use ") and text.splitlines()[1].startswith(
        "No offload mode has room for 1280x720 with 81 frames in FP8."
    )
    # Modes that need the same share a line.
    needs = dict(line.strip().split(": ") for line in text.splitlines() if line.startswith("  "))
    assert ", ".join(needs).split(", ") == list(NAMED) and len(set(needs.values())) == len(needs) > 1
    (first, second) = re.findall(r"(\d+)x(\d+) with (\d+) frames(?! in)", text)
    for width, height, frames in (map(int, first), map(int, second)):
        assert plan(5.2, size=(width, height), frames=frames)
        larger = (width, height, frames + 4) if (width, height) == P720 else (width + 32, height + 16, frames)
        with pytest.raises(NothingFitsError):
            plan(5.2, size=larger[:2], frames=larger[2])
    assert abs(int(first[0]) / int(first[1]) - 1280 / 720) < 0.05 and first[2] == "81"
    assert second[:2] == ("1280", "720")


def test_without_any_size_that_fits_the_error_says_so():
    with pytest.raises(NothingFitsError, match="No size fits"):
        plan(0.9)


def test_a_line_says_the_plan():
    assert re.fullmatch(
        r"plan: block, \d+ of 40 blocks resident, \d\.\d GiB VRAM of 7\.2 free, \d+\.\d GiB RAM of 24\.0 free; "
        r"decode (whole|tiled 64)",
        str(plan(7.2, 24.0)),
    )
    assert str(plan(138.0)).startswith("plan: resident, ")
    data = plan(7.2, 24.0).as_data()
    assert data["line"] == str(plan(7.2, 24.0)) and data["mode"] == "block" and data["num_blocks"] == 40
    assert data["needs"]["sample"]["vram_bytes"] < data["free_vram_bytes"]


@pytest.mark.parametrize(
    ("current", "vram", "ram", "frames", "is_kept"),
    [
        # Fits, and streaming costs next to nothing.
        (Placement(mode="block", resident_blocks=2), 7.2, 56, 81, True),
        (Placement(mode="block", resident_blocks=2), 22.8, 56, 81, True),
        (Placement(mode="phase"), 7.2, 56, 81, True),
        # Fits no more.
        (Placement(mode="block", resident_blocks=30), 7.2, 56, 81, False),
        (Placement(mode="none"), 7.2, 56, 81, False),
        # Few tokens: a block computes for less than its transfer.
        (Placement(mode="block", resident_blocks=2), 22.8, 56, 17, False),
        # The drive is slower than RAM.
        (Placement(mode="disk", resident_blocks=9), 7.2, 56, 81, False),
        (Placement(mode="disk", resident_blocks=2), 7.2, 6, 81, True),
        # Another limit on page-locked memory is no reason to load again.
        (Placement(mode="block", resident_blocks=2, pinned_limit_bytes=1), 7.2, 56, 81, True),
    ],
)
def test_what_is_loaded_stays_unless_it_is_clearly_worse(current, vram, ram, frames, is_kept):
    found = plan(vram, ram, frames=frames, wish=Wish(current=current)).placement
    assert (found == current) is is_kept
    if not is_kept:
        assert found == plan(vram, ram, frames=frames).placement


def test_a_little_less_memory_than_at_the_first_run_changes_nothing():
    """The first run loads kernels, whose memory is not torch's; loading 14 GB again for that would be absurd."""
    first = plan(7.2)
    peak = first.vram / GIB
    assert peak < 7.2 - 0.33
    again = plan(peak + 0.1, wish=Wish(current=first.placement))
    assert again.placement == first.placement != plan(peak + 0.1).placement
    least = plan(4.0)
    barely = least.needs["sample"].vram / GIB + 0.1
    assert plan(barely, wish=Wish(current=least.placement)).placement == least.placement
    with pytest.raises(NothingFitsError):
        plan(barely)
    held = first.needs["load_transformer"]
    decode = plan_decode(clip_of(), budget(peak + 0.1), Wish(), held, margin=LATER_MARGIN)
    assert decode.weights_stay and decode.tile == first.decode.tile
    assert plan_decode(clip_of(), budget(peak + 0.1), Wish(), held).tile != first.decode.tile


def test_launch_flags_change_auto_but_not_a_named_mode():
    streaming, least = HostPolicy(prefer="streaming"), HostPolicy(prefer="least")
    assert placed(138.0, wish=Wish(policy=streaming)) == ("block", 0)
    assert placed(138.0, wish=Wish(policy=least)) == ("phase", 0)
    assert plan(138.0, wish=Wish(policy=least)).decode.tile == Tile()
    assert placed(138.0, wish=Wish(mode="none", policy=least)) == ("none", 0)
    limited = Wish(pinned_limit_bytes=5, policy=HostPolicy(pinned_limit_bytes=3))
    assert plan(wish=limited).placement.pinned_limit_bytes == 3
    assert plan().placement.pinned_limit_bytes is None


@pytest.mark.parametrize("vram", [5.2, 7.2, 22.8, 138.0])
def test_a_retry_takes_clearly_less_vram_whatever_the_mode_was(vram):
    mode = plan(vram).placement.mode
    for wish in (Wish(), Wish(mode=mode), Wish(current=plan(vram).placement)):
        first = plan(vram, wish=wish)
        second = plan(vram, wish=retry_wish(wish, first.needs["sample"]))
        assert second.needs["sample"].vram < 0.91 * first.needs["sample"].vram
        assert second.placement.mode in ("block", "phase")
    least = plan(vram, wish=Wish(mode="phase"))
    assert plan(vram, wish=retry_wish(Wish(), least.needs["sample"])).placement == least.placement
    with pytest.raises(NothingFitsError):
        plan(2.0, wish=retry_wish(Wish(), least.needs["sample"]))


@pytest.mark.parametrize(
    ("tiling", "vram", "tile"),
    [
        ("auto", 22.8, None),
        ("auto", decoder(Tile()) + 0.4, Tile()),
        ("auto", decoder(Tile(size=48)) + 0.4, Tile(size=48)),
        ("auto", 0.1, Tile(size=32)),
        ("on", 22.8, Tile()),
        ("off", 0.1, None),
    ],
)
def test_a_decode_is_tiled_only_when_whole_does_not_fit(tiling, vram, tile):
    found = plan_decode(clip_of(size=P720), budget(vram), Wish(tiling=tiling), Need(vram=0, ram=0))
    assert found.tile == tile
    assert str(found) == (f"decode tiled {tile.size}" if tile else "decode whole")


def plan_encode(clip, *arguments, **options):
    return plan_vae("encode", clip, VAE_BASE_DIM, *arguments, **options)


def encoder(tile, size=P720):
    return video_encoding_need(clip_of(size=size), VAE_BASE_DIM, tile, on_gpu=True).vram / GIB


@pytest.mark.parametrize(
    ("tiling", "vram", "tile"),
    [
        ("auto", 22.8, None),
        ("auto", encoder(Tile()) + 0.4, Tile()),
        ("auto", encoder(Tile(size=48)) + 0.4, Tile(size=48)),
        ("auto", 0.1, Tile(size=32)),
        ("on", 22.8, Tile()),
        ("off", 0.1, None),
    ],
)
def test_an_encode_is_tiled_only_when_whole_does_not_fit(tiling, vram, tile):
    found = plan_encode(clip_of(size=P720), budget(vram), Wish(tiling=tiling), Need(vram=0, ram=0))
    assert found.tile == tile
    assert str(found) == (f"encode tiled {tile.size}" if tile else "encode whole")


def test_an_encode_takes_less_than_a_decode():
    """It has fewer layers of full size, and its frames are in RAM already: beside them, latents and two frames."""
    for tile in (None, Tile(), Tile(size=32)):
        for size in (P480, P720):
            assert 0.3 * decoder(tile, size) < encoder(tile, size) < 0.8 * decoder(tile, size)
    found = video_encoding_need(clip_of(batch=2), VAE_BASE_DIM, None, on_gpu=True)
    assert found.ram == 2 * 16 * 21 * 60 * 104 * 4 + 2 * 8 * 2**20


@pytest.mark.parametrize("stage", ["decode", "encode"])
def test_a_tile_that_was_asked_for_is_taken_until_it_ran_out_of_memory(stage):
    """Whether or not the whole would fit, or the tile does."""
    asked, held = Tile(size=40, overlap=4), Need(vram=0, ram=0)

    def find(vram, **options):
        return plan_vae(stage, clip_of(), VAE_BASE_DIM, budget(vram), Wish(tile=asked), held, **options)

    assert find(22.8).tile == find(0.1).tile == asked
    smaller = find(22.8, below=find(22.8))
    assert smaller.tile == Tile(size=32)
    assert find(22.8, below=smaller).tile == Tile(size=32)


def test_an_encode_without_ram_is_refused():
    with pytest.raises(NothingFitsError, match=r"do not fit in RAM: encoding them takes \d+\.\d GiB"):
        plan_encode(clip_of(), budget(None, 0.5), Wish(), Need(vram=0, ram=0))


def test_weights_leave_a_decode_that_does_not_fit_beside_them():
    resident = Need(vram=14 * GIB, ram=0)
    assert plan_decode(clip_of(), budget(22.8), Wish(), resident).weights_stay
    beside = plan_decode(clip_of(), budget(14.9 + decoder(Tile(), P480)), Wish(), resident)
    assert beside.weights_stay and beside.tile == Tile()
    alone = plan_decode(clip_of(), budget(14.5), Wish(), resident)
    assert not alone.weights_stay and alone.tile is None
    pinned = Need(vram=0, ram=26 * GIB)
    assert not plan_decode(clip_of(), budget(22.8, 27.0), Wish(), pinned).weights_stay


def test_too_little_ram_for_the_frames_makes_no_smaller_tiles():
    """Every tile needs the same RAM on a GPU."""
    found = plan_decode(clip_of(), budget(22.8, 0.5), Wish(), Need(vram=0, ram=0))
    assert found.tile is None and not found.weights_stay


@pytest.mark.parametrize("batch", [1, 2])
def test_frames_are_in_ram_once(batch):
    """And two chunks of four frames on their way, each page-locked and rounded up to 32 MiB."""
    found = decoding_need(clip_of(batch=batch), VAE_BASE_DIM, None, on_gpu=True)
    assert found.ram == batch * 81 * 832 * 480 * 12 + 2 * 32 * 2**20


def test_a_batch_whose_frames_do_not_fit_in_ram_is_refused_before_sampling():
    with pytest.raises(NothingFitsError) as caught:
        plan(23.0, 5.0, size=P720, batch=8)
    assert str(caught.value) == (
        "Use 5 clips of 1280x720 with 81 frames or 8 clips of 1280x720 with 57 frames or 8 clips of 1088x608 "
        "with 81 frames, or close other programs.\n"
        "The frames of 8 clips of 1280x720 with 81 frames do not fit in RAM: decoding them takes 6.8 GiB, 5.0 GiB are "
        "free."
    )
    assert plan(23.0, 5.0, size=P720, batch=5).needs["decode"].ram < 5.0 * GIB
    with pytest.raises(NothingFitsError, match="do not fit in RAM"):
        plan(23.0, 5.0, size=P720, batch=8, wish=Wish(current=plan(23.0, size=P720).placement))
    with pytest.raises(NothingFitsError, match="do not fit in RAM"):
        plan(None, 15.0, batch=40)


def test_frames_are_page_locked_within_the_limits():
    chunks = 2 * 32 * 2**20
    assert plan().decode.pins_frames
    assert plan(wish=Wish(pinned_limit_bytes=chunks)).decode.pins_frames
    assert not plan(wish=Wish(pinned_limit_bytes=chunks - 1)).decode.pins_frames
    assert not plan(wish=Wish(policy=HostPolicy(pinned_limit_bytes=0))).decode.pins_frames


def test_a_limit_that_keeps_vram_away_is_named():
    with pytest.raises(NothingFitsError, match="More VRAM is free: --reserve-vram keeps the rest"):
        plan_run(sizes(), Budget(vram=2 * GIB, ram=56 * GIB, vram_limit="--reserve-vram"), Wish())
    for precision, is_advised in (("fp8", False), ("bf16", True)):
        with pytest.raises(NothingFitsError, match="No size fits") as caught:
            plan(0.5, precision=precision)
        assert ("a checkpoint in FP8 or INT8" in str(caught.value)) == is_advised


def test_a_block_short_of_ram_is_streamed_by_phases():
    """Their smaller buffers leave VRAM for one more resident block."""
    assert placed(7.2, 12.4) == ("block", 9) and placed(6.9, 12.3) == ("phase", 9)
    assert placed(6.9, 11.8) == ("disk", 8)


def test_the_retry_of_a_decode_takes_the_next_tile_and_all_memory():
    wish, held = Wish(), Need(vram=4 * GIB, ram=0)
    whole = plan_decode(clip_of(), budget(22.8), wish, held)
    tiled = plan_decode(clip_of(), budget(22.8), wish, held, below=whole)
    smaller = plan_decode(clip_of(), budget(22.8), wish, held, below=tiled)
    assert [each.tile for each in (whole, tiled, smaller)] == [None, Tile(), Tile(size=48)]
    assert whole.weights_stay and not tiled.weights_stay and not smaller.weights_stay
    assert plan_decode(clip_of(), budget(22.8), Wish(tiling="off"), held, below=whole).tile is None


def test_without_a_gpu_weights_are_mapped():
    found = plan(None, 40.0)
    assert found.placement.mode == "none" and found.vram == 0
    assert "VRAM" not in str(found)
    assert plan(None, 12.0).placement.mode == "disk"
    with pytest.raises(NothingFitsError, match=r"There are 3\.0 GiB of RAM"):
        plan(None, 3.0)


def of_cards(*vram, wish=None, current=(), **changes):
    """Return the plan of several cards that have so many GiB each, and the sizes that it was made of."""
    wanted, wish = replace(sizes(**changes), ranks=len(vram)), wish or Wish()
    budgets = {f"GPU {index}": budget(each) for index, each in enumerate(vram)}
    least = plan_run(wanted, min(budgets.values(), key=lambda each: each.vram), wish)
    return plan_ranks(wanted, least, budgets, wish, current), wanted


def counts(plan):
    return [rank.placement.resident_blocks for rank in plan.ranks]


@pytest.mark.parametrize("frames", [17, 81])
@pytest.mark.parametrize("vram", [(7.2, 7.2), (5.2, 11.0), (11.0, 7.2), (9.1, 11.0, 5.2), (7.2, 138.0)])
def test_each_of_several_cards_keeps_the_blocks_that_it_has_room_for(vram, frames):
    plan, wanted = of_cards(*vram, frames=frames)
    assert plan.placement.mode == "block" and min(counts(plan)) == plan.placement.resident_blocks
    assert [rank.device for rank in plan.ranks] == [f"GPU {index}" for index in range(len(vram))]
    for rank in plan.ranks:
        one, _ = of_cards(*[rank.budget.vram / GIB] * len(vram), frames=frames)
        # More where weights leave for the decode anyway; one less where all of them are a mode of their own.
        assert rank.placement.resident_blocks >= counts(one)[0] - 1
        assert Need(vram=rank.sampled, ram=0).fits_vram(rank.budget)
    by_room = [count for _, count in sorted(zip(vram, counts(plan), strict=True))]
    assert by_room == sorted(by_room)
    if 138.0 in vram:
        assert counts(plan)[1] == 40
    # What is claimed of the host is of its own card, and RAM is what the one that streams most has in it.
    assert plan.claimed == (plan.ranks[0].loaded, plan.ranks[0].sampled)
    assert plan.ram >= weights_ram(wanted.weights, plan.placement, len(vram))


@pytest.mark.parametrize(
    ("vram", "wish"),
    [
        ((22.8, 138.0), Wish()),
        ((7.2, 138.0), Wish(mode="block")),
        ((7.2, 138.0), Wish(mode="phase")),
        ((7.2, 138.0), Wish(policy=HostPolicy(prefer="least"))),
        ((7.2, 138.0), Wish(failed=Need(vram=8 * GIB, ram=0))),
        ((None, None), Wish()),
    ],
)
def test_all_cards_do_the_same_where_that_is_named_or_there_is_room_for_all(vram, wish):
    wanted = replace(sizes(), ranks=2)
    budgets = {name: budget(each) for name, each in zip("ab", vram, strict=True)}
    least = plan_run(wanted, budgets["a"], wish)
    plan = plan_ranks(wanted, least, budgets, wish)
    assert plan.placements == (least.placement, least.placement)


def test_what_is_loaded_on_several_cards_stays_while_it_fits():
    first, _ = of_cards(7.2, 11.0)
    wish = Wish(current=first.placement)
    for vram, is_kept in (((7.2, 10.9), True), ((7.2, 22.0), True), ((7.2, 8.0), False)):
        plan, _ = of_cards(*vram, wish=wish, current=first.placements)
        assert (plan.placements == first.placements) is is_kept, vram
        assert plan.placement == first.placement


def test_a_line_says_each_card_s_plan_and_the_report_has_it():
    plan, _ = of_cards(7.2, 11.0, 7.2)
    few, many = counts(plan)[:2]
    assert 0 < few < many
    line = str(plan)
    assert line.startswith(f"plan: GPU 0 and GPU 2: block, {few} of 40 blocks resident, ")
    assert f"; GPU 1: block, {many} of 40 blocks resident, " in line
    assert "GiB VRAM of 11.0 free" in line and line.count("GiB RAM of 56.0 free") == 1
    ranks = plan.as_data()["ranks"]
    assert [(rank["device"], rank["resident_blocks"]) for rank in ranks] == [
        ("GPU 0", few),
        ("GPU 1", many),
        ("GPU 2", few),
    ]
    assert all(0 < rank["vram_bytes"] < rank["free_vram_bytes"] for rank in ranks)


def test_what_else_is_held_is_on_this_process_s_own_card():
    """Where another card has least, what this one's holds beside need not leave."""
    plan, _ = of_cards(138.0, 7.2)
    held = Need(vram=20 * GIB, ram=0)
    assert plan.has_room_beside(held)
    assert not of_cards(7.2, 138.0)[0].has_room_beside(held)
