"""Compare two commits on this machine, bit for bit: python tools net OLD NEW (--help lists the rest)."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ..arguments import whole
from . import compare, models

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


def main(words: list[str]) -> int:
    """Return 0 where nothing differs but what is expected, 1 where something does, 2 where a side did not finish."""
    arguments = _parse(words)
    expected = [compare.Expected.parse(text) for text in arguments.expect]
    with tempfile.TemporaryDirectory(prefix="lightx2v-net-") as temporary:
        folder = arguments.keep or Path(temporary)
        start = time.perf_counter()
        job = _write_models(folder / "models", arguments)
        print(f"models: {time.perf_counter() - start:.0f} s", flush=True)
        start = time.perf_counter()
        commits = {"old": arguments.old, "new": arguments.new}
        started = {
            side: _start(side, job | {"root": str(_check_out(commit, folder / side))}, folder, arguments)
            for side, commit in commits.items()
        }
        codes = {side: process.wait() for side, process in started.items()}
        print(f"both sides: {time.perf_counter() - start:.0f} s", flush=True)
        for side in filter(codes.get, codes):
            print((folder / f"{side}.log").read_text(encoding="utf-8")[-4000:])
            print(f"The {side} side ended with {codes[side]}; above is the end of what it printed.")
            return 2
        limit = 10**6 if arguments.all else 5
        table, is_fine = compare.describe(folder / "old.out", folder / "new.out", expected, limit=limit)
        print(table)
        return 0 if is_fine else 1


def _parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python tools net", description="Compare two commits bit for bit.")
    parser.add_argument("old", help="a commit, or a folder that holds the pack")
    parser.add_argument("new", help="the same; . is the working tree")
    parser.add_argument("--quick", action="store_true", help="the most telling cases only")
    parser.add_argument("--only", nargs="+", default=[], metavar="CASE", help="beginnings or patterns of case names")
    parser.add_argument(
        "--expect",
        action="append",
        default=[],
        metavar="CASE[:LIMIT]",
        help="pattern of cases that may differ, tensors by at most LIMIT",
    )
    parser.add_argument("--all", action="store_true", help="show every difference")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="an empty folder for checkpoints and results, kept")
    parser.add_argument("--gpu", action="store_true", help="few wide blocks on a card, instead of all else on the CPU")
    wide = parser.add_argument_group("with --gpu")
    wide.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: to see that it works")
    wide.add_argument("--dim", type=whole(), default=5120)
    wide.add_argument("--ffn-dim", type=whole(), default=13824)
    wide.add_argument("--layers", type=whole(), default=4)
    wide.add_argument("--text-dim", type=whole(), default=4096)
    wide.add_argument("--vae-dim", type=whole(), default=96)
    wide.add_argument("--size", default="832x480x5", metavar="WxHxF")
    return parser.parse_args(words)


def _check_out(commit: str, folder: Path) -> Path:
    """Return a folder with the files of a commit; a folder is taken as it is."""
    if Path(commit).is_dir():
        return Path(commit).resolve()
    folder.mkdir()
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", commit], check=True, stdout=subprocess.PIPE).stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    return folder


def _write_models(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Write checkpoints; returns what both sides are told."""
    job = {"models": str(folder), "only": arguments.only, "quick": arguments.quick}
    if arguments.gpu:
        sizes = {
            name: getattr(arguments, name) for name in ("dim", "ffn_dim", "layers", "text_dim", "vae_dim", "device")
        }
        models.write_wide(folder / "wide", **sizes)
        return job | {"size": [int(each) for each in arguments.size.split("x")], "text_dim": arguments.text_dim}
    models.write_tiny(folder / "tiny")
    models.write_big(folder / "big")
    models.write_broken(folder / "broken")
    return job


def _start(side: str, job: dict[str, Any], folder: Path, arguments: argparse.Namespace) -> subprocess.Popen[bytes]:
    (folder / f"{side}.json").write_text(json.dumps(job | {"out": str(folder / f"{side}.out")}), encoding="utf-8")
    environment = os.environ | {"PYTHONHASHSEED": "0"}
    if not arguments.gpu or arguments.device == "cpu":
        environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    elif "LIGHTX2V_DIR" in environment:
        places = (environment.get("PYTHONPATH"), environment["LIGHTX2V_DIR"])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, places))
    command = [sys.executable, str(HERE / "worker.py"), str(folder / f"{side}.json")]
    with (folder / f"{side}.log").open("wb") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
