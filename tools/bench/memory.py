"""Check the memory plan on a card: predicted against measured, and that `auto` fits whatever the card.

Random weights of the full 14B size, made here; what they hold does not change what they take. Three parts, whose rows
go to --out as JSON lines as they are done; `table` prints them, and its exit status is 1 where a target was missed:

    python tools/bench/memory.py grid --out memory.jsonl       # every placement and size: plan's bytes, torch's bytes
    python tools/bench/memory.py caps --out memory.jsonl       # encode, 4 steps, decode on 6, 8, 10, 12, 16 and 24 GiB
    python tools/bench/memory.py caps --caps 8 --ram-gib 16 --precision fp8 --out memory.jsonl  # from the drive
    python tools/bench/memory.py table memory.jsonl

`--cells 1/2` and `--cells 2/2` split a part between two cards. On any CPU: --dim 256 --ffn-dim 512 --layers 2
--sizes 64x64 --frames 5. The text encoder of `caps` is a small one of full width, unless --text-encoder names one
(text_encoder.py --folder makes one of full size).
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import logging
import statistics
import sys
import tempfile
import time
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
pack = types.ModuleType("lightx2v_pack")
pack.__path__ = [str(ROOT)]
sys.modules["lightx2v_pack"] = pack
# This file's folder comes first on the path and would make lightx2v.py there the package `lightx2v`.
sys.path[:] = [entry for entry in sys.path if entry != str(Path(__file__).resolve().parent)]

from lightx2v_pack.engine import engines, handles, pipeline  # noqa: E402
from lightx2v_pack.engine.adapters.system import compute_device, free_ram_bytes  # noqa: E402
from lightx2v_pack.engine.constants import GIB, TEXT_ROWS  # noqa: E402
from lightx2v_pack.engine.errors import LightX2VError  # noqa: E402
from lightx2v_pack.engine.interfaces import Hooks, Transformer  # noqa: E402
from lightx2v_pack.engine.logic.checkpoint_files import resolve_transformer  # noqa: E402
from lightx2v_pack.engine.logic.memory_needs import Placement, sampling_need  # noqa: E402
from lightx2v_pack.engine.logic.shapes import latent_shape, num_tokens  # noqa: E402
from lightx2v_pack.engine.settings import EngineSettings, OffloadSettings, SamplingSettings  # noqa: E402
from lightx2v_pack.tools import make_tiny_checkpoint as checkpoints  # noqa: E402
from lightx2v_pack.tools.bench import machine_limits  # noqa: E402
from lightx2v_pack.tools.bench.children import Child, wait_for_turn  # noqa: E402
from lightx2v_pack.tools.bench.full_size import (  # noqa: E402
    PRECISIONS,
    TEXT_DIM,
    Shape,
    add_model_options,
    describe_machine,
    drop_weights,
    ensure_weights,
    synchronize,
)
from lightx2v_pack.tools.bench.memory_tables import print_tables  # noqa: E402

Case = tuple[str, str, float]
"""Precision, size, cap in GiB (0: none)."""

SIZES = ("832x480", "1280x720")
FRAMES = (17, 49, 81)
CAPS = (6.0, 8.0, 10.0, 12.0, 16.0, 24.0)
# The least a card needs for the larger frames in FP8.
LARGE_CAP = 10.0
# Beyond, a second step takes long and tells little more.
LAST_TOKENS_OF_TWO_STEPS = 40_000
PROMPT = "A red fox runs through fresh snow at dawn while the camera follows from the side."


def main() -> int:
    arguments = parse_arguments()
    if arguments.part == "table":
        return print_tables([json.loads(line) for file in arguments.files for line in file.read_text().splitlines()])
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        arguments.temporary, arguments.keep = temporary, arguments.weights is not None
        arguments.weights = arguments.weights or Path(temporary)
        arguments.weights.mkdir(parents=True, exist_ok=True)
        part = measure_grid if arguments.part == "grid" else measure_caps
        rows = []
        for row in part(arguments, time.perf_counter()):
            rows.append(row)
            print(json.dumps(row), flush=True)
            if arguments.out and not arguments.row:
                with arguments.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
        return 0 if arguments.row else print_tables(rows)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    grid = parts.add_parser("grid", help="predicted against measured, every placement and size")
    grid.add_argument("--frames", type=int, nargs="+", default=FRAMES)
    grid.add_argument("--placements", nargs="+", help="of none half block phase disk (disk: longest clip only)")
    caps = parts.add_parser("caps", help="encode, 4 steps and decode in a fresh process a cap")
    caps.add_argument("--frames", type=int, nargs=1, default=FRAMES[-1:])
    caps.add_argument("--caps", type=float, nargs="+", default=CAPS, help="GiB of VRAM, context included")
    caps.add_argument("--ram-gib", type=float, help="let the process use no more RAM, and read from the drive")
    caps.add_argument("--text-encoder", type=Path, help="a real one, tokenizer beside it; default: a small stand-in")
    caps.add_argument("--limit", type=float, default=180.0, help="seconds a run may take (180)")
    caps.add_argument("--cap", type=float, help=argparse.SUPPRESS)
    caps.add_argument("--row", type=Path, help=argparse.SUPPRESS)
    for part in (grid, caps):
        part.add_argument("--precision", nargs="+", choices=PRECISIONS, default=("fp8", "bf16"))
        part.add_argument("--sizes", nargs="+", default=SIZES, help="WIDTHxHEIGHT ...")
        part.add_argument("--engine", default="auto")
        part.add_argument("--cells", default="1/1", help="i/n: every n-th case only, from the i-th on")
        part.add_argument("--time-limit", type=float, default=0.0, help="seconds after which no further case starts")
        part.add_argument("--out", type=Path, help="append the rows there as JSON lines, as they are done")
        part.add_argument("--weights", type=Path, help="keep the weights in this folder, or find them there")
        add_model_options(part)
    grid.set_defaults(row=None)
    parts.add_parser("table", help="print what was measured").add_argument("files", type=Path, nargs="+")
    return parser.parse_args()


def choose_cells(cases: Sequence[Any], cells: str) -> Sequence[Any]:
    """Return this card's share of the cases, those next to each other: they share their weights."""
    index, count = map(int, cells.split("/"))
    return cases[len(cases) * (index - 1) // count : len(cases) * index // count]


def placements(num_layers: int) -> dict[str, Placement]:
    return {
        "none": Placement(mode="none"),
        "half": Placement(mode="block", resident_blocks=num_layers // 2),
        "block": Placement(mode="block"),
        "phase": Placement(mode="phase"),
        "disk": Placement(mode="disk"),
    }


def measure_grid(arguments: argparse.Namespace, started: float) -> Iterator[dict[str, Any]]:
    """Run every placement at every size, a placement's weights loaded once; yield a row each."""
    device = compute_device()
    context = machine_limits.context_bytes(device)
    base_ram = 0
    machine = describe_machine(device)
    names = arguments.placements or list(placements(arguments.layers))
    cases = [(precision, name) for precision in arguments.precision for name in names]
    cases = choose_cells(cases, arguments.cells)
    for index, (precision, name) in enumerate(cases):
        files = resolve_transformer(ensure_weights(arguments.weights, arguments, precision, device))
        placement = placements(arguments.layers)[name]
        settings = EngineSettings(engine=arguments.engine)
        base_ram = base_ram or machine_limits.own_ram_bytes()
        engine = engines.build_transformer(files, settings, placement)
        try:
            for width, height, frames in grid_sizes(arguments, name):
                if arguments.time_limit and time.perf_counter() - started > arguments.time_limit:
                    break
                row = {"part": "grid", "machine": machine, "precision": precision, "placement": name}
                row |= {"width": width, "height": height, "frames": frames, "context_gib": context / GIB}
                try:
                    shape = latent_shape(width, height, frames)
                    need = sampling_need(
                        handles.run_sizes(files, settings, (1, *shape)), placement, on_gpu=device.type == "cuda"
                    )
                    row |= {"predicted_vram_gib": need.vram / GIB, "predicted_ram_gib": (base_ram + need.ram) / GIB}
                    row["checkpoint_gib"] = files.num_bytes / GIB
                    yield row | measure_size(engine, shape, device)
                except (LightX2VError, RuntimeError) as error:
                    yield row | {"problem": f"{type(error).__name__}: {error}"[:300]}
        finally:
            engine.unload()
            del engine
            clean_up(device)
        if not arguments.keep and precision not in (case[0] for case in cases[index + 1 :]):
            drop_weights(arguments.weights, precision)


def grid_sizes(arguments: argparse.Namespace, placement: str) -> list[tuple[int, int, int]]:
    """Return (width, height, frames), fewest tokens first; for `disk` the longest clip of the first size only."""
    sizes = [(*parse_size(size), frames) for size in arguments.sizes for frames in arguments.frames]
    if placement == "disk":
        return [(*parse_size(arguments.sizes[0]), arguments.frames[-1])]
    return sorted(sizes, key=lambda size: num_tokens(latent_shape(*size)))


def parse_size(text: str) -> tuple[int, int]:
    width, height = text.split("x")
    return int(width), int(height)


@torch.inference_mode()
def measure_size(engine: Transformer, shape: Shape, device: torch.device) -> dict[str, Any]:
    """Load for a size and take one or two steps; return peaks and seconds."""
    tokens = num_tokens(shape)
    engine.rest()  # as the pipeline does after every sampling
    clean_up(device)
    reset_peak(device)
    with machine_limits.watch_ram() as ram:
        start = time.perf_counter()
        engine.load(shape, Hooks())
        synchronize(device)
        load_seconds, load_reserved = time.perf_counter() - start, reserved_peak(device)
        reset_peak(device)
        seconds = [time_step(engine, shape, device) for _ in range(2 if tokens <= LAST_TOKENS_OF_TWO_STEPS else 1)]
    return {
        "tokens": tokens,
        "reserved_gib": reserved_peak(device) / GIB,
        "allocated_gib": torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else 0.0,
        "load_reserved_gib": load_reserved / GIB,
        "ram_gib": ram.num_bytes / GIB,
        "load_seconds": load_seconds,
        "step_seconds": seconds,
        "facts": {key: value for key, value in engine.describe().items() if isinstance(value, str | int | bool)},
    }


def time_step(engine: Transformer, shape: Shape, device: torch.device) -> float:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(shape, generator=generator).to(device)
    context = torch.zeros(TEXT_ROWS, TEXT_DIM)
    context[:40] = torch.randn(40, TEXT_DIM, generator=generator)
    synchronize(device)
    start = time.perf_counter()
    engine.predict_flow(latents, 1000.0, context, Hooks())
    synchronize(device)
    return time.perf_counter() - start


def measure_caps(arguments: argparse.Namespace, started: float) -> Iterator[dict[str, Any]]:
    """Run prompt to frames in a fresh process a cap, uncapped (0) first; yield a row each."""
    if arguments.row:
        wait_for_turn()
        yield run_clip(arguments)
        return
    cases = [
        (precision, size, cap)
        for precision in arguments.precision
        for size in arguments.sizes
        if size == arguments.sizes[0] or precision == "fp8"
        for cap in (*(() if arguments.ram_gib else (0.0,)), *sorted(arguments.caps, reverse=True))
        if size == arguments.sizes[0] or cap == 0 or cap >= LARGE_CAP
    ]
    cases = choose_cells(cases, arguments.cells)
    waiting = start_clip(cases[0], arguments) if cases else None
    for index, (precision, size, cap) in enumerate(cases):
        if waiting is None or (arguments.time_limit and time.perf_counter() - started > arguments.time_limit):
            break
        child, waiting = waiting, None
        child.run()
        if index + 1 < len(cases):
            waiting = start_clip(cases[index + 1], arguments)
        row = {"part": "caps", "precision": precision, "size": size, "frames": arguments.frames[0], "cap_gib": cap}
        row |= {"ram_limit_gib": arguments.ram_gib}
        problem = child.wait(arguments.limit)
        machine_limits.remove_limits()
        file = row_file(arguments, cases[index])
        row |= json.loads(file.read_text()) if file.exists() else {}
        if problem:
            row["problem"] = problem
            print("\n".join(child.log_lines()[-25:]), file=sys.stderr, flush=True)
        yield row
        if not arguments.keep and precision not in (case[0] for case in cases[index + 1 :]):
            drop_weights(arguments.weights, precision)
    if waiting is not None:
        waiting.stop()


def row_file(arguments: argparse.Namespace, case: Case) -> Path:
    return Path(arguments.temporary) / "{}-{}-{:g}.json".format(*case)


def start_clip(case: Case, arguments: argparse.Namespace) -> Child:
    """Start a case's process; it imports and waits."""
    precision, size, cap = case
    file = row_file(arguments, case)
    command = [str(Path(__file__).resolve()), *sys.argv[1:], "--precision", precision, "--sizes", size]
    command += ["--cap", str(cap), "--row", str(file), "--weights", str(arguments.weights), "--cells", "1/1"]
    return Child(command, file.with_suffix(".log"))


def run_clip(arguments: argparse.Namespace) -> dict[str, Any]:
    """Encode, sample and decode under the cap, through the API that the nodes call; write the row."""
    device = compute_device()
    precision, size = arguments.precision[0], parse_size(arguments.sizes[0])
    weights = ensure_weights(arguments.weights, arguments, precision, device)
    text_file, tokenizer, vae_file = make_companions(arguments.weights, arguments)
    clean_up(device)
    row: dict[str, Any] = {
        "machine": describe_machine(device),
        "context_gib": machine_limits.context_bytes(device) / GIB,
    }
    if arguments.ram_gib:
        row["cache_dropped"] = machine_limits.drop_page_cache()
        row["ram_enforced"] = machine_limits.limit_ram(arguments.ram_gib)
    if arguments.cap and device.type == "cuda":
        machine_limits.limit_vram(arguments.cap, device)
    row["free_ram_gib"] = free_ram_bytes() / GIB
    start = time.perf_counter()
    with machine_limits.watch_ram() as ram:
        if arguments.text_encoder:
            text_encoder = pipeline.load_text_encoder(arguments.text_encoder)
        else:
            text_encoder = pipeline.load_text_encoder(text_file, tokenizer=tokenizer)
        transformer = pipeline.load_transformer(
            weights, settings=EngineSettings(engine=arguments.engine), offload=OffloadSettings()
        )
        vae = pipeline.load_vae(vae_file, offload=OffloadSettings())
        rows = pipeline.encode_text(text_encoder, PROMPT, device="cpu", hooks=Hooks())
        empty = pipeline.empty_latent(*size, arguments.frames[0], 1)
        latents = pipeline.sample(transformer, rows, empty, SamplingSettings(seed=0), hooks=Hooks())
        row["latents"] = hashlib.sha256(latents.numpy().tobytes()).hexdigest()[:16]
        row["report"] = pipeline.report_of(latents)
        arguments.row.write_text(json.dumps(row))
        frames = pipeline.decode(vae, latents, hooks=Hooks())
    report = pipeline.report_of(frames)
    details = stage(report, "sample")["details"]
    steps = [step for clip in details["step_seconds"] for step in clip]
    row |= {
        "report": report,
        "seconds": time.perf_counter() - start,
        "ram_gib": ram.num_bytes / GIB,
        "reserved_gib": report["peak_vram_reserved_bytes"] / GIB,
        "step": statistics.median(steps[1:] or steps),
        "frames_shape": list(frames.shape),
        "is_finite": bool(latents.isfinite().all()) and bool(frames.isfinite().all()),
        "end_context_gib": machine_limits.context_bytes(device) / GIB,
    }
    arguments.row.write_text(json.dumps(row))
    return row


def stage(report: dict[str, Any], name: str) -> dict[str, Any]:
    record: dict[str, Any] = next(each for each in report["stages"] if each["stage"] == name)
    return record


def make_companions(folder: Path, arguments: argparse.Namespace) -> tuple[Path, Path, Path]:
    """Write a small text encoder of full width, a tokenizer and a VAE of full size; return their paths."""
    text_file, tokenizer, vae_file = folder / "text.safetensors", folder / "tokenizer", folder / "vae.safetensors"
    if not vae_file.exists():
        sizes = checkpoints.TinySizes(text_dim=TEXT_DIM, text_layers=24, vae_dim=96 if arguments.dim > 1000 else 8)
        checkpoints.write_text_encoder(text_file, checkpoints.make_text_encoder(sizes), "bf16")
        checkpoints.write_tokenizer(tokenizer, checkpoints.train_tokenizer(sizes.vocab_size))
        checkpoints.write_vae(vae_file, checkpoints.make_vae(sizes), torch.bfloat16)
    return text_file, tokenizer, vae_file


def reserved_peak(device: torch.device) -> int:
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else 0


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def clean_up(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main())
