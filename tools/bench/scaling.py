"""How time and memory grow with the clip and with the batch: measured on a few sizes, fitted, and drawn.

A step takes `a * tokens + b * tokens^2` seconds (linears and everything by rows; self-attention), and the memory that
torch reserves is `weights + c * tokens`. Clips of a batch are sampled one after the other: both are fitted by a line.
Beside every measurement stands what engine/panel/speed.py tells users before a run; exit status 1 where the two are
further apart than a tenth. Random weights of the full 14B size, made here. Rows of memory.py's grid can be fitted
instead of measuring:

    python tools/bench/scaling.py --out scaling.jsonl --plot docs
    python tools/bench/scaling.py --from memory.jsonl --plot docs
    python tools/bench/scaling.py --dim 256 --ffn-dim 512 --layers 2 --sizes 64x64x5 64x64x9 128x64x9   # any CPU
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
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

from lightx2v_pack.engine import pipeline  # noqa: E402
from lightx2v_pack.engine.checkpoints.formats import WanArchitecture  # noqa: E402
from lightx2v_pack.engine.constants import GIB, TEXT_ROWS  # noqa: E402
from lightx2v_pack.engine.interfaces import Hooks  # noqa: E402
from lightx2v_pack.engine.panel.speed import Setup, step_seconds  # noqa: E402
from lightx2v_pack.engine.settings import EngineSettings, OffloadSettings, SamplingSettings  # noqa: E402
from lightx2v_pack.engine.shapes import latent_shape, num_tokens  # noqa: E402
from lightx2v_pack.engine.system import compute_device  # noqa: E402
from lightx2v_pack.tools.bench import plots  # noqa: E402
from lightx2v_pack.tools.bench.full_size import (  # noqa: E402
    PRECISIONS,
    TEXT_DIM,
    add_model_options,
    describe_machine,
    ensure_weights,
)
from lightx2v_pack.tools.bench.growth import fit  # noqa: E402

SIZES = ("832x480x17", "832x480x33", "832x480x49", "832x480x81", "1280x720x33", "1280x720x81")
BATCHES = (1, 2, 4)
# Constants of estimate.py are seconds of a step of so many tokens.
REFERENCE_TOKENS = 32_760
MOST_DIFFERENCE = 0.1
Row = dict[str, Any]


def main() -> int:
    arguments = parse_arguments()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if arguments.from_files:
        lines = [line for file in arguments.from_files for line in file.read_text().splitlines()]
        rows = [row for row in map(json.loads, lines) if "tokens" in row and row.get("placement") == "none"]
    else:
        rows = list(measure(arguments))
    for precision in dict.fromkeys(row["precision"] for row in rows):
        series = [row for row in rows if row["precision"] == precision]
        print(describe(precision, series, arguments))
    if arguments.plot:
        draw(rows, arguments.plot)
    return 1 if worst_estimate(rows, arguments) > MOST_DIFFERENCE else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=("fp8",))
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="WIDTHxHEIGHTxFRAMES ...")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES, help="clips at a time, of the first size")
    parser.add_argument("--steps", type=int, default=2, help="steps a size; the first one warms up (2)")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--from", dest="from_files", type=Path, nargs="+", help="fit rows that were measured before")
    parser.add_argument("--out", type=Path, help="append the rows there as JSON lines, as they are done")
    parser.add_argument("--plot", type=Path, help="folder for scaling-seconds.svg and scaling-memory.svg")
    parser.add_argument("--weights", type=Path, help="keep the weights in this folder, or find them there")
    add_model_options(parser)
    return parser.parse_args()


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """Sample every size, resident, and every batch of the first size; yield a row each."""
    device = compute_device()
    machine = describe_machine(device)
    shapes = [tuple(map(int, size.split("x"))) for size in arguments.sizes]
    cases = [(shape, 1) for shape in shapes] + [(shapes[0], batch) for batch in arguments.batches if batch > 1]
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = arguments.weights or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for precision in arguments.precision:
            handle = pipeline.load_transformer(
                ensure_weights(folder, arguments, precision, device),
                settings=EngineSettings(engine=arguments.engine, attention=arguments.attention),
                offload=OffloadSettings(mode="none"),
            )
            for (width, height, frames), batch in cases:
                row = {"part": "scaling", "machine": machine, "precision": precision, "placement": "none"}
                row |= {"width": width, "height": height, "frames": frames, "batch": batch}
                row |= sample(handle, latent_shape(width, height, frames), batch, arguments.steps)
                print(json.dumps(row), flush=True)
                if arguments.out:
                    with arguments.out.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                yield row
            handle.unload()


def sample(handle: Any, shape: tuple[int, int, int, int], batch: int, steps: int) -> Row:
    """Return seconds of the steps, all clips of the batch together, and the peak of what torch reserved."""
    text = torch.zeros(TEXT_ROWS, TEXT_DIM)
    text[:40] = torch.randn(40, TEXT_DIM, generator=torch.Generator().manual_seed(0))
    latents = pipeline.sample(
        handle, text, torch.zeros(batch, *shape), SamplingSettings(seed=0, steps=steps), hooks=Hooks()
    )
    record = next(stage for stage in pipeline.report_of(latents)["stages"] if stage["stage"] == "sample")
    clips = record["details"]["step_seconds"]
    facts = {key: record["details"][key] for key in ("engine", "attention", "matmul", "ops")}
    return {
        "tokens": num_tokens(shape),
        # The first step of the first clip warms up; a later clip's may count.
        "step_seconds": [sum(each) for each in zip(*clips, strict=True)],
        "reserved_gib": record["peak_vram_reserved_bytes"] / GIB,
        "facts": facts,
    }


def single(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.get("batch", 1) == 1 and "problem" not in row]


def size_of(row: Row) -> str:
    return f"{row['width']}x{row['height']}x{row['frames']}"


def seconds_points(rows: Sequence[Row]) -> list[tuple[float, float]]:
    return [(row["tokens"], row["step_seconds"][-1]) for row in single(rows)]


def memory_points(rows: Sequence[Row]) -> list[tuple[float, float]]:
    return [(row["tokens"], row["reserved_gib"]) for row in single(rows) if row["reserved_gib"]]


def estimate_of(row: Row, arguments: argparse.Namespace) -> float | None:
    """Return the seconds a step that users are told of before such a run."""
    facts = row.get("facts", {})
    if "ops" not in facts:
        return None
    sizes = {"dim": arguments.dim, "ffn_dim": arguments.ffn_dim, "num_layers": arguments.layers}
    heads, text_dim = max(1, arguments.dim // 128), TEXT_DIM
    setup = Setup(
        card=row["machine"].split(", ")[1],
        architecture=WanArchitecture(**sizes, num_heads=heads, in_dim=16, out_dim=16, freq_dim=256, text_dim=text_dim),
        scheme=row["precision"],
        offload=row["placement"],
        **{key: facts[key] for key in ("engine", "attention", "matmul", "ops")},
    )
    seconds = step_seconds(setup, row["tokens"])
    return None if seconds is None else seconds * row.get("batch", 1)


def worst_estimate(rows: Sequence[Row], arguments: argparse.Namespace) -> float:
    """Return the largest relative error of the estimates that there are."""
    pairs = [(estimate_of(row, arguments), row["step_seconds"][-1]) for row in rows if "problem" not in row]
    return max((abs(estimated / measured - 1) for estimated, measured in pairs if estimated), default=0.0)


def describe(precision: str, rows: Sequence[Row], arguments: argparse.Namespace) -> str:
    """Return measurements and coefficients of one precision as text."""
    lines = [f"{precision}: {rows[0]['machine']}, {rows[0]['facts']}"]
    lines += ["| size | batch | tokens | s/step | estimate | reserved GiB |", "|---|---|---|---|---|---|"]
    for row in rows:
        estimated = estimate_of(row, arguments)
        cells = [size_of(row), row.get("batch", 1), row["tokens"], f"{row['step_seconds'][-1]:.3f}"]
        cells += [f"{estimated:.3f}" if estimated else "", f"{row['reserved_gib']:.2f}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += [*describe_sizes(rows, arguments), *describe_batches(rows)]
    worst = worst_estimate(rows, arguments)
    if worst:
        verdict = "missed: " if worst > MOST_DIFFERENCE else ""
        lines.append(f"{verdict}estimate.py is at most {worst:.1%} off (wanted: {MOST_DIFFERENCE:.0%})")
    return "\n".join(lines)


def describe_sizes(rows: Sequence[Row], arguments: argparse.Namespace) -> list[str]:
    """Return the growth with the tokens, in lines; none where there is only one size."""
    if len({row["tokens"] for row in single(rows)}) < 2:
        return []
    time = fit(seconds_points(rows), 2)
    linear_ops = arguments.layers * (12 * arguments.dim**2 + 4 * arguments.dim * arguments.ffn_dim)
    per_peta, rate = time.linear / linear_ops * 1e15, 4 * arguments.dim * arguments.layers / time.other / 1e12
    rest, attention = time.linear * REFERENCE_TOKENS, time.other * REFERENCE_TOKENS**2
    lines = [
        f"seconds a step = {time.linear:.4g} * tokens + {time.other:.4g} * tokens^2 (within {time.worst:.1%}): "
        f"{per_peta:.3f} s per PFLOP of linears, self-attention at {rate:.0f} TFLOP/s",
        f"in the terms of estimate.py, {REFERENCE_TOKENS} tokens: {rest:.3f} s and self-attention {attention:.3f} s",
    ]
    if memory_points(rows):
        memory = fit(memory_points(rows), 0)
        lines.append(
            f"GiB reserved = {memory.other:.2f} + {memory.linear * GIB / 1024:.2f} KiB * tokens "
            f"({memory.linear * GIB / arguments.dim:.2f} bytes a token and unit of width; within {memory.worst:.1%})"
        )
    return lines


def describe_batches(rows: Sequence[Row]) -> list[str]:
    """Return the growth with the clips of a batch, in lines; none where there was no batch."""
    first = next((row for row in rows if row.get("batch", 1) > 1), None)
    if first is None:
        return []
    series = [row for row in rows if size_of(row) == size_of(first)]
    lines = []
    for name, unit, value_of in (
        ("seconds a step of all clips", "s", lambda row: row["step_seconds"][-1]),
        ("GiB reserved", "GiB", lambda row: row["reserved_gib"]),
    ):
        points = [(row.get("batch", 1), value_of(row)) for row in series if value_of(row)]
        if len(points) > 1:
            growth = fit(points, 0)
            lines.append(
                f"{name} at {size_of(first)} = {growth.other:.4g} + {growth.linear:.4g} {unit} * clips "
                f"(within {growth.worst:.1%})"
            )
    return lines


def draw(rows: Sequence[Row], folder: Path) -> None:
    """Write the two charts."""
    for name, points_of, power, y_name in (
        ("seconds", seconds_points, 2, "seconds a step"),
        ("memory", memory_points, 0, "GiB reserved"),
    ):
        series = []
        for precision in dict.fromkeys(row["precision"] for row in rows):
            points = points_of([row for row in rows if row["precision"] == precision])
            if len(points) < 2:
                continue
            growth = fit(points, power)
            reach = range(0, int(max(x for x, _ in points)) + 1, max(int(max(x for x, _ in points)) // 60, 1))
            curve = [(x, growth.linear * x + growth.other * x**power) for x in reach]
            series.append(plots.Series(name=precision.upper(), points=points, curve=curve))
        if series:
            chart = plots.lines(rows[0]["machine"], series, "tokens", y_name)
            (folder / f"scaling-{name}.svg").write_text(chart)


if __name__ == "__main__":
    sys.exit(main())
