"""Run a Python program of the pack on one card as if it were another: right or wrong there, without owning it.

    python tools cards run --arch 89 -- -m pytest tests/gpu
    python tools cards run --arch 86 --windows --vram-gib 8 -- tools/run_workflow.py ...

The card that is there must be at least as new: an H100 or H200 for all but 120, of which it runs what needs nothing
new. What changes, in that process and in every Python that it starts:

- torch.cuda.get_device_capability says the other card's, so that every table of the pack chooses what it would there;
- Triton compiles for it: its tensor-core instructions and asynchronous copies, its conversions. `--mode override` lets
  ptxas translate the result for the card that is there (TRITON_OVERRIDE_ARCH, Triton 3.3 or newer); `--mode jit` hands
  PTX of the other card to the driver, exactly what it would get there;
- a kernel that wants more shared memory than that card has is refused as there (OutOfResources), and the others take as
  large a part of the multiprocessor's as there, so that as many programs run at a time (--shared real turns that off);
- --windows: torch._scaled_mm with a scale per row raises what PyTorch's Windows builds raise, flash attention is off as
  it is missing there, and the pack's own modules read "win32" as sys.platform. Nobody else does: Python's own modules
  would not work;
- --vram-gib: torch may take no more memory.

It cannot show speed, caches, the driver of another system, or faults of that card's own compiler and of torch's own
kernels, which see the real card.
"""

from __future__ import annotations

import argparse
import atexit
import builtins
import functools
import os
import runpy
import shutil
import sys
import tempfile
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..arguments import number
from .limits import LIMITS

ROOT = Path(__file__).resolve().parents[2]
# The text of PyTorch's aten/src/ATen/native/cuda/ScaledBlas.cpp.
ROWWISE_ERROR = "Rowwise scaling is not currently supported on your device"


def main(arguments: Sequence[str]) -> int:
    """Run the program that the arguments name; returns 0 unless it exits otherwise."""
    parser = _make_parser()
    options = parser.parse_args(arguments)
    program = options.program[1:] if options.program[:1] == ["--"] else options.program
    if not program:
        parser.error("there is nothing to run: end with `-- -m MODULE ...` or `-- SCRIPT ...`")
    _be(options)
    _pass_on(arguments)
    sys.argv = program[1:] if program[0] == "-m" else program
    if program[0] == "-m":
        sys.path.insert(0, os.getcwd())
        runpy.run_module(program[1], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(program[0]).resolve().parent))
        runpy.run_path(program[0], run_name="__main__")
    return 0


def be_as_parent(arguments: Sequence[str]) -> None:
    """Be the card that the arguments of `main` name, in a process that its program started."""
    _be(_make_parser().parse_args(arguments))


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cards run", description="Run a program as if the card were another one.")
    parser.add_argument("--arch", type=int, choices=sorted(LIMITS), default=89, help="default: %(default)s, RTX 40")
    parser.add_argument("--mode", choices=("override", "jit"), default="override", help="default: %(default)s")
    parser.add_argument("--shared", choices=("part", "real"), default="part", help="default: %(default)s")
    parser.add_argument("--windows", action="store_true", help="hide what torch and the pack lack on Windows")
    parser.add_argument("--vram-gib", type=number(), help="memory that torch may take")
    parser.add_argument("program", nargs=argparse.REMAINDER, help="-- -m MODULE ... or -- SCRIPT ...")
    return parser


def _be(options: argparse.Namespace) -> None:
    pretend(options.arch, options.mode, parts=options.shared == "part")
    if options.windows:
        pretend_windows()
    if options.vram_gib is not None:
        limit_memory(options.vram_gib)


def _pass_on(arguments: Sequence[str]) -> None:
    """Let every Python that this process starts be the same card: first trials, the workers of a test run."""
    folder = Path(tempfile.mkdtemp(prefix="cards-run-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "sitecustomize.py").write_text(
        f"import runpy\nrunpy.run_path({str(ROOT / 'tools' / 'register_pack.py')!r})\n"
        f"from lightx2v_pack.tools.cards.as_card import be_as_parent\nbe_as_parent({list(arguments)!r})\n",
        encoding="utf-8",
    )
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))


def pretend(arch: int, mode: str = "override", *, parts: bool = True) -> None:
    """Let torch report, and Triton compile for, another compute capability. Call it before either is imported.

    Args:
        arch: 10 * major + minor.
        mode: "override" or "jit", see this module.
        parts: kernels take as large a part of a multiprocessor's shared memory as on that card.

    Raises:
        RuntimeError: Triton is imported already, or too old for the mode.
    """
    if "triton" in sys.modules:
        raise RuntimeError("Triton is imported already, and has read what it compiles for; pretend before that.")
    os.environ["TRITON_CACHE_DIR"] = str(Path(tempfile.gettempdir(), f"triton-as-sm{arch}-{mode}"))
    if mode == "override":
        os.environ["TRITON_OVERRIDE_ARCH"] = f"sm{arch}"
    else:
        os.environ.pop("TRITON_OVERRIDE_ARCH", None)
    import torch

    real = 10 * torch.cuda.get_device_capability()[0] + torch.cuda.get_device_capability()[1]
    torch.cuda.get_device_capability = lambda device=None: divmod(arch, 10)
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver

    if mode == "override" and tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 3):
        raise RuntimeError(f"Triton {triton.__version__} cannot override what it compiles for; take --mode jit.")
    # The driver asks torch, which does not tell the truth any more: in override mode the machine code is for the card
    # that is there.
    target = GPUTarget("cuda", real if mode == "override" else arch, 32)
    driver.active.get_current_target = lambda: target
    if mode == "jit":
        _hand_over_ptx()
    _limit_shared_memory(arch, real, parts=parts)


def _hand_over_ptx() -> None:
    """Let Triton load PTX, which the driver translates, in place of machine code."""
    from triton.backends.nvidia.compiler import CUDABackend

    def as_loaded(self: Any, source: Any, *_: Any) -> bytes:
        return (source if isinstance(source, bytes) else source.encode()) + b"\0"

    CUDABackend.make_cubin = as_loaded


def _limit_shared_memory(arch: int, real: int, *, parts: bool) -> None:
    """Refuse kernels that want more than the other card has; the others take as large a part as there."""
    from triton.compiler import compiler

    there, here = LIMITS[arch], LIMITS[real]

    def taken(shared: int) -> int:
        return max(shared, there.part_of(here, shared)) if parts and shared else shared

    limit = taken(there.program_kib * 1024)
    compiler.max_shared_mem = lambda device: limit
    initialise = compiler.CompiledKernel.__init__

    @functools.wraps(initialise)
    def initialise_larger(kernel: Any, *arguments: Any, **options: Any) -> None:
        initialise(kernel, *arguments, **options)
        kernel.metadata = kernel.metadata._replace(shared=taken(kernel.metadata.shared))
        kernel.packed_metadata = compiler.make_backend(kernel.metadata.target).pack_metadata(kernel.metadata)

    compiler.CompiledKernel.__init__ = initialise_larger


def pretend_windows() -> None:
    """Take away what PyTorch's Windows builds lack, and let the pack's modules find Windows."""
    import torch

    real = torch._scaled_mm

    @functools.wraps(real)
    def scaled_mm(x: Any, weight: Any, *arguments: Any, **options: Any) -> Any:
        scales = (*arguments, options.get("scale_a"), options.get("scale_b"))
        if any(isinstance(scale, torch.Tensor) and scale.dim() == 2 and scale.numel() > 1 for scale in scales):
            raise RuntimeError(ROWWISE_ERROR)
        return real(x, weight, *arguments, **options)

    torch._scaled_mm = scaled_mm
    torch.backends.cuda.enable_flash_sdp(False)
    pretend_platform("win32")


def pretend_platform(platform: str) -> None:
    """Let modules of engine/ and nodes/ that are imported from now on read `platform` as sys.platform."""
    stand_in = types.ModuleType("sys")
    stand_in.__getattr__ = lambda name: getattr(sys, name)  # type: ignore[method-assign]
    stand_in.platform = platform  # type: ignore[attr-defined]
    folders = tuple(str(ROOT / folder) + os.sep for folder in ("engine", "nodes"))
    load = builtins.__import__

    @functools.wraps(load)
    def load_for(name: str, namespace: Any = None, *arguments: Any, **options: Any) -> Any:
        if name == "sys" and namespace is not None and str(namespace.get("__file__", "")).startswith(folders):
            return stand_in
        return load(name, namespace, *arguments, **options)

    builtins.__import__ = load_for


def limit_memory(gib: float) -> None:
    """Let torch take no more than so many GiB of the card's memory."""
    import torch

    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(gib * 2**30 / total, 1.0), 0)
