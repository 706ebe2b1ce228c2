"""Facts about this machine, and trial runs: a chosen kernel is used only after it agreed with plain torch here.

What failed is remembered for this process and is a fact of the machine from then on, so that choose.py, asked again,
takes the next best. What a trial computes is trial_inputs.py.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import TypeVar

import torch

from ..kernels.implementations import load_vae_ops
from ..kernels.vae_ops import VaeOps
from ..system import is_surely_out_of_memory, release_memory
from . import trial_inputs
from .choose import IN_PLACE, Backends, Wanted, choose, choose_fused
from .table import (
    ATTENTION_BACKENDS,
    BLOCK_BACKENDS,
    LIGHTX2V_MATMUL_BACKENDS,
    Backend,
    Choice,
    Machine,
)

logger = logging.getLogger(__name__)

# What a kernel that does not fit this card, driver or torch raises. Out of memory is a RuntimeError too and
# is let through.
_KERNEL_ERRORS = (
    AssertionError,
    AttributeError,
    ImportError,
    KeyError,
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

_VAE = "VAE kernels"

# What back ends import; those of LightX2V's own compute are only looked for, as it imports them itself.
OPTIONAL_PACKAGES = sorted({row.package for row in (*ATTENTION_BACKENDS, *BLOCK_BACKENDS) if row.package})
LIGHTX2V_PACKAGES = sorted({row.package for row in LIGHTX2V_MATMUL_BACKENDS if row.package} - {*OPTIONAL_PACKAGES})

Run = Callable[[str, torch.device], torch.Tensor]
"""Computes a small fixed problem with the back end of a name."""
Multiply = Callable[[str, str, torch.device], torch.Tensor]
"""The same with weights of a precision, which comes first."""
Chosen = TypeVar("Chosen")


@dataclass(frozen=True)
class Trial:
    """A kernel to be compared with plain torch."""

    task: str
    backend: Backend
    reference: str
    run: Run
    tolerance: float = TOLERANCE


# Why a back end failed its trial run for a task in this process, or None where it passed.
_outcomes: dict[tuple[str, Backend, torch.device], str | None] = {}


def forget_trials() -> None:
    """Let every trial run anew."""
    _outcomes.clear()


def find_machine(device: torch.device) -> Machine:
    """Return the facts about `device` and the optional packages, failed trial runs of this process among them."""
    failed = {(task, row): problem for (task, row, where), problem in _outcomes.items() if problem and where == device}
    if device.type != "cuda" or torch.version.hip is not None:
        return Machine(failed_trials=failed)
    packages, problems = find_packages()
    return Machine(
        capability=torch.cuda.get_device_capability(device),
        torch=torch.__version__,
        packages=packages,
        problems=problems,
        failed_trials=failed,
    )


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
    for name in LIGHTX2V_PACKAGES:
        if importlib.util.find_spec(name):
            packages[name] = ""
    return packages, problems


def confirm(wanted: Wanted, device: torch.device, *, lightx2v_matmul: Multiply | None = None) -> Backends:
    """Choose kernels, and prove that each works on `device` before anything depends on it; logs them, a line each.

    Args:
        lightx2v_matmul: computes trial_inputs.multiply with an op of LightX2V, for its engine.

    Raises:
        ValueError, MissingDependencyError, UnsupportedHardwareError: see choose.choose.
        RuntimeError: a trial ran out of GPU memory, which says nothing of its back end.
    """
    backends = _settle(
        lambda machine: choose(machine, wanted), lambda chosen: _trials_of(chosen, lightx2v_matmul), device
    )
    for reason in backends.reasons:
        logger.info("LightX2V: %s.", reason)
    if backends.is_in_place:
        logger.info("LightX2V: %s runs in place.", backends.attention.name)
    # The trial runs compiled; what that took shall not come on top of the weights.
    release_memory(device)
    return backends


def confirm_vae_ops(device: torch.device) -> VaeOps:
    """Return Triton's operations for the VAE where a trial run on `device` agrees with plain torch, else those."""

    def trials(choice: Choice) -> Iterator[Trial]:
        yield Trial(_VAE, choice.backend, "torch", trial_inputs.run_vae_ops, FUSED_TOLERANCE)

    choice = _settle(functools.partial(choose_fused, _VAE), trials, device)
    logger.info("LightX2V: VAE decoder: %s.", choice)
    return load_vae_ops(choice.name)


def _trials_of(backends: Backends, lightx2v_matmul: Multiply | None) -> Iterator[Trial]:
    blocks, attention, matmul = backends.blocks, backends.attention, backends.matmul
    if blocks.name == "triton":
        yield Trial(blocks.task, blocks.backend, "torch", trial_inputs.run_ops, FUSED_TOLERANCE)
    yield Trial(attention.task, attention.backend, "sdpa", trial_inputs.attend)
    if backends.is_in_place:
        yield Trial(IN_PLACE, attention.backend, "", trial_inputs.attend_in_place)
    if backends.precision != "bf16":
        run = functools.partial(lightx2v_matmul or trial_inputs.multiply, backends.precision)
        yield Trial(matmul.task, matmul.backend, "dequantize", run)


def _settle(
    choose_from: Callable[[Machine], Chosen], trials_of: Callable[[Chosen], Iterator[Trial]], device: torch.device
) -> Chosen:
    """Choose until every trial of what is chosen has passed."""
    while True:
        chosen = choose_from(find_machine(device))
        if all(trial_problem(trial, device) is None for trial in trials_of(chosen)):
            return chosen


def trial_problem(trial: Trial, device: torch.device) -> str | None:
    """Return what is wrong with a kernel on this device, found by a trial run, or None; remembered in this process.

    Out of GPU memory is raised and not remembered: with more of it the next trial may pass.
    """
    if trial.backend.name == trial.reference:
        return None
    key = (trial.task, trial.backend, device)
    if key not in _outcomes:
        _outcomes[key] = _try(trial, device)
        if _outcomes[key] is not None:
            logger.info("LightX2V: %s: not %s: %s.", trial.task, trial.backend.name, _outcomes[key])
    return _outcomes[key]


def _try(trial: Trial, device: torch.device) -> str | None:
    try:
        found = trial.run(trial.backend.name, device).float()
        difference = (found - trial.run(trial.reference, device).float()).norm() / found.norm()
        relative = float(difference)
    except _kernel_errors() as error:
        if isinstance(error, RuntimeError) and is_surely_out_of_memory(error):
            raise
        first_line = (str(error).splitlines() or [""])[0]
        return f"its trial run failed ({type(error).__name__}: {first_line})"
    return None if relative < trial.tolerance else f"its trial run is {relative:.0%} off the plain torch result"


def _kernel_errors() -> tuple[type[Exception], ...]:
    """Return what a kernel that does not fit raises; Triton's compiler has exceptions of its own."""
    errors = getattr(sys.modules.get("triton"), "errors", None)
    return _KERNEL_ERRORS if errors is None else (*_KERNEL_ERRORS, errors.TritonError)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
