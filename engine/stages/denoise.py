"""The few-step sampler loop: noise in, normalised latents out. One clip at a time.

The transformer arrives as an argument; the schedule is stages/schedule.py. Batches, latent
normalisation and loading are pipeline.py.
"""

from __future__ import annotations

import torch

from ..errors import NonFiniteLatentsError
from ..interfaces import Hooks, Transformer
from .schedule import Schedule

_NUM_SEEDS = 2**64


def denoise(
    transformer: Transformer,
    context: torch.Tensor,
    latent_shape: tuple[int, int, int, int],
    schedule: Schedule,
    *,
    method: str,
    seed: int,
    hooks: Hooks,
) -> torch.Tensor:
    """Turn noise into the latents of one clip.

    `lcm` re-noises the estimate of the clean latents with fresh noise after every step, as the model
    card describes; `euler` keeps the noise direction, as LightX2V does since 2025-11-24
    (lightx2v/models/schedulers/wan/step_distill/scheduler.py: same order of operations and, on the
    LightX2V engine, same rounding between steps, so that the latents are equal bit for bit). All noise
    comes from one CPU generator, so a seed gives the same noise on every machine.

    Args:
        transformer: loaded denoiser.
        context: [512, text_dim] text rows.
        latent_shape: (16, T, h, w).
        schedule: sigmas and timesteps.
        method: "lcm" or "euler".
        seed: any non-negative integer; taken modulo 2**64.
        hooks: interrupt check before every step and block, `on_step` after every step.

    Returns:
        [16, T, h, w] float32, normalised, on the transformer's device.

    Raises:
        NonFiniteLatentsError: a step produced NaN or infinity.
    """
    generator = torch.Generator("cpu").manual_seed(seed % _NUM_SEEDS)

    between_steps = transformer.euler_dtype if method == "euler" else torch.float32

    def draw_noise() -> torch.Tensor:
        return torch.randn(latent_shape, generator=generator, dtype=torch.float32).to(transformer.device)

    latents = draw_noise().to(between_steps).to(torch.float32)
    for index, timestep in enumerate(schedule.timesteps):
        hooks.check_interrupt()
        flow = transformer.predict_flow(latents, timestep, context, hooks).to(torch.float32)
        clean = latents - schedule.sigmas[index] * flow
        sigma_next = schedule.sigmas[index + 1]
        if sigma_next == 0:
            latents = clean
        elif method == "lcm":
            latents = (1 - sigma_next) * clean + sigma_next * draw_noise()
        else:
            latents = clean + flow * sigma_next
        latents = latents.to(between_steps).to(torch.float32)
        _check_finite(latents, index + 1, schedule.steps, transformer)
        hooks.on_step(index + 1, schedule.steps, clean)
    return latents


def _check_finite(latents: torch.Tensor, step: int, steps: int, transformer: Transformer) -> None:
    finite = torch.isfinite(latents)
    if bool(finite.all()):
        return
    share = 100 * (1 - finite.float().mean().item())
    facts = ", ".join(f"{name} {value}" for name, value in transformer.describe().items())
    raise NonFiniteLatentsError(
        f"Sampling stopped at step {step} of {steps}: {share:.1f} % of the latents are NaN or infinite, so the video "
        f"would be black or noise. Running: {facts}. Set attention to 'sdpa', then compile to 'off', then offload to "
        "'block' to rule out a kernel, then check that the checkpoint is complete (the loader's log line says what it "
        "resolved)."
    )
