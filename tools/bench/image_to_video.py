"""What an image costs: seconds a step of image-to-video models beside text-to-video, resident and streamed.

Models take turns in rounds, each loaded once: the step is the median of all rounds, without each run's first one. Every
second round has a new image, whose keys and values are made in the first step; the others have the one before.

    python tools bench image_to_video --out image_to_video.jsonl
    python tools bench image_to_video --dim 256 --ffn-dim 512 --layers 2 --width 64 --height 64 --frames 5   # any CPU
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence

import torch

from . import pack
from .harness import Bench, Row, add_clip_options, clean_up, report_row, text_rows, vram_problems
from .weights import KINDS, PRECISIONS

# The share of a step at 832x480x81 that an image may take more.
_MOST = 0.04


def add_options(parser: argparse.ArgumentParser) -> None:
    add_clip_options(parser)
    parser.add_argument("--precision", choices=PRECISIONS, default="fp8")
    parser.add_argument(
        "--kinds", nargs="+", choices=tuple(KINDS), default=["t2v", "i2v"], help="others beside the first"
    )
    parser.add_argument("--modes", nargs="+", default=["none", "block"])
    parser.add_argument("--rounds", type=int, default=2)


def measure(bench: Bench) -> Iterator[Row]:
    """Yield a row for every model in every mode."""
    options = bench.options
    for mode in options.modes:
        if bench.seconds_left <= 0:
            return
        handles = {kind: bench.load_transformer(options.precision, kind, mode=mode) for kind in options.kinds}
        try:
            yield from measure_mode(bench, handles, mode)
        finally:
            for handle in handles.values():
                handle.unload()
            clean_up(bench.device)


def measure_mode(bench: Bench, handles: dict[str, pack.TransformerHandle], mode: str) -> Iterator[Row]:
    """Run the models in turns."""
    options, runs = bench.options, {kind: [] for kind in handles}  # type: dict[str, list[Row]]
    for number in range(1 + options.rounds):
        for kind, handle in handles.items():
            if bench.seconds_left <= 0 and number > 1:
                break
            clean_up(bench.device)
            latents = pack.pipeline.sample(
                handle,
                conditioning_of(handle, bench, image=(number + 1) // 2),
                torch.zeros(1, *bench.shape),
                pack.SamplingSettings(seed=1, method="euler", steps=options.steps),
                hooks=pack.Hooks(),
            )
            if number:  # The first round warms up.
                runs[kind].append(report_row(latents) | {"is_new": number % 2 == 1})
    common = {"precision": options.precision, "size": f"{options.width}x{options.height}", "frames": options.frames}
    base = statistics.median(step for run in runs[options.kinds[0]] for step in run["step_seconds"][1:])
    for kind, found in runs.items():
        steps = [step for run in found for step in run["step_seconds"][1:]]
        row: Row = {"what": kind, "mode": mode, "step": statistics.median(steps), "steps": steps}
        row |= {"more": row["step"] / base - 1, **found[-1]}
        firsts = {is_new: [run["step_seconds"][0] for run in found if run["is_new"] == is_new] for is_new in (0, 1)}
        row |= {"first_step": statistics.median(firsts[0] or firsts[1])}
        if handles[kind].architecture.image_dim:
            # Of the rounds that read weights for it, which take buffers too.
            new = next(run for run in found if run["is_new"])
            row |= {"new_image": statistics.median(firsts[1]), "sample_reserved_gib": new["sample_reserved_gib"]}
        # The other models are there too, loaded and at rest.
        others = [each[-1]["load_transformer_planned_gib"] for each in runs.values() if each is not found]
        row["sample_planned_gib"] += sum(others)
        yield common | row


def conditioning_of(handle: pack.TransformerHandle, bench: Bench, image: int) -> list[pack.Conditioning]:
    """Return a text of always the same rows, and a given first frame for a model that takes one."""
    entries = pack.of_rows(text_rows(torch.Generator().manual_seed(1)), handle.text_dim)
    architecture = handle.architecture
    if not architecture.takes_image:
        return entries
    generator = torch.Generator().manual_seed(image)
    mask = torch.ones(1, 1, *bench.shape[1:])
    mask[:, :, 0] = 0
    rows = torch.randn(1, architecture.image_rows, architecture.image_dim, generator=generator)
    given = pack.Given(
        latents=torch.randn(1, *bench.shape, generator=generator),
        mask=mask,
        rows=rows if architecture.image_dim else None,
    )
    return pack.with_given(entries, given, architecture, pack.Clip.of_latents((1, *bench.shape)))


def check(rows: Sequence[Row]) -> list[str]:
    """Return what misses a target."""
    problems = []
    for row in rows:
        name = f"{row['what']}, mode {row['mode']}"
        if row["size"] == "832x480" and row["more"] > _MOST:
            problems.append(f"{name} takes {row['more']:.1%} of a step more, at most {_MOST:.0%} are wanted")
        problems += vram_problems(name, row)
    return problems
