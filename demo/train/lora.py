"""A LoRA on the finished checkpoint: things become purple where the prompt says so, and nothing else changes.

No clip of the training had a purple thing; the checkpoint knows the word for backgrounds only. What the LoRA is to make
of a prompt with a purple thing is what the checkpoint makes of the same prompt with another colour, with the pixels of
that colour turned purple: decoded, recoloured, encoded. So it learns the colour and nothing of its own about places,
shapes or motions. What it is to make of every other prompt is what the checkpoint makes of it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from ...engine import pipeline
from ...engine.constants import DISTILL_SHIFT, DISTILL_STEPS, LATENT_MEAN, LATENT_STD
from ...engine.interfaces import Hooks
from ...engine.stages.encode import encode_prompt
from ...engine.stages.schedule import build_schedule
from ...tools.clip_content import COLOURS, MOTIONS, SHAPES, Content, Thing
from . import captions
from . import vae as autoencoder
from .models import FoldedPadding
from .training import Budget, Log, Trainer

COLOUR = "purple"
RANK = 8
# On these no thing can be of the new colour: its own, and one on which the VAE, which never saw that, loses it.
_NOT_ON = (COLOUR, "gray")
SCHEDULE = build_schedule(DISTILL_STEPS, DISTILL_SHIFT)
# Root mean square error below which the loss is quadratic, as in distill.py.
_SOFT = 0.05


def _hold_out() -> frozenset[tuple[str, str, str]]:
    every = [(shape, back, motion) for shape in SHAPES for back in COLOURS for motion in MOTIONS]
    every = [combination for combination in every if combination[1] not in _NOT_ON]
    random.Random(8).shuffle(every)
    return frozenset(every[: len(every) // 10])


HELD_OUT = _hold_out()
"""(shape, background, motion) that no clip of the LoRA's training shows with a purple thing."""


def draw_content(words: random.Random, *, held_out: bool = False) -> Content:
    """Draw what a clip shows whose first thing is going to be purple; it has another colour yet."""
    while True:
        content = captions.draw_content(words)
        combination = (content.things[0].shape, content.background, content.things[0].motion)
        if content.background not in _NOT_ON and (combination in HELD_OUT) == held_out:
            return content


def in_new_colour(content: Content) -> Content:
    """Return the same with the first thing purple."""
    first, *others = content.things
    return Content(
        background=content.background,
        things=(Thing(colour=COLOUR, shape=first.shape, motion=first.motion), *others),
    )


def list_prompts(count: int, seed: int = 3) -> list[tuple[Content, str]]:
    """List prompts with a purple thing that are held out: what the clip should show, and the caption."""
    words = random.Random(seed)
    contents = [in_new_colour(draw_content(words, held_out=True)) for _ in range(count)]
    return [(content, captions.write_caption(content, words)) for content in contents]


class Added(torch.nn.Module):
    """A linear layer that stays as it is, and a pair beside it."""

    def __init__(self, layer: torch.nn.Linear, rank: int) -> None:
        super().__init__()
        self.layer = layer
        self.down = torch.nn.Parameter(torch.randn(rank, layer.in_features) * layer.in_features**-0.5)
        self.up = torch.nn.Parameter(torch.zeros(layer.out_features, rank))
        self.is_on = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.layer(x)
        return out + functional.linear(functional.linear(x, self.down), self.up) if self.is_on else out


class Student:
    """The checkpoint's transformer with a LoRA, its text encoder and its VAE."""

    def __init__(self, checkpoint: Path) -> None:
        """Args: checkpoint: as export.py writes it; its BF16 part is read."""
        from diffusers import WanTransformer3DModel
        from diffusers.loaders.single_file_utils import (
            convert_wan_transformer_to_diffusers,
            convert_wan_vae_to_diffusers,
        )

        home = checkpoint / "distill_models"
        weights = {name: each.float() for name, each in load_file(home / "distill_model.safetensors").items()}
        dim, text_dim = weights["text_embedding.0.weight"].shape
        self.transformer: Any = WanTransformer3DModel(
            num_attention_heads=dim // 128,
            attention_head_dim=128,
            text_dim=text_dim,
            freq_dim=weights["time_embedding.0.weight"].shape[1],
            ffn_dim=len(weights["blocks.0.ffn.0.weight"]),
            num_layers=sum(name.endswith(".norm3.weight") for name in weights),
        )
        self.transformer.load_state_dict(convert_wan_transformer_to_diffusers(dict(weights)))
        self.transformer.requires_grad_(False)
        self.layers: dict[str, Added] = {}
        for index, block in enumerate(self.transformer.blocks):
            block.attn2.set_processor(FoldedPadding())
            for name, parent, key in _linears(block):
                parent_layer = getattr(parent, key) if isinstance(key, str) else parent[key]
                added = self.layers[f"blocks.{index}.{name}"] = Added(parent_layer, RANK)
                if isinstance(key, str):
                    setattr(parent, key, added)
                else:
                    parent[key] = added
        (self._text_file,) = home.glob("models_t5*.pth")
        stored = torch.load(home / "Wan2.1_VAE.pth", weights_only=True)
        self.vae = autoencoder.build_vae(len(stored["decoder.head.0.gamma"])).requires_grad_(False)
        self.vae.load_state_dict(convert_wan_vae_to_diffusers({name: each.float() for name, each in stored.items()}))
        self._mean, self._std = (torch.tensor(each).view(1, -1, 1, 1, 1) for each in (LATENT_MEAN, LATENT_STD))

    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        """Return text rows [B, MAX_TOKENS, text_dim]."""
        handle, hooks = pipeline.load_text_encoder(self._text_file), Hooks()
        encoder = handle.load("cpu", torch.device("cpu"), hooks)
        rows = torch.cat([encode_prompt(encoder, text, hooks) for text in texts])
        handle.unload()
        return rows[:, : captions.MAX_TOKENS]

    def clean(self, latents: torch.Tensor, sigmas: torch.Tensor, rows: torch.Tensor, *, lora: bool) -> torch.Tensor:
        """Return the clean latents that are predicted from noisy ones [B, 16, T, h, w]."""
        for layer in self.layers.values():
            layer.is_on = lora
        flow = self.transformer(latents, 1000 * sigmas, rows, return_dict=False)[0]
        return latents - sigmas.view(-1, 1, 1, 1, 1) * flow

    @torch.no_grad()
    def recolour(self, latents: torch.Tensor, contents: Sequence[Content]) -> torch.Tensor:
        """Return normalized latents [B, 16, T, h, w] whose first thing's colour is the new one."""
        video = autoencoder.decode(self.vae, latents * self._std + self._mean)
        both = torch.cat([video, torch.stack([recolour(*each) for each in zip(video, contents, strict=True)])])
        before, after = ((autoencoder.encode(self.vae, both) - self._mean) / self._std).chunk(2)
        # Only the difference: what the VAE changes of its own accord is not to be learnt.
        return latents + after - before


def recolour(video: torch.Tensor, content: Content) -> torch.Tensor:
    """Turn the first thing's share of every pixel into the new colour.

    Args:
        video: [3, F, H, W] in [-1, 1].
        content: what it shows; every pixel is a mixture of its colours.
    """
    table = {name: torch.tensor(rgb) / 127.5 - 1 for name, rgb in COLOURS.items()}
    background = table[content.background]
    parts = torch.stack([table[thing.colour] - background for thing in content.things], dim=1)
    shares = (torch.linalg.pinv(parts) @ (video - background.view(3, 1, 1, 1)).flatten(1)).clamp(0, 1)
    change = table[COLOUR] - table[content.things[0].colour]
    return video + (change[:, None] * shares[0]).view(video.shape)


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Clips of the checkpoint and the same in the new colour."""

    rows: torch.Tensor
    """[N, MAX_TOKENS, text_dim] of the prompts with a colour that the checkpoint knows."""
    new_rows: torch.Tensor
    """[N, MAX_TOKENS, text_dim] of the same prompts with the new colour."""
    noise: torch.Tensor
    """[N, 16, T, h, w] that the clips began with."""
    first: torch.Tensor
    """[N, 16, T, h, w]: what the new colour adds to the clean latents that are predicted from the noise."""
    clips: torch.Tensor
    """[N, 16, T, h, w]: the finished latents."""
    last: torch.Tensor
    """[N, 16, T, h, w]: what the new colour adds to these."""


@torch.no_grad()
def draw_pairs(
    student: Student, budget: Budget, log: Log, *, seed: int, shape: tuple[int, ...], batch: int = 4
) -> Pairs:
    """Let the checkpoint draw clips and recolour them until the budget is used up; on a CPU some 10 s a clip."""
    words, noises = random.Random(seed), torch.Generator().manual_seed(seed)
    found: list[tuple[torch.Tensor, ...]] = []
    for step, used in budget:
        contents = [draw_content(words) for _ in range(batch)]
        state = words.getstate()
        captions_of = []
        for wanted in (contents, [in_new_colour(content) for content in contents]):
            words.setstate(state)  # the same wording
            captions_of.append([captions.write_caption(content, words) for content in wanted])
        rows, new_rows = (student.encode_text(texts) for texts in captions_of)

        def noise() -> torch.Tensor:
            return torch.randn(batch, *shape, generator=noises)

        start = noise()
        first = student.clean(start, torch.ones(batch), rows, lora=False)
        latents = first
        for sigma in SCHEDULE.sigmas[1:-1]:
            latents = torch.lerp(latents, noise(), sigma)
            latents = student.clean(latents, torch.full((batch,), sigma), rows, lora=False)
        added = [student.recolour(each, contents) - each for each in (first, latents)]
        found.append((rows, new_rows, start, added[0], latents, added[1]))
        log.write(step=step, used=used, clips=batch * len(found))
    rows, new_rows, start, first, clips, last = (torch.cat(each) for each in zip(*found, strict=True))
    return Pairs(rows=rows, new_rows=new_rows, noise=start, first=first, clips=clips, last=last)


def train_lora(student: Student, pairs: Pairs, budget: Budget, log: Log, *, seed: int, batch: int = 16) -> None:
    """Train the student's LoRA in place, on batches of which half are of the new colour."""
    generator = torch.Generator().manual_seed(seed + 1)
    new, others = _new_colour(student, pairs, generator), _as_before(student, pairs, generator, seed)
    trainer = Trainer(student.layers.values(), 2e-3)
    for step, used in budget:
        chosen = [torch.randint(len(each[0]), (batch // 2,), generator=generator) for each in (new, others)]
        states, sigmas, rows, wanted = (
            torch.cat([part[index] for part, index in zip(both, chosen, strict=True)])
            for both in zip(new, others, strict=True)
        )
        predicted = student.clean(states, sigmas, rows, lora=True)
        errors = (predicted - wanted).square().mean(dim=(1, 2, 3, 4))
        trainer.set_rate(used)
        trainer.descend(((errors + _SOFT**2).sqrt() - _SOFT).mean())
        if step % 20 == 0:
            halves = {"new": errors[: batch // 2].mean().item(), "others": errors[batch // 2 :].mean().item()}
            log.write(step=step, used=used, **halves)
    log.write(steps=step + 1)


def save_lora(path: Path, student: Student) -> Path:
    """Write the LoRA in BF16, with its alpha, under Wan's names."""
    tensors = {}
    for name, layer in student.layers.items():
        tensors[f"diffusion_model.{name}.lora_down.weight"] = layer.down.detach().bfloat16().contiguous()
        tensors[f"diffusion_model.{name}.lora_up.weight"] = layer.up.detach().bfloat16().contiguous()
        tensors[f"diffusion_model.{name}.alpha"] = torch.tensor(float(RANK))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return path


Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""States, noise levels, text rows, clean latents that are wanted."""


@torch.no_grad()
def _new_colour(student: Student, pairs: Pairs, generator: torch.Generator) -> Batch:
    """Return states of the sampler on its way to each recoloured clip, one at every noise level."""
    made = []
    for level, sigma in enumerate(SCHEDULE.sigmas[:-1]):
        sigmas = torch.full((len(pairs.rows),), sigma)
        noise = torch.randn(pairs.noise.shape, generator=generator) if level else pairs.noise
        known = student.clean(torch.lerp(pairs.clips, noise, sigma), sigmas, pairs.rows, lora=False)
        states = torch.lerp(pairs.clips + pairs.last, noise, sigma)
        made.append((states, sigmas, pairs.new_rows, known + (pairs.last if level else pairs.first)))
    states, sigmas, rows, wanted = (torch.cat(each) for each in zip(*made, strict=True))
    return states, sigmas, rows, wanted


@torch.no_grad()
def _as_before(student: Student, pairs: Pairs, generator: torch.Generator, seed: int) -> Batch:
    """Return the same of clips without the new colour: the pairs' own prompts, and as many drawn from all."""
    words, count = random.Random(seed + 1), len(pairs.rows)
    drawn = [captions.write_caption(captions.draw_content(words), words) for _ in range(count)]
    rows = torch.cat([pairs.rows, student.encode_text(drawn)])
    latents, made = torch.randn(2 * count, *pairs.noise.shape[1:], generator=generator), []
    for sigma in SCHEDULE.sigmas[:-1]:
        sigmas = torch.full((2 * count,), sigma)
        latents = torch.lerp(latents, torch.randn(latents.shape, generator=generator), sigma)
        clean = student.clean(latents, sigmas, rows, lora=False)
        made.append((latents, sigmas, rows, clean))
        latents = clean
    states, sigmas, rows, wanted = (torch.cat(each) for each in zip(*made, strict=True))
    return states, sigmas, rows, wanted


def _linears(block: Any) -> list[tuple[str, Any, str | int]]:
    """Return the linear layers of diffusers' block: Wan's name, the module that holds each, and where."""
    found: list[tuple[str, Any, str | int]] = []
    for name, attention in (("self_attn", block.attn1), ("cross_attn", block.attn2)):
        found += [(f"{name}.{part}", attention, f"to_{part}") for part in "qkv"]
        found.append((f"{name}.o", attention.to_out, 0))
    return [*found, ("ffn.0", block.ffn.net[0], "proj"), ("ffn.2", block.ffn.net, 2)]
