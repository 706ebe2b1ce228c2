"""Stage 1: the text encoder learns to read captions, and stays as it is from then on.

The real UMT5 has read text before a video model is trained on what it says; this one learns the little it needs to:
from every one of its rows one shall be able to tell all that the caption says. The layers that tell it are thrown
away; the transformer reads the rows in their place.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch.nn import Linear, functional

from ...tools.clip_content import COLOURS, MOTIONS, SHAPES, THING_COLOURS, Content
from . import captions
from .models import Generator
from .training import Budget, Log, Trainer

# Questions about a caption, by their number of answers: background, motion, and of each colour the shape, if any.
_QUESTIONS = (len(COLOURS), len(MOTIONS), *[1 + len(SHAPES)] * len(THING_COLOURS))


def train_text(
    generator: Generator, spiece_model: bytes, budget: Budget, log: Log, *, seed: int, batch: int = 512
) -> None:
    """Train the text encoder in place."""
    device, text_encoder = generator.device, generator.text_encoder
    words = random.Random(seed)
    contents = [captions.draw_content(words) for _ in range(40 * batch)]
    texts = [captions.write_caption(content, words) for content in contents]
    tokens, answers = captions.tokenize(texts, spiece_model).to(device), list_answers(contents).to(device)
    readout = Linear(text_encoder.config.d_model, sum(_QUESTIONS)).to(device)
    trainer = Trainer([text_encoder, readout], 1e-3)
    for step, used in budget:
        chosen = torch.randint(len(tokens), (batch,), device=device)
        guesses = readout(generator.encode_text(tokens[chosen])).split(_QUESTIONS, dim=-1)
        is_text = tokens[chosen] > 0
        losses = [
            functional.cross_entropy(guess[is_text], answer[:, None].expand_as(is_text)[is_text])
            for guess, answer in zip(guesses, answers[chosen].unbind(dim=1), strict=True)
        ]
        loss = torch.stack(losses).sum()
        trainer.set_rate(used)
        trainer.descend(loss)
        if step % 100 == 0:
            log.write(step=step, used=used, loss=loss.item())
    log.write(steps=step + 1, read_right=measure_reading(generator, readout, spiece_model))


@torch.no_grad()
def measure_reading(generator: Generator, readout: torch.nn.Linear, spiece_model: bytes, count: int = 500) -> float:
    """Return the share of held-out captions of which every row tells all that it says."""
    prompts = captions.list_prompts(count, seed=2)
    tokens = captions.tokenize([text for _, text in prompts], spiece_model).to(generator.device)
    answers = list_answers([content for content, _ in prompts]).to(generator.device)
    guesses = readout(generator.encode_text(tokens)).split(_QUESTIONS, dim=-1)
    chosen = torch.stack([guess.argmax(dim=-1) for guess in guesses], dim=-1)
    is_right = (chosen == answers[:, None]).all(dim=-1) | (tokens == 0)
    return float(is_right.all(dim=1).float().mean())


def list_answers(contents: Sequence[Content]) -> torch.Tensor:
    """Return the answer to every question, [N, number of questions]."""
    names = list(COLOURS)
    rows = []
    for content in contents:
        shapes = {thing.colour: 1 + SHAPES.index(thing.shape) for thing in content.things}
        motion = MOTIONS.index(content.things[0].motion)
        rows.append([names.index(content.background), motion, *(shapes.get(colour, 0) for colour in THING_COLOURS)])
    return torch.tensor(rows)
