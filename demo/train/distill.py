"""Stage 4: distillation to the four steps of the real schedule, for both sampling methods.

A state is what the student's own sampler passes on its way from noise: at each of the four noise levels, with lcm
and with euler. From a state the teacher follows the flow to its end in many small steps; the student learns to get
there in one. So at every step the student sees what it will see when it is used, its own mistakes included, and
learns what the teacher would make of it: no data are needed, only captions and noise.

What the teacher makes of a state stays true, however the student changes. So states and their ends are kept in a
buffer and used several times, which is what makes this affordable.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from ...engine.constants import DISTILL_SHIFT, DISTILL_STEPS
from ...engine.settings import SAMPLING_METHODS
from ...engine.stages.schedule import build_schedule
from . import captions, sampling
from .models import Generator
from .training import Alarm, Average, Budget, Log, Recorded, Trainer

SCHEDULE = build_schedule(DISTILL_STEPS, DISTILL_SHIFT)
# Steps of the teacher from noise to the end; from a state on the way as many as are left.
_TEACHER_STEPS = 16
# Every round adds four batches of pairs, one for each noise level, and trains on this many batches of the buffer.
_BATCHES_PER_ROUND = 16
# The buffer holds so many batches.
_BUFFER_BATCHES = 64
# Root mean square error below which the loss is quadratic; above, a clip counts by its distance alone, so that the
# first step, which can be far off, does not drown the last, which makes the picture.
_SOFT = 0.05


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """States and where the teacher takes them."""

    states: torch.Tensor
    """[N, 16, T, h, w]."""
    sigmas: torch.Tensor
    """[N]."""
    rows: torch.Tensor
    """[N, MAX_TOKENS, text_dim]."""
    ends: torch.Tensor
    """[N, 16, T, h, w], clean."""

    def __getitem__(self, index: torch.Tensor | slice) -> Pairs:
        return Pairs(**{name: values[index] for name, values in vars(self).items()})

    def repeat(self, count: int) -> Pairs:
        return Pairs(**{name: values.repeat(count, *[1] * (values.ndim - 1)) for name, values in vars(self).items()})

    def overwrite(self, start: int, other: Pairs) -> None:
        """Put `other` in place of the pairs from `start` on."""
        for name, values in vars(other).items():
            getattr(self, name)[start : start + len(values)] = values


def distill(
    student: Generator,
    teacher: Generator,
    spiece_model: bytes,
    budget: Budget,
    log: Log,
    *,
    latent_shape: tuple[int, ...],
    seed: int,
    batch: int = 256,
    learning_rate: float = 5e-4,
    graphs: bool = False,
    keep: Callable[[], None] = lambda: None,
) -> None:
    """Train the student's transformer in place to do in four steps what the teacher does in many.

    The student should start with the teacher's weights. For `graphs` and `keep` see `train_flow`.
    """
    trainer, average = Trainer([student.transformer], learning_rate), Average([student.transformer])
    rows = encode_captions(student, spiece_model, 64 * batch, seed)

    def draw_pairs(method: str) -> Pairs:
        chosen = torch.randint(len(rows), (batch,), device=student.device)
        return make_pairs(student, teacher, rows[chosen], latent_shape, method)

    def do_step() -> torch.Tensor:
        pairs = buffer[torch.randint(len(buffer.sigmas), (batch,), device=student.device)]
        errors = measure_errors(student, pairs)
        trainer.descend(((errors + _SOFT**2).sqrt() - _SOFT).mean())
        return torch.stack([errors.detach(), pairs.sigmas])

    buffer = draw_pairs("euler").repeat(_BUFFER_BATCHES // DISTILL_STEPS)
    do_step()  # where blocks are compiled, before the clock starts
    record = Recorded if graphs else lambda step: step
    next_step = record(do_step)
    next_pairs = [record(partial(draw_pairs, method)) for method in SAMPLING_METHODS]

    def renew_buffer(round_index: int) -> None:
        pairs = next_pairs[round_index % len(next_pairs)]()
        buffer.overwrite(len(pairs.sigmas) * round_index % len(buffer.sigmas), pairs)

    for round_index in range(_BUFFER_BATCHES // DISTILL_STEPS):
        renew_buffer(round_index)
    alarm = Alarm()
    for step, used in budget:
        if step % _BATCHES_PER_ROUND == 0:
            renew_buffer(step // _BATCHES_PER_ROUND)
        trainer.set_rate(used)
        errors, sigmas = next_step()
        average.update()
        if step % 100 == 0:
            levels = {f"error_{sigma:.4g}": errors[sigmas == sigma].mean().item() for sigma in SCHEDULE.sigmas[:-1]}
            log.write(step=step, used=used, **levels)
        if alarm.rings():
            with average.applied():
                keep()
    average.apply()
    keep()
    log.write(steps=step + 1)


@torch.no_grad()
def encode_captions(generator: Generator, spiece_model: bytes, count: int, seed: int) -> torch.Tensor:
    """Return the rows [count, MAX_TOKENS, text_dim] of captions of the training."""
    words = random.Random(seed)
    texts = [captions.write_caption(captions.draw_content(words), words) for _ in range(count)]
    tokens = captions.tokenize(texts, spiece_model).to(generator.device)
    return torch.cat([generator.encode_text(part) for part in tokens.split(4096)])


@torch.no_grad()
def make_pairs(
    student: Generator, teacher: Generator, rows: torch.Tensor, latent_shape: tuple[int, ...], method: str
) -> Pairs:
    """Let the student sample for text rows [B, MAX_TOKENS, text_dim], and the teacher finish from every state."""
    batch, device = len(rows), student.device

    def draw_noise() -> torch.Tensor:
        return torch.randn(batch, *latent_shape, device=device)

    sampled = sampling.sample(
        lambda latents, sigmas: student.predict_flow(latents, sigmas, rows), draw_noise, SCHEDULE, method
    )
    ends = [
        sampling.solve(
            lambda latents, sigmas: teacher.predict_flow(latents, sigmas, rows),
            states,
            torch.full((batch,), 1 - index / DISTILL_STEPS, device=device),
            DISTILL_SHIFT,
            _TEACHER_STEPS * (DISTILL_STEPS - index) // DISTILL_STEPS,
        )
        for index, states in enumerate(sampled.states)
    ]
    sigmas = [torch.full((batch,), sigma, device=device) for sigma in SCHEDULE.sigmas[:-1]]
    return Pairs(
        states=torch.cat(sampled.states),
        sigmas=torch.cat(sigmas),
        rows=rows.repeat(DISTILL_STEPS, 1, 1),
        ends=torch.cat(ends),
    )


def measure_errors(student: Generator, pairs: Pairs) -> torch.Tensor:
    """Return the mean square distance [N] of what the student makes of states in one step from where they end."""
    flow = student.predict_flow(pairs.states, pairs.sigmas, pairs.rows)
    clean = pairs.states - pairs.sigmas[:, None, None, None, None] * flow
    return (clean - pairs.ends).square().mean(dim=(1, 2, 3, 4))
