"""The recipe of the image-to-video experts and of the LoRA: what is given, who learns which noise, every stage."""

import json
import random
from pathlib import Path

import pytest
import torch
from lightx2v_pack.demo.train import captions, cli, clips, distill, export, flow, image, lora, models, runs, sampling
from lightx2v_pack.demo.train import vae as autoencoder
from lightx2v_pack.engine.checkpoints.header import read_header
from lightx2v_pack.engine.constants import LATENT_MEAN, LATENT_STD
from lightx2v_pack.engine.lora.reader import read_lora
from lightx2v_pack.engine.shapes import latent_shape
from lightx2v_pack.engine.stages.schedule import build_schedule
from lightx2v_pack.tools.clip_content import COLOURS, THING_COLOURS, Content, Thing, measure_content

CPU = torch.device("cpu")
CHECKPOINT = Path(__file__).resolve().parents[2] / "demo" / "checkpoint"
SPIECE_MODEL = CHECKPOINT / "distill_models" / "google" / "umt5-xxl" / "spiece.model"
SIZES = models.Sizes(dim=128, ffn_dim=64, num_layers=1, text_dim=64, text_ffn_dim=32, text_layers=1)
SHAPE = (16, 3, 4, 4)
# Everything that is given for a clip of SHAPE.
GIVEN = (image.GIVEN_CHANNELS, *SHAPE[1:])


def make_vae():
    torch.manual_seed(0)
    vae = autoencoder.build_vae(8)
    for parameter in vae.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, 0.0, 0.05)
    return vae.requires_grad_(False)


def make_generator(build=models.build_generator, seed=0):
    torch.manual_seed(seed)
    generator = build(SIZES, CPU)
    torch.nn.init.normal_(generator.transformer.proj_out.weight, 0, 0.1)
    return generator


def make_experts():
    return [make_generator(image.build_expert, seed) for seed in (1, 2)]


class Straight(models.Generator):
    """Everything ends at `end`, whatever is asked; remembers the noise levels that it was asked for."""

    def __init__(self, end):
        super().__init__(transformer=None, text_encoder=None)
        vars(self).update(end=end, sigmas=[])

    device = CPU

    def predict_flow(self, latents, sigmas, rows, given=None):
        self.sigmas.extend(sigmas.tolist())
        return (latents - self.end) / sigmas[:, None, None, None, None]


class TestGiven:
    def test_is_what_wan_gives_its_transformer(self):
        """Against Wan2.2's construction, frame by frame, and diffusers' encoder, chunk by chunk."""
        from diffusers import AutoencoderKLWan

        vae, video = make_vae(), torch.rand(2, 3, 9, 32, 32) * 2 - 1
        given = image.encode_given(vae, video, torch.tensor([False, True]))
        reference = AutoencoderKLWan(base_dim=8, z_dim=16)
        reference.load_state_dict(vae.state_dict())
        for clip, has_last, found in zip(video, (False, True), given, strict=True):
            known = torch.zeros(1, 9, 4, 4)
            known[:, 0] = 1
            frames = [clip[:, :1], torch.zeros(3, 8, 32, 32)]
            if has_last:
                known[:, -1] = 1
                frames[1:] = [torch.zeros(3, 7, 32, 32), clip[:, -1:]]
            mask = torch.cat([known[:, :1].repeat_interleave(4, dim=1), known[:, 1:]], dim=1)
            assert torch.equal(found[:4], mask.view(3, 4, 4, 4).transpose(0, 1))
            with torch.no_grad():
                latents = reference.encode(torch.cat(frames, dim=1)[None]).latent_dist.mean[0]
            mean, std = (torch.tensor(each)[:, None, None, None] for each in (LATENT_MEAN, LATENT_STD))
            torch.testing.assert_close(found[4:], (latents - mean) / std, atol=1e-4, rtol=0)

    def test_an_expert_starts_as_the_transformer_of_text_and_can_learn_to_heed_what_is_given(self):
        generator, expert = make_generator(), make_generator(image.build_expert, 5)
        image.start_from_text(expert, generator)
        latents, sigmas = torch.randn(2, *SHAPE), torch.tensor([0.9, 0.3])
        rows, given = torch.randn(2, captions.MAX_TOKENS, SIZES.text_dim), torch.randn(2, *GIVEN)
        flow_of_text = generator.predict_flow(latents, sigmas, rows)
        flow_of_image = expert.predict_flow(latents, sigmas, rows, given)
        torch.testing.assert_close(flow_of_image, flow_of_text)
        flow_of_image.square().mean().backward()
        assert expert.transformer.patch_embedding.weight.grad[:, 16:].abs().amin(dim=(0, 2, 3, 4)).min() > 0


class TestExperts:
    def test_each_learns_its_half_of_the_noise_levels(self):
        high, low = Straight(0.0), Straight(0.0)
        pool = flow.Pool(
            latents=torch.zeros(4, *SHAPE), rows=torch.zeros(4, 1, captions.MAX_TOKENS, 1), given=torch.zeros(4, *GIVEN)
        )
        for expert, share in zip((high, low), flow.share_times(2), strict=True):
            flow.measure_loss(expert, pool, 64, *share)
        boundary = build_schedule(4, 5.0).sigmas[2]
        assert boundary <= min(high.sigmas) < boundary + 0.02 and max(high.sigmas) > 0.99
        assert max(low.sigmas) <= boundary and max(low.sigmas) > boundary - 0.05 and min(low.sigmas) < 0.1

    def test_two_sample_in_turn(self):
        high, low = Straight(1.0), Straight(2.0)
        predicts = [lambda latents, sigmas, each=each: each.predict_flow(latents, sigmas, None) for each in (high, low)]
        schedule = build_schedule(4, 5.0)
        sampled = sampling.sample(predicts, lambda: torch.randn(1, *SHAPE), schedule, "euler")
        assert high.sigmas + low.sigmas == pytest.approx(schedule.sigmas[:4])
        assert len(high.sigmas) == 2
        torch.testing.assert_close(sampled.latents, torch.full((1, *SHAPE), 2.0))

    @pytest.mark.parametrize("method", ["lcm", "euler"])
    def test_teachers_finish_in_turn_and_each_student_gets_its_states(self, method):
        students, teachers = (Straight(0.0), Straight(0.0)), (Straight(0.0), Straight(3.0))
        rows, given = torch.zeros(2, captions.MAX_TOKENS, 1), torch.rand(2, *GIVEN)
        pairs = distill.make_pairs(students, teachers, rows, given, SHAPE, method)
        sigmas = build_schedule(4, 5.0).sigmas
        boundary = sigmas[2]
        for each, levels in zip(pairs, (sigmas[:2], sigmas[2:4]), strict=True):
            assert each.sigmas.tolist() == pytest.approx([level for level in levels for _ in range(2)])
            assert torch.equal(each.given, given.repeat(2, 1, 1, 1, 1))
            torch.testing.assert_close(each.ends, torch.full_like(each.ends, 3.0), atol=1e-4, rtol=0)
        assert min(teachers[0].sigmas) > boundary - 1e-6 and max(teachers[1].sigmas) < boundary + 1e-6

    def test_both_are_distilled(self, tmp_path):
        students, teachers = make_experts(), make_experts()
        before = [student.transformer.patch_embedding.weight.clone() for student in students]
        rows, given = torch.randn(4, captions.MAX_TOKENS, SIZES.text_dim), torch.randn(4, *GIVEN)
        log = distill.Log(tmp_path / "log.jsonl", "image_distill")
        budget = distill.Budget(steps=2)
        distill.distill(students, teachers, lambda _: (rows, given), budget, log, latent_shape=SHAPE, batch=4)
        for student, weight in zip(students, before, strict=True):
            changed = (student.transformer.patch_embedding.weight - weight).abs().amax(dim=(0, 2, 3, 4))
            assert changed[:16].min() > 0 and changed[16:].min() > 0


def drawn(content, seed=0):
    places = torch.Generator().manual_seed(seed)
    return clips.draw_clips([content], size=64, num_frames=5, generator=places, device=CPU)


class TestLora:
    def test_no_training_clip_shows_what_is_asked_for_in_the_evaluation(self):
        words = random.Random(0)
        drawn_contents = [lora.in_new_colour(lora.draw_content(words)) for _ in range(300)]
        asked = [content for content, _ in lora.list_prompts(40)]
        for contents, is_held_out in ((drawn_contents, False), (asked, True)):
            for content in contents:
                (thing,) = (thing for thing in content.things if thing.colour == "black")
                assert ((thing.shape, content.background, thing.motion) in lora.HELD_OUT) == is_held_out
                assert content.background in lora.BACKGROUNDS
        assert sum(len(content.things) == 2 for content in asked) == 10

    @pytest.mark.parametrize(
        ("background", "colours"), [("white", ["red"]), ("blue", ["green", "yellow"]), ("red", ["white", "green"])]
    )
    def test_a_recoloured_clip_is_the_clip_drawn_in_the_new_colour(self, background, colours):
        things = tuple(Thing(colour=colour, shape="circle", motion="left") for colour in colours)
        content = Content(background=background, things=things)
        new = lora.in_new_colour(content)
        assert sum(thing.colour == "black" for thing in new.things) == 1
        made = lora.recolour(drawn(content), [content])
        torch.testing.assert_close(made, drawn(new), atol=1e-4, rtol=0)
        frames = (made[0] / 2 + 0.5).permute(1, 2, 3, 0)
        assert {thing.colour for thing in measure_content(frames, (*THING_COLOURS, "black")).things} == {
            thing.colour for thing in new.things
        }
        assert "black" in COLOURS

    def test_a_saved_one_is_read_whole_and_changes_the_flow_as_in_training(self, tmp_path):
        generator = make_generator()
        native = export.name_transformer(generator.transformer)
        latents, sigmas = torch.randn(1, *SHAPE), torch.tensor([0.9])
        rows = torch.randn(1, captions.MAX_TOKENS, SIZES.text_dim)
        plain = generator.predict_flow(latents, sigmas, rows)
        added = lora.Lora(generator.transformer, rank=2)
        torch.testing.assert_close(generator.predict_flow(latents, sigmas, rows), plain)
        for layer in added.layers.values():
            torch.nn.init.normal_(layer.up, 0, 0.1)
        changed = generator.predict_flow(latents, sigmas, rows)
        assert (changed - plain).abs().max() > 1e-2
        added.switch(False)
        torch.testing.assert_close(generator.predict_flow(latents, sigmas, rows), plain)
        added.save(tmp_path / "lora.safetensors")
        export.files.write_single_file(tmp_path / "model.safetensors", native, "bf16")
        read = read_lora(tmp_path / "lora.safetensors", read_header(tmp_path / "model.safetensors"))
        assert read.report.num_left_out == 0 and read.report.factors == (1.0,)
        merged = make_generator()
        state = merged.transformer.state_dict()
        for change in read.changes:
            down, up = (read.tensors[name].float() for name in change.names)
            (name,) = (name for name in state if export.transformer_name(name) == change.target)
            state[name] = state[name] + change.factor * (up @ down if len(down) == 2 else down @ up)
        merged.transformer.load_state_dict(state)
        torch.testing.assert_close(merged.predict_flow(latents, sigmas, rows), changed, atol=2e-2, rtol=0)


@pytest.mark.slow
def test_stages_run_from_a_finished_checkpoint_and_go_on_from_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "SIZES", SIZES)
    monkeypatch.setattr(runs, "VAE_DIM", 8)
    monkeypatch.setattr(runs, "SIZE", 32)
    monkeypatch.setattr(runs, "NUM_FRAMES", 9)
    monkeypatch.setattr(runs, "LATENT_SHAPE", latent_shape(32, 32, 9))
    monkeypatch.setattr(runs, "device", lambda: CPU)
    export.export_checkpoint(tmp_path / "tiny", make_generator(), make_vae(), SPIECE_MODEL.read_bytes())
    run = tmp_path / "run"

    def call(*words):
        assert cli.main([str(word) for word in words]) == 0

    call("unpack", tmp_path / "tiny", run)
    limits = [
        *("--batch", 4, "--pool-steps", 1, "--image-steps", 2, "--image-distill-steps", 1),
        *("--examples-steps", 1, "--lora-steps", 1),
    ]
    call("train", run, "--stages", "image", "image_distill", "lora", *limits)
    call("train", run, "--stages", "image", *limits, "--resume-image", run)
    call("export-image", run, tmp_path / "image")
    written = {path.relative_to(tmp_path / "image").as_posix() for path in (tmp_path / "image").rglob("*.safetensors")}
    assert written == {
        f"distill_fp8/{expert}_noise_model/{part}.safetensors"
        for expert in ("high", "low")
        for part in ("block_0", "non_block")
    }
    header = read_header(tmp_path / "image/distill_fp8/high_noise_model/non_block.safetensors")
    assert header["patch_embedding.weight"].shape[1] == 36
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    settings = {line["setting"] for line in lines if line["stage"] == "image_distill" and "setting" in line}
    assert {"so far", "lcm, 4 steps", "euler, 4 steps", "experts swapped", "mask inverted", "image dropped"} < settings
    assert all(line["first_good"] >= 0 for line in lines if line.get("setting") == "lcm, 4 steps")
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 2 and losses[0] != losses[1]
    assert (run / "lora.safetensors").is_file()
