"""Load, encode, sample, decode: the one file that joins handles, logic and stages.

Loaders return light handles; weights load when a stage first needs them. Latents that enter and leave
here are in ComfyUI's convention: un-normalised float32 CPU [B, 16, T, h, w].
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from . import shapes
from .checkpoints.files import Checkpoint, find_tokenizer, resolve_checkpoint, resolve_transformer
from .checkpoints.header import read_header
from .constants import DISTILL_SHIFT, DISTILL_STEPS
from .errors import CheckpointError, NothingFitsError
from .handles import TextEncoderHandle, TransformerHandle, VaeHandle, held, unload_others
from .interfaces import Hooks, Transformer
from .latent_space import denormalise, normalise
from .memory.budget import Host
from .memory.needs import encoding_need
from .memory.plan import DecodePlan, MemoryPlan
from .memory.retry import run_with_retry
from .report import attach, build_report, measure, records_of, step_timer
from .settings import TEXT_DEVICES, TILING_MODES, EngineSettings, OffloadSettings, SamplingSettings, check_choice
from .stages.conditioning import fit_rows
from .stages.decode import decode_video
from .stages.denoise import denoise
from .stages.encode import encode_prompt
from .stages.schedule import Schedule, build_schedule

# More VRAM than there is: all that the host can free.
_ALL_OF_IT = 2**50

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LoadedCheckpoint:
    """Handles of one checkpoint, and what was resolved."""

    checkpoint: Checkpoint
    transformer: TransformerHandle
    text_encoder: TextEncoderHandle
    vae: VaeHandle


def load_checkpoint(
    path: Path, *, precision: str = "auto", settings: EngineSettings, offload: OffloadSettings
) -> LoadedCheckpoint:
    """Resolve a whole checkpoint: transformer, text encoder, tokenizer and VAE.

    Args:
        path: repository root, one of its precision folders, or a single transformer file.
        precision: auto | fp8 | int8 | bf16.
        settings: engine, attention, compile.
        offload: where weights rest.

    A missing text encoder or VAE is logged, and an error only when it is used: another loader may bring it.

    Raises:
        CheckpointError: the transformer is missing, or a part is damaged or of the wrong kind.
    """
    checkpoint = resolve_checkpoint(path, precision)
    for note in checkpoint.notes:
        logger.info("LightX2V: %s", note)
    for sentence in checkpoint.missing:
        logger.warning("LightX2V: %s", sentence)
    problem = " ".join(checkpoint.missing)
    if checkpoint.transformer is None:
        raise CheckpointError(f"{path} holds no transformer. {problem}")
    return LoadedCheckpoint(
        checkpoint=checkpoint,
        transformer=TransformerHandle(checkpoint.transformer, settings, offload),
        text_encoder=TextEncoderHandle(checkpoint.text_encoder, checkpoint.tokenizer, problem),
        vae=VaeHandle(checkpoint.vae, settings.engine, offload, problem),
    )


def load_transformer(path: Path, *, settings: EngineSettings, offload: OffloadSettings) -> TransformerHandle:
    """Resolve a transformer alone: a single file or a folder of blocks."""
    return TransformerHandle(resolve_transformer(path), settings, offload)


def load_text_encoder(file: Path, *, tokenizer: Path | None = None) -> TextEncoderHandle:
    """Resolve a text encoder file; without `tokenizer` the one inside the file is used, else one near it."""
    has_own = file.suffix == ".safetensors" and "spiece_model" in read_header(file)
    return TextEncoderHandle(file, tokenizer if tokenizer or has_own else find_tokenizer(file))


def load_vae(file: Path, *, engine: str = "auto", offload: OffloadSettings) -> VaeHandle:
    """Resolve a VAE file."""
    return VaeHandle(file, engine, offload)


def encode_text(
    handle: TextEncoderHandle, text: str, *, device: str = "cpu", hooks: Hooks, host: Host | None = None
) -> torch.Tensor:
    """Encode a prompt to conditioning rows [1, 512, text_dim], float32 CPU, zero after the last token.

    The encoder's memory is given back before this returns, so that it never sits beside the transformer. On the GPU
    the stage moves to the CPU where there is no room.
    """
    check_choice("device", device, TEXT_DEVICES)
    host = host or Host()

    def encode(place: str) -> torch.Tensor:
        need = encoding_need(handle.file.stat().st_size, place)
        if place == "gpu":
            host.claim(handle, 0)
        try:
            with measure("load_text_encoder") as loading:
                loading.expect(need, held())
                encoder = handle.acquire(place, hooks)
            with measure("encode") as encoding:
                encoding.expect(need, held() + need)  # loading has read the weights
                rows = encode_prompt(encoder, text, hooks)
                encoding.details = encoder.describe()
        finally:
            handle.unload()
        return attach(rows, [loading, encoding])

    return run_with_retry("encoding the prompt", encode, device, lambda: "cpu", lambda: None)


def empty_latent(width: int, height: int, num_frames: int, batch_size: int = 1) -> torch.Tensor:
    """Return zeros [batch_size, 16, T, h, w], float32 CPU.

    Raises:
        ValueError: width or height is not a multiple of 16, or num_frames is not 4n+1.
    """
    return torch.zeros((batch_size, *shapes.latent_shape(width, height, num_frames)))


def sample(
    handle: TransformerHandle,
    conditioning: torch.Tensor,
    samples: torch.Tensor,
    settings: SamplingSettings,
    *,
    hooks: Hooks,
    host: Host | None = None,
) -> torch.Tensor:
    """Denoise a batch of clips from pure noise.

    Args:
        handle: the transformer.
        conditioning: text rows [n, text_dim] or [k, n, text_dim]; cut or zero-padded to 512 rows.
            Clip i uses entry i modulo k.
        samples: [B, 16, T, h, w]; only the shape is used, as full denoising starts from noise.
        settings: seed (clip i uses seed + i), method, steps, shift.
        hooks: progress counts the steps of all clips; it starts again where memory ran out and a cheaper plan is
            tried, which gives the same latents.
        host: the program around the engine.

    Returns:
        [B, 16, T, h, w] float32 CPU, un-normalised.

    Raises:
        NothingFitsError: no plan has room for this size; nothing was loaded.
        ValueError: wrong shape of `samples` or width of `conditioning`.
        NonFiniteLatentsError: a step produced NaN or infinity.
    """
    problem = shapes.latent_problem(samples.shape)
    if problem:
        raise ValueError(problem)
    host = host or Host()
    # Clips of one prompt share one tensor: an engine keeps what it computes of it.
    context = fit_rows(conditioning, handle.text_dim).unbind()
    _warn_unusual(settings, samples)
    schedule = build_schedule(settings.steps, settings.shift)
    plan = _plan_sampling(handle, samples.shape, host)
    logger.info("LightX2V: %s.", plan)

    def run(plan: MemoryPlan) -> torch.Tensor:
        if not (plan.needs["sample"] + held(without=handle)).fits(plan.budget):
            unload_others(handle)
        moved_before, held_before = handle.moved_bytes, held()
        with measure("load_transformer") as loading:
            loading.expect(plan.needs["load_transformer"], held_before)
            transformer = handle.acquire(_clip_shape(samples.shape), hooks, plan)
        with handle.at_work(), measure("sample") as sampling:
            sampling.expect(plan.needs["sample"], held())
            clips, step_seconds = _denoise_batch(transformer, context, samples.shape, schedule, settings, hooks)
            sampling.details["step_seconds"] = step_seconds
            sampling.details |= _sampling_facts(settings, schedule.sigmas, samples) | transformer.describe()
            sampling.details["moved_bytes"] = max(handle.moved_bytes - moved_before, 0)
            sampling.details["plan"] = plan.as_data()
        return attach(clips, records_of(conditioning), [loading, sampling])

    return run_with_retry(
        "sampling", run, plan, lambda: handle.plan(samples.shape, host, others_leave=False, failed=plan),
        lambda: host.make_room(plan.vram),
    )  # fmt: skip


def decode(
    handle: VaeHandle, samples: torch.Tensor, *, tiling: str = "auto", hooks: Hooks, host: Host | None = None
) -> torch.Tensor:
    """Decode latents to frames.

    Args:
        handle: the VAE.
        samples: [B, 16, T, h, w] un-normalised.
        tiling: auto (tiles when the whole decode would not fit) | on | off.
        hooks: progress counts chunks.
        host: the program around the engine.

    Returns:
        [B * F, H, W, 3] float32 CPU in [0, 1].

    Raises:
        ValueError: wrong shape of `samples`.
        NothingFitsError: there is not the RAM for the frames.
    """
    check_choice("tiling", tiling, TILING_MODES)
    problem = shapes.latent_problem(samples.shape)
    if problem:
        raise ValueError(problem)
    host = host or Host()
    plan = _plan_decoding(handle, samples.shape, tiling, host)

    def run(plan: DecodePlan) -> torch.Tensor:
        if not plan.weights_stay:
            unload_others(handle)
        with measure("load_vae") as loading:
            decoder = handle.acquire(hooks)
        with measure("decode") as decoding:
            decoding.expect(plan.need, held())
            latents = normalise(samples.float())
            num_frames, height, width = shapes.video_shape(samples.shape)
            video = torch.empty(len(samples), num_frames, height, width, 3)
            for clip, frames in zip(latents, video, strict=True):
                decode_video(decoder, clip, tile=plan.tile, hooks=hooks, out=frames, pins_frames=plan.pins_frames)
            decoding.details = {"tiled": plan.tile is not None, **decoder.describe()}
        return attach(video.flatten(0, 1), records_of(samples), [loading, decoding])

    return run_with_retry(
        "decoding", run, plan, lambda: handle.plan(samples.shape, tiling, host, others_leave=False, failed=plan),
        lambda: host.make_room(plan.need.vram),
    )  # fmt: skip


def report_of(tensor: torch.Tensor) -> dict[str, Any]:
    """Return the run report that a tensor of `encode_text`, `sample` or `decode` carries, as JSON data."""
    return build_report(records_of(tensor))


def _warn_unusual(settings: SamplingSettings, samples: torch.Tensor) -> None:
    if settings.steps != DISTILL_STEPS or settings.shift != DISTILL_SHIFT:
        logger.warning(
            "LightX2V: steps %d and shift %g; the checkpoint is distilled for %d steps and shift %g, other values "
            "usually look worse.", settings.steps, settings.shift, DISTILL_STEPS, DISTILL_SHIFT,
        )  # fmt: skip
    if bool(samples.any()):
        logger.warning("LightX2V: the input latent is not empty; the sampler starts from pure noise and ignores it.")
    if len(samples) > 1:
        last = settings.seed + len(samples) - 1
        logger.info("LightX2V: batch of %d clips, seeds %d to %d.", len(samples), settings.seed, last)


def _denoise_batch(
    transformer: Transformer,
    context: Sequence[torch.Tensor],
    shape: torch.Size,
    schedule: Schedule,
    settings: SamplingSettings,
    hooks: Hooks,
) -> tuple[torch.Tensor, list[list[float]]]:
    """Return latents [B, 16, T, h, w] float32 CPU, un-normalised, and each clip's seconds a step."""
    clips, seconds = [], []
    for index in range(shape[0]):
        on_step, step_seconds = step_timer(_offset_steps(hooks, index, shape[0]))
        latents = denoise(
            transformer,
            context[index % len(context)],
            _clip_shape(shape),
            schedule,
            method=settings.method,
            seed=settings.seed + index,
            hooks=replace(hooks, on_step=on_step),
        )
        clips.append(denormalise(latents).cpu())
        seconds.append(step_seconds)
    return torch.stack(clips), seconds


def _clip_shape(shape: torch.Size) -> tuple[int, int, int, int]:
    _, channels, frames, height, width = shape
    return channels, frames, height, width


def _offset_steps(hooks: Hooks, clip: int, batch: int) -> Any:
    return lambda step, steps, clean: hooks.on_step(clip * steps + step, batch * steps, clean)


def _sampling_facts(settings: SamplingSettings, sigmas: tuple[float, ...], samples: torch.Tensor) -> dict[str, Any]:
    num_frames, height, width = shapes.video_shape(samples.shape)
    return {
        "size": f"{width}x{height}, {num_frames} frames",
        "batch": len(samples),
        "tokens": shapes.num_tokens(samples.shape),
        "seed": settings.seed,
        "method": settings.method,
        "steps": settings.steps,
        "shift": settings.shift,
        "sigmas": [round(sigma, 6) for sigma in sigmas],
    }


def _plan_decoding(handle: VaeHandle, samples_shape: torch.Size, tiling: str, host: Host) -> DecodePlan:
    """Plan beside what the host holds; ask it for room only where the plan is better without.

    A host may unload more than it is asked to, the transformer among it, which the next prompt would load again.
    """
    plan = handle.plan(samples_shape, tiling, host, others_leave=False)
    wanted = handle.plan(samples_shape, tiling, host)
    if plan.weights_stay and plan.tile == wanted.tile:
        host.claim(handle, 0)
        return plan
    beside = held(without=handle).vram if wanted.weights_stay else 0
    host.claim(handle, max(wanted.need.vram - beside - handle.num_bytes, 0))
    return handle.plan(samples_shape, tiling, host, others_leave=False)


def _plan_sampling(handle: TransformerHandle, samples_shape: torch.Size, host: Host) -> MemoryPlan:
    """Plan with what the host can free, let it make room, and plan again should it not have freed that much."""
    try:
        plan = handle.plan(samples_shape, host)
    except NothingFitsError:
        # The host may hold memory that torch does not know of.
        host.make_room(_ALL_OF_IT)
        plan = handle.plan(samples_shape, host)
    host.claim(handle, plan.needs["sample"].vram - plan.needs["load_transformer"].vram)
    return handle.plan(samples_shape, host, others_leave=False)
