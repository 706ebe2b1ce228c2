"""Measure the portable transformer: seconds a step and peak memory by precision, offload mode and attention.

Makes random weights at the full 14B size itself (speed and memory do not depend on their values), in the
per-block layout of the real checkpoint, one precision at a time. Every offload mode is compared with the
resident run of the same precision and attention: "equal" means bit for bit. One command, on one card:

    python tools/bench/portable.py
    python tools/bench/portable.py --precision fp8 --offload none block --attention sdpa sage_attn2 --json out.json
    python tools/bench/portable.py --dim 256 --ffn-dim 512 --layers 2 --width 64 --height 64 --frames 5   # any CPU

Needs disk for one precision in --folder (FP8 and INT8 15 GB, BF16 29 GB) and, for block and phase, as much RAM.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
import tempfile
import time
import types
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
pack = types.ModuleType("lightx2v_pack")
pack.__path__ = [str(ROOT)]
sys.modules["lightx2v_pack"] = pack

from lightx2v_pack.engine.backends.table import ATTENTION_CHOICES  # noqa: E402
from lightx2v_pack.engine.checkpoints.files import resolve_transformer  # noqa: E402
from lightx2v_pack.engine.constants import (  # noqa: E402
    DISTILL_SHIFT,
    GIB,
    TEXT_ROWS,
)
from lightx2v_pack.engine.errors import LightX2VError  # noqa: E402
from lightx2v_pack.engine.interfaces import Hooks  # noqa: E402
from lightx2v_pack.engine.memory.needs import Placement  # noqa: E402
from lightx2v_pack.engine.settings import EngineSettings  # noqa: E402
from lightx2v_pack.engine.shapes import latent_shape  # noqa: E402
from lightx2v_pack.engine.stages.schedule import build_schedule  # noqa: E402
from lightx2v_pack.engine.system import compute_device  # noqa: E402
from lightx2v_pack.engine.wan.transformer import PortableTransformer  # noqa: E402
from lightx2v_pack.tools.bench.full_size import (  # noqa: E402
    MODES,
    PRECISIONS,
    TEXT_DIM,
    add_size_options,
    cap_vram,
    describe_run,
    make_template,
    synchronize,
    write_weights,
)


@dataclass(kw_only=True)
class Row:
    """One line of the table."""

    precision: str
    offload: str
    attention: str
    matmul: str = ""
    compile: bool = False
    load_seconds: float = 0.0
    first_step_seconds: float = 0.0
    step_seconds: float = 0.0
    """Median of the steps after the first."""
    peak_allocated_gib: float = 0.0
    peak_reserved_gib: float = 0.0
    finite: bool = False
    equal: bool | None = None
    """To the resident run; None where there is none."""
    problem: str = ""


def main() -> int:
    arguments = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    device = compute_device()
    cap_vram(arguments, device)
    shape = latent_shape(arguments.width, arguments.height, arguments.frames)
    title = describe_run(arguments, shape, device)
    print(title, flush=True)
    rows: list[Row] = []
    template = make_template(arguments)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        for precision in arguments.precision:
            folder = Path(temporary) / precision
            write_weights(folder, template, precision, arguments.layers, device)
            for attention in arguments.attention:
                rows += measure_modes(folder, precision, attention, arguments, shape, device)
            shutil.rmtree(folder)
    print(table(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps({"title": title, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    return 0 if all(row.finite and row.equal is not False for row in rows if not row.problem) else 1


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--offload", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--attention", nargs="+", choices=ATTENTION_CHOICES, default=("auto", "sdpa"))
    parser.add_argument("--compile", choices=("auto", "on", "off"), default="auto")
    add_size_options(parser)
    parser.add_argument("--json", type=Path, help="write the rows there too")
    return parser.parse_args()


def measure_modes(
    folder: Path,
    precision: str,
    attention: str,
    arguments: argparse.Namespace,
    shape: tuple[int, int, int, int],
    device: torch.device,
) -> list[Row]:
    rows: list[Row] = []
    resident: torch.Tensor | None = None
    for mode in arguments.offload:
        settings = EngineSettings(engine="portable", attention=attention, compile=arguments.compile)
        row = Row(precision=precision, offload=mode, attention=attention)
        transformer = PortableTransformer(resolve_transformer(folder), settings, Placement(mode=mode), device=device)
        try:
            flow = measure_run(transformer, row, shape, arguments.steps, device)
        except (LightX2VError, torch.cuda.OutOfMemoryError) as error:
            row.problem = str(error).splitlines()[0]
        else:
            if mode == "none":
                resident = flow
            elif resident is not None:
                row.equal = torch.equal(flow, resident)
        transformer.unload()
        print(json.dumps(asdict(row)), flush=True)
        rows.append(row)
    return rows


def measure_run(
    transformer: PortableTransformer, row: Row, shape: tuple[int, int, int, int], steps: int, device: torch.device
) -> torch.Tensor:
    """Load and run; fills `row` and returns the last step's flow on the CPU."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(shape, generator=generator).to(device)
    context = torch.randn(TEXT_ROWS, TEXT_DIM, generator=generator)
    context[40:] = 0
    timesteps = build_schedule(steps, DISTILL_SHIFT).timesteps
    if device.type == "cuda":
        torch.cuda.empty_cache()
    start = time.perf_counter()
    transformer.load(shape, Hooks())
    synchronize(device)
    row.load_seconds = time.perf_counter() - start
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = []
    for timestep in timesteps:
        start = time.perf_counter()
        flow = transformer.predict_flow(latents, timestep, context, Hooks())
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    row.first_step_seconds = seconds[0]
    row.step_seconds = sorted(seconds[1:] or seconds)[len(seconds[1:]) // 2]
    if device.type == "cuda":
        row.peak_allocated_gib = torch.cuda.max_memory_allocated(device) / GIB
        row.peak_reserved_gib = torch.cuda.max_memory_reserved(device) / GIB
    row.finite = bool(flow.isfinite().all())
    facts = transformer.describe()
    row.attention, row.matmul, row.compile = facts["attention"], facts["matmul"], facts["compile"]
    return flow.cpu()


def table(rows: list[Row]) -> str:
    columns = ("precision", "offload", "attention", "matmul", "compile", "load s", "first step s", "s/step")
    columns += ("allocated / reserved GiB", "finite", "equal to resident")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in rows:
        start = f"| {row.precision} | {row.offload} | {row.attention} | {row.matmul} "
        if row.problem:
            lines.append(f"{start}| {row.problem} |")
            continue
        equal = {None: "", True: "yes", False: "NO"}[row.equal]
        lines.append(
            f"{start}| {'on' if row.compile else 'off'} | {row.load_seconds:.1f} | {row.first_step_seconds:.2f} "
            f"| {row.step_seconds:.3f} | {row.peak_allocated_gib:.1f} / {row.peak_reserved_gib:.1f} "
            f"| {'yes' if row.finite else 'NO'} | {equal} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
