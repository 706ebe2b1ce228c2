"""The text encoder by itself: seconds, peak memory, and that padding changes nothing but the cost.

UMT5-XXL of random weights, or a narrow one with a small --dim, encodes 40 tokens alone and padded to 512. Exit status 1
when a target is missed.

    python tools bench text --precision fp8 int8 --out text.jsonl
    python tools bench text --device gpu --out text.jsonl
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from .. import make_tiny_checkpoint as checkpoints
from . import pack, weights
from .harness import NUM_WORDS, Bench, Row, clean_up, peaks, timed

RUNS = 3
# On the CPU: peak memory of the process over the size of the file, and seconds of 40 tokens over those of 512 padded.
MOST_MEMORY, MOST_TIME = 1.2, 1 / 6
MOST_DIFFERENCE = 2**-5
"""Norm of the difference of the rows, alone and padded, over their norm. After 24 layers in bfloat16 either differs
by 0.022 from the rows computed in float32; computed in float32, the two are equal."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--precision", nargs="+", choices=weights.PRECISIONS, default=("fp8",))
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")


def measure(bench: Bench) -> Iterator[Row]:
    """Load and encode with every precision; yield a row each."""
    cpu, hooks = torch.device("cpu"), pack.Hooks()
    sizes = weights.FULL_TEXT if weights.is_full(bench.options) else weights.SMALL_TEXT
    # Ids that every size of embedding has.
    tokens = torch.randint(2, 400, (NUM_WORDS,), generator=torch.Generator().manual_seed(1)).tolist()
    for precision in bench.options.precision:
        file = weights.ensure_text_encoder(bench.folder, precision, sizes)
        clean_up(bench.device)
        peak_memory_bytes(reset=True)
        encoder = pack.Umt5Encoder(pack.resolve_text_encoder(file, file.parent / checkpoints.TOKENIZER_FOLDER))
        load_seconds, _ = timed(lambda: encoder.load(bench.options.device, hooks), cpu)  # noqa: B023

        def encode(num_padding: int = 0) -> tuple[float, torch.Tensor]:
            return timed(lambda: encoder.encode_tokens(tokens, hooks, num_padding=num_padding), cpu)  # noqa: B023

        first_seconds, rows = encode()
        row: Row = {"precision": precision, "device": bench.options.device, "file_gb": file.stat().st_size / 1e9}
        row |= {"load_seconds": load_seconds, "first_seconds": first_seconds}
        row["ram_over_file"] = peak_memory_bytes() / file.stat().st_size
        short, padded = zip(*((encode(), encode(pack.TEXT_ROWS - NUM_WORDS)) for _ in range(RUNS)), strict=True)
        row["seconds"] = statistics.median(seconds for seconds, _ in short)
        row["padded_seconds"] = statistics.median(seconds for seconds, _ in padded)
        row["difference"] = float((padded[0][1] - rows).norm() / rows.norm())
        yield row | peaks(bench.device)
        encoder.unload()


def peak_memory_bytes(*, reset: bool = False) -> int:
    """Return the most physical memory this process has held since the last reset, mapped files included (Linux)."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


def check(rows: Sequence[Row]) -> list[str]:
    """Return in words what misses a target; those of speed and memory are for the full size."""
    problems = []
    for row in rows:
        wanted = [("difference of padded rows", row["difference"], MOST_DIFFERENCE)]
        if row["dim"] > 1000 and row["device"] == "cpu":
            wanted += [("RAM over file", row["ram_over_file"], MOST_MEMORY)]
            wanted += [("part of the padded time", row["seconds"] / row["padded_seconds"], MOST_TIME)]
        # So written that a value that is no number misses too.
        missed = [f"{what} {value:.3g}, wanted {most:.3g}" for what, value, most in wanted if not value <= most]
        problems += [f"{row['precision']}: {each}" for each in missed]
    return problems
