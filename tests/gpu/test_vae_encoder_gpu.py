"""The VAE encoder on a GPU: the latents of the CPU, memory as planned, and frames that arrive whole."""

import pytest
import torch
from lightx2v_pack.engine import pipeline
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.memory.tiles import Tile
from lightx2v_pack.engine.settings import OffloadSettings
from lightx2v_pack.engine.stages.encode_video import encode_video
from lightx2v_pack.tools import make_tiny_checkpoint as tiny
from support.cancel import CancelAfter, Cancelled
from support.checkpoints import vae
from support.decoders import load_encoder
from support.gpu_memory import peak_of

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

SIZES = tiny.TinySizes(vae_dim=24)
TILE = Tile(size=16, overlap=4)


def load(device):
    return load_encoder(vae(".pth", torch.float32, SIZES), device)


def draw(frames, height, width):
    """Frames of so many cells."""
    return torch.rand(frames, height * 8, width * 8, 3, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("tile", [None, TILE], ids=str)
def test_16_bits_on_the_gpu_agree_with_float32_on_the_cpu(tile):
    """Latents' standard deviation is 0.36; in bfloat16 plain torch differs by 0.0037 on average and 0.03 at most."""
    frames = draw(5, 12, 20)
    on_gpu = encode_video(load("cuda"), frames, tile=tile, hooks=Hooks())
    on_cpu = encode_video(load("cpu"), frames, tile=tile, hooks=Hooks())
    assert on_gpu.device.type == "cpu" and on_gpu.dtype == torch.float32
    difference = (on_gpu - on_cpu).abs()
    assert difference.mean() < 0.008 and difference.max() < 0.1


def test_tiles_leave_the_latents_as_they_are():
    """But for BF16 roundings, which differ with the shape that a convolution is given."""
    encoder, frames = load("cuda"), draw(9, 24, 60)
    whole = encode_video(encoder, frames, tile=None, hooks=Hooks())
    difference = (encode_video(encoder, frames, tile=Tile(size=34, overlap=8), hooks=Hooks()) - whole).abs()
    assert difference.mean() < 0.008 and difference.max() < 0.1


@pytest.mark.parametrize("pins_frames", [True, False])
def test_frames_arrive_before_they_are_read_and_are_read_before_they_are_overwritten(pins_frames):
    """Frames travel to the GPU while the ones before are in work: the same bits as when all are there."""
    encoder, frames = load("cuda"), draw(17, 30, 52)
    expected = encode_video(encoder, frames.cuda(), tile=None, hooks=Hooks())
    for _ in range(3):
        found = encode_video(encoder, frames, tile=None, hooks=Hooks(), pins_frames=pins_frames)
        assert torch.equal(found, expected)


def test_a_cancel_leaves_no_copy_behind_that_writes_to_memory_of_others():
    encoder, frames = load("cuda"), draw(9, 30, 52)
    expected = encode_video(encoder, frames, tile=None, hooks=Hooks())
    for checks in (1, 2, 5):
        with pytest.raises(Cancelled):
            encode_video(encoder, frames, tile=None, hooks=Hooks(check_interrupt=CancelAfter(checks)))
        taken = [torch.zeros_like(frames[0], device="cuda") for _ in range(4)]
        torch.cuda.synchronize()
        assert not any(each.any() for each in taken)
        assert torch.equal(encode_video(encoder, frames, tile=None, hooks=Hooks()), expected)


def test_peak_memory_depends_on_the_tile_and_not_on_the_number_of_frames():
    encoder = load("cuda")

    def peak(frames, tile):
        return peak_of(encode_video, encoder, draw(frames, 32, 32), tile=tile, hooks=Hooks())

    whole = peak(9, None)
    # Features at the latents' size are kept of every latent frame.
    assert peak(45, None) <= whole * 1.05
    assert peak(9, TILE) < 0.6 * whole


@pytest.mark.parametrize("tile", [None, Tile(), Tile(size=32)], ids=str)
def test_the_plan_is_what_full_width_takes(tile):
    """Wan2.1's width at 832x480."""
    handle = pipeline.load_vae(vae(".pth", torch.bfloat16, tiny.TinySizes(vae_dim=96)), offload=OffloadSettings())
    frames = draw(9, 60, 104)
    for _ in range(2):
        latents = pipeline.encode_video(handle, frames, tiling="off", tile=tile, hooks=Hooks())
    stage = pipeline.report_of(latents)["stages"][-1]
    taken, planned = stage["peak_vram_reserved_bytes"], stage["predicted_vram_bytes"]
    assert 0.8 * planned < taken < 1.05 * planned, taken / planned


def test_unload_gives_the_memory_back():
    before = torch.cuda.memory_allocated()
    encoder = load("cuda")
    assert torch.cuda.memory_allocated() > before
    encoder.unload()
    assert torch.cuda.memory_allocated() == before
