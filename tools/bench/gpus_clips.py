"""Many clips on all GPUs, one process a GPU as `run_prompts.py` has them: what runs in each of them, and all together.

A clip is sampled and decoded; its text is there already.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

import torch

from . import pack, weights
from .harness import TOOLS, Bench, Child, Row, parse_size, text_rows, wait_for_turn

_POLL_SECONDS = 0.05


def measure(bench: Bench, size: str, count: int) -> Row:
    """Return the clips an hour of so many GPUs, from when the first process begins until the last one ends."""
    bench.weights(bench.options.precision)
    weights.vae_file(bench.folder, bench.options)
    with contextlib.ExitStack() as stack:
        files = [bench.row_file(f"clips-{size}-{count}-{index}") for index in range(count)]
        children = []
        for index, file in enumerate(files):
            command = [str(TOOLS), "bench", bench.name, *bench.words, "--weights", str(bench.folder)]
            command += ["--child", f"clips {size}", "--row", str(file)]
            child = Child(command, file.with_suffix(".log"), {"CUDA_VISIBLE_DEVICES": _card(index)})
            stack.callback(child.stop)
            children.append(child)
        until = time.monotonic() + bench.options.limit
        while not all(_ready(file).exists() for file in files):
            ended = [child for child in children if child.has_ended]
            if ended or time.monotonic() > until:
                return {"problem": (ended or children)[0].wait(0.1)}
            time.sleep(_POLL_SECONDS)
        for child in children:
            child.begin()
        problems = [problem for child in children if (problem := child.wait(bench.options.limit))]
        if problems:
            return {"problem": problems[0]}
        rows = [json.loads(file.read_text()) for file in files]
    seconds = max(row["ended"] for row in rows) - min(row["begun"] for row in rows)
    clips = count * bench.options.clips
    return {"clips": clips, "seconds": seconds, "clips_per_hour": 3600 * clips / seconds}


def _card(index: int) -> str:
    """Return what lets a process see one of the GPUs that this one sees."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    named = [str(index)] if seen is None else seen.split(",")
    return named[index] if index < len(named) > 1 else named[0]


def _ready(file: Path) -> Path:
    return file.with_suffix(".ready")


def run_child(bench: Bench, size: str) -> None:
    """Make a clip, say that it is done, wait, and make the clips that count."""
    options = bench.options
    handle = bench.load_transformer(options.precision)
    decoder = pack.pipeline.load_vae(weights.vae_file(bench.folder, options), offload=pack.OffloadSettings())
    text: Any = pack.of_rows(text_rows(torch.Generator().manual_seed(1)), handle.text_dim)

    def make(seed: int) -> None:
        empty = pack.pipeline.empty_latent(*parse_size(size), options.frames)
        sampling = pack.SamplingSettings(seed=seed, steps=options.steps)
        latents = pack.pipeline.sample(handle, text, empty, sampling, hooks=pack.Hooks())
        pack.pipeline.decode(decoder, latents, hooks=pack.Hooks())

    make(0)
    _ready(options.row).write_text("")
    wait_for_turn()
    begun = time.time()
    for seed in range(1, options.clips + 1):
        make(seed)
    options.row.write_text(json.dumps({"begun": begun, "ended": time.time()}))
