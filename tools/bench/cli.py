"""The command line of `python tools bench`: runs a benchmark, prints its tables and what missed a target."""

from __future__ import annotations

import importlib
import sys

from . import harness, page

MODULES = {
    "peers": "as fast and as accurate as LightX2V, ComfyUI and diffusers?",
    "prompt_to_frames": "from a prompt to frames, in seconds; batches of clips",
    "kernels": "operations, matrix products, attentions; where a step goes",
    "memory.grid": "does the plan predict what is taken? how does cost grow?",
    "memory.caps": "does `auto` fit small cards and little RAM?",
    "lora": "what LoRAs cost, and what of them survives",
    "image_to_video": "a step of image to video beside one of text to video",
    "gpus": "one clip on one GPU and on several",
    "experts": "both experts of Wan2.2 as one model, beside each alone; on smaller cards",
    "loading": "how fast do weights load and stream?",
    "vae": "decoders and encoders whole and in tiles",
    "text": "the text encoder",
}
OTHERS = {"all": "what fits into --minutes of all this", "tables": "docs/benchmarks.md from docs/measurements"}


def main(words: list[str]) -> int:
    """Run a benchmark; returns 1 where its rows miss a target."""
    name, *rest = words or ["--help"]
    if name in OTHERS:
        module = importlib.import_module(f".{'all' if name == 'all' else 'page'}", __package__)
        return int(module.main(rest))
    names = {module.rpartition(".")[2]: module for module in MODULES}
    if name not in names:
        is_help = name in ("-h", "--help")
        listed = {**{short: MODULES[module] for short, module in names.items()}, **OTHERS}
        lines = [f"  {short:<17} {what}" for short, what in listed.items()]
        usage = "usage: python tools bench NAME ... (--help after a name lists its options)\n"
        print("\n".join([usage, *lines]), file=sys.stdout if is_help else sys.stderr)
        return 0 if is_help else 2
    module = importlib.import_module(f".{names[name]}", __package__)
    rows: list[harness.Row] = []
    try:
        for row in harness.run(name, module, rest):
            rows.append(row)
    finally:
        print("".join(f"\n{section}" for section in page.sections(rows).values()), flush=True)
    problems: list[str] = module.check(rows) if hasattr(module, "check") else []
    print(*(f"missed: {problem}" for problem in problems), sep="\n")
    return 1 if problems else 0
