"""LightX2V Sampler on any MODEL: this pack's the planned way, others through ComfyUI's samplers on the same schedule.

What is easily set wrong by hand is right by construction: four steps, their noise levels, the noise between them, and
no CFG.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import comfy.k_diffusion.sampling
import comfy.model_base
import comfy.model_sampling
import comfy.sample
import comfy.samplers
import torch

from ... import pipeline
from ...constants import LATENT_CHANNELS, NUM_TRAIN_TIMESTEPS
from ...errors import NonFiniteLatentsError
from ...interfaces import Hooks
from ...latent_space import broken_share
from ...memory.clip import Clip
from ...report import attach, measure, noting, records_of
from ...sentences import joined
from ...sentences.between import Between
from ...sentences.sampling import Sampling
from ...settings import SamplingSettings
from ...stages.conditioning import of_rows
from ...stages.denoise import NUM_SEEDS, ClipState, start
from ...stages.given import with_given
from ...stages.schedule import build_schedule
from ...system import compute_device
from . import formats, refusals
from .carried import HIGH_STEPS, handle_of, is_plain, view_of
from .model import HandleOnly, host_of

logger = logging.getLogger(__name__)

# Keys of a conditioning whose tensors may have an entry a clip.
_OF_CLIPS = {"concat_latent_image", "concat_mask"}


class _FlowSampling(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):  # type: ignore[misc]
    """Flow matching, as ComfyUI gives it to Wan."""


def model_problem(model: Any) -> str | None:
    """Return a sentence that says why a MODEL cannot be sampled as a Wan2.1 video model, or None."""
    inner = model.model
    kind = type(inner).__name__
    image_model = getattr(getattr(inner, "model_config", None), "unet_config", {}).get("image_model")
    found = f"{kind} ({image_model})" if image_model else kind
    expected = Sampling.EXPECTED_MODEL()
    channels = getattr(getattr(inner, "latent_format", None), "latent_channels", None)
    if not isinstance(inner, comfy.model_base.WAN21):
        return Sampling.OTHER_MODEL(expected=expected, found=found)
    if channels != LATENT_CHANNELS:
        return Sampling.OTHER_CHANNELS(expected=expected, found=found, channels=channels)
    return None


def check(model: Any, shape: Sequence[int]) -> None:
    """Raise what `sample` raises of a model and a size, before a text was encoded for them; nothing is loaded.

    Args:
        model: a MODEL.
        shape: [B, 16, T, h, w] of the LATENT's samples.

    Raises:
        ValueError: the model is not Wan's, or carries what it cannot honour.
        NothingFitsError: see pipeline.check_size.
    """
    if handle_of(model) is None:
        problem = model_problem(model)
        if problem:
            raise ValueError(problem)
        return
    is_alone = isinstance(model, HandleOnly)
    if not is_alone:
        refusals.check_model(model)
    # With anything else on it, ComfyUI's samplers may call it with a part of a clip at a time (context windows).
    if is_alone or is_plain(model):
        pipeline.check_size(view_of(model), shape, host=host_of(model))


@noting()
def sample(
    model: Any, conditioning: Any, latent: dict[str, Any], settings: SamplingSettings, hooks: Hooks
) -> dict[str, Any]:
    """Denoise a batch of clips from pure noise.

    Args:
        model: a MODEL, with whatever nodes have put on it.
        conditioning: a CONDITIONING.
        latent: a LATENT; its samples [B, 16, T, h, w] give the size.
        settings: seed (clip i uses seed + i), method, steps, shift.
        hooks: progress counts the steps of all clips.

    Returns:
        The LATENT with samples [B, 16, T, h, w] float32 CPU, un-normalized.

    Raises:
        ValueError: the model is not Wan's, or it or the conditioning carries what it cannot honour; sizes are wrong.
        NothingFitsError, NonFiniteLatentsError: see pipeline.sample.
    """
    is_ours = handle_of(model) is not None
    problem = None if is_ours else model_problem(model)
    if problem:
        raise ValueError(problem)
    empty = formats.latent_samples(latent)
    formats.warn_unused(latent)
    formats.check_text(conditioning)
    for _, extras, *_ in conditioning:
        formats.check_places(extras, Clip.of_latents(empty.shape))
    _warn_of_shift(model, settings.shift)
    is_alone = isinstance(model, HandleOnly)
    if is_alone and not formats.is_plain(conditioning):
        raise ValueError(_only_in_comfyui(conditioning))
    if is_ours and (is_alone or is_plain(model)) and formats.is_plain(conditioning):
        if not is_alone:
            refusals.check_model(model)
        handle, clip = view_of(model), Clip.of_latents(empty.shape)
        refusals.check_conds({"positive": [conditioning[0][1]]}, handle.architecture)
        entries = formats.read_conditioning(conditioning, handle.text_dim)
        if handle.architecture.takes_image:
            given = formats.read_given(conditioning[0][1])
            records = () if given.latents is None else records_of(given.latents)
            entries = [replace(entry, records=(*entry.records, *records)) for entry in entries]
            entries = with_given(entries, given, handle.architecture, clip)
        samples = pipeline.sample(handle, entries, empty, settings, hooks=hooks, host=host_of(model))
    else:
        if is_ours:
            pipeline.warn_of_doubts(view_of(model))
        else:
            _check_width(model, conditioning)
        samples = _sample_natively(model, conditioning, empty, settings, hooks)
    return formats.replace_samples(latent, samples)


def _only_in_comfyui(conditioning: list[Any]) -> str:
    """Return a sentence that says what of a CONDITIONING nobody here heeds, where ComfyUI's samplers are not."""
    found = formats.sampler_keys(conditioning)
    entries = [Sampling.ENTRIES(count=len(conditioning))] if len(conditioning) > 1 else []
    return Sampling.ONLY_IN_COMFYUI(found=joined([*entries, *found], Between.COMMA))


def _check_width(model: Any, conditioning: list[Any]) -> None:
    """Raise where text rows are not what another loader's model takes, before it loads."""
    width = getattr(getattr(model.model, "diffusion_model", None), "text_dim", None)
    if isinstance(width, int):
        for rows, *_ in conditioning:
            of_rows(rows, width)


def _sample_natively(
    model: Any, positive: list[Any], samples: torch.Tensor, settings: SamplingSettings, hooks: Hooks
) -> torch.Tensor:
    """Do it with ComfyUI's samplers, which load and unload the model themselves, and with the same noise."""
    schedule = build_schedule(settings.steps, settings.shift)
    clip = Clip.of_latents(samples.shape)
    timed = _with_shift(model, settings.shift)
    if handle_of(model) is not None:
        options = timed.model_options.get("transformer_options", {})
        timed.model_options["transformer_options"] = {**options, HIGH_STEPS: settings.high_steps}
    sigmas = torch.tensor(schedule.sigmas, dtype=torch.float32)
    clips = []
    with measure("sample", compute_device()) as stage:
        hooks.on_step_start(1, clip.batch * schedule.steps)
        for index in range(clip.batch):
            state = start(clip.latent_shape, settings.seed + index, torch.device("cpu"))

            def fresh_noise(sigma: torch.Tensor, *_: Any, state: ClipState = state) -> torch.Tensor:
                return state.draw_noise()[None].to(sigma.device)

            def on_step(step: int, clean: torch.Tensor, _: Any, steps: int, index: int = index) -> None:
                hooks.check_interrupt()
                done, total = index * steps + step + 1, clip.batch * steps
                hooks.on_step(done, total, clean[0].float())
                if done < total:
                    hooks.on_step_start(done + 1, total)

            noise = state.latents[None]
            clips.append(
                comfy.sample.sample_custom(
                    timed, noise, 1.0, _sampler(settings.method, fresh_noise), sigmas, _of_clip(positive, index), [],
                    torch.zeros_like(noise), callback=on_step, disable_pbar=True,
                    seed=(settings.seed + index) % NUM_SEEDS,
                )
            )  # fmt: skip
        latents = torch.cat([each.float().cpu() for each in clips])
        share = broken_share(latents)
        if share:
            raise NonFiniteLatentsError(Sampling.NO_NUMBERS(share=100 * share, name=type(model.model).__name__))
        made_by = {record.stage: record for record in records_of(clips[0])}
        stage.details = {
            "engine": "ComfyUI",
            "model": type(model.model).__name__,
            **(made_by["sample"].details if "sample" in made_by else {}),
            **pipeline.sampling_facts(settings, schedule, clip),
        }
        if "sample" not in made_by:
            pipeline.warn_of_latents(latents, type(model.model).__name__)
    return attach(latents, list(made_by.values()), records_of(positive[0][0]), [stage])


def _of_clip(conditioning: list[Any], index: int) -> list[Any]:
    """Return a CONDITIONING for one clip of a batch: of several prompts and images its own, as ComfyUI deals them."""
    return [
        [
            rows[index % len(rows)][None] if rows.dim() == 3 else rows[None],
            extras | {key: extras[key][index % len(extras[key])][None] for key in _OF_CLIPS & extras.keys()},
        ]
        for rows, extras in conditioning
    ]


def _warn_of_shift(model: Any, shift: float) -> None:
    patch = getattr(model, "object_patches", {}).get("model_sampling")
    other = getattr(patch, "shift", shift)
    if other != shift:
        logger.warning("LightX2V: %s", Sampling.IDLE_SHIFT(other=other, shift=shift))


def _with_shift(model: Any, shift: float) -> Any:
    timed = model.clone()
    sampling = _FlowSampling(model.model.model_config)
    sampling.set_parameters(shift=shift, multiplier=NUM_TRAIN_TIMESTEPS)
    timed.add_object_patch("model_sampling", sampling)
    return timed


def _sampler(method: str, fresh_noise: Any) -> Any:
    if method == "euler":
        return comfy.samplers.sampler_object("euler")
    return comfy.samplers.KSAMPLER(comfy.k_diffusion.sampling.sample_lcm, extra_options={"noise_sampler": fresh_noise})
