"""Is it right? Held-out prompts, sampled, decoded, and measured from the pixels by tools/clip_content.py.

`evaluate_generator` samples in batches with the networks in hand, for a quick look while training;
`evaluate_checkpoint` runs a written checkpoint through engine/pipeline.py, clip by clip, as a user's graph does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...engine import pipeline
from ...engine.constants import DISTILL_SHIFT, DISTILL_STEPS, LATENT_MEAN, LATENT_STD
from ...engine.interfaces import Hooks
from ...engine.settings import EngineSettings, OffloadSettings, SamplingSettings
from ...engine.stages.conditioning import of_rows
from ...engine.stages.schedule import build_schedule
from ...tools.clip_content import ATTRIBUTES, Content, compare, measure_clarity, measure_content
from . import captions, clips
from . import vae as autoencoder
from .models import Generator
from .sampling import SeededNoise, sample
from .training import autocast

# What is compared: name -> method, steps, shift. The last three are wrong on purpose.
SETTINGS = {
    "lcm, 4 steps": ("lcm", DISTILL_STEPS, DISTILL_SHIFT),
    "euler, 4 steps": ("euler", DISTILL_STEPS, DISTILL_SHIFT),
    "1 step": ("lcm", 1, DISTILL_SHIFT),
    "shift 1": ("lcm", DISTILL_STEPS, 1.0),
    "shift 50": ("lcm", DISTILL_STEPS, 50.0),
}
# The many steps that show how good the teacher is.
TEACHER_SETTINGS = ("euler", 20, DISTILL_SHIFT)


@dataclass(frozen=True, kw_only=True)
class Score:
    """Shares of clips, in [0, 1]."""

    attributes: dict[str, float]
    """Right in this attribute, for each of clip_content.ATTRIBUTES."""
    complete: float
    """Right in all."""
    clarity: float
    """Mean of clip_content.measure_clarity."""
    wrong: tuple[int, ...]
    """Which clips are not right in all."""

    def __str__(self) -> str:
        shares = "  ".join(f"{name} {100 * share:5.1f} %" for name, share in self.attributes.items())
        return f"{shares}  all {100 * self.complete:5.1f} %  clarity {self.clarity:.3f}"

    def facts(self) -> dict[str, Any]:
        return {**self.attributes, "all": self.complete, "clarity": self.clarity}


def score_clips(frames: Iterable[torch.Tensor], wanted: Sequence[Content]) -> Score:
    """Measure clips [F, H, W, 3] in [0, 1] and compare each with what it should show."""
    results, clarities = [], []
    for clip, content in zip(frames, wanted, strict=True):
        results.append(compare(measure_content(clip), content))
        clarities.append(measure_clarity(clip))
    return Score(
        attributes={name: sum(result[name] for result in results) / len(results) for name in ATTRIBUTES},
        complete=sum(all(result.values()) for result in results) / len(results),
        clarity=sum(clarities) / len(clarities),
        wrong=tuple(index for index, result in enumerate(results) if not all(result.values())),
    )


@torch.no_grad()
def generate(
    generator: Generator,
    vae: Any,
    spiece_model: bytes,
    prompts: Sequence[str],
    *,
    latent_shape: tuple[int, ...],
    method: str,
    steps: int,
    shift: float,
) -> list[torch.Tensor]:
    """Sample and decode a clip [F, H, W, 3] in [0, 1] for every prompt; prompt i has seed i."""
    device = generator.device
    rows = generator.encode_text(captions.tokenize(list(prompts), spiece_model).to(device))
    sampled = sample(
        lambda latents, sigmas: generator.predict_flow(latents, sigmas, rows),
        SeededNoise(list(range(len(prompts))), latent_shape, device),
        build_schedule(steps, shift),
        method,
    )
    mean, std = (torch.tensor(values, device=device)[:, None, None, None] for values in (LATENT_MEAN, LATENT_STD))
    frames = []
    for latents in (sampled.latents * std + mean).split(20):
        with autocast(device):
            video = autoencoder.decode(vae, latents).float()
        frames += [((clip + 1) / 2).clamp(0, 1).permute(1, 2, 3, 0) for clip in video]
    return frames


@torch.no_grad()
def reconstruct(
    vae: Any, contents: Sequence[Content], *, size: int, num_frames: int, seed: int
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Draw clips of `contents`, and encode and decode them; both are lists of [F, H, W, 3] in [0, 1]."""
    device = next(vae.parameters()).device
    places = torch.Generator().manual_seed(seed)
    video = clips.draw_clips(contents, size=size, num_frames=num_frames, generator=places, device=device)
    decoded = []
    for part in video.split(16):
        with autocast(device):
            decoded.append(autoencoder.decode(vae, autoencoder.encode(vae, part)).float())
    drawn_frames, decoded_frames = (
        [((clip + 1) / 2).clamp(0, 1).permute(1, 2, 3, 0) for clip in each] for each in (video, torch.cat(decoded))
    )
    return drawn_frames, decoded_frames


def evaluate_checkpoint(
    path: Path,
    *,
    precision: str,
    size: int,
    num_frames: int,
    count: int,
    tell: Callable[[str], None],
    settings: Mapping[str, tuple[str, int, float]] = SETTINGS,
) -> dict[str, Score]:
    """Run held-out prompts through the engine with each of `settings`; prompt i has seed i."""
    logging.getLogger(pipeline.__name__).setLevel(logging.ERROR)  # it warns of every wrong setting, as it should
    loaded = pipeline.load_checkpoint(
        path, precision=precision, settings=EngineSettings(), offload=OffloadSettings(mode="none")
    )
    prompts = captions.list_prompts(count)
    latent = pipeline.empty_latent(size, size, num_frames)
    hooks = Hooks()
    encoded = [pipeline.encode_text(loaded.text_encoder, text, hooks=hooks) for _, text in prompts]
    conditioning = [of_rows(rows, loaded.transformer.text_dim) for rows in encoded]
    scores = {}
    for name, (method, steps, shift) in settings.items():

        def run(index: int) -> torch.Tensor:
            sampling = SamplingSettings(seed=index, method=method, steps=steps, shift=shift)  # noqa: B023
            samples = pipeline.sample(loaded.transformer, conditioning[index], latent, sampling, hooks=hooks)
            return pipeline.decode(loaded.vae, samples, hooks=hooks)

        scores[name] = score_clips(map(run, range(count)), [content for content, _ in prompts])
        tell(f"{name:16s}{scores[name]}")
    return scores
