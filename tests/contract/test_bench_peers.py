"""All that `python tools bench peers` compares compute the same, for every kind of model, on tiny weights on the CPU.

ComfyUI needs COMFYUI_DIR (and COMFYUI_PYTHON), LightX2V LIGHTX2V_DIR. Differences are those of the error column.
"""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from lightx2v_pack.tools.bench import harness, peer_diffusers, peer_lightx2v, peer_pack, peers
from lightx2v_pack.tools.bench.peer import Clock, Peer, make_image
from lightx2v_pack.tools.bench.weights import KINDS
from support import lightx2v_cpu
from support.comfy_server import comfyui_dir, comfyui_python

ROOT = Path(__file__).resolve().parents[2]
SIZES = "--dim 256 --ffn-dim 512 --layers 2 --width 64 --height 64 --frames 5"
# Two implementations of BF16; ComfyUI with a scale a tensor, where ours has one a row.
BFLOAT16, FP8 = 0.02, 0.045
IMAGE_KINDS = [kind for kind in KINDS if kind != "t2v"]


@pytest.fixture
def latents(tmp_path):
    """latents(runner, kind) -> what it ends with in BF16."""
    words = [*SIZES.split(), "--weights", str(tmp_path), "--row", str(tmp_path / "row.json")]
    bench = harness.Bench("peers", words, harness.parse("peers", peers, words), tmp_path)

    def call(runner, kind):
        options = dict(peers.PEERS[peers.REFERENCE].options) if runner is peer_pack else {}
        peer = Peer(title="", runner="", precision="bf16", options=options, kind=kind)
        found = runner.run(peer, bench, Clock(bench.options.row, bench.device))
        assert len(json.loads(bench.options.row.read_text())["step_seconds"]) == 4
        return found

    return call


def difference(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("kind", KINDS)
def test_diffusers(latents, kind):
    pytest.importorskip("diffusers")
    assert difference(latents(peer_diffusers, kind), latents(peer_pack, kind)) < BFLOAT16


@pytest.mark.parametrize("kind", KINDS)
def test_lightx2v(latents, kind, monkeypatch):
    monkeypatch.setenv("LIGHTX2V_DIR", str(lightx2v_cpu.source_folder_for_cpu()))
    lightx2v_cpu.import_lightx2v()
    assert difference(latents(peer_lightx2v, kind), latents(peer_pack, kind)) < BFLOAT16


def test_comfyui(tmp_path):
    out = tmp_path / "rows.jsonl"
    command = [comfyui_python(), "tools", "bench", "peers", "--kind", *KINDS, *SIZES.split()]
    command += ["--peers", "pack-bf16-sdpa", "pack", "comfyui", "--folder", str(tmp_path), "--out", str(out)]
    environment = {**os.environ, "COMFYUI_DIR": str(comfyui_dir()), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=1800)

    assert done.returncode == 0, done.stderr[-2000:]
    rows = {(row["part"], row["peer"]): row for row in map(json.loads, out.read_text().splitlines())}
    for kind in KINDS:
        part = "peers" if kind == "t2v" else f"peers-{kind}"
        assert 0 < rows[part, "comfyui"]["error"] < FP8, kind
        assert 0 < rows[part, "pack"]["error"] < FP8, kind


@pytest.mark.parametrize("kind", IMAGE_KINDS)
def test_an_image_that_is_not_the_same_would_be_seen(latents, kind, monkeypatch):
    """In the error column."""
    wanted = latents(peer_pack, kind)
    others = {
        "no mask": lambda image: replace(image, is_given=0 * image.is_given),
        "mask inverted": lambda image: replace(image, is_given=1 - image.is_given),
        "no image": lambda image: replace(image, latents=0 * image.latents),
        "other rows": lambda image: replace(image, rows=image.rows.flip(0, 1)),
    }
    if not KINDS[kind].get("image_dim"):
        del others["other rows"]
    for name, change in others.items():
        monkeypatch.setattr(peer_pack, "make_image", lambda *words, change=change: change(make_image(*words)))
        assert difference(latents(peer_pack, kind), wanted) > FP8, name
