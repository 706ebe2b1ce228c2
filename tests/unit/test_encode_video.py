"""Frames to latents through the pipeline: sizes, batches, tiles, records, and one part of the VAE at a time."""

import pytest
import torch
from lightx2v_pack.engine import pipeline
from lightx2v_pack.engine.errors import CheckpointError, NothingFitsError
from lightx2v_pack.engine.interfaces import Hooks, Host
from lightx2v_pack.engine.memory.needs import vae_weight_bytes
from lightx2v_pack.engine.memory.tiles import Tile
from lightx2v_pack.engine.settings import OffloadSettings
from lightx2v_pack.engine.wan.vae import WanVideoDecoder, WanVideoEncoder
from safetensors.torch import save_file
from support.checkpoints import vae, vae_weights
from support.wan_vae_reference import reference_means, reference_vae

CPU = torch.device("cpu")


@pytest.fixture
def handle():
    return pipeline.load_vae(vae(), offload=OffloadSettings())


def draw(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(8))


def encode(handle, frames, **options):
    return pipeline.encode_video(handle, frames, hooks=Hooks(), host=Host(device=CPU), **options)


def stages(tensor):
    return {stage["stage"]: stage for stage in pipeline.report_of(tensor)["stages"]}


def test_latents_are_un_normalized_means_of_the_middle_of_the_frames(handle):
    """70x75 pixels are 8x9 cells, and 7 frames are 5; alpha has no say. As ComfyUI's VAE."""
    frames = draw(7, 70, 75, 4)
    latents = encode(handle, frames)
    expected = reference_means(reference_vae(vae_weights()), frames[:5, 3:67, 1:73, :3])
    assert latents.shape == (1, 16, 2, 8, 9) and latents.device.type == "cpu"
    torch.testing.assert_close(latents[0], expected, rtol=0, atol=1e-5)


def test_a_batch_is_encoded_clip_by_clip_and_decodes_again(handle):
    frames = draw(2, 5, 24, 40, 3)
    latents = encode(handle, frames)
    for clip, one in zip(frames, latents, strict=True):
        assert torch.equal(encode(handle, clip)[0], one)
    assert pipeline.decode(handle, latents, hooks=Hooks(), host=Host(device=CPU)).shape == (10, 24, 40, 3)


def test_16_bit_images_are_encoded_as_what_they_are(handle):
    frames = draw(1, 16, 16, 3).half()
    assert torch.equal(encode(handle, frames), encode(handle, frames.float()))


@pytest.mark.parametrize(
    ("options", "is_tiled"),
    [({}, False), ({"tiling": "off"}, False), ({"tiling": "on"}, True), ({"tile": Tile(size=8, overlap=2)}, True)],
    ids=str,
)
def test_the_report_says_what_ran_and_what_was_planned(handle, options, is_tiled):
    frames = draw(5, 16, 80, 3)
    found = stages(encode(handle, frames, **options))
    assert list(found) == ["load_vae_encoder", "encode_video"]
    details = found["encode_video"]["details"]
    assert details["tiled"] is is_tiled and details["vae"] == "wan_2.1_vae.safetensors" and details["vae_dim"] == 8
    assert found["encode_video"]["predicted_ram_bytes"] > 0


def test_a_tile_that_is_asked_for_is_used(handle):
    """Both directions: each of two tiles is half of the frame."""
    seen = []
    hooks = Hooks(on_progress=lambda *progress: seen.append(progress))
    latents = pipeline.encode_video(handle, draw(1, 16, 112, 3), tile=Tile(size=8, overlap=2), hooks=hooks)
    assert seen == [(done, 1, "encoding frames") for done in (0, 1)]
    pipeline.decode(handle, latents, tile=Tile(size=8, overlap=2), hooks=hooks)
    assert seen[2:] == [(done, 1, "decoding frames") for done in (0, 1)]


def test_records_go_on_to_the_frames(handle):
    latents = encode(handle, draw(1, 16, 16, 3))
    frames = pipeline.decode(handle, latents, hooks=Hooks(), host=Host(device=CPU))
    assert list(stages(frames)) == ["load_vae_encoder", "encode_video", "load_vae", "decode"]


def test_encoder_and_decoder_are_loaded_in_turn(handle):
    latents = encode(handle, draw(1, 16, 16, 3))
    assert isinstance(handle.owner.engine, WanVideoEncoder)
    encoder = handle.owner.engine
    encode(handle, draw(1, 16, 16, 3))
    assert handle.owner.engine is encoder
    pipeline.decode(handle, latents, hooks=Hooks(), host=Host(device=CPU))
    assert isinstance(handle.owner.engine, WanVideoDecoder)


def test_the_host_is_asked_for_the_encoders_weights(handle):
    claims = []
    pipeline.encode_video(
        handle, draw(1, 16, 16, 3), hooks=Hooks(), host=Host(device=CPU, claim=lambda *claim: claims.append(claim))
    )
    assert claims == [(handle.owner, vae_weight_bytes("encode", 8), 0)]


def test_a_file_that_decodes_only_is_loaded_and_says_so_at_the_first_encode(tmp_path):
    weights = {name: tensor for name, tensor in vae_weights().items() if name.startswith(("decoder.", "conv2."))}
    save_file(weights, tmp_path / "decoder.safetensors")
    handle = pipeline.load_vae(tmp_path / "decoder.safetensors", offload=OffloadSettings())
    with pytest.raises(CheckpointError, match="This VAE decodes only"):
        encode(handle, draw(1, 16, 16, 3))
    assert not handle.owner.is_loaded


def test_a_broken_encoder_is_an_error_of_the_loader(tmp_path):
    weights = {name: tensor for name, tensor in vae_weights().items() if name != "encoder.head.2.bias"}
    save_file(weights, tmp_path / "broken.safetensors")
    with pytest.raises(CheckpointError, match=r"The encoder in .*encoder\.head\.2\.bias"):
        pipeline.load_vae(tmp_path / "broken.safetensors", offload=OffloadSettings())


@pytest.mark.parametrize("shape", [(16, 16, 3), (1, 16, 16, 2), (1, 4, 16, 3), (0, 16, 16, 3)])
def test_what_is_no_video_is_refused(handle, shape):
    with pytest.raises(ValueError, match="frames have shape"):
        encode(handle, torch.zeros(shape))


def test_an_unknown_tiling_is_refused(handle):
    with pytest.raises(ValueError, match="tiling is 'maybe'"):
        encode(handle, draw(1, 16, 16, 3), tiling="maybe")


def test_without_ram_nothing_is_loaded(handle, monkeypatch):
    from lightx2v_pack.engine import system

    monkeypatch.setattr(system, "free_ram_bytes", lambda: 1000)
    with pytest.raises(NothingFitsError, match="encoding them takes"):
        encode(handle, draw(5, 16, 16, 3))
    assert not handle.owner.is_loaded
