"""The few-step schedule: sigmas and timesteps from steps and shift."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from ..constants import DISTILL_STEP_LIST, DISTILL_STEPS, NUM_TRAIN_TIMESTEPS


@dataclass(frozen=True)
class Schedule:
    """Noise levels of one run.

    sigmas: steps + 1 values from 1.0 down to 0.0 (share of noise in the latents).
    timesteps: steps values, sigma * 1000, what the transformer is told.

    Both are float32 numbers, as ComfyUI's and LightX2V's schedules are: the transformer's bfloat16 activations would
    make much of a difference of one unit in the last place.
    """

    sigmas: tuple[float, ...]
    timesteps: tuple[float, ...]

    @property
    def steps(self) -> int:
        return len(self.timesteps)


def shift_sigma(sigma: float, shift: float) -> float:
    """Move a noise level towards 1: shift * s / (1 + (shift - 1) * s). Source: SD3, arXiv 2403.03206."""
    return _float32(_float32(shift * sigma) / _float32(1 + _float32((shift - 1) * sigma)))


def build_schedule(steps: int, shift: float) -> Schedule:
    """Return the schedule of `steps` steps; 4 steps and shift 5.0 give the distillation's own.

    The unshifted times are evenly spaced, (1, 0.75, 0.5, 0.25) for 4 steps, which is the step list
    1000, 750, 500, 250 the checkpoint was distilled on.
    """
    if steps == DISTILL_STEPS:
        times = [step / NUM_TRAIN_TIMESTEPS for step in DISTILL_STEP_LIST]
    else:
        times = [1 - index / steps for index in range(steps)]
    sigmas = [shift_sigma(_float32(time), shift) for time in times]
    return Schedule(
        sigmas=(*sigmas, 0.0),
        timesteps=tuple(_float32(sigma * NUM_TRAIN_TIMESTEPS) for sigma in sigmas),
    )


def experts_of(sigmas: Sequence[float], shift: float, high_steps: int | None = None) -> list[int]:
    """Return the expert of each step of Wan2.2: 0 for high noise, then 1 for low noise.

    The number of a step decides, not its noise level, so that another shift moves nothing. Where the noise levels are a
    part of a schedule, as of a sampler that starts or ends early, they only say which part: evenly spaced times before
    the shift are taken for steps.

    Args:
        sigmas: steps + 1 noise levels, descending.
        shift: that they were made with.
        high_steps: of the high-noise expert; None is half of the whole schedule.
    """
    steps = len(sigmas) - 1
    first, last = (sigma / (shift - (shift - 1) * sigma) for sigma in (sigmas[0], sigmas[-1]))
    total, done = float(steps), 0
    if first > last:
        total = steps / (first - last)
        done = round(total * (1 - first))
    boundary = int(round(total) / 2 + 0.5) if high_steps is None else high_steps
    return [int(done + index >= boundary) for index in range(steps)]


def _float32(value: float) -> float:
    """Return the float32 number next to a value."""
    rounded: float = struct.unpack("f", struct.pack("f", value))[0]
    return rounded
