"""What a clip can show, how a caption says it, and which combinations are kept from training.

A held-out combination is a (shape, colour, background, motion) that no training clip has, in any of its things: a
model that draws one has put together what it knows.
"""

from __future__ import annotations

import io
import itertools
import random
from collections.abc import Iterator

import sentencepiece
import torch

from ...tools.clip_content import COLOURS, MOTIONS, SHAPES, THING_COLOURS, Content, Thing

# Captions are padded to this many tokens; the longest has fewer, so the last row of text is always padding.
MAX_TOKENS = 24
VOCAB_SIZE = 420
END_TOKEN = 1
# Share of clips with two things.
TWO_THINGS = 0.5

_HELD_OUT_SHARE = 0.1

_MOTION_WORDS = {
    "left": ("moving left", "sliding to the left", "drifting leftwards"),
    "right": ("moving right", "sliding to the right", "drifting rightwards"),
    "up": ("moving up", "rising", "floating upwards"),
    "down": ("moving down", "falling", "sinking downwards"),
    "growing": ("growing", "getting bigger", "expanding"),
    "shrinking": ("shrinking", "getting smaller", "contracting"),
    "still": ("standing still", "not moving", "staying still"),
}
_TEMPLATES = (
    "{things} {motion} on a {background} background.",
    "{things} {motion} in front of a {background} background.",
    "on a {background} background, {things} {motion}.",
    "a video of {things} {motion} on a {background} background.",
    "{background} background, {things}, {motion}",
)

Combination = tuple[str, str, str, str]


def _hold_out() -> frozenset[Combination]:
    every = itertools.product(SHAPES, THING_COLOURS, COLOURS, MOTIONS)
    possible = [combination for combination in every if combination[1] != combination[2]]
    random.Random(7).shuffle(possible)
    return frozenset(possible[: round(_HELD_OUT_SHARE * len(possible))])


HELD_OUT = _hold_out()


def is_held_out(content: Content) -> bool:
    """Say whether any thing of a clip makes a held-out combination with its background and motion."""
    return any((thing.shape, thing.colour, content.background, thing.motion) in HELD_OUT for thing in content.things)


def draw_content(generator: random.Random, *, held_out: bool = False, num_things: int | None = None) -> Content:
    """Draw what a clip shows; the things of a clip differ in colour and share their motion."""
    while True:
        count = num_things or 1 + (generator.random() < TWO_THINGS)
        background = generator.choice(list(COLOURS))
        motion = generator.choice(MOTIONS)
        colours = generator.sample([colour for colour in THING_COLOURS if colour != background], count)
        things = tuple(Thing(colour=colour, shape=generator.choice(SHAPES), motion=motion) for colour in colours)
        content = Content(background=background, things=things)
        if is_held_out(content) == held_out:
            return content


def write_caption(content: Content, generator: random.Random) -> str:
    """Say what a clip shows, in one of many wordings."""
    things = " and ".join(f"a {thing.colour} {thing.shape}" for thing in content.things)
    background = content.background
    if background == "gray" and generator.random() < 0.5:
        background = "grey"
    caption = generator.choice(_TEMPLATES).format(
        things=things, motion=generator.choice(_MOTION_WORDS[content.things[0].motion]), background=background
    )
    return caption if generator.random() < 0.3 else caption[0].upper() + caption[1:]


def list_prompts(count: int, seed: int = 1) -> list[tuple[Content, str]]:
    """List held-out prompts, one in four with two things: what the clip should show, and the caption."""
    generator = random.Random(seed)
    contents = [draw_content(generator, held_out=True, num_things=2 if index % 4 == 3 else 1) for index in range(count)]
    return [(content, write_caption(content, generator)) for content in contents]


def train_tokenizer(seed: int = 0) -> bytes:
    """Train a SentencePiece model on captions (pad 0, end 1, unknown 2, then bytes) and return its file's bytes."""
    generator = random.Random(seed)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=_tokenizer_corpus(generator, 5000),
        model_writer=model,
        vocab_size=VOCAB_SIZE,
        hard_vocab_limit=False,
        model_type="unigram",
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        pad_id=0,
        eos_id=END_TOKEN,
        unk_id=2,
        bos_id=-1,
        unk_piece="<unk>",
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def tokenize(captions: list[str], spiece_model: bytes) -> torch.Tensor:
    """Return token ids [len(captions), MAX_TOKENS], each with its end token, padded with 0.

    Raises:
        ValueError: a caption is too long.
    """
    processor = sentencepiece.SentencePieceProcessor(model_proto=spiece_model)
    tokens = torch.zeros(len(captions), MAX_TOKENS, dtype=torch.long)
    for row, ids in zip(tokens, processor.encode(captions), strict=True):
        if len(ids) + 1 >= MAX_TOKENS:
            raise ValueError(f"A caption has {len(ids)} tokens; expected fewer than {MAX_TOKENS - 1}.")
        row[: len(ids) + 1] = torch.tensor([*ids, END_TOKEN])
    return tokens


def _tokenizer_corpus(generator: random.Random, count: int) -> Iterator[str]:
    captions = [write_caption(draw_content(generator), generator) for _ in range(count)]
    yield from captions
    # SentencePiece takes as pieces what occurs in several of the different words: with other punctuation behind it,
    # every word becomes a piece of its own.
    for word in sorted({word.strip(".,") for caption in captions for word in caption.split()}):
        yield f"{word} {word}, {word}."
