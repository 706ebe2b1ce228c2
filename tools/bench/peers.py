"""Compare this pack with LightX2V, ComfyUI and diffusers: seconds a step, memory, accuracy; one card, one run.

Every peer denoises the same noise to the same text and image with the same weights, each in a process of its own. A
peer that is not installed, or fails, is a row that says so. The first step warms up; s/step is the median of the
others. "error" is the relative L2 norm of the final latents' difference from the reference, a BF16 run in plain torch
with SDPA, and "cosine" their cosine.

Kinds of models are text to video, Wan2.1's image to video, and one expert of Wan2.2's, of which the pack also runs both
as one model. With text to video among several kinds, exit status 1 says that the pack is less far ahead of the fastest
of the others in another one.

    COMFYUI_DIR=... LIGHTX2V_DIR=... python tools bench peers --out peers.jsonl
    python tools bench peers --peers pack pack-streamed comfyui-fast-sage-compile
    python tools bench peers --kind t2v i2v i2v-a14b --peers pack pack-pair comfyui-fast-sage-compile lightx2v-sage
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
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from .harness import Bench, Row, add_clip_options, wait_for_turn
from .peer import Clock, Peer
from .weights import KINDS, load_template

SAGE = "sageattention"
OURS = "pack"
REFERENCE = "pack-bf16-sdpa"
NOT_HERE = "not here"
BASE_KIND = "t2v"
# How much less far ahead than in text to video is noise.
_NOISE = 0.02
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
    "pack-pair": replace(_pack("this pack, both experts", offload="none", experts=True), kinds=("i2v-a14b",)),
    "diffusers-compile": _diffusers("diffusers, BF16, compile_repeated_blocks", compile=True),
    "pack-lightx2v": _pack(
        "this pack, LightX2V's compute", "fp8", "LIGHTX2V_DIR", "CUDA", engine="lightx2v", offload="none"
    ),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--peers", nargs="+", choices=PEERS, help="in this order; all that can do the kind")
    parser.add_argument("--kind", nargs="+", choices=tuple(KINDS), default=[BASE_KIND], help="one after the other")
    add_clip_options(parser)


def measure(bench: Bench) -> Iterator[Row]:
    """Run the peers that are there, of one kind of model after the other; yield their rows."""
    for kind in dict.fromkeys(bench.options.kind):
        yield from measure_kind(bench, kind)


def measure_kind(bench: Bench, kind: str) -> Iterator[Row]:
    """Run the peers that are there one after the other; yield their rows."""
    options = bench.options
    names = list(dict.fromkeys(options.peers or (name for name, peer in PEERS.items() if kind in peer.kinds)))
    about = {"size": f"{options.width}x{options.height}", "frames": options.frames, "steps": options.steps}
    if kind != BASE_KIND:
        about["part"] = f"{bench.name}-{kind}"
    rows = {
        name: {"peer": name, "title": PEERS[name].title, "precision": PEERS[name].precision, **about} for name in names
    }
    for name in names:
        missing = [what for what in PEERS[name].needs if not is_there(what)]
        missing += [] if kind in PEERS[name].kinds else [f"a model of kind {kind}"]
        if missing:
            yield rows.pop(name) | {"problem": f"{NOT_HERE}: {', '.join(missing)}"}
    names = list(rows)
    load_template(bench.folder, options, kind)
    # The first peer to compile a kernel pays for it; nothing is left from an earlier run.
    caches = {
        "TRITON_CACHE_DIR": str(bench.temporary / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(bench.temporary / "inductor"),
    }

    for case, row in bench.run_children([_case(name, kind) for name in names], caches):
        name = _read_case(case)[0]
        seconds = row.get("step_seconds") or []
        if seconds:
            row |= {"first_step": seconds[0], "step": statistics.median(seconds[1:] or seconds)}
        yield rows[name] | row | ({} if "problem" in row else compare(bench, name, kind))
        peer = PEERS[name]
        later = (PEERS[other] for other in names[names.index(name) + 1 :])
        if peer.runner in _READERS:
            bench.drop_weights(peer.precision, {other.precision for other in later if other.runner in _READERS})


def _case(name: str, kind: str) -> str:
    return name if kind == BASE_KIND else f"{name}@{kind}"


def _read_case(case: str) -> tuple[str, str]:
    """Return the peer's name and the kind."""
    name, _, kind = case.partition("@")
    return name, kind or BASE_KIND


def run_child(bench: Bench) -> None:
    """Run one peer in this process; its row goes to --row as it grows, its latents beside that."""
    if os.environ.get("LIGHTX2V_DIR"):
        sys.path.append(os.environ["LIGHTX2V_DIR"])
    name, kind = _read_case(bench.options.child)
    peer = replace(PEERS[name], kind=kind)
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


def compare(bench: Bench, name: str, kind: str) -> Row:
    """Return how far a peer's latents are from the reference's; nothing where there is nothing to compare."""
    files = [bench.row_file(_case(each, kind)).with_suffix(".safetensors") for each in (REFERENCE, name)]
    computes_more = {"lora", "experts"} & PEERS[name].options.keys()
    if name == REFERENCE or computes_more or not all(file.exists() for file in files):
        return {}
    wanted, got = (load_file(file)["latents"].double().flatten() for file in files)
    if not got.isfinite().all():
        return {}
    return {
        "error": float((got - wanted).norm() / wanted.norm()),
        "cosine": float(torch.nn.functional.cosine_similarity(got, wanted, dim=0)),
    }


def lead(rows: Sequence[Row]) -> float | None:
    """Return how many times as long as ours the fastest of the others takes a step; None where either is not there."""
    done = [row for row in rows if "step" in row and "problem" not in row and row.get("is_finite")]
    ours = [row["step"] for row in done if row["peer"] == OURS]
    others = [row for row in done if PEERS[row["peer"]].runner != "pack" and "lora" not in PEERS[row["peer"]].options]
    return min(row["step"] for row in others) / ours[0] if ours and others else None


def check(rows: Sequence[Row]) -> list[str]:
    """Return which of the pack's own rows failed or gave latents that are not finite, and where it is less ahead."""
    ours = [row for row in rows if PEERS[row["peer"]].runner == "pack" and not row.get("is_finite")]
    problems = [f"{row['peer']}: {row.get('problem', 'latents are not finite')}" for row in ours]
    problems = [problem for problem in problems if NOT_HERE not in problem]
    if any(row.get("card") == "CPU" for row in rows):
        return problems
    parts = dict.fromkeys(row["part"] for row in rows)
    leads = {part: lead([row for row in rows if row["part"] == part]) for part in parts}
    wanted = leads.pop("peers", None)
    return problems + [
        f"{part}: {found:.2f} times as fast as the fastest of the others; in text to video {wanted:.2f} times"
        for part, found in leads.items()
        if wanted and found and found < wanted * (1 - _NOISE)
    ]
