"""Thirty prompts in a row in one real ComfyUI: nothing that they used stays behind.

Needs COMFYUI_DIR (and COMFYUI_PYTHON). On the CPU; on a GPU where the tests' torch finds one.
"""

import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import checkpoints
import psutil
import pytest
import torch
from comfy_server import ComfyServer, comfyui_dir
from lightx2v_pack.tools.make_tiny_checkpoint import TinySizes

HERE = Path(__file__).parent
NUM_RUNS = 30
# In these every mode, size, checkpoint and node is used; libraries load, and allocators take what they keep. After them
# ComfyUI's history of prompts grows by 0.05 MB a run.
NUM_FIRST = 15
# Of these the latents are compared with those of the same runs in the end.
NUM_COMPARED = 3
# Weights of 14 MB: those of one run would be seen.
SIZES = TinySizes(num_layers=4, dim=384, ffn_dim=1024)
TRANSFORMERS = ("eight_bit.safetensors", "sixteen_bit.safetensors")
MODES = ("auto", "none", "block", "phase", "disk")
CLIPS = ((48, 32, 5), (64, 48, 5), (32, 32, 1))
FREE_EVERY = 7
# What Python's and torch's allocators may keep of what they were given back.
RAM_TOLERANCE = 0.01
VRAM_TOLERANCE = 0.01


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    comfyui_dir()
    if sys.platform != "linux":
        pytest.skip("memory is measured through /proc")
    folder = tmp_path_factory.mktemp("comfyui")
    for kind, name, file in (
        ("diffusion_models", TRANSFORMERS[0], checkpoints.single_file("fp8", sizes=SIZES)),
        ("diffusion_models", TRANSFORMERS[1], checkpoints.single_file("bf16", sizes=SIZES)),
        ("text_encoders", "umt5_xxl_fp16.safetensors", checkpoints.comfy_text_encoder()),
        ("vae", "wan_2.1_vae.safetensors", checkpoints.vae()),
    ):
        (folder / "models" / kind).mkdir(parents=True, exist_ok=True)
        (folder / "models" / kind / name).symlink_to(file)
    (folder / "scratch").mkdir()
    device = () if torch.cuda.is_available() else ("--cpu",)
    # One arena, so that what is free is given back to the system and can be measured.
    environment = {"TMPDIR": str(folder / "scratch"), "MALLOC_ARENA_MAX": "1"}
    with ComfyServer(folder, extra_nodes=(HERE / "probe_nodes",), device=device, environment=environment) as running:
        yield running


def prompt_of(number, name, mode, clip, transformer):
    """A whole run: ours to sample; ours or ComfyUI's own nodes, in turns, to encode and to decode."""
    width, height, num_frames = clip
    offload = {"mode": mode, "vram_budget_gib": 0.0, "pinned_ram_limit_gib": 0.0, "vae_tiling": "auto"}
    engine = {"engine": "auto", "attention": "auto", "compile": "off"}
    nodes = {
        "offload": ("LightX2VOffload", offload),
        "load": ("LightX2VLoadTransformer", {"transformer": transformer, **engine, "offload": ["offload", 0]}),
        "size": ("LightX2VEmptyLatent", {"width": width, "height": height, "num_frames": num_frames, "batch_size": 1}),
        "sample": (
            "LightX2VSampler",
            {
                "transformer": ["load", 0],
                "conditioning": ["encode", 0],
                "latent": ["size", 0],
                "seed": number,
                "method": "lcm",
                "steps": 2,
                "shift": 5.0,
            },
        ),
        "save": ("ProbeSave", {"value": ["decode", 0], "name": name}),
        **(_their_ends(number) if number % 3 == 2 else _our_ends(number)),
    }
    return {node: {"class_type": kind, "inputs": inputs} for node, (kind, inputs) in nodes.items()}


def _our_ends(number):
    return {
        "text encoder": ("LightX2VLoadTextEncoder", {"text_encoder": "umt5_xxl_fp16.safetensors", "tokenizer": "auto"}),
        "vae": ("LightX2VLoadVAE", {"vae": "wan_2.1_vae.safetensors"}),
        "encode": (
            "LightX2VTextEncode",
            {"text_encoder": ["text encoder", 0], "text": f"clip {number}", "device": "cpu"},
        ),
        "decode": ("LightX2VDecode", {"vae": ["vae", 0], "latent": ["sample", 0], "tiling": "off"}),
    }


def _their_ends(number):
    return {
        "clip": ("CLIPLoader", {"clip_name": "umt5_xxl_fp16.safetensors", "type": "wan"}),
        "vae": ("VAELoader", {"vae_name": "wan_2.1_vae.safetensors"}),
        "encode": ("CLIPTextEncode", {"clip": ["clip", 0], "text": f"clip {number}"}),
        "decode": ("VAEDecode", {"samples": ["sample", 0], "vae": ["vae", 0]}),
    }


def run(server, number, name):
    """Run the prompt of a number: size, mode and checkpoint alternate, and every pair of them occurs."""
    mode, clip = MODES[number % len(MODES)], CLIPS[number % len(CLIPS)]
    server.run(prompt_of(number, name, mode, clip, TRANSFORMERS[number % len(TRANSFORMERS)]))
    return torch.load(server.output / f"{name}.pt", weights_only=True)


def free(server):
    """Do what Unload Models and Execution Cache does, and wait until it is done."""
    server.post("/free", {"unload_models": True, "free_memory": True})
    deadline = time.monotonic() + 20
    while server.get("/probe/handles") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert server.get("/probe/handles") == []


@dataclass(frozen=True)
class Held:
    """What a process holds."""

    ram: int
    """Bytes that are its own; files that it maps are not among them, as other processes may map them too."""
    weight_files: int
    """Mapped files that are models."""
    vram: int
    threads: int
    files: int
    temporary_files: int


def held_by(server):
    """Return what the server holds after /free."""
    free(server)
    server.get("/probe/trim")
    process = psutil.Process(server.pid)
    status = Path(f"/proc/{server.pid}/status").read_text()
    device = server.get("/system_stats")["devices"][0]
    return Held(
        ram=1024 * int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]),
        weight_files=sum(Path(each.path).suffix in (".safetensors", ".pth") for each in process.memory_maps()),
        vram=device["torch_vram_total"] if device["type"] == "cuda" else 0,
        threads=process.num_threads(),
        files=process.num_fds(),
        temporary_files=sum(1 for place in ("scratch", "temp") for _ in (server.folder / place).rglob("*")),
    )


@pytest.mark.slow
def test_thirty_runs_leave_nothing_behind(server):
    results = []
    for number in range(NUM_RUNS):
        results.append(run(server, number, "run"))
        if number == NUM_FIRST - 1:
            floor = held_by(server)
        elif number % FREE_EVERY == FREE_EVERY - 1:
            free(server)
    left = held_by(server)
    print(f"after {NUM_FIRST} runs {floor}, after {NUM_RUNS} {left}")
    assert left.ram < floor.ram * (1 + RAM_TOLERANCE)
    assert left.weight_files == 0
    assert left.vram <= floor.vram * (1 + VRAM_TOLERANCE)
    assert left.threads <= floor.threads
    assert left.files <= floor.files
    assert left.temporary_files <= floor.temporary_files
    for number in range(NUM_COMPARED):
        assert torch.equal(run(server, number, "again"), results[number])
