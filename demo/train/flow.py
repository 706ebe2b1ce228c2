"""Stage 3: text-conditioned flow matching. The result draws well in many steps, and is the teacher of stage 4.

Clips and captions are encoded once, into a pool; from then on training sees latents and rows of text only. Captions
are never dropped: they say all there is to say, so no classifier-free guidance is needed, and the distilled model
must do without it anyway.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ...engine.constants import DISTILL_SHIFT, LATENT_MEAN, LATENT_STD
from . import captions, clips
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

    def draw(self, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return latents [batch, 16, T, h, w] and rows [batch, MAX_TOKENS, text_dim] of random clips, float32."""
        device = self.latents.device
        clip = torch.randint(len(self.latents), (batch,), device=device)
        wording = torch.randint(self.rows.shape[1], (batch,), device=device)
        return self.latents[clip].float(), self.rows[clip, wording].float()


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
) -> Pool:
    """Draw and encode clips until the budget is used up."""
    device = next(vae.parameters()).device
    words, places = random.Random(seed), torch.Generator().manual_seed(seed)
    mean, std = (torch.tensor(values, device=device).view(1, -1, 1, 1, 1) for values in (LATENT_MEAN, LATENT_STD))
    latents, texts = [], []
    for _ in budget:
        contents = [captions.draw_content(words) for _ in range(batch)]
        texts += [captions.write_caption(content, words) for content in contents for _ in range(_WORDINGS)]
        video = clips.draw_clips(contents, size=size, num_frames=num_frames, generator=places, device=device)
        with autocast(device):
            encoded = autoencoder.encode(vae, video).float()
        latents.append(((encoded - mean) / std).bfloat16())
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    tokens = captions.tokenize(texts, spiece_model).to(device)
    rows = torch.cat([generator.encode_text(part).bfloat16() for part in tokens.split(4096)])
    pool = Pool(latents=torch.cat(latents), rows=rows.unflatten(0, (-1, _WORDINGS)))
    log.write(
        pool_clips=len(pool.latents), mean=pool.latents.float().mean().item(), std=pool.latents.float().std().item()
    )
    return pool


def train_flow(
    generator: Generator,
    pool: Pool,
    budget: Budget,
    log: Log,
    *,
    batch: int = 256,
    learning_rate: float = 1e-3,
    graphs: bool = False,
    keep: Callable[[], None] = lambda: None,
) -> None:
    """Train the transformer in place to predict the flow of noisy latents.

    Noise levels are drawn evenly and moved towards 1 by the shift of the schedule: where the sampler takes most of
    its steps, and where a clip's content is decided.

    Args:
        generator: with a trained text encoder.
        pool: what to draw.
        budget: how long.
        log: gets the loss.
        batch: clips a step.
        learning_rate: the largest one.
        graphs: whether to record a step as a CUDA graph.
        keep: called every minute and at the end, with the average of the weights in place.

    Raises:
        ValueError: the loss is not a number.
    """
    trainer, average = Trainer([generator.transformer], learning_rate), Average([generator.transformer])

    def do_step() -> torch.Tensor:
        loss = measure_loss(generator, pool, batch)
        trainer.descend(loss)
        return loss.detach()

    do_step()  # where blocks are compiled, before the clock starts
    next_step = Recorded(do_step) if graphs else do_step
    alarm = Alarm()
    for step, used in budget:
        trainer.set_rate(used)
        loss = next_step()
        average.update()
        if step % 100 == 0:
            log.write(step=step, used=used, loss=loss.item())
            if not math.isfinite(loss.item()):
                raise ValueError(f"The loss is {loss.item()} at step {step}; expected a number.")
        if alarm.rings():
            with average.applied():
                keep()
    average.apply()
    keep()
    log.write(steps=step + 1)


def measure_loss(generator: Generator, pool: Pool, batch: int) -> torch.Tensor:
    """Return the mean square error of the flow that the transformer predicts for random clips of the pool."""
    latents, rows = pool.draw(batch)
    noise = torch.randn_like(latents)
    # One noise level in every 1/batch of the range, so that batches differ less.
    times = (torch.arange(batch, device=latents.device) + torch.rand(batch, device=latents.device)) / batch
    sigmas = shift_sigmas(times, DISTILL_SHIFT)
    flow = generator.predict_flow(add_noise(latents, noise, sigmas), sigmas, rows)
    return (flow - (noise - latents)).square().mean()
