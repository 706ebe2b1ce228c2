"""Stage 2: a Wan VAE of width 24, trained on clips to give back what it is shown.

The network is diffusers' AutoencoderKLWan: 4 x 8 x 8 pixels a latent cell, 16 channels, causal in time. diffusers
runs it four frames at a time and keeps what a convolution needs of the past; for training the whole clip goes
through at once, which gives the same numbers (`use_whole_clips`) and is many times faster.
"""

from __future__ import annotations

import copy
import math
import random
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from ...engine.constants import LATENT_CHANNELS, LATENT_MEAN, LATENT_STD
from . import captions, clips
from .training import Alarm, Budget, Log, Recorded, Trainer, autocast

# Width of the noise that is added to latents of unit variance in training. A decoder that copes with it also copes
# with the small errors of a diffusion model, and cells that mean different things have to lie well apart.
NOISE = 0.15
# Weight of the prior: pulls latents towards 0, so that their scale cannot run away from the noise.
_PRIOR = 1e-4


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of the training: many small parts of clips first, which teach more for their cost; whole clips last."""

    until: float
    """Share of the budget at which it ends."""
    size: int
    num_frames: int
    batch: int


# Batches.
_DRAWN_AT_ONCE = 8
# Pixels and frames of a whole clip.
CLIP = (64, 17)
PHASES = (
    Phase(until=0.6, size=32, num_frames=9, batch=32),
    Phase(until=1.0, size=64, num_frames=17, batch=6),
)


def build_vae(base_dim: int) -> Any:
    """Return diffusers' autoencoder with Wan2.1's layout, untrained."""
    from diffusers import AutoencoderKLWan

    vae = use_whole_clips(AutoencoderKLWan(base_dim=base_dim, z_dim=LATENT_CHANNELS))
    # Layers that keep the variance of what they are given, without torch's random biases, and residual blocks that
    # add nothing yet: so colours come through to the latents from the first step on. With torch's defaults the
    # first hundreds of steps learn nothing.
    for name, module in vae.named_modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Conv3d):
            is_last_of_block = name.endswith((".conv2", ".proj"))
            width = 0.0 if is_last_of_block else module.weight[0].numel() ** -0.5
            torch.nn.init.normal_(module.weight, 0.0, width)
            torch.nn.init.zeros_(module.bias)
    return vae


def use_whole_clips(vae: Any) -> Any:
    """Make `vae.encoder` and `vae.decoder` take whole clips, without a cache from chunk to chunk.

    Only two kinds of layer have to know where a clip starts: those that halve or double the frame rate leave the
    first frame alone. The norms are replaced by torch's fused one, the same up to rounding.
    """
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanResample, WanRMS_norm

    for module in vae.modules():
        if isinstance(module, WanResample):
            module.forward = types.MethodType(_resample, module)
        elif isinstance(module, WanRMS_norm):
            module.forward = types.MethodType(_normalize, module)
    return vae


def _resample(layer: Any, video: torch.Tensor, feat_cache: None = None, feat_idx: None = None) -> torch.Tensor:
    if layer.mode == "upsample3d":
        later = layer.time_conv(video[:, :, 1:])
        # The convolution gives twice the channels: the two new frames of each.
        later = later.unflatten(1, (2, -1)).permute(0, 2, 3, 1, 4, 5).flatten(2, 3)
        video = torch.cat([video[:, :, :1], later], dim=2)
    batch = len(video)
    images = video.transpose(1, 2).flatten(0, 1)
    video = layer.resample(images).unflatten(0, (batch, -1)).transpose(1, 2)
    if layer.mode == "downsample3d":
        video = torch.cat([video[:, :, :1], layer.time_conv(video)], dim=2)
    return video


def _normalize(layer: Any, values: torch.Tensor) -> torch.Tensor:
    gamma = layer.gamma.flatten().to(values.dtype)
    with autocast(values.device, enabled=False):
        return functional.rms_norm(values.movedim(1, -1), gamma.shape, gamma, eps=1e-12).movedim(-1, 1)


def encode(vae: Any, video: torch.Tensor) -> torch.Tensor:
    """Return the mean of the latents [B, 16, T, h, w] of clips [B, 3, F, H, W] in [-1, 1]."""
    return vae.quant_conv(vae.encoder(video))[:, :LATENT_CHANNELS]


def decode(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Return the clips [B, 3, F, H, W] of latents [B, 16, T, h, w], not clamped."""
    return vae.decoder(vae.post_quant_conv(latents))


def normalize(latents: torch.Tensor) -> torch.Tensor:
    """Bring latents [B, 16, T, h, w] of the VAE to Wan's mean and standard deviation of every channel."""
    mean, std = _wan_statistics(latents.device)
    return (latents - mean.view(-1, 1, 1, 1)) / std.view(-1, 1, 1, 1)


def denormalize(latents: torch.Tensor) -> torch.Tensor:
    """Undo `normalize`."""
    mean, std = _wan_statistics(latents.device)
    return latents * std.view(-1, 1, 1, 1) + mean.view(-1, 1, 1, 1)


class Statistics:
    """Running mean and standard deviation of every latent channel."""

    def __init__(self, device: torch.device) -> None:
        self.mean, self._square = (torch.zeros(LATENT_CHANNELS, 1, 1, 1, device=device) for _ in range(2))
        # Share of a new batch; a tensor, so that it can be changed where a step is recorded.
        self.rate = torch.ones((), device=device)

    @property
    def std(self) -> torch.Tensor:
        return (self._square - self.mean.square()).clamp(min=1e-6).sqrt()

    def update(self, latents: torch.Tensor) -> None:
        """Take in latents [B, 16, T, h, w]."""
        self.mean.lerp_(latents.mean(dim=(0, 2, 3, 4), keepdim=True)[0], self.rate)
        self._square.lerp_(latents.square().mean(dim=(0, 2, 3, 4), keepdim=True)[0], self.rate)


def train_vae(
    vae: Any,
    budget: Budget,
    log: Log,
    *,
    seed: int,
    learning_rate: float = 6e-4,
    phases: tuple[Phase, ...] = PHASES,
    num_checked: int = 32,
    graphs: bool = False,
    keep: Callable[[Any], None] = lambda vae: None,
) -> None:
    """Train `vae` in place, and give its latents the statistics that Wan's users expect.

    Those, and the PSNR that is logged at the end, are taken from `num_checked` batches each.

    While training, latents are brought to mean 0 and variance 1 by running statistics of each channel, and noise is
    added: with a posterior of that fixed width the KL divergence of a VAE is the square of the latents plus a
    constant. The decoder learns to read those, so at the end the encoder has to make them by itself.

    Args:
        vae: of `build_vae`, or `unset_wan_statistics`.
        budget: how long.
        log: gets loss and PSNR.
        seed: of the clips.
        learning_rate: the largest one.
        phases: parts of the budget.
        num_checked: batches that statistics and PSNR are taken from.
        graphs: whether to record a step as a CUDA graph.
        keep: called every minute and at the end, with a finished VAE.
    """
    device = next(vae.parameters()).device
    draw, statistics = ClipSource(seed, device), Statistics(device)
    trainer = Trainer([vae], learning_rate)
    memory_format = choose_format(vae, draw(phases[0].batch, phases[0].size, phases[0].num_frames), log)

    def prepare(phase: Phase) -> tuple[Iterator[torch.Tensor], torch.Tensor, Callable[[], torch.Tensor]]:
        """Return the clips of a phase, where a step reads them, and the step; it returns [loss, square error]."""
        batches = draw.batches(phase)
        video = next(batches).clone(memory_format=memory_format)

        def do_step() -> torch.Tensor:
            loss, error = measure_loss(vae, video, statistics)
            trainer.descend(loss)
            return torch.stack([loss.detach(), error.detach()])

        return batches, video, Recorded(do_step) if graphs else do_step

    prepared = {phase: prepare(phase) for phase in phases}
    alarm = Alarm()
    for step, used in budget:
        phase = next(phase for phase in phases if used < phase.until)
        batches, video, next_step = prepared[phase]
        if step:
            video.copy_(next(batches))
        statistics.rate.fill_(max(0.01, 1 / (step + 1)))
        trainer.set_rate(used)
        result = next_step()
        if step % 50 == 0:
            loss, error = result.tolist()
            # Clips are in [-1, 1], PSNR is of [0, 1].
            log.write(step=step, used=used, loss=loss, noisy_psnr_db=-10 * math.log10(error / 4), size=phase.size)
        if alarm.rings():
            finished = copy.deepcopy(vae)
            _finish(finished, statistics, seed, phases[-1], num_checked, log)
            keep(finished)
    _finish(vae, statistics, seed, phases[-1], num_checked, log)
    keep(vae)
    log.write(steps=step + 1)


def measure_loss(vae: Any, video: torch.Tensor, statistics: Statistics) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss and the mean square error of clips that were encoded, and decoded with noise."""
    with autocast(video.device):
        latents = encode(vae, video).float()
        statistics.update(latents.detach())
        normalized = (latents - statistics.mean) / statistics.std
        difference = decode(vae, normalized + NOISE * torch.randn_like(normalized)).float() - video
    error = difference.square().mean()
    return difference.abs().mean() + error + _PRIOR * normalized.square().mean(), error


@torch.no_grad()
def _finish(vae: Any, statistics: Statistics, seed: int, phase: Phase, num_batches: int, log: Log) -> None:
    """Make the encoder give what the decoder reads, then give both the statistics of Wan's latents."""
    rescale_encoded(vae, statistics.mean.flatten(), statistics.std.flatten())
    set_wan_statistics(vae, ClipSource(seed + 3, next(vae.parameters()).device), phase, num_batches)
    log.write(psnr_db=measure_psnr(vae, seed + 1, phase, num_batches))


def choose_format(vae: Any, video: torch.Tensor, log: Log) -> torch.memory_format:
    """Bring the weights to the memory format in which this device trains faster, and return it."""
    seconds = {}
    for memory_format in (torch.contiguous_format, torch.channels_last_3d):
        _set_format(vae, memory_format)
        for attempt in range(6):
            if attempt == 2:  # by then kernels are chosen
                start = _now(video.device)
            with autocast(video.device):
                decoded = decode(vae, encode(vae, video.contiguous(memory_format=memory_format)))
            decoded.float().square().mean().backward()
        seconds[memory_format] = (_now(video.device) - start) / 4
    fastest = min(seconds, key=lambda memory_format: seconds[memory_format])
    _set_format(vae, fastest)
    log.write(**{f"seconds_{str(name).removeprefix('torch.')}": value for name, value in seconds.items()})
    return fastest


def _set_format(vae: Any, memory_format: torch.memory_format) -> None:
    for parameter in vae.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.contiguous(memory_format=memory_format)
            parameter.grad = None


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic()


class ClipSource:
    """Draws batches of random parts of clips."""

    def __init__(self, seed: int, device: torch.device, *, held_out: bool = False) -> None:
        self._words, self._places = random.Random(seed), torch.Generator().manual_seed(seed)
        self._device, self._held_out = device, held_out

    def __call__(self, batch: int, size: int, num_frames: int) -> torch.Tensor:
        contents = [captions.draw_content(self._words, held_out=self._held_out) for _ in range(batch)]
        whole_size, whole_frames = CLIP
        return clips.draw_clips(
            contents,
            size=whole_size,
            num_frames=whole_frames,
            generator=self._places,
            device=self._device,
            crop=(size, num_frames),
        )

    def batches(self, phase: Phase) -> Iterator[torch.Tensor]:
        """Yield batches of a phase without end; many are drawn at once, which a GPU does as fast as one."""
        while True:
            yield from self(_DRAWN_AT_ONCE * phase.batch, phase.size, phase.num_frames).split(phase.batch)


@torch.no_grad()
def set_wan_statistics(vae: Any, draw: ClipSource, phase: Phase, num_batches: int) -> None:
    """Give every latent channel the mean and standard deviation that Wan2.1's latents have.

    Everyone who uses Wan latents normalizes them with those constants, so a VAE without them would need constants of
    its own everywhere.
    """
    device = next(vae.parameters()).device
    with autocast(device):
        latents = torch.cat(
            [encode(vae, draw(phase.batch, phase.size, phase.num_frames)).float() for _ in range(num_batches)]
        )
    std, mean = torch.std_mean(latents, dim=(0, 2, 3, 4))
    wan_mean, wan_std = _wan_statistics(device)
    scale = std / wan_std
    rescale_latents(vae, mean - wan_mean * scale, scale)
    # What the encoder says of the width of its latents: that of the training noise, whatever it is shown.
    vae.quant_conv.weight[LATENT_CHANNELS:] = 0
    vae.quant_conv.bias[LATENT_CHANNELS:] = 2 * (NOISE * wan_std).log()


def unset_wan_statistics(vae: Any) -> None:
    """Undo `set_wan_statistics`: give the latents mean 0 and variance 1, so that `train_vae` can go on."""
    rescale_latents(vae, *_wan_statistics(next(vae.parameters()).device))


def _wan_statistics(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(LATENT_MEAN, device=device), torch.tensor(LATENT_STD, device=device)


@torch.no_grad()
def rescale_latents(vae: Any, shift: torch.Tensor, scale: torch.Tensor) -> None:
    """Replace latents x by (x - shift) / scale, in the encoder and in the decoder: what is decoded stays the same."""
    rescale_encoded(vae, shift, scale)
    first = vae.post_quant_conv
    first.bias += first.weight[:, :, 0, 0, 0] @ shift
    first.weight *= scale[None, :, None, None, None]


@torch.no_grad()
def rescale_encoded(vae: Any, shift: torch.Tensor, scale: torch.Tensor) -> None:
    """Make the encoder give (x - shift) / scale where it gave x, for a decoder that reads those already."""
    last = vae.quant_conv
    last.weight[:LATENT_CHANNELS] /= scale[:, None, None, None, None]
    last.bias[:LATENT_CHANNELS] = (last.bias[:LATENT_CHANNELS] - shift) / scale


@torch.no_grad()
def measure_psnr(vae: Any, seed: int, phase: Phase, num_batches: int) -> float:
    """Return the mean PSNR in dB of held-out clips, encoded and decoded."""
    device = next(vae.parameters()).device
    draw = ClipSource(seed, device, held_out=True)
    values = []
    for _ in range(num_batches):
        video = draw(phase.batch, phase.size, phase.num_frames)
        with autocast(device):
            decoded = decode(vae, encode(vae, video)).float().clamp(-1, 1)
        values.append(-10 * ((decoded - video).square().mean(dim=(1, 2, 3, 4)) / 4).log10())
    return float(torch.cat(values).mean())
