"""What links bring to inputs that are typed in as a rule, or that take objects of the pack: checked for every node."""

import pytest
import torch

SAMPLER = {"seed": 7, "method": "lcm", "steps": 1, "shift": 5.0}
EMPTY = {"width": 64, "height": 48, "num_frames": 5, "batch_size": 1}
OFFLOAD = {"mode": "auto", "vram_budget_gib": 0.0, "pinned_ram_limit_gib": 0.0, "vae_tiling": "auto"}
LOADER = {"checkpoint": "tiny", "precision": "auto", "engine": "auto", "attention": "auto", "compile": "off"}


class Model:
    model = None


@pytest.mark.parametrize("value", [None, "x", [], {}, object(), torch.zeros(3), float("nan"), -1, 10**400])
@pytest.mark.parametrize(
    ("node_id", "inputs", "name", "expected"),
    [
        ("LightX2VEmptyLatent", EMPTY, "width", "a whole number from 16 to 8192"),
        ("LightX2VEmptyLatent", EMPTY, "num_frames", "a whole number from 1 to 4097"),
        ("LightX2VEmptyLatent", EMPTY, "batch_size", "a whole number from 1 to 64"),
        ("LightX2VOffload", OFFLOAD, "vram_budget_gib", "a number from 0.0 to 1024.0"),
        ("LightX2VSampler", SAMPLER, "seed", "a whole number from 0 to 18446744073709551615"),
        ("LightX2VSampler", SAMPLER, "steps", "a whole number from 1 to 50"),
        ("LightX2VSampler", SAMPLER, "shift", "a number from 0.1 to 100.0"),
    ],
)
def test_what_is_no_number_is_named(run, node_id, inputs, name, expected, value):
    if node_id == "LightX2VSampler":
        inputs = inputs | {"transformer": Model(), "conditioning": [], "latent": {}}
    with pytest.raises(ValueError) as error:
        run(node_id, **inputs | {name: value})
    assert str(error.value).startswith(f"Give {name} {expected}: what comes there is ")


@pytest.mark.parametrize("value", [64.5, "64", 63.999, 65_536])
def test_a_number_that_is_not_whole_or_not_in_range_is_named(run, value):
    with pytest.raises(ValueError, match=f"Give width a whole number from 16 to 8192: what comes there is .?{value}"):
        run("LightX2VEmptyLatent", **EMPTY | {"width": value})


@pytest.mark.parametrize("value", [64, 64.0, torch.tensor(64).item()])
def test_a_whole_number_may_come_as_a_float(run, value):
    (latent,) = run("LightX2VEmptyLatent", **EMPTY | {"width": value})
    assert latent["samples"].shape == (1, 16, 2, 6, 8)


@pytest.mark.parametrize("value", [3, "x", [], torch.zeros(3), object()])
@pytest.mark.parametrize(
    ("node_id", "inputs", "name", "what"),
    [
        ("LightX2VSampler", SAMPLER, "transformer", "the MODEL of a loader"),
        ("LightX2VTextEncode", {"text": "a fox", "device": "cpu"}, "text_encoder", "the text_encoder of a LightX2V"),
        ("LightX2VLoadCheckpoint", LOADER, "offload", "the output of LightX2V Offload"),
        ("LightX2VLoadCheckpoint", LOADER, "gpus", "the output of LightX2V GPUs"),
        (
            "LightX2VImageToVideo",
            EMPTY | {"positive": [], "vae": None, "size": "x"},
            "clip_vision",
            "the output of CLIP",
        ),
    ],
)
def test_what_is_another_object_is_named(run, node_id, inputs, name, what, value):
    with pytest.raises(ValueError) as error:
        run(node_id, **inputs | {name: value})
    said = str(error.value)
    assert said.startswith(f"Connect {what}") and f" to {name}: what comes there is " in said


@pytest.mark.parametrize("value", [None, 3, ["a fox"], {"text": "a fox"}])
def test_what_is_no_text_is_named(run, value):
    class Encoder:
        owner = None

    with pytest.raises(ValueError, match="Give text a text: what comes there is "):
        run("LightX2VTextEncode", text_encoder=Encoder(), text=value, device="cpu")


def test_an_optional_link_that_brings_nothing_counts_as_none(run, models_dir):
    # The loader goes on to look for the checkpoint.
    with pytest.raises(ValueError, match="No checkpoint was found"):
        run("LightX2VLoadCheckpoint", **LOADER, offload=None, gpus=None)


def test_a_node_that_is_asked_what_it_needs_has_no_lazy_inputs_yet(host):
    node = host.classes["LightX2VSampler"]
    with pytest.raises(ValueError, match="Connect the MODEL of a loader, such as LightX2V Load Checkpoint, to "):
        node.check_lazy_status(transformer=None, conditioning=None, latent=None, **SAMPLER)


@pytest.mark.parametrize("value", [None, "x", [], torch.zeros(3)])
def test_a_strength_that_is_no_number_is_named(run, value):
    with pytest.raises(ValueError, match="Give strength a number: what comes there is "):
        run("LightX2VLora", transformer=Model(), lora="x", strength=value)
