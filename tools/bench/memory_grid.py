"""Predicted against measured memory: every placement at every size, in one process.

Imported as `lightx2v_pack.tools.bench.memory_grid`, after memory.py has registered the pack.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ...engine import engines, handles
from ...engine.checkpoints.files import resolve_transformer
from ...engine.constants import GIB, TEXT_ROWS
from ...engine.errors import LightX2VError
from ...engine.interfaces import Hooks, Transformer
from ...engine.memory.needs import Placement, loading_need, sampling_need
from ...engine.settings import EngineSettings
from ...engine.shapes import latent_shape, num_tokens
from ...engine.system import compute_device, release_memory
from . import machine_limits
from .full_size import TEXT_DIM, Shape, describe_machine, drop_weights, ensure_weights, synchronize

# The resident weights take a second step up to here: the first one compiles kernels. Memory peaks in it.
LAST_TOKENS_OF_TWO_STEPS = 40_000


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
    context = machine_limits.check_alone(device)
    base_ram = 0
    machine = describe_machine(device)
    names = arguments.placements or list(placements(arguments.layers))
    cases = [(precision, name) for precision in arguments.precision for name in names]
    cases = choose_cells(cases, arguments.cells)
    for index, (precision, name) in enumerate(cases):
        files = resolve_transformer(shared_weights(arguments, precision, device))
        placement = placements(arguments.layers)[name]
        settings = EngineSettings(engine=arguments.engine)
        if not base_ram:
            clean_up(device)  # after the weights were written
            base_ram = machine_limits.own_ram_bytes()
        engine = engines.build_transformer(files, settings, placement)
        try:
            for number, (width, height, frames) in enumerate(grid_sizes(arguments, name)):
                if arguments.time_limit and time.perf_counter() - started > arguments.time_limit:
                    break
                row = {"part": "grid", "machine": machine, "precision": precision, "placement": name}
                row |= {"width": width, "height": height, "frames": frames, "context_gib": context / GIB}
                try:
                    shape = latent_shape(width, height, frames)
                    sizes = handles.run_sizes(files, settings, (1, *shape))
                    for stage_name, need_of in (("load_", loading_need), ("", sampling_need)):
                        need = need_of(sizes, placement, on_gpu=device.type == "cuda")
                        row[f"predicted_{stage_name}vram_gib"] = need.vram / GIB
                        row[f"predicted_{stage_name}ram_gib"] = (base_ram + need.ram) / GIB
                    row["checkpoint_gib"] = files.num_bytes / GIB
                    num_steps = 2 if name == "none" and num_tokens(shape) <= LAST_TOKENS_OF_TWO_STEPS else 1
                    yield row | {"loads": number == 0} | measure_size(engine, shape, device, num_steps)
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


def shared_weights(arguments: argparse.Namespace, precision: str, device: torch.device) -> Path:
    """Return the folder of the weights of a precision; the first process that wants them writes them."""
    with machine_limits.one_at_a_time(arguments.weights / "writing"):
        return ensure_weights(arguments.weights, arguments, precision, device)


@torch.inference_mode()
def measure_size(engine: Transformer, shape: Shape, device: torch.device, num_steps: int) -> dict[str, Any]:
    """Load for a size, if nothing is loaded, and take steps; return the peaks of both, and seconds."""
    engine.rest()  # as the pipeline does after every sampling
    clean_up(device)
    reset_peak(device)
    with machine_limits.watch_ram() as load_ram:
        start = time.perf_counter()
        engine.load(shape, Hooks())
        synchronize(device)
        load_seconds, load_reserved = time.perf_counter() - start, reserved_peak(device)
    clean_up(device)
    reset_peak(device)
    with machine_limits.watch_ram() as ram:
        seconds = [time_step(engine, shape, device) for _ in range(num_steps)]
    return {
        "tokens": num_tokens(shape),
        "reserved_gib": reserved_peak(device) / GIB,
        "allocated_gib": torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else 0.0,
        "load_reserved_gib": load_reserved / GIB,
        "ram_gib": ram.num_bytes / GIB,
        "load_ram_gib": load_ram.num_bytes / GIB,
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


def reserved_peak(device: torch.device) -> int:
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else 0


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def clean_up(device: torch.device) -> None:
    gc.collect()
    release_memory(device)
