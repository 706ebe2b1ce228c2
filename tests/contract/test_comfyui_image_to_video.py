"""Image to video with ComfyUI's own nodes: WanImageToVideo and WanFirstLastFrameToVideo, KSampler. Needs COMFYUI_DIR.

On the CPU, on tiny weights. Differences are shares of the latents' spread.
"""

from dataclasses import replace
from pathlib import Path

import pytest
from support import checkpoints
from support.checkpoints import A14B_I2V_SIZES, FLF2V_SIZES, I2V_SIZES
from support.comfy_server import ROOT, comfyui_dir, run_in_comfyui

SCRIPT = Path(__file__).parent / "in_comfy" / "image_to_video.py"
# ComfyUI's Wan takes rows of this width only.
SIZES = {
    "Wan2.1": replace(I2V_SIZES, image_dim=1280),
    "FLF2V": replace(FLF2V_SIZES, image_dim=1280, image_positions=514),
    "Wan2.2": A14B_I2V_SIZES,
}
FLOAT32 = 1e-4
# Two implementations that round activations to BF16 in different places, after four steps.
BFLOAT16 = 0.05


@pytest.fixture(scope="module")
def found():
    comfyui_dir()
    files = [
        f"{name}={checkpoints.single_file('fp8', sizes=sizes)},{checkpoints.single_file('bf16', sizes=sizes)}"
        for name, sizes in SIZES.items()
    ]
    return run_in_comfyui(SCRIPT, ROOT, checkpoints.vae(), *files)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("images", ["one", "two"])
def test_every_sampler_and_either_model_give_the_same_latents(found, name, images):
    """Of one frame and of two; the model as KSampler calls it, as ours does, and as ComfyUI computes it."""
    assert found[name][f"{images}: KSampler"] == 0
    assert found[name][f"{images}: LightX2V Sampler on ComfyUI's model"] < BFLOAT16
    assert found[name][f"{images}: KSampler on ComfyUI's model"] < BFLOAT16
    assert found[name]["two are not one"] > 2 * BFLOAT16
    assert (found[name]["CLIP Vision counts"] > 2 * BFLOAT16) == (name != "Wan2.2")


def test_the_conditioning_is_comfyuis(found):
    assert found["conditioning"] < FLOAT32
    assert found["mask"] == [[1, 0], [1, 0], [1, 0], [1, 1]]


def test_our_node_makes_the_conditioning_of_comfyuis(found):
    """Of a picture that has the size already; resizing is Wan's own in ours (test_wan.py)."""
    for latents, mask, has_size in found["our node"]:
        assert latents < FLOAT32 and mask == 0 and has_size


def test_clip_vision_sees_what_wan_shows_it(found):
    """ComfyUI rounds pixels to 8 bits before; a picture cut to its middle would be another."""
    ours, cropped, shape = found["CLIP Vision"]
    assert ours < 0.1 * cropped and ours < BFLOAT16 and shape == [1, 257, 32]
    assert found["two pictures"] == [1, 514, 32]


def test_guidance_and_a_negative_prompt_without_an_image(found):
    passes, prompts, difference = found["cfg"]
    assert passes == 8 and prompts == 1 and difference < BFLOAT16
    assert found["negative without image"] < BFLOAT16


def test_a_batch_has_one_image_or_one_a_clip(found):
    assert found["batch"] == 0
    first, like_comfyui, differs = found["an image each"]
    assert first == 0 and like_comfyui < BFLOAT16 and differs > 2 * BFLOAT16


def test_what_does_not_fit_is_a_sentence(found):
    words = {
        "no image": "Connect the conditioning of 'LightX2V Image To Video'",
        "no start image": "Connect the conditioning of 'LightX2V Image To Video'",
        "another size": "the image is for 96x48 with 5 frames, the latent for 64x48 with 5",
        "another length": "the image is for 64x48 with 9 frames, the latent for 64x48 with 5",
        "other channels": "48 channels are those of the VAE of Wan2.2 5B",
        "control video": "32 channels are those of a control video",
        "mask's place": "a control video",
        "mask's size": "concat_mask has shape [1, 1, 2, 6, 7]",
        "three images": "the conditioning has 3 images, the latent 1 clip",
        "NaN": "NaN or infinity",
        "other CLIP": "Width 1024 is that of ViT-L",
        "no CLIP output": "Connect the output of CLIPVisionEncode",
        "reference": "reference pictures",
    }
    assert set(found["refusals"]) == set(words)
    for name, sentences in found["refusals"].items():
        for sentence in sentences:
            assert sentence is not None and words[name] in sentence, (name, sentence)
    assert "771 rows" in found["three frames"] and "514" in found["three frames"]


def test_clip_vision_may_be_missing_and_is_named(found):
    (line,) = found["warned of no CLIP Vision"]
    assert "clip_vision_h" in line
    (line,) = found["warned of CLIP Vision"]
    assert "has no effect" in line
