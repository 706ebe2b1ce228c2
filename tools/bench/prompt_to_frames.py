"""From a prompt to frames: seconds of every stage, through the API that the nodes call, in one process on one card.

Every run has a new prompt and a new seed; the text encoder computes on the CPU, as the node does unless told otherwise.
The first run pays for imports, loading and kernels that compile; the later ones are what a user waits for from the
second clip on. --batch makes a run for each number of clips.

    python tools bench prompt_to_frames --out prompt_to_frames.jsonl
    python tools bench prompt_to_frames --frames 17 --batch 1 2 4
    python tools bench prompt_to_frames --dim 256 --ffn-dim 512 --layers 2 --width 64 --height 64 --frames 5   # any CPU
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .. import make_tiny_checkpoint as checkpoints
from ..arguments import whole
from . import pack, weights
from .harness import NUM_WORDS, Bench, Row, add_clip_options, clean_up, report_row, timed

SENTENCE = "a red fox runs through fresh snow at dawn while the camera follows from side to side and back"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=whole(), nargs="+", default=(1, 1, 1), help="clips of each run (1 1 1)")
    parser.add_argument("--precision", choices=weights.PRECISIONS, default="fp8")
    parser.add_argument("--text-precision", choices=weights.PRECISIONS, default="fp8")
    parser.add_argument("--text-device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--offload", choices=pack.OFFLOAD_MODES, default="auto")
    add_clip_options(parser)


def measure(bench: Bench) -> Iterator[Row]:
    """Make a video, or a batch of them, a run; yield a row each."""
    options = bench.options
    text_sizes = weights.FULL_TEXT if weights.is_full(options) else weights.SMALL_TEXT
    text_file = weights.ensure_text_encoder(bench.folder, options.text_precision, text_sizes)
    tokenize = pack.open_tokenizer(text_file.parent / checkpoints.TOKENIZER_FOLDER)
    handles = (
        pack.pipeline.load_text_encoder(text_file),
        bench.load_transformer(options.precision, mode=options.offload),
        pack.pipeline.load_vae(weights.vae_file(bench.folder, options), offload=pack.OffloadSettings()),
    )
    clip = (options.width, options.height, options.frames)
    for index, batch in enumerate(options.batch):
        if bench.seconds_left <= 0:
            return
        # The end token is one of them.
        prompt = make_prompt(index, lambda text: len(tokenize(text)) + 1)
        row: Row = {"run": index + 1, "batch": batch, "tokens": len(tokenize(prompt)) + 1}
        row |= {"size": f"{options.width}x{options.height}", "frames": options.frames, "precision": options.precision}
        clean_up(bench.device)
        sampling = pack.SamplingSettings(seed=index, steps=options.steps)
        seconds, made = timed(
            lambda: make_clips(handles, prompt, clip, batch, sampling, options.text_device),  # noqa: B023
            bench.device,
        )
        yield row | {"seconds": seconds, **made}


def make_prompt(index: int, count: Callable[[str], int]) -> str:
    """Return a prompt of NUM_WORDS tokens, or a few more; another one for every index."""
    text, words = "", SENTENCE.split()
    while count(text) < NUM_WORDS:
        text, index = f"{text} {words[index % len(words)]}".strip(), index + 1
    return text


def make_clips(
    handles: Sequence[Any], prompt: str, clip: tuple[int, int, int], batch: int, sampling: Any, text_device: str = "cpu"
) -> Row:
    """Encode, sample and decode as the nodes do; return what its report says.

    Args:
        handles: of text encoder, transformer and, unless nothing shall be decoded, VAE.
        clip: width, height and number of frames.
    """
    text_encoder, transformer, *vaes = handles
    pipeline, hooks = pack.pipeline, pack.Hooks()
    rows = pipeline.encode_text(text_encoder, prompt, device=text_device, hooks=hooks)
    text = pack.of_rows(rows, transformer.text_dim, pack.records_of(rows))
    result = latents = pipeline.sample(transformer, text, pipeline.empty_latent(*clip, batch), sampling, hooks=hooks)
    for vae in vaes:
        result = pipeline.decode(vae, latents, hooks=hooks)
    return {
        **report_row(result),
        "latents": hashlib.sha256(latents.numpy().tobytes()).hexdigest()[:16],
        "is_finite": bool(latents.isfinite().all() and result.isfinite().all()),
    }


def check(rows: Sequence[Row]) -> list[str]:
    """Return which runs were not finite."""
    return [f"run {row['run']}: not finite" for row in rows if not row["is_finite"]]
