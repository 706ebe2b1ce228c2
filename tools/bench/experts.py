"""Both experts of Wan2.2 as one model beside each of them alone: seconds a step and of the change, VRAM, smaller cards.

In turns, in every mode: the high-noise and the low-noise transformer alone, and both as one. What the first step of the
second expert takes more than its next one is the change. Then the pair in a fresh process under each cap, as a card of
so many GiB would leave it, and with less RAM: the latents must be the same. Exit status 1 where a target is missed.

    python tools bench experts --out experts.jsonl
    python tools bench experts --dim 256 --ffn-dim 512 --layers 2 --width 64 --height 64 --frames 5 --caps   # any CPU
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence

import torch

from ..arguments import whole
from . import capped, pack
from .harness import Bench, Row, add_clip_options, clean_up, text_rows, vram_problems
from .weights import PRECISIONS

# How much slower than alone an expert's step may be, and the seconds of the change.
_MOST_SLOWER, _MOST_CHANGE = 0.01, 0.1


def add_options(parser: argparse.ArgumentParser) -> None:
    add_clip_options(parser)
    parser.add_argument("--precision", choices=PRECISIONS, default="fp8")
    parser.add_argument("--modes", nargs="*", default=["none", "block"])
    parser.add_argument("--rounds", type=whole(), default=2)
    capped.add_options(parser)


def measure(bench: Bench) -> Iterator[Row]:
    """Yield a row for every mode, then for every cap."""
    options, latents = bench.options, ""
    common = {"precision": options.precision, "size": f"{options.width}x{options.height}", "frames": options.frames}
    bench.experts(options.precision)
    for mode in options.modes:
        if bench.seconds_left > 0:
            row = measure_mode(bench, mode)
            latents = latents or row["latents"]
            yield common | row | {"what": mode, "same_latents": row["latents"] == latents}
    for row in capped.measure(bench, latents):
        if "step_seconds" in row:
            row |= {"high": row["step_seconds"][1], "low": row["step_seconds"][3]}
            row |= {"change": row["step_seconds"][2] - row["step_seconds"][3]}
        yield common | row


def measure_mode(bench: Bench, mode: str) -> Row:
    """Run the three in turns, each loaded once."""
    options = bench.options
    folder = bench.experts(options.precision)
    paths = {"high": folder / "high_noise_model", "low": folder / "low_noise_model", "both": folder}
    handles = {
        name: pack.pipeline.load_transformer(
            path, second="alone", settings=pack.EngineSettings(), offload=pack.OffloadSettings(mode=mode)
        )
        for name, path in paths.items()
    }
    steps: dict[str, list[list[float]]] = {name: [] for name in handles}
    row: Row = {}
    try:
        for number in range(1 + options.rounds):
            for name, handle in handles.items():
                clean_up(bench.device)
                # The third of alone is as warm as the fourth of both.
                row = capped.sample(bench, handle, entries_of(handle), pack.DISTILL_STEPS - (name != "both"))
                others = sum(each.owner.num_bytes for each in handles.values() if each is not handle)
                row["sample_reserved_gib"] -= others / pack.GIB
                if number:  # The first round warms up.
                    steps[name].append(row["step_seconds"])
    finally:
        for handle in handles.values():
            handle.unload()
        clean_up(bench.device)
    found = {
        "high_alone": [step for run in steps["high"] for step in run[1:]],
        "low_alone": [step for run in steps["low"] for step in run[1:]],
        "high": [run[1] for run in steps["both"]],
        "low": [run[3] for run in steps["both"]],
        "change": [run[2] - run[3] for run in steps["both"]],
    }
    return {**row, **{name: statistics.median(each) for name, each in found.items()}, "steps": found}


def entries_of(handle: pack.TransformerHandle) -> list[pack.Conditioning]:
    return pack.of_rows(text_rows(torch.Generator().manual_seed(1)), handle.text_dim)


def run_child(bench: Bench) -> None:
    """Sample the pair under the cap; write the row."""
    options = bench.options
    folder = bench.experts(options.precision)

    def load() -> pack.TransformerHandle:
        settings = {"settings": pack.EngineSettings(), "offload": pack.OffloadSettings()}
        return pack.pipeline.load_transformer(folder, **settings)

    capped.run_child(bench, options.child, load, entries_of, pack.DISTILL_STEPS)


def check(rows: Sequence[Row]) -> list[str]:
    """Return what misses a target."""
    problems = []
    for row in rows:
        name = f"both experts, {row['what']}"
        problems += capped.problems_of(name, row)
        if "step_seconds" not in row:
            continue
        is_timed = row["size"] == "832x480" and "high_alone" in row
        for expert in ("high", "low") if is_timed else ():
            alone = row[f"{expert}_alone"]
            if row[expert] / alone - 1 > _MOST_SLOWER:
                problems.append(f"{name}: a step of the {expert}-noise one takes {row[expert] / alone - 1:.1%} more")
        if is_timed and row["change"] > _MOST_CHANGE:
            problems.append(f"{name}: the change takes {row['change']:.2f} s, at most {_MOST_CHANGE} are wanted")
        problems += vram_problems(name, row)
    return problems
