"""Facts about this machine, and trial runs: a chosen kernel is used only after it agreed with plain torch here.

What failed is remembered for this process and is a fact of the machine from then on, so that choose.py, asked again,
takes the next best. What a trial computes is trial_inputs.py. Kernels that come with a compiler or a package are tried
in a process of their own first (trial_process.py), once for each combination of card and versions (remembered.py).
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import logging
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TypeVar

import torch

from ..interfaces import Hooks
from ..kernels.implementations import load_vae_ops
from ..kernels.vae_ops import VaeOps
from ..sentences.kernels import Running
from ..system import card_name, driver_version, is_surely_out_of_memory, release_memory
from . import remembered, trial_inputs, trial_process
from .choose import ATTENTION, BLOCKS, IN_PLACE, JOINED, Backends, Wanted, choose, choose_fused, may_join
from .table import (
    ATTENTION_BACKENDS,
    BLOCK_BACKENDS,
    LIGHTX2V_MATMUL_BACKENDS,
    MATMUL_BACKENDS,
    Backend,
    Machine,
    why_not,
)
from .trial_process import Named

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

_VAE = Running.VAE_KERNELS()

# What back ends import; those of LightX2V's own compute are only looked for, as it imports them itself.
OPTIONAL_PACKAGES = sorted({row.package for row in (*ATTENTION_BACKENDS, *BLOCK_BACKENDS) if row.package})
LIGHTX2V_PACKAGES = sorted({row.package for row in LIGHTX2V_MATMUL_BACKENDS if row.package} - {*OPTIONAL_PACKAGES})
_PACK = Path(__file__).resolve().parents[2]

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
    """Return all that decides about kernels on `device`: facts, failed trial runs, and what was measured here."""
    machine = find_facts(device)
    failed = {(task, row): problem for (task, row, where), problem in _outcomes.items() if problem and where == device}
    findings = find_findings(device)
    if findings is None:
        return replace(machine, failed_trials={**machine.failed_trials, **failed})
    died = {
        (named.task, row): Running.ENDED_PROCESS(died=findings.trials[str(named)])
        for named, row in _trials_apart(machine, is_lightx2v=True)
        if findings.trials.get(str(named))
    }
    return replace(machine, failed_trials={**machine.failed_trials, **died, **failed}, measured=findings.measured)


def find_findings(device: torch.device) -> remembered.Findings | None:
    """Return what was found out about kernels on `device` with these versions; None where nothing is kept."""
    machine = find_facts(device) if remembered.notes().are_kept else None
    if machine is None or machine.capability is None:
        return None
    return remembered.notes().about(combination_of(machine, device))


def find_facts(device: torch.device) -> Machine:
    """Return the facts about `device`, this system and the optional packages."""
    if device.type != "cuda" or torch.version.hip is not None:
        return Machine()
    packages, problems = find_packages()
    return Machine(
        capability=torch.cuda.get_device_capability(device),
        torch=torch.__version__,
        packages=packages,
        problems=problems,
    )


def combination_of(machine: Machine, device: torch.device) -> str:
    """Return in words what findings about kernels hold for: card, driver, system and versions."""
    card = card_name(device)
    packages = [f"{name} {version}" for name, version in sorted(machine.packages.items())]
    parts = [f"{card} {machine.capability}", machine.system, f"driver {driver_version()}", f"torch {machine.torch}"]
    return ", ".join([*parts, *packages, f"pack {pack_version()}"])


@functools.cache
def pack_version() -> str:
    """Return the pack's version and a short hash of its kernels, which change between versions too."""
    project = (_PACK / "pyproject.toml").read_text(encoding="utf-8")
    (version,) = re.findall(r'^version = "(.+)"', project, re.MULTILINE)
    sources = (path.read_bytes() for path in sorted((_PACK / "engine" / "kernels").glob("*.py")))
    return f"{version}-{hashlib.sha256(b''.join(sources)).hexdigest()[:8]}"


@functools.cache
def find_packages() -> tuple[Mapping[str, str], Mapping[str, str]]:
    """Return the version of each optional package that imports, and why each other does not; once per process."""
    packages, problems = {}, {}
    for name in OPTIONAL_PACKAGES:
        try:
            module = importlib.import_module(name)
        except (ImportError, OSError) as error:
            is_absent = isinstance(error, ModuleNotFoundError) and error.name == name
            problems[name] = (
                Running.NOT_INSTALLED(package=name) if is_absent else Running.NO_IMPORT(name=name, error=error)
            )
        else:
            packages[name] = _version(name) or str(getattr(module, "__version__", ""))
    for name in LIGHTX2V_PACKAGES:
        if importlib.util.find_spec(name):
            packages[name] = ""
    return packages, problems


def confirm(
    wanted: Wanted, device: torch.device, *, hooks: Hooks | None = None, lightx2v_matmul: Multiply | None = None
) -> Backends:
    """Choose kernels, and prove that each works on `device` before anything depends on it; logs them, a line each.

    Args:
        hooks: for the first trials on this machine, which take a while.
        lightx2v_matmul: computes trial_inputs.multiply with an op of LightX2V, for its engine.

    Raises:
        ValueError, MissingDependencyError, UnsupportedHardwareError: see choose.choose.
        RuntimeError: a trial ran out of GPU memory, which says nothing of its back end.
    """
    backends = settle(wanted, device, hooks or Hooks(), lightx2v_matmul)
    _announce(backends, device)
    return backends


def settle(wanted: Wanted, device: torch.device, hooks: Hooks, lightx2v_matmul: Multiply | None = None) -> Backends:
    """Do the same without a word."""
    try_apart(device, hooks, is_lightx2v=wanted.engine == "lightx2v")
    return _settle(lambda machine: choose(machine, wanted), lambda chosen: _trials_of(chosen, lightx2v_matmul), device)


def work(backends: Backends, device: torch.device, hooks: Hooks, lightx2v_matmul: Multiply | None = None) -> bool:
    """Say whether kernels that were chosen work on `device`, and log them; see confirm."""
    try_apart(device, hooks, is_lightx2v=backends.engine == "lightx2v")
    is_known = find_machine(device).failed_trials
    if any((trial.task, trial.backend) in is_known for trial in _trials_of(backends, lightx2v_matmul)):
        return False
    if any(trial_problem(trial, device) is not None for trial in _trials_of(backends, lightx2v_matmul)):
        return False
    _announce(backends, device)
    return True


def _announce(backends: Backends, device: torch.device) -> None:
    for reason in backends.reasons:
        logger.info("LightX2V: %s.", reason)
    if backends.is_in_place:
        logger.info("LightX2V: %s", Running.IN_PLACE(name=backends.attention.name))
    if device.type == "cuda" and backends.widening_problem:
        logger.warning("LightX2V: %s", backends.widening_problem)
    # The trial runs compiled; what that took shall not come on top of the weights.
    release_memory(device)


def confirm_vae_ops(device: torch.device, hooks: Hooks | None = None) -> VaeOps:
    """Return Triton's operations for the VAE where a trial run on `device` agrees with plain torch, else those."""
    try_apart(device, hooks or Hooks())
    choice = _settle(
        functools.partial(choose_fused, _VAE), lambda choice: iter([trial_of(_VAE, choice.backend)]), device
    )
    logger.info("LightX2V: %s", Running.VAE_DECODER(choice=choice))
    return load_vae_ops(choice.name)


def try_apart(device: torch.device, hooks: Hooks, *, is_lightx2v: bool = False) -> None:
    """Give kernels that this combination of card and versions never ran their first trial in a process of their own.

    One that ends it is a failed trial from then on, in later processes too. Nothing is done where there is no place to
    remember it, or nothing new.

    Args: is_lightx2v: whether LightX2V's own kernels are of interest.
    """
    notes = remembered.notes()
    machine = find_machine(device) if notes.are_kept else None
    if machine is None or machine.capability is None:
        return
    combination = combination_of(machine, device)
    tried = notes.about(combination).trials
    new = [named for named, _ in _trials_apart(machine, is_lightx2v=is_lightx2v) if str(named) not in tried]
    if not new:
        return
    logger.info("LightX2V: %s", Running.FIRST_TRIALS(names=_list(new)))
    # What this process keeps for later is what the other one needs.
    release_memory(device)
    try:
        for named, died in trial_process.run_apart(new, str(device), hooks):
            notes.add_trial(combination, str(named), died)
            if died:
                logger.warning("LightX2V: %s", Running.ENDED_AND_LEFT(named=named, died=died))
    except trial_process.NoChildError as error:
        logger.warning("LightX2V: %s", Running.TRIED_HERE(error=error))


def survives(named: Named, device: torch.device, *, lightx2v_matmul: Multiply | None = None) -> bool:
    """Run a trial, whatever comes of it; returns whether there was the memory for it."""
    table = LIGHTX2V_MATMUL_BACKENDS if named.is_lightx2v else _table_of(named.task)
    row = next(row for row in table if row.name == named.kernel and (named.precision or "bf16") in row.dtypes)
    try:
        _try(trial_of(named.task, row, named.precision, lightx2v_matmul), device)
    except RuntimeError as error:
        if not is_surely_out_of_memory(error):
            raise
        return False
    return True


def _list(names: Sequence[Named]) -> str:
    return ", ".join(map(str, names))


def _table_of(task: str) -> Sequence[Backend]:
    if task in (BLOCKS, _VAE):
        return BLOCK_BACKENDS
    return ATTENTION_BACKENDS if task in (ATTENTION, IN_PLACE) else MATMUL_BACKENDS


def _trials_apart(machine: Machine, *, is_lightx2v: bool) -> Iterator[tuple[Named, Backend]]:
    """Yield all trials that may end a process: of kernels that a compiler or a package brings, where they can run."""
    matmuls = [(Running.MATMUL(precision=each), each) for each in ("fp8", "int8")]
    tables = [(BLOCKS, ""), (_VAE, ""), (ATTENTION, ""), (IN_PLACE, ""), *matmuls, (JOINED, "fp8")]
    groups = [(task, precision, _table_of(task), False) for task, precision in tables]
    if is_lightx2v:
        groups += [(task, precision, LIGHTX2V_MATMUL_BACKENDS, True) for task, precision in matmuls]
    for task, precision, table, is_own in groups:
        for row in table:
            if task == IN_PLACE and machine.capability not in row.in_place_on:
                continue
            if task == JOINED and not may_join(row, machine):
                continue
            if row.package is not None and why_not(row, machine, precision or "bf16") is None:
                yield Named(task=task, kernel=row.name, precision=precision, is_lightx2v=is_own), row


def trial_of(task: str, row: Backend, precision: str = "", lightx2v_matmul: Multiply | None = None) -> Trial:
    """Return the trial of a row for a task; of a matmul with weights of a precision."""
    if task == BLOCKS:
        return Trial(task, row, "torch", trial_inputs.run_ops, FUSED_TOLERANCE)
    if task == _VAE:
        return Trial(task, row, "torch", trial_inputs.run_vae_ops, FUSED_TOLERANCE)
    if task == ATTENTION:
        return Trial(task, row, "sdpa", trial_inputs.attend)
    if task == IN_PLACE:
        return Trial(task, row, "", trial_inputs.attend_in_place)
    if task == JOINED:
        return Trial(task, row, "", trial_inputs.multiply_joined)
    run = functools.partial(lightx2v_matmul or trial_inputs.multiply, precision)
    return Trial(task, row, "dequantize", run)


def _trials_of(backends: Backends, lightx2v_matmul: Multiply | None) -> Iterator[Trial]:
    blocks, attention, matmul = backends.blocks, backends.attention, backends.matmul
    if blocks.name == "triton":
        yield trial_of(blocks.task, blocks.backend)
    yield trial_of(attention.task, attention.backend)
    if backends.is_in_place:
        yield trial_of(IN_PLACE, attention.backend)
    if backends.precision != "bf16":
        yield trial_of(matmul.task, matmul.backend, backends.precision, lightx2v_matmul)
    if backends.joins_loras:
        yield trial_of(JOINED, matmul.backend)


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
            logger.info(
                "LightX2V: %s",
                Running.FAILED_TRIAL(task=trial.task, name=trial.backend.name, problem=_outcomes[key]),
            )
    return _outcomes[key]


def _try(trial: Trial, device: torch.device) -> str | None:
    try:
        found = trial.run(trial.backend.name, device).float()
        difference = (found - trial.run(trial.reference, device).float()).norm() / found.norm()
        relative = float(difference)
    except kernel_errors() as error:
        if isinstance(error, RuntimeError) and is_surely_out_of_memory(error):
            raise
        first_line = (str(error).splitlines() or [""])[0]
        return Running.TRIAL_FAILED(kind=type(error).__name__, first_line=first_line)
    return None if relative < trial.tolerance else Running.TRIAL_OFF(relative=relative)


def kernel_errors() -> tuple[type[Exception], ...]:
    """Return what a kernel that does not fit raises; Triton's compiler has exceptions of its own."""
    errors = getattr(sys.modules.get("triton"), "errors", None)
    return _KERNEL_ERRORS if errors is None else (*_KERNEL_ERRORS, errors.TritonError)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
