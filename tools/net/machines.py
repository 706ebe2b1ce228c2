"""Plans and the doctor's findings on pretended machines: what torch, psutil and others say is made up from a seed.

Only foreign packages are made up, so that any commit of the pack sees the same machine.
"""

from __future__ import annotations

import importlib.machinery
import io
import pathlib
import platform
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from importlib import metadata
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import psutil
import torch

from . import reach
from .pack import Pack
from .record import Record

GIB = 2**30
# Name, compute capability, GiB.
CARDS = (
    ("NVIDIA GeForce RTX 3060", (8, 6), 12),
    ("NVIDIA GeForce RTX 3070", (8, 6), 8),
    ("NVIDIA GeForce RTX 3090", (8, 6), 24),
    ("NVIDIA GeForce RTX 4060", (8, 9), 8),
    ("NVIDIA GeForce RTX 4070 Ti SUPER", (8, 9), 16),
    ("NVIDIA GeForce RTX 4090", (8, 9), 24),
    ("NVIDIA GeForce RTX 5060 Ti", (12, 0), 16),
    ("NVIDIA GeForce RTX 5090", (12, 0), 32),
    ("NVIDIA GeForce RTX 2080 Ti", (7, 5), 11),
    ("NVIDIA GeForce GTX 1060", (6, 1), 6),
    ("NVIDIA A100-SXM4-40GB", (8, 0), 40),
    ("NVIDIA H100 80GB HBM3", (9, 0), 80),
    ("NVIDIA H200", (9, 0), 141),
    ("NVIDIA B200", (10, 0), 180),
)
# Import name, name of the distribution, versions; "" is installed without a version.
PACKAGES = {
    "triton": ("triton", ("3.4.0", "2.3.1")),
    "sageattention": ("sageattention", ("2.2.0", "1.0.6", "")),
    "flash_attn": ("flash-attn", ("2.8.3", "1.0.9")),
    "flash_attn_interface": ("flash_attn_3", ("3.0.0b1",)),
    "q8_kernels": ("q8-kernels", ("0.0.5",)),
    "sgl_kernel": ("sgl-kernel", ("0.3.4",)),
    "vllm": ("vllm", ("0.11.0",)),
    "lightx2v": ("lightx2v", ("0.1.0",)),
    "lightx2v_platform": ("lightx2v_platform", ("0.1.0",)),
    "loguru": ("loguru", ("0.7.3",)),
    "gguf": ("gguf", ("0.17.1",)),
    "imageio": ("imageio", ("2.37.0",)),
    "imageio_ffmpeg": ("imageio-ffmpeg", ("0.6.0",)),
    "ftfy": ("ftfy", ("6.3.1",)),
}
BROKEN = "broken"
SIZES = (
    (832, 480, 81), (832, 480, 81), (832, 480, 81), (1280, 720, 81), (480, 832, 81), (1280, 720, 81), (832, 480, 161), (640, 640, 33), (320, 192, 17), (16, 16, 1),
    (1920, 1088, 121), (4096, 2304, 401), (833, 480, 80),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What is made up."""

    system: str
    card: tuple[str, tuple[int, int], int] | None
    free_vram: float
    """Share of the card's memory, what this process has reserved not counted."""
    reserved_gib: float
    allocated: float
    """Share of what is reserved."""
    fraction: float
    """Of the card's memory, that torch may take."""
    ram_gib: int
    free_ram: float
    container_gib: int | None
    packages: Mapping[str, str] = field(default_factory=dict)
    """By import name: version, or BROKEN."""
    torch_version: str
    has_driver: bool
    disk_gib: int
    vram_state: str
    reserve_vram: float | None
    disable_pinned_memory: bool
    max_pinned_gib: float
    is_cpu_forced: bool
    """ComfyUI's --cpu, beside a card."""

    @classmethod
    def draw(cls, rng: random.Random, system: str) -> Machine:
        def maybe(chance: float, value: Any, other: Any) -> Any:
            return value if rng.random() < chance else other

        chance = rng.choice((0.0, 0.3, 0.6, 1.0))
        packages = {name: rng.choice((*versions, BROKEN)) for name, (_, versions) in PACKAGES.items()}
        ram = rng.choice((8, 16, 32, 48, 64, 128))
        return cls(
            system=system,
            card=maybe(0.95, rng.choice(CARDS), None),
            free_vram=rng.uniform(0.3, 1.0),
            reserved_gib=maybe(0.3, rng.uniform(0, 4), 0.0),
            allocated=rng.random(),
            fraction=maybe(0.15, rng.uniform(0.3, 1.0), 1.0),
            ram_gib=ram,
            free_ram=rng.uniform(0.3, 0.95),
            container_gib=maybe(0.2, rng.choice((4, 16, 24)), None),
            packages={name: value for name, value in packages.items() if rng.random() < chance},
            torch_version=rng.choice(("2.3.1+cu121", "2.7.1+cu128", "2.10.0+cu130", "2.9.0")),
            has_driver=rng.random() < 0.8,
            disk_gib=rng.choice((3, 23, 500)),
            vram_state=maybe(0.4, rng.choice(("LOW_VRAM", "NO_VRAM", "HIGH_VRAM")), "NORMAL_VRAM"),
            reserve_vram=maybe(0.2, rng.choice((0.0, 0.5, 3.0)), None),
            disable_pinned_memory=rng.random() < 0.1,
            max_pinned_gib=maybe(0.2, rng.uniform(1, 40), -1),
            is_cpu_forced=rng.random() < 0.05,
        )


def draw_question(rng: random.Random, attentions: Sequence[str]) -> dict[str, Any]:
    """Return what an editor may ask of the plan."""
    width, height, frames = rng.choice(SIZES)
    question: dict[str, Any] = {"width": width, "height": height, "frames": frames}
    if rng.random() < 0.2:
        question["transformer"] = rng.choice(("alone.safetensors", "wan/distill_models"))
    else:
        question["checkpoint"] = rng.choice(("wan",) * 6 + ("wan/distill_fp8", "alone.safetensors", "gone"))
        question["precision"] = rng.choice(("auto", "fp8", "int8", "bf16"))
    optional = {
        "engine": ("auto", "lightx2v", "portable"),
        "attention": ("auto", *attentions),
        "compile": ("auto", "on", "off"),
        "offload": ("auto", "none", "block", "phase", "disk"),
        "vram_budget_gib": (0, 2, 6.5, 20),
        "vae_tiling": ("auto", "on", "off"),
        "batch": (1, 2, 7),
        "steps": (1, 4, 8),
        "uses_text_encoder": ("0", "1"),
        "uses_vae": ("0", "1"),
    }
    return question | {name: rng.choice(values) for name, values in optional.items() if rng.random() < 0.35}


def run(pack: Pack, record: Record, big: pathlib.Path, tiny: pathlib.Path, *, quick: bool) -> None:
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
        for number in range(40 if quick else 400):
            rng = random.Random(f"{system} {number}")
            machine = Machine.draw(rng, system)
            questions = [draw_question(rng, attentions) for _ in range(4)]
            with pretend(machine):
                reach.forget_answers(side.name)
                side.use_models(tiny)
                record.case(f"doctor/{system}-{number}", lambda side=side: side.ask("doctor"))
                side.use_models(big)
                for index, question in enumerate(questions):
                    record.case(
                        f"plan/{system}-{number}-{index}",
                        lambda side=side, question=question: {"of": question, **side.ask("plan", **question)},
                    )
            record.put(f"machine/{system}-{number}", asdict(machine))
        reach.forget_answers(side.name)


@contextmanager
def pretend(machine: Machine) -> Iterator[None]:
    """Let torch, psutil, the system and ComfyUI report a made-up machine."""
    import comfy.cli_args
    import comfy.model_management as mm

    with ExitStack() as stack:

        def let(holder: Any, **values: Any) -> None:
            for name, value in values.items():
                stack.enter_context(mock.patch.object(holder, name, value, create=True))

        def answer(value: Any) -> Any:
            return lambda *_, **__: value

        on_cpu = machine.card is None or machine.is_cpu_forced
        let(sys, platform=machine.system)
        let(platform, python_version=answer("3.12.3"))
        let(shutil, disk_usage=answer(SimpleNamespace(free=machine.disk_gib * GIB, total=999 * GIB)))
        let(shutil, which=answer("nvidia-smi" if machine.has_driver else None))
        let(subprocess, run=answer(SimpleNamespace(returncode=0, stdout="580.95\n")))
        let(torch, __version__=machine.torch_version)
        let(torch.version, cuda="12.8" if "+cu" in machine.torch_version else None, hip=None)
        let(torch.cuda, **_cuda(machine, answer))
        let(mm, get_torch_device=answer(torch.device("cpu") if on_cpu else torch.device("cuda", 0)))
        let(mm, vram_state=mm.VRAMState["DISABLED" if on_cpu else machine.vram_state])
        let(mm, MAX_PINNED_MEMORY=machine.max_pinned_gib * GIB)
        let(comfy.cli_args.args, reserve_vram=machine.reserve_vram)
        let(comfy.cli_args.args, disable_pinned_memory=machine.disable_pinned_memory)
        stack.enter_context(pretend_ram(machine.ram_gib, machine.free_ram, machine.container_gib))
        _pretend_packages(stack, machine.packages, let)
        yield


@contextmanager
def pretend_ram(gib: int, free: float, container_gib: int | None = None) -> Iterator[None]:
    """Let psutil and /sys/fs/cgroup report so much RAM, a share of it free, and a container or none."""
    memory = SimpleNamespace(total=gib * GIB, available=int(gib * free * GIB), percent=100 * (1 - free))
    with (
        mock.patch.object(psutil, "virtual_memory", lambda: memory),
        mock.patch.object(io, "open", _opener(container_gib)),
    ):
        yield


def _cuda(machine: Machine, answer: Any) -> dict[str, Any]:
    if machine.card is None:
        return {"is_available": answer(False), "device_count": answer(0)}
    name, capability, gib = machine.card
    reserved = int(machine.reserved_gib * GIB)
    properties = SimpleNamespace(name=name, total_memory=gib * GIB, major=capability[0], minor=capability[1])
    return {
        "is_available": answer(True),
        "device_count": answer(1),
        "current_device": answer(0),
        "get_device_name": answer(name),
        "get_device_properties": answer(properties),
        "get_device_capability": answer(capability),
        "mem_get_info": answer((int(gib * machine.free_vram * GIB), gib * GIB)),
        "memory_reserved": answer(reserved),
        "memory_allocated": answer(int(reserved * machine.allocated)),
        "get_per_process_memory_fraction": answer(machine.fraction),
    }


def _opener(container_gib: int | None) -> Any:
    """Return an `open` in whose /sys/fs/cgroup there is a container, or none."""
    real = io.open
    files = {
        "memory.max": f"{(container_gib or 0) * GIB}\n",
        "memory.current": f"{GIB}\n",
        "memory.stat": "anon 1000\nactive_file 2000\ninactive_file 3000\n",
    }

    def open_file(file: Any, *args: Any, **options: Any) -> Any:
        if not str(file).startswith("/sys/fs/cgroup"):
            return real(file, *args, **options)
        if container_gib is None or pathlib.Path(file).parent.name != "cgroup":
            raise FileNotFoundError(file)
        return io.StringIO(files[pathlib.Path(file).name])

    return open_file


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


def _pretend_packages(stack: ExitStack, packages: Mapping[str, str], let: Any) -> None:
    """Let exactly these of PACKAGES be installed."""
    real = metadata.version
    distributions = {distribution: packages.get(name) for name, (distribution, _) in PACKAGES.items()}

    def version(distribution: str) -> str:
        found = distributions[distribution] if distribution in distributions else real(distribution)
        if not found:
            raise metadata.PackageNotFoundError(distribution)
        return "1.2.3" if found == BROKEN else found

    let(metadata, version=version)
    let(sys, meta_path=[_Finder(packages), *sys.meta_path])
    # None: not to be imported, whatever is installed here.
    stack.enter_context(mock.patch.dict(sys.modules))
    for module in [each for each in sys.modules if each.partition(".")[0] in PACKAGES]:
        del sys.modules[module]
    sys.modules.update(dict.fromkeys(PACKAGES.keys() - packages.keys()))
