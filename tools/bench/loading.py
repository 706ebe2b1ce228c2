"""Measure how fast weights load and travel: into page-locked RAM, to the GPU, and beside compute in every offload mode.

Random weights of the full 14B size, made here. Loads are from the page cache, but for the last row, which empties it
first (as root). "pace" is the time of a block while a stand-in computes for --compute-ms: what is above that is what
streaming costs. RAM is what the process took for the weights over their bytes.

    python tools/bench/loading.py --touch-ram-gib 40 --out loading.jsonl
    python tools/bench/loading.py --dim 256 --ffn-dim 512 --layers 2   # any CPU: loads only
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
pack = types.ModuleType("lightx2v_pack")
pack.__path__ = [str(ROOT)]
sys.modules["lightx2v_pack"] = pack
# This file's folder comes first on the path and would make lightx2v.py there the package `lightx2v`.
sys.path[:] = [entry for entry in sys.path if entry != str(Path(__file__).resolve().parent)]

from lightx2v_pack.engine.checkpoints.files import resolve_transformer  # noqa: E402
from lightx2v_pack.engine.checkpoints.source import TransformerCheckpoint  # noqa: E402
from lightx2v_pack.engine.constants import GIB  # noqa: E402
from lightx2v_pack.engine.interfaces import Hooks  # noqa: E402
from lightx2v_pack.engine.memory.needs import Placement  # noqa: E402
from lightx2v_pack.engine.offload import Unit, make_units, settle  # noqa: E402
from lightx2v_pack.engine.offload import reader as reading  # noqa: E402
from lightx2v_pack.engine.offload.pinned import locked_bytes  # noqa: E402
from lightx2v_pack.engine.system import compute_device, page_lock_limit  # noqa: E402
from lightx2v_pack.tools.bench import machine_limits  # noqa: E402
from lightx2v_pack.tools.bench.full_size import (  # noqa: E402
    PRECISIONS,
    add_model_options,
    describe_machine,
    ensure_weights,
    synchronize,
)

THREADS = (8, 1, 4, 16, 8)
Row = dict[str, Any]


def main() -> int:
    arguments = parse_arguments()
    device = compute_device()
    machine = f"{describe_machine(device)}, {torch.get_num_threads()} CPU threads"
    print(machine, flush=True)
    touch_ram(arguments.touch_ram_gib)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = arguments.weights or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        weights = ensure_weights(folder, arguments, arguments.precision, device)
        for row in measure(weights, arguments, device):
            print("  " + ", ".join(f"{key} {shown(value)}" for key, value in row.items()), flush=True)
            if arguments.out:
                with arguments.out.open("a") as file:
                    row = {"part": "loading", "machine": machine, "precision": arguments.precision, **row}
                    file.write(json.dumps(row) + "\n")
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=PRECISIONS, default="fp8")
    parser.add_argument("--threads", type=int, nargs="+", default=THREADS, help="that read, a load each")
    parser.add_argument("--compute-ms", type=float, default=42.7, help="of a block, for the pace (42.7)")
    parser.add_argument(
        "--touch-ram-gib", type=float, default=0.0, help="use so much RAM once before: some machines get theirs by use"
    )
    parser.add_argument("--weights", type=Path, help="keep the weights in this folder, or find them there")
    parser.add_argument("--out", type=Path, help="append the rows there as JSON lines, as they are done")
    add_model_options(parser)
    return parser.parse_args()


def shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def touch_ram(gib: float) -> None:
    """Write so much RAM once, and give it back."""
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: np.ones(int(gib * GIB / 8 / 8)).sum(), range(8)))


def measure(folder: Path, arguments: argparse.Namespace, device: torch.device) -> Iterator[Row]:
    """Yield a row for every load, then for the pace of every mode."""
    files = resolve_transformer(folder)
    source = TransformerCheckpoint(files)
    units = make_units(source.specs, files.format.architecture.num_layers, by_phase=False)
    num_bytes = sum(unit.num_bytes for unit in units)
    base = machine_limits.own_ram_bytes()
    limit = page_lock_limit()
    for count in arguments.threads:
        seconds, buffers = timed(lambda: load_to_ram(units, source, device, limit, count), device)  # noqa: B023
        ratio = (machine_limits.own_ram_bytes() - base) / num_bytes
        locked = locked_bytes() / num_bytes
        del buffers
        rest(device)
        row = {"what": "to RAM", "threads": count, "gb": num_bytes / 1e9, "s": seconds}
        yield row | {"gb_per_s": num_bytes / seconds / 1e9, "ram_over_weights": ratio, "locked": locked}
    if device.type == "cuda":
        yield from measure_gpu(units, source, num_bytes, arguments.compute_ms, device)
    row = {"what": "afterwards", "locked_bytes": locked_bytes(), "threads": threading.active_count()}
    yield row | {"ram_gib_above_start": (machine_limits.own_ram_bytes() - base) / GIB}


def measure_gpu(
    units: Sequence[Unit], source: TransformerCheckpoint, num_bytes: int, compute_ms: float, device: torch.device
) -> Iterator[Row]:
    """Yield the load to the GPU, and the pace of every mode."""
    seconds, conveyor = timed(lambda: settle(units, source, Placement(mode="none"), device, Hooks()), device)
    conveyor.close()
    del conveyor
    rest(device)
    yield {"what": "to the GPU", "s": seconds, "gb_per_s": num_bytes / seconds / 1e9}
    cycles = int(compute_ms * cycles_per_ms())
    for title, placement, is_cold in (
        ("block", Placement(mode="block"), False),
        ("block, not page-locked", Placement(mode="block", pinned_limit_bytes=1), False),
        ("disk, from the page cache", Placement(mode="disk"), False),
        ("disk, cold", Placement(mode="disk"), True),
    ):
        if is_cold and not machine_limits.drop_page_cache():
            yield {"what": f"pace of {title}", "problem": "the page cache cannot be emptied here"}
            continue
        with closing(settle(units, source, placement, device, Hooks())) as conveyor:
            passes = [run_pass(conveyor, len(units), cycles, device) for _ in range(1 if is_cold else 2)]
        row = {"what": f"pace of {title}", "compute_ms": compute_ms, "first_ms": passes[0], "ms": passes[-1]}
        del conveyor
        rest(device)
        yield row


def load_to_ram(
    units: Sequence[Unit], source: TransformerCheckpoint, device: torch.device, limit: int, num_threads: int
) -> list[Any]:
    """Load as mode `block` does, with so many threads."""
    reader = reading.Reader
    reading.Reader = functools.partial(reader, num_threads=num_threads)
    try:
        return reading.load_to_ram(units, source, device, limit, reading.Progress(Hooks(), len(units)))
    finally:
        reading.Reader = reader


def timed(run: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    synchronize(device)
    start = time.perf_counter()
    result = run()
    synchronize(device)
    return time.perf_counter() - start, result


def run_pass(conveyor: Any, num_units: int, cycles: int, device: torch.device) -> float:
    """Return the milliseconds of a unit in one pass, each of which computes for so many cycles."""

    def run() -> None:
        for index in range(num_units):
            with conveyor.unit(index):
                torch.cuda._sleep(cycles)

    return 1000 * timed(run, device)[0] / num_units


def cycles_per_ms() -> float:
    """Return how many cycles of torch.cuda._sleep are a millisecond."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(10**8)
    start.record()
    torch.cuda._sleep(10**8)
    end.record()
    end.synchronize()
    return 1e8 / start.elapsed_time(end)


def rest(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main())
