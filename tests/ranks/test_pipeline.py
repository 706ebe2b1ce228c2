"""A whole run with several ranks through the public functions: latents, frames, report, cancel, unload, LoRAs."""

import os
import signal
from dataclasses import replace

import psutil
import pytest
import torch
from lightx2v_pack.engine import pipeline
from lightx2v_pack.engine.errors import LightX2VError, RankError
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.memory.clip import Clip
from lightx2v_pack.engine.parallel import group as groups
from lightx2v_pack.engine.settings import EngineSettings, GpuSettings, OffloadSettings, SamplingSettings
from lightx2v_pack.engine.stages.conditioning import of_rows
from lightx2v_pack.engine.stages.given import Given, with_given
from support import checkpoints, loras
from support.cancel import After, CancelledError, press_cancel
from support.tensors import normal
from test_ranks import SIZES

SAMPLING = SamplingSettings(seed=3)


def load(gpus, sizes=SIZES, **settings):
    return pipeline.load_checkpoint(
        checkpoints.distilled("fp8", sizes),
        settings=EngineSettings(**settings),
        offload=OffloadSettings(),
        gpus=GpuSettings(gpus=gpus),
    )


def sample(transformer, hooks=None):
    rows = torch.zeros(1, 512, SIZES.text_dim)
    rows[:, :9] = normal(9, SIZES.text_dim, seed=2)
    empty = pipeline.empty_latent(160, 128, 9)
    conditioning = of_rows(rows, SIZES.text_dim, ())
    return pipeline.sample(transformer, conditioning, empty, SAMPLING, hooks=hooks or Hooks())


def test_a_run_gives_the_latents_and_frames_of_one_device_and_says_who_computed(two_devices):
    previews = []
    hooks = Hooks(on_step=lambda step, steps, clean: previews.append((step, steps, tuple(clean.shape))))
    alone, together = load("1"), load("2")
    expected = sample(alone.transformer)
    latents = sample(together.transformer, hooks)
    assert torch.equal(latents, expected)
    assert previews == [(step, 4, (16, 3, 16, 20)) for step in (1, 2, 3, 4)]
    frames = pipeline.decode(together.vae, latents, hooks=Hooks())
    assert torch.equal(frames, pipeline.decode(alone.vae, expected, hooks=Hooks()))
    stages = {stage["stage"]: stage["details"] for stage in pipeline.report_of(frames)["stages"]}
    assert stages["sample"]["gpus"] == stages["decode"]["gpus"] == 2
    assert [each["device"] for each in stages["sample"]["ranks"]] == ["rank 0", "rank 1"]
    # Tiles are blended by one device, as ever.
    tiled = pipeline.decode(together.vae, latents, tiling="on", hooks=Hooks())
    assert torch.equal(tiled, pipeline.decode(alone.vae, latents, tiling="on", hooks=Hooks()))


def test_ranks_end_with_what_they_hold(two_devices, kept):
    # Those that other tests keep would be taken.
    while kept:
        kept.pop().close()
    together = load("2").transformer
    sample(together)
    ids = together.owner.engine._group.process_ids
    assert all(map(psutil.pid_exists, ids))
    together.unload()
    assert not any(map(psutil.pid_exists, ids))
    assert torch.equal(sample(together), sample(load("1").transformer))


def test_loras_apply_on_every_rank(two_devices, tmp_path):
    file = loras.write(tmp_path / "lora.safetensors", loras.draw(checkpoints.transformer_weights(SIZES)))
    results = []
    for gpus in ("1", "2"):
        loaded = load(gpus).transformer
        view = loaded.with_lora(loaded.read_lora(file), 0.8)
        results.append([sample(each) for each in (view, loaded)])
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    assert not torch.equal(results[0][0], results[0][1])


def test_an_image_is_seen_by_every_rank(two_devices):
    """Two clips of one image, then another: each rank makes its keys and values itself, once."""
    sizes = replace(SIZES, in_dim=36, image_dim=32)
    one, two = (load(gpus, sizes).transformer for gpus in ("1", "2"))
    (text,) = of_rows(normal(9, SIZES.text_dim, seed=2), SIZES.text_dim, ())
    empty = pipeline.empty_latent(160, 128, 9)
    for seed in (1, 1, 2):
        given = Given(
            latents=normal(1, 16, 3, 16, 20, seed=seed),
            mask=torch.zeros(1, 1, 1, 16, 20),
            rows=normal(1, 257, 32, seed=seed),
        )
        entries = with_given([text], given, one.architecture, Clip.of_latents(empty.shape))
        clips = [pipeline.sample(each, entries, empty, SAMPLING, hooks=Hooks()) for each in (one, two)]
        assert torch.equal(*clips)


def test_lightx2v_and_a_cpu_are_refused_by_name(two_devices, monkeypatch):
    with pytest.raises(LightX2VError, match="Set engine to 'auto', or gpus of LightX2V GPUs to 1"):
        sample(load("2", engine="lightx2v").transformer)
    monkeypatch.undo()
    with pytest.raises(LightX2VError, match="it is '2', and this process sees no GPU"):
        sample(load("2").transformer)
    assert torch.equal(sample(load("auto").transformer), sample(load("1").transformer))


def test_both_experts_of_a_pair_compute_on_every_rank(two_devices):
    results = []
    for gpus in ("1", "2"):
        settings = {"settings": EngineSettings(), "offload": OffloadSettings(), "gpus": GpuSettings(gpus=gpus)}
        handle = pipeline.load_transformer(checkpoints.experts(), **settings)
        rows = torch.zeros(1, 512, handle.text_dim)
        rows[:, :9] = normal(9, handle.text_dim, seed=2)
        empty = pipeline.empty_latent(96, 64, 9)
        conditioning = of_rows(rows, handle.text_dim, ())
        results.append(pipeline.sample(handle, conditioning, empty, SAMPLING, hooks=Hooks()))
    assert torch.equal(*results)


def test_a_full_card_is_tried_once_more_by_new_ranks(two_devices, monkeypatch):
    """And once only; what it says names the card."""
    ask, times = groups.WorkerGroup.ask, 1

    def run_out(group, doing, name, *rest, **more):
        nonlocal times
        if name == "predict" and times:
            times -= 1
            facts = {"kind": "memory", "type": "OutOfMemoryError", "text": "CUDA out of memory."}
            group._fail(doing, group._ranks[1], facts)
        return ask(group, doing, name, *rest, **more)

    monkeypatch.setattr(groups.WorkerGroup, "ask", run_out)
    together = load("2").transformer
    assert torch.equal(sample(together), sample(load("1").transformer))
    assert times == 0
    times = 2
    with pytest.raises(torch.cuda.OutOfMemoryError, match=r"Sampling: rank 1 ran out of memory \(CUDA out of memory\."):
        sample(together)
    assert torch.equal(sample(together), sample(load("1").transformer))


def test_a_decode_is_cancelled_and_a_rank_that_dies_in_it_is_named(two_devices, members):
    latents = normal(1, 16, 5, 24, 24, seed=3)
    alone, together = load("1").vae, load("2").vae
    expected = pipeline.decode(alone, latents, hooks=Hooks())
    assert torch.equal(pipeline.decode(together, latents, hooks=Hooks()), expected)
    ids = groups.running_group(members(2)).process_ids
    with pytest.raises(CancelledError):
        pipeline.decode(together, latents, hooks=Hooks(check_interrupt=After(5, press_cancel)))
    assert torch.equal(pipeline.decode(together, latents, hooks=Hooks()), expected)
    assert groups.running_group(members(2)).process_ids == ids
    kill = After(5, lambda: os.kill(ids[2], signal.SIGKILL))
    with pytest.raises(RankError, match=r"Decoding stopped: the process of rank 1 has ended \(SIGKILL\)"):
        pipeline.decode(together, latents, hooks=Hooks(check_interrupt=kill))
    assert not any(map(psutil.pid_exists, ids))
    assert torch.equal(pipeline.decode(together, latents, hooks=Hooks()), expected)
