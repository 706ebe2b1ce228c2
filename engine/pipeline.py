"""Load, encode, sample, decode, encode frames: the one file that joins handles, memory and stages.

Loaders return light handles; weights load when a stage first needs them. Latents that enter and leave
here are in ComfyUI's convention: un-normalized float32 CPU [B, 16, T, h, w].
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from . import shapes
from .checkpoints.companions import TextEncoderFiles, VaeFiles, choose_tokenizer, resolve_text_encoder, resolve_vae
from .checkpoints.disk import is_short_of_memory
from .checkpoints.files import find_tokenizers, holds_tokenizer, resolve_checkpoint, resolve_experts
from .checkpoints.formats import VaeFormat
from .checkpoints.transformers import TransformerFiles
from .errors import CheckpointError, NonFiniteLatentsError, NothingFitsError, check_choice
from .handles import ONE_GPU, TextEncoderHandle, TransformerHandle, VaeHandle
from .interfaces import Conditioning, Hooks, Host, Transformer, VideoDecoder, VideoEncoder
from .kernel_choice import settle
from .latent_space import broken_share, denormalize, doubt_about
from .memory.clip import Clip
from .memory.owner import held, unload_others
from .memory.paging import StepWatch
from .memory.plan import MemoryPlan, VaePlan
from .memory.room import Room
from .memory.tiles import Tile
from .report import StageRecord, attach, build_report, measure, noting, records_of, step_timer
from .sentences import joined
from .sentences.between import Between
from .sentences.folders import Folders
from .sentences.sampling import Sampling
from .sentences.sizes import Sizes
from .sentences.stages import Stages
from .sentences.text import Text
from .settings import TEXT_DEVICES, TILING_MODES, EngineSettings, GpuSettings, OffloadSettings, SamplingSettings
from .stages.blending import part_of
from .stages.decode import decode_video
from .stages.denoise import ClipState, run_steps, start
from .stages.encode import encode_prompt
from .stages.encode_video import crop_to_cells
from .stages.encode_video import encode_video as encode_clip
from .stages.given import NO_IMAGE
from .stages.schedule import Schedule, build_schedule
from .wan.vae import check_decoder, check_encoder

logger = logging.getLogger(__name__)

Coder = TypeVar("Coder", VideoDecoder, VideoEncoder)

# Of the VAE's stages: in words, and the report's names of loading and of the stage.
_VAE_STAGES = {
    "decode": (Sampling.DECODING, "load_vae", "decode"),
    "encode": (Stages.ENCODING, "load_vae_encoder", "encode_video"),
}


@dataclass(frozen=True, kw_only=True)
class LoadedCheckpoint:
    """Handles of one checkpoint."""

    transformer: TransformerHandle
    text_encoder: TextEncoderHandle
    vae: VaeHandle


def load_checkpoint(
    path: Path,
    *,
    precision: str = "auto",
    settings: EngineSettings,
    offload: OffloadSettings,
    gpus: GpuSettings = ONE_GPU,
    text_encoder: Path | None = None,
    vae: Path | None = None,
) -> LoadedCheckpoint:
    """Resolve a whole checkpoint: transformer, text encoder, tokenizer and VAE.

    Args:
        path: repository root, one of its precision folders, or a single transformer file.
        precision: auto | fp8 | int8 | bf16.
        settings: engine, attention, compile.
        offload: where weights rest.
        gpus: which GPUs compute a clip together.
        text_encoder: a file to take in place of the checkpoint's.
        vae: the same.

    A missing text encoder or VAE is logged, and an error only when it is used: another loader may bring it.

    Raises:
        CheckpointError: the transformer is missing, or a part is damaged or of the wrong kind.
    """
    found = resolve_checkpoint(path, precision, text_encoder=text_encoder, vae=vae)
    for note in found.notes:
        logger.info("LightX2V: %s", note)
    for sentence in found.passed_over:
        logger.warning("LightX2V: %s", sentence)
    if found.transformer is not None:
        _warn_of_notes(found.transformer)
    for sentence in found.missing:
        logger.warning("LightX2V: %s", sentence)
    problem = joined(found.missing, Between.BLANK)
    if found.transformer is None:
        raise CheckpointError(Folders.NO_TRANSFORMER_IN(path=path, problem=problem))
    encoder, tokenizer = found.text_encoder, found.tokenizer
    return LoadedCheckpoint(
        transformer=TransformerHandle(found.transformer, settings, offload, gpus),
        text_encoder=TextEncoderHandle(
            _resolve_text_encoder(encoder, tokenizer) if encoder is not None and found.has_text else None, problem
        ),
        vae=VaeHandle(None if found.vae is None else _resolve_vae(found.vae), settings.engine, offload, problem, gpus),
    )


def load_transformer(
    path: Path,
    *,
    second: Path | str = "auto",
    first_is: str = "auto",
    settings: EngineSettings,
    offload: OffloadSettings,
    gpus: GpuSettings = ONE_GPU,
) -> TransformerHandle:
    """Resolve a transformer alone, a single file or a folder of blocks, with the other expert where it is one.

    Args:
        path: a file, or a folder of one transformer or of both experts of Wan2.2.
        second: the other expert's file or folder; auto looks for it by name; alone leaves it out.
        first_is: high | low: which expert `path` is; auto goes by names.
        settings: engine, attention, compile.
        offload: where weights rest.
        gpus: which of them compute together.

    Raises:
        CheckpointError: see checkpoints/files.py resolve_experts.
    """
    files = resolve_experts(path, second, first_is)
    if files.second is not None:
        high, low = (replace(each, second=None).title for each in files.experts)
        logger.info("LightX2V: %s", Folders.TWO_TRANSFORMERS(high=high, low=low))
    _warn_of_notes(files)
    return TransformerHandle(files, settings, offload, gpus)


def _warn_of_notes(files: TransformerFiles) -> None:
    if files.format.is_cast:
        logger.info("LightX2V: %s", Folders.PLAIN_CAST(source=files.title))
    for note in files.warnings:
        logger.warning("LightX2V: %s", note)


def load_text_encoder(file: Path, *, tokenizer: Path | None = None) -> TextEncoderHandle:
    """Resolve a text encoder file; without `tokenizer` the one inside the file is used, else one near it.

    Raises:
        CheckpointError: the file is damaged or is not a UMT5 encoder, or there is no tokenizer.
    """
    if tokenizer is not None:
        choose_tokenizer(file, [tokenizer])
    elif not holds_tokenizer(file):
        tokenizer = choose_tokenizer(file, find_tokenizers(file))
    return TextEncoderHandle(_with_log(resolve_text_encoder(file, tokenizer)))


def _resolve_text_encoder(file: Path, nearest: Path | None) -> TextEncoderFiles:
    """Resolve a checkpoint's text encoder with the tokenizer beside it, or another one near it where that is wrong."""
    candidates = [] if nearest is None else list(dict.fromkeys([nearest, *find_tokenizers(file)]))
    return _with_log(resolve_text_encoder(file, choose_tokenizer(file, candidates)))


def _with_log(files: TextEncoderFiles) -> TextEncoderFiles:
    where = files.tokenizer or Folders.TOKENIZER_INSIDE(path=files.path)
    logger.info("LightX2V: %s", Folders.TOKENIZER_IS(where=where))
    for note in files.format.notes:
        logger.warning("LightX2V: %s", note)
    return files


def load_vae(file: Path, *, engine: str = "auto", offload: OffloadSettings, gpus: GpuSettings = ONE_GPU) -> VaeHandle:
    """Resolve a VAE file.

    Raises:
        CheckpointError: the file is damaged or is not a VAE of Wan2.1's latents.
    """
    return VaeHandle(_resolve_vae(file), engine, offload, gpus=gpus)


def _resolve_vae(file: Path) -> VaeFiles:
    files = resolve_vae(file)
    check_decoder(files)
    if files.has_encoder:
        check_encoder(files)
    for note in files.format.notes if isinstance(files.format, VaeFormat) else ():
        logger.warning("LightX2V: %s", note)
    return files


def encode_text(
    handle: TextEncoderHandle, text: str, *, device: str = "cpu", hooks: Hooks, host: Host | None = None
) -> torch.Tensor:
    """Encode a prompt to conditioning rows [1, 512, text_dim], float32 CPU, zero after the last token.

    The encoder's memory is given back before this returns, so that it never sits beside the transformer. On the GPU
    the stage moves to the CPU where there is no room.
    """
    check_choice("device", device, TEXT_DEVICES)
    host = host or Host()
    room = Room(host, OffloadSettings(), handle.owner)
    for attempt in room.attempts(Text.ENCODING_PROMPT(), device, lambda: "cpu", lambda: None):
        with attempt as place:
            need = handle.need(place)
            if place == "gpu":
                host.claim(handle.owner, need.vram, 0)
            try:
                with measure("load_text_encoder", host.device) as loading:
                    loading.expect(need, held())
                    encoder = handle.load(place, host.device, hooks)
                with measure("encode", host.device) as encoding:
                    encoding.expect(need, held() + need)  # loading has read the weights
                    rows = encode_prompt(encoder, text, hooks)
                    encoding.details = encoder.describe()
            finally:
                handle.unload()
            return attach(rows, [loading, encoding])
    raise AssertionError("attempts end with a result or an error")


def empty_latent(width: int, height: int, num_frames: int, batch_size: int = 1) -> torch.Tensor:
    """Return zeros [batch_size, 16, T, h, w], float32 CPU.

    Raises:
        ValueError: width or height is not a multiple of 16, or num_frames is not 4n+1.
        NothingFitsError: there is no RAM for it.
    """
    shape = (batch_size, *shapes.latent_shape(width, height, num_frames))
    try:
        return torch.zeros(shape)
    except RuntimeError as error:
        if not is_short_of_memory(error):
            raise
        raise NothingFitsError(Sizes.NO_ROOM_FOR_LATENT(shape=list(shape))) from error


def check_size(handle: TransformerHandle, shape: Sequence[int], *, host: Host | None = None) -> None:
    """Raise what `sample` raises of a size, before a text was encoded for it; nothing is loaded.

    Where several GPUs compute, what is free on the others is known only once their processes run.

    Args:
        handle: the transformer.
        shape: [B, 16, T, h, w], of latents that `sample` takes.
        host: the program around the engine.

    Raises:
        NothingFitsError: no plan has room for this size.
    """
    host = host or Host()
    handle.room(host).find_run(handle.sizes_now(Clip.of_latents(shape), host.device))


@noting()
def sample(
    handle: TransformerHandle,
    conditioning: Sequence[Conditioning],
    samples: torch.Tensor,
    settings: SamplingSettings,
    *,
    hooks: Hooks,
    host: Host | None = None,
) -> torch.Tensor:
    """Denoise a batch of clips from pure noise.

    Args:
        handle: the transformer.
        conditioning: of the clips; clip i takes entry i modulo their number. See stages/conditioning.py.
        samples: [B, 16, T, h, w]; only the shape is used, as full denoising starts from noise.
        settings: seed (clip i uses seed + i), method, steps, shift.
        hooks: progress counts the steps of all clips; it starts again where memory ran out and a cheaper plan is
            tried, which gives the same latents.
        host: the program around the engine.

    Returns:
        [B, 16, T, h, w] float32 CPU, un-normalized.

    Raises:
        NothingFitsError: no plan has room for this size; nothing was loaded.
        ValueError: wrong shape of `samples`, or an image-to-video model and no image.
        NonFiniteLatentsError: a step produced NaN or infinity.
    """
    problem = shapes.latent_problem(samples.shape)
    if problem:
        raise ValueError(problem)
    warn_of_doubts(handle)
    if handle.architecture.takes_image and any(entry.image_latents is None for entry in conditioning):
        raise ValueError(NO_IMAGE)
    _warn_unusual(settings, samples, handle.files.names)
    schedule = build_schedule(settings.steps, settings.shift)
    image_rows = max(0 if entry.image_tokens is None else len(entry.image_tokens) for entry in conditioning)
    clip = Clip.of_latents(samples.shape, image_rows)

    def denoise(transformer: Transformer) -> tuple[torch.Tensor, dict[str, Any]]:
        names = handle.files.names
        latents, step_seconds = _denoise_batch(transformer, names, conditioning, clip, schedule, settings, hooks)
        experts = [names[expert] for expert, steps in _shares(names, schedule, settings) for _ in steps]
        facts = {"step_seconds": step_seconds, **sampling_facts(settings, schedule, clip)}
        return latents, {**facts, **expert_facts(experts)}

    latents, records = run_planned(handle, clip, denoise, hooks=hooks, host=host)
    return attach(latents, conditioning[0].records, records)


def run_planned(
    handle: TransformerHandle,
    clip: Clip,
    work: Callable[[Transformer], tuple[torch.Tensor, dict[str, Any]]],
    *,
    hooks: Hooks,
    host: Host | None = None,
) -> tuple[torch.Tensor, list[StageRecord]]:
    """Plan the sampling of a clip, make room, load the transformer, and do some work with it.

    Args:
        handle: the transformer.
        clip: the largest that the transformer is going to be called with.
        work: gets the loaded transformer; returns the latents [B, 16, T, h, w], un-normalized, and facts
            for the report. It is done once more, under a
            cheaper plan, where the GPU's memory ran out.
        hooks, host: see sample.

    Returns:
        The latents, and the report's records of loading and sampling.

    Raises:
        NothingFitsError: no plan has room for this size; nothing was loaded.
    """
    host = host or Host()
    room = handle.room(host)
    room.start(hooks)
    is_alone = handle.members(host.device) is None
    first = room.claim_run(handle.sizes_now(clip, host.device))
    logger.info("LightX2V: %s.", first)

    def cheaper() -> MemoryPlan:
        return room.plan_run(handle.sizes_now(clip, host.device), assume_evicted=False, failed=first)

    for attempt in room.attempts(Sampling.SAMPLING(), first, cheaper, lambda: host.make_room(first.vram)):
        with attempt as plan:
            moved_before = handle.moved_bytes
            transformer, plan, loading = _load_transformer(handle, plan, clip, room, host.device, hooks)
            with handle.sampling(), measure("sample", host.device) as sampling:
                if is_alone:
                    sampling.expect(plan.needs["sample"], held())
                watch = StepWatch(plan, clip.tokens, host.device)
                result, facts = work(watch.watched(transformer))
                # What another sampler goes on with is full of noise.
                if facts["sigmas"][-1] == 0:
                    warn_of_latents(result, handle.files.title)
                if host.device.type == "cpu" or plan.placement.mode == "disk":
                    _warn_of_changes(handle)
                sampling.details = {
                    "file": handle.files.title,
                    **facts,
                    **transformer.describe(),
                    "moved_bytes": max(handle.moved_bytes - moved_before, 0),
                    "plan": plan.as_data(),
                }
            return result, [loading, sampling]
    raise AssertionError("attempts end with a result or an error")


def decode(
    handle: VaeHandle,
    samples: torch.Tensor,
    *,
    tiling: str = "auto",
    tile: Tile | None = None,
    hooks: Hooks,
    host: Host | None = None,
) -> torch.Tensor:
    """Decode latents to frames.

    Args:
        handle: the VAE.
        samples: [B, 16, T, h, w] un-normalized.
        tiling: auto (tiles when the whole decode would not fit) | on | off.
        tile: tiles of this size, whatever `tiling` says; smaller ones only where memory runs out.
        hooks: progress counts the frames of all clips.
        host: the program around the engine.

    Returns:
        [B * F, H, W, 3] float32 CPU in [0, 1].

    Raises:
        ValueError: wrong shape of `samples`.
        NonFiniteLatentsError: latents are NaN or infinite, as another program's sampler may leave them; or the VAE
            makes that of them.
        NothingFitsError: there is not the RAM for the frames.
    """
    check_choice("tiling", tiling, TILING_MODES)
    problem = shapes.decoding_problem(samples.shape)
    if problem:
        raise ValueError(problem)
    _check_finite(samples)
    clip = Clip.of_latents(samples.shape)

    def work(decoder: VideoDecoder, plan: VaePlan) -> torch.Tensor:
        video = torch.empty(clip.batch, clip.num_frames, clip.height, clip.width, 3)
        for index, (latents, frames) in enumerate(zip(samples.float(), video, strict=True)):
            own = part_of(hooks, index, clip.batch)
            decode_video(decoder, latents, tile=plan.tile, hooks=own, out=frames, pins_frames=plan.pins_frames)
        return video.flatten(0, 1)

    def load(plan: VaePlan, device: torch.device, hooks: Hooks) -> VideoDecoder:
        return handle.load_decoder(device, hooks, is_whole=plan.tile is None, pins_frames=plan.pins_frames)

    video, records = _run_vae(handle, "decode", clip, tiling, tile, load, work, hooks, host)
    return attach(video, records_of(samples), records)


def encode_video(
    handle: VaeHandle,
    frames: torch.Tensor,
    *,
    tiling: str = "auto",
    tile: Tile | None = None,
    hooks: Hooks,
    host: Host | None = None,
) -> torch.Tensor:
    """Encode frames to latents, as ComfyUI's VAE does: the mean, of the first 4n+1 frames, cut to whole cells of 8x8
    pixels around the middle.

    Args:
        handle: the VAE.
        frames: [F, H, W, 3] of one clip or [B, F, H, W, 3], in [0, 1], any device; what is behind three channels is
            not used.
        tiling: auto (tiles when the whole encode would not fit) | on | off.
        tile: tiles of this size, whatever `tiling` says; smaller ones only where memory runs out.
        hooks: progress counts the frames of all clips.
        host: the program around the engine.

    Returns:
        [B, 16, T, h, w] float32 CPU, un-normalized.

    Raises:
        CheckpointError: the VAE's file holds a decoder only.
        ValueError: wrong shape of `frames`.
        NonFiniteLatentsError: the VAE makes NaN or infinity of them.
        NothingFitsError: there is not the RAM.
    """
    check_choice("tiling", tiling, TILING_MODES)
    problem = shapes.frames_problem(frames.shape)
    if problem:
        raise ValueError(problem)
    check_encoder(handle.files)
    clips = crop_to_cells(frames if frames.dim() == 5 else frames[None])
    batch, num_frames, height, width, _ = clips.shape
    clip = Clip(width=width, height=height, num_frames=num_frames, batch=batch)

    def work(encoder: VideoEncoder, plan: VaePlan) -> torch.Tensor:
        latents = [
            encode_clip(encoder, each, tile=plan.tile, hooks=part_of(hooks, index, batch), pins_frames=plan.pins_frames)
            for index, each in enumerate(clips)
        ]
        return torch.stack(latents)

    def load(plan: VaePlan, device: torch.device, hooks: Hooks) -> VideoEncoder:
        return handle.load_encoder(device, hooks)

    latents, records = _run_vae(handle, "encode", clip, tiling, tile, load, work, hooks, host)
    return attach(latents, records_of(frames), records)


def _run_vae(
    handle: VaeHandle,
    stage: str,
    clip: Clip,
    tiling: str,
    tile: Tile | None,
    load: Callable[[VaePlan, torch.device, Hooks], Coder],
    work: Callable[[Coder, VaePlan], torch.Tensor],
    hooks: Hooks,
    host: Host | None,
) -> tuple[torch.Tensor, list[StageRecord]]:
    """Plan a decode or an encode, make room, load what does it, and do it; see run_planned.

    Args:
        stage: decode | encode.
        load: returns the loaded decoder or encoder.
        work: gets it and the plan; done once more, in smaller tiles, where the GPU's memory ran out.
    """
    doing, load_name, name = _VAE_STAGES[stage]
    host = host or Host()
    room, vae_dim = handle.room(host), handle.files.base_dim
    first = room.claim_vae(stage, clip, vae_dim, tiling, tile)

    def cheaper() -> VaePlan:
        return room.plan_vae(stage, clip, vae_dim, tiling, tile, assume_evicted=False, failed=first)

    for attempt in room.attempts(doing(), first, cheaper, lambda: host.make_room(first.need.vram)):
        with attempt as plan:
            if not plan.weights_stay:
                unload_others(handle.owner)
            with measure(load_name, host.device) as loading:
                coder = load(plan, host.device, hooks)
            with measure(name, host.device) as running:
                if not handle.owner.is_elsewhere:
                    running.expect(plan.need, held())
                result = work(coder, plan)
                running.details = {"tiled": plan.tile is not None, **coder.describe()}
            return result, [loading, running]
    raise AssertionError("attempts end with a result or an error")


def report_of(tensor: torch.Tensor, host_versions: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the run report that a tensor of `encode_text`, `sample`, `decode` or `encode_video` carries, as JSON.

    Args:
        host_versions: of the program that the pack runs in, by its name.
    """
    return build_report(records_of(tensor), host_versions)


def _check_finite(samples: torch.Tensor) -> None:
    share = broken_share(samples)
    if share:
        raise NonFiniteLatentsError(Sampling.BROKEN_LATENTS(share=max(100 * share, 0.1)))


def warn_of_latents(samples: torch.Tensor, title: str) -> None:
    """Say in the log what is odd about sampled latents: no look at a file tells all that is wrong with it.

    Args:
        samples: [B, 16, T, h, w] un-normalized.
        title: of the model.
    """
    doubt = doubt_about(samples)
    if doubt:
        logger.warning("LightX2V: %s", Sampling.ODD_LATENTS(title=title, doubt=doubt))


def _warn_of_changes(handle: TransformerHandle) -> None:
    """Say in the log where a file is another one than before a run that read weights from it to its end."""
    try:
        handle.files.check_unchanged()
    except CheckpointError as error:
        logger.warning("LightX2V: %s", Sampling.FILE_CHANGED(error=error))


def warn_of_doubts(handle: TransformerHandle) -> None:
    """Say in the log where names give no reason to sample in four steps without CFG."""
    if handle.doubts:
        logger.warning("LightX2V: %s", handle.doubts)


def _warn_unusual(settings: SamplingSettings, samples: torch.Tensor, experts: Sequence[str]) -> None:
    for doubt in settings.doubts(len(experts)):
        logger.warning("LightX2V: %s", doubt)
    if bool(samples.any()):
        logger.warning("LightX2V: %s", Sampling.LATENT_NOT_EMPTY())
    if len(samples) > 1:
        last = settings.seed + len(samples) - 1
        logger.info("LightX2V: %s", Sampling.BATCH(num_clips=len(samples), seed=settings.seed, last=last))


def _load_transformer(
    handle: TransformerHandle, plan: MemoryPlan, clip: Clip, room: Room, device: torch.device, hooks: Hooks
) -> tuple[Transformer, MemoryPlan, StageRecord]:
    """Return the loaded transformer, the plan that holds, and the record of the stage.

    The kernels that were planned are tried first, and measured where that was not done yet; see kernel_choice.py.
    """
    if not plan.has_room_beside(held(without=handle.owner)):
        unload_others(handle.owner)
    if not handle.is_loaded_as(plan):
        handle.unload()  # What is loaded otherwise is not of this stage.
    held_before = held()
    with measure("load_transformer", device) as loading:
        plan = settle(handle, plan, clip, room, device, hooks)
        if handle.members(device) is None:
            loading.expect(plan.needs["load_transformer"], held_before)
        transformer = handle.load(plan, device, hooks)
    return transformer, plan, loading


def _denoise_batch(
    transformer: Transformer,
    names: Sequence[str],
    conditioning: Sequence[Conditioning],
    clip: Clip,
    schedule: Schedule,
    settings: SamplingSettings,
    hooks: Hooks,
) -> tuple[torch.Tensor, list[list[float]]]:
    """Return latents [B, 16, T, h, w] float32 CPU, un-normalized, and each clip's seconds a step.

    Each expert does its steps of all clips before the next one begins.

    Args:
        names: of the experts.
    """
    shares = _shares(names, schedule, settings)
    seconds: list[list[float]] = [[] for _ in range(clip.batch)]
    states: dict[int, ClipState] = {}
    latents = torch.empty(clip.batch, *clip.latent_shape)
    counted = _count_steps(hooks, clip.batch)
    for (expert, steps), (next_expert, _) in zip(shares, [*shares[1:], shares[0]], strict=True):
        if names[expert]:
            sigmas = ", ".join(f"{schedule.sigmas[index]:.4g}" for index in steps)
            logger.info(
                "LightX2V: %s",
                Sampling.STEPS_OF_EXPERT(
                    expert=names[expert], first=steps[0] + 1, last=steps[-1] + 1, steps=schedule.steps, sigmas=sigmas
                ),
            )
        for index in range(clip.batch):
            if index not in states:
                states[index] = start(clip.latent_shape, settings.seed + index, transformer.device)
            on_step, step_seconds = step_timer(counted.on_step)
            state = states[index]
            state.latents = state.latents.to(transformer.device)
            run_steps(
                transformer,
                conditioning[index % len(conditioning)],
                state,
                schedule,
                steps,
                method=settings.method,
                hooks=replace(counted, on_step=on_step),
                expert=expert,
                then=next_expert if index == clip.batch - 1 else expert,
            )
            seconds[index] += step_seconds
            if steps[-1] + 1 == schedule.steps:
                latents[index] = denormalize(states.pop(index).latents).cpu()
            else:
                state.latents = state.latents.cpu()
    return latents, seconds


def _count_steps(hooks: Hooks, batch: int) -> Hooks:
    """Return hooks that count the steps of all clips of a batch, in the order in which they are done."""
    done = 0

    def on_step_start(step: int, steps: int) -> None:
        hooks.on_step_start(done + 1, batch * steps)

    def on_step(step: int, steps: int, clean: torch.Tensor) -> None:
        nonlocal done
        done += 1
        hooks.on_step(done, batch * steps, clean)

    return replace(hooks, on_step_start=on_step_start, on_step=on_step)


def _shares(names: Sequence[str], schedule: Schedule, settings: SamplingSettings) -> list[tuple[int, range]]:
    """Return the experts that have steps to do, in turn, and which."""
    if len(names) == 1:
        return [(0, range(schedule.steps))]
    boundary = min(settings.high_steps, schedule.steps)
    shares = [(0, range(boundary)), (1, range(boundary, schedule.steps))]
    return [(expert, steps) for expert, steps in shares if steps]


def sampling_facts(settings: SamplingSettings, schedule: Schedule, clip: Clip) -> dict[str, Any]:
    """Return what the report says of a sampling, whoever does it."""
    return {
        **clip.facts,
        "seed": settings.seed,
        "method": settings.method,
        "steps": settings.steps,
        "shift": settings.shift,
        "sigmas": [round(sigma, 6) for sigma in schedule.sigmas],
    }


def expert_facts(experts: Sequence[str]) -> dict[str, Any]:
    """Return what the report says of Wan2.2's experts: the one of each step; nothing of other models."""
    return {"experts": list(experts)} if any(experts) else {}
