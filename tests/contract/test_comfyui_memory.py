"""Thirty prompts in a row in one real ComfyUI: nothing that they used stays behind.

Needs COMFYUI_DIR (and COMFYUI_PYTHON). On the CPU; on a GPU where the tests' torch finds one, which no other program
may use meanwhile; there with LightX2V's engine too where LIGHTX2V_DIR or a package has it.
"""

import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch
from lightx2v_pack.tools.make_tiny_checkpoint import TinySizes
from support import checkpoints
from support.comfy_server import ComfyServer, comfyui_dir, error_of
from support.prompts import sampler, size

HERE = Path(__file__).parent
HAS_GPU = torch.cuda.is_available()
NUM_RUNS = 30
# The first run is one prompt of so many graphs, with every mode, size, checkpoint, engine and node: libraries load,
# kernels compile, and allocators take what they keep. What it leaves is the floor for what is left after later runs, in
# each of which ComfyUI's history of prompts grows by 0.05 MB.
NUM_GRAPHS = 15
FIRST_RUN_SECONDS = 400
TRANSFORMERS = ("eight_bit.safetensors", "sixteen_bit.safetensors")
ENGINES = ("auto", "portable")
MODES = ("auto", "none", "block", "phase", "disk")
# The weights of one run would be seen: 14 MB and more beside 0.4 GB of a process without CUDA, else 160 MB and more
# beside some GB.
if HAS_GPU:
    # Widths that the kernels take, some thousand tokens.
    SIZES = TinySizes(num_layers=4, dim=1408, ffn_dim=4608, vae_dim=32)
    CLIPS = ((832, 480, 17), (480, 832, 9), (640, 640, 1))
else:
    SIZES = TinySizes(num_layers=4, dim=384, ffn_dim=1024)
    CLIPS = ((48, 32, 5), (64, 48, 5), (32, 32, 1))
FREE_EVERY = 7
# What Python's and torch's allocators may keep of what they were given back.
TOLERANCE = 0.01


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    comfyui_dir()
    if sys.platform != "linux":
        pytest.skip("memory is measured through /proc")
    folder = tmp_path_factory.mktemp("comfyui")
    for kind, name, file in (
        ("diffusion_models", TRANSFORMERS[0], checkpoints.single_file("fp8", sizes=SIZES)),
        ("diffusion_models", TRANSFORMERS[1], checkpoints.single_file("bf16", sizes=SIZES)),
        ("text_encoders", "umt5_xxl_fp16.safetensors", checkpoints.comfy_text_encoder(sizes=SIZES)),
        ("vae", "wan_2.1_vae.safetensors", checkpoints.vae(sizes=SIZES)),
    ):
        (folder / "models" / kind).mkdir(parents=True, exist_ok=True)
        (folder / "models" / kind / name).symlink_to(file)
    (folder / "scratch").mkdir()
    device = () if HAS_GPU else ("--cpu",)
    # One arena, so that what is free is given back to the system and can be measured.
    environment = {"TMPDIR": str(folder / "scratch"), "MALLOC_ARENA_MAX": "1"}
    with ComfyServer(folder, extra_nodes=(HERE / "probe_nodes",), device=device, environment=environment) as running:
        yield running


def first_prompt():
    """The graphs of the first runs in one prompt."""
    return {
        f"{number} {node}": {
            "class_type": each["class_type"],
            "inputs": {
                name: [f"{number} {value[0]}", value[1]] if isinstance(value, list) else value
                for name, value in each["inputs"].items()
            },
        }
        for number in range(NUM_GRAPHS)
        for node, each in prompt_of(number, f"first {number}").items()
    }


def prompt_of(number, name):
    """A whole run of our weights; ours or ComfyUI's own nodes, in turns, to encode, sample and decode.

    Size, mode, checkpoint and engine alternate, and every pair of two of them occurs.
    """
    offload = {
        "mode": MODES[number % len(MODES)],
        "vram_budget_gib": 0.0,
        "pinned_ram_limit_gib": 0.0,
        "vae_tiling": "auto",
    }
    transformer = {
        "transformer": TRANSFORMERS[number % len(TRANSFORMERS)],
        "engine": ENGINES[number // 2 % len(ENGINES)],
        "attention": "auto",
        "compile": "auto",
        "offload": ["offload", 0],
    }
    nodes = {
        "offload": ("LightX2VOffload", offload),
        "load": ("LightX2VLoadTransformer", transformer),
        "save": ("ProbeSave", {"value": ["decode", 0], "name": name}),
        **(_their_ends(number) if number // 3 % 3 == 2 else _our_ends(number)),
        **(_their_sampler(number) if number % 4 == 3 else {}),
    }
    prompt = {node: {"class_type": kind, "inputs": inputs} for node, (kind, inputs) in nodes.items()}
    return {"sample": sampler(number, steps=2)} | prompt | {"size": size(*CLIPS[number % len(CLIPS)])}


def _their_sampler(number):
    """ComfyUI's sampler and a node that clones the model; our VAE in ComfyUI's decode where it is ours."""
    settings = {"seed": number, "steps": 2, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    links = {"model": ["shift", 0], "positive": ["encode", 0], "negative": ["encode", 0], "latent_image": ["size", 0]}
    return {
        "shift": ("ModelSamplingSD3", {"model": ["load", 0], "shift": 5.0}),
        "sample": ("KSampler", settings | links),
        "decode": ("VAEDecode", {"samples": ["sample", 0], "vae": ["vae", 0]}),
    }


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


def clip_of(server, name):
    """Return the frames that a run saved."""
    return torch.load(server.output / f"{name}.pt", weights_only=True)


@dataclass(frozen=True)
class Held:
    """What a process holds; sizes in bytes."""

    ram: int
    """What is its own; files that it maps are not among it, as other processes may map them too."""
    pinned: int
    """RAM that torch has page-locked, in use or not."""
    vram: int
    """What torch has reserved."""
    card: int
    """VRAM in use by everybody: with CUDA's context, kernels and workspaces."""
    threads: int
    children: int
    files: int
    weight_files: int
    """Mapped files that are models."""
    temporary_files: int


def left_in(server):
    """Return what the server holds after /free, once that gets no less."""
    server.free(lambda: not server.get("/probe/handles"), unload_models=True, free_memory=True)
    deadline = time.monotonic() + 20
    left = held_by(server)
    while time.monotonic() < deadline:
        time.sleep(0.5)
        before, left = left, held_by(server)
        if before.ram - left.ram < 1e6 and (left.vram, left.files) == (before.vram, before.files):
            break
    return left


def held_by(server):
    """Return what the server holds now, less what is free inside it."""
    server.get("/probe/trim")
    memory = server.get("/probe/memory")
    # The server closes a connection a little after its answer.
    time.sleep(0.3)
    process = psutil.Process(server.pid)
    status = Path(f"/proc/{server.pid}/status").read_text()
    return Held(
        # Memory that CUDA has page-locked counts as shared.
        ram=sum(1024 * int(size) for size in re.findall(r"Rss(?:Anon|Shmem):\s+(\d+) kB", status)),
        **memory,
        threads=process.num_threads(),
        children=len(process.children(recursive=True)),
        files=process.num_fds(),
        weight_files=sum(Path(each.path).suffix in (".safetensors", ".pth") for each in process.memory_maps()),
        temporary_files=sum(1 for place in ("scratch", "temp") for _ in (server.folder / place).rglob("*")),
    )


def excess(left, floor):
    """Return the names of what is left and was not after the first run."""
    limits = {name: getattr(floor, name) * (1 + TOLERANCE) for name in ("ram", "pinned", "vram", "card")}
    limits |= {name: getattr(floor, name) for name in ("threads", "children", "files", "temporary_files")}
    return [name for name, limit in {**limits, "weight_files": 0}.items() if getattr(left, name) > limit]


@pytest.mark.slow
def test_thirty_runs_leave_nothing_behind(server):
    entry = server.wait(server.queue(first_prompt()), FIRST_RUN_SECONDS)
    assert entry["status"]["status_str"] == "success", error_of(entry)
    floor = left_in(server)
    print(f"\nafter the first run {floor}")
    excesses, different = {0: excess(floor, floor)}, []
    for number in range(1, NUM_RUNS):
        server.run(prompt_of(number, "run"))
        if number < NUM_GRAPHS and not torch.equal(clip_of(server, "run"), clip_of(server, f"first {number}")):
            different.append(number)
        if number % FREE_EVERY == 0 or number == NUM_RUNS - 1:
            left = left_in(server)
            print(f"after run {number + 1} {left}")
            excesses[number] = excess(left, floor)
    grown = [f"{', '.join(names)} after run {number + 1}" for number, names in excesses.items() if names]
    assert not grown, f"more than after the first run: {'; '.join(grown)}"
    assert not different, f"runs {different} made other frames than the same graphs in the first run"
