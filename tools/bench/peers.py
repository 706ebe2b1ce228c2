"""Compare this pack with LightX2V, ComfyUI and diffusers: seconds a step, memory, accuracy; one card, one run.

Every peer denoises the same noise to the same text with the same weights, each in a process of its own. A peer that is
not installed, or fails, is a row that says so. The first step warms up; s/step is the median of the others. "error" is
the relative L2 norm of the final latents' difference from the reference, a BF16 run in plain torch with SDPA, and
"cosine" their cosine.

    COMFYUI_DIR=... LIGHTX2V_DIR=... python tools bench peers --out peers.jsonl
    python tools bench peers --peers pack pack-streamed comfyui-fast-sage-compile
    python tools bench peers --dim 256 --ffn-dim 512 --layers 2 --width 64 --height 64 --frames 5   # any CPU

Needs disk for the weights of one precision (FP8 and INT8 15 GB, BF16 29 GB) and as much RAM for streamed rows.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from .harness import Bench, Row, add_clip_options, wait_for_turn
from .peer import Clock, Peer
from .weights import load_template

SAGE = "sageattention"
OURS = "pack"
REFERENCE = "pack-bf16-sdpa"
NOT_HERE = "not here"
# Runners that read the weights per block; the others make theirs from the template.
_READERS = ("pack", "lightx2v")


def _comfyui(title: str, *flags: str, needs: tuple[str, ...] = (), **options: Any) -> Peer:
    options = {"flags": flags, "fast_weights": "--fast" in flags, **options}
    return Peer(title=title, runner="comfyui", precision="fp8", needs=("COMFYUI_DIR", *needs), options=options)


def _lightx2v(title: str, *needs: str, **options: Any) -> Peer:
    return Peer(
        title=title, runner="lightx2v", precision="fp8", needs=("LIGHTX2V_DIR", "CUDA", *needs), options=options
    )


def _pack(title: str, precision: str = "fp8", *needs: str, **options: Any) -> Peer:
    return Peer(title=title, runner="pack", precision=precision, needs=needs, options=options)


def _diffusers(title: str, **options: Any) -> Peer:
    return Peer(title=title, runner="diffusers", precision="bf16", needs=("diffusers",), options=options)


_FAST_SAGE = ("--fast", "--use-sage-attention")
# The reference first, then what tells most; weights are dropped after the last row of a precision that reads them.
PEERS = {
    REFERENCE: _pack("this pack, BF16, plain torch, SDPA", "bf16", engine="portable", attention="sdpa", compile="off"),
    "pack-bf16": _pack("this pack, BF16", "bf16"),
    OURS: _pack("this pack", offload="none"),
    "pack-streamed": _pack("this pack, streamed", offload="block"),
    "pack-int8": _pack("this pack, INT8", "int8", offload="none"),
    "comfyui-fast-sage-compile": _comfyui(
        "ComfyUI --fast, Sage, compile", *_FAST_SAGE, needs=(SAGE, "triton"), compile=True
    ),
    "lightx2v-sage": _lightx2v("LightX2V, Sage", SAGE, attention="sage_attn2"),
    "diffusers": _diffusers("diffusers, BF16"),
    "pack-lora": _pack("this pack, a LoRA of rank 64", offload="none", lora=64),
    "comfyui-fast-lora": _comfyui("ComfyUI --fast, a LoRA of rank 64", "--fast", lora=64),
    "comfyui-lora": _comfyui("ComfyUI, FP8 weights, a LoRA of rank 64", lora=64),
    "comfyui-fast": _comfyui("ComfyUI --fast", "--fast"),
    "lightx2v": _lightx2v("LightX2V"),
    "pack-no-sage": _pack("this pack, no SageAttention", hide=(SAGE,), offload="none"),
    "comfyui-fast-sage": _comfyui("ComfyUI --fast, Sage", *_FAST_SAGE, needs=(SAGE,)),
    "comfyui": _comfyui("ComfyUI, FP8 weights"),
    "lightx2v-sage-streamed": _lightx2v("LightX2V, Sage, block offload", SAGE, attention="sage_attn2", offload="block"),
    "lightx2v-sage-as-shipped": _lightx2v(
        "LightX2V, Sage, block offload as shipped", SAGE, attention="sage_attn2", offload="block", as_shipped=True
    ),
    "lightx2v-sage-compile": _lightx2v("LightX2V, Sage, compile", SAGE, attention="sage_attn2", compile=True),
    "comfyui-fast-sage-compile-bf16": _comfyui(
        "ComfyUI --fast, Sage, compile, BF16", *_FAST_SAGE, needs=(SAGE, "triton"), compile=True, compute="bfloat16"
    ),
    "diffusers-compile": _diffusers("diffusers, BF16, compile_repeated_blocks", compile=True),
    "pack-lightx2v": _pack(
        "this pack, LightX2V's compute", "fp8", "LIGHTX2V_DIR", "CUDA", engine="lightx2v", offload="none"
    ),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=tuple(PEERS), help="in this order")
    add_clip_options(parser)


def measure(bench: Bench) -> Iterator[Row]:
    """Run the peers that are there one after the other; yield their rows."""
    names = list(dict.fromkeys(bench.options.peers))
    options = bench.options
    about = {"size": f"{options.width}x{options.height}", "frames": options.frames, "steps": options.steps}
    rows = {
        name: {"peer": name, "title": PEERS[name].title, "precision": PEERS[name].precision, **about} for name in names
    }
    for name in names:
        missing = [what for what in PEERS[name].needs if not is_there(what)]
        if missing:
            yield rows.pop(name) | {"problem": f"{NOT_HERE}: {', '.join(missing)}"}
    names = list(rows)
    load_template(bench.folder, options)
    # The first peer to compile a kernel pays for it; nothing is left from an earlier run.
    caches = {
        "TRITON_CACHE_DIR": str(bench.temporary / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(bench.temporary / "inductor"),
    }

    for name, row in bench.run_children(names, caches):
        seconds = row.get("step_seconds") or []
        if seconds:
            row |= {"first_step": seconds[0], "step": statistics.median(seconds[1:] or seconds)}
        yield rows[name] | row | ({} if "problem" in row else compare(bench, name))
        peer = PEERS[name]
        later = (PEERS[other] for other in names[names.index(name) + 1 :])
        if peer.runner in _READERS:
            bench.drop_weights(peer.precision, {other.precision for other in later if other.runner in _READERS})


def run_child(bench: Bench) -> None:
    """Run one peer in this process; its row goes to --row as it grows, its latents beside that."""
    if os.environ.get("LIGHTX2V_DIR"):
        sys.path.append(os.environ["LIGHTX2V_DIR"])
    peer = PEERS[bench.options.child]
    runner = importlib.import_module(f"{__package__}.peer_{peer.runner}")
    runner.prepare(peer, bench)
    wait_for_turn()
    clock = Clock(bench.options.row, bench.device)
    latents = runner.run(peer, bench, clock)
    clock.write(is_finite=bool(latents.isfinite().all()))
    save_file({"latents": latents.float().contiguous()}, bench.options.row.with_suffix(".safetensors"))
    sys.stdout.flush()
    # Some peers' threads and destructors take seconds, or hang.
    os._exit(0)


def is_there(what: str) -> bool:
    """Say whether a package, or a folder named by an environment variable, is installed."""
    if what == "CUDA":
        return torch.cuda.is_available()
    if what.isupper():
        return bool(os.environ.get(what)) and Path(os.environ[what]).is_dir()
    return importlib.util.find_spec(what) is not None


def compare(bench: Bench, name: str) -> Row:
    """Return how far a peer's latents are from the reference's; nothing where there is nothing to compare."""
    files = [bench.row_file(each).with_suffix(".safetensors") for each in (REFERENCE, name)]
    if name == REFERENCE or "lora" in PEERS[name].options or not all(file.exists() for file in files):
        return {}
    wanted, got = (load_file(file)["latents"].double().flatten() for file in files)
    if not got.isfinite().all():
        return {}
    return {
        "error": float((got - wanted).norm() / wanted.norm()),
        "cosine": float(torch.nn.functional.cosine_similarity(got, wanted, dim=0)),
    }


def check(rows: Sequence[Row]) -> list[str]:
    """Return which of the pack's own rows failed, or gave latents that are not finite."""
    ours = [row for row in rows if PEERS[row["peer"]].runner == "pack" and not row.get("is_finite")]
    problems = [f"{row['peer']}: {row.get('problem', 'latents are not finite')}" for row in ours]
    return [problem for problem in problems if NOT_HERE not in problem]
