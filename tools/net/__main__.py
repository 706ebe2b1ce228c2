"""Compare two commits on this machine, bit for bit: python tools/net OLD NEW (--help lists the rest)."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


def main() -> int:
    """Return 0 where nothing differs but what is expected, 1 where something does, 2 where a side did not finish."""
    arguments = _parse()
    from lightx2v_pack.tools.net import compare, models

    expected = [compare.Expected.parse(text) for text in arguments.expect]
    with tempfile.TemporaryDirectory(prefix="lightx2v-net-") as temporary:
        folder = arguments.keep or Path(temporary)
        start = time.perf_counter()
        job: dict[str, Any] = {"models": str(folder / "models"), "only": arguments.only, "quick": arguments.quick}
        if arguments.gpu:
            job |= {"size": [int(each) for each in arguments.size.split("x")], "text_dim": arguments.text_dim}
            models.write_wide(
                folder / "models" / "wide",
                dim=arguments.dim,
                ffn_dim=arguments.ffn_dim,
                layers=arguments.layers,
                text_dim=arguments.text_dim,
                vae_dim=arguments.vae_dim,
                device=arguments.device,
            )
        else:
            models.write_tiny(folder / "models" / "tiny")
            models.write_big(folder / "models" / "big")
            models.write_broken(folder / "models" / "broken")
        print(f"models: {time.perf_counter() - start:.0f} s", flush=True)
        sides = {
            side: _check_out(commit, folder / side) for side, commit in (("old", arguments.old), ("new", arguments.new))
        }
        start = time.perf_counter()
        started = [_start(side, job | {"root": str(root)}, folder, arguments) for side, root in sides.items()]
        for _, process in started:
            process.wait()
        print(f"both sides: {time.perf_counter() - start:.0f} s", flush=True)
        for side, process in started:
            if process.returncode:
                print((folder / f"{side}.log").read_text(encoding="utf-8")[-4000:])
                print(f"The {side} side ended with {process.returncode}; above is the end of what it printed.")
                return 2
        limit = 10**6 if arguments.all else 5
        table, is_fine = compare.describe(folder / "old.out", folder / "new.out", expected, limit=limit)
        print(table)
        return 0 if is_fine else 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python tools/net", description="Compare two commits bit for bit.")
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
    wide.add_argument("--dim", type=int, default=5120)
    wide.add_argument("--ffn-dim", type=int, default=13824)
    wide.add_argument("--layers", type=int, default=4)
    wide.add_argument("--text-dim", type=int, default=4096)
    wide.add_argument("--vae-dim", type=int, default=96)
    wide.add_argument("--size", default="832x480x5", metavar="WxHxF")
    return parser.parse_args()


def _check_out(commit: str, folder: Path) -> Path:
    """Return a folder with the files of a commit; a folder is taken as it is."""
    if Path(commit).is_dir():
        return Path(commit).resolve()
    folder.mkdir()
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", commit], check=True, stdout=subprocess.PIPE).stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    return folder


def _start(
    side: str, job: dict[str, Any], folder: Path, arguments: argparse.Namespace
) -> tuple[str, subprocess.Popen[bytes]]:
    (folder / f"{side}.json").write_text(json.dumps(job | {"out": str(folder / f"{side}.out")}), encoding="utf-8")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    if not arguments.gpu or arguments.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    elif environment.get("LIGHTX2V_DIR"):
        environment["PYTHONPATH"] = os.pathsep.join(
            filter(None, (environment.get("PYTHONPATH"), environment["LIGHTX2V_DIR"]))
        )
    command = [sys.executable, str(HERE / "worker.py"), str(folder / f"{side}.json")]
    with (folder / f"{side}.log").open("wb") as log:
        return side, subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)


if __name__ == "__main__":
    # Python puts this folder first on the path, where its modules would hide others of their names.
    del sys.path[0]
    # The repository root is the pack; under a name of its own its relative imports work.
    pack = types.ModuleType("lightx2v_pack")
    pack.__path__ = [str(ROOT)]
    sys.modules["lightx2v_pack"] = pack
    sys.exit(main())
