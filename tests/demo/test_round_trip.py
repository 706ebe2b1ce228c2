"""The trained VAE of demo/checkpoint through the engine's encoder and decoder."""

from pathlib import Path

import torch
from lightx2v_pack.demo.train.clips import draw_clips
from lightx2v_pack.engine import pipeline
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.latent_space import normalize
from lightx2v_pack.engine.settings import OffloadSettings
from lightx2v_pack.tools.clip_content import Content, Thing, measure_content

FILE = Path(__file__).resolve().parents[2] / "demo" / "checkpoint" / "distill_models" / "Wan2.1_VAE.pth"


def test_a_clip_comes_back_as_it_was():
    """The training measured 35.8 dB over many clips. Latents have the statistics that Wan's users expect."""
    content = Content(background="black", things=(Thing(shape="circle", colour="red", motion="up"),))
    clips = draw_clips(
        [content], size=64, num_frames=17, generator=torch.Generator().manual_seed(5), device=torch.device("cpu")
    )
    frames = clips[0, :, :9].permute(1, 2, 3, 0) / 2 + 0.5
    vae = pipeline.load_vae(FILE, offload=OffloadSettings())
    latents = pipeline.encode_video(vae, frames, hooks=Hooks())
    again = pipeline.decode(vae, latents, hooks=Hooks())
    assert again.shape == frames.shape and measure_content(again) == content
    assert -10 * (again - frames).square().mean().log10() > 30
    assert 0.8 < normalize(latents).std() < 1.2 and normalize(latents).mean().abs() < 0.2
