"""From a prompt to frames: seconds of every stage, through the API that the nodes call, in one process on one card.

Random weights of the full sizes, made here: the 14B transformer, UMT5-XXL (computed on the CPU, as the node does
unless told otherwise) and Wan2.1's VAE. Every run has a new prompt of --tokens tokens and a new seed. The first run
pays for imports, loading and kernels that compile; the later ones are what a user waits for from the second clip on.
"prompt to frames" is everything between the prompt and the frames, whatever had to be loaded again included.
Exit status 1 when the last run takes longer than --target, on the card that it was set for (an H200, full size).

    python tools/bench/prompt_to_frames.py --out prompt_to_frames.jsonl
    python tools/bench/prompt_to_frames.py --dim 256 --ffn-dim 512 --layers 2 --width 64 --height 64 --frames 5   # CPU
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
import types
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
from lightx2v_pack.engine.constants import GIB  # noqa: E402
from lightx2v_pack.engine.interfaces import Hooks  # noqa: E402
from lightx2v_pack.engine.settings import OFFLOAD_MODES, EngineSettings, OffloadSettings, SamplingSettings  # noqa: E402
from lightx2v_pack.engine.shapes import latent_shape  # noqa: E402
from lightx2v_pack.engine.system import compute_device  # noqa: E402
from lightx2v_pack.engine.umt5.tokenizer import open_tokenizer  # noqa: E402
from lightx2v_pack.tools import make_tiny_checkpoint as checkpoints  # noqa: E402
from lightx2v_pack.tools.bench.full_size import (  # noqa: E402
    PRECISIONS,
    add_size_options,
    cap_vram,
    describe_run,
    ensure_weights,
)
from lightx2v_pack.tools.bench.text_weights import SMALL, STORED, TextSizes, ensure_text_encoder  # noqa: E402

LOADS = ("load_text_encoder", "load_transformer", "load_vae")
SENTENCE = "a red fox runs through fresh snow at dawn while the camera follows from side to side and back"
Row = dict[str, Any]


def main() -> int:
    arguments = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    device = compute_device()
    cap_vram(arguments, device)
    shape = latent_shape(arguments.width, arguments.height, arguments.frames)
    machine = f"{describe_run(arguments, shape, device)}, {torch.get_num_threads()} CPU threads"
    print(machine, flush=True)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = arguments.weights or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        handles = make_handles(folder, arguments, device)
        tokenize = open_tokenizer(folder / checkpoints.TOKENIZER_FOLDER)
        rows = []
        for index in range(arguments.runs):
            # The end token is one of them.
            prompt = make_prompt(index, lambda text: len(tokenize(text)) + 1, arguments.tokens)
            row = {"part": "prompt_to_frames", "machine": machine, "precision": arguments.precision, "run": index + 1}
            row |= {"tokens": len(tokenize(prompt)) + 1} | make_clip(handles, prompt, index, arguments)
            rows.append(row)
            print(json.dumps(row), flush=True)
            if arguments.out:
                with arguments.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    print(table(rows))
    if "H200" in machine and arguments.dim == parse_arguments([]).dim and rows[-1]["seconds"] > arguments.target:
        print(f"missed: {rows[-1]['seconds']:.2f} s from prompt to frames, wanted at most {arguments.target:g}")
        return 1
    return 0


def parse_arguments(options: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="clips, each of a new prompt and seed (3)")
    parser.add_argument("--tokens", type=int, default=40, help="of a prompt (40)")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp8")
    parser.add_argument("--text-precision", choices=tuple(STORED), default="fp8")
    parser.add_argument("--text-device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--offload", choices=OFFLOAD_MODES, default="auto")
    parser.add_argument("--target", type=float, default=10.0, help="seconds that the last run may take (10)")
    parser.add_argument("--weights", type=Path, help="keep the weights in this folder, or find them there")
    parser.add_argument("--out", type=Path, help="append the rows there as JSON lines, as they are done")
    add_size_options(parser)
    return parser.parse_args(options)


def make_handles(folder: Path, arguments: argparse.Namespace, device: torch.device) -> tuple[Any, Any, Any]:
    """Write what is not there; return handles of text encoder, transformer and VAE."""
    is_full = arguments.dim > 1000
    text = ensure_text_encoder(folder, arguments.text_precision, TextSizes() if is_full else SMALL)
    transformer = ensure_weights(folder, arguments, arguments.precision, device)
    vae = folder / f"vae-{96 if is_full else 8}.safetensors"
    if not vae.exists():
        sizes = checkpoints.TinySizes(vae_dim=96 if is_full else 8)
        checkpoints.write_vae(vae, checkpoints.make_vae(sizes), torch.bfloat16)
    settings = EngineSettings(engine=arguments.engine, attention=arguments.attention)
    offload = OffloadSettings(mode=arguments.offload)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return (
        pipeline.load_text_encoder(text, tokenizer=folder / checkpoints.TOKENIZER_FOLDER),
        pipeline.load_transformer(transformer, settings=settings, offload=offload),
        pipeline.load_vae(vae, engine=arguments.engine, offload=offload),
    )


def make_prompt(index: int, count: Any, num_tokens: int) -> str:
    """Return a prompt of so many tokens, or a few more; another one for every index."""
    words = SENTENCE.split()
    text, place = "", index
    while count(text) < num_tokens:
        text += f" {words[place % len(words)]}"
        place += 1
    return text.strip()


def make_clip(handles: tuple[Any, Any, Any], prompt: str, seed: int, arguments: argparse.Namespace) -> Row:
    """Encode, sample and decode as the nodes do; return what the report says, and seconds by the clock."""
    text_encoder, transformer, vae = handles
    start = time.perf_counter()
    rows = pipeline.encode_text(text_encoder, prompt, device=arguments.text_device, hooks=Hooks())
    empty = pipeline.empty_latent(arguments.width, arguments.height, arguments.frames, 1)
    settings = SamplingSettings(seed=seed, steps=arguments.steps)
    latents = pipeline.sample(transformer, rows, empty, settings, hooks=Hooks())
    frames = pipeline.decode(vae, latents, hooks=Hooks())
    seconds = time.perf_counter() - start
    report = pipeline.report_of(frames)
    stages = {stage["stage"]: stage for stage in report["stages"]}
    sampling = stages["sample"]["details"]
    return {
        "seconds": seconds,
        "stages": {name: stage["seconds"] for name, stage in stages.items()},
        "step_seconds": sampling["step_seconds"][0],
        "reserved_gib": report["peak_vram_reserved_bytes"] / GIB,
        "ram_gib": report["peak_ram_bytes"] / GIB,
        "is_finite": bool(latents.isfinite().all()) and bool(frames.isfinite().all()),
        "facts": {key: sampling[key] for key in ("engine", "attention", "matmul", "ops", "offload")}
        | {"tiled": stages["decode"]["details"]["tiled"], "plan": sampling["plan"]["line"]},
    }


def table(rows: list[Row]) -> str:
    """Return the runs as a table in Markdown, a stage a line."""
    names = list(dict.fromkeys(name for row in rows for name in row["stages"]))
    lines = [f"| seconds | {' | '.join('run {}'.format(row['run']) for row in rows)} |", "|---" * (len(rows) + 1) + "|"]

    def add(title: str, values: list[float]) -> None:
        lines.append(f"| {title} | {' | '.join(f'{value:.2f}' for value in values)} |")

    for name in names:
        add(name.replace("_", " "), [row["stages"].get(name, 0.0) for row in rows])
        if name == "sample":
            for step in range(len(rows[0]["step_seconds"])):
                add(f"- step {step + 1}", [row["step_seconds"][step] for row in rows])
    loads = [sum(row["stages"].get(name, 0.0) for name in LOADS) for row in rows]
    work = [sum(seconds for name, seconds in row["stages"].items() if name not in LOADS) for row in rows]
    add("encode, sample and decode", work)
    add("loads", loads)
    add("between the stages", [row["seconds"] - a - b for row, a, b in zip(rows, work, loads, strict=True)])
    add("**prompt to frames**", [row["seconds"] for row in rows])
    facts = ", ".join(f"{key} {value}" for key, value in rows[-1]["facts"].items())
    memory = f"{rows[-1]['reserved_gib']:.2f} GiB VRAM reserved, {rows[-1]['ram_gib']:.2f} GiB RAM"
    return "\n".join([*lines, "", f"{facts}; {memory}"])


if __name__ == "__main__":
    sys.exit(main())
