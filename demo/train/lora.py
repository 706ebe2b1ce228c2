"""A LoRA on the finished checkpoint: things become black where the prompt says so, and nothing else changes.

No clip of the training had a black thing; the checkpoint knows the word for backgrounds only. What the LoRA is to make
of a prompt with a black thing is what the checkpoint makes of the same prompt with another colour and the same noise,
with the pixels of that colour turned black: at each of its four steps decoded, recoloured, encoded. So it learns the
colour and nothing of its own about places, shapes or motions. What it is to make of every other prompt is what the
checkpoint makes of it.

Black is a colour that the VAE, which never saw a black thing either, can show: on these backgrounds. Gray and purple
things are lost on half of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from ...engine.settings import SAMPLING_METHODS
from ...tools.clip_content import COLOURS, MOTIONS, SHAPES, THING_COLOURS, Content, Thing
from . import captions, sampling
from . import vae as autoencoder
from .distill import SCHEDULE, soften
from .export import transformer_name
from .models import Generator, save_tensors
from .training import Alarm, Budget, Log, Recorded, Trainer, autocast

COLOUR = "black"
BACKGROUNDS = ("red", "green", "blue", "yellow", "white")
# Its file takes 1.8 MB.
RANK = 32


def _hold_out() -> frozenset[tuple[str, str, str]]:
    every = [(shape, back, motion) for shape in SHAPES for back in BACKGROUNDS for motion in MOTIONS]
    random.Random(8).shuffle(every)
    return frozenset(every[: len(every) // 10])


HELD_OUT = _hold_out()
"""(shape, background, motion) that no clip of the LoRA's training shows with a black thing."""


def draw_content(words: random.Random, *, held_out: bool = False, num_things: int | None = None) -> Content:
    """Draw what a clip shows of which `in_new_colour` makes a thing black; it has another colour yet."""
    while True:
        content = captions.draw_content(words, num_things=num_things)
        thing = content.things[_recoloured(content)]
        is_held_out = (thing.shape, content.background, thing.motion) in HELD_OUT
        if content.background in BACKGROUNDS and is_held_out == held_out:
            return content


def _recoloured(content: Content) -> int:
    """Return which thing of a clip gets the new colour: the one whose colour comes last in the table.

    Of two things it is the one below or on the right, see clips.py, so black things always are.
    """
    return max(range(len(content.things)), key=lambda index: THING_COLOURS.index(content.things[index].colour))


def in_new_colour(content: Content) -> Content:
    """Return the same with one thing black."""
    chosen = content.things[_recoloured(content)]
    things = (
        Thing(colour=COLOUR, shape=thing.shape, motion=thing.motion) if thing is chosen else thing
        for thing in content.things
    )
    return Content(background=content.background, things=tuple(things))


def list_prompts(count: int, seed: int = 3) -> list[tuple[Content, str]]:
    """List held-out prompts with a black thing, one in four with two things: what the clip should show, the caption."""
    words = random.Random(seed)
    drawn = [draw_content(words, held_out=True, num_things=2 if index % 4 == 3 else 1) for index in range(count)]
    contents = [in_new_colour(content) for content in drawn]
    return [(content, captions.write_caption(content, words)) for content in contents]


class Added(torch.nn.Module):
    """A linear layer that stays as it is, and a pair beside it."""

    def __init__(self, layer: torch.nn.Linear, rank: int) -> None:
        super().__init__()
        device = layer.weight.device
        self.layer = layer
        self.down = torch.nn.Parameter(torch.randn(rank, layer.in_features, device=device) * layer.in_features**-0.5)
        self.up = torch.nn.Parameter(torch.zeros(layer.out_features, rank, device=device))
        self.is_on = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.layer(x)
        return out + functional.linear(functional.linear(x, self.down), self.up) if self.is_on else out


class Lora:
    """Pairs beside all linear layers of a transformer's blocks; the transformer's own weights stay as they are."""

    def __init__(self, transformer: Any, rank: int = RANK) -> None:
        """Put the pairs in place; they change nothing before they are trained."""
        transformer.requires_grad_(False)
        self.layers: dict[str, Added] = {}
        for name, layer in list(transformer.blocks.named_modules()):
            if isinstance(layer, torch.nn.Linear):
                parent, _, key = name.rpartition(".")
                added = self.layers[transformer_name(f"blocks.{name}")] = Added(layer, rank)
                setattr(transformer.blocks.get_submodule(parent), key, added)
        self.rank = rank

    def switch(self, is_on: bool) -> None:
        """Say whether the pairs count."""
        for layer in self.layers.values():
            layer.is_on = is_on

    def save(self, path: Path) -> None:
        """Write the pairs in BF16, with their alpha, under Wan's names."""
        tensors = {}
        for name, layer in self.layers.items():
            tensors[f"diffusion_model.{name}.lora_down.weight"] = layer.down.detach().cpu().bfloat16().contiguous()
            tensors[f"diffusion_model.{name}.lora_up.weight"] = layer.up.detach().cpu().bfloat16().contiguous()
            tensors[f"diffusion_model.{name}.alpha"] = torch.tensor(float(self.rank))
        save_tensors(path, tensors)


def recolour(video: torch.Tensor, contents: Sequence[Content]) -> torch.Tensor:
    """Draw what clips show anew, with the share of every pixel that is of the chosen thing in the new colour.

    Args:
        video: [B, 3, F, H, W] in about [-1, 1]; every pixel is nearly a mixture of the colours of its content.
        contents: with one or two things each.
    """
    table = {name: torch.tensor(rgb, device=video.device) / 127.5 - 1 for name, rgb in COLOURS.items()}

    def colours(content: Content) -> torch.Tensor:
        """Return how the colours of the things differ from the background, [3, 2]; a single one's second is 0."""
        background = table[content.background]
        parts = [table[thing.colour] - background for thing in content.things]
        return torch.stack([*parts, torch.zeros_like(background)][:2], dim=1)

    old, new = (torch.stack([colours(each) for each in made]) for made in (contents, map(in_new_colour, contents)))
    backgrounds = torch.stack([table[content.background] for content in contents])[:, :, None]
    shares = (torch.linalg.pinv(old) @ (video.flatten(2) - backgrounds)).clamp(0, 1)
    return (backgrounds + new @ shares).clamp(-1, 1).view(video.shape)


@dataclass(frozen=True, kw_only=True)
class Examples:
    """States of the sampler, and what shall be made of them."""

    states: torch.Tensor
    """[N, 16, T, h, w], bfloat16, as all but the noise levels."""
    sigmas: torch.Tensor
    """[N]."""
    rows: torch.Tensor
    """[N, MAX_TOKENS, text_dim]."""
    wanted: torch.Tensor
    """[N, 16, T, h, w], clean."""

    def draw(self, count: int) -> tuple[torch.Tensor, ...]:
        """Return random examples, float32."""
        chosen = torch.randint(len(self.sigmas), (count,), device=self.sigmas.device)
        return tuple(values[chosen].float() for values in (self.states, self.sigmas, self.rows, self.wanted))


@torch.no_grad()
def make_examples(
    generator: Generator,
    vae: Any,
    spiece_model: bytes,
    budget: Budget,
    log: Log,
    *,
    seed: int,
    latent_shape: tuple[int, ...],
    batch: int = 64,
) -> tuple[Examples, Examples]:
    """Let the checkpoint draw, until the budget is used up; returns examples of the new colour, and of the rest.

    Those of the rest are of the same prompts with the colours that the checkpoint knows, and of as many others.
    """
    words = random.Random(seed)
    found: tuple[list[tuple[torch.Tensor, ...]], ...] = ([], [])

    def draw_noise() -> torch.Tensor:
        return torch.randn(batch, *latent_shape, device=generator.device)

    def draw_noise_twice() -> torch.Tensor:
        return draw_noise().repeat(2, 1, 1, 1, 1)

    for step, used in budget:
        contents = [draw_content(words) for _ in range(batch)]
        state = words.getstate()
        texts = []
        for named in (contents, [in_new_colour(content) for content in contents]):
            words.setstate(state)  # the same wording
            texts += [captions.write_caption(content, words) for content in named]
        texts += [captions.write_caption(captions.draw_content(words), words) for _ in range(batch)]
        tokens = captions.tokenize(texts, spiece_model).to(generator.device)
        rows, new_rows, other_rows = generator.encode_text(tokens).chunk(3)
        method = SAMPLING_METHODS[step % len(SAMPLING_METHODS)]

        def predict(latents: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
            """Predict both flows from the clips in known colours: theirs, and that of the recoloured ones."""
            known, new = latents.chunk(2)
            sigma = sigmas[:batch, None, None, None, None]
            flow = generator.predict_flow(known, sigmas[:batch], rows)  # noqa: B023
            clean = known - sigma * flow
            recoloured = _recolour_latents(vae, clean, contents)  # noqa: B023
            found[0].append((new, sigmas[:batch], new_rows, recoloured))  # noqa: B023
            found[1].append((known, sigmas[:batch], rows, clean))  # noqa: B023
            return torch.cat([flow, (new - recoloured) / sigma])

        def predict_others(latents: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
            flow = generator.predict_flow(latents, sigmas, other_rows)  # noqa: B023
            found[1].append((latents, sigmas, other_rows, latents - sigmas[:, None, None, None, None] * flow))  # noqa: B023
            return flow

        sampling.sample([predict], draw_noise_twice, SCHEDULE, method)
        sampling.sample([predict_others], draw_noise, SCHEDULE, method)
        log.write(step=step, used=used, clips=batch * (step + 1))
    new, others = (
        Examples(
            **{
                name: torch.cat([each.bfloat16() if each.ndim > 1 else each for each in values])
                for name, values in zip(("states", "sigmas", "rows", "wanted"), zip(*each, strict=True), strict=True)
            }
        )
        for each in found
    )
    return new, others


def _recolour_latents(vae: Any, latents: torch.Tensor, contents: Sequence[Content]) -> torch.Tensor:
    made = []
    for part, named in zip(latents.split(16), _split(contents, 16), strict=True):
        with autocast(latents.device):
            video = autoencoder.decode(vae, autoencoder.denormalize(part)).float()
        with autocast(latents.device):
            made.append(autoencoder.normalize(autoencoder.encode(vae, recolour(video, named)).float()))
    return torch.cat(made)


def _split(contents: Sequence[Content], size: int) -> list[Sequence[Content]]:
    return [contents[start : start + size] for start in range(0, len(contents), size)]


def train_lora(
    generator: Generator,
    lora: Lora,
    examples: tuple[Examples, Examples],
    budget: Budget,
    log: Log,
    *,
    batch: int = 256,
    learning_rate: float = 1e-3,
    graphs: bool = False,
    keep: Callable[[], None] = lambda: None,
) -> None:
    """Train the pairs in place, on batches of which half are of the new colour.

    For `graphs` and `keep` see `train_flow`.
    """
    trainer = Trainer(lora.layers.values(), learning_rate)

    def do_step() -> torch.Tensor:
        drawn = zip(*(each.draw(batch // 2) for each in examples), strict=True)
        states, sigmas, rows, wanted = (torch.cat(both) for both in drawn)
        flow = generator.predict_flow(states, sigmas, rows)
        clean = states - sigmas[:, None, None, None, None] * flow
        errors = (clean - wanted).square().mean(dim=(1, 2, 3, 4))
        trainer.descend(soften(errors))
        return errors.detach().unflatten(0, (2, -1)).mean(dim=1)

    next_step = Recorded(do_step) if graphs else do_step
    alarm = Alarm()
    for step, used in budget:
        trainer.set_rate(used)
        errors = next_step()
        if step % 100 == 0:
            new, others = errors.tolist()
            log.write(step=step, used=used, error_new=new, error_others=others)
        if alarm.rings():
            keep()
    keep()
    log.write(steps=step + 1)
