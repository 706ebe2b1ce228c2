"""Predicted against measured memory, and seconds a step: every offload mode at every size, through the nodes' API.

A mode's weights load once, then all sizes run in one process, fewest tokens first; a number stands for mode `auto` with
a VRAM budget of so many GiB. A row has what the plan said before, GiB of VRAM while loading and while sampling, GiB of
RAM, and the seconds a step that users are told of; then what was measured. Exit status 1 where they are too far apart.

    python tools bench grid --out grid.jsonl
    python tools bench grid --precision fp8 --modes none block --sizes 832x480 --frames 17 81
    python tools bench grid --dim 256 --ffn-dim 512 --layers 2 --sizes 64x64 --frames 5 9     # any CPU
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

import torch

from ...arguments import whole
from .. import pack
from ..harness import Bench, Row, clean_up, first_line, parse_size, report_row, text_rows
from ..weights import PRECISIONS
from . import limits

MODES = ("none", "block", "phase", "disk", "10")
# Resident weights take a second step up to here: the first one compiles kernels. Memory peaks in it.
LAST_TOKENS_OF_TWO_STEPS = 40_000

LOW, HIGH = 0.95, 1.10
"""What the plan may say, as a share of what was measured."""
LEAST_GIB = 1.0
"""Less is noise: the process itself takes as much."""
MOST_ESTIMATE_ERROR = 0.1


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=("fp8", "bf16"))
    parser.add_argument("--sizes", nargs="+", default=("832x480", "1280x720"), help="WIDTHxHEIGHT ...")
    parser.add_argument("--frames", type=whole(), nargs="+", default=(17, 49, 81))
    parser.add_argument("--modes", nargs="+", default=MODES, help="none | block | phase | disk (longest clip) | GiB")


def measure(bench: Bench) -> Iterator[Row]:
    """Run every mode at every size; yield a row each."""
    options = bench.options
    context = limits.check_alone(bench.device)
    base_ram = 0
    cases = [(precision, mode) for precision in options.precision for mode in options.modes]
    for index, (precision, mode) in enumerate(cases):
        budget = float(mode) if mode.isdigit() else 0.0
        handle = bench.load_transformer(precision, mode="auto" if budget else mode, vram_budget_gib=budget)
        base_ram = base_ram or limits.own_ram_bytes()  # after the weights were written
        placed = ""
        for width, height, frames in list_sizes(options, mode):
            if bench.seconds_left <= 0:
                break
            row: Row = {"precision": precision, "mode": mode, "size": f"{width}x{height}", "frames": frames}
            try:
                row |= sample(handle, pack.latent_shape(width, height, frames), base_ram, placed, bench)
                placed = row["plan"].partition(";")[0]
            except (pack.LightX2VError, RuntimeError) as error:
                row["problem"] = first_line(error)
            yield row | {"context_gib": context / pack.GIB}
        handle.unload()
        clean_up(bench.device)
        bench.drop_weights(precision, (case[0] for case in cases[index + 1 :]))


def list_sizes(options: argparse.Namespace, mode: str) -> list[tuple[int, int, int]]:
    """Return (width, height, frames), fewest tokens first; for `disk` the longest clip of the first size only."""
    sizes = [(*parse_size(size), frames) for size in options.sizes for frames in options.frames]
    if mode == "disk":
        return [(*parse_size(options.sizes[0]), options.frames[-1])]
    return sorted(sizes, key=lambda size: pack.num_tokens(pack.latent_shape(*size)))


def sample(handle: pack.TransformerHandle, shape: tuple[int, ...], base_ram: int, placed: str, bench: Bench) -> Row:
    """Take steps, with all loading that they need; return what was planned, what was taken, and seconds.

    Args:
        base_ram: bytes of the process before anything was loaded.
        placed: how the weights are placed already, in the plan's words; nothing where they are not loaded.
    """
    tokens = pack.num_tokens(shape)
    is_resident = handle.offload.mode == "none"
    settings = pack.SamplingSettings(seed=0, steps=2 if is_resident and tokens <= LAST_TOKENS_OF_TWO_STEPS else 1)
    text = pack.of_rows(text_rows(torch.Generator().manual_seed(0)), handle.text_dim)
    clean_up(bench.device)
    with limits.watch_ram() as ram:
        latents = pack.pipeline.sample(handle, text, torch.zeros(1, *shape), settings, hooks=pack.Hooks())
    row = report_row(latents)
    stages = ("sample",) if row["plan"].startswith(f"{placed};") else ("load_transformer", "sample")
    planned_ram = max(row["planned_ram_gib"][stage] for stage in stages)
    layout = handle.files.format
    facts = {key: row[key] for key in ("engine", "compute", "attention", "matmul", "ops", "offload")}
    setup = pack.Setup(card=bench.machine["card"], architecture=layout.architecture, **facts)
    return {
        **row,
        "tokens": tokens,
        "stages": stages,
        "predicted_ram_gib": base_ram / pack.GIB + planned_ram,
        "ram_gib": ram.num_bytes / pack.GIB,
        "estimated_seconds": pack.step_seconds(setup, tokens),
    }


def pairs(row: Row) -> Iterator[tuple[str, float, float]]:
    """Yield what a row compares: name, GiB predicted, GiB measured."""
    for stage in row.get("stages", ()):
        yield f"VRAM, {stage.replace('_', ' ')}", row[f"{stage}_planned_gib"], row[f"{stage}_reserved_gib"]
    if "ram_gib" in row:
        yield "RAM", row["predicted_ram_gib"], row["ram_gib"]


def check(rows: Sequence[Row]) -> list[str]:
    """Return in words which plan or estimate misses its target, and what failed."""
    problems = []
    for row in rows:
        name = f"{row['precision']} {row['size']}x{row['frames']} {row['mode']}"
        if "problem" in row:
            problems.append(f"{name}: {row['problem']}")
        for what, predicted, measured in pairs(row):
            if measured > LEAST_GIB and not LOW <= predicted / measured <= HIGH:
                problems.append(f"{name}: {what} predicted {predicted:.2f} GiB, measured {measured:.2f}")
        estimated, seconds = row.get("estimated_seconds"), row.get("step_seconds", [])
        # A first step has a warm-up in it.
        if estimated and len(seconds) > 1 and abs(estimated / seconds[-1] - 1) > MOST_ESTIMATE_ERROR:
            problems.append(f"{name}: the estimate is {estimated:.3f} s a step, measured {seconds[-1]:.3f}")
    return problems
