"""Facts about this machine, and back ends that passed a trial run on it.

Which back end is best is decided in logic/support.py; the kernels themselves are attention.py and matmul.py.
"""

from __future__ import annotations

import functools
import importlib
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from typing import TypeVar

import torch

from ...logic.support import ATTENTION_BACKENDS, Backend, Choice, Machine, choose_backend

# What a kernel that does not fit this card, driver or torch raises. Out of memory is a RuntimeError too and
# is let through.
_KERNEL_ERRORS = (
    AssertionError,
    AttributeError,
    ImportError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    subprocess.SubprocessError,
)

Kernel = TypeVar("Kernel", bound=Callable[..., torch.Tensor])


@functools.cache
def find_machine(device: torch.device) -> Machine:
    """Return the facts about `device` and the optional packages, gathered once per process."""
    if device.type != "cuda" or torch.version.hip is not None:
        return Machine()
    packages, problems = {}, {}
    for name in sorted({backend.package for backend in ATTENTION_BACKENDS if backend.package}):
        try:
            module = importlib.import_module(name)
        except (ImportError, OSError) as error:
            is_absent = isinstance(error, ModuleNotFoundError) and error.name == name
            problems[name] = f"package {name} is not installed" if is_absent else f"{name} does not import: {error}"
        else:
            packages[name] = _version(name) or str(getattr(module, "__version__", ""))
    return Machine(capability=torch.cuda.get_device_capability(device), packages=packages, problems=problems)


def select_kernel(
    task: str,
    table: Sequence[Backend],
    requested: str,
    device: torch.device,
    *,
    dtype: str,
    kernels: Mapping[str, Kernel],
    reference: str,
    trial: Callable[[Kernel, torch.device], torch.Tensor],
) -> tuple[Choice, Kernel]:
    """Choose a back end and prove that it works on `device` before anything depends on it.

    Args:
        kernels: the functions that the calling engine has, by back end name.
        reference: name of the plain torch back end that a trial is compared with.
        trial: runs a kernel on a small fixed input.

    Returns:
        The choice, and its function.

    Raises:
        ValueError, MissingDependencyError, UnsupportedHardwareError: see support.choose_backend.
    """
    machine = find_machine(device)
    while True:
        choice = choose_backend(task, table, requested, machine, dtype=dtype, among=kernels)
        problem = _trial_problem(kernels[choice.name], kernels[reference], trial, device)
        if problem is None:
            return choice, kernels[choice.name]
        machine = replace(machine, problems={**machine.problems, choice.name: problem})


@functools.cache
def _trial_problem(
    kernel: Kernel, reference: Kernel, trial: Callable[[Kernel, torch.device], torch.Tensor], device: torch.device
) -> str | None:
    if kernel is reference:
        return None
    try:
        found = trial(kernel, device).float()
        difference = (found - trial(reference, device).float()).norm() / found.norm()
        relative = float(difference)
    except torch.cuda.OutOfMemoryError:
        raise
    except _KERNEL_ERRORS as error:
        first_line = (str(error).splitlines() or [""])[0]
        return f"its trial run failed ({type(error).__name__}: {first_line})"
    # Eight-bit kernels are a few per cent from BF16 on random data; a wrong layout or stream is 100 %.
    return None if relative < 0.15 else f"its trial run is {relative:.0%} off the plain torch result"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
