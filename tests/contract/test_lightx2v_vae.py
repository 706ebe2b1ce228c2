"""The LightX2V engine's VAE decoders on a CPU against LightX2V's own classes, with tiny or random weights."""

import gc

import pytest
import torch
from lightx2v_pack.engine.adapters.lightx2v.vae import LightX2VVideoDecoder
from lightx2v_pack.engine.checkpoints.companions import resolve_vae
from lightx2v_pack.engine.constants import LATENT_MEAN, LATENT_STD, VAE_STRIDE
from lightx2v_pack.engine.errors import CheckpointError
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.latent_space import denormalize
from lightx2v_pack.engine.memory.tiles import Tile, split_axis
from lightx2v_pack.engine.stages.decode import decode_video
from lightx2v_pack.engine.wan.vae import WanVideoDecoder
from lightx2v_pack.tools.make_tiny_checkpoint import TinySizes
from safetensors.torch import save_file
from support import checkpoints, lightx2v_cpu
from support.alive import Snapshot, num_bytes, tensors
from support.cancel import CancelAfter, CancelledError
from support.decoders import load_decoder, loaded
from support.tensors import normal

# Bytes of what a decoder keeps beside its weights; a cached frame is larger.
SMALL = 1000
# A step of an 8-bit picture.
LEVEL = 1 / 255
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def lightx2v():
    lightx2v_cpu.import_lightx2v()


def latents(*shape):
    return normal(16, *shape, seed=4)


def build(path):
    return loaded(LightX2VVideoDecoder(resolve_vae(path), CPU))


def decode(path, clip, tile=None):
    return decode_video(build(path), denormalize(clip), tile=tile, hooks=Hooks())


def upstream(path, base_dim):
    """Return LightX2V's autoencoder for a file, and the scale that it takes."""
    from lightx2v.models.video_encoders.hf.wan.vae import _video_vae

    vae = _video_vae(str(path), z_dim=16, dim=base_dim, dtype=torch.float32).eval().requires_grad_(False)
    return vae, [torch.tensor(LATENT_MEAN), 1 / torch.tensor(LATENT_STD)]


def as_frames(images):
    """[1, 3, F, H, W] in [-1, 1] to [F, H, W, 3] in [0, 1]."""
    return (images.clamp(-1, 1)[0].permute(1, 2, 3, 0) + 1) / 2


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_whole_decode_equals_upstreams(suffix):
    path, clip = checkpoints.vae(suffix), latents(3, 8, 10)
    vae, scale = upstream(path, base_dim=8)
    expected = as_frames(vae.decode(clip[None], scale))
    torch.testing.assert_close(decode(path, clip), expected, rtol=0, atol=1e-4)


def test_whole_decode_equals_the_portable_engines():
    path, clip = checkpoints.vae(".pth"), latents(3, 8, 10)
    expected = decode_video(load_decoder(path), denormalize(clip), tile=None, hooks=Hooks())
    torch.testing.assert_close(decode(path, clip), expected, rtol=0, atol=1e-4)


def test_tiled_decode_equals_upstreams_on_the_same_tiles(tmp_path):
    # Upstream starts a tile every stride and so ends with a sliver of one; ours are of one size. The tiles before
    # the sliver are the same when upstream is given our size. Upstream clips to [-1, 1] after blending, we before:
    # with a faint picture neither clips. Half a pixel lies between the two blends, 1/32 of how far the tiles differ.
    # Where four tiles meet, upstream fades sideways twice.
    weights = dict(checkpoints.vae_weights())
    weights["decoder.head.2.weight"] = weights["decoder.head.2.weight"] / 16
    path, clip, tile = tmp_path / "vae.safetensors", latents(2, 14, 14), Tile(size=8, overlap=2)
    save_file(weights, path)
    first, second = split_axis(14, tile)
    vae, scale = upstream(path, base_dim=8)
    vae.tile_sample_min_height = vae.tile_sample_min_width = (first.stop - first.start) * VAE_STRIDE[1]
    vae.tile_sample_stride_height = vae.tile_sample_stride_width = second.start * VAE_STRIDE[1]
    sliver, corner = 2 * second.start * VAE_STRIDE[1], slice(second.start * VAE_STRIDE[1], first.stop * VAE_STRIDE[1])
    found, whole = decode(path, clip, tile), decode(path, clip)
    difference = (found - as_frames(vae.tiled_decode(clip[None], scale))).abs()[:, :sliver, :sliver]
    difference[:, corner, corner] = 0
    assert difference.max() < LEVEL
    assert (found - whole).abs().max() > 5 * LEVEL, "the tiles were no tiles"


def test_lightvae_equals_upstreams_pruned_decoder():
    from lightx2v.models.video_encoders.hf.wan.vae import WanVAE

    path, clip = checkpoints.vae(".pth", sizes=TinySizes(vae_dim=24)), latents(2, 4, 6)
    vae = WanVAE(vae_path=str(path), dtype=torch.float32, device="cpu", use_lightvae=True)
    expected = as_frames(vae.decode(clip))
    torch.testing.assert_close(decode(path, clip), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("decoder_class", [LightX2VVideoDecoder, WanVideoDecoder])
@pytest.mark.parametrize(("name", "is_scaled"), [("taew2_1", False), ("lighttaew2_1", True)])
def test_tiny_autoencoder_equals_upstreams(name, is_scaled, decoder_class, tmp_path):
    from lightx2v.models.video_encoders.hf.tae import TAEHV
    from lightx2v.models.video_encoders.hf.wan.vae_tiny import WanVAE_tiny

    torch.manual_seed(0)
    path, clip = tmp_path / f"{name}.safetensors", latents(3, 4, 6)
    save_file(TAEHV(None).state_dict(), path)
    expected = as_frames(WanVAE_tiny(str(path), dtype=torch.float32, need_scaled=is_scaled).decode(clip))
    found = decode_video(loaded(decoder_class(resolve_vae(path), CPU)), denormalize(clip), tile=None, hooks=Hooks())
    assert found.shape == (9, 32, 48, 3)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_frames_come_one_latent_at_a_time_and_nothing_stays_behind():
    decoder = build(checkpoints.vae(".pth"))
    before = Snapshot()
    chunks = decoder.decode_chunks(latents(3, 4, 6), Hooks())
    assert [len(chunk) for chunk in chunks] == [1, 4, 4]
    # Cached frames of the convolutions, full resolution ones among them.
    assert num_bytes(tensors(before.made_since())) < SMALL


def test_a_cancel_passes_between_chunks_and_the_next_decode_is_right():
    path, clip = checkpoints.vae(".pth"), latents(3, 4, 6)
    decoder, samples = build(path), denormalize(clip)
    before = Snapshot()
    with pytest.raises(CancelledError):
        decode_video(decoder, samples, tile=None, hooks=Hooks(check_interrupt=CancelAfter(1, CancelledError)))
    gc.collect()  # what the traceback holds
    assert num_bytes(tensors(before.made_since())) < SMALL
    assert torch.equal(decode_video(decoder, samples, tile=None, hooks=Hooks()), decode(path, clip))


def test_only_the_decoder_is_built():
    before, weights = Snapshot(), checkpoints.vae_weights()
    needed = sum(each.nbytes for name, each in weights.items() if not name.startswith(("encoder.", "conv1.")))
    decoder = build(checkpoints.vae(".pth"))
    assert needed <= num_bytes(tensors(before.made_since())) < needed + SMALL
    assert needed + SMALL < sum(each.nbytes for each in weights.values())
    decoder.unload()


def test_unloaded_weights_load_again():
    decoder, clip = build(checkpoints.vae(".pth")), latents(1, 4, 6)
    first = decode_video(decoder, clip, tile=None, hooks=Hooks())
    decoder.unload()
    decoder.load(Hooks())
    assert torch.equal(decode_video(decoder, clip, tile=None, hooks=Hooks()), first)


def test_an_incomplete_file_is_refused_by_name(tmp_path):
    weights = dict(checkpoints.vae_weights())
    del weights["decoder.upsamples.3.resample.1.bias"]
    save_file(weights, tmp_path / "vae.safetensors")
    with pytest.raises(CheckpointError, match=r"decoder\.upsamples\.3\.resample\.1\.bias"):
        build(tmp_path / "vae.safetensors")


def test_another_file_is_refused():
    with pytest.raises(CheckpointError):
        resolve_vae(checkpoints.single_file("bf16"))
