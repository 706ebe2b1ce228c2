"""The sampler loop against diffusers' own flow-matching schedulers, on an analytic denoiser."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from lightx2v_pack.engine.errors import NonFiniteLatentsError
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.latent_space import broken_share
from lightx2v_pack.engine.stages.denoise import run_steps, start
from lightx2v_pack.engine.stages.schedule import build_schedule
from support.cancel import CancelAfter, CancelledError
from support.engine import conditioning_of

SHAPE = (16, 3, 4, 6)
CONDITIONING = conditioning_of(torch.zeros(512, 8))


class AnalyticTransformer:
    """A smooth function of latents and time; `broken_at` makes one call return NaN."""

    device = torch.device("cpu")
    euler_dtype = torch.float32

    def __init__(self, broken_at=None):
        self.broken_at = broken_at
        self.timesteps = []

    def predict_flow(self, latents, timestep, conditioning, hooks, expert=0, then=0):
        hooks.check_interrupt()
        self.timesteps.append(timestep)
        flow = torch.tanh(latents * 0.7) + timestep / 2000
        return flow * float("nan") if len(self.timesteps) == self.broken_at else flow

    def describe(self):
        return {"engine": "analytic", "attention": "none"}


def run(method="lcm", seed=7, transformer=None, hooks=None, steps=4, cuts=()):
    """Return the latents of a whole schedule, done in the pieces that `cuts` makes of it."""
    schedule, transformer = build_schedule(steps, 5.0), transformer or AnalyticTransformer()
    state = start(SHAPE, seed, transformer.device)
    for first, last in pairwise((0, *cuts, steps)):
        part = range(first, last)
        run_steps(transformer, CONDITIONING, state, schedule, part, method=method, hooks=hooks or Hooks())
    return state.latents


def run_diffusers(scheduler_class, seed, steps=4):
    scheduler = scheduler_class(shift=5.0)
    scheduler.set_timesteps(sigmas=[1 - index / steps for index in range(steps)])
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(SHAPE, generator=generator)
    model = AnalyticTransformer()
    for timestep in scheduler.timesteps:
        flow = model.predict_flow(latents, timestep.item(), CONDITIONING, Hooks())
        latents = scheduler.step(flow, timestep, latents, generator=generator).prev_sample
    return latents


@pytest.mark.parametrize("steps", [1, 4, 6])
@pytest.mark.parametrize("method", ["lcm", "euler"])
def test_agrees_with_diffusers_schedulers(method, steps):
    import diffusers

    names = {"lcm": "FlowMatchLCMScheduler", "euler": "FlowMatchEulerDiscreteScheduler"}
    reference = run_diffusers(getattr(diffusers, names[method]), seed=3, steps=steps)
    torch.testing.assert_close(run(method, seed=3, steps=steps), reference, rtol=0, atol=2e-5)


@pytest.mark.parametrize("method", ["lcm", "euler"])
def test_a_seed_gives_the_same_latents_and_another_seed_others(method):
    assert torch.equal(run(method, seed=5), run(method, seed=5))
    assert not torch.allclose(run(method, seed=5), run(method, seed=6), atol=0.1)


def test_euler_rounds_between_steps_where_the_engine_does():
    rounding = AnalyticTransformer()
    rounding.euler_dtype = torch.bfloat16
    latents = run("euler", transformer=rounding)
    assert torch.equal(latents, latents.bfloat16().float())
    torch.testing.assert_close(latents, run("euler"), rtol=0, atol=0.05)
    assert torch.equal(run("lcm", transformer=rounding), run("lcm"))


def test_methods_differ():
    assert not torch.allclose(run("lcm"), run("euler"), atol=0.1)


def test_seeds_beyond_64_bits_wrap():
    assert torch.equal(run(seed=2**64 + 5), run(seed=5))


def test_the_model_is_told_fractional_timesteps():
    model = AnalyticTransformer()
    run(transformer=model)
    assert model.timesteps == pytest.approx([1000.0, 937.5, 833.333333, 625.0])


def test_every_step_reports_the_clean_estimate():
    seen = []
    latents = run("euler", hooks=replace(Hooks(), on_step=lambda *values: seen.append(values)))
    assert [(step, steps) for step, steps, _ in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert torch.equal(seen[-1][2], latents)


@pytest.mark.parametrize("allowed_checks", [0, 1, 4])
def test_a_cancel_passes_through_at_once(allowed_checks):
    check = CancelAfter(allowed_checks, CancelledError)
    with pytest.raises(CancelledError):
        run(hooks=Hooks(check_interrupt=check))
    assert check.calls == allowed_checks + 1


@pytest.mark.parametrize("step", [1, 3, 4])
def test_a_non_finite_step_is_named(step):
    with pytest.raises(NonFiniteLatentsError, match=rf"'sdpa'.*step {step} of 4: 100.0 % .*engine analytic"):
        run(transformer=AnalyticTransformer(broken_at=step))


@pytest.mark.parametrize(
    ("running", "advice"),
    [
        (
            {"attention": "sdpa", "ops": "torch", "offload": "none", "loras": [{"lora": "a", "strength": 2, "x": {}}]},
            r"^Sample without the LoRAs first, or with lower strengths \(a at strength 2\)\. Check .* offload none\.$",
        ),
        ({"attention": "sdpa", "ops": "torch", "offload": "none"}, "^Check the checkpoint in the doctor"),
        ({"attention": "sdpa", "ops": "triton", "offload": "block"}, "^Set compile to 'off' to rule out"),
        (
            {"attention": "triton", "ops": "torch", "offload": "disk"},
            "^Set attention to 'sdpa', then offload to 'block' to",
        ),
    ],
)
def test_the_advice_is_not_what_runs_already(monkeypatch, running, advice):
    transformer = AnalyticTransformer(broken_at=1)
    monkeypatch.setattr(transformer, "describe", lambda: running, raising=False)
    with pytest.raises(NonFiniteLatentsError, match=advice):
        run(transformer=transformer)


def test_one_broken_value_among_very_many_is_counted():
    latents = torch.zeros(2**25, dtype=torch.float16)
    assert broken_share(latents) == 0
    latents[7] = torch.inf
    assert broken_share(latents) == 2**-25


@pytest.mark.parametrize("euler_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("method", ["lcm", "euler"])
@pytest.mark.parametrize("cuts", [(2,), (1, 3), (1, 2, 3)])
def test_a_schedule_cut_between_two_transformers_gives_the_same(method, cuts, euler_dtype):
    transformer = AnalyticTransformer()
    transformer.euler_dtype = euler_dtype
    assert torch.equal(run(method, transformer=transformer, cuts=cuts), run(method, transformer=transformer))


def test_a_step_that_fails_leaves_the_clip_as_it_was():
    schedule = build_schedule(4, 5.0)
    state = start(SHAPE, 7, torch.device("cpu"))
    run_steps(AnalyticTransformer(), CONDITIONING, state, schedule, range(2), method="lcm", hooks=Hooks())
    before = state.latents
    check = CancelAfter(0, CancelledError)
    with pytest.raises(CancelledError):
        hooks = Hooks(check_interrupt=check)
        run_steps(AnalyticTransformer(), CONDITIONING, state, schedule, range(2, 4), method="lcm", hooks=hooks)
    assert state.latents is before
    run_steps(AnalyticTransformer(), CONDITIONING, state, schedule, range(2, 4), method="lcm", hooks=Hooks())
    assert torch.equal(state.latents, run("lcm"))
