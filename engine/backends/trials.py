"""Facts about this machine, and back ends that passed a trial run on it.

Which back end is best is decided in backends/table.py; the kernels themselves are attention.py, matmul.py and the
operations of engine/wan. What failed a trial run is remembered for the plans of later runs.
"""

from __future__ import annotations

import functools
import importlib
import subprocess
import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from typing import TypeVar

import torch

from ..system import is_surely_out_of_memory
from .table import ATTENTION_BACKENDS, BLOCK_BACKENDS, Backend, Choice, Machine, choose_backend

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

# Relative L2 difference of a trial run from plain torch: BF16 and 8-bit codes that round the other way now and then.
FUSED_TOLERANCE = 0.01
# The same of other kernels: 8-bit ones are a few per cent from BF16 on random data, a wrong layout or stream is 100 %.
TOLERANCE = 0.15

Kernel = TypeVar("Kernel", bound=Hashable)

# What back ends of every engine import.
OPTIONAL_PACKAGES = sorted({row.package for row in (*ATTENTION_BACKENDS, *BLOCK_BACKENDS) if row.package})
# Why a back end failed a trial run for a task in this process. Tasks share rows, and tables have rows of one name.
_failed_trials: dict[tuple[str, Backend, torch.device], str] = {}


def find_machine(device: torch.device) -> Machine:
    """Return the facts about `device` and the optional packages."""
    if device.type != "cuda" or torch.version.hip is not None:
        return Machine()
    packages, problems = find_packages()
    return Machine(capability=torch.cuda.get_device_capability(device), packages=packages, problems=problems)


@functools.cache
def find_packages() -> tuple[Mapping[str, str], Mapping[str, str]]:
    """Return the version of each optional package that imports, and why each other does not; once per process."""
    packages, problems = {}, {}
    for name in OPTIONAL_PACKAGES:
        try:
            module = importlib.import_module(name)
        except (ImportError, OSError) as error:
            is_absent = isinstance(error, ModuleNotFoundError) and error.name == name
            problems[name] = f"package {name} is not installed" if is_absent else f"{name} does not import: {error}"
        else:
            packages[name] = _version(name) or str(getattr(module, "__version__", ""))
    return packages, problems


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
    tolerance: float = TOLERANCE,
    machine: Machine | None = None,
) -> tuple[Choice, Kernel]:
    """Choose a back end and prove that it works on `device` before anything depends on it.

    Args:
        kernels: the functions that the calling engine has, or its names for them, by back end name.
        reference: name of the plain torch back end that a trial is compared with.
        trial: runs a kernel on a small fixed input.
        tolerance: relative L2 difference from the reference that passes.
        machine: facts about the machine; None finds them.

    Returns:
        The choice, and its entry in `kernels`.

    Raises:
        ValueError, MissingDependencyError, UnsupportedHardwareError: see support.choose_backend.
        RuntimeError: a trial ran out of GPU memory, which says nothing of its back end.
    """
    machine = find_machine(device) if machine is None else machine
    while True:
        choice = choose_backend(task, table, requested, machine, dtype=dtype, among=kernels)
        problem = trial_problem(kernels[choice.name], kernels[reference], trial, device, tolerance)
        if problem is None:
            return choice, kernels[choice.name]
        row = next(row for row in table if row.name == choice.name and dtype in row.dtypes)
        remember_failure(task, row, device, problem)
        machine = replace(machine, problems={**machine.problems, choice.name: problem})


def remember_failure(task: str, row: Backend, device: torch.device, problem: str) -> None:
    """Note that a back end failed a trial run for a task, and why."""
    _failed_trials[task, row, device] = problem


def has_failed(task: str, row: Backend, device: torch.device) -> bool:
    """Say whether a back end failed a trial run for a task in this process."""
    return (task, row, device) in _failed_trials


def after_trials(machine: Machine, task: str, table: Sequence[Backend], device: torch.device) -> Machine:
    """Return `machine` with what of a table failed a trial run for `task` in this process among its problems."""
    failed = {row.name: _failed_trials[task, row, device] for row in table if has_failed(task, row, device)}
    return replace(machine, problems={**machine.problems, **failed})


def select_fused(
    task: str,
    device: torch.device,
    kernels: Mapping[str, Kernel],
    trial: Callable[[Kernel, torch.device], torch.Tensor],
) -> tuple[Choice, Kernel]:
    """Choose Triton's operations where a trial run agrees with plain torch's, else those; see select_kernel."""
    return select_kernel(
        task,
        BLOCK_BACKENDS,
        "auto",
        device,
        dtype="bf16",
        kernels=kernels,
        reference="torch",
        trial=trial,
        tolerance=FUSED_TOLERANCE,
    )


@functools.cache
def trial_problem(
    kernel: Kernel,
    reference: Kernel,
    trial: Callable[[Kernel, torch.device], torch.Tensor],
    device: torch.device,
    tolerance: float,
) -> str | None:
    """Return what is wrong with a kernel on this device, found by a trial run, or None; see select_kernel.

    Out of GPU memory is raised and not remembered: with more of it the next trial may pass.
    """
    if kernel is reference:
        return None
    try:
        found = trial(kernel, device).float()
        difference = (found - trial(reference, device).float()).norm() / found.norm()
        relative = float(difference)
    except _kernel_errors() as error:
        if isinstance(error, RuntimeError) and is_surely_out_of_memory(error):
            raise
        first_line = (str(error).splitlines() or [""])[0]
        return f"its trial run failed ({type(error).__name__}: {first_line})"
    return None if relative < tolerance else f"its trial run is {relative:.0%} off the plain torch result"


def _kernel_errors() -> tuple[type[Exception], ...]:
    """Return what a kernel that does not fit raises; Triton's compiler has exceptions of its own."""
    errors = getattr(sys.modules.get("triton"), "errors", None)
    return _KERNEL_ERRORS if errors is None else (*_KERNEL_ERRORS, errors.TritonError)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
