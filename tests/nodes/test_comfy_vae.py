"""The pack's VAE as ComfyUI's type VAE, and ComfyUI's own VAE in the pack's decode node, on a stand-in for ComfyUI.

The same in a real ComfyUI, through its own nodes, is tests/contract/test_comfyui_vae.py.
"""

import gc
import json
import os
import shutil
import weakref
from types import SimpleNamespace

import pytest
import torch
from lightx2v_pack.engine.constants import GIB
from safetensors.torch import save_file
from support import checkpoints
from support.cancel import CancelledError
from support.tensors import normal


@pytest.fixture
def vae(run, models_dir):
    (models_dir / "vae" / "wan_2.1_vae.safetensors").symlink_to(checkpoints.vae())
    return run("LightX2VLoadVAE", vae="wan_2.1_vae.safetensors")[0]


def latents(*shape):
    return normal(*shape, seed=3)


def frames(*shape):
    return torch.rand(*shape, 3, generator=torch.Generator().manual_seed(4))


def decode(run, vae, samples, tiling="off"):
    return run("LightX2VDecode", vae=vae, latent={"samples": samples}, tiling=tiling)[0]


def test_what_nodes_read_of_a_vae_is_there(vae):
    assert (vae.latent_channels, vae.latent_dim, vae.output_channels) == (16, 3, 3)
    assert [vae.upscale_ratio[0](count) for count in (0, 1, 21)] == [0, 1, 81]
    assert [vae.downscale_ratio[0](count) for count in (0, 1, 4, 5, 81)] == [0, 1, 1, 2, 21]
    assert vae.downscale_index_formula == (4, 8, 8) and not vae.not_video and vae.crop_input
    assert vae.vae_dtype == torch.float32 and vae.first_stage_model is not None
    image = torch.tensor([0.0, 0.5, 1.0])
    assert torch.equal(vae.process_output(vae.process_input(image)), image)
    # Decodes take more than encodes; both less than ComfyUI's own estimate for its own.
    decoding = vae.memory_used_decode((1, 16, 21, 60, 104), torch.bfloat16)
    encoding = vae.memory_used_encode((1, 3, 81, 480, 832), torch.bfloat16)
    assert 0 < encoding < decoding < 7000 * 60 * 104 * 64 * 2 and decoding < GIB


def test_what_newer_versions_read_of_a_vae_is_there(vae):
    assert vae.model_size() >= 1 and not vae.handles_tiling
    assert (vae.size, vae.pad_channel_value, vae.format_encoded) == (None, None, None)
    assert (vae.conv_out_channels, vae.audio_sample_rate) == (3, 44100)


def test_pictures_that_are_no_video_are_clips_of_their_own(vae):
    pictures = frames(2, 16, 24)
    expected = torch.cat([vae.encode(picture[None]) for picture in pictures])
    assert expected.shape == (2, 16, 1, 2, 3)
    assert torch.equal(vae.encode(pictures, not_video=True), expected)
    assert torch.equal(vae.encode_tiled(pictures, tile_x=512, not_video=True), expected)
    assert vae.encode(pictures).shape == (1, 16, 1, 2, 3)
    vae.not_video = True
    assert torch.equal(vae.encode(pictures), expected)


def test_a_ratio_is_a_number_for_nodes_that_know_image_vaes_only(vae):
    ratio = vae.downscale_ratio
    assert (75 // ratio) * ratio == 72 == ratio * 9 and 75 % ratio == 3 and ratio[1:] == (8, 8)


def test_vae_and_decode_node_give_the_same_frames(run, vae):
    samples = latents(2, 16, 2, 2, 4)
    found = vae.decode(samples)
    assert found.shape == (2, 5, 16, 32, 3)
    assert torch.equal(found.flatten(0, 1), decode(run, vae, samples))


def test_the_report_goes_on_through_a_view(run, vae):
    found = vae.decode(latents(1, 16, 1, 4, 4))
    report = json.loads(run("LightX2VReport", image=found.reshape(-1, 32, 32, 3))[2])
    assert [stage["stage"] for stage in report["stages"]] == ["load_vae", "decode"]


def test_frames_and_latents_are_of_the_type_that_newer_versions_ask_for(run, vae, monkeypatch):
    import comfy.sd

    monkeypatch.setattr(comfy.sd.VAE, "vae_output_dtype", lambda self: torch.float16, raising=False)
    found, encoded = vae.decode(latents(1, 16, 1, 4, 4)), vae.encode(frames(1, 16, 16))
    assert found.dtype == encoded.dtype == torch.float16
    assert json.loads(run("LightX2VReport", image=found)[2])["stages"]


def test_a_checkpoint_without_a_vae_says_so_when_it_is_used(run, models_dir):
    shutil.copytree(checkpoints.repository(), models_dir / "lightx2v" / "tiny", copy_function=os.symlink)
    (models_dir / "lightx2v" / "tiny" / "distill_models" / "Wan2.1_VAE.pth").unlink()
    for other in (models_dir / "lightx2v" / "tiny").rglob("Wan2.1_VAE.pth"):
        other.unlink()
    loader = {"precision": "auto", "engine": "auto", "attention": "auto", "compile": "off"}
    vae = run("LightX2VLoadCheckpoint", checkpoint="tiny", **loader)[2]
    for use in (lambda: vae.decode(latents(1, 16, 1, 4, 4)), lambda: vae.encode(frames(1, 16, 16)), vae.get_sd):
        with pytest.raises(RuntimeError, match="VAE"):
            use()


def test_odd_cells_are_decoded_as_by_a_native_vae(run, vae):
    encoded = vae.encode(frames(2, 75, 70))
    assert encoded.shape == (1, 16, 1, 9, 8)
    assert decode(run, vae, encoded).shape == (1, 72, 64, 3)


@pytest.mark.parametrize(
    ("asked", "pixels", "tiles"),
    [
        ({}, 512, 1),
        ({"tile_x": 8, "tile_y": 8, "overlap": 2}, 64, 3),
        # The smaller of both, at least a cell of overlap, at most a fourth of a tile, at least four cells.
        ({"tile_x": 64, "tile_y": 8, "overlap": 0, "tile_t": 2, "overlap_t": 1}, 64, 3),
        ({"tile_x": 8, "tile_y": 8, "overlap": 6}, 64, 3),
        ({"tile_x": 1, "overlap": 1}, 8, 6),
    ],
    ids=str,
)
def test_tiles_are_what_a_node_asks_for(vae, shown, asked, pixels, tiles):
    """In latent cells of a decode, in pixels of an encode. Each tile reports its share of the one frame."""
    from lightx2v_pack.engine.adapters.comfy import progress

    with progress.reporting("7"):
        vae.decode_tiled(latents(1, 16, 1, 2, 19), **asked)
    assert [text for _, text in shown.texts] == ["decoding frames 0/1"] * (tiles - 1) + ["decoding frames 1/1", ""]
    shown.texts.clear()
    in_pixels = {
        name: length * 8 if name in ("tile_x", "tile_y", "overlap") else length for name, length in asked.items()
    }
    with progress.reporting("7"):
        vae.encode_tiled(frames(1, 16, 19 * 8), **in_pixels)
    assert [text for _, text in shown.texts] == ["encoding frames 0/1"] * (tiles - 1) + ["encoding frames 1/1", ""]


def test_tiles_change_the_picture_little(vae):
    samples = latents(1, 16, 2, 2, 60)
    whole, tiled = vae.decode(samples), vae.decode_tiled(samples, tile_x=34, tile_y=34, overlap=8)
    assert 0 < (tiled - whole).abs().max() < 0.01
    video = frames(5, 16, 480)
    whole, tiled = vae.encode(video), vae.encode_tiled(video, tile_x=272, tile_y=272, overlap=64)
    assert 0 < (tiled - whole).abs().max() < 0.01


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda vae: vae.decode(torch.zeros(1, 16, 4, 4)), "image latents have 4 dimensions"),
        (lambda vae: vae.decode(torch.zeros(1, 48, 1, 4, 4)), "48 channels belong to another model"),
        (lambda vae: vae.decode(SimpleNamespace(is_nested=True)), "several tensors"),
        (lambda vae: vae.decode(torch.zeros(1, 16, 1, 4, 4), vae_options={"num_chunks": 8}), "num_chunks"),
        (lambda vae: vae.decode_tiled(torch.zeros(1, 4, 4, 4), tile_x=8), "4 dimensions"),
        (lambda vae: vae.decode(torch.zeros(1, 16, 1, 4, 4).int()), "the latent's samples is int32 of shape"),
        (lambda vae: vae.decode(None), "the latent's samples is NoneType"),
        (lambda vae: vae.encode(torch.zeros(16, 16, 3)), "frames have shape"),
        (lambda vae: vae.encode(torch.zeros(1, 16, 16, 2)), "frames have shape"),
        (lambda vae: vae.encode(torch.zeros(1, 1, 1, 16, 16, 3)), "frames have shape"),
        (lambda vae: vae.encode(None), "Connect an IMAGE, such as Load Image's: the picture to encode is NoneType"),
        (lambda vae: vae.encode(torch.zeros(0, 16, 16, 3)), "the picture to encode is empty"),
        (lambda vae: vae.encode(torch.ones(1, 16, 16, 3).byte()), "is uint8 of shape"),
        (lambda vae: vae.encode(frames(1, 16, 16) * 255), "Bring the values of the picture to encode to 0 to 1"),
        (lambda vae: vae.encode(frames(1, 16, 16) * 2 - 1), "they are -0.9"),
        (lambda vae: vae.encode_tiled(frames(1, 16, 16) * float("nan")), "the picture to encode holds NaN"),
        (lambda vae: vae.encode_tiled(torch.zeros(1, 4, 16, 3)), "at least 8x8"),
        (lambda vae: vae.get_sd(), r"copy its file: .*wan_2\.1_vae\.safetensors"),
        (lambda vae: vae.first_stage_model.encoder, "VAELoader"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(vae, call, said):
    with pytest.raises((ValueError, RuntimeError, AttributeError), match=said):
        call(vae)
    assert not vae.lightx2v_handle.owner.is_loaded


def test_a_file_that_decodes_only_says_so_at_an_encode(run, models_dir):
    weights = {
        name: each for name, each in checkpoints.vae_weights().items() if name.startswith(("decoder.", "conv2."))
    }
    save_file(weights, models_dir / "vae" / "decoder.safetensors")
    vae = run("LightX2VLoadVAE", vae="decoder.safetensors")[0]
    assert vae.decode(latents(1, 16, 1, 2, 2)).shape == (1, 1, 16, 16, 3)
    with pytest.raises(RuntimeError, match="This VAE decodes only"):
        vae.encode(frames(1, 16, 16))


def test_a_cancel_passes_in_both_directions(vae, monkeypatch):
    import comfy.model_management as mm

    def cancel():
        raise CancelledError

    monkeypatch.setattr(mm, "throw_exception_if_processing_interrupted", cancel)
    for work in (lambda: vae.decode(latents(1, 16, 1, 2, 2)), lambda: vae.encode(frames(1, 16, 16))):
        with pytest.raises(CancelledError):
            work()


def test_it_is_an_entry_of_the_memory_manager_that_goes_with_it(vae):
    """ComfyUI's cache looks for `patcher` before anything was loaded."""
    owner = vae.lightx2v_handle.owner
    assert vae.patcher is owner.patcher and vae.patcher.loaded_size() == 0
    vae.encode(frames(1, 16, 16))
    assert owner.is_loaded and vae.patcher is owner.patcher
    vae.patcher.detach()
    assert not owner.is_loaded
    vae.decode(latents(1, 16, 1, 2, 2))
    assert owner.is_loaded and vae.model_size() == vae.patcher.model_size()


def test_nothing_stays_of_a_vae_that_nobody_has(run, models_dir):
    (models_dir / "vae" / "wan_2.1_vae.safetensors").symlink_to(checkpoints.vae())
    vae = run("LightX2VLoadVAE", vae="wan_2.1_vae.safetensors")[0]
    vae.decode(latents(1, 16, 1, 2, 2))
    alive = [weakref.ref(each) for each in (vae, vae.lightx2v_handle, vae.patcher)]
    import comfy.model_management as mm

    mm.current_loaded_models.clear()
    del vae
    gc.collect()
    assert [each() for each in alive] == [None] * 3


class WanVAE(torch.nn.Module):
    """As ComfyUI names the network of Wan2.1's VAE."""


class AutoencodingEngine(torch.nn.Module):
    """As it names others'."""


class NativeVAE:
    """A VAE of ComfyUI's that notes how it was asked; its frames are the brightness of the first channel."""

    def __init__(self, network=WanVAE, channels=16, axes=3):
        self.first_stage_model = network() if network else None
        self.latent_channels, self.latent_dim = channels, axes
        self.asked = []

    def decode(self, samples):
        self.asked.append({})
        frames = samples[:, :1].repeat_interleave(8, 3).repeat_interleave(8, 4).movedim(1, -1)
        return frames.repeat_interleave(4, 1)[:, 3:].expand(-1, -1, -1, -1, 3)

    def decode_tiled(self, samples, **asked):
        frames = self.decode(samples)
        self.asked[-1] = asked
        return frames


@pytest.mark.parametrize(
    ("tiling", "asked"), [("auto", {}), ("off", {}), ("on", {"tile_x": 64, "tile_y": 64, "overlap": 8})]
)
def test_a_native_vae_decodes_itself(run, tiling, asked):
    vae, samples = NativeVAE(), latents(2, 16, 3, 4, 6)
    found = decode(run, vae, samples, tiling)
    assert vae.asked == [asked]
    assert found.shape == (18, 32, 48, 3) and torch.equal(found[0, ::8, ::8, 0], samples[0, 0, 0])
    report = json.loads(run("LightX2VReport", image=found)[2])
    (stage,) = report["stages"]
    assert stage["details"]["engine"] == "ComfyUI" and stage["details"]["tiled"] is (tiling == "on")


@pytest.mark.parametrize(
    ("vae", "said"),
    [
        (lambda: NativeVAE(AutoencodingEngine, 4, 2), "AutoencodingEngine, of 4 channels of image latents"),
        (lambda: NativeVAE(AutoencodingEngine, 16, 3), "AutoencodingEngine, of 16 channels of video latents"),
        (lambda: NativeVAE(WanVAE, 48), "WanVAE, of 48 channels of video latents"),
        (lambda: NativeVAE(AutoencodingEngine, 64, 1), "of 64 channels of sound latents"),
        (lambda: NativeVAE(None), "holds no VAE"),
        (lambda: None, r"holds no VAE \(found NoneType\)"),
    ],
)
def test_another_models_vae_is_refused_by_name(run, vae, said):
    with pytest.raises(ValueError, match=said) as error:
        decode(run, vae(), latents(1, 16, 1, 4, 4))
    assert "VAELoader with wan_2.1_vae.safetensors" in str(error.value)


def test_latents_of_another_model_are_refused_before_a_native_vae_is_asked(run):
    vae = NativeVAE()
    with pytest.raises(ValueError, match="48 channels"):
        decode(run, vae, torch.zeros(1, 48, 1, 4, 4))
    assert not vae.asked
