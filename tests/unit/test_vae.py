"""The portable VAE decoder against diffusers' own whole decode, and latent space against diffusers' constants."""

import re
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan
from lightx2v_pack.engine import pipeline
from lightx2v_pack.engine.checkpoints.companions import resolve_vae
from lightx2v_pack.engine.checkpoints.weights import PthWeights
from lightx2v_pack.engine.errors import CheckpointError
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.latent_space import denormalize, normalize
from lightx2v_pack.engine.memory.decoder import decode_bytes
from lightx2v_pack.engine.settings import OffloadSettings
from lightx2v_pack.tools import make_tiny_checkpoint as tiny
from safetensors.torch import save_file
from support.cancel import CancelAfter, Cancelled
from support.checkpoints import scratch, single_file, vae, vae_weights
from support.decoders import load_decoder
from support.peak_bytes import PeakBytes
from support.tensors import normal
from support.wan_vae_reference import reference_vae

SIZES = tiny.DEFAULT_SIZES


def clip(frames):
    """Latents as in a LATENT."""
    return denormalize(normal(16, frames, 2, 4, seed=2))


def decode(decoder, latents):
    return torch.cat(list(chunks(decoder, latents)))


def chunks(decoder, latents, hooks=None):
    hooks = hooks or Hooks()
    for frames in decoder.decode_chunks(decoder.prepare(latents, hooks), hooks):
        yield frames.clamp(0, 1)


def write(name, weights) -> Path:
    folder = scratch() / "vae-tests"
    folder.mkdir(exist_ok=True)
    save_file(weights, folder / name)
    return folder / name


def reference_frames(weights, latents):
    """Decode whole, map to [0, 1]."""
    frames = reference_vae(weights).decode(latents[None]).sample[0]
    return (frames.permute(1, 2, 3, 0) / 2 + 0.5).clamp(0, 1)


@pytest.mark.parametrize(
    ("suffix", "dtype", "dim"),
    [
        (".pth", torch.float32, 8),
        (".safetensors", torch.float32, 8),
        (".safetensors", torch.bfloat16, 8),
        (".pth", torch.float16, 8),
        (".safetensors", torch.bfloat16, 24),
    ],
    ids=str,
)
def test_chunks_equal_the_whole_decode_of_diffusers(suffix, dtype, dim):
    sizes = tiny.TinySizes(vae_dim=dim)
    latents = clip(3)
    stored = {name: tensor.to(dtype).float() for name, tensor in vae_weights(sizes).items()}
    expected = reference_frames(stored, latents)
    frames = decode(load_decoder(vae(suffix, dtype, sizes)), latents)
    assert expected.std() > 0.1
    torch.testing.assert_close(frames, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("prefix", ["", "first_stage_model.", "vae."])
def test_a_file_without_an_encoder_and_with_a_prefix_decodes_the_same(prefix):
    decoder_only = {name: tensor for name, tensor in vae_weights().items() if name.startswith(("decoder.", "conv2."))}
    weights = {f"{prefix}{name}": tensor for name, tensor in decoder_only.items()}
    path = write(f"{prefix}decoder.safetensors", weights)
    latents = clip(2)
    assert torch.equal(decode(load_decoder(path), latents), decode(load_decoder(vae()), latents))


@pytest.mark.parametrize("dim", [8, 16])
def test_parameters_decode_as_tensors_do(dim, tmp_path):
    """As torch.save leaves them of a module's named_parameters."""
    path = vae(".pth", torch.float32, tiny.TinySizes(vae_dim=dim))
    file = tmp_path / "vae.pth"
    torch.save({name: torch.nn.Parameter(each) for name, each in torch.load(path).items()}, file)
    latents = normal(1, 16, 2, 4, 4)
    frames = [
        pipeline.decode(pipeline.load_vae(each, offload=OffloadSettings()), latents, hooks=Hooks())
        for each in (path, file)
    ]
    assert torch.equal(*frames)


def test_chunks_are_frames_of_one_then_four():
    found = list(chunks(load_decoder(vae()), clip(3)))
    assert [tuple(chunk.shape) for chunk in found] == [(1, 16, 32, 3), (4, 16, 32, 3), (4, 16, 32, 3)]
    for chunk in found:
        assert chunk.dtype == torch.float32 and not chunk.requires_grad


def test_decodes_do_not_share_state():
    """Two clips decoded in turns, chunk by chunk, are what they are alone."""
    decoder = load_decoder(vae())
    first, second = clip(3), clip(3).flip(1)
    pairs = list(zip(chunks(decoder, first), chunks(decoder, second), strict=True))
    assert torch.equal(torch.cat([one for one, _ in pairs]), decode(decoder, first))
    assert torch.equal(torch.cat([two for _, two in pairs]), decode(decoder, second))


def test_memory_grows_by_features_at_the_latents_size_only():
    """Most bytes alive at once, weights not counted; diffusers' own decode shows that growth would be seen."""
    decoder, reference = load_decoder(vae()), reference_vae(vae_weights())

    def chunked(latents):
        for _ in chunks(decoder, latents):
            pass

    def growth(decode_all):
        peaks = []
        for frames in (4, 8):
            with PeakBytes() as meter:
                decode_all(clip(frames))
            peaks.append(meter.peak)
        return peaks[1] - peaks[0]

    cells = 4 * 2 * 4
    latent_bytes, feature_bytes, video_bytes = cells * 16 * 4, cells * 4 * SIZES.vae_dim * 4, cells * 4 * 64 * 3 * 4
    assert growth(chunked) <= latent_bytes + feature_bytes
    assert growth(lambda latents: reference.decode(latents[None])) > video_bytes


@pytest.mark.parametrize(("cells", "dim"), [((8, 12), 8), ((6, 10), 24)])
def test_predicted_bytes_cover_what_is_alive(cells, dim):
    """The plan's prediction holds what copies take on a GPU, and a bit for its allocator."""
    decoder = load_decoder(vae(sizes=tiny.TinySizes(vae_dim=dim)))
    latents = normal(16, 3, *cells, seed=2)
    with PeakBytes() as meter:
        for _ in chunks(decoder, latents):
            pass
    weights = decode_bytes(0, 0, None, dim, 4)
    predicted = decode_bytes(cells[0] * 8, cells[1] * 8, None, dim, 4, num_frames=9) - weights
    assert 0.85 * predicted < meter.peak < 1.05 * predicted, meter.peak / predicted


def test_only_the_decoder_is_read_from_the_file(monkeypatch):
    read = []
    get = PthWeights.__getitem__
    monkeypatch.setattr(PthWeights, "__getitem__", lambda self, name: (read.append(name), get(self, name))[1])
    load_decoder(vae(".pth"))
    assert {name.split(".")[0] for name in read} == {"decoder", "conv2"}


def test_load_and_unload_repeat():
    decoder = load_decoder(vae())
    before = decode(decoder, clip(2))
    decoder.load(Hooks())
    decoder.unload()
    decoder.unload()
    # ComfyUI runs nodes in inference mode; what is loaded there must work outside of it too.
    with torch.inference_mode():
        decoder.load(Hooks())
    assert torch.equal(decode(decoder, clip(2)), before)


def test_an_interrupt_passes_between_chunks():
    decoder = load_decoder(vae())
    made = chunks(decoder, clip(4), Hooks(check_interrupt=CancelAfter(2 + 4)))
    # The part that sees the whole picture asks too, of each latent frame.
    assert [len(next(made)) for _ in range(2)] == [1, 4]
    with pytest.raises(Cancelled):
        next(made)
    assert len(list(chunks(decoder, clip(2)))) == 2

    decoder.unload()
    with pytest.raises(Cancelled):
        decoder.load(Hooks(check_interrupt=CancelAfter(0)))
    decoder.load(Hooks())


def test_describe_states_what_runs():
    facts = load_decoder(vae(".pth")).describe()
    assert facts == {
        "engine": "portable", "vae": "Wan2.1_VAE.pth", "vae_dim": 8, "dtype": "float32", "device": "cpu",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "tensor", "found"),
    [
        ("decoder.upsamples.5.residual.6.bias", None, ": found nothing, expected (32,)."),
        ("decoder.middle.1.proj.weight", torch.zeros(32, 32), ": found (32, 32), expected (32, 32, 1, 1)."),
        ("decoder.upsamples.1.extra", torch.zeros(1), ": found (1,), expected nothing."),
        ("conv2.weight", None, ""),
    ],
    ids=["missing", "shape", "superfluous", "missing conv2"],
)
def test_a_decoder_with_wrong_tensors_is_refused_by_name(name, tensor, found):
    changed = vae_weights() | {name: tensor}
    path = write("wrong.safetensors", {name: tensor for name, tensor in changed.items() if tensor is not None})
    with pytest.raises(CheckpointError, match=re.escape(name + found)) as error:
        load_decoder(path)
    assert str(path) in str(error.value) and "ownload" in str(error.value)


def test_other_models_are_refused_before_anything_is_loaded():
    with pytest.raises(CheckpointError, match="VAE"):
        resolve_vae(single_file("bf16"))


def test_normalize_and_denormalize_are_each_others_inverse_and_use_diffusers_constants():
    samples = clip(2)[None].repeat(2, 1, 1, 1, 1)
    config = AutoencoderKLWan(base_dim=8).config
    mean, std = (torch.tensor(config[key])[None, :, None, None, None] for key in ("latents_mean", "latents_std"))
    torch.testing.assert_close(normalize(samples), (samples - mean) / std, rtol=0, atol=1e-6)
    torch.testing.assert_close(denormalize(samples), samples * std + mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(denormalize(normalize(samples)), samples, rtol=0, atol=1e-6)
    assert torch.equal(normalize(samples[0]), normalize(samples)[0])
    assert normalize(samples.bfloat16()).dtype == torch.float32
