"""Is it right? Held-out prompts, sampled, decoded, and measured from the pixels by tools/clip_content.py.

Of films that begin with an image it is also measured how well they keep it and go on from it.

`evaluate_generator` samples in batches with the networks in hand, for a quick look while training;
`evaluate_checkpoint` runs a written checkpoint through engine/pipeline.py, clip by clip, as a user's graph does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...engine import pipeline
from ...engine.constants import DISTILL_SHIFT, DISTILL_STEPS
from ...engine.interfaces import Hooks
from ...engine.memory.clip import Clip
from ...engine.settings import EngineSettings, OffloadSettings, SamplingSettings
from ...engine.stages.conditioning import of_rows
from ...engine.stages.given import Given, with_given
from ...engine.stages.given_frames import lay_out
from ...engine.stages.schedule import build_schedule
from ...tools.clip_content import (
    ATTRIBUTES,
    THING_COLOURS,
    Content,
    compare,
    measure_clarity,
    measure_content,
    measure_jump,
    measure_psnr,
)
from . import captions, clips, image
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
# PSNR in dB from which a frame counts as kept, and the largest measure_jump of a film that goes on from it.
GOOD_PSNR = 25.0
LARGEST_JUMP = 2.0
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

    image: dict[str, float] = field(default_factory=dict)
    """Of films that begin with an image, see `score_films`."""

    def __str__(self) -> str:
        shares = "  ".join(f"{name} {100 * share:5.1f} %" for name, share in self.attributes.items())
        image = "".join(f"  {name} {value:.3g}" for name, value in self.image.items())
        return f"{shares}  all {100 * self.complete:5.1f} %  clarity {self.clarity:.3f}{image}"

    def facts(self) -> dict[str, Any]:
        return {**self.attributes, "all": self.complete, "clarity": self.clarity, **self.image}


def score_clips(
    frames: Iterable[torch.Tensor], wanted: Sequence[Content], thing_colours: Sequence[str] = THING_COLOURS
) -> Score:
    """Measure clips [F, H, W, 3] in [0, 1] and compare each with what it should show."""
    results, clarities = [], []
    for clip, content in zip(frames, wanted, strict=True):
        results.append(compare(measure_content(clip, thing_colours), content))
        clarities.append(measure_clarity(clip))
    return Score(
        attributes={name: sum(result[name] for result in results) / len(results) for name in ATTRIBUTES},
        complete=sum(all(result.values()) for result in results) / len(results),
        clarity=sum(clarities) / len(clarities),
        wrong=tuple(index for index, result in enumerate(results) if not all(result.values())),
    )


def score_films(
    films: Sequence[torch.Tensor], drawn: Sequence[torch.Tensor], has_last: Sequence[bool]
) -> dict[str, float]:
    """Compare films that begin with an image with the drawn clips that it is from, all [F, H, W, 3] in [0, 1].

    Returns:
        PSNR in dB of the first frame (mean, and the share of films with at least `GOOD_PSNR`) and, where it was given
        too, of the last; and the share of films that go on from the first frame without a jump.
    """
    first = torch.tensor([measure_psnr(film[0], clip[0]) for film, clip in zip(films, drawn, strict=True)])
    last = [measure_psnr(film[-1], clip[-1]) for film, clip, given in zip(films, drawn, has_last, strict=True) if given]
    smooth = [measure_jump(film) < LARGEST_JUMP for film in films]
    return {
        "first_db": float(first.mean()),
        "first_good": float((first >= GOOD_PSNR).float().mean()),
        **({"last_db": sum(last) / len(last)} if last else {}),
        "smooth": sum(smooth) / len(smooth),
    }


@torch.no_grad()
def generate(
    generators: Sequence[Generator],
    vae: Any,
    spiece_model: bytes,
    prompts: Sequence[str],
    *,
    latent_shape: tuple[int, ...],
    method: str,
    steps: int,
    shift: float,
    given: torch.Tensor | None = None,
    first_seed: int = 0,
) -> list[torch.Tensor]:
    """Sample and decode a clip [F, H, W, 3] in [0, 1] for every prompt; prompt i has seed `first_seed` + i.

    `generators` are experts, high noise first, or only one; `given` is that of image.py, for every prompt.
    """
    device = generators[0].device
    rows = generators[0].encode_text(captions.tokenize(list(prompts), spiece_model).to(device))
    sampled = sample(
        [partial(generator.predict_flow, rows=rows, given=given) for generator in generators],
        SeededNoise(list(range(first_seed, first_seed + len(prompts))), latent_shape, device),
        build_schedule(steps, shift),
        method,
    )
    frames = []
    for latents in autoencoder.denormalize(sampled.latents).split(20):
        with autocast(device):
            video = autoencoder.decode(vae, latents).float()
        frames += [_to_frames(clip) for clip in video]
    return frames


WrongImage = Callable[[Sequence[Generator], torch.Tensor], tuple[Sequence[Generator], torch.Tensor]]
"""(experts, given) -> the same with a mistake."""


def _split_mask(given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return given[:, : image.MASK_CHANNELS], given[:, image.MASK_CHANNELS :]


def _invert_mask(experts: Sequence[Generator], given: torch.Tensor) -> tuple[Sequence[Generator], torch.Tensor]:
    mask, latents = _split_mask(given)
    return experts, torch.cat([1 - mask, latents], dim=1)


def _skip_normalization(experts: Sequence[Generator], given: torch.Tensor) -> tuple[Sequence[Generator], torch.Tensor]:
    mask, latents = _split_mask(given)
    return experts, torch.cat([mask, autoencoder.denormalize(latents)], dim=1)


WRONG_IMAGES: dict[str, WrongImage] = {
    "experts swapped": lambda experts, given: (experts[::-1], given),
    "mask inverted": _invert_mask,
    "image dropped": lambda experts, given: (experts, torch.zeros_like(given)),
    "latents not normalized": _skip_normalization,
}


@dataclass(frozen=True, kw_only=True)
class ImageCases:
    """Held-out clips, of which the first frame is given, and of some the last."""

    contents: tuple[Content, ...]
    prompts: tuple[str, ...]
    video: torch.Tensor
    """[N, 3, F, H, W] in [-1, 1]: the drawn clips."""
    has_last: torch.Tensor
    """[N] bool."""

    @property
    def drawn(self) -> list[torch.Tensor]:
        """The drawn clips, each [F, H, W, 3] in [0, 1]."""
        return [_to_frames(clip) for clip in self.video]

    def score(self, films: Sequence[torch.Tensor]) -> Score:
        """Score films [F, H, W, 3] in [0, 1], one for each case."""
        return replace(score_clips(films, self.contents), image=score_films(films, self.drawn, self.has_last.tolist()))


def list_image_cases(count: int, device: torch.device, *, size: int, num_frames: int, seed: int = 5) -> ImageCases:
    """Draw held-out clips; of four in eight the last frame is given too, of one in four there are two things."""
    contents, prompts = zip(*captions.list_prompts(count, seed), strict=True)
    places = torch.Generator().manual_seed(seed)
    video = clips.draw_clips(contents, size=size, num_frames=num_frames, generator=places, device=device)
    has_last = torch.arange(count, device=device) // 4 % 2 == 1
    return ImageCases(contents=contents, prompts=prompts, video=video, has_last=has_last)


def _to_frames(clip: torch.Tensor) -> torch.Tensor:
    return ((clip + 1) / 2).clamp(0, 1).permute(1, 2, 3, 0)


@torch.no_grad()
def reconstruct(
    vae: Any, contents: Sequence[Content], *, size: int, num_frames: int, seed: int
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Draw clips of `contents`, and encode and decode them; both are lists of [F, H, W, 3] in [0, 1]."""
    device = next(vae.parameters()).device
    places = torch.Generator().manual_seed(seed)
    video = clips.draw_clips(contents, size=size, num_frames=num_frames, generator=places, device=device)
    return [_to_frames(clip) for clip in video], encode_and_decode(vae, video)


@torch.no_grad()
def encode_and_decode(vae: Any, video: torch.Tensor) -> list[torch.Tensor]:
    """Return what the VAE makes of clips [B, 3, F, H, W] in [-1, 1], each [F, H, W, 3] in [0, 1]."""
    frames = []
    for part in video.split(16):
        with autocast(video.device):
            decoded = autoencoder.decode(vae, autoencoder.encode(vae, part)).float()
        frames += [_to_frames(clip) for clip in decoded]
    return frames


class Engine:
    """A written checkpoint through engine/pipeline.py, clip by clip, as a user's graph runs it."""

    def __init__(self, path: Path, *, precision: str, size: int, num_frames: int) -> None:
        logging.getLogger(pipeline.__name__).setLevel(logging.ERROR)  # it warns of every wrong setting, as it should
        self._loaded = pipeline.load_checkpoint(
            path, precision=precision, settings=EngineSettings(), offload=OffloadSettings(mode="none")
        )
        self._latent = pipeline.empty_latent(size, size, num_frames)
        self._clip = Clip(width=size, height=size, num_frames=num_frames)
        self._hooks = Hooks()
        self._transformer = self._loaded.transformer
        self._texts: dict[str, Any] = {}

    def put_on(self, lora: Path, strength: float = 1.0) -> None:
        """Put a LoRA on the transformer."""
        self._transformer = self._transformer.with_lora(self._transformer.read_lora(lora), strength)

    def draw(
        self,
        text: str,
        seed: int,
        setting: tuple[str, int, float],
        *,
        start: torch.Tensor | None = None,
        end: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the clip [F, H, W, 3] in [0, 1] of a prompt; image to video with pictures [1, H, W, 3]."""
        method, steps, shift = setting
        if text not in self._texts:
            rows = pipeline.encode_text(self._loaded.text_encoder, text, hooks=self._hooks)
            self._texts[text] = of_rows(rows, self._loaded.transformer.text_dim)
        conditioning = self._texts[text]
        if start is not None:
            frames, mask = lay_out(start, start[:0] if end is None else end, self._clip.num_frames)
            latents = pipeline.encode_video(self._loaded.vae, frames, hooks=self._hooks)
            given = Given(latents=latents, mask=mask)
            conditioning = with_given(conditioning, given, self._transformer.architecture, self._clip)
        sampling = SamplingSettings(seed=seed, method=method, steps=steps, shift=shift)
        samples = pipeline.sample(self._transformer, conditioning, self._latent, sampling, hooks=self._hooks)
        return pipeline.decode(self._loaded.vae, samples, hooks=self._hooks)


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
    engine = Engine(path, precision=precision, size=size, num_frames=num_frames)
    prompts = captions.list_prompts(count)
    scores = {}
    for name, setting in settings.items():
        clips = (engine.draw(text, seed, setting) for seed, (_, text) in enumerate(prompts))
        scores[name] = score_clips(clips, [content for content, _ in prompts])
        tell(f"{name:16s}{scores[name]}")
    return scores


def evaluate_images(
    path: Path,
    *,
    size: int,
    num_frames: int,
    count: int,
    tell: Callable[[str], None],
    settings: Mapping[str, tuple[str, int, float]] = SETTINGS,
) -> None:
    """Make films of held-out images through the engine with each of `settings`; film i has seed i."""
    engine = Engine(path, precision="auto", size=size, num_frames=num_frames)
    cases = list_image_cases(count, torch.device("cpu"), size=size, num_frames=num_frames)
    for name, setting in settings.items():
        films = [
            engine.draw(text, seed, setting, start=clip[:1], end=clip[-1:] if has_last else None)
            for seed, (text, clip, has_last) in enumerate(
                zip(cases.prompts, cases.drawn, cases.has_last.tolist(), strict=True)
            )
        ]
        tell(f"{name:16s}{cases.score(films)}")
