"""From noise to latents, in batches: the few-step sampler that training has to suit, and many steps of a teacher.

`sample` does what engine/stages/denoise.py does for one clip, with the same noise for a seed, and gives back what it
passes on the way: the states that distillation trains on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from ...engine.stages.schedule import Schedule

Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(latents [B, ...], sigmas [B]) -> flow [B, ...], for captions that are fixed."""


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """Latents, and the state before each step."""

    latents: torch.Tensor
    states: tuple[torch.Tensor, ...]


class SeededNoise:
    """Draws the noise of a batch of clips, each from its own seed, as the engine does."""

    def __init__(self, seeds: list[int], shape: tuple[int, ...], device: torch.device) -> None:
        self._generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        self._shape, self._device = shape, device

    def __call__(self) -> torch.Tensor:
        return torch.stack([torch.randn(self._shape, generator=each) for each in self._generators]).to(self._device)


@torch.no_grad()
def sample(
    predicts: Sequence[Predict], draw_noise: Callable[[], torch.Tensor], schedule: Schedule, method: str
) -> Sampled:
    """Denoise a batch of clips in the steps of a schedule, which the experts share; `method` is lcm or euler."""
    latents, states = draw_noise(), []
    for index, (sigma, sigma_next) in enumerate(pairwise(schedule.sigmas)):
        predict = predicts[index * len(predicts) // schedule.steps]
        states.append(latents)
        flow = predict(latents, torch.full((len(latents),), sigma, device=latents.device))
        clean = latents - sigma * flow
        if sigma_next == 0:
            latents = clean
        elif method == "lcm":
            latents = (1 - sigma_next) * clean + sigma_next * draw_noise()
        else:
            latents = clean + flow * sigma_next
    return Sampled(latents=latents, states=tuple(states))


@torch.no_grad()
def solve(
    predict: Predict, latents: torch.Tensor, times: torch.Tensor, shift: float, steps: int, end: float = 0.0
) -> torch.Tensor:
    """Follow the flow from noisy latents to clean ones, or to less noisy ones, in many small steps.

    Args:
        predict: the teacher.
        latents: [B, ...].
        times: [B] noise levels of the latents before the shift, in [0, 1].
        shift: as in engine/stages/schedule.py.
        steps: how many, evenly spaced in unshifted time.
        end: noise level before the shift at which to stop.
    """
    for index in range(steps):
        sigmas, sigmas_next = (
            shift_sigmas(times + (end - times) * (done / steps), shift) for done in (index, index + 1)
        )
        flow = predict(latents, sigmas)
        latents = latents + _like(sigmas_next - sigmas, latents) * flow
    return latents


def shift_sigmas(times: torch.Tensor, shift: float) -> torch.Tensor:
    """Move noise levels towards 1, as engine/stages/schedule.py does for one."""
    return shift * times / (1 + (shift - 1) * times)


def add_noise(latents: torch.Tensor, noise: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """Mix clean latents [B, ...] with a share `sigmas` [B] of noise."""
    return torch.lerp(latents, noise, _like(sigmas, latents))


def _like(values: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    return values.view(-1, *[1] * (latents.ndim - 1))
