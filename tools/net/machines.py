"""Plans and the doctor's findings on pretended machines: what torch, psutil and others say is made up from a seed.

Only foreign packages are made up, so that any commit of the pack sees the same machine.
"""

from __future__ import annotations

import importlib.machinery
import io
import platform
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import psutil
import torch

from . import reach
from .pack import Pack
from .record import Record

GIB = 2**30
# Name after "NVIDIA ", compute capability, GiB.
CARDS = (
    ("GeForce RTX 3060", (8, 6), 12), ("GeForce RTX 3070", (8, 6), 8), ("GeForce RTX 3090", (8, 6), 24),
    ("GeForce RTX 4060", (8, 9), 8), ("GeForce RTX 4070 Ti SUPER", (8, 9), 16), ("GeForce RTX 4090", (8, 9), 24),
    ("GeForce RTX 5060 Ti", (12, 0), 16), ("GeForce RTX 5090", (12, 0), 32), ("GeForce RTX 2080 Ti", (7, 5), 11),
    ("GeForce GTX 1060", (6, 1), 6), ("A100-SXM4-40GB", (8, 0), 40), ("H100 80GB HBM3", (9, 0), 80),
    ("H200", (9, 0), 141), ("B200", (10, 0), 180), ("GeForce RTX 4060", (8, 9), 8), None,
)  # fmt: skip
# Import name and versions; "" is installed without a version.
PACKAGES = {
    "triton": ("3.4.0", "2.3.1"), "sageattention": ("2.2.0", "1.0.6", ""), "flash_attn": ("2.8.3", "1.0.9"),
    "flash_attn_interface": ("3.0.0b1",), "q8_kernels": ("0.0.5",), "sgl_kernel": ("0.3.4",), "vllm": ("0.11.0",),
    "lightx2v": ("0.1.0",), "lightx2v_platform": ("0.1.0",), "loguru": ("0.7.3",), "gguf": ("0.17.1",),
    "imageio": ("2.37.0",), "imageio_ffmpeg": ("0.6.0",), "ftfy": ("6.3.1",),
}  # fmt: skip
BROKEN = "broken"
SIZES = (
    (832, 480, 81), (832, 480, 81), (832, 480, 81), (1280, 720, 81), (1280, 720, 81), (480, 832, 81), (832, 480, 161),
    (640, 640, 33), (320, 192, 17), (16, 16, 1), (1920, 1088, 121), (4096, 2304, 401), (833, 480, 80),
)  # fmt: skip
CHECKPOINTS = ("wan",) * 6 + ("wan/distill_fp8", "alone.safetensors", "gone")
# What the editor may add to a question, beside the model and the size.
OPTIONS: dict[str, Sequence[Any]] = {
    "engine": ("auto", "lightx2v", "portable"), "compile": ("auto", "on", "off"), "vae_tiling": ("auto", "on", "off"),
    "offload": ("auto", "none", "block", "phase", "disk"), "vram_budget_gib": (0, 2, 6.5, 20), "batch": (1, 2, 7),
    "steps": (1, 4, 8), "uses_text_encoder": ("0", "1"), "uses_vae": ("0", "1"),
}  # fmt: skip


def draw_machine(rng: random.Random, system: str) -> dict[str, Any]:
    """Return a made-up machine; shares are of what there is in all."""

    def maybe(chance: float, value: Any, other: Any) -> Any:
        return value if rng.random() < chance else other

    share = rng.choice((0.0, 0.3, 0.6, 1.0))
    return {
        "system": system,
        "card": rng.choice(CARDS),
        "free_vram": rng.uniform(0.3, 1.0),
        "reserved_gib": maybe(0.3, rng.uniform(0, 4), 0.0),
        "allocated": rng.random(),
        "fraction": maybe(0.15, rng.uniform(0.3, 1.0), 1.0),
        "ram": (rng.choice((8, 16, 32, 48, 64, 128)), rng.uniform(0.3, 0.95), maybe(0.2, rng.choice((4, 24)), None)),
        "packages": {name: rng.choice((*each, BROKEN)) for name, each in PACKAGES.items() if rng.random() < share},
        "torch": rng.choice(("2.3.1+cu121", "2.7.1+cu128", "2.10.0+cu130", "2.9.0")),
        "has_driver": rng.random() < 0.8,
        "disk_gib": rng.choice((3, 23, 500)),
        "vram_state": maybe(0.4, rng.choice(("LOW_VRAM", "NO_VRAM", "HIGH_VRAM")), "NORMAL_VRAM"),
        "reserve_vram": maybe(0.2, rng.choice((0.0, 0.5, 3.0)), None),
        "is_pinning_disabled": rng.random() < 0.1,
        "max_pinned_gib": maybe(0.2, rng.uniform(1, 40), -1),
        "is_cpu_asked_for": rng.random() < 0.05,
    }


def draw_question(rng: random.Random, attentions: Sequence[str]) -> dict[str, Any]:
    """Return what the editor may ask the plan."""
    question: dict[str, Any] = dict(zip(("width", "height", "frames"), rng.choice(SIZES), strict=True))
    if rng.random() < 0.15:
        question["transformer"] = rng.choice(("alone.safetensors", "wan/distill_models"))
    else:
        question["checkpoint"] = rng.choice(CHECKPOINTS)
        question["precision"] = rng.choice(("auto", "fp8", "int8", "bf16"))
    options = OPTIONS | {"attention": attentions}
    return question | {name: rng.choice(values) for name, values in options.items() if rng.random() < 0.3}


def run(pack: Pack, record: Record, big: Path, tiny: Path, *, quick: bool) -> None:
    """Ask the editor's routes on many machines of both systems.

    Args:
        big: models of the published sizes, for plans.
        tiny: others, for the doctor, who reads them all each time.
    """
    with mock.patch.object(sys, "platform", "win32"):
        # What depends on the system may be decided when a module is imported.
        windows = Pack(pack.root, "lightx2v_pack_on_windows")
    attentions = pack.options("LoadTransformer", "attention")
    for system, side in (("linux", pack), ("win32", windows)):
        for number in range(30 if quick else 250):
            rng = random.Random(f"{system} {number}")
            name, machine = f"{system}-{number}", draw_machine(rng, system)
            with pretend(machine):
                reach.forget_answers(side.name)
                side.use_models(tiny)
                record.case(f"doctor/{name}", lambda: {"of": machine, **side.ask("doctor")})  # noqa: B023 - runs now
                side.use_models(big)
                for index in range(4):
                    asked = draw_question(rng, attentions)
                    record.case(f"plan/{name}-{index}", lambda: {"of": asked, **side.ask("plan", **asked)})  # noqa: B023
        reach.forget_answers(side.name)


@contextmanager
def pretend(machine: Mapping[str, Any]) -> Iterator[None]:
    """Let torch, psutil, the system and ComfyUI report a made-up machine."""
    import comfy.cli_args
    import comfy.model_management as mm

    on_cpu = machine["card"] is None or machine["is_cpu_asked_for"]
    args = {"reserve_vram": machine["reserve_vram"], "disable_pinned_memory": machine["is_pinning_disabled"]}
    packages = machine["packages"]
    let = mock.patch.multiple
    with ExitStack() as stack:
        for patch in (
            let(sys, platform=machine["system"], meta_path=[_Finder(packages), *sys.meta_path]),
            let(platform, python_version=_says("3.12.3")),
            let(shutil, which=_says("nvidia-smi" if machine["has_driver"] else None)),
            let(shutil, disk_usage=_says(SimpleNamespace(free=machine["disk_gib"] * GIB))),
            let(subprocess, run=_says(SimpleNamespace(returncode=0, stdout="580.95\n"))),
            let(torch, __version__=machine["torch"]),
            let(torch.version, cuda="12.8" if "+cu" in machine["torch"] else None, hip=None),
            let(torch.cuda, create=True, **_cuda(machine)),
            let(mm, get_torch_device=_says(torch.device("cpu") if on_cpu else torch.device("cuda", 0))),
            let(mm, vram_state=mm.VRAMState["DISABLED" if on_cpu else machine["vram_state"]]),
            let(mm, create=True, MAX_PINNED_MEMORY=machine["max_pinned_gib"] * GIB),
            let(comfy.cli_args.args, create=True, **args),
            let(metadata, version=_versions(packages)),
            mock.patch.dict(sys.modules),
            pretend_ram(*machine["ram"]),
        ):
            stack.enter_context(patch)
        for module in [each for each in sys.modules if each.partition(".")[0] in PACKAGES]:
            del sys.modules[module]
        # None: not to be imported, whatever is installed here.
        sys.modules.update(dict.fromkeys(PACKAGES.keys() - packages.keys()))
        yield


@contextmanager
def pretend_ram(gib: int, free: float, container_gib: int | None = None) -> Iterator[None]:
    """Let psutil and /sys/fs/cgroup report so much RAM, a share of it free, and a container or none."""
    memory = SimpleNamespace(total=gib * GIB, available=int(gib * free * GIB))
    real = io.open
    files = {
        "/sys/fs/cgroup/memory.max": f"{(container_gib or 0) * GIB}\n",
        "/sys/fs/cgroup/memory.current": f"{GIB}\n",
        "/sys/fs/cgroup/memory.stat": "anon 1000\nactive_file 2000\ninactive_file 3000\n",
    }

    def open_file(file: Any, *args: Any, **options: Any) -> Any:
        if not str(file).startswith("/sys/fs/cgroup"):
            return real(file, *args, **options)
        if container_gib is None or str(file) not in files:
            raise FileNotFoundError(file)
        return io.StringIO(files[str(file)])

    with mock.patch.object(psutil, "virtual_memory", _says(memory)), mock.patch.object(io, "open", open_file):
        yield


def _says(value: Any) -> Any:
    return lambda *_, **__: value


def _cuda(machine: Mapping[str, Any]) -> dict[str, Any]:
    """Return functions of torch.cuda by name."""
    if machine["card"] is None:
        return {"is_available": _says(False), "device_count": _says(0)}
    card, capability, gib = machine["card"]
    name, reserved = f"NVIDIA {card}", int(machine["reserved_gib"] * GIB)
    properties = SimpleNamespace(name=name, total_memory=gib * GIB, major=capability[0], minor=capability[1])
    answers = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_name": name,
        "get_device_properties": properties,
        "get_device_capability": capability,
        "mem_get_info": (int(gib * machine["free_vram"] * GIB), gib * GIB),
        "memory_reserved": reserved,
        "memory_allocated": int(reserved * machine["allocated"]),
        "get_per_process_memory_fraction": machine["fraction"],
    }
    return {name: _says(value) for name, value in answers.items()}


class _Finder:
    """Finds made-up packages, which are empty or fail when they are imported."""

    def __init__(self, packages: Mapping[str, str]) -> None:
        self._packages = packages

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        return importlib.machinery.ModuleSpec(name, self) if name in self._packages else None

    def create_module(self, spec: Any) -> ModuleType:
        return ModuleType(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        version = self._packages[module.__name__]
        if version == BROKEN:
            raise ImportError(f"DLL load failed while importing {module.__name__}")
        if version:
            module.__version__ = version


def _versions(packages: Mapping[str, str]) -> Any:
    """Return metadata.version for a machine with exactly these of PACKAGES."""
    real = metadata.version

    def version(distribution: str) -> str:
        name = distribution.replace("-", "_")
        found = packages.get(name) if name in PACKAGES else real(distribution)
        if not found:
            raise metadata.PackageNotFoundError(distribution)
        return "1.2.3" if found == BROKEN else found

    return version
