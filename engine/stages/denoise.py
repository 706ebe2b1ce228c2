"""The few-step sampler loop on one clip: noise in, normalized latents out.

The transformer arrives as an argument, and a clip's state lies outside, so that a schedule can be cut between two
transformers. The schedule is stages/schedule.py; batches, latent normalization and loading are pipeline.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import NonFiniteLatentsError
from ..interfaces import Conditioning, Hooks, Transformer
from ..latent_space import broken_share
from ..sentences import joined
from ..sentences.between import Between
from ..sentences.sampling import Sampling
from .schedule import Schedule

NUM_SEEDS = 2**64


@dataclass
class ClipState:
    """One clip between two steps."""

    latents: torch.Tensor
    """[16, T, h, w] float32, normalized, on the transformer's device."""
    generator: torch.Generator
    """On the CPU, so that a seed gives the same noise on every machine."""

    def draw_noise(self) -> torch.Tensor:
        """Return fresh noise like the latents."""
        return self._draw().to(self.latents.device)

    @contextlib.contextmanager
    def noise_ahead(self) -> Iterator[Callable[[], torch.Tensor]]:
        """Draw noise beside what the `with` does, and give what returns it; as if it had not been where that fails.

        It takes a CPU 20 ms and more at 832x480, 81 frames, for which several GPUs would wait.
        """
        before = self.generator.get_state()
        with ThreadPoolExecutor(max_workers=1) as beside:
            noise = beside.submit(self._draw)
            try:
                yield lambda: noise.result().to(self.latents.device)
            except BaseException:
                noise.result()
                self.generator.set_state(before)
                raise

    def _draw(self) -> torch.Tensor:
        return torch.randn(self.latents.shape, generator=self.generator, dtype=torch.float32)


def start(latent_shape: tuple[int, int, int, int], seed: int, device: torch.device) -> ClipState:
    """Return a clip of pure noise; seed: any non-negative integer, taken modulo 2**64."""
    generator = torch.Generator("cpu").manual_seed(seed % NUM_SEEDS)
    state = ClipState(torch.empty(latent_shape, device=device), generator)
    state.latents = state.draw_noise()
    return state


def run_steps(
    transformer: Transformer,
    conditioning: Conditioning,
    state: ClipState,
    schedule: Schedule,
    steps: range,
    *,
    method: str,
    hooks: Hooks,
    expert: int = 0,
    then: int = 0,
) -> None:
    """Do some steps of a schedule, in order; all of them turn the noise of `start` into the clip's latents.

    `lcm` re-noises the estimate of the clean latents with fresh noise after every step, as the model
    card describes; `euler` keeps the noise direction, as LightX2V does since 2025-11-24. On the LightX2V
    engine its order of operations and its rounding between steps are LightX2V's
    (lightx2v/models/schedulers/wan/step_distill/scheduler.py), else ComfyUI's
    (comfy/k_diffusion/sampling.py, sample_euler), so that the latents are equal bit for bit.

    Args:
        transformer: loaded denoiser.
        conditioning: of the clip.
        state: of the clip; left as it was where a step fails.
        schedule: sigmas and timesteps.
        steps: indices of the steps to do.
        method: "lcm" or "euler".
        hooks: interrupt check before every step and block, `on_step_start` before and `on_step` after every step.
        expert: which one does them, of a model of several.
        then: which one is expected to compute after them.

    Raises:
        NonFiniteLatentsError: a step produced NaN or infinity.
    """
    between_steps = transformer.euler_dtype if method == "euler" else torch.float32
    latents = state.latents.to(between_steps).to(torch.float32)
    for index in steps:
        hooks.check_interrupt()
        hooks.on_step_start(index + 1, schedule.steps)
        following = then if index == steps[-1] else expert
        timestep = schedule.timesteps[index]
        sigma_next = schedule.sigmas[index + 1]
        draws_noise = method == "lcm" and sigma_next != 0
        with state.noise_ahead() if draws_noise else contextlib.nullcontext(state.draw_noise) as draw_noise:
            flow = transformer.predict_flow(latents, timestep, conditioning, hooks, expert, following).float()
        clean = latents - schedule.sigmas[index] * flow
        if sigma_next == 0:
            latents = clean
        elif method == "lcm":
            latents = (1 - sigma_next) * clean + sigma_next * draw_noise()
        elif between_steps == torch.float32:
            # The transformer rounds to BF16, where another last bit of a latent grows to a difference of 1 %.
            sigma = schedule.sigmas[index]
            latents = latents + (latents - clean) / sigma * (sigma_next - sigma)
        else:
            latents = clean + flow * sigma_next
        latents = latents.to(between_steps).to(torch.float32)
        _check_finite(latents, index + 1, schedule.steps, transformer)
        state.latents = latents
        hooks.on_step(index + 1, schedule.steps, clean)


def _check_finite(latents: torch.Tensor, step: int, steps: int, transformer: Transformer) -> None:
    share = broken_share(latents)
    if not share:
        return
    running = transformer.describe()
    loras = joined(
        (Sampling.LORA_AT(title=each["lora"], strength=each["strength"]) for each in running.get("loras", ())),
        Between.COMMA,
    )
    facts = ", ".join(f"{name} {value}" for name, value in running.items() if isinstance(value, str | int | float))
    raise NonFiniteLatentsError(
        Sampling.STOPPED(step=step, steps=steps, share=100 * share, facts=facts, advice=_advice(running, loras))
    )


# What rules a kernel out: the report's name of it, what is plain already, what to set.
_PLAINER = (
    ("attention", ("sdpa",), Sampling.SET_ATTENTION()),
    ("ops", ("torch",), Sampling.SET_COMPILE()),
    ("offload", ("block", "none"), Sampling.SET_OFFLOAD()),
)


def _advice(running: Mapping[str, Any], loras: str) -> str:
    """Return what to try, without what is so already; LoRAs first."""
    settings = [advice for name, plain, advice in _PLAINER if running.get(name) not in plain]
    advice = Sampling.RULE_OUT(settings=joined(settings, Between.THEN)) if settings else Sampling.CHECK()
    return Sampling.WITHOUT_LORAS(loras=loras, advice=advice) if loras else advice
