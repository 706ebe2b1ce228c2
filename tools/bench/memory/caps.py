"""Does `auto` fit whatever the card? Prompt to frames in a fresh process under each cap, alone on its card.

torch gets what a card of so many GiB would leave it, CUDA's context counted. Beside the capped runs there is an
uncapped one, for the latents to compare with, and two steps of each of --alternatives, for the seconds of other modes.
--ram-gib enforces less RAM too (a control group: Linux, as root) and reads from the drive. The text encoder is a small
stand-in, unless --text-encoder names one (`bench text --weights DIR` makes one of full size). Exit status 1 where a run
failed, took more than its card, gave other latents, or another mode that fits was faster.

    python tools bench caps --precision fp8 int8 bf16 --out caps.jsonl
    python tools bench caps --caps 8 --ram-gib 16 --modes block disk --out caps.jsonl
    python tools bench caps --dim 256 --ffn-dim 512 --layers 2 --sizes 64x64 --frames 5 --caps 8     # any CPU: no cap
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ...arguments import number, whole
from ...make_tiny_checkpoint import TOKENIZER_FOLDER
from .. import pack
from ..harness import Bench, Row, parse_size, wait_for_turn
from ..prompt_to_frames import make_clips
from ..weights import PRECISIONS, SMALL_TEXT, ensure_text_encoder, vae_file
from . import limits

CAPS = (6.0, 8.0, 10.0, 12.0, 16.0, 24.0)
# The least a card needs for the larger frames, which run in FP8 only.
LARGE_CAP = 10.0
STEPS, SHORT_STEPS = 4, 2
# Kernels that load take 0.15 GiB; another program's CUDA context half a GiB at least.
MOST_CONTEXT_GROWTH_GIB = 0.45
MOST_SLOWDOWN = 0.03
"""How much slower the plan's choice may be than another mode that fits."""
ONLY_CHILDREN_USE_THE_CARD = True
PROMPT = "A red fox runs through fresh snow at dawn while the camera follows from the side."


@dataclass(frozen=True, kw_only=True)
class Case:
    """One process."""

    precision: str
    size: str
    cap_gib: float = 0.0
    """GiB; 0 is the whole card."""
    mode: str = "auto"
    is_short: bool = False
    """Two steps and no decode: only the seconds of the mode."""

    @property
    def name(self) -> str:
        return f"{self.precision}-{self.size}-{self.cap_gib:g}-{self.mode}{'-short' * self.is_short}"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=("fp8",))
    parser.add_argument("--sizes", nargs="+", default=("832x480", "1280x720"), help="WIDTHxHEIGHT ...")
    parser.add_argument("--frames", type=whole(), default=81)
    parser.add_argument("--caps", type=number(), nargs="*", default=CAPS, help="GiB of VRAM, context included")
    parser.add_argument("--modes", nargs="+", default=("auto",), help="of the capped runs: auto none block phase disk")
    parser.add_argument(
        "--alternatives", nargs="*", default=("block", "phase"), help="further modes, uncapped, two steps (block phase)"
    )
    parser.add_argument("--ram-gib", type=number(), help="let the process use no more RAM, and read from the drive")
    parser.add_argument("--text-encoder", type=Path, help="a real one, tokenizer beside it")


def list_cases(options: argparse.Namespace) -> Iterator[Case]:
    """Yield for every precision and size the uncapped run, the caps, smallest first, and the alternatives."""
    for precision in options.precision:
        for size in options.sizes:
            is_large = size != options.sizes[0]
            if is_large and precision != "fp8":
                continue
            if not options.ram_gib:
                yield Case(precision=precision, size=size)
            for cap in sorted(options.caps):
                if cap >= LARGE_CAP or not is_large:
                    for mode in options.modes:
                        yield Case(precision=precision, size=size, cap_gib=cap, mode=mode)
            if not options.ram_gib:
                for mode in options.alternatives:
                    yield Case(precision=precision, size=size, mode=mode, is_short=True)


def measure(bench: Bench) -> Iterator[Row]:
    """Run prompt to frames in a fresh process a case; yield a row each."""
    make_companions(bench)
    cases = {case.name: case for case in list_cases(bench.options)}
    wanted: dict[tuple[str, str], str] = {}
    for name, row in bench.run_children(list(cases)):
        limits.remove_limits()
        case = cases.pop(name)
        if not case.cap_gib and not case.is_short and "latents" in row:
            wanted[case.precision, case.size] = row["latents"]
        if not case.is_short and "latents" in row and (case.precision, case.size) in wanted:
            row["same_latents"] = "yes" if row["latents"] == wanted[case.precision, case.size] else "NO"
        row |= {"frames": bench.options.frames, "ram_limit_gib": bench.options.ram_gib}
        yield {**asdict(case), **row}
        if limits.SharedCardError.__name__ in row.get("problem", ""):
            return
        bench.drop_weights(case.precision, {each.precision for each in cases.values()})


def run_child(bench: Bench) -> None:
    """Encode, sample and decode under the cap, through the API that the nodes call; write the row."""
    # The small text encoder's sums on the CPU depend on the number of threads, and latents on them; and the next child
    # gets ready beside this one.
    torch.set_num_threads(min(2, torch.get_num_threads()))
    options = bench.options
    case = next(case for case in list_cases(options) if case.name == options.child)
    text_file, vae = make_companions(bench)
    # Once before, without the GPU: its libraries take long to import, which no row is about.
    encoder = pack.Umt5Encoder(pack.resolve_text_encoder(text_file, text_file.parent / TOKENIZER_FOLDER))
    encoder.load("cpu", pack.Hooks())
    encoder.encode_tokens(encoder.tokenize(PROMPT), pack.Hooks())
    del encoder
    wait_for_turn()
    device, file = bench.device, options.row
    row: Row = {**bench.machine, "context_gib": limits.check_alone(device) / pack.GIB}
    transformer = bench.load_transformer(case.precision, mode=case.mode)
    if options.ram_gib:
        row["cache_dropped"] = limits.drop_page_cache()
        row["ram_enforced"] = limits.limit_ram(options.ram_gib)
    if case.cap_gib and device.type == "cuda":
        limits.limit_vram(case.cap_gib, device)
    row["free_ram_gib"] = pack.free_ram_bytes() / pack.GIB
    file.write_text(json.dumps(row))
    with limits.watch_ram() as ram:
        handles = [
            pack.pipeline.load_text_encoder(options.text_encoder or text_file),
            transformer,
        ]
        if not case.is_short:
            handles.append(pack.pipeline.load_vae(vae, offload=pack.OffloadSettings()))
        sampling = pack.SamplingSettings(seed=0, steps=SHORT_STEPS if case.is_short else STEPS)
        row |= make_clips(handles, PROMPT, (*parse_size(case.size), options.frames), 1, sampling)
    row |= {"ram_gib": ram.num_bytes / pack.GIB, "step": statistics.median(row["step_seconds"][1:])}
    row["end_context_gib"] = limits.context_bytes(device) / pack.GIB
    row["card_gib"] = row["reserved_gib"] + row["end_context_gib"]
    if row["end_context_gib"] - row["context_gib"] > MOST_CONTEXT_GROWTH_GIB:
        row["problem"] = f"another program came to the card: {row['end_context_gib']:.1f} GiB are not of torch"
    file.write_text(json.dumps(row))


def make_companions(bench: Bench) -> tuple[Path, Path]:
    """Return the files of a small text encoder and of a VAE of full size."""
    text_file = ensure_text_encoder(bench.folder, "bf16", SMALL_TEXT)
    return text_file, vae_file(bench.folder, bench.options)


def check(rows: Sequence[Row]) -> list[str]:
    """Return in words what failed, and which run misses a target."""
    problems = []
    # Uncapped: seconds a step, mode, GiB.
    modes: dict[tuple[str, str, int], list[tuple[float, str, float]]] = {}
    for row in rows:
        if "step" in row and not row["cap_gib"]:
            found = modes.setdefault((row["precision"], row["size"], row["frames"]), [])
            found.append((row["step"], row["offload"], row["sample_reserved_gib"]))
    for row in rows:
        name = f"{row['precision']} {row['size']}x{row['frames']}, cap {row['cap_gib']:g}, {row['mode']}"
        if "problem" in row or "step" not in row:
            problems.append(f"{name}: {row.get('problem', 'did not finish')}")
            continue
        if not row["is_finite"] or row.get("same_latents") == "NO":
            problems.append(f"{name}: latents {'differ from the uncapped run' if row['is_finite'] else 'not finite'}")
        if row["cap_gib"] and row["card_gib"] > row["cap_gib"]:
            problems.append(f"{name}: took {row['card_gib']:.2f} GiB of the card")
        room = row["cap_gib"] - row["context_gib"] if row["cap_gib"] else math.inf
        others = [each for each in modes.get((row["precision"], row["size"], row["frames"]), []) if each[2] <= room]
        # Where the mode was neither named nor forced by little RAM; on a CPU modes differ in nothing that takes time.
        is_choice = row["mode"] == "auto" and not row["ram_limit_gib"] and row.get("card") != "CPU"
        if others and is_choice and row["step"] / min(others)[0] - 1 > MOST_SLOWDOWN:
            seconds, mode, _ = min(others)
            problems.append(f"{name}: {mode} takes {seconds:.3f} s a step, the plan's choice {row['step']:.3f}")
    return problems
