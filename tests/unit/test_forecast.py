"""What the plan line answers, on tiny checkpoints and pretended machines."""

import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from lightx2v_pack.engine import pipeline
from lightx2v_pack.engine.backends import remembered, trials
from lightx2v_pack.engine.checkpoints.files import resolve_transformer
from lightx2v_pack.engine.checkpoints.source import TransformerCheckpoint
from lightx2v_pack.engine.constants import GIB
from lightx2v_pack.engine.handles import TransformerHandle
from lightx2v_pack.engine.interfaces import Hooks, Host
from lightx2v_pack.engine.memory.clip import Clip
from lightx2v_pack.engine.panel import doctor, speed
from lightx2v_pack.engine.panel import forecast as module
from lightx2v_pack.engine.panel.forecast import Question, forecast
from lightx2v_pack.engine.settings import EngineSettings, HostPolicy, OffloadSettings, SamplingSettings
from safetensors.torch import load_file, save_file
from support import checkpoints, loras
from support.engine import conditioning_of
from support.pretended_card import pretend_card
from support.wan_14b import make_files


@pytest.fixture(autouse=True)
def computer_without_a_past(monkeypatch):
    """Nothing has run yet, and there is no card, whatever this machine has."""
    monkeypatch.setattr(module, "_history", speed.History())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def checkpoint(tmp_path):
    return shutil.copytree(checkpoints.repository(), tmp_path / "model")


def ask(path, **changes):
    size = {name: changes.pop(name, value) for name, value in (("width", 64), ("height", 48), ("num_frames", 5))}
    return forecast(Question(**{"path": path, "is_checkpoint": True, "clip": Clip(**size)} | changes))


def test_a_better_precision_that_is_not_whole_is_said(checkpoint, caplog):
    """With precision auto another one is taken: no silent bf16 where somebody has fetched FP8."""
    (checkpoint / "distill_fp8" / "block_0.safetensors").unlink()
    shutil.rmtree(checkpoint / "distill_int8")
    answer = ask(checkpoint)
    assert answer.ok and answer.detected.startswith("bf16")
    (warning,) = answer.warnings
    assert warning.startswith("distill_fp8 is there and cannot be used, so distill_models (bf16) is used. ")
    assert "block_0.safetensors" in warning
    pipeline.load_checkpoint(checkpoint, settings=EngineSettings(), offload=OffloadSettings())
    (said,) = [record for record in caplog.records if warning in record.message]
    assert said.levelname == "WARNING"
    assert ask(checkpoint, precision="bf16").warnings == ()


def test_a_fitting_checkpoint_is_described(checkpoint):
    answer = ask(checkpoint)
    assert answer.ok and answer.sentence == "Fits." and not answer.missing
    assert answer.detected.startswith("fp8 file, bf16 compute, 2 blocks, ")
    assert (answer.engine, answer.attention, answer.matmul, answer.offload) == (
        "portable",
        "sdpa",
        "dequantize",
        "none",
    )
    assert answer.vram is None and answer.ram.needed < answer.ram.available
    assert (answer.seconds, answer.basis, answer.tokens) == (None, "unknown", 24)
    assert any("no CUDA" in reason for reason in answer.reasons)
    assert ask(checkpoint, precision="bf16").matmul == "bf16"


def test_a_run_teaches_the_next_forecast(checkpoint):
    loaded = pipeline.load_checkpoint(checkpoint, settings=EngineSettings(), offload=OffloadSettings())
    samples = pipeline.sample(
        loaded.transformer,
        [conditioning_of(torch.zeros(512, 64))],
        pipeline.empty_latent(64, 48, 5),
        SamplingSettings(seed=1),
        hooks=Hooks(),
    )
    module.remember_sampling(loaded.transformer, samples)
    module.remember_decoding(pipeline.decode(loaded.vae, samples, hooks=Hooks()))
    answer = ask(checkpoint)
    assert answer.basis == "measured" and 0 < 4 * answer.step_seconds < answer.seconds
    assert ask(checkpoint, width=128).basis == "scaled"
    # It is widened as the FP8 file is, and as fast.
    assert ask(checkpoint, precision="int8").basis == "measured"
    assert ask(checkpoint, precision="bf16").basis == "unknown"


def test_a_part_that_the_graph_uses_and_is_missing_is_a_no(checkpoint):
    (checkpoint / "distill_fp8" / "Wan2.1_VAE.pth").unlink()
    for folder in ("distill_int8", "distill_models"):
        shutil.rmtree(checkpoint / folder)
    unused = ask(checkpoint)
    assert unused.ok and len(unused.missing) == 1
    assert ask(checkpoint, uses=frozenset({"text_encoder"})).ok
    used = ask(checkpoint, uses=frozenset({"vae"}))
    assert not used.ok and used.sentence.startswith("The VAE is missing")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"width": 65}, "width is 65; expected a multiple of 16"),
        ({"num_frames": 6}, "num_frames is 6; expected 4n+1"),
        ({"settings": EngineSettings(engine="lightx2v")}, "engine is 'lightx2v', but"),
        ({"settings": EngineSettings(attention="sage_attn2")}, "cannot run here: there is no CUDA device"),
        ({"width": 8192, "height": 8192, "num_frames": 4097}, "No offload mode has room for 8192x8192"),
    ],
)
def test_what_cannot_run_gets_its_sentence(checkpoint, changes, sentence):
    answer = ask(checkpoint, **changes)
    assert not answer.ok and sentence in answer.sentence


def test_modes_that_need_the_same_are_one_line(checkpoint):
    """As they do where the frames take it all, and the weights nothing beside them."""
    text = ask(checkpoint, width=8192, height=8192, num_frames=4097).sentence
    (need,) = [line for line in text.splitlines() if line.startswith("  ")]
    assert re.fullmatch(r"  none, block, phase, disk: \d+\.\d GiB of RAM", need)


def test_a_broken_checkpoint_gets_its_sentence(checkpoint):
    (checkpoint / "distill_fp8" / "block_1.safetensors").unlink()
    path = checkpoint / "distill_fp8"
    assert "truncated" in broken_sentence(path / "block_0.safetensors", path)


def broken_sentence(file, path):
    data = file.read_bytes()
    file.unlink()
    file.write_bytes(data[:-10])
    answer = ask(path)
    assert not answer.ok and answer.detected == ""
    return answer.sentence


def test_files_are_read_once_until_they_change(checkpoint, monkeypatch):
    calls = []
    real = module.resolve_checkpoint
    monkeypatch.setattr(module, "resolve_checkpoint", lambda *args: calls.append(args) or real(*args))
    module._resolve_checkpoint.cache_clear()
    ask(checkpoint)
    ask(checkpoint, width=128)
    assert len(calls) == 1
    os.utime(checkpoint / "distill_fp8" / "non_block.safetensors", (1, 1))
    ask(checkpoint)
    assert len(calls) == 2


DOUBT = "Check that {} is distilled"


@pytest.mark.parametrize(
    "name", ["wan2.1_t2v_14B_bf16.safetensors", "wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors", "x.safetensors"]
)
def test_a_name_that_promises_nothing_is_a_warning_until_something_does(tmp_path, name, caplog):
    folder = tmp_path / "lightx2v"
    folder.mkdir()
    file = Path(shutil.copy(checkpoints.single_file("bf16"), folder / name))

    def doubts(**changes):
        answer = ask(file, is_checkpoint=False, **changes)
        assert answer.ok and answer.sentence == "Fits."
        # An expert of Wan2.2 alone has a note of its own.
        assert any("alone" in warning for warning in answer.warnings) == ("high_noise" in name)
        return [warning for warning in answer.warnings if warning.startswith(DOUBT.format(name))]

    assert len(doubts()) == 1
    assert not doubts(has_own_sampler=True)
    drawn = loras.draw(checkpoints.transformer_weights(), modules=["blocks.0.ffn.0"])
    plain, distill = (
        loras.write(tmp_path / each, drawn) for each in ("style.safetensors", "wan_4step_rank64.safetensors")
    )
    assert len(doubts(loras=((plain, "both"),))) == 1
    assert not doubts(loras=((plain, "both"), (distill, "both")))

    handle = pipeline.load_transformer(file, settings=EngineSettings(), offload=OffloadSettings())
    caplog.clear()
    pipeline.warn_of_doubts(handle)
    assert DOUBT.format(name) in caplog.text
    caplog.clear()
    for strength in (1.0, 0.5):
        pipeline.warn_of_doubts(handle.with_lora(handle.read_lora(distill), strength))
    assert not caplog.text
    pipeline.warn_of_doubts(handle.with_lora(handle.read_lora(distill), -1.0))
    assert DOUBT.format(name) in caplog.text


@pytest.mark.parametrize(
    "lora", ["wan_4step_rank64.safetensors", "Lightning-v2.safetensors", "self_forcing.safetensors"]
)
def test_a_lora_that_distills_on_a_model_that_is_distilled_is_a_warning(tmp_path, lora, checkpoint):
    drawn = loras.draw(checkpoints.transformer_weights(), modules=["blocks.0.ffn.0"])
    distill, plain = (loras.write(tmp_path / each, drawn) for each in (lora, "style.safetensors"))
    file = Path(shutil.copy(checkpoints.single_file("bf16"), tmp_path / "wan_4step_distill.safetensors"))
    answer = ask(file, is_checkpoint=False, loras=((plain, "both"), (distill, "both")))
    (said,) = answer.warnings
    assert answer.ok and said.startswith(f"Take off LoRA {lora}, or put it on a model that is not distilled: ")
    assert not ask(file, is_checkpoint=False, loras=((plain, "both"),)).warnings
    handle = pipeline.load_transformer(file, settings=EngineSettings(), offload=OffloadSettings())
    assert lora in handle.with_lora(handle.read_lora(distill), 0.5).doubts
    assert not handle.with_lora(handle.read_lora(distill), -0.5).doubts


@pytest.mark.parametrize("name", ["blocks.0.modulation", "blocks.1.norm3.weight", "blocks.0.self_attn.norm_q.weight"])
def test_what_a_load_found_odd_is_a_warning_from_then_on(checkpoint, name):
    file = checkpoint / "distill_fp8" / f"block_{name[7]}.safetensors"
    tensors = load_file(file)
    tensors[name].fill_(0 if "modulation" in name else 5000)
    save_file(tensors, file)
    assert ask(checkpoint).warnings == ()
    source = TransformerCheckpoint(resolve_transformer(file.parent))
    for spec in source.specs:
        source.read(spec)
    source.close()
    (warning,) = ask(checkpoint).warnings
    assert f"{file} may be damaged or converted wrongly, as {name} " in warning
    items = {item.name: item for item in doctor.examine({"mine": checkpoint}, checkpoint.parent)}
    assert (items["mine"].state, items["mine"].remedy) == ("warn", warning)


def test_what_a_folder_holds_beside_its_model_is_a_warning(checkpoint):
    assert ask(checkpoint).warnings == ()
    shutil.copy(checkpoints.single_file("bf16"), checkpoint / "distill_fp8" / "mine.safetensors")
    (warning,) = ask(checkpoint).warnings
    assert "mine.safetensors are not used" in warning


def test_a_single_transformer_file_is_described():
    answer = ask(checkpoints.single_file("int8"), is_checkpoint=False)
    assert answer.ok and answer.detected.startswith("int8 file, bf16 compute, 2 blocks")


@pytest.fixture
def card(monkeypatch):
    """Pretend a card, and the 14B transformer in FP8 where a file is asked for."""
    monkeypatch.setattr(module, "_resolve_transformer", lambda *_: make_files("fp8"))
    return lambda *facts, **more: pretend_card(monkeypatch, *facts, **more)


def ask_14b(**changes):
    size = {"width": 832, "height": 480, "num_frames": 81}
    return ask(checkpoints.single_file("fp8"), is_checkpoint=False, **(size | changes))


CLIP_480P = Clip(width=832, height=480, num_frames=81)
RTX_4090 = ("NVIDIA GeForce RTX 4090", (8, 9), 24, 22.5)
RTX_4060 = ("NVIDIA GeForce RTX 4060", (8, 9), 8, 7.4)


def test_a_large_card_keeps_the_weights_and_gets_an_estimate(card):
    card(*RTX_4090)
    answer = ask_14b()
    assert answer.ok and answer.offload == "none" and answer.basis == "estimate"
    assert (answer.engine, answer.attention, answer.matmul) == ("portable", "sdpa_cudnn", "scaled_mm")
    assert 15 < answer.vram.needed / GIB < 19 and answer.vram.available == int(22.5 * GIB)
    assert 40 < answer.seconds < 120


def test_a_card_without_fp8_computes_the_file_in_int8_and_is_told_so(card):
    card("NVIDIA GeForce RTX 3060", (8, 6), 12, 11.0, packages={"triton": "3.6.0"})
    answer = ask_14b()
    assert answer.ok and answer.detected.startswith("fp8 file, int8 compute, 40 blocks, ")
    assert (answer.attention, answer.matmul) == ("triton_int8", "int_triton")
    assert any(reason.startswith("fp8 file, int8 compute: weights are requantized") for reason in answer.reasons)
    # As an INT8 file's; in BF16 the linears alone would take longer.
    assert answer.basis == "estimate" and 4 * 30 < answer.seconds < 4 * 50


def test_a_faster_precision_that_is_there_too_is_named(card, checkpoint):
    """As with a repository that was fetched whole: fp8 is taken."""
    card(*RTX_4090, packages={"triton": "3.6.0"})
    answer = ask(checkpoint)
    assert answer.ok and answer.detected.startswith("fp8") and not answer.warnings
    assert re.fullmatch(
        r"Faster here: precision int8, which is there too: a step about 1\.\d times as fast as in fp8\.", answer.hint
    )
    assert ask(checkpoint, precision="int8").hint == ask(checkpoint, precision="fp8").hint == ""
    (checkpoint / "distill_int8" / "block_0.safetensors").unlink()
    assert ask(checkpoint).hint == "", "it cannot be used"
    shutil.rmtree(checkpoint / "distill_int8")
    assert ask(checkpoint).ok and ask(checkpoint).hint == ""


def test_a_small_card_streams_and_tiles(card):
    card(*RTX_4060)
    answer = ask_14b()
    assert answer.ok and answer.offload == "block" and 4 < answer.resident_blocks < 20
    assert answer.vram.needed < answer.vram.available and 9 < answer.ram.needed / GIB < 14
    assert answer.plan in answer.reasons and answer.plan.startswith("plan: block, ")
    assert ask_14b(width=1280, height=720).is_tiled
    refused = ask_14b(width=1920, height=1088)
    assert not refused.ok and "There are 7.4 GiB of VRAM and 64.0 GiB of RAM." in refused.sentence
    assert refused.engine == "portable" and refused.detected


def test_little_ram_means_disk(card):
    card(*RTX_4060, ram_gib=9)
    assert ask_14b().offload == "disk" and ask_14b().ok
    refused = ask_14b(offload=OffloadSettings(mode="block"))
    assert not refused.ok and "Set the offload mode to 'auto': it fits then (disk, " in refused.sentence


def test_weights_that_shall_stay_and_do_not_fit_are_a_no(card):
    card(*RTX_4060)
    refused = ask_14b(offload=OffloadSettings(mode="none"))
    assert not refused.ok and "Set the offload mode to 'auto': it fits then (block, " in refused.sentence


def test_a_budget_counts_as_what_is_free(card):
    card(*RTX_4090)
    answer = ask_14b(offload=OffloadSettings(vram_budget_gib=8))
    assert answer.vram.available == 8 * GIB and answer.offload == "block"


def test_a_card_without_published_rates_gets_no_seconds(card):
    card("NVIDIA GeForce RTX 4090 Laptop GPU", (8, 9), 16, 15)
    assert (ask_14b().seconds, ask_14b().basis) == (None, "unknown")


@pytest.mark.parametrize("name", ["NVIDIA GeForce RTX 4090", "NVIDIA GeForce RTX 4090 Laptop GPU"])
def test_seconds_come_from_what_was_measured_here(card, tmp_path, name):
    """Listed or not: the card has told itself."""
    card(name, *RTX_4090[1:])
    remembered.keep_in(tmp_path / "kernels.jsonl")
    device = torch.device("cuda", 0)
    combination = trials.combination_of(trials.find_machine(device), device)
    backends = TransformerHandle(make_files("fp8"), EngineSettings(), OffloadSettings()).sizes_now(CLIP_480P, device)
    problems = backends.backends.attention.problem, backends.backends.matmul.problem
    remembered.notes().add_times(combination, problems[0], {"sdpa": 0.060, "sdpa_cudnn": 0.032768})
    one = ask_14b()
    remembered.notes().add_times(combination, problems[1], {"scaled_mm": 0.024, "scaled_mm_tensor": 0.04})
    answer = ask_14b()
    assert (answer.matmul, answer.basis) == ("scaled_mm", "kernels")
    assert any("measured here, 32768 tokens, 40 heads of 128" in reason for reason in answer.reasons)
    # 40 blocks: attention, and what the linears stand for.
    milliseconds = 32.768 if answer.attention == "sdpa_cudnn" else 60
    attention = 40 * milliseconds / 1000 * (32_760 / 32_768) ** 2
    linears = 40 * 0.024 * 32_760 / 32_768
    assert attention + linears < answer.step_seconds < attention + 5 * linears
    assert (one.step_seconds is None) == ("Laptop" in name)
    # Attention of other sizes, and one that is named, are not of what was measured: what is published is left.
    for changes in ({"num_frames": 41}, {"settings": EngineSettings(attention="sdpa")}):
        assert ask_14b(**changes).basis == ("unknown" if "Laptop" in name else "kernels")


def test_launch_flags_count(card):
    card(*RTX_4090)
    assert ask_14b(policy=HostPolicy(prefer="least")).offload == "phase"
    assert ask_14b(policy=HostPolicy(reserved_vram_bytes=4 * GIB)).vram.available == int(18.5 * GIB)


def test_a_run_follows_the_forecast(card, monkeypatch):
    """The same free memory, summed in one place, gives the same plan."""
    card(*RTX_4060)
    clip = Clip(width=832, height=480, num_frames=81)
    for offload in (OffloadSettings(), OffloadSettings(mode="block"), OffloadSettings(vram_budget_gib=6)):
        handle, host = TransformerHandle(make_files("fp8"), EngineSettings(), offload), Host()
        plan = handle.room(host).plan_run(handle.sizes_now(clip, host.device))
        assert str(plan) == ask_14b(offload=offload).plan
