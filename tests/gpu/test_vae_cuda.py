"""The portable VAE decoder on a GPU: the picture of the CPU, and memory that does not grow with time."""

import pytest
import torch
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.latent_space import denormalize
from lightx2v_pack.engine.memory.tiles import Tile
from lightx2v_pack.engine.stages.decode import decode_video
from lightx2v_pack.tools import make_tiny_checkpoint as tiny
from support.checkpoints import vae
from support.decoders import load_decoder
from support.gpu_memory import peak_of
from support.tensors import normal

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

SIZES = tiny.TinySizes(vae_dim=24)
TILE = Tile(size=16, overlap=4)


def load(device):
    return load_decoder(vae(".pth", torch.float32, SIZES), device)


def clip(frames, height, width):
    return denormalize(normal(16, frames, height, width, seed=4))


@pytest.mark.parametrize("tile", [None, TILE], ids=str)
def test_16_bits_on_the_gpu_agree_with_float32_on_the_cpu(tile):
    """Measured on an H200 in bfloat16, of a range of 1: mean 0.003, most 0.023, whole and tiled."""
    latents = clip(2, 12, 20)
    on_gpu = decode_video(load("cuda"), latents, tile=tile, hooks=Hooks())
    on_cpu = decode_video(load("cpu"), latents, tile=tile, hooks=Hooks())
    assert on_gpu.device.type == "cpu" and on_gpu.dtype == torch.float32
    difference = (on_gpu - on_cpu).abs()
    assert difference.mean() < 0.01 and difference.max() < 0.1


def test_tiles_leave_the_picture_as_it_is():
    """But for BF16 roundings, which differ with the shape that a convolution is given."""
    decoder, latents = load("cuda"), clip(3, 24, 60)
    whole = decode_video(decoder, latents, tile=None, hooks=Hooks())
    difference = (decode_video(decoder, latents, tile=Tile(size=34, overlap=8), hooks=Hooks()) - whole).abs()
    assert difference.mean() < 0.004 and difference.max() < 0.06


def test_frames_are_copied_before_their_memory_is_used_again():
    """Frames travel to the CPU while the next ones are made: the same bits as when each is waited for."""
    decoder, latents = load("cuda"), clip(6, 30, 52)
    features = decoder.prepare(latents, Hooks())
    expected = torch.cat([frames.cpu() for frames in decoder.decode_chunks(features, Hooks())]).clamp(0, 1)
    for _ in range(3):
        assert torch.equal(decode_video(decoder, latents, tile=None, hooks=Hooks()), expected)


def test_peak_memory_depends_on_the_tile_and_not_on_the_number_of_frames():
    decoder = load("cuda")

    def peak(frames, tile):
        return peak_of(decode_video, decoder, clip(frames, 32, 32), tile=tile, hooks=Hooks())

    whole = peak(3, None)
    # Features at the latents' size are kept of every frame.
    assert peak(12, None) <= whole * 1.05
    assert peak(3, TILE) < 0.6 * whole


def test_unload_gives_the_memory_back():
    before = torch.cuda.memory_allocated()
    decoder = load("cuda")
    assert torch.cuda.memory_allocated() > before
    decoder.unload()
    assert torch.cuda.memory_allocated() == before
