"""One clip on one GPU and on several of this machine, LightX2V's own sequence parallelism beside it, and many clips.

Ours: every case samples twice with the same seed, and the second time is told; several GPUs are started once. --modes
names where weights rest. The decode is timed on both too. What the formula of engine/parallel/split.py gives from one
GPU's seconds and from the speed of the links here stands beside it. LightX2V (found through LIGHTX2V_DIR): all of its
options, on a model that is loaded once for each number of GPUs. Many clips: a process a GPU, each with its own ones.

    LIGHTX2V_DIR=... python tools bench gpus --gpus 1 2 4 8 --out docs/measurements/$(date +%F)/gpus.jsonl
    python tools bench gpus --gpus 1 2 --parts ours --modes none block --out gpus.jsonl
    python tools bench gpus --gpus 1 2 --parts lightx2v --lightx2v ulysses ulysses+fusion+triton --lightx2v-compile
    python tools bench gpus --gpus 1 --dim 256 --ffn-dim 512 --layers 2 --sizes 64x64 --frames 5   # any CPU
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import psutil
import torch

from ..arguments import whole
from . import gpus_clips, gpus_lightx2v, pack, weights
from .harness import Bench, Row, add_clip_options, clean_up, parse_size, text_rows, wait_for_turn

PARTS = ("ours", "clips", "lightx2v")
NOT_HERE = "not here"
# Of the latents to one GPU's, relative L2: FP8's own error is 0.03.
_APART = 0.002
# Times as fast as one GPU, with all weights on each, in FP8: by size and number of GPUs.
_LEAST_GAIN = {"832x480": {2: 1.90, 4: 3.6, 8: 6.6}, "1280x720": {2: 1.93}}
_LEAST_CLIPS_GAIN = {2: 1.95}
_CANCEL_AFTER_SECONDS = 0.3


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gpus", nargs="+", type=whole(), default=(1, 2), help="how many, 1 first (1 2)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="in this order")
    parser.add_argument("--precision", choices=weights.PRECISIONS, default="fp8")
    parser.add_argument("--modes", nargs="+", choices=pack.OFFLOAD_MODES, default=("none", "block"))
    parser.add_argument("--sizes", nargs="+", default=("832x480",), metavar="WIDTHxHEIGHT")
    parser.add_argument("--no-decode", action="store_true")
    parser.add_argument("--clips", type=whole(), default=3, help="of each GPU, where all make clips (3)")
    parser.add_argument(
        "--lightx2v", nargs="+", choices=gpus_lightx2v.WAYS, default=tuple(gpus_lightx2v.WAYS), metavar="WAY",
        help=f"options of it: {', '.join(gpus_lightx2v.WAYS)} (all)",
    )  # fmt: skip
    parser.add_argument("--lightx2v-compile", action="store_true", help="let it use torch.compile")
    add_clip_options(parser)


def measure(bench: Bench) -> Iterator[Row]:
    """Yield a row for each size, mode and number of GPUs of ours; for each way of LightX2V; for clips of all GPUs."""
    options = bench.options
    links = _links(bench)
    for size in options.sizes:
        case: Row = {"size": size, "frames": options.frames, "precision": options.precision}
        found: list[Row] = []
        for part in options.parts:
            for row in {"ours": _ours, "clips": _clips, "lightx2v": _lightx2v}[part](bench, size):
                found.append(case | {"by": part} | row)
                yield found[-1] | _gain(found[-1], found) | _predict(bench, found[-1], found, links)


def run_child(bench: Bench) -> None:
    """Run a case in a process of its own: see gpus_clips.py and gpus_lightx2v.py."""
    kind, *words = bench.options.child.split()
    if kind == "clips":
        gpus_clips.run_child(bench, *words)
    elif kind == "lightx2v":
        gpus_lightx2v.run_child(bench, words[0], int(words[1]))
    else:
        wait_for_turn()
        links = pack.find_links(measures=True)
        speeds = sorted(links.speeds) if links else []
        bench.options.row.write_text(json.dumps({"link_bytes": speeds[0]} if speeds else {}))


def _links(bench: Bench) -> Row:
    """Return the bytes a second of the slowest link between two GPUs; nothing where there are none."""
    if max(bench.options.gpus) == 1 or bench.device.type != "cuda":
        return {}
    return next((row for _, row in bench.run_children(["links"])), {})


def _gain(row: Row, rows: Sequence[Row]) -> Row:
    """Return how many times as fast as one GPU it is."""
    figure = "clips_per_hour" if row["by"] == "clips" else "step_seconds"
    alone = [
        each[figure]
        for each in rows
        if figure in each and all(each.get(name) == row.get(name) for name in ("by", "mode")) and each["gpus"] == 1
    ]
    if not alone or figure not in row:
        return {}
    return {"gain": row[figure] / alone[0] if figure == "clips_per_hour" else alone[0] / row[figure]}


def _predict(bench: Bench, row: Row, rows: Sequence[Row], links: Row) -> Row:
    """Return what the formula gives for several GPUs from one GPU's seconds: with nothing hidden, with half of it."""
    alone = [each["step_seconds"] for each in rows if each["by"] == "ours" and each["gpus"] == 1]
    if row["by"] != "ours" or row["gpus"] == 1 or not alone or "link_bytes" not in links:
        return {}
    tokens = pack.num_tokens(pack.latent_shape(*parse_size(row["size"]), row["frames"]))
    gain = pack.gain(
        tokens, bench.options.dim, row["gpus"],
        block_seconds=alone[0] / bench.options.layers, link_bytes=links["link_bytes"],
    )  # fmt: skip
    return {"link_bytes": links["link_bytes"], "predicted": gain.speedup, "predicted_hidden": gain.hidden}


def _ours(bench: Bench, size: str) -> Iterator[Row]:
    options = bench.options
    path = bench.weights(options.precision)
    vae = weights.vae_file(bench.folder, options)
    width, height = parse_size(size)
    of_one: dict[str, torch.Tensor] = {}
    for mode in options.modes:
        for count in options.gpus:
            if bench.seconds_left <= 0:
                return
            settings = pack.GpuSettings(gpus=str(count))
            handle = pack.pipeline.load_transformer(
                path, settings=pack.EngineSettings(), offload=pack.OffloadSettings(mode=mode), gpus=settings
            )
            try:
                row = _sample(bench, handle, (width, height, options.frames), of_one)
                if not options.no_decode and mode == options.modes[0]:
                    decoder = pack.pipeline.load_vae(vae, offload=pack.OffloadSettings(), gpus=settings)
                    row |= _decode(decoder, of_one["latents"], of_one)
                    decoder.unload()
                yield {"mode": mode, "gpus": count} | row
            except pack.LightX2VError as error:
                yield {"mode": mode, "gpus": count, "problem": str(error)}
            finally:
                handle.unload()
                clean_up(bench.device)


def _clips(bench: Bench, size: str) -> Iterator[Row]:
    for count in bench.options.gpus:
        if bench.options.clips and bench.seconds_left > 0:
            yield {"gpus": count} | gpus_clips.measure(bench, size, count)


def _lightx2v(bench: Bench, size: str) -> Iterator[Row]:
    if not os.environ.get("LIGHTX2V_DIR") or bench.options.precision == "int8" or bench.device.type != "cuda":
        yield {"gpus": 1, "problem": f"{NOT_HERE}: LightX2V (LIGHTX2V_DIR, a GPU, FP8 or BF16)"}
        return
    bench.weights(bench.options.precision)
    for case, child in bench.run_children([f"lightx2v {size} {count}" for count in bench.options.gpus]):
        count = int(case.split()[-1])
        for row in child.get("rows", ()):
            yield {"gpus": count} | row
        if "problem" in child:
            yield {"gpus": count, "problem": child["problem"]}


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
        # Of the ranks, in the last step; the rest of a step is this process's.
        "pass_seconds": max([0.0, *(rank["pass_seconds"] for rank in ranks)]),
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
    """Return which of ours is slower than it is to be, and which latents differ from those of one GPU by more than they
    may, or from run to run.
    """
    missed = []
    for row in (row for row in rows if row["by"] == "ours"):
        case = f"{row['size']}, {row['mode']}, {row['gpus']} GPUs"
        if "problem" in row:
            missed.append(f"{case}: {row['problem']}")
            continue
        if row["apart"] > _APART:
            missed.append(f"{case}: latents are {row['apart']:.4f} apart from those of one GPU; at most {_APART}")
        if not row["is_same_again"]:
            missed.append(f"{case}: another run gives other latents")
        least = _LEAST_GAIN.get(row["size"], {}).get(row["gpus"])
        if least and row["mode"] == "none" and row["precision"] == "fp8" and row.get("gain", least) < least:
            missed.append(f"{case}: {row['gain']:.2f} times as fast as one GPU; at least {least}")
        others = [
            other for other in rows
            if other["by"] == "lightx2v" and "step_seconds" in other
            and all(other[name] == row[name] for name in ("size", "gpus", "precision"))
        ]  # fmt: skip
        best = min(others, key=lambda other: other["step_seconds"], default=None)
        if row["mode"] == "none" and best and best["step_seconds"] < row["step_seconds"]:
            theirs = f"LightX2V's {best['way']} {best['step_seconds']:.3f}"
            missed.append(f"{case}: {row['step_seconds']:.3f} s a step, {theirs}")
    for row in (row for row in rows if row["by"] == "clips"):
        least = _LEAST_CLIPS_GAIN.get(row["gpus"]) if row["size"] in _LEAST_GAIN else None
        if "problem" in row:
            missed.append(f"{row['size']}, clips on {row['gpus']} GPUs: {row['problem']}")
        elif least and row.get("gain", least) < least:
            missed.append(f"{row['size']}: {row['gain']:.2f} times the clips of one GPU; at least {least}")
    return missed
