"""Measure what fits into --minutes: one file of rows a benchmark, in the order of what they tell.

Each may take the minutes of its line below, more of them where --minutes is more than all together. What there is no
time for is left out, and what failed is a row that says why. One set of weights serves all. Ten minutes go to the
first three, and to the others what these leave.

    COMFYUI_DIR=... LIGHTX2V_DIR=... python tools bench all --minutes 10 --out docs/measurements/$(date +%F)
    python tools bench all --parts prompt_to_frames kernels vae text loading --out docs/measurements/$(date +%F)
    python tools bench all --minutes 5 --out rows --small      # any CPU, to see that it works
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ..arguments import number
from ..saving import problem_of_folder
from .harness import TOOLS

_CLIP = "--width 64 --height 64 --frames 5"
_MODEL = "--dim 256 --ffn-dim 512 --layers 2"
# Command, minutes, its options, and those that make it small enough for a CPU.
PLAN = (
    ("peers", 5.0, "--keep fp8", _CLIP),
    ("grid", 1.6, "--precision fp8 --modes none block 10 --frames 17 81", "--sizes 64x64 --frames 5 9"),
    ("caps", 3.0, "--sizes 832x480 --alternatives block", "--sizes 64x64 --frames 5 --caps 8"),
    ("prompt_to_frames", 1.0, "", _CLIP),
    ("kernels", 1.0, "", f"{_CLIP} --tokens 64 --error-tokens 48 --seconds 0.001"),
    ("vae", 1.0, "", "--sizes 64x64 --frames 5 --tiles 32"),
    ("text", 1.0, "--device gpu", "--device cpu"),
    ("loading", 2.0, "", "--threads 2"),
)
# Below this nothing is started: imports alone take as long.
_LEAST_SECONDS = 20
# To end by itself after its time is up.
_GRACE_SECONDS = 20


def main(words: list[str]) -> int:
    """Run the benchmarks; returns 1 where one missed a target or failed."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python tools bench all", description=__doc__, formatter_class=form)
    names = [name for name, *_ in PLAN]
    parser.add_argument("--minutes", type=number(), default=10.0, help="for all (10)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the rows, NAME.jsonl each")
    parser.add_argument("--parts", nargs="+", choices=names, default=names)
    parser.add_argument("--small", action="store_true", help="tiny sizes, for any CPU")
    parser.add_argument("--weights", type=Path, help="keep the weights in this folder, or find them there")
    options = parser.parse_args(words)
    problem = problem_of_folder(options.out, "--out")
    if problem:
        parser.error(problem)
    options.out.mkdir(parents=True, exist_ok=True)
    end = time.perf_counter() + 60 * options.minutes
    chosen = [entry for entry in PLAN if entry[0] in options.parts]
    results: dict[str, str] = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        for name, minutes, full, small in chosen:
            wanted = 60 * minutes * max(1.0, options.minutes / sum(entry[1] for entry in chosen))
            seconds = min(wanted, end - time.perf_counter() - _GRACE_SECONDS)
            if seconds < _LEAST_SECONDS:
                results[name] = "left out, no time"
                continue
            given = f"{full} {small} {_MODEL}" if options.small else full
            command = [sys.executable, str(TOOLS), "bench", name, *given.split(), "--time-limit", f"{seconds:.0f}"]
            command += ["--weights", str(options.weights or temporary), "--folder", temporary]
            command += ["--out", str(options.out / f"{name}.jsonl")]
            print(f"\n=== {name}, {seconds:.0f} s", flush=True)
            process = subprocess.Popen(command)
            try:
                results[name] = f"ended with {process.wait(seconds + _GRACE_SECONDS)}"
            except subprocess.TimeoutExpired:
                results[name] = "stopped, no time"
            finally:
                process.terminate()
                process.wait()
    print("", *(f"{name}: {result}" for name, result in results.items()), sep="\n")
    return int(any(not result.startswith(("ended with 0", "left out")) for result in results.values()))
