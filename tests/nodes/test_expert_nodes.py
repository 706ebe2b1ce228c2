"""Two experts through the nodes: from a loader to latents, LoRAs for one of them, and what the editor is told."""

import json
import os
import shutil

import pytest
import torch
from support import checkpoints, loras
from support.comfy_nodes import validate

LOADER = {"engine": "auto", "attention": "auto", "compile": "off"}
FILE = "wan2.2_t2v_A14b_{}_noise_fp8_4step.safetensors"
HIGH = FILE.format("high")


@pytest.fixture
def models(models_dir):
    """Both experts as two files and as a folder, two files whose names say nothing, and a LoRA."""
    shutil.copytree(
        checkpoints.expert_files("fp8"), models_dir / "diffusion_models", copy_function=os.symlink, dirs_exist_ok=True
    )
    for noise, name in (("high", "one"), ("low", "two")):
        path = checkpoints.expert_files("fp8") / FILE.format(noise)
        os.symlink(path, models_dir / "diffusion_models" / f"{name}.safetensors")
    shutil.copytree(checkpoints.experts("fp8"), models_dir / "lightx2v" / "wan22", copy_function=os.symlink)
    loras.write(
        models_dir / "loras" / "style_high_noise.safetensors",
        loras.draw(checkpoints.expert_weights("high"), size=0.3),
    )
    return models_dir


@pytest.fixture
def load(run, models):
    def load(transformer=HIGH, **inputs):
        return run("LightX2VLoadTransformer", transformer=transformer, **LOADER, **inputs)[0]

    return load


@pytest.fixture
def sample(run):
    conditioning = [[torch.randn(1, 7, 64, generator=torch.Generator().manual_seed(1)), {}]]

    def sample(transformer, batch=1, **settings):
        (empty,) = run("LightX2VEmptyLatent", width=64, height=48, num_frames=5, batch_size=batch)
        settings = {"seed": 7, "method": "lcm", "steps": 2, "shift": 5.0, "high_steps": 1} | settings
        inputs = {"transformer": transformer, "conditioning": conditioning, "latent": empty}
        return run("LightX2VSampler", **inputs, **settings)[0]

    return sample


def details(run, latent):
    (*_, text) = run("LightX2VReport", latent=latent)
    return next(stage["details"] for stage in json.loads(text)["stages"] if stage["stage"] == "sample")


def test_a_workflow_without_the_new_inputs_gets_both_experts_by_their_names(run, load, sample):
    latent = sample(load())
    assert details(run, latent)["experts"] == ["high", "low"]
    assert details(run, latent)["file"] == f"{FILE.format('high')} and {FILE.format('low')}"
    assert torch.equal(sample(load(FILE.format("low")))["samples"], latent["samples"])


@pytest.mark.slow
def test_the_widget_decides_how_many_steps_the_first_one_has(run, load, sample):
    pair = load()
    assert details(run, sample(pair, steps=3))["experts"] == ["high", "low", "low"]
    alone = sample(load(second_expert="alone"))
    assert torch.equal(sample(pair, high_steps=2)["samples"], alone["samples"])


@pytest.mark.slow
def test_files_whose_names_say_nothing_are_told_apart_by_the_widget(load, sample):
    expected = sample(load())["samples"]
    pair = load("one.safetensors", second_expert="two.safetensors", expert="high")
    assert torch.equal(sample(pair)["samples"], expected)
    pair = load("two.safetensors", second_expert="one.safetensors", expert="low")
    assert torch.equal(sample(pair)["samples"], expected)


def test_a_folder_with_both_is_a_checkpoint(run, models, load, sample):
    transformer, _, _ = run("LightX2VLoadCheckpoint", checkpoint="wan22", precision="auto", **LOADER)
    assert details(run, sample(transformer))["experts"] == ["high", "low"]


def test_a_second_expert_that_is_not_there_gets_a_sentence_before_the_run(host, models):
    node = host.classes["LightX2VLoadTransformer"]
    for choice in ("auto", "alone", FILE.format("low")):
        assert validate(node, transformer=FILE.format("high"), second_expert=choice) is True
    answer = validate(node, transformer=FILE.format("high"), second_expert="gone.safetensors")
    assert "gone.safetensors" in answer and "was not found" in answer


def test_a_change_of_either_file_runs_the_loader_again(host, models):
    node, low = host.classes["LightX2VLoadTransformer"], models / "diffusion_models" / FILE.format("low")
    inputs = {"transformer": FILE.format("high"), **LOADER}
    before = node.fingerprint_inputs(**inputs)
    assert node.fingerprint_inputs(**inputs) == before != node.fingerprint_inputs(**inputs, second_expert="alone")
    path = low.resolve()
    low.unlink()
    shutil.copy(path, low)
    os.utime(low, ns=(1, 1))
    assert node.fingerprint_inputs(**inputs) != before


@pytest.mark.parametrize("expert", ["both", "high", "low"])
def test_a_lora_goes_on_the_expert_of_the_widget(run, load, sample, caplog, expert):
    transformer = load()
    with caplog.at_level("INFO"):
        (model,) = run(
            "LightX2VLora", transformer=transformer, lora="style_high_noise.safetensors", strength=1.0, expert=expert
        )
    found = details(run, sample(model))["loras"]
    assert [each["expert"] for each in found] == (["high", "low"] if expert == "both" else [expert])
    assert ("Its name says high noise" in caplog.text) == (expert != "high")
    # Without a step of its own it changes nothing.
    if expert == "low":
        only_high = {"high_steps": 2}
        assert torch.equal(sample(model, **only_high)["samples"], sample(transformer, **only_high)["samples"])


# What the editor is told


def test_the_plan_line_describes_a_pair_and_notes_an_expert_alone(host, models):
    from lightx2v_pack.engine.panel import editor

    size = {"width": 64, "height": 48, "frames": 5}
    pair = editor.answer_plan({"transformer": FILE.format("high"), **size})
    assert pair["ok"] and "two experts of 2 blocks each, " in pair["detected"] and not pair["warnings"]
    alone = editor.answer_plan({"transformer": FILE.format("high"), "second_expert": "alone", **size})
    assert alone["ok"] and "high-noise expert of Wan2.2 alone" in alone["warnings"][0]
    assert pair["ram"]["needed"] > alone["ram"]["needed"] + 1_000_000
    named = {"transformer": "one.safetensors", "second_expert": "two.safetensors"}
    unsaid = editor.answer_plan({**named, **size})
    assert not unsaid["ok"] and "Say with 'expert'" in unsaid["sentence"]
    assert "two experts" in editor.answer_plan({**named, "expert": "high", **size})["detected"]
    gone = editor.answer_plan({"transformer": FILE.format("high"), "second_expert": "gone", **size})
    assert not gone["ok"] and "was not found" in gone["sentence"]


def test_the_plan_and_the_lora_line_know_for_which_expert_a_lora_is(host, models):
    from lightx2v_pack.engine.panel import editor

    lora = "style_high_noise.safetensors"
    values = {"transformer": FILE.format("high"), "width": 64, "height": 48, "frames": 5, "lora_1": lora}
    assert "Put on both experts." in editor.answer_plan(values)["loras"][0]
    assert "Put on the low-noise expert." in editor.answer_plan(values | {"lora_1_expert": "low"})["loras"][0]
    line = {"transformer": FILE.format("high"), "lora": lora, "lora_expert": "low"}
    assert "may be on the wrong expert" in editor.answer_lora(line)["sentence"]
    refused = editor.answer_lora(line | {"second_expert": "alone"})
    assert not refused["ok"] and "high-noise expert alone" in refused["sentence"]


def test_the_doctor_describes_both(host, models):
    from lightx2v_pack.engine.panel import editor

    items = {item["name"]: item for item in editor.answer_doctor({})}
    assert "two experts of 2 blocks each, " in items["wan22"]["found"]


SIZE = {"width": 64, "height": 48, "frames": 5}


def refusals(host, values):
    """Return the plan of a loader's values, and what ComfyUI's check of the node says."""
    from lightx2v_pack.engine.panel import editor

    plan = editor.answer_plan(values | SIZE)
    with pytest.raises(ValueError) as refused:
        host.classes["LightX2VLoadTransformer"].validate_inputs(**values)
    return plan, str(refused.value)


def test_a_second_expert_that_is_not_there_is_told_by_its_input(host, models):
    plan, refused = refusals(host, {"transformer": HIGH, "second_expert": "gone.safetensors"})
    assert plan["is_absent"] and plan["absent_is_second"] and plan["absent"] == "gone.safetensors"
    assert plan["sentence"] == refused
    assert refused.startswith("Set second_expert (among the advanced inputs) to 'auto'. Choose another second expert")
    assert "'gone.safetensors'" in refused and "transformer" not in refused


@pytest.mark.parametrize("name", ["../gone.safetensors", "/gone.safetensors", ""])
def test_a_second_expert_that_is_not_offered_is_told_by_its_input(host, models, name):
    plan, refused = refusals(host, {"transformer": HIGH, "second_expert": name})
    assert plan["sentence"] == refused and refused.startswith("Set second_expert ")


def test_a_folder_of_both_experts_needs_no_second_one_that_is_left_over(host, models):
    plan, refused = refusals(host, {"transformer": "wan22", "second_expert": "gone.safetensors"})
    assert not plan["ok"] and not plan["is_absent"] and plan["sentence"] == refused
    assert refused.startswith("Set second_expert (among the advanced inputs) to 'auto': 'wan22' holds both experts")


def test_what_the_sampler_is_set_to_is_doubted_before_the_run(host, models):
    from lightx2v_pack.engine.panel import editor

    def warnings(**sampling):
        answer = editor.answer_plan({"transformer": HIGH, **SIZE, **sampling})
        assert answer["ok"]
        return answer["warnings"]

    usual = {"steps": 4, "shift": 5.0, "high_steps": 2}
    assert warnings(**usual) == warnings(steps=20) == ()
    (said,) = warnings(**usual | {"shift": 0.1})
    assert said.startswith("steps 4 and shift 0.1; ")
    (said,) = warnings(**usual | {"high_steps": 1})
    assert said.startswith("the high-noise expert has 1 of 4 steps; ")
    for high_steps, idle in ((30, "low"), (20, "low"), (0, "high")):
        _, said = warnings(steps=20, shift=5.0, high_steps=high_steps)
        assert said.startswith(f"the {idle}-noise expert is never used: ")
    one = editor.answer_plan({"transformer": "one.safetensors", **SIZE, **usual, "high_steps": 0})
    assert one["ok"] and not any("noise expert" in said for said in one["warnings"])
