"""Take the pictures of the templates and of the help pages again, in a real ComfyUI and a real browser.

    COMFYUI_DIR=PATH COMFYUI_PYTHON=PATH python tools/pictures/take.py --node-modules PATH

Needs Chromium and a folder of node modules with playwright-core. The server runs on a tiny checkpoint; the plan lines
show what the forecast says for the real one on the card that a template is for.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import conftest  # noqa: E402, F401 - registers the pack
import examples  # noqa: E402
from comfy_server import ComfyServer  # noqa: E402

GIB = 1024**3


def plan(
    engine_line: tuple[str, str, str, str], vram: tuple[float, float], ram: tuple[float, float], **facts: Any
) -> dict[str, Any]:
    """Return an answer of /lightx2v/plan.

    Args:
        engine_line: what was detected, attention, matmul, offload mode.
        vram: GiB needed and there.
        ram: GiB needed and there.
        facts: further fields.
    """
    detected, attention, matmul, offload = engine_line
    needs = {
        name: {"needed": int(needed * GIB), "available": int(there * GIB)}
        for name, (needed, there) in (("vram", vram), ("ram", ram))
    }
    fixed = {"ok": True, "sentence": "Fits.", "engine": "lightx2v", "reasons": [], "missing": [], "is_tiled": False}
    line = {"detected": detected, "attention": attention, "matmul": matmul, "offload": offload}
    return {**fixed, **line, **needs, "basis": "estimate", "step_seconds": None, "tokens": 0, **facts}


FP8, INT8, BF16 = ("fp8, 40 blocks, 14 GiB", "int8, 40 blocks, 14 GiB", "bf16, 40 blocks, 26.6 GiB")
# From engine/forecast.py for RTX 4070, 4060, 4060 Ti 16 GB, 4090, 4070 SUPER and 4090, with 32 or 64 GB of RAM.
RTX_4070 = plan((FP8, "sage_triton", "scaled_mm", "block"), (10.5, 11.0), (8.7, 26.0), seconds=90)
RTX_4090 = plan((FP8, "sage_triton", "scaled_mm", "none"), (17.4, 23.0), (4.7, 26.0), seconds=32)
PLANS = {
    "lightx2v_text_to_video_480p": RTX_4070,
    "lightx2v_with_native_nodes": RTX_4070,
    "lightx2v_8gb_480p": plan((FP8, "sage_triton", "scaled_mm", "block"), (6.9, 7.3), (12.3, 26.0), seconds=173),
    "lightx2v_16gb_720p": plan((FP8, "sage_triton", "scaled_mm", "block"), (14.5, 15.0), (10.3, 26.0), seconds=390),
    "lightx2v_24gb_four_takes": RTX_4090 | {"seconds": 113},
    "lightx2v_bf16_offload": plan((BF16, "sage_triton", "bf16", "block"), (10.1, 11.0), (22.7, 56.0), seconds=99),
    "lightx2v_int8_q8_kernels": plan(
        (INT8, "sage_triton", "int_triton", "block"), (10.5, 11.0), (8.7, 26.0), seconds=56
    ),
    "lightx2v_prompt_list": RTX_4090,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--node-modules", type=Path, required=True, metavar="DIR")
    parser.add_argument("--chromium", default=shutil.which("chromium"), metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ComfyServer(Path(folder, "comfy")) as server:
        examples.write_models(server.models)
        config = {
            "nodeModules": str(options.node_modules.resolve()),
            "chromium": options.chromium,
            "url": server.url,
            "root": str(ROOT),
            "templates": sorted(path.stem for path in examples.FOLDER.glob("*.json")),
            "plans": PLANS,
        }
        file = Path(folder, "config.json")
        file.write_text(json.dumps(config), encoding="utf-8")
        subprocess.run(["node", str(Path(__file__).with_name("take.mjs")), str(file)], check=True)


if __name__ == "__main__":
    main()
