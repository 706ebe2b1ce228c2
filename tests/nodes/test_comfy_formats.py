"""CONDITIONING and LATENT between ComfyUI's nodes and the engine."""

import logging
from types import SimpleNamespace

import pytest
import torch
from lightx2v_pack.engine import report
from lightx2v_pack.engine.memory.clip import Clip


@pytest.fixture
def formats(host):
    from lightx2v_pack.engine.adapters.comfy import formats

    return formats


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_conditioning_goes_round(formats):
    rows = torch.randn(1, 512, 64)
    conditioning = formats.make_conditioning(rows)
    assert conditioning[0][1] == {"pooled_output": None}
    (entry,) = formats.read_conditioning(conditioning, 64)
    assert torch.equal(entry.text, rows[0]) and entry.num_text == 512


def test_what_made_the_rows_goes_with_them(formats):
    rows = report.attach(torch.ones(1, 3, 8), [report.StageRecord(stage="encode")])
    (entry,) = formats.read_conditioning(formats.make_conditioning(rows), 8)
    assert [record.stage for record in entry.records] == ["encode"]


def test_rows_of_several_clips_are_an_entry_each(formats):
    rows = torch.stack([torch.ones(3, 8), torch.full((3, 8), 2.0)])
    first, second = formats.read_conditioning(formats.make_conditioning(rows), 8)
    assert torch.equal(first.text[:3], rows[0]) and torch.equal(second.text[:3], rows[1])


def test_half_precision_rows_become_float32(formats):
    (entry,) = formats.read_conditioning([[torch.ones(1, 3, 8, dtype=torch.float16), {}]], 8)
    assert entry.text.dtype == torch.float32 and entry.text[:3].eq(1).all()


def test_one_prompt_for_everything_is_plain_and_several_are_not(formats):
    rows = torch.zeros(1, 2, 4)
    assert formats.is_plain([[rows, {"pooled_output": None}]])
    assert not formats.is_plain([[rows, {}], [rows, {}]])


@pytest.mark.parametrize("key", ["area", "mask", "hooks", "start_percent", "end_percent", "control", "strength"])
def test_what_comfyuis_samplers_heed_is_not_plain(formats, key):
    assert not formats.is_plain([[torch.zeros(1, 2, 4), {"pooled_output": None, key: 0.5}]])


@pytest.mark.parametrize("conditioning", [[], None, ()])
def test_an_empty_conditioning_is_refused(formats, conditioning):
    with pytest.raises(ValueError, match=r"conditioning is empty; expected the output of 'LightX2V Text Encode'"):
        formats.check_text(conditioning)


ROWS = torch.zeros(1, 2, 4)


@pytest.mark.parametrize(
    ("conditioning", "found"),
    [
        (ROWS, "the conditioning is float32 of shape [1, 2, 4]"),
        ({"a": 1}, "the conditioning is dict"),
        ("text", "the conditioning is str"),
        ([[None, {}]], "entry 1 of the conditioning is [NoneType, dict]"),
        ([["text", {}]], "entry 1 of the conditioning is [str, dict]"),
        ([ROWS], "entry 1 of the conditioning is float32 of shape [1, 2, 4]"),
        ([[ROWS]], "entry 1 of the conditioning is list"),
        ([[ROWS, {}], [ROWS, None]], "entry 2 of the conditioning is [float32 of shape [1, 2, 4], NoneType]"),
        ([[ROWS, {}], {}], "entry 2 of the conditioning is dict"),
        ([[ROWS.long(), {}]], "the text of the conditioning is int64 of shape [1, 2, 4]"),
        ([[ROWS > 0, {}]], "the text of the conditioning is bool of shape [1, 2, 4]"),
    ],
)
def test_what_is_no_conditioning_is_named(formats, conditioning, found):
    with pytest.raises(ValueError) as error:
        formats.check_text(conditioning)
    assert str(error.value).startswith("Connect 'LightX2V Text Encode', or CLIPTextEncode") and found in str(
        error.value
    )


@pytest.mark.parametrize(
    ("extras", "said"),
    [
        (
            {"area": (0, 0, 0, 0)},
            r"Move the conditioning's area into the video, which is 64x48 with 5 frames: it is \(0,",
        ),
        ({"area": (4, 4, 6, 0)}, "Move the conditioning's area"),
        ({"area": (50, 50, 100, 100)}, "Move the conditioning's area"),
        ({"area": (4, 4, -1, 0)}, "Move the conditioning's area"),
        ({"area": (1, 4, 4, 2, 0, 0)}, "Move the conditioning's area"),
        ({"area": ("percentage", 0.5, 0.5, 0.5, 0.0, 0.0, 1.0)}, "Move the conditioning's area"),
        ({"area": ("percentage", 0.5, 0.5, 0.0, 0.0)}, "or ConditioningSetAreaPercentageVideo for shares"),
        ({"area": "x"}, "the conditioning's area is x; expected height, width, y and x"),
        ({"area": (4, 4, 0)}, "the conditioning's area is"),
        ({"area": (4, torch.nan, 0, 0)}, "the conditioning's area is"),
        ({"mask": "x"}, "Use ConditioningSetMask with a MASK: the conditioning's mask is str"),
        ({"mask": torch.ones(6, 8)}, r"mask is float32 of shape \[6, 8\]; expected \[masks, height, width\]"),
        ({"mask": torch.ones(1, 0, 8)}, "mask is float32 of shape"),
        (
            {"mask": torch.ones(1, 64, 64), "set_area_to_bounds": True, "mask_strength": 1.0},
            r"Set set_cond_area of 'Conditioning \(Set Mask\)' to 'default': it is 'mask bounds'",
        ),
        ({"strength": torch.nan}, "Set the conditioning's strength to a number: it is nan"),
        ({"mask_strength": torch.inf}, "Set the conditioning's mask_strength to a number"),
        ({"strength": "1"}, "strength to a number: it is 1"),
    ],
)
def test_a_place_that_is_none_is_named(formats, extras, said):
    with pytest.raises(ValueError, match=said):
        formats.check_places(extras, Clip(width=64, height=48, num_frames=5))


@pytest.mark.parametrize(
    "extras",
    [
        {},
        {"area": (4, 4, 5, 7), "strength": 0.5},
        {"area": (600, 800, 0, 0), "strength": 1},
        {"area": [1, 4, 4, 1, 0, 0]},
        {"area": ("percentage", 1.0, 0.5, 0.5, 0.0, 0.4, 0.9)},
        {"mask": torch.ones(1, 90, 130), "mask_strength": 1.0, "set_area_to_bounds": False},
        {"mask": torch.zeros(1, 2, 6, 8), "strength": 0.0},
    ],
)
def test_a_place_in_the_video_is_none_of_our_business(formats, extras):
    formats.check_places(extras, Clip(width=64, height=48, num_frames=5))


@pytest.mark.parametrize(
    ("latent", "found"),
    [
        (None, "the latent is NoneType"),
        (torch.zeros(1, 16, 1, 2, 2), "the latent is float32 of shape [1, 16, 1, 2, 2]"),
        ([], "the latent is list"),
        ({}, "the latent is an empty one"),
        ({"noise_mask": 1, "batch_index": 0}, "the latent is one with noise_mask, batch_index"),
        ({"samples": None}, "the latent's samples is NoneType"),
        ({"samples": [0.0]}, "the latent's samples is list"),
        ({"samples": torch.zeros(1, 16, 1, 2, 2, dtype=torch.int64)}, "samples is int64 of shape [1, 16, 1, 2, 2]"),
        ({"samples": torch.zeros(1, 16, 1, 2, 2, dtype=torch.complex64)}, "samples is complex64 of shape"),
        ({"samples": torch.zeros(1, 16, 1, 2, 2).to(torch.float8_e4m3fn)}, "samples is float8_e4m3fn of shape"),
        ({"samples": torch.zeros(1, 16, 1, 2, 2).to_sparse()}, "samples is float32 (cpu, sparse_coo) of shape"),
        ({"samples": torch.zeros(1, 16, 1, 2, 2, device="meta")}, "samples is float32 (meta, strided) of shape"),
    ],
)
def test_what_is_no_latent_is_named(formats, latent, found):
    with pytest.raises(ValueError) as error:
        formats.latent_samples(latent)
    assert str(error.value).startswith("Connect 'LightX2V Empty Latent'") and found in str(error.value)


@pytest.mark.parametrize("shape", [(1, 4, 60, 104), (1, 16, 60, 104), (1, 4, 3, 60, 104), (1, 16, 3, 61, 104)])
def test_latents_of_other_models_are_refused(formats, shape):
    with pytest.raises(ValueError, match=r"latent samples have shape .* expected \[batch, 16, frames"):
        formats.latent_samples({"samples": torch.zeros(shape)})


def test_nested_latents_are_refused(formats):
    with pytest.raises(ValueError, match="holds several tensors"):
        formats.latent_samples({"samples": SimpleNamespace(is_nested=True)})


def test_samples_are_replaced_in_a_copy_and_other_keys_stay(formats):
    latent = {"samples": torch.zeros(1, 16, 1, 2, 2), "batch_index": [3], "downscale_ratio_spacial": 8}
    made = torch.ones(1, 16, 1, 2, 2)
    out = formats.replace_samples(latent, made)
    assert out["samples"] is made and out["batch_index"] == [3] and out["downscale_ratio_spacial"] == 8
    assert not latent["samples"].any()


def test_a_noise_mask_gets_one_warning(formats, caplog):
    formats.warn_unused({"samples": None})
    formats.warn_unused({"samples": None, "noise_mask": torch.ones(1)})
    assert len(warnings_of(caplog)) == 1


def test_other_places_in_a_batch_get_one_warning(formats, caplog):
    clips = torch.zeros(2, 16, 1, 2, 2)
    formats.warn_unused({"samples": clips, "batch_index": [0, 1]})
    formats.warn_unused({"samples": clips, "batch_index": [0, 0]})
    (warning,) = warnings_of(caplog)
    assert "seed + i" in warning
