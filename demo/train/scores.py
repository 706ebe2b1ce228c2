"""Scores of a stage under way and at its end: held-out prompts, sampled and measured, into the log and on a sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ...engine.constants import DISTILL_SHIFT, DISTILL_STEPS
from ...tools.clip_content import THING_COLOURS, measure_psnr
from . import captions, evaluate, image, lora, runs
from .models import Generator
from .sheet import draw_sheet
from .training import Log

Setting = tuple[str, int, float]
"""Method, steps, shift."""


def look(run: Path, batch: int, log: Log, generator: Generator, stage: str, settings: Mapping[str, Setting]) -> None:
    """Score a batch of held-out prompts with each setting, and draw a sheet of the first."""
    for index, (name, setting) in enumerate(settings.items()):
        prompts, clips = score(run, batch, log, generator, name, setting, count=batch)
        if index == 0:
            draw_sheet(clips[:16], prompts[:16]).save(run / f"{stage}.png")


def score(
    run: Path,
    batch: int,
    log: Log,
    generator: Generator,
    name: str,
    setting: Setting,
    *,
    count: int,
) -> tuple[list[str], list[torch.Tensor]]:
    """Sample held-out prompts, log the score of the first `count`, and return prompts and clips."""
    method, steps, shift = setting
    # As many as a batch of the training: compiled blocks are compiled for that.
    contents, prompts = zip(*captions.list_prompts(batch), strict=True)
    clips = evaluate.generate(
        [generator],
        runs.read_vae(run),
        runs.read_tokenizer(run),
        prompts,
        latent_shape=runs.LATENT_SHAPE,
        method=method,
        steps=steps,
        shift=shift,
    )
    found = evaluate.score_clips(clips[:count], contents[:count])
    pairs = {index for index, content in enumerate(contents[:count]) if len(content.things) == 2}
    pairs_right = 1 - len(pairs.intersection(found.wrong)) / max(1, len(pairs))
    log.write(setting=name, clips=min(count, len(clips)), **found.facts(), all_of_pairs=pairs_right)
    return list(prompts), clips


def _image_cases(count: int) -> evaluate.ImageCases:
    return evaluate.list_image_cases(count, runs.device(), size=runs.SIZE, num_frames=runs.NUM_FRAMES)


def log_ceiling(count: int, log: Log, vae: Any) -> None:
    """Score drawn clips, and the same encoded and decoded: no model can score more."""
    cases = _image_cases(count)
    for name, films in {
        "drawn": cases.drawn,
        "encoded and decoded": evaluate.encode_and_decode(vae, cases.video),
    }.items():
        log.write(setting=name, clips=len(films), **cases.score(films).facts())


def look_at_image(
    run: Path,
    batch: int,
    log: Log,
    experts: Sequence[Generator],
    stage: str,
    settings: Mapping[str, Setting],
) -> None:
    """Score films of held-out images with each setting, and draw a sheet of the first, each below what was drawn."""
    for index, (name, setting) in enumerate(settings.items()):
        cases, films = score_image(run, batch, log, experts, name, setting, num_batches=2)
        if index == 0:
            pairs = [film for pair in zip(cases.drawn[:8], films[:8], strict=True) for film in pair]
            texts = [text for prompt in cases.prompts[:8] for text in ("drawn", prompt)]
            draw_sheet(pairs, texts).save(run / f"{stage}.png")


def score_image(
    run: Path,
    batch: int,
    log: Log,
    experts: Sequence[Generator],
    name: str,
    setting: Setting,
    *,
    wrong: evaluate.WrongImage | None = None,
    num_batches: int = 1,
) -> tuple[evaluate.ImageCases, list[torch.Tensor]]:
    """Make films of held-out images, maybe with a mistake, log their score, and return cases and films.

    Batches are as large as those of the training: compiled blocks are compiled for that.
    """
    method, steps, shift = setting
    cases, vae = _image_cases(num_batches * batch), runs.read_vae(run)
    films: list[torch.Tensor] = []
    for start in range(0, num_batches * batch, batch):
        part = slice(start, start + batch)
        used, given = experts, image.encode_given(vae, cases.video[part], cases.has_last[part])
        if wrong:
            used, given = wrong(used, given)
        films += evaluate.generate(
            used,
            vae,
            runs.read_tokenizer(run),
            cases.prompts[part],
            latent_shape=runs.LATENT_SHAPE,
            method=method,
            steps=steps,
            shift=shift,
            given=given,
            first_seed=start,
        )
    log.write(setting=name, clips=len(films), **cases.score(films).facts())
    return cases, films


def score_lora(run: Path, log: Log, generator: Generator, vae: Any, added: lora.Lora, *, count: int) -> None:
    """Score prompts with the new colour, and others, each with and without the LoRA; both with the same noise."""
    colours = (*THING_COLOURS, lora.COLOUR)
    for name, prompts in {"new": lora.list_prompts(count), "others": captions.list_prompts(count)}.items():
        contents, texts = zip(*prompts, strict=True)
        made = {}
        for is_on in (False, True):
            added.switch(is_on)
            made[is_on] = evaluate.generate(
                [generator],
                vae,
                runs.read_tokenizer(run),
                texts,
                latent_shape=runs.LATENT_SHAPE,
                method="lcm",
                steps=DISTILL_STEPS,
                shift=DISTILL_SHIFT,
            )
            found = evaluate.score_clips(made[is_on], contents, colours)
            log.write(setting=f"{name}, {'with' if is_on else 'without'}", clips=count, **found.facts())
        same = [measure_psnr(one, other) for one, other in zip(made[True], made[False], strict=True)]
        log.write(setting=f"{name}, with beside without", psnr_db=sum(same) / count)
        if name == "new":
            draw_sheet(made[True][:16], texts[:16]).save(run / "lora.png")
