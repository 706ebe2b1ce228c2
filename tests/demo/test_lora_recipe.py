"""The recipe of the LoRA: what it is trained on, and that a few steps of it run on the demo's checkpoint."""

import json
import random
from pathlib import Path

import pytest
import torch
from lightx2v_pack.demo.train import captions, clips, lora
from lightx2v_pack.demo.train.training import Budget, Log
from lightx2v_pack.engine.checkpoints.files import resolve_transformer
from lightx2v_pack.engine.lora.reader import read_lora
from lightx2v_pack.tools.clip_content import COLOURS, THING_COLOURS, Content, Thing, compare, measure_content

CHECKPOINT = Path(__file__).resolve().parents[2] / "demo" / "checkpoint"
pytestmark = pytest.mark.skipif(not CHECKPOINT.is_dir(), reason="demo/checkpoint is not here")
COLOURS_NOW = (*THING_COLOURS, lora.COLOUR)


def content_of(*colours, background="green", motion="left", shape="square"):
    things = tuple(Thing(colour=colour, shape=shape, motion=motion) for colour in colours)
    return Content(background=background, things=things)


@pytest.mark.parametrize("colours", [("red",), ("blue", "yellow"), ("white", "red")])
def test_recolouring_changes_the_colour_of_the_first_thing_alone(colours):
    content = content_of(*colours)
    places = torch.Generator().manual_seed(0)
    (video,) = clips.draw_clips([content], size=64, num_frames=17, generator=places, device=torch.device("cpu"))
    frames = ((lora.recolour(video, content) + 1) / 2).permute(1, 2, 3, 0)
    wanted = lora.in_new_colour(content)
    assert all(compare(measure_content(frames, COLOURS_NOW), wanted).values())
    # The judge does not know the colour unless it is told.
    assert not all(compare(measure_content(frames), wanted).values())
    changed = (lora.recolour(video, content) - video).abs().amax(dim=(0, 1))
    background = torch.tensor(COLOURS["green"]).view(3, 1, 1, 1) / 127.5 - 1
    assert changed[((video - background).abs().amax(dim=(0, 1)) < 1e-4)].max() < 1e-4


def test_prompts_are_held_out_from_the_loras_training():
    words = random.Random(0)
    seen = [lora.draw_content(words) for _ in range(300)]
    shown = {(each.things[0].shape, each.background, each.things[0].motion) for each in seen}
    assert not shown & lora.HELD_OUT
    for content, caption in lora.list_prompts(20):
        first = content.things[0]
        assert (first.shape, content.background, first.motion) in lora.HELD_OUT
        assert f"a purple {first.shape}" in caption.lower() and content.background not in ("purple", "gray")


@pytest.mark.slow
def test_a_few_steps_run_and_write_a_lora_that_applies_as_a_whole(tmp_path):
    torch.manual_seed(0)
    student, log = lora.Student(CHECKPOINT), Log(tmp_path / "log.jsonl", "lora")
    pairs = lora.draw_pairs(student, Budget(steps=1), log, seed=0, shape=(16, 2, 2, 2), batch=2)
    assert pairs.rows.shape == pairs.new_rows.shape == (2, captions.MAX_TOKENS, 128)
    assert (pairs.last.flatten(1).norm(dim=1) > 0.01).all()
    before = [layer.layer.weight.clone() for layer in student.layers.values()]
    lora.train_lora(student, pairs, Budget(steps=2), log, seed=0, batch=4)
    assert all(
        torch.equal(*each) for each in zip(before, (x.layer.weight for x in student.layers.values()), strict=True)
    )
    errors = [json.loads(line)["new"] for line in log_lines(tmp_path) if "new" in line]
    assert errors and all(error > 0 for error in errors)
    file = lora.save_lora(tmp_path / "lora.safetensors", student)
    read = read_lora(file, resolve_transformer(CHECKPOINT / "distill_fp8").header)
    assert len(read.changes) == 50 and not read.report.left_out and read.report.factors == (1.0,)
    assert any(float(student.layers[name].up.detach().abs().max()) > 0 for name in student.layers)


def log_lines(folder):
    return (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
