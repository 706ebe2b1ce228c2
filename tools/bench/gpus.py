"""One clip on one GPU and on several of this machine: seconds a step, how far the latents are apart, memory, cancel.

Every case samples twice with the same seed, and the second time is told; several GPUs are started once. --modes names
where weights rest. The decode is timed on both too.

    python tools bench gpus --gpus 1 2 --modes none block --out gpus.jsonl
    python tools bench gpus --gpus 1 2 4 --sizes 832x480 1280x720
    python tools bench gpus --gpus 1 --dim 256 --ffn-dim 512 --layers 2 --sizes 64x64 --frames 5   # any CPU
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import psutil
import torch

from . import pack, weights
from .harness import Bench, Row, add_clip_options, clean_up, parse_size, text_rows

# Of the latents to one GPU's, relative L2: FP8's own error is 0.03.
_APART = 0.002
_CANCEL_AFTER_SECONDS = 0.3


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gpus", nargs="+", default=("1", "2"), help="as the node takes them; 1 first (1 2)")
    parser.add_argument("--precision", choices=weights.PRECISIONS, default="fp8")
    parser.add_argument("--modes", nargs="+", choices=pack.OFFLOAD_MODES, default=("none", "block"))
    parser.add_argument("--sizes", nargs="+", default=("832x480",), metavar="WIDTHxHEIGHT")
    parser.add_argument("--no-decode", action="store_true")
    add_clip_options(parser)


def measure(bench: Bench) -> Iterator[Row]:
    """Yield a row for each size, mode and number of GPUs."""
    options = bench.options
    path = bench.weights(options.precision)
    vae = weights.vae_file(bench.folder, options)
    for size in options.sizes:
        width, height = parse_size(size)
        of_one: dict[str, torch.Tensor] = {}
        for mode in options.modes:
            for gpus in options.gpus:
                if bench.seconds_left <= 0:
                    return
                case: Row = {"size": size, "frames": options.frames, "precision": options.precision}
                case |= {"mode": mode, "gpus": gpus}
                settings = pack.GpuSettings(gpus=gpus)
                handle = pack.pipeline.load_transformer(
                    path, settings=pack.EngineSettings(), offload=pack.OffloadSettings(mode=mode), gpus=settings
                )
                try:
                    row = _sample(bench, handle, (width, height, options.frames), of_one)
                    if not options.no_decode and mode == options.modes[0]:
                        decoder = pack.pipeline.load_vae(vae, offload=pack.OffloadSettings(), gpus=settings)
                        row |= _decode(decoder, of_one["latents"], of_one)
                        decoder.unload()
                    yield case | row
                finally:
                    handle.unload()
                    clean_up(bench.device)


def _sample(
    bench: Bench, handle: pack.TransformerHandle, clip: tuple[int, int, int], of_one: dict[str, torch.Tensor]
) -> Row:
    sampling = pack.SamplingSettings(seed=0, steps=bench.options.steps)
    text = pack.of_rows(text_rows(torch.Generator().manual_seed(1)), handle.text_dim)
    empty = pack.pipeline.empty_latent(*clip)
    seconds, latents = [], []
    for _ in range(2):
        begun = time.perf_counter()
        latents.append(pack.pipeline.sample(handle, text, empty, sampling, hooks=pack.Hooks()))
        seconds.append(time.perf_counter() - begun)
    stages = {stage["stage"]: stage for stage in pack.pipeline.report_of(latents[1])["stages"]}
    sample = stages["sample"]
    reference = of_one.setdefault("latents", latents[1])
    details: dict[str, Any] = sample["details"]
    ranks = details.get("ranks", [])
    cancelled = _cancel(handle, text, empty, sampling)
    return {
        "step_seconds": statistics.median(details["step_seconds"][0]),
        "first_seconds": seconds[0],
        "sample_seconds": sample["seconds"],
        "is_same_again": torch.equal(*latents),
        "is_equal": torch.equal(latents[1], reference),
        "apart": float((latents[1] - reference).norm() / reference.norm()),
        "cancel_seconds": cancelled,
        "attention": details["attention"],
        "matmul": details["matmul"],
        "planned_gib": details["plan"]["needs"]["sample"]["vram_bytes"] / pack.GIB,
        "reserved_gib": max(
            [sample["peak_vram_reserved_bytes"], *(rank.get("peak_vram_reserved_bytes", 0) for rank in ranks)]
        )
        / pack.GIB,
        # With CUDA's context and NCCL's buffers.
        "card_gib": max([0, *(rank.get("used_vram_bytes", 0) for rank in ranks)]) / pack.GIB,
        "ram_gib": _ram_bytes() / pack.GIB,
    }


def _cancel(handle: pack.TransformerHandle, text: Any, empty: torch.Tensor, sampling: Any) -> float | None:
    """Return how long a run goes on after someone has pressed Cancel; None where it was over before."""
    begun = 0.0

    def check() -> None:
        nonlocal begun
        now = time.perf_counter()
        begun = begun or now
        if now - begun > _CANCEL_AFTER_SECONDS:
            raise InterruptedError

    try:
        pack.pipeline.sample(handle, text, empty, sampling, hooks=pack.Hooks(check_interrupt=check))
    except InterruptedError:
        return time.perf_counter() - begun - _CANCEL_AFTER_SECONDS
    return None


def _decode(decoder: Any, latents: torch.Tensor, of_one: dict[str, torch.Tensor]) -> Row:
    for _ in range(2):
        frames = pack.pipeline.decode(decoder, latents, hooks=pack.Hooks())
    stages = {stage["stage"]: stage for stage in pack.pipeline.report_of(frames)["stages"]}
    reference = of_one.setdefault("frames", frames)
    return {
        "decode_seconds": stages["decode"]["seconds"],
        "frames_apart": float((frames - reference).abs().max()),
        "frames_equal": torch.equal(frames, reference),
    }


def _ram_bytes() -> int:
    """Return the RAM of this process and its children, what they share counted once."""
    process = psutil.Process()
    sizes = [getattr(each.memory_full_info(), "pss", 0) for each in (process, *process.children(recursive=True))]
    return sum(sizes)


def check(rows: Sequence[Row]) -> list[str]:
    """Return which latents differ from those of one GPU by more than they may, or from run to run."""
    missed = []
    for row in rows:
        case = f"{row['size']}, {row['mode']}, {row['gpus']} GPUs"
        if row["apart"] > _APART:
            missed.append(f"{case}: latents are {row['apart']:.4f} apart from those of one GPU; at most {_APART}")
        if not row["is_same_again"]:
            missed.append(f"{case}: another run gives other latents")
    return missed
