"""Stage 4: distillation to the four steps of the real schedule, for both sampling methods.

A state is what the student's own sampler passes on its way from noise: at each of the four noise levels, with lcm
and with euler. From a state the teacher follows the flow to its end in many small steps; the student learns to get
there in one. So at every step the student sees what it will see when it is used, its own mistakes included, and
learns what the teacher would make of it: no data are needed, only captions and noise.

What the teacher makes of a state stays true, however the student changes. So states and their ends are kept in a
buffer and used several times, which is what makes this affordable.
"""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from ...engine.constants import DISTILL_SHIFT, DISTILL_STEPS
from ...engine.logic.schedule import build_schedule
from ...engine.settings import SAMPLING_METHODS
from . import captions, sampling
from .models import Generator, load_modules
from .training import Average, Budget, Log, Trainer

SCHEDULE = build_schedule(DISTILL_STEPS, DISTILL_SHIFT)
# Steps of the teacher from any state.
_TEACHER_STEPS = 12
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
        return Pairs(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    def followed_by(self, other: Pairs) -> Pairs:
        return Pairs(
            **{each.name: torch.cat([getattr(self, each.name), getattr(other, each.name)]) for each in fields(self)}
        )


def distill(
    generator: Generator,
    spiece_model: bytes,
    budget: Budget,
    log: Log,
    *,
    latent_shape: tuple[int, ...],
    seed: int,
    batch: int = 256,
    learning_rate: float = 5e-4,
    resume: Path | None = None,
) -> None:
    """Train the transformer in place to do in four steps what it did in many.

    The student starts from the teacher, or from the transformer in the file `resume`.
    """
    student, teacher = (
        generator,
        Generator(transformer=copy.deepcopy(generator.transformer), text_encoder=generator.text_encoder),
    )
    if resume:
        load_modules(resume, transformer=student.transformer)
    trainer, average = Trainer([student.transformer], learning_rate), Average([student.transformer])
    words = random.Random(seed)
    texts = [captions.write_caption(captions.draw_content(words), words) for _ in range(64 * batch)]
    tokens = captions.tokenize(texts, spiece_model).to(student.device)

    def finish_samples(round_index: int) -> Pairs:
        chosen = torch.randint(len(tokens), (batch,), device=student.device)
        return make_pairs(student, teacher, tokens[chosen], latent_shape, SAMPLING_METHODS[round_index % 2])

    buffer = finish_samples(1)
    measure_errors(student, buffer[:batch]).mean().backward()  # where blocks are compiled, before the clock starts
    for step, used in budget:
        if step % _BATCHES_PER_ROUND == 0:
            buffer = buffer.followed_by(finish_samples(step // _BATCHES_PER_ROUND))[-_BUFFER_BATCHES * batch :]
        pairs = buffer[torch.randint(len(buffer.sigmas), (batch,), device=student.device)]
        errors = measure_errors(student, pairs)
        trainer.step(((errors + _SOFT**2).sqrt() - _SOFT).mean(), used)
        average.update()
        if step % 100 == 0:
            levels = {
                f"error_{sigma:.4g}": errors[pairs.sigmas == sigma].mean().item() for sigma in SCHEDULE.sigmas[:-1]
            }
            log.write(step=step, used=used, **levels)
    average.apply()
    log.write(steps=step + 1)


@torch.no_grad()
def make_pairs(
    student: Generator, teacher: Generator, tokens: torch.Tensor, latent_shape: tuple[int, ...], method: str
) -> Pairs:
    """Let the student sample, and the teacher finish from every state the student passed."""
    batch, device = len(tokens), student.device
    rows = student.encode_text(tokens)

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
            _TEACHER_STEPS,
        )
        for index, states in enumerate(sampled.states)
    ]
    return Pairs(
        states=torch.cat(sampled.states),
        sigmas=torch.tensor(SCHEDULE.sigmas[:-1], device=device).repeat_interleave(batch),
        rows=rows.repeat(DISTILL_STEPS, 1, 1),
        ends=torch.cat(ends),
    )


def measure_errors(student: Generator, pairs: Pairs) -> torch.Tensor:
    """Return the mean square distance [N] of what the student makes of states in one step from where they end."""
    flow = student.predict_flow(pairs.states, pairs.sigmas, pairs.rows)
    clean = pairs.states - pairs.sigmas[:, None, None, None, None] * flow
    return (clean - pairs.ends).square().mean(dim=(1, 2, 3, 4))
