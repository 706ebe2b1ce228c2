"""Compile every Triton kernel of the pack for every card on a machine without a GPU, and judge what comes out.

    python tools cards compile                                # the Triton that is installed
    python tools cards compile --arch 89 120 --only attention
    python tools cards compile --triton 3.3.1 3.6.0 --keep tritons    # each version in a process of its own

The pack's own launch code runs, with its own sizes and options; Triton is told that the card is there, and nothing is
launched. A kernel fails that does not compile, spills more than 64 bytes of registers a thread, wants more shared
memory than a program may have there, or multiplies FP8 after it was widened to FP16. What engine/backends/versions.py
does not offer on a card with this Triton is not compiled: some of it would end the process. --all compiles it too.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from .limits import LIMITS

ROOT = Path(__file__).resolve().parents[2]
MAX_SPILLED = 64
# Tensor-core instructions of PTX, and the conversion that shows FP8 operands being widened.
_TENSOR_CORE = re.compile(r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)[\w.:]*")
_WIDENED = re.compile(r"\bcvt\.rn\.f16x2\.e4m3x2\b")
_TO_FP8 = re.compile(r"\bcvt\.rn\.satfinite\.e4m3x2\.\w+")


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """One kernel of a launch, compiled for a card."""

    launch: str
    kernel: str
    arch: int
    registers: int = 0
    spilled: int = 0
    """Bytes a thread stores."""
    shared: int = 0
    tensor_core: tuple[str, ...] = ()
    to_fp8: tuple[str, ...] = ()
    """Conversions to FP8; those from f16x2 have rounded once before."""
    problem: str = ""
    """Why it is not to be used there; empty where it is."""


def main(arguments: Sequence[str]) -> int:
    """Print what was compiled as a table; returns 1 if anything fails."""
    parser = argparse.ArgumentParser(prog="cards compile", description="Compile every Triton kernel for every card.")
    parser.add_argument("--arch", type=int, nargs="+", choices=sorted(LIMITS), default=sorted(LIMITS))
    parser.add_argument("--only", default="", help="launches whose name, or whose kernel's, matches this expression")
    parser.add_argument("--all", action="store_true", help="also what the pack does not offer there")
    parser.add_argument("--json", action="store_true", help="one line of JSON a kernel")
    parser.add_argument("--triton", nargs="+", metavar="VERSION", help="versions to take instead of the installed one")
    parser.add_argument(
        "--keep", type=Path, help="folder of those versions, which pip fills (default: a temporary one)"
    )
    options = parser.parse_args(arguments)
    if options.triton:
        return _each_version(options)
    if importlib.util.find_spec("triton") is None:
        parser.error("Triton is not installed: pip install triton, or name versions with --triton")
    failed = 0
    for found in compile_all(options.arch, only=options.only, everything=options.all):
        failed += bool(found.problem)
        print(json.dumps(asdict(found)) if options.json else as_line(found), flush=True)
    if not options.json:
        import triton

        print(f"Triton {triton.__version__}: {failed} failed.")
    return int(failed > 0)


def as_line(found: Compiled) -> str:
    """Return one row of the table."""
    numbers = f"{found.registers:3d} registers {found.shared / 1024:5.1f} KiB {found.spilled:4d} spilled"
    units = ", ".join(sorted({_short(name) for name in found.tensor_core}))
    state = f"FAILED: {found.problem}" if found.problem else units
    return f"sm_{found.arch:<4} {found.kernel:<28} {found.launch:<36} {numbers}  {state}"


def _short(instruction: str) -> str:
    """Return the unit and the operand types, e.g. mma.sync s8 s8."""
    types = [part for part in instruction.split(".") if re.fullmatch(r"[esuftb]\w*\d+\w*", part) and "n8k" not in part]
    return f"{instruction.split('.')[0]} {' '.join(types)}"


def _each_version(options: argparse.Namespace) -> int:
    """Run this command once for each version, in a process of its own: a compiler may end it."""
    with tempfile.TemporaryDirectory() as temporary:
        keep, failed = options.keep or Path(temporary), False
        for version in options.triton:
            folder = keep / version
            if not folder.exists():
                pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
                subprocess.run([*pip, f"triton=={version}"], check=True)
            words = [sys.executable, str(ROOT / "tools"), "cards", "compile", "--arch", *map(str, options.arch)]
            words += ["--only", options.only, *["--all"] * options.all, *["--json"] * options.json]
            paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
            done = subprocess.run(words, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)})
            if done.returncode not in (0, 1):
                print(f"Triton {version} ended the process with {done.returncode}.", file=sys.stderr)
            failed |= done.returncode != 0
    return int(failed)


def compile_all(archs: Sequence[int], *, only: str = "", everything: bool = False) -> Iterator[Compiled]:
    """Compile the launches of launches.py for each of `archs`, 10 * major + minor, with the installed Triton.

    The process takes itself for one with that card afterwards: run it in one of its own.

    Args:
        only: an expression that the launch's or the kernel's name must match; all when empty.
        everything: also what versions.py does not offer there.
    """
    import torch
    import triton

    from ...engine.backends.versions import why_refused
    from .launches import launches

    pretended = _Pretended()
    versions = {"torch": torch.__version__, "triton": triton.__version__}
    for arch in archs:
        pretended.become(arch)
        for launch in launches():
            is_wanted = re.search(only, launch.name) or re.search(only, launch.kernel)
            is_offered = why_refused(launch.kernel, divmod(arch, 10), versions, sys.platform) is None
            if not is_wanted or not (everything or is_offered):
                continue
            pretended.compiled.clear()
            try:
                launch.start()
            except Exception as error:  # noqa: BLE001  (any compiler's)
                problem = f"does not compile: {type(error).__name__}: {(str(error).splitlines() or [''])[-1][:160]}"
                yield Compiled(launch=launch.name, kernel=pretended.last, arch=arch, problem=problem)
                continue
            for name, kernel in pretended.compiled:
                yield _judge(launch.name, name, kernel, arch)


class _Pretended:
    """A card that is not there: Triton compiles for it when the pack launches, and launches nothing."""

    def __init__(self) -> None:
        import torch
        from triton.backends.compiler import GPUTarget
        from triton.runtime.driver import driver
        from triton.runtime.jit import JITFunction

        self.compiled: list[tuple[str, Any]] = []
        self.last = ""
        self.kernels: set[Any] = set()
        self.arch = 0
        driver.set_active(
            SimpleNamespace(
                get_current_device=lambda: 0,
                set_current_device=lambda device: None,
                get_current_stream=lambda device=None: 0,
                get_current_target=lambda: GPUTarget("cuda", self.arch, 32),
                get_active_torch_device=lambda: torch.device("cpu"),
                utils=None,
            )
        )
        torch.cuda.get_device_capability = lambda device=None: divmod(self.arch, 10)
        launch = JITFunction.run

        def compile_only(kernel: Any, *arguments: Any, grid: Any = None, warmup: bool = False, **options: Any) -> Any:
            self.last = kernel.fn.__name__
            self.kernels.add(kernel)
            result = launch(kernel, *arguments, grid=grid, warmup=True, **options)
            self.compiled.append((self.last, result))
            return result

        JITFunction.run = compile_only

    def become(self, arch: int) -> None:
        """Be another card; what was compiled for the last one is forgotten."""
        self.arch = arch
        for kernel in self.kernels:
            for name in ("device_caches", "cache"):
                if hasattr(kernel, name):
                    getattr(kernel, name).clear()


def _judge(launch: str, name: str, kernel: Any, arch: int) -> Compiled:
    """Assemble the PTX and read what it takes."""
    ptx = kernel.asm["ptx"]
    report = _assemble(ptx, arch)
    used, spilled = re.search(r"Used (\d+) registers", report), re.search(r"(\d+) bytes spill stores", report)
    found = Compiled(
        launch=launch,
        kernel=name,
        arch=arch,
        registers=int(used.group(1)) if used else 0,
        spilled=int(spilled.group(1)) if spilled else 0,
        shared=kernel.metadata.shared,
        tensor_core=tuple(sorted(set(_TENSOR_CORE.findall(ptx)))),
        to_fp8=tuple(sorted(set(_TO_FP8.findall(ptx)))),
    )
    limit = LIMITS[arch].program_kib
    if not used:
        problem = f"is not assembled: {report.strip()[-160:]}"
    elif found.shared > limit * 1024:
        problem = f"takes {found.shared / 1024:.1f} KiB of shared memory of {limit}"
    elif found.spilled > MAX_SPILLED:
        problem = f"spills {found.spilled} bytes"
    elif found.tensor_core and _WIDENED.search(ptx):
        problem = "multiplies FP8 as FP16"
    else:
        return found
    return Compiled(**{**asdict(found), "problem": problem})


def _assemble(ptx: str, arch: int) -> str:
    """Return what ptxas, which comes with Triton, reports of the PTX."""
    import triton

    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    # The second is newer, and some versions of Triton need it for old cards too.
    names = ("ptxas-blackwell", "ptxas") if arch >= 100 else ("ptxas", "ptxas-blackwell")
    target = re.search(r"\.target\s+(\w+)", ptx)
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary, "kernel.ptx")
        file.write_text(ptx)
        words = ["-v", f"--gpu-name={target.group(1) if target else f'sm_{arch}'}", str(file)]
        for assembler in (folder / name for name in names if (folder / name).exists()):
            output = str(file.with_suffix(".cubin"))
            done = subprocess.run([str(assembler), *words, "-o", output], capture_output=True, text=True)
            if "Unsupported .version" not in done.stderr:
                break
    return done.stdout + done.stderr
