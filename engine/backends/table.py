"""Tables of attention and matmul back ends, and which of them a machine can run. Pure: facts in, choice out.

Facts are gathered by engine/kernels; both engines choose from these tables, each among the names it
implements. A new back end is a row here and a function there.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import LightX2VError, MissingDependencyError, NoCapableBackendError, UnsupportedHardwareError

# CUDA compute capability, (major, minor).
Capability = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Facts about this computer that decide which back ends run."""

    capability: Capability | None = None
    """Of the CUDA device in use; None without one."""
    packages: Mapping[str, str] = field(default_factory=dict)
    """Version by import name, of the optional packages that import; "" where it is unknown."""
    problems: Mapping[str, str] = field(default_factory=dict)
    """Why a package (by import name) does not import, or a back end (by name) failed its trial run."""


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One way to do a job. Among those that can run, `auto` takes the highest rank."""

    name: str
    dtypes: frozenset[str]
    """What it computes on: bf16 and fp16 activations (attention), fp8 or int8 weights (matmul)."""
    rank: int
    package: str | None = None
    """Import name of the optional package it needs."""
    min_version: str = "0"
    min_capability: Capability | None = None
    """None: runs without CUDA too."""
    max_capability: Capability = (99, 0)
    best_on: frozenset[Capability] = frozenset()
    """Cards on which it goes before every higher rank."""
    install: str = ""
    """The one line that installs the package."""


_SAGE_INSTALL = "pip install --no-build-isolation git+https://github.com/thu-ml/SageAttention@v2.2.0"
_TRITON_INSTALL = f"pip install {'triton-windows' if sys.platform == 'win32' else 'triton'}"
_HALF = frozenset({"bf16", "fp16"})

# Ranks follow an H200 at 832x480x81, ms a call: SageAttention 2 and the pack's Triton kernel 27, cuDNN SDPA 39, Sage's
# Triton kernel 49, flash SDPA 60. flash_attn3 is not measured, but whoever built it wants it. On Ada LightX2V takes
# Sage's Triton kernel before its CUDA ones (common/ops/attn/sage_attn.py); the pack's has the same tiles there, and no
# copies of q, k and v, so that more fits. On consumer Blackwell SageAttention 2.2 itself says that its Triton kernel
# does not run (core.py, sm120).
ATTENTION_BACKENDS: tuple[Backend, ...] = (
    Backend(
        name="sage_attn2",
        dtypes=_HALF,
        rank=60,
        package="sageattention",
        min_version="2",
        min_capability=(8, 0),
        install=_SAGE_INSTALL,
    ),
    Backend(
        name="flash_attn3",
        dtypes=_HALF,
        rank=50,
        package="flash_attn_interface",
        min_capability=(9, 0),
        max_capability=(9, 0),
        install="git clone https://github.com/Dao-AILab/flash-attention && cd flash-attention/hopper && "
        "python setup.py install",
    ),
    Backend(name="sdpa_cudnn", dtypes=_HALF, rank=40, min_capability=(9, 0)),
    Backend(
        name="sage_triton",
        dtypes=_HALF,
        rank=30,
        package="sageattention",
        min_capability=(8, 0),
        install=_SAGE_INSTALL,
    ),
    Backend(
        name="flash_attn2",
        dtypes=_HALF,
        rank=20,
        package="flash_attn",
        min_version="2",
        min_capability=(8, 0),
        install="pip install --no-build-isolation flash-attn",
    ),
    Backend(name="sdpa", dtypes=_HALF | {"fp32"}, rank=10),
    Backend(
        name="triton",
        dtypes=frozenset({"bf16"}),
        rank=45,
        package="triton",
        min_version="3",
        min_capability=(8, 9),
        max_capability=(9, 0),
        best_on=frozenset({(8, 9)}),
        install=_TRITON_INSTALL,
    ),
)

# What a linear layer with 8-bit weights and a scale per output channel is computed with.
MATMUL_BACKENDS: tuple[Backend, ...] = (
    Backend(name="scaled_mm", dtypes=frozenset({"fp8"}), rank=20, min_capability=(8, 9)),
    Backend(
        name="int_triton",
        dtypes=frozenset({"int8"}),
        rank=30,
        package="triton",
        min_version="3",
        min_capability=(8, 0),
        install=_TRITON_INSTALL,
    ),
    Backend(name="int_mm", dtypes=frozenset({"int8"}), rank=20, min_capability=(7, 5)),
    Backend(name="dequantize", dtypes=frozenset({"fp8", "int8"}), rank=10),
)

# What computes between a block's matmuls and attentions.
BLOCK_BACKENDS: tuple[Backend, ...] = (
    Backend(
        name="triton",
        dtypes=frozenset({"bf16"}),
        rank=20,
        package="triton",
        min_version="3",
        min_capability=(8, 0),
        install=_TRITON_INSTALL,
    ),
    Backend(name="torch", dtypes=frozenset({"bf16"}), rank=10),
)

# What the attention widget offers.
ATTENTION_CHOICES = ("auto", *(backend.name for backend in ATTENTION_BACKENDS))


def attention_backends(requested: str, *, is_fused: bool) -> tuple[Backend, ...]:
    """Return the rows to choose an attention from.

    Args:
        is_fused: whether blocks run the pack's Triton kernels. Without them `auto` does not take its attention either;
            whoever names it gets it.
    """
    return tuple(row for row in ATTENTION_BACKENDS if is_fused or requested != "auto" or row.name != "triton")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The back end taken for a task, and why each better one was not."""

    task: str
    name: str
    passed_over: Mapping[str, str]

    def __str__(self) -> str:
        names: dict[str, list[str]] = {}
        for name, reason in self.passed_over.items():
            names.setdefault(reason, []).append(name)
        reasons = "; ".join(f"not {', '.join(group)}: {reason}" for reason, group in names.items())
        return f"{self.task}: {self.name}" + (f" ({reasons})" if reasons else "")


def choose_backend(
    task: str,
    table: Sequence[Backend],
    requested: str,
    machine: Machine,
    *,
    dtype: str,
    among: Collection[str] | None = None,
) -> Choice:
    """Choose a row of `table` that `machine` can run.

    Args:
        task: what it is for, in messages, e.g. "attention".
        requested: a row's name, taken or refused, or "auto", the best that runs.
        dtype: what it must compute on, see `Backend.dtypes`.
        among: names that the calling engine implements; all when None.

    Raises:
        ValueError: no row has the requested name.
        MissingDependencyError: the requested back end needs a package that is not here.
        UnsupportedHardwareError: the requested back end does not run on this device.
        NoCapableBackendError: "auto", and nothing runs.
    """
    rows = [row for row in table if among is None or row.name in among]
    if requested == "auto":
        return _choose_best(task, [row for row in rows if dtype in row.dtypes], machine, dtype)
    named = next((row for row in rows if row.name == requested), None)
    if named is None:
        names = ", ".join(["auto", *(row.name for row in rows)])
        raise ValueError(f"{task} is {requested!r}; expected one of: {names}.")
    problem = why_not(named, machine, dtype)
    if problem is not None:
        raise _refusal(task, named, machine, problem)
    return Choice(task=task, name=named.name, passed_over={})


def _choose_best(task: str, rows: Sequence[Backend], machine: Machine, dtype: str) -> Choice:
    passed_over: dict[str, str] = {}
    for row in sorted(rows, key=lambda row: (machine.capability in row.best_on, row.rank), reverse=True):
        problem = why_not(row, machine, dtype)
        if problem is None:
            return Choice(task=task, name=row.name, passed_over=passed_over)
        passed_over[row.name] = problem
    raise NoCapableBackendError(task, passed_over)


def why_not(backend: Backend, machine: Machine, dtype: str) -> str | None:
    """Return why `machine` cannot run `backend` on `dtype`, or None."""
    if dtype not in backend.dtypes:
        return f"computes on {', '.join(sorted(backend.dtypes))}, not on {dtype}"
    return (
        _hardware_problem(backend, machine)
        or _package_problem(backend, machine)
        or machine.problems.get(backend.name)
        or None
    )


def _hardware_problem(backend: Backend, machine: Machine) -> str | None:
    if backend.min_capability is None:
        return None
    if machine.capability is None:
        return "there is no CUDA device"
    if backend.min_capability <= machine.capability <= backend.max_capability:
        return None
    low, high = _dotted(backend.min_capability), _dotted(backend.max_capability)
    wanted = low if low == high else f"{low} or higher" if backend.max_capability[0] == 99 else f"{low} to {high}"
    return f"needs compute capability {wanted}; this GPU has {_dotted(machine.capability)}"


def _package_problem(backend: Backend, machine: Machine) -> str | None:
    if backend.package is None:
        return None
    if backend.package not in machine.packages:
        return machine.problems.get(backend.package, f"package {backend.package} is not installed")
    version = machine.packages[backend.package]
    if version and _version_key(version) < _version_key(backend.min_version):
        return f"needs {backend.package} {backend.min_version} or newer; found {version}"
    return None


def _refusal(task: str, backend: Backend, machine: Machine, problem: str) -> LightX2VError:
    sentence = f"The {task} back end {backend.name!r} was chosen, but cannot run here: {problem}."
    if _hardware_problem(backend, machine) is None and _package_problem(backend, machine) is not None:
        return MissingDependencyError(f"{sentence} Install it with `{backend.install}`, or choose 'auto'.")
    return UnsupportedHardwareError(f"{sentence} Choose 'auto'.")


def _version_key(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version.split("+")[0])[:3])


def _dotted(capability: Capability) -> str:
    return f"{capability[0]}.{capability[1]}"
