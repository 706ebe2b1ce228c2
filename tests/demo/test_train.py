"""The recipe of the tiny checkpoint: what it computes against independent references, and that every stage runs."""

import json
import math
import random

import pytest
import torch
from lightx2v_pack.demo.train import captions, clips, distill, evaluate, export, flow, models, sampling, text
from lightx2v_pack.demo.train import vae as autoencoder
from lightx2v_pack.demo.train.training import Alarm, Average, Budget, Log, Recorded, Trainer
from lightx2v_pack.engine import pipeline
from lightx2v_pack.engine.constants import LATENT_MEAN, LATENT_STD
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.settings import EngineSettings, OffloadSettings, SamplingSettings
from lightx2v_pack.engine.stages.conditioning import of_rows
from lightx2v_pack.engine.stages.denoise import run_steps, start
from lightx2v_pack.engine.stages.schedule import build_schedule
from support.engine import conditioning_of
from torch.nn import Linear

CPU = torch.device("cpu")
SIZES = models.Sizes(dim=128, ffn_dim=64, num_layers=1, text_dim=64, text_ffn_dim=32, text_layers=1)
PHASES = (
    autoencoder.Phase(until=0.5, size=16, num_frames=5, batch=2),
    autoencoder.Phase(until=1.0, size=32, num_frames=9, batch=2),
)
SHAPE = (16, 3, 4, 4)


@pytest.fixture(scope="module")
def spiece_model():
    return captions.train_tokenizer()


def make_vae(base_dim=8):
    torch.manual_seed(0)
    vae = autoencoder.build_vae(base_dim)
    for name, parameter in vae.named_parameters():
        if name.endswith("gamma"):
            torch.nn.init.normal_(parameter, 1.0, 0.2)
        elif not parameter.any():  # what starts at 0: biases, and the last layers of residual blocks
            torch.nn.init.normal_(parameter, 0.0, 0.05)
    return vae.requires_grad_(False)


def make_generator(sizes=SIZES):
    torch.manual_seed(0)
    generator = models.build_generator(sizes, CPU)
    torch.nn.init.normal_(generator.transformer.proj_out.weight, 0, 0.1)
    return generator


def read_log(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


class TestCaptions:
    def test_training_never_shows_a_held_out_combination(self):
        generator = random.Random(0)
        for content in (captions.draw_content(generator) for _ in range(300)):
            for thing in content.things:
                assert (thing.shape, thing.colour, content.background, thing.motion) not in captions.HELD_OUT

    def test_every_prompt_of_the_evaluation_is_held_out(self):
        assert len(captions.HELD_OUT) == 74
        prompts = captions.list_prompts(40)
        assert all(captions.is_held_out(content) for content, _ in prompts)
        assert sum(len(content.things) == 2 for content, _ in prompts) == 10
        assert prompts == captions.list_prompts(40)

    def test_a_caption_names_what_is_shown(self):
        generator = random.Random(0)
        for content in (captions.draw_content(generator) for _ in range(100)):
            caption = captions.write_caption(content, generator).lower().replace("grey", "gray")
            assert f"{content.background} background" in caption
            assert all(f"{thing.colour} {thing.shape}" in caption for thing in content.things)

    def test_words_are_whole_tokens_and_captions_fit(self, spiece_model):
        generator = random.Random(1)
        texts = [captions.write_caption(captions.draw_content(generator), generator) for _ in range(500)]
        tokens = captions.tokenize(texts, spiece_model)
        num_words = torch.tensor([len(text.replace(".", " .").replace(",", " ,").split()) for text in texts])
        assert torch.equal((tokens > 0).sum(dim=1), num_words + 1)
        assert (tokens[:, -1] == 0).all()

    def test_too_long_a_caption_is_refused(self, spiece_model):
        with pytest.raises(ValueError, match="tokens"):
            captions.tokenize(["a red circle " * 10], spiece_model)


class TestClips:
    @pytest.mark.parametrize("motion, axis", [("left", 0), ("right", 0), ("up", 1), ("growing", 1), ("still", 1)])
    def test_of_two_things_the_first_colour_of_the_table_is_above_or_on_the_left(self, motion, axis):
        things = [captions.Thing(colour=colour, shape="circle", motion=motion) for colour in ("green", "white")]
        contents = [captions.Content(background="black", things=tuple(order)) for order in (things, things[::-1])]
        drawn = clips.draw_clips(contents, size=64, num_frames=5, generator=torch.Generator(), device=CPU)
        for clip in drawn:
            is_green, is_white = (clip[1] > 0) & (clip[0] < 0), clip[0] > 0.5
            middles = [mask.nonzero()[:, 1 + axis].float().mean() for mask in (is_green, is_white)]
            assert middles[0] < 32 < middles[1]


class TestVae:
    def test_whole_clips_give_what_diffusers_gives_chunk_by_chunk(self):
        from diffusers import AutoencoderKLWan

        vae = make_vae()
        reference = AutoencoderKLWan(base_dim=8, z_dim=16)
        reference.load_state_dict(vae.state_dict())
        video = torch.rand(1, 3, 13, 24, 16) * 2 - 1
        with torch.no_grad():
            latents = autoencoder.encode(vae, video)
            torch.testing.assert_close(latents, reference.encode(video).latent_dist.mean, atol=1e-4, rtol=0)
            decoded = autoencoder.decode(vae, latents).clamp(-1, 1)
            torch.testing.assert_close(decoded, reference.decode(latents).sample, atol=1e-3, rtol=0)

    def test_latents_get_wans_statistics_and_lose_them_and_decode_to_the_same(self):
        vae = make_vae()
        phase = PHASES[1]

        @torch.no_grad()
        def encode_all():
            draw = autoencoder.ClipSource(3, CPU)
            latents = [autoencoder.encode(vae, draw(phase.batch, phase.size, phase.num_frames)) for _ in range(4)]
            return torch.cat(latents).transpose(0, 1).flatten(1)

        @torch.no_grad()
        def decode_again():
            video = autoencoder.ClipSource(5, CPU)(2, phase.size, phase.num_frames)
            return autoencoder.decode(vae, autoencoder.encode(vae, video))

        before = decode_again()
        autoencoder.set_wan_statistics(vae, autoencoder.ClipSource(3, CPU), phase, num_batches=4)
        torch.testing.assert_close(decode_again(), before, atol=1e-4, rtol=0)
        std, mean = torch.std_mean(encode_all(), dim=1)
        torch.testing.assert_close(mean, torch.tensor(LATENT_MEAN), atol=1e-3, rtol=0)
        torch.testing.assert_close(std, torch.tensor(LATENT_STD), atol=0, rtol=1e-3)
        log_variance = vae.quant_conv(vae.encoder(torch.rand(1, 3, 5, 16, 16)))[:, 16:]
        width = (log_variance / 2).exp().mean(dim=(0, 2, 3, 4))
        torch.testing.assert_close(width, autoencoder.NOISE * torch.tensor(LATENT_STD), atol=0, rtol=1e-3)
        autoencoder.unset_wan_statistics(vae)
        torch.testing.assert_close(decode_again(), before, atol=1e-4, rtol=0)
        std, mean = torch.std_mean(encode_all(), dim=1)
        torch.testing.assert_close(mean, torch.zeros(16), atol=1e-3, rtol=0)
        torch.testing.assert_close(std, torch.ones(16), atol=0, rtol=1e-3)

    def test_ends_with_the_decoder_reading_what_it_was_trained_on(self, tmp_path):
        """With a learning rate of 0 only the latents' scale changes: what trained is what is left to be used."""
        vae, trained = make_vae().requires_grad_(True), make_vae()
        phase = autoencoder.Phase(until=1.0, size=16, num_frames=5, batch=2)
        log = Log(tmp_path / "log.jsonl", "vae")
        autoencoder.train_vae(vae, Budget(steps=1), log, seed=0, learning_rate=0.0, phases=(phase,), num_checked=1)
        draw = autoencoder.ClipSource(0, CPU)
        draw(phase.batch, phase.size, phase.num_frames)  # those that chose the memory format
        batch = next(draw.batches(phase))
        video = autoencoder.ClipSource(7, CPU)(2, phase.size, phase.num_frames)
        with torch.no_grad():
            seen = autoencoder.encode(trained, batch)
            std, mean = torch.std_mean(seen, dim=(0, 2, 3, 4), keepdim=True, correction=0)
            expected = autoencoder.decode(trained, (autoencoder.encode(trained, video) - mean) / std)
            decoded = autoencoder.decode(vae, autoencoder.encode(vae, video))
        torch.testing.assert_close(decoded, expected, atol=1e-4, rtol=0)

    def test_trains(self, tmp_path):
        vae = autoencoder.build_vae(8)
        before = vae.encoder.conv_in.weight.clone()
        log = Log(tmp_path / "log.jsonl", "vae")
        autoencoder.train_vae(vae, Budget(steps=3), log, seed=0, phases=PHASES, num_checked=1)
        lines = read_log(tmp_path / "log.jsonl")
        assert math.isfinite(lines[1]["loss"])
        assert lines[-1]["steps"] == 3 and math.isfinite(lines[-2]["psnr_db"])
        assert not torch.equal(vae.encoder.conv_in.weight, before)


class TestGenerator:
    def test_folded_padding_is_512_rows_of_text(self):
        from diffusers.models.transformers.transformer_wan import WanAttnProcessor

        generator = make_generator()
        latents, sigmas = torch.randn(2, *SHAPE), torch.tensor([0.9, 0.3])
        rows = torch.randn(2, captions.MAX_TOKENS, SIZES.text_dim)
        rows[:, 9:] = 0
        with torch.no_grad():
            folded = generator.predict_flow(latents, sigmas, rows)
            for block in generator.transformer.blocks:
                block.attn2.set_processor(WanAttnProcessor())
            padded = torch.nn.functional.pad(rows, (0, 0, 0, 512 - captions.MAX_TOKENS))
            full = generator.transformer(latents, sigmas * 1000, padded, return_dict=False)[0]
            unpadded = generator.transformer(latents, sigmas * 1000, rows[:, :9], return_dict=False)[0]
        torch.testing.assert_close(folded, full, atol=1e-5, rtol=0)
        assert (unpadded - full).abs().max() > 1e-2

    def test_text_rows_end_with_the_caption(self, spiece_model):
        tokens = captions.tokenize(["A red circle rising on a black background."], spiece_model)
        rows = make_generator().encode_text(tokens)
        length = int((tokens > 0).sum())
        assert rows[0, :length].abs().amax(dim=1).min() > 0
        assert not rows[0, length:].any()

    def test_weights_survive_the_file(self, tmp_path):
        generator, other = make_generator(), models.build_generator(SIZES, CPU)
        models.save_modules(tmp_path / "w.safetensors", transformer=generator.transformer)
        models.load_modules(tmp_path / "w.safetensors", transformer=other.transformer)
        for (name, one), two in zip(
            generator.transformer.state_dict().items(), other.transformer.state_dict().values(), strict=True
        ):
            assert torch.equal(one.bfloat16(), two.bfloat16()), name
        with pytest.raises(ValueError, match="does not fit text_encoder"):
            models.load_modules(tmp_path / "w.safetensors", text_encoder=other.text_encoder)


class TestText:
    def test_answers_say_what_the_content_is(self):
        thing = captions.Thing(colour="blue", shape="triangle", motion="up")
        content = captions.Content(background="black", things=(thing,))
        assert text.list_answers([content]).tolist() == [[5, 2, 0, 0, 3, 0, 0]]

    def test_learns_to_read(self, tmp_path, spiece_model):
        generator, log = make_generator(), Log(tmp_path / "log.jsonl", "text")
        text.train_text(generator, spiece_model, Budget(steps=101), log, seed=0, batch=32)
        first, last, end = read_log(tmp_path / "log.jsonl")
        assert last["loss"] < 0.9 * first["loss"]
        assert 0 <= end["read_right"] <= 1


class TestSampling:
    @pytest.mark.parametrize("method", ["lcm", "euler"])
    @pytest.mark.parametrize("steps, shift", [(4, 5.0), (3, 2.0)])
    def test_batches_sample_as_the_engine_samples_one_clip(self, method, steps, shift):
        schedule = build_schedule(steps, shift)

        class Analytic:
            device = CPU
            euler_dtype = torch.float32

            def predict_flow(self, latents, timestep, context, hooks, expert=0, then=0):
                return torch.tanh(latents) + timestep / 1000

        def predict(latents, sigmas):
            return torch.tanh(latents) + sigmas[:, None, None, None, None]

        sampled = sampling.sample([predict], sampling.SeededNoise([3, 8], SHAPE, CPU), schedule, method)
        for latents, seed in zip(sampled.latents, (3, 8), strict=True):
            state = start(SHAPE, seed, CPU)
            text = conditioning_of(torch.zeros(512, 8))
            run_steps(Analytic(), text, state, schedule, range(steps), method=method, hooks=Hooks())
            torch.testing.assert_close(latents, state.latents, atol=1e-5, rtol=0)
        assert len(sampled.states) == steps

    def test_solve_ends_where_a_straight_flow_ends(self):
        data, noise = torch.randn(2, 3, *SHAPE).unbind()
        times = torch.tensor([1.0, 0.5, 0.25])
        states = sampling.add_noise(data, noise, sampling.shift_sigmas(times, 5.0))
        ends = sampling.solve(lambda latents, sigmas: noise - data, states, times, 5.0, steps=7)
        torch.testing.assert_close(ends, data, atol=1e-5, rtol=0)

    def test_solve_converges_on_a_curved_flow(self):
        # dx/dsigma = x from sigma = 1 to 0 divides by e.
        start = torch.ones(1, *SHAPE)
        ends = sampling.solve(lambda latents, sigmas: latents, start, torch.ones(1), 5.0, steps=400)
        torch.testing.assert_close(ends, start / math.e, atol=5e-3, rtol=0)


class TestTraining:
    def test_budget_ends_by_steps_and_by_seconds(self):
        assert [step for step, _ in Budget(steps=3)] == [0, 1, 2]
        used = [share for _, share in Budget(seconds=0.05)]
        assert used == sorted(used) and used[-1] < 1

    def test_average_follows_the_weights_and_replaces_them(self):
        layer = Linear(2, 1, bias=False)
        torch.nn.init.zeros_(layer.weight)
        average = Average([layer])
        torch.nn.init.ones_(layer.weight)
        for _ in range(30):
            average.update()
        with average.applied():
            assert 0.9 < layer.weight.min() < 1
        assert (layer.weight == 1).all()
        average.apply()
        assert 0.9 < layer.weight.min() < 1

    def test_trainer_learns(self):
        torch.manual_seed(0)
        layer = Linear(4, 1)
        inputs = torch.randn(64, 4)
        trainer = Trainer([layer], 0.05)
        losses = []
        for _, used in Budget(steps=100):
            losses.append((layer(inputs)[:, 0] - inputs.sum(dim=1)).square().mean())
            trainer.set_rate(used)
            trainer.descend(losses[-1])
        assert losses[-1] < 0.01 * losses[0]

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    def test_recorded_steps_do_what_steps_do(self):
        inputs = torch.randn(64, 4, device="cuda")
        weights = []
        for is_recorded in (False, True):
            torch.manual_seed(0)
            layer = Linear(4, 1).to(inputs.device)
            trainer = Trainer([layer], 0.05)

            def do_step():
                loss = (layer(inputs)[:, 0] - inputs.sum(dim=1)).square().mean()  # noqa: B023
                trainer.descend(loss)  # noqa: B023
                return loss.detach()

            num_steps = 20
            if is_recorded:
                do_step, num_steps = Recorded(do_step), 17  # three are done before it records
            losses = [do_step().item() for _ in range(num_steps)]
            assert losses[-1] < losses[0]
            weights.append(layer.weight.detach())
        torch.testing.assert_close(*weights)

    def test_alarm_rings_when_its_time_has_passed(self):
        assert Alarm(0.0).rings()
        assert not Alarm(60.0).rings()

    def test_flow_and_distillation_train_the_transformer(self, tmp_path, spiece_model):
        generator, log = make_generator(), Log(tmp_path / "log.jsonl", "any")
        networks = {"transformer": generator.transformer, "text_encoder": generator.text_encoder}

        def changed(stage):
            before = {name: next(network.parameters()).clone() for name, network in networks.items()}
            stage()
            return [
                name for name, network in networks.items() if not torch.equal(next(network.parameters()), before[name])
            ]

        pool_sizes = {"seed": 0, "size": 32, "num_frames": 9, "batch": 4}
        pool = flow.fill_pool(generator, make_vae(), spiece_model, Budget(steps=1), log, **pool_sizes)
        assert pool.latents.shape == (4, *SHAPE) and pool.rows.shape[::2] == (4, captions.MAX_TOKENS)
        two_steps = Budget(steps=2)
        assert changed(lambda: flow.train_flow([generator], pool, two_steps, log, batch=4)) == ["transformer"]
        rows = distill.encode_captions(generator, spiece_model, 4, seed=0)
        given = pool.given[:4].float()
        teachers, sizes = [make_generator()], {"latent_shape": SHAPE, "batch": 4}
        assert changed(
            lambda: distill.distill([generator], teachers, lambda count: (rows, given), two_steps, log, **sizes)
        ) == ["transformer"]
        lines = read_log(tmp_path / "log.jsonl")
        assert all(math.isfinite(line["loss"]) for line in lines if "loss" in line)

    def test_pairs_of_a_perfect_student_have_no_error(self):
        class Straight(models.Generator):
            device = CPU

            def predict_flow(self, latents, sigmas, rows, given):  # everything ends at 1
                return (latents - 1) / sigmas[:, None, None, None, None]

        model = Straight(transformer=None, text_encoder=None)
        rows, given = torch.zeros(3, captions.MAX_TOKENS, 1), torch.zeros(3, 0, *SHAPE[1:])
        (pairs,) = distill.make_pairs([model], [model], rows, given, SHAPE, "lcm")
        assert pairs.sigmas.tolist() == [
            sigma for sigma in torch.tensor(build_schedule(4, 5.0).sigmas[:-1]).tolist() for _ in range(3)
        ]
        torch.testing.assert_close(pairs.ends, torch.ones_like(pairs.ends), atol=1e-4, rtol=0)
        assert distill.measure_errors(model, pairs).max() < 1e-6


class TestExport:
    def test_engine_draws_what_training_drew(self, tmp_path, spiece_model):
        """Same weights, prompt and seed: through the files and the engine, and with the networks in hand."""
        generator, vae = make_generator(), make_vae()
        folder = export.export_checkpoint(tmp_path, generator, vae, spiece_model)
        prompt = "A red circle and a white square rising on a black background."
        shape = {"latent_shape": SHAPE, "method": "lcm", "steps": 4, "shift": 5.0}
        expected = evaluate.generate([generator], vae, spiece_model, [prompt], **shape)[0]
        loaded = pipeline.load_checkpoint(
            folder, precision="bf16", settings=EngineSettings(engine="portable"), offload=OffloadSettings(mode="none")
        )
        hooks = Hooks()
        rows = pipeline.encode_text(loaded.text_encoder, prompt, hooks=hooks)
        tokens = captions.tokenize([prompt], spiece_model)
        torch.testing.assert_close(
            rows[:, : captions.MAX_TOKENS], generator.encode_text(tokens), atol=0.1, rtol=0
        )  # bfloat16
        samples = pipeline.sample(
            loaded.transformer,
            of_rows(rows, loaded.transformer.text_dim),
            pipeline.empty_latent(32, 32, 9),
            SamplingSettings(seed=0),
            hooks=hooks,
        )
        frames = pipeline.decode(loaded.vae, samples, hooks=hooks)
        assert frames.shape == expected.shape
        assert (frames - expected).abs().mean() < 0.02
        other = evaluate.generate([generator], vae, spiece_model, [prompt], **{**shape, "method": "euler"})[0]
        assert (other - expected).abs().mean() > 0.05

    def test_both_precisions_are_there_and_share_the_rest(self, tmp_path, spiece_model):
        folder = export.export_checkpoint(tmp_path, make_generator(), make_vae(), spiece_model)
        files = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
        assert {"distill_fp8/block_0.safetensors", "distill_fp8/non_block.safetensors"} < files
        for precision in ("fp8", "bf16"):
            loaded = pipeline.load_checkpoint(
                folder, precision=precision, settings=EngineSettings(), offload=OffloadSettings()
            )
            assert loaded.transformer.files.format.precision == precision
