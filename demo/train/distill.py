"""Stage 4: distillation to the four steps of the real schedule, for both sampling methods.

A state is what the student's own sampler passes on its way from noise: at each of the four noise levels, with lcm
and with euler. From a state the teacher follows the flow to its end in many small steps; the student learns to get
there in one. So at every step the student sees what it will see when it is used, its own mistakes included, and
learns what the teacher would make of it: no data are needed, only captions and noise.

What the teacher makes of a state stays true, however the student changes. So states and their ends are kept in a
buffer and used several times, which is what makes this affordable.

Two experts pass the states on: the one of high noise makes the first half of the steps and learns from its states,
and what it leaves is where the other begins.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from ...engine.constants import DISTILL_SHIFT, DISTILL_STEPS
from ...engine.settings import SAMPLING_METHODS
from ...engine.stages.schedule import build_schedule
from . import captions, sampling
from .flow import share_times
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
    """States of one student, and where the teachers take them."""

    states: torch.Tensor
    """[N, 16, T, h, w]."""
    sigmas: torch.Tensor
    """[N]."""
    rows: torch.Tensor
    """[N, MAX_TOKENS, text_dim]."""
    given: torch.Tensor
    """[N, 20, T, h, w], or without channels."""
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


Conditions = Callable[[int], tuple[torch.Tensor, torch.Tensor]]
"""number -> text rows [number, MAX_TOKENS, text_dim] and what is given [number, 20 or 0, T, h, w], drawn anew."""


def distill(
    students: Sequence[Generator],
    teachers: Sequence[Generator],
    draw_conditions: Conditions,
    budget: Budget,
    log: Log,
    *,
    latent_shape: tuple[int, ...],
    batch: int = 256,
    learning_rate: float = 5e-4,
    graphs: bool = False,
    keep: Callable[[], None] = lambda: None,
) -> None:
    """Train the students' transformers in place to do together in four steps what the teachers do in many.

    Each student should start with its teacher's weights. There is one of both, or two experts, high noise first.
    `batch` is of a step and expert. For `graphs` and `keep` see `train_flow`.
    """
    transformers = [student.transformer for student in students]
    trainer, average = Trainer(transformers, learning_rate), Average(transformers)
    device = students[0].device

    def draw_pairs(method: str) -> tuple[Pairs, ...]:
        return make_pairs(students, teachers, *draw_conditions(batch), latent_shape, method)

    def do_step() -> torch.Tensor:
        errors, sigmas = [], []
        for student, buffer in zip(students, buffers, strict=True):
            pairs = buffer[torch.randint(len(buffer.sigmas), (batch,), device=device)]
            errors.append(measure_errors(student, pairs))
            sigmas.append(pairs.sigmas)
        trainer.descend(torch.stack([soften(each) for each in errors]).sum())
        return torch.stack([torch.cat(errors).detach(), torch.cat(sigmas)])

    buffers = [pairs.repeat(_BUFFER_BATCHES // DISTILL_STEPS) for pairs in draw_pairs("euler")]
    do_step()  # where blocks are compiled, before the clock starts
    record = Recorded if graphs else lambda step: step
    next_step = record(do_step)
    next_pairs = [record(partial(draw_pairs, method)) for method in SAMPLING_METHODS]

    def renew_buffer(round_index: int) -> None:
        for buffer, pairs in zip(buffers, next_pairs[round_index % len(next_pairs)](), strict=True):
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
    students: Sequence[Generator],
    teachers: Sequence[Generator],
    rows: torch.Tensor,
    given: torch.Tensor,
    latent_shape: tuple[int, ...],
    method: str,
) -> tuple[Pairs, ...]:
    """Let the students sample, and the teachers finish from every state; returns the pairs of each student.

    Args:
        students: experts, high noise first, or only one; teachers too.
        teachers: as many.
        rows: text, [B, MAX_TOKENS, text_dim].
        given: [B, 20, T, h, w], or without channels.
        latent_shape: of a clip, [16, T, h, w].
        method: lcm or euler.
    """
    batch, device = len(rows), students[0].device

    def draw_noise() -> torch.Tensor:
        return torch.randn(batch, *latent_shape, device=device)

    def predict(generator: Generator, latents: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
        return generator.predict_flow(latents, sigmas, rows, given)

    def finish(states: torch.Tensor, time: float) -> torch.Tensor:
        for teacher, (end, _) in zip(teachers, share_times(len(teachers)), strict=True):
            if time > end:
                times, steps = torch.full((batch,), time, device=device), round(_TEACHER_STEPS * (time - end))
                states = sampling.solve(partial(predict, teacher), states, times, DISTILL_SHIFT, steps, end)
                time = end
        return states

    predicts = [partial(predict, student) for student in students]
    states = sampling.sample(predicts, draw_noise, SCHEDULE, method).states
    ends = [finish(each, 1 - index / DISTILL_STEPS) for index, each in enumerate(states)]
    sigmas = [torch.full((batch,), sigma, device=device) for sigma in SCHEDULE.sigmas[:-1]]
    count = DISTILL_STEPS // len(students)
    parts = [slice(first, first + count) for first in range(0, DISTILL_STEPS, count)]
    return tuple(
        Pairs(
            states=torch.cat(states[part]),
            sigmas=torch.cat(sigmas[part]),
            rows=rows.repeat(count, 1, 1),
            given=given.repeat(count, 1, 1, 1, 1),
            ends=torch.cat(ends[part]),
        )
        for part in parts
    )


def measure_errors(student: Generator, pairs: Pairs) -> torch.Tensor:
    """Return the mean square distance [N] of what the student makes of states in one step from where they end."""
    flow = student.predict_flow(pairs.states, pairs.sigmas, pairs.rows, pairs.given)
    clean = pairs.states - pairs.sigmas[:, None, None, None, None] * flow
    return (clean - pairs.ends).square().mean(dim=(1, 2, 3, 4))


def soften(errors: torch.Tensor) -> torch.Tensor:
    """Return the loss of mean square distances [N]: see _SOFT."""
    return ((errors + _SOFT**2).sqrt() - _SOFT).mean()
