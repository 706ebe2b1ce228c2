"""How fast weights load and travel: into page-locked RAM, to the GPU, and beside compute in every offload mode.

Loads are from the page cache, but for the last row, which empties it first (as root). "pace" is the time of a block
while a stand-in computes for --compute-ms: what is above that is what streaming costs. RAM is what the process took for
the weights over their bytes.

    python tools bench loading --out loading.jsonl
    python tools bench loading --dim 256 --ffn-dim 512 --layers 2   # any CPU: loads only
"""

from __future__ import annotations

import argparse
import functools
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import torch

from ..arguments import number, whole
from . import pack
from .harness import Bench, Row, clean_up, event_seconds, timed
from .memory import limits
from .weights import PRECISIONS


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--precision", choices=PRECISIONS, default="fp8")
    parser.add_argument("--threads", type=whole(), nargs="+", default=(8, 1, 4, 16, 8), help="that read, a load each")
    parser.add_argument("--compute-ms", type=number(), default=42.7, help="of a block, for the pace (42.7)")


def measure(bench: Bench) -> Iterator[Row]:
    """Yield a row for every load, then for the pace of every mode."""
    device = bench.device
    files = pack.resolve_transformer(bench.weights(bench.options.precision))
    source = pack.TransformerCheckpoint(files)
    units = pack.make_units(source.specs, files.format.architecture.num_layers, pack.PHASES, by_phase=False)
    num_bytes = sum(unit.num_bytes for unit in units)
    base = limits.own_ram_bytes()
    common = {"precision": bench.options.precision, "gb": num_bytes / 1e9}
    for count in bench.options.threads:
        seconds, buffers = timed(functools.partial(load_to_ram, units, source, device, count), device)
        row = {"what": f"to RAM, {count} threads", "seconds": seconds, "gb_per_s": num_bytes / seconds / 1e9}
        row |= {"ram_over_weights": (limits.own_ram_bytes() - base) / num_bytes}
        row |= {"locked": pack.locked_bytes() / num_bytes}
        del buffers
        clean_up(device)
        yield common | row
    if device.type == "cuda":
        for row in measure_gpu(bench, units, source, num_bytes):
            yield common | row
            clean_up(device)
    row = {"what": "afterwards", "locked_bytes": pack.locked_bytes(), "threads": threading.active_count()}
    yield common | row | {"ram_gib_above_start": (limits.own_ram_bytes() - base) / pack.GIB}


def load_to_ram(units: Sequence[Any], source: Any, device: torch.device, num_threads: int) -> list[Any]:
    """Load as mode `block` does, with so many threads."""
    reading = pack.reader
    reader = reading.Reader
    reading.Reader = functools.partial(reader, num_threads=num_threads)
    try:
        progress = reading.Progress(pack.Hooks(), len(units))
        return reading.load_to_ram(units, source, device, pack.page_lock_limit(), progress)
    finally:
        reading.Reader = reader


def measure_gpu(bench: Bench, units: Sequence[Any], source: Any, num_bytes: int) -> Iterator[Row]:
    """Yield the load to the GPU, and the pace of every mode."""
    device, compute_ms = bench.device, bench.options.compute_ms
    placement = pack.Placement(mode="none")
    seconds, conveyor = timed(lambda: pack.place_weights(units, source, placement, device, pack.Hooks()), device)
    conveyor.close()
    del conveyor
    yield {"what": "to the GPU", "seconds": seconds, "gb_per_s": num_bytes / seconds / 1e9}
    cycles = int(compute_ms * 1e5 / event_seconds(lambda: torch.cuda._sleep(10**8)))
    for title, placement, is_cold in (
        ("block", pack.Placement(mode="block"), False),
        ("block, not page-locked", pack.Placement(mode="block", pinned_limit_bytes=1), False),
        ("disk, from the page cache", pack.Placement(mode="disk"), False),
        ("disk, cold", pack.Placement(mode="disk"), True),
    ):
        if bench.seconds_left <= 0:
            return
        if is_cold and not limits.drop_page_cache():
            yield {"what": f"pace of {title}", "problem": "the page cache cannot be emptied here"}
            continue
        with closing(pack.place_weights(units, source, placement, device, pack.Hooks())) as conveyor:
            passes = [run_pass(conveyor, len(units), cycles, device) for _ in range(1 if is_cold else 2)]
        del conveyor
        yield {"what": f"pace of {title}", "compute_ms": compute_ms, "first_ms": passes[0], "ms": passes[-1]}


def run_pass(conveyor: Any, num_units: int, cycles: int, device: torch.device) -> float:
    """Return the milliseconds of a unit in one pass, each of which computes for so many cycles."""

    def run() -> None:
        for index in range(num_units):
            with conveyor.unit(index):
                torch.cuda._sleep(cycles)

    return 1000 * timed(run, device)[0] / num_units
