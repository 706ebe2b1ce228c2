"""Compare this pack with LightX2V, ComfyUI and diffusers: seconds a step, memory, accuracy; one card, one run.

Every peer denoises the same noise to the same text with the same weights, random ones of the full 14B size that
this command makes itself (speed and memory do not depend on their values), each in a process of its own. A peer that
is not installed, or fails, is a row that says so. The first step warms up; s/step is the median of the others.
"error" is the relative L2 norm of the final latents' difference from the reference, a BF16 SDPA run, and
"cosine" their cosine. One command, on one card:

    COMFYUI_DIR=... LIGHTX2V_DIR=... python tools/bench/peers.py --out peers.jsonl --plot docs/peers.svg
    python tools/bench/peers.py --peers pack pack-streamed comfyui-fast-sage-compile
    python tools/bench/peers.py --dim 256 --ffn-dim 512 --layers 2 --width 64 --height 64 --frames 5   # any CPU

Needs disk for the weights of one precision in --folder (FP8 and INT8 15 GB, BF16 29 GB) and as much RAM for
streamed rows. Rows are printed, and written to --out, as they are done.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import sys
import tempfile
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
pack = types.ModuleType("lightx2v_pack")
pack.__path__ = [str(ROOT)]
sys.modules["lightx2v_pack"] = pack
# This file's folder comes first on the path and would make lightx2v.py there the package `lightx2v`.
sys.path[:] = [entry for entry in sys.path if entry != str(Path(__file__).resolve().parent)]
if os.environ.get("LIGHTX2V_DIR"):
    sys.path.append(os.environ["LIGHTX2V_DIR"])

from lightx2v_pack.engine.shapes import latent_shape  # noqa: E402
from lightx2v_pack.engine.system import compute_device  # noqa: E402
from lightx2v_pack.tools.bench import plots  # noqa: E402
from lightx2v_pack.tools.bench.children import Child, wait_for_turn  # noqa: E402
from lightx2v_pack.tools.bench.full_size import (  # noqa: E402
    add_size_options,
    cap_vram,
    describe_run,
    drop_weights,
    load_template,
)
from lightx2v_pack.tools.bench.peer_clock import Clock, Peer, make_task  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

SAGE = "sageattention"
OURS = "pack"
REFERENCE = "pack-bf16-sdpa"


def _comfyui(title: str, *flags: str, needs: tuple[str, ...] = (), **options: Any) -> Peer:
    options = {"flags": flags, "fast_weights": "--fast" in flags, **options}
    return Peer(title=title, runner="comfyui", precision="fp8", needs=("COMFYUI_DIR", *needs), options=options)


def _lightx2v(title: str, *needs: str, **options: Any) -> Peer:
    return Peer(title=title, runner="lightx2v", precision="fp8", needs=("lightx2v", "CUDA", *needs), options=options)


def _pack(title: str, precision: str = "fp8", **options: Any) -> Peer:
    return Peer(title=title, runner="pack", precision=precision, options=options)


def _diffusers(title: str, **options: Any) -> Peer:
    return Peer(title=title, runner="diffusers", precision="bf16", needs=("diffusers",), options=options)


_FAST_SAGE = ("--fast", "--use-sage-attention")
# The reference first, then what tells most; BF16 together, as weights are dropped after the last row of a precision.
PEERS = {
    REFERENCE: _pack("this pack, BF16, plain torch, SDPA", "bf16", engine="portable", attention="sdpa", compile="off"),
    "pack-bf16": _pack("this pack, BF16", "bf16"),
    OURS: _pack("this pack", offload="none"),
    "pack-streamed": _pack("this pack, streamed", offload="block"),
    "pack-no-sage": _pack("this pack, no SageAttention", hide=(SAGE,), offload="none"),
    "pack-int8": _pack("this pack, INT8", "int8", offload="none"),
    "comfyui-fast-sage-compile": _comfyui(
        "ComfyUI --fast, Sage, compile", *_FAST_SAGE, needs=(SAGE, "triton"), compile=True
    ),
    "lightx2v-sage": _lightx2v("LightX2V, Sage", SAGE, attention="sage_attn2"),
    "lightx2v-sage-compile": _lightx2v("LightX2V, Sage, compile", SAGE, attention="sage_attn2", compile=True),
    "comfyui-fast-sage-compile-bf16": _comfyui(
        "ComfyUI --fast, Sage, compile, BF16", *_FAST_SAGE, needs=(SAGE, "triton"), compile=True, compute="bfloat16"
    ),
    "lightx2v": _lightx2v("LightX2V"),
    "comfyui-fast-sage": _comfyui("ComfyUI --fast, Sage", *_FAST_SAGE, needs=(SAGE,)),
    "comfyui-fast": _comfyui("ComfyUI --fast", "--fast"),
    "comfyui": _comfyui("ComfyUI, FP8 weights"),
    "diffusers": _diffusers("diffusers, BF16"),
    "pack-portable": _pack("this pack, portable engine", engine="portable", offload="none"),
    "lightx2v-sage-streamed": _lightx2v("LightX2V, Sage, block offload", SAGE, attention="sage_attn2", offload="block"),
    "diffusers-compile": _diffusers("diffusers, BF16, compile_repeated_blocks", compile=True),
}


def main() -> int:
    arguments = parse_arguments()
    if arguments.child:
        return run_child(arguments)
    shape = latent_shape(arguments.width, arguments.height, arguments.frames)
    names = list(dict.fromkeys(arguments.peers))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        work = arguments.weights or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        # The first peer imports while this process makes what all of them share.
        first = next((name for name in names if all(map(is_there, PEERS[name].needs))), names[0])
        waiting = {first: start_child(first, work, Path(temporary))}
        load_template(work, arguments)
        title = f"{describe_run(arguments, shape, compute_device())}, {arguments.steps} steps"
        print(title, flush=True)
        rows = []
        for row in run_peers(names, waiting, work, Path(temporary), arguments):
            rows.append(row)
            print(json.dumps(row), flush=True)
            if arguments.out:
                with arguments.out.open("a") as file:
                    file.write(json.dumps(row | {"run": title}) + "\n")
    finish_rows(rows)
    print(table(rows))
    if arguments.plot:
        arguments.plot.write_text(draw(rows, title))
    return 0 if all(row.get("is_finite") for row in rows if "problem" not in row) else 1


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=tuple(PEERS), help="in this order")
    parser.add_argument(
        "--reference", choices=PEERS, default=REFERENCE, help=f"what `error` compares with ({REFERENCE})"
    )
    add_size_options(parser)
    parser.add_argument(
        "--weights", type=Path, help="keep the weights of all precisions in this folder, or find them there"
    )
    parser.add_argument("--limit", type=float, default=300.0, help="seconds a peer may take, loading included (300)")
    parser.add_argument("--time-limit", type=float, default=0.0, help="seconds after which no further peer is started")
    parser.add_argument("--overlap", action="store_true", help="start a peer's imports while the one before it runs")
    parser.add_argument("--out", type=Path, help="append the rows there as JSON lines, as they are done")
    parser.add_argument("--plot", type=Path, help="draw seconds a step there, as SVG")
    parser.add_argument("--child", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--row", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def run_child(arguments: argparse.Namespace) -> int:
    """Run one peer in this process; its row goes to --row as it grows, its latents beside that."""
    peer = PEERS[arguments.child]
    device = compute_device()
    cap_vram(arguments, device)
    task = make_task(arguments, arguments.weights, device)
    runner = importlib.import_module(f"lightx2v_pack.tools.bench.peer_{peer.runner}")
    runner.prepare(peer, task)
    wait_for_turn()
    clock = Clock(arguments.row, device)
    latents = runner.run(peer, task, clock)
    clock.write(is_finite=bool(latents.isfinite().all()))
    save_file({"latents": latents.float().contiguous()}, arguments.row.with_suffix(".safetensors"))
    sys.stdout.flush()
    # Some peers' threads and destructors take seconds, or hang.
    os._exit(0)


def run_peers(
    names: list[str], waiting: dict[str, Child], work: Path, temporary: Path, arguments: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Run the named peers one after the other, those in `waiting` are started already; yield their rows."""
    started = time.perf_counter()
    for position, name in enumerate(names):
        row = {"peer": name, "title": PEERS[name].title, "precision": PEERS[name].precision}
        missing = [what for what in PEERS[name].needs if not is_there(what)]
        if missing:
            yield row | {"problem": f"not installed: {', '.join(missing)}"}
            continue
        if arguments.time_limit and time.perf_counter() - started > arguments.time_limit:
            yield row | {"problem": "left out: time limit"}
            continue
        child = waiting.pop(name, None) or start_child(name, work, temporary)
        child.run()
        if arguments.overlap:
            later = next((other for other in names[position + 1 :] if all(map(is_there, PEERS[other].needs))), None)
            if later is not None:
                waiting[later] = start_child(later, work, temporary)
        yield row | finish_child(child, name, temporary, arguments)
        if not arguments.weights and PEERS[name].precision not in (PEERS[n].precision for n in names[position + 1 :]):
            drop_weights(work, PEERS[name].precision)
    for child in waiting.values():
        child.stop()


def is_there(what: str) -> bool:
    """Say whether a package, or a folder named by an environment variable, is installed."""
    if what == "CUDA":
        return torch.cuda.is_available()
    if what.isupper():
        return bool(os.environ.get(what)) and Path(os.environ[what]).is_dir()
    return importlib.util.find_spec(what) is not None


def start_child(name: str, work: Path, temporary: Path) -> Child:
    """Start a peer's process; it imports what it needs and waits."""
    command = [str(Path(__file__).resolve()), *sys.argv[1:]]
    command += ["--child", name, "--row", str(temporary / f"{name}.json"), "--weights", str(work)]
    # The first peer to compile a kernel pays for it; nothing is left from an earlier run.
    caches = {"TRITON_CACHE_DIR": str(temporary / "triton"), "TORCHINDUCTOR_CACHE_DIR": str(temporary / "inductor")}
    return Child(command, temporary / f"{name}.log", caches)


def finish_child(child: Child, name: str, temporary: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Wait for a peer; return its row, with the problem if it failed."""
    started = time.perf_counter()
    problem = child.wait(arguments.limit)
    file = temporary / f"{name}.json"
    row: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    row["wall_seconds"] = round(time.perf_counter() - started, 1)
    seconds = row.get("step_seconds") or []
    if seconds:
        later = sorted(seconds[1:] or seconds)
        row |= {"first_step": seconds[0], "step": later[len(later) // 2]}
    if problem:
        print("\n".join([f"--- {name}", *child.log_lines()[-30:]]), file=sys.stderr, flush=True)
        row["problem"] = problem
    elif name != arguments.reference:
        row |= compare(temporary, name, arguments.reference)
    return row


def compare(temporary: Path, name: str, reference: str) -> dict[str, float]:
    """Return how far a peer's latents are from the reference's; nothing where that did not run."""
    file = temporary / f"{reference}.safetensors"
    if not file.exists():
        return {}
    wanted = load_file(file)["latents"].double().flatten()
    got = load_file(temporary / f"{name}.safetensors")["latents"].double().flatten()
    return {
        "error": float((got - wanted).norm() / wanted.norm()),
        "cosine": float(torch.nn.functional.cosine_similarity(got, wanted, dim=0)),
    }


def finish_rows(rows: list[dict[str, Any]]) -> None:
    """Add the ratio to this pack's own row."""
    ours = next((row["step"] for row in rows if row["peer"] == OURS and "step" in row), None)
    for row in rows:
        if ours and "step" in row:
            row["ratio"] = row["step"] / ours


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a table in Markdown."""
    columns = {
        "precision": "", "attention": "", "compute": "", "load_seconds": ".1f", "first_step": ".2f", "step": ".3f",
        "ratio": ".2f", "allocated_gib": ".1f", "reserved_gib": ".1f", "error": ".4f", "cosine": ".5f",
    }  # fmt: skip
    names = {"load_seconds": "load s", "first_step": "first step s", "step": "s/step", "ratio": "times ours"}
    titles = ["peer", *(names.get(key, key.replace("_gib", " GiB")) for key in columns)]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for row in rows:
        cells = [format(row[key], form) if key in row else "" for key, form in columns.items()]
        problem = f" ({row['problem']})" if "problem" in row else ""
        lines.append(f"| {row['title']}{problem} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], title: str) -> str:
    """Return a chart of the seconds a step, fewest first."""
    done = sorted((row for row in rows if "step" in row), key=lambda row: row["step"])
    return plots.bars(title, [(row["title"], row["step"], row["peer"].startswith(OURS)) for row in done], "s/step")


if __name__ == "__main__":
    sys.exit(main())
