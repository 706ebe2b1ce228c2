"""MODEL, as ComfyUI's own nodes know it: ours through theirs, theirs through ours. Needs COMFYUI_DIR.

On the CPU, on tiny weights. Differences are shares of the latents' spread.
"""

from pathlib import Path

import pytest
from support import checkpoints
from support.comfy_server import ROOT, comfyui_dir, run_in_comfyui

SCRIPT = Path(__file__).parent / "in_comfy" / "native_model.py"
FLOAT32 = 1e-4
# Two implementations that round activations to BF16 in different places, after four steps.
BFLOAT16 = 0.05


@pytest.fixture(scope="module")
def found():
    comfyui_dir()
    return run_in_comfyui(SCRIPT, ROOT, checkpoints.single_file("fp8"), checkpoints.single_file("bf16"))


@pytest.mark.parametrize("way", ["ksampler", "custom", "advanced", "two halves", "shift 8"])
def test_every_sampler_node_gives_the_latents_of_ours(found, way):
    assert found[way] < FLOAT32


@pytest.mark.parametrize("way", ["ksampler", "custom", "advanced"])
def test_not_a_bit_is_rounded_differently(found, way):
    """A bit can grow: activations are rounded to BF16."""
    assert found[way] == 0


def test_the_usual_settings_warn_of_nothing(found):
    assert found["quiet"] == [] and found["halves are quiet"]


def test_text_is_prepared_once_a_prompt(found):
    assert found["texts"] == [4, 4, 1]


def test_the_report_says_that_comfyui_sampled(found):
    assert found["report"] == "euler (ComfyUI)"


def test_a_shift_lasts_for_its_clone_only_and_unusual_ones_are_named(found):
    assert found["shift is undone"] == 0
    assert "noise levels are 1, 0.96, 0.8889, 0.7273, 0" in found["warned of the shift"][0]
    assert found["shift of ours wins"] == 0 and found["it says so"]


def test_conditions_run_one_after_the_other(found):
    assert found["cfg"] == [8, True, True] and found["warned of cfg"]


def test_batches_odd_sizes_and_areas(found):
    passes, same, differs = found["batch"]
    assert passes == 8 and same < FLOAT32 and differs
    assert found["odd size"] == [[1, 16, 2, 7, 9], True]
    assert found["area"]


def test_inpainting_video_to_video_and_other_samplers(found):
    assert found["inpainting"] == [True, True] and found["video to video"]
    assert all(found["samplers"].values()), found["samplers"]


def test_our_sampler_does_what_the_graph_put_on_model_and_conditioning(found):
    assert found["ours heeds a mask"] == [True, 8]
    assert found["ours like ComfyUI"] < FLOAT32
    difference, calls = found["post cfg"]
    assert difference < FLOAT32 and calls == 4
    assert found["lcm by ComfyUI"] < FLOAT32 and found["batch seeds"] < FLOAT32
    difference, differs = found["batch texts"]
    assert difference < FLOAT32 and differs


def test_a_guider_of_several_conditions_is_warned_of_once(found):
    (warning,) = found["dual"]
    assert "the guider computes several conditions" in warning


def test_context_windows_are_planned_for_a_window(found):
    assert found["windows"] == [12, True, True]


def test_what_cannot_be_honoured_is_refused_by_name(found):
    words = {
        "attention patch": "attn1_patch",
        "replaced block": "dit",
        "attention override": "another attention",
        "replaced forward": "blocks.0.self_attn.forward",
        "torch.compile": "TorchCompileModel",
        "another sampling": "ModelSamplingSD3",
        "concat_latent_image": "a picture",
        "clip_vision_output": "CLIP Vision",
        "reference_latents": "reference pictures",
        "time_dim_concat": "reference frames",
        "merged into": "UNETLoader",
        "merged from": "UNETLoader",
        "saved": "cannot be saved",
        "LoRA hook": "LoraLoaderModelOnly",
        "a UNet's node": "model_channels (FreeU",
        "a part of ComfyUI's Wan": "diffusion_model.freqs load the model with",
        "unloaded between steps": "unloaded between two steps",
        "noise levels NaN": "the noise levels are 1, nan, 0; expected numbers from 1 down to 0",
        "noise levels 14.61": "the noise levels are 14.61, 2, 0; expected",
        "noise levels -0.5": "the noise levels are 1, -0.5, 0; expected",
        "text of NaN": "the text of the conditioning holds NaN",
        "text of whole numbers": "the text of the conditioning is int64 of shape",
        "text of another model": "60]; expected [1, 512, 64] from UMT5-XXL",
        "no text": "the condition 'positive' has no text",
        "an area outside": "Move the conditioning's area into the video, which is 64x48 with 5 frames",
        "a mask that is none": "Use ConditioningSetMask with a MASK: the conditioning's mask is float32 of shape [3]",
        "bounds of a mask": "Set set_cond_area of 'Conditioning (Set Mask)' to 'default'",
        "two axes of text": "conditioning has shape [20, 64]; expected [1, 512, 64]",
        "no prompt at all": "the condition 'positive' has no text",
        "noise levels of two axes": "the noise levels are float32 of shape [1, 2]",
    }
    assert set(found["refusals"]) == set(words)
    for name, sentences in found["refusals"].items():
        for sentence in sentences:
            assert sentence is not None and words[name] in sentence, (name, sentence)
    assert found["nothing loaded for them"] and found["noise levels of few kinds"] == [None] * 3
    assert found["unknown key"]
    assert "768" in found["wrong text"]


def test_a_refusal_leaves_nothing_behind(found):
    is_loaded, difference = found["after saving"]
    assert not is_loaded and difference == 0


def test_comfyuis_wan_through_our_sampler(found):
    assert found["native euler"] < FLOAT32 and found["native shift"] < FLOAT32
    assert found["native like ours"] < BFLOAT16 and found["native lcm like ours"] < BFLOAT16
    assert found["native batch"] < BFLOAT16
    assert found["native like ours with prompts joined"] < BFLOAT16 < found["both prompts count"]
    assert found["native report"] == {"sample": "ComfyUI"}


def test_a_lora_of_comfyuis_loader_applies_as_on_comfyuis_own_model(found):
    assert found["LoRA changes"] > 10 * found["LoRA like ComfyUI"] and found["LoRA like ComfyUI"] < BFLOAT16
    assert found["LoRA by KSampler"] < FLOAT32 and found["LoRA twice"] < BFLOAT16
    assert found["LoRA is undone"] == 0
    named, native = found["unnamed difference"]
    assert named == 0 and native < BFLOAT16


def test_other_models_are_refused_by_name(found):
    assert "Module (flux)" in found["not Wan"] and "16 latent channels" in found["not Wan"]


def test_the_memory_manager_has_one_entry_that_obeys(found):
    before, difference, after = found["free"]
    assert not before and difference == 0 and after
    assert found["one entry"] == 1 and found["workspace is given back"]


def test_names_for_lora_loaders_and_no_leak(found):
    assert found["names"] == [True, False]
    assert found["gone"] == [True, True, True]
