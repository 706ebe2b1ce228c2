"""Take the pictures of the help pages again, in a real ComfyUI and a real browser.

    COMFYUI_DIR=PATH COMFYUI_PYTHON=PATH python tools pictures --node-modules PATH

Needs Chromium and a folder of node modules with playwright-core. The server runs on a tiny checkpoint; the plan lines
show what the planner says today of the real one on the card that a template is for.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ...engine.backends.choose import Wanted, choose
from ...engine.backends.table import Machine
from ...engine.checkpoints.formats import WanArchitecture
from ...engine.checkpoints.published import ARCHITECTURE, PUBLISHED
from ...engine.checkpoints.transformers import TransformerFiles
from ...engine.constants import DISTILL_STEPS, GIB
from ...engine.handles import weight_sizes
from ...engine.memory.clip import Clip
from ...engine.memory.needs import Budget
from ...engine.memory.plan import Wish, plan_run
from ...engine.panel.forecast import Forecast, Share, describe_transformer
from ...engine.panel.speed import History, setup_of
from ...engine.sentences import LANGUAGES, translated

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from support import checkpoints, examples, loras  # noqa: E402
from support.comfy_server import ComfyServer  # noqa: E402
from support.wan_14b import WAN_I2V_14B, WAN_I2V_A14B, make_experts, make_files, make_sizes  # noqa: E402

LORA = "wan21_14b_watercolour_rank32.safetensors"
# An RTX 40 with Triton.
MACHINE = Machine(capability=(8, 9), system="linux", torch="2.11.0", packages={"triton": "3.6.0"})


def plan(
    computer: tuple[str, float, float],
    *,
    precision: str = "int8",
    size: tuple[int, int] = (832, 480),
    batch: int = 1,
    tiling: str = "auto",
    architecture: WanArchitecture = ARCHITECTURE,
    files: TransformerFiles | None = None,
) -> dict[str, Any]:
    """Return the answer of /lightx2v/plan for 81 frames.

    Args:
        computer: card, and GiB that can be had of its VRAM and of RAM.
        precision: fp8 | int8 | bf16.
        size: width and height.
        batch: number of videos.
        tiling: of the decode, as in the template.
        architecture: of the model that it loads.
        files: the model itself, where it is more than one transformer.
    """
    card, vram, ram = computer
    clip = Clip(width=size[0], height=size[1], num_frames=81, batch=batch)
    backends = choose(MACHINE, Wanted(precision=precision, dim=ARCHITECTURE.dim, ffn_dim=ARCHITECTURE.ffn_dim))
    text_encoder = next(part for part in PUBLISHED[precision].parts if part.what == "text encoder")
    files = files or make_files(precision, architecture)
    sizes = make_sizes(clip, backends, files.format.architecture)
    sizes = replace(sizes, weights=weight_sizes(files), text_encoder_bytes=text_encoder.num_bytes)
    budget = Budget(vram=int(vram * GIB), ram=int(ram * GIB))
    found = plan_run(sizes, budget, Wish(tiling=tiling))
    is_tiled = found.decode.tile is not None
    setup = setup_of(backends, card, ARCHITECTURE, found.placement.mode, clip.tokens)
    duration = History().predict(setup, clip, DISTILL_STEPS, is_tiled=is_tiled)
    answer = Forecast(
        ok=True,
        sentence="Fits.",
        detected=describe_transformer(files, backends.numbers),
        engine=backends.engine,
        attention=backends.attention.name,
        matmul=backends.matmul.name,
        offload=found.placement.mode,
        resident_blocks=found.placement.resident_blocks,
        num_blocks=files.format.architecture.num_layers,
        is_tiled=is_tiled,
        vram=Share(needed=found.vram, available=int(vram * GIB)),
        ram=Share(needed=found.ram, available=budget.ram),
        seconds=duration.seconds,
        step_seconds=duration.step_seconds,
        basis=duration.basis,
    )
    return asdict(answer)


# 32 GB of RAM, less what the system and ComfyUI take.
RTX_4070 = ("RTX 4070", 11.0, 26.0)
PLANS = {
    "1 Wan text to video": plan(RTX_4070),
    "2 Wan image to video": plan(RTX_4070, architecture=WAN_I2V_14B),
    "3 Wan2.2 first and last frame": plan(RTX_4070, files=make_experts("int8", WAN_I2V_A14B)),
    "4 Wan with native nodes": plan(RTX_4070),
    "5 Wan with LoRAs": plan(RTX_4070, precision="fp8"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python tools pictures", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--node-modules", type=Path, required=True, metavar="DIR")
    parser.add_argument("--chromium", default=shutil.which("chromium"), metavar="FILE")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder, ComfyServer(Path(folder, "comfy")) as server:
        examples.write_models(server.models)
        (server.models / "loras").mkdir(exist_ok=True)
        loras.write(server.models / "loras" / LORA, loras.draw(checkpoints.transformer_weights(), rank=32, alpha=16.0))
        config = {
            "nodeModules": str(options.node_modules.resolve()),
            "chromium": options.chromium,
            "url": server.url,
            "root": str(ROOT),
            "plans": {language: translated(PLANS, language) for language in LANGUAGES},
        }
        file = Path(folder, "config.json")
        file.write_text(json.dumps(config), encoding="utf-8")
        return subprocess.run(["node", str(Path(__file__).with_name("take.mjs")), str(file)]).returncode
