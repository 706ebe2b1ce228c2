"""Check the memory plan on a card: predicted against measured, and that `auto` fits whatever the card.

Random weights of the full 14B size, made here; what they hold does not change what they take. Three parts, whose rows
go to --out as JSON lines as they are done; `table` prints them, and its exit status is 1 where a target was missed:

    python tools/bench/memory.py grid --out memory.jsonl       # every placement and size: plan's bytes, torch's bytes
    python tools/bench/memory.py caps --out memory.jsonl       # encode, 4 steps, decode on 6, 8, 10, 12, 16 and 24 GiB
    python tools/bench/memory.py caps --caps 8 --ram-gib 16 --modes disk block --precision fp8 --out memory.jsonl
    python tools/bench/memory.py table memory.jsonl

Every cap is a process of its own, alone on its card. Beside the capped runs `caps` runs uncapped, for the latents to
compare with, and two steps of each of --alternatives, for the seconds. `--cells 1/2` and `--cells 2/2` split a part
between two cards; --weights is a folder that they share. On any CPU: --dim 256 --ffn-dim 512 --layers 2 --sizes 64x64
--frames 5. The text encoder of `caps` is a small one of full width, unless --text-encoder names one (text_encoder.py
--folder makes one of full size).
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import signal
import statistics
import sys
import tempfile
import time
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
pack = types.ModuleType("lightx2v_pack")
pack.__path__ = [str(ROOT)]
sys.modules["lightx2v_pack"] = pack
# This file's folder comes first on the path and would make lightx2v.py there the package `lightx2v`.
sys.path[:] = [entry for entry in sys.path if entry != str(Path(__file__).resolve().parent)]

from lightx2v_pack.engine import engines, pipeline  # noqa: E402
from lightx2v_pack.engine.constants import GIB  # noqa: E402
from lightx2v_pack.engine.interfaces import Hooks  # noqa: E402
from lightx2v_pack.engine.settings import EngineSettings, OffloadSettings, SamplingSettings  # noqa: E402
from lightx2v_pack.engine.stages.encode import encode_prompt  # noqa: E402
from lightx2v_pack.engine.system import compute_device, free_ram_bytes  # noqa: E402
from lightx2v_pack.tools import make_tiny_checkpoint as checkpoints  # noqa: E402
from lightx2v_pack.tools.bench import machine_limits  # noqa: E402
from lightx2v_pack.tools.bench.children import Child, wait_for_turn  # noqa: E402
from lightx2v_pack.tools.bench.full_size import (  # noqa: E402
    PRECISIONS,
    TEXT_DIM,
    add_model_options,
    describe_machine,
    drop_weights,
)
from lightx2v_pack.tools.bench.memory_grid import (  # noqa: E402
    choose_cells,
    clean_up,
    measure_grid,
    parse_size,
    shared_weights,
)
from lightx2v_pack.tools.bench.memory_tables import print_tables  # noqa: E402

SIZES = ("832x480", "1280x720")
FRAMES = (17, 49, 81)
CAPS = (6.0, 8.0, 10.0, 12.0, 16.0, 24.0)
# The least a card needs for the larger frames in FP8.
LARGE_CAP = 10.0
STEPS, SHORT_STEPS = 4, 2
# Kernels that load take 0.15 GiB; another program's CUDA context half a GiB at least.
MOST_CONTEXT_GROWTH_GIB = 0.45
PROMPT = "A red fox runs through fresh snow at dawn while the camera follows from the side."


@dataclass(frozen=True, kw_only=True)
class Case:
    """One process of `caps`."""

    precision: str
    size: str
    cap: float
    """GiB; 0 is the whole card."""
    mode: str = "auto"
    is_short: bool = False
    """Two steps and no decode: only the seconds of the mode."""

    @property
    def name(self) -> str:
        return f"{self.precision}-{self.size}-{self.cap:g}-{self.mode}{'-short' * self.is_short}"


def main() -> int:
    arguments = parse_arguments()
    if arguments.part == "table":
        return print_tables([json.loads(line) for file in arguments.files for line in file.read_text().splitlines()])
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # A time limit ends this with the table of what there is, without children or weights left behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    rows: list[dict[str, Any]] = []
    try:
        for row in measure(arguments):
            rows.append(row)
            print(json.dumps(row), flush=True)
            if arguments.out and not arguments.row:
                with arguments.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    finally:
        code = 0 if arguments.row else print_tables(rows)
    return code


def measure(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the rows of a part; give back what it needed."""
    if arguments.row:
        yield run_clip(arguments)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        arguments.temporary, arguments.keep = temporary, arguments.weights is not None
        arguments.weights = arguments.weights or Path(temporary)
        arguments.weights.mkdir(parents=True, exist_ok=True)
        part = measure_grid if arguments.part == "grid" else measure_caps
        yield from part(arguments, time.perf_counter())


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    grid = parts.add_parser("grid", help="predicted against measured, every placement and size")
    grid.add_argument("--frames", type=int, nargs="+", default=FRAMES)
    grid.add_argument("--placements", nargs="+", help="of none half block phase disk (disk: longest clip only)")
    caps = parts.add_parser("caps", help="encode, 4 steps and decode in a fresh process a cap")
    caps.add_argument("--frames", type=int, nargs=1, default=FRAMES[-1:])
    caps.add_argument("--caps", type=float, nargs="*", default=CAPS, help="GiB of VRAM, context included")
    caps.add_argument("--modes", nargs="+", default=("auto",), help="of the capped runs: auto none block phase disk")
    caps.add_argument("--no-reference", action="store_true", help="leave the uncapped run out")
    caps.add_argument(
        "--alternatives", nargs="*", default=("block", "phase"), help="further modes, uncapped, two steps (block phase)"
    )
    caps.add_argument("--ram-gib", type=float, help="let the process use no more RAM, and read from the drive")
    caps.add_argument("--text-encoder", type=Path, help="a real one, tokenizer beside it; default: a small stand-in")
    caps.add_argument("--limit", type=float, default=180.0, help="seconds a run may take (180)")
    caps.add_argument("--cap", type=float, help=argparse.SUPPRESS)
    caps.add_argument("--mode", help=argparse.SUPPRESS)
    caps.add_argument("--short", action="store_true", help=argparse.SUPPRESS)
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


def measure_caps(arguments: argparse.Namespace, started: float) -> Iterator[dict[str, Any]]:
    """Run prompt to frames in a fresh process a case; yield a row each."""
    make_companions(arguments.weights, arguments)
    cases = choose_cells(list(capped_cases(arguments)), arguments.cells)
    with contextlib.ExitStack() as children:
        waiting = start_clip(cases[0], arguments, children) if cases else None
        for index, case in enumerate(cases):
            if waiting is None or (arguments.time_limit and time.perf_counter() - started > arguments.time_limit):
                break
            child, waiting = waiting, None
            child.run()
            if index + 1 < len(cases):
                waiting = start_clip(cases[index + 1], arguments, children)
            row = {"part": "caps", "precision": case.precision, "size": case.size, "frames": arguments.frames[0]}
            row |= {"cap_gib": case.cap, "mode": case.mode, "is_short": case.is_short}
            row |= {"ram_limit_gib": arguments.ram_gib}
            problem = child.wait(arguments.limit)
            machine_limits.remove_limits()
            file = row_file(arguments, case)
            row |= json.loads(file.read_text()) if file.exists() else {}
            if problem:
                row["problem"] = problem
                print("\n".join(child.log_lines()[-25:]), file=sys.stderr, flush=True)
            yield row
            if machine_limits.SharedCardError.__name__ in problem:
                break
            if not arguments.keep and case.precision not in (each.precision for each in cases[index + 1 :]):
                drop_weights(arguments.weights, case.precision)


def capped_cases(arguments: argparse.Namespace) -> Iterator[Case]:
    """Yield for every precision and size the uncapped run, the alternatives, and the caps, largest first.

    The larger frames run in FP8 only, from the least cap that they need.
    """
    for precision in arguments.precision:
        for size in arguments.sizes:
            is_large = size != arguments.sizes[0]
            if is_large and precision != "fp8":
                continue
            of_size = {"precision": precision, "size": size}
            if not arguments.no_reference and not arguments.ram_gib:
                yield Case(**of_size, cap=0.0)
            if not arguments.ram_gib:
                for mode in arguments.alternatives:
                    yield Case(**of_size, cap=0.0, mode=mode, is_short=True)
            for cap in sorted(arguments.caps, reverse=True):
                if cap >= LARGE_CAP or not is_large:
                    for mode in arguments.modes:
                        yield Case(**of_size, cap=cap, mode=mode)


def row_file(arguments: argparse.Namespace, case: Case) -> Path:
    return Path(arguments.temporary) / f"{case.name}.json"


def start_clip(case: Case, arguments: argparse.Namespace, children: contextlib.ExitStack) -> Child:
    """Start a case's process, which `children` end; it makes ready what needs no GPU and waits."""
    file = row_file(arguments, case)
    command = [str(Path(__file__).resolve()), *sys.argv[1:], "--precision", case.precision, "--sizes", case.size]
    command += ["--cap", str(case.cap), "--mode", case.mode, *(["--short"] if case.is_short else [])]
    command += ["--row", str(file), "--weights", str(arguments.weights), "--cells", "1/1"]
    child = Child(command, file.with_suffix(".log"))
    children.callback(child.stop)
    return child


def run_clip(arguments: argparse.Namespace) -> dict[str, Any]:
    """Encode, sample and decode under the cap, through the API that the nodes call; write the row."""
    # The small text encoder's sums on the CPU depend on the number of threads, and latents on them; and the next child
    # gets ready beside this one.
    torch.set_num_threads(2)
    small_text_file, small_tokenizer, vae_file = make_companions(arguments.weights, arguments)
    import_text_encoder(small_text_file, small_tokenizer)
    wait_for_turn()
    device = compute_device()
    row: dict[str, Any] = {"machine": describe_machine(device), "context_gib": machine_limits.check_alone(device) / GIB}
    weights = shared_weights(arguments, arguments.precision[0], device)
    clean_up(device)
    limit_machine(arguments, device, row)
    start = time.perf_counter()
    with machine_limits.watch_ram() as ram:
        transformer = pipeline.load_transformer(
            weights, settings=EngineSettings(engine=arguments.engine), offload=OffloadSettings(mode=arguments.mode)
        )
        if arguments.text_encoder:
            text_encoder = pipeline.load_text_encoder(arguments.text_encoder)
        else:
            text_encoder = pipeline.load_text_encoder(small_text_file, tokenizer=small_tokenizer)
        rows = pipeline.encode_text(text_encoder, PROMPT, device="cpu", hooks=Hooks())
        empty = pipeline.empty_latent(*parse_size(arguments.sizes[0]), arguments.frames[0], 1)
        sampling = SamplingSettings(seed=0, steps=SHORT_STEPS if arguments.short else STEPS)
        latents = pipeline.sample(transformer, rows, empty, sampling, hooks=Hooks())
        row["latents"] = hashlib.sha256(latents.numpy().tobytes()).hexdigest()[:16]
        row |= {"report": pipeline.report_of(latents), "is_finite": bool(latents.isfinite().all())}
        arguments.row.write_text(json.dumps(row))
        if not arguments.short:
            vae = pipeline.load_vae(vae_file, offload=OffloadSettings())
            frames = pipeline.decode(vae, latents, hooks=Hooks())
            row |= {"report": pipeline.report_of(frames), "frames_shape": list(frames.shape)}
            row["is_finite"] &= bool(frames.isfinite().all())
    row |= {"seconds": time.perf_counter() - start, "ram_gib": ram.num_bytes / GIB}
    steps = [step for clip in stage(row["report"], "sample")["details"]["step_seconds"] for step in clip]
    row |= {"reserved_gib": row["report"]["peak_vram_reserved_bytes"] / GIB, "step": statistics.median(steps[1:])}
    row["end_context_gib"] = machine_limits.context_bytes(device) / GIB
    if row["end_context_gib"] - row["context_gib"] > MOST_CONTEXT_GROWTH_GIB:
        row["problem"] = f"another program came to the card: {row['end_context_gib']:.1f} GiB are not of torch"
    arguments.row.write_text(json.dumps(row))
    return row


def import_text_encoder(file: Path, tokenizer: Path) -> None:
    """Encode once on the CPU: its libraries take long to import, which no row is about."""
    encoder = engines.build_text_encoder(file, tokenizer)
    encoder.load("cpu", Hooks())
    encode_prompt(encoder, PROMPT, Hooks())
    encoder.unload()


def limit_machine(arguments: argparse.Namespace, device: torch.device, row: dict[str, Any]) -> None:
    """Make the machine as small as the case says; note in the row what was done."""
    if arguments.ram_gib:
        row["cache_dropped"] = machine_limits.drop_page_cache()
        row["ram_enforced"] = machine_limits.limit_ram(arguments.ram_gib)
    if arguments.cap and device.type == "cuda":
        machine_limits.limit_vram(arguments.cap, device)
    row["free_ram_gib"] = free_ram_bytes() / GIB


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


if __name__ == "__main__":
    sys.exit(main())
