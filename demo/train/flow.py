"""Stage 3: text-conditioned flow matching. The result draws well in many steps, and is the teacher of stage 4.

Clips and captions are encoded once, into a pool; from then on training sees latents and rows of text only. Captions
are never dropped: they say all there is to say, so no classifier-free guidance is needed, and the distilled model
must do without it anyway.

For image to video the pool also holds what is given of each clip, and the noise levels are shared between two experts,
as they are when they are used: the one of high noise learns the first half of the way, the other the second.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...engine.constants import DISTILL_SHIFT
from . import captions, clips, image
from . import vae as autoencoder
from .models import Generator
from .sampling import add_noise, shift_sigmas
from .training import Alarm, Average, Budget, Log, Recorded, Trainer, autocast

# Wordings of each clip of the pool.
_WORDINGS = 4


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Encoded clips and their captions, on the device."""

    latents: torch.Tensor
    """[N, 16, T, h, w] normalized, bfloat16."""
    rows: torch.Tensor
    """[N, wordings, MAX_TOKENS, text_dim], bfloat16."""
    given: torch.Tensor
    """[N, 20, T, h, w] of image.py, bfloat16; without channels where there is only text."""

    def draw(self, batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return latents [batch, 16, T, h, w], rows [batch, MAX_TOKENS, text_dim] and what is given, float32."""
        device = self.latents.device
        clip = torch.randint(len(self.latents), (batch,), device=device)
        wording = torch.randint(self.rows.shape[1], (batch,), device=device)
        return self.latents[clip].float(), self.rows[clip, wording].float(), self.given[clip].float()


@torch.no_grad()
def fill_pool(
    generator: Generator,
    vae: Any,
    spiece_model: bytes,
    budget: Budget,
    log: Log,
    *,
    seed: int,
    size: int,
    num_frames: int,
    batch: int = 64,
    has_images: bool = False,
) -> Pool:
    """Draw and encode clips until the budget is used up; with images, of every other clip the last frame is given."""
    device = next(vae.parameters()).device
    words, places = random.Random(seed), torch.Generator().manual_seed(seed)
    has_last = torch.arange(batch, device=device) % 2 == 1
    latents, given, texts = [], [], []
    for _ in budget:
        contents = [captions.draw_content(words) for _ in range(batch)]
        texts += [captions.write_caption(content, words) for content in contents for _ in range(_WORDINGS)]
        video = clips.draw_clips(contents, size=size, num_frames=num_frames, generator=places, device=device)
        with autocast(device):
            encoded = autoencoder.encode(vae, video).float()
        latents.append(autoencoder.normalize(encoded).bfloat16())
        given.append(image.encode_given(vae, video, has_last).bfloat16() if has_images else latents[-1][:, :0])
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    tokens = captions.tokenize(texts, spiece_model).to(device)
    rows = torch.cat([generator.encode_text(part).bfloat16() for part in tokens.split(4096)])
    pool = Pool(latents=torch.cat(latents), rows=rows.unflatten(0, (-1, _WORDINGS)), given=torch.cat(given))
    log.write(
        pool_clips=len(pool.latents), mean=pool.latents.float().mean().item(), std=pool.latents.float().std().item()
    )
    return pool


def train_flow(
    generators: Sequence[Generator],
    pool: Pool,
    budget: Budget,
    log: Log,
    *,
    batch: int = 256,
    learning_rate: float = 1e-3,
    graphs: bool = False,
    keep: Callable[[], None] = lambda: None,
) -> None:
    """Train transformers in place to predict the flow of noisy latents, each in its share of the noise levels.

    Noise levels are drawn evenly and moved towards 1 by the shift of the schedule: where the sampler takes most of
    its steps, and where a clip's content is decided.

    Args:
        generators: with a trained text encoder; experts from high noise to low, or only one.
        pool: what to draw.
        budget: how long.
        log: gets the loss.
        batch: clips a step and expert.
        learning_rate: the largest one.
        graphs: whether to record a step as a CUDA graph.
        keep: called every minute and at the end, with the average of the weights in place.

    Raises:
        ValueError: the loss is not a number.
    """
    transformers = [generator.transformer for generator in generators]
    trainer, average = Trainer(transformers, learning_rate), Average(transformers)

    def do_step() -> torch.Tensor:
        each = zip(generators, share_times(len(generators)), strict=True)
        losses = [measure_loss(generator, pool, batch, *share) for generator, share in each]
        trainer.descend(torch.stack(losses).sum())
        return torch.stack(losses).detach()

    do_step()  # where blocks are compiled, before the clock starts
    next_step = Recorded(do_step) if graphs else do_step
    alarm = Alarm()
    for step, used in budget:
        trainer.set_rate(used)
        losses = next_step()
        average.update()
        if step % 100 == 0:
            loss = losses.mean().item()
            each = {f"loss_{index}": value for index, value in enumerate(losses.tolist())} if len(losses) > 1 else {}
            log.write(step=step, used=used, loss=loss, **each)
            if not math.isfinite(loss):
                raise ValueError(f"The loss is {loss} at step {step}; expected a number.")
        if alarm.rings():
            with average.applied():
                keep()
    average.apply()
    keep()
    log.write(steps=step + 1)


def measure_loss(generator: Generator, pool: Pool, batch: int, last: float = 0.0, first: float = 1.0) -> torch.Tensor:
    """Return the mean square error of the flow that the transformer predicts for random clips of the pool.

    Noise levels are, before the shift, from `last` to `first`.
    """
    latents, rows, given = pool.draw(batch)
    noise = torch.randn_like(latents)
    # One noise level in every 1/batch of the range, so that batches differ less.
    shares = (torch.arange(batch, device=latents.device) + torch.rand(batch, device=latents.device)) / batch
    sigmas = shift_sigmas(last + (first - last) * shares, DISTILL_SHIFT)
    flow = generator.predict_flow(add_noise(latents, noise, sigmas), sigmas, rows, given)
    return (flow - (noise - latents)).square().mean()


def share_times(count: int) -> list[tuple[float, float]]:
    """Return the noise levels before the shift of `count` experts, high noise first: (last, first) of each."""
    return [(1 - (index + 1) / count, 1 - index / count) for index in range(count)]
