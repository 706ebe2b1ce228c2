"""What is given beside the text: frames with their mask, and rows of CLIP Vision."""

import logging
from dataclasses import replace

import pytest
import torch
from lightx2v_pack.engine import pipeline
from lightx2v_pack.engine.checkpoints.files import resolve_transformer
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.latent_space import denormalize
from lightx2v_pack.engine.memory.clip import Clip
from lightx2v_pack.engine.settings import EngineSettings, OffloadSettings, SamplingSettings
from lightx2v_pack.engine.stages.given import Given, with_given
from support.checkpoints import A14B_I2V_SIZES, FLF2V_SIZES, I2V_SIZES, distilled
from support.engine import conditioning_of
from support.tensors import normal

CLIP = Clip(width=80, height=64, num_frames=9)
TEXT = conditioning_of(normal(21, 64, seed=7))
LATENTS = normal(1, 16, 3, 8, 10, seed=1)
ROWS = normal(1, 9, 32, seed=2)


def architecture_of(sizes):
    return resolve_transformer(distilled("fp8", sizes)).format.architecture


def given(sizes=I2V_SIZES, clip=CLIP, entries=(TEXT,), **parts):
    parts = {"latents": denormalize(LATENTS), "mask": torch.zeros(1, 1, 1, 8, 10), "rows": ROWS} | parts
    return with_given(entries, Given(**parts), architecture_of(sizes), clip)


def test_the_mask_goes_before_normalized_latents_and_is_1_where_a_frame_is_given():
    (entry,) = given()
    assert entry.image_latents.shape == (20, 3, 8, 10) and entry.image_latents.dtype == torch.float32
    torch.testing.assert_close(entry.image_latents[4:], LATENTS[0], rtol=1e-5, atol=1e-5)
    assert entry.image_latents[:4, 0].eq(1).all() and entry.image_latents[:4, 1:].eq(0).all()
    assert torch.equal(entry.image_tokens, ROWS[0]) and torch.equal(entry.text, TEXT.text)


def test_a_mask_of_four_frames_a_latent_frame_is_taken_as_it_is():
    mask = torch.rand(1, 4, 3, 8, 10, generator=torch.Generator().manual_seed(0))
    (entry,) = given(mask=mask)
    assert torch.equal(entry.image_latents[:4], 1 - mask[0])


def test_without_a_mask_no_frame_is_given():
    (entry,) = given(mask=None)
    assert not entry.image_latents[:4].any()


def test_entries_are_dealt_out_to_clips():
    batch = replace(CLIP, batch=2)
    two = torch.cat([denormalize(LATENTS), denormalize(LATENTS + 1)])
    other = conditioning_of(normal(5, 64, seed=9))
    first, second = given(clip=batch, latents=two)
    assert first.text is second.text and not torch.equal(first.image_latents, second.image_latents)
    first, second = given(clip=batch, entries=(TEXT, other))
    assert torch.equal(first.image_latents, second.image_latents) and second.text is other.text
    first, second = given(clip=batch, rows=torch.cat([ROWS, ROWS + 1]))
    assert torch.equal(second.image_tokens, ROWS[0] + 1)
    first, second = given(clip=batch, mask=torch.cat([torch.zeros(1, 1, 1, 8, 10), torch.ones(1, 1, 1, 8, 10)]))
    assert first.image_latents[:4].any() and not second.image_latents[:4].any()


def test_a_model_without_an_image_branch_has_no_rows(caplog):
    with caplog.at_level(logging.WARNING):
        (entry,) = given(A14B_I2V_SIZES)
    assert entry.image_tokens is None and "has no effect" in caplog.text
    caplog.clear()
    assert given(A14B_I2V_SIZES, rows=None)[0].image_tokens is None and not caplog.text


def test_rows_that_are_missing_are_named(caplog):
    with caplog.at_level(logging.WARNING):
        assert given(rows=None)[0].image_tokens is None
    assert "no clip_vision_output" in caplog.text


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"latents": None}, "Connect the conditioning of 'LightX2V Image To Video'"),
        ({"latents": LATENTS[0]}, r"latents of shape \[16, 3, 8, 10\]"),
        ({"latents": LATENTS.repeat(1, 3, 1, 1, 1)}, "48 channels are those of the VAE of Wan2.2 5B"),
        ({"latents": LATENTS[..., :8]}, "the image is for 64x64 with 9 frames, the latent for 80x64 with 9"),
        ({"latents": LATENTS[:, :, :2]}, "the image is for 80x64 with 5 frames, the latent for 80x64 with 9"),
        ({"latents": LATENTS.repeat(2, 1, 1, 1, 1)}, "2 images, the latent 1 clip"),
        ({"latents": LATENTS.index_fill(2, torch.tensor(1), torch.inf)}, "NaN or infinity"),
        ({"mask": torch.zeros(1, 1, 4, 8, 10)}, "concat_mask has shape"),
        ({"mask": torch.zeros(1, 2, 3, 8, 10)}, "concat_mask has shape"),
        ({"mask": torch.zeros(1, 3, 8, 10)}, "concat_mask has shape"),
        ({"latents": LATENTS.int()}, "concat_latent_image is int32 of shape"),
        ({"latents": [LATENTS]}, "Use 'LightX2V Image To Video'.*concat_latent_image is list"),
        ({"latents": "a.png"}, "concat_latent_image is str"),
        ({"mask": 0.5}, "Use 'LightX2V Image To Video'.*concat_mask is float"),
        ({"mask": torch.full((1, 1, 1, 8, 10), 255)}, "concat_mask is 255 to 255; expected numbers from 0 to 1"),
        ({"mask": torch.full((1, 4, 3, 8, 10), -0.5)}, "concat_mask is -0.5 to -0.5"),
        ({"mask": torch.full((1, 4, 3, 8, 10), torch.nan)}, "concat_mask is nan to nan"),
        ({"mask": torch.zeros(1, 4, 0, 8, 10)}, "concat_mask has shape"),
        ({"rows": ROWS.long()}, "Load clip_vision_h.safetensors.*clip_vision_output is int64 of shape"),
        ({"rows": ROWS * torch.nan}, "clip_vision_output holds NaN"),
        ({"rows": ROWS[..., :24]}, r"clip_vision_h.safetensors.*shape \[1, 9, 24\]; expected \[1, rows, 32\]"),
        ({"rows": normal(1, 9, 1024)}, "Width 1024 is that of ViT-L"),
        ({"rows": ROWS[0]}, r"shape \[9, 32\]"),
    ],
)
def test_what_does_not_fit_is_a_sentence(parts, words):
    with pytest.raises(ValueError, match=words):
        given(**parts)


def test_more_frames_than_there_are_positions_are_refused():
    assert given(FLF2V_SIZES, rows=normal(1, 18, 32))[0].image_tokens.shape == (18, 32)
    with pytest.raises(ValueError, match="27 rows, and this checkpoint knows the positions of 18"):
        given(FLF2V_SIZES, rows=normal(1, 27, 32))


def sampled(sizes, entries):
    handle = pipeline.load_transformer(distilled("fp8", sizes), settings=EngineSettings(), offload=OffloadSettings())
    return pipeline.sample(
        handle, entries, pipeline.empty_latent(80, 64, 9), SamplingSettings(seed=3, steps=1), hooks=Hooks()
    )


def test_a_clip_is_made_from_an_image_and_counts_its_rows_in_the_plan():
    latents = sampled(I2V_SIZES, given())
    assert latents.isfinite().all() and not torch.equal(latents, sampled(I2V_SIZES, given(mask=None)))
    plans = [pipeline.report_of(sampled(I2V_SIZES, given(rows=normal(1, n, 32)))) for n in (9, 18)]
    ram = [plan["stages"][-1]["details"]["plan"]["needs"]["sample"]["ram_bytes"] for plan in plans]
    assert ram[1] - ram[0] == 2 * I2V_SIZES.num_layers * 9 * I2V_SIZES.dim * 2


def test_an_image_to_video_model_without_an_image_is_refused_before_anything_loads():
    with pytest.raises(ValueError, match="this checkpoint is image-to-video"):
        sampled(I2V_SIZES, [TEXT])
