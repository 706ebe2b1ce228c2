"""Tables of back ends: what each needs, takes and costs, and which of them a machine can run. Pure.

A back end is a row here and a function of the same name in engine/kernels. Which row a run takes is choose.py; facts
about this machine are gathered by trials.py.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import LightX2VError, MissingDependencyError, NoCapableBackendError, UnsupportedHardwareError
from ..sentences import joined
from ..sentences.between import Between
from ..sentences.kernels import Running
from ..sentences.settings import Settings
from .versions import Capability, find_refusal


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Facts about this computer that decide which back ends run."""

    capability: Capability | None = None
    """Of the CUDA device in use; None without one."""
    system: str = sys.platform
    torch: str = ""
    """Version; "" where it is unknown, and nothing is refused for it."""
    packages: Mapping[str, str] = field(default_factory=dict)
    """Version by import name, of the optional packages that import; "" where it is unknown."""
    problems: Mapping[str, str] = field(default_factory=dict)
    """Why a package (by import name) does not import."""
    failed_trials: Mapping[tuple[str, Backend], str] = field(default_factory=dict)
    """Why a back end failed its trial run, by task and row."""
    measured: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Seconds that back ends took here, by name, for the problems that choose.py names."""


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One way to do a job. Among those that can run, `auto` takes the highest rank."""

    name: str
    dtypes: frozenset[str]
    """What it takes: bf16 and fp16 activations (attention), files with fp8 or int8 weights (matmul)."""
    rank: int
    package: str | None = None
    """Import name of the optional package it needs."""
    min_version: str = "0"
    min_capability: Capability | None = None
    """None: runs without CUDA too."""
    max_capability: Capability = (99, 0)
    ranks: Mapping[Capability, int] = field(default_factory=dict)
    """Its rank on cards where that is another one."""
    systems: frozenset[str] = frozenset()
    """Where it runs, as sys.platform says; empty: everywhere."""
    kernels: tuple[str, ...] = ()
    """Its kernels in versions.py, which knows where they are not to be tried."""
    install: str = ""
    """The one line that installs the package."""
    multiple: int = 1
    """Matmul: what both sizes of the weight must be a multiple of."""
    inputs: str | None = None
    """Matmul: what it multiplies, fp8 | int8; None leaves activations in BF16. Weights of an fp8 file become int8 where
    they arrive on the card (kernels/requantize.py)."""
    joins_from: Capability | None = None
    """Matmul: the oldest card on which it takes rows that lie apart, and so LoRAs beside its inputs; None: on none."""
    bytes: float = 0.0
    """Attention: bytes per token and unit of width that it takes beside q, k and v, its output included."""
    in_place_on: frozenset[Capability] = frozenset()
    """Attention: cards on which the pack's kernels can prepare its inputs in the memory of q, k and v."""
    in_place_bytes: float = 0.0
    """Attention: what it takes beside q, k and v then."""
    unit: str = "bf16"
    """Attention: the dtype whose rate it lives on."""
    seconds: float | None = None
    """Attention: of one step at 832x480, 81 frames, of Wan2.1-14B on an H200."""
    share: float = 1.0
    """Attention: part of the unit's published rate that it reaches on cards other than Hopper."""
    shares: Mapping[str, float] = field(default_factory=dict)
    """The same by system, as sys.platform, where it is another."""
    rest_seconds: Mapping[str, float] = field(default_factory=dict)
    """Blocks: of everything but self-attention in such a step, by what the linears compute in."""
    is_measured: bool = True
    """Whether it was run on a card for this table."""

    def __hash__(self) -> int:
        return hash((self.name, self.rank, self.package))

    def rank_on(self, capability: Capability | None) -> int:
        """Return the rank on a card; None is no card."""
        return self.rank if capability is None else self.ranks.get(capability, self.rank)


_SAGE_INSTALL = "pip install --no-build-isolation git+https://github.com/thu-ml/SageAttention@v2.2.0"
_TRITON_INSTALL = f"pip install {'triton-windows' if sys.platform == 'win32' else 'triton'}"
_Q8_INSTALL = "pip install --no-build-isolation git+https://github.com/KONAKONA666/q8_kernels"
_HALF = frozenset({"bf16", "fp16"})
_EIGHT_BIT = frozenset({"fp8", "int8"})
_HOPPER, _ADA = (9, 0), (8, 9)
_AMPERE, _BLACKWELL = ((8, 0), (8, 6)), ((12, 0), (12, 1))

# Ranks follow an H200 at 832x480x81, ms a call: SageAttention 2 and the pack's `triton` 27, its `triton_int8` 36, cuDNN
# SDPA 39, Sage's Triton kernel 49, flash SDPA 60. flash_attn3 is not measured, but whoever built it wants it.
# triton_int8 goes first on all cards but Hopper and Blackwell's for data centres, whose other tensor cores FP8 feeds as
# fast: where they are told to work as an RTX 40 does (python tools cards run --arch 89) it takes 47 ms, `triton` 78; as
# an RTX 30 50 ms, flash SDPA 60, memory-efficient SDPA, all that torch has on Windows, 123. cuDNN goes before SDPA on
# cards of compute capability 8 for Windows' sake; where SDPA has flash attention both are taken for equal. On consumer
# Blackwell SageAttention 2.2 itself says that its Triton kernel does not run (core.py, sm120).
# Bytes, from first principles: the output is BF16 (2); SageAttention 2 holds q and k in INT8 (2), v transposed in BF16
# (2) and in FP8 (1); its Triton kernel q and k in INT8 (2) and v in FP16 (2); the pack's own have copies of q and k (4)
# and v in 8 bits (1.1). In place, behind the pack's preparation, only v in 8 bits is new, of triton_int8 with scales of
# the queries: 1.08.
# Shares: RTX 4090 in the papers of SageAttention 2 (arXiv 2411.10958: 481 TOP/s) and SageAttention (arXiv 2410.02367:
# 340 TOP/s, FlashAttention-2 165); `triton` is taken for as fast as Sage's Triton kernel there, and triton_int8, of
# which the figures above would make 0.84, for no faster than SageAttention 2 until such a card was measured.
# Memory-efficient SDPA: half of flash (cuDNN was about twice as fast there: ComfyUI's pull request 9299).
ATTENTION_BACKENDS: tuple[Backend, ...] = (
    Backend(
        name="sage_attn2",
        dtypes=_HALF,
        rank=60,
        package="sageattention",
        min_version="2",
        min_capability=(8, 0),
        install=_SAGE_INSTALL,
        bytes=7.0,
        in_place_on=frozenset({_HOPPER}),
        in_place_bytes=1.1,
        unit="int8",
        seconds=1.11,
        share=0.73,
    ),
    Backend(
        name="flash_attn3",
        dtypes=_HALF,
        rank=50,
        package="flash_attn_interface",
        min_capability=_HOPPER,
        max_capability=_HOPPER,
        install="git clone https://github.com/Dao-AILab/flash-attention && cd flash-attention/hopper && "
        "python setup.py install",
        bytes=2.1,
        seconds=1.58,
        share=0.60,
        is_measured=False,
    ),
    Backend(
        name="sdpa_cudnn",
        dtypes=_HALF,
        rank=40,
        ranks=dict.fromkeys((*_AMPERE, _ADA), 15),
        min_capability=(8, 0),
        kernels=("sdpa_cudnn",),
        bytes=2.1,
        seconds=1.58,
        share=0.90,
    ),
    Backend(
        name="sage_triton",
        dtypes=_HALF,
        rank=30,
        package="sageattention",
        min_capability=(8, 0),
        install=_SAGE_INSTALL,
        bytes=6.0,
        unit="int8",
        seconds=1.95,
        share=0.51,
    ),
    Backend(
        name="flash_attn2",
        dtypes=_HALF,
        rank=20,
        package="flash_attn",
        min_version="2",
        min_capability=(8, 0),
        install="pip install --no-build-isolation flash-attn",
        bytes=2.1,
        seconds=2.40,
        share=0.90,
    ),
    Backend(
        name="sdpa",
        dtypes=_HALF | {"fp32"},
        rank=10,
        bytes=2.1,
        seconds=1.58,
        share=0.90,
        shares={"win32": 0.45},
    ),
    Backend(
        name="triton",
        dtypes=frozenset({"bf16"}),
        rank=45,
        package="triton",
        min_version="3",
        min_capability=_ADA,
        kernels=("attention_fp8",),
        install=_TRITON_INSTALL,
        bytes=7.1,
        in_place_on=frozenset({_ADA, _HOPPER, *_BLACKWELL}),
        in_place_bytes=1.1,
        unit="int8",
        seconds=1.10,
        share=0.51,
    ),
    Backend(
        name="triton_int8",
        dtypes=frozenset({"bf16"}),
        rank=5,
        ranks=dict.fromkeys((*_AMPERE, _ADA, *_BLACKWELL), 70),
        package="triton",
        min_version="3",
        min_capability=(8, 0),
        kernels=("attention_int8",),
        install=_TRITON_INSTALL,
        bytes=7.1,
        in_place_on=frozenset({*_AMPERE, _ADA, _HOPPER, *_BLACKWELL}),
        in_place_bytes=1.1,
        unit="int8",
        seconds=1.45,
        share=0.73,
    ),
)

# What a linear layer with 8-bit weights and a scale per output channel is computed with. FP8: with a scale per row in
# the multiplication, which torch has not everywhere (versions.py); the same in Triton; and with one scale a tensor, the
# others after it. Their order is that of an H100 at 832x480x81 (docs/benchmarks.md). A card that has none of them takes
# an FP8 file as INT8, which every card multiplies twice to four times as fast as BF16.
MATMUL_BACKENDS: tuple[Backend, ...] = (
    Backend(
        name="scaled_mm",
        dtypes=frozenset({"fp8"}),
        rank=60,
        min_capability=_ADA,
        kernels=("scaled_mm",),
        multiple=16,
        inputs="fp8",
        # The kernel for 8.9 takes a row's length for the distance (PyTorch's RowwiseScaledMM.cu, as of 01386a0).
        joins_from=_HOPPER,
    ),
    Backend(
        name="fp8_triton",
        dtypes=frozenset({"fp8"}),
        rank=50,
        package="triton",
        min_version="3",
        min_capability=_ADA,
        kernels=("fp8_matmul",),
        install=_TRITON_INSTALL,
        multiple=16,
        inputs="fp8",
        joins_from=_ADA,
    ),
    Backend(
        name="scaled_mm_tensor",
        dtypes=frozenset({"fp8"}),
        rank=40,
        min_capability=_ADA,
        kernels=("scaled_mm_tensor",),
        multiple=16,
        inputs="fp8",
    ),
    Backend(
        name="int_triton",
        dtypes=_EIGHT_BIT,
        rank=30,
        package="triton",
        min_version="3",
        min_capability=(8, 0),
        kernels=("int8_matmul", "requantize"),
        install=_TRITON_INSTALL,
        multiple=16,
        inputs="int8",
    ),
    Backend(name="int_mm", dtypes=_EIGHT_BIT, rank=20, min_capability=(8, 0), multiple=16, inputs="int8"),
    Backend(name="dequantize", dtypes=_EIGHT_BIT, rank=10),
)

# The same for LightX2V's own compute. Its Triton kernels quantize activations in the same pass, which plain torch does
# in several; its INT8 one cuts values off where it should round, so torch's goes first.
LIGHTX2V_MATMUL_BACKENDS: tuple[Backend, ...] = (
    Backend(
        name="q8_kernels",
        dtypes=_EIGHT_BIT,
        rank=70,
        package="q8_kernels",
        min_capability=_ADA,
        max_capability=_ADA,
        install=_Q8_INSTALL,
        is_measured=False,
    ),
    Backend(
        name="sgl_kernel",
        dtypes=_EIGHT_BIT,
        rank=60,
        package="sgl_kernel",
        min_capability=_ADA,
        install="pip install --no-deps sgl-kernel",
        is_measured=False,
    ),
    Backend(
        name="vllm",
        dtypes=_EIGHT_BIT,
        rank=50,
        package="vllm",
        min_capability=_ADA,
        install="pip install vllm",
        is_measured=False,
    ),
    Backend(name="triton", dtypes=frozenset({"fp8"}), rank=40, package="triton", min_capability=_ADA),
    Backend(name="scaled_mm", dtypes=frozenset({"fp8"}), rank=30, min_capability=_ADA, kernels=("scaled_mm",)),
    Backend(name="int_mm", dtypes=frozenset({"int8"}), rank=30, min_capability=(8, 0)),
    Backend(name="triton", dtypes=frozenset({"int8"}), rank=20, package="triton", min_capability=(8, 0)),
    Backend(name="dequantize", dtypes=_EIGHT_BIT, rank=10),
)

# What computes between a block's matmuls and attentions. Seconds with triton are the measured step less 1.11.
BLOCK_BACKENDS: tuple[Backend, ...] = (
    Backend(
        name="triton",
        dtypes=frozenset({"bf16"}),
        rank=20,
        package="triton",
        min_version="3",
        min_capability=(8, 0),
        kernels=("block_ops", "vae_ops"),
        install=_TRITON_INSTALL,
        rest_seconds={"fp8": 0.67, "int8": 0.71, "bf16": 1.13},
    ),
    Backend(name="torch", dtypes=frozenset({"bf16"}), rank=10, rest_seconds={"fp8": 1.75, "int8": 2.40, "bf16": 2.14}),
)
# LightX2V's own blocks; chosen with its engine, never by rank.
LIGHTX2V_BLOCKS = Backend(
    name="lightx2v",
    dtypes=frozenset({"bf16"}),
    rank=0,
    package="lightx2v",
    rest_seconds={"fp8": 1.23, "int8": 2.42, "bf16": 1.51},
)

# A back end that ranks lower is taken where it takes at most this share of the time: closer ones change places from one
# measurement to the next.
_CLEARLY_FASTER = 0.97

# What the attention widget offers.
ATTENTION_CHOICES = ("auto", *(backend.name for backend in ATTENTION_BACKENDS))


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The back end taken for a task, and why each better one was not."""

    task: str
    backend: Backend
    passed_over: Mapping[str, str] = field(default_factory=dict)
    measured: Mapping[str, float] = field(default_factory=dict, compare=False)
    """Seconds that back ends took here, by name; the choice goes by them where it is free."""
    problem: str = field(default="", compare=False)
    """What was or could be measured."""

    @property
    def name(self) -> str:
        return self.backend.name

    def __str__(self) -> str:
        names: dict[str, list[str]] = {}
        for name, reason in self.passed_over.items():
            if name not in self.measured:
                names.setdefault(reason, []).append(name)
        parts = []
        if self.measured:
            parts.append(Running.MEASURED_HERE(problem=self.problem, seconds=milliseconds(self.measured)))
        parts += [Running.NOT_TAKEN(names=", ".join(group), reason=reason) for reason, group in names.items()]
        chosen = Running.CHOSEN(task=self.task, name=self.name)
        return Running.CHOSEN_AS(chosen=chosen, reasons=joined(parts, Between.SEMICOLON)) if parts else chosen


def milliseconds(seconds: Mapping[str, float]) -> str:
    """Return measured seconds in words, the fastest first: "triton 27.1 ms, sdpa 60.3"."""
    first, *others = sorted(seconds, key=lambda name: seconds[name])
    return ", ".join(
        [f"{first} {seconds[first] * 1000:.3g} ms", *(f"{name} {seconds[name] * 1000:.3g}" for name in others)]
    )


def choose_backend(
    task: str,
    table: Sequence[Backend],
    requested: str,
    machine: Machine,
    *,
    dtype: str,
    problem: str = "",
) -> Choice:
    """Choose a row of `table` that `machine` can run.

    Args:
        task: what it is for, in messages and in `Machine.failed_trials`, e.g. "attention".
        requested: a row's name, taken or refused, or "auto": the best that runs, by what was measured here or by rank.
        dtype: what it must compute on, see `Backend.dtypes`.
        problem: what `Machine.measured` calls it.

    Raises:
        ValueError: no row has the requested name.
        MissingDependencyError: the requested back end needs a package that is not here.
        UnsupportedHardwareError: the requested back end does not run on this device.
        NoCapableBackendError: "auto", and nothing runs.
    """
    measured = machine.measured.get(problem, {})
    if requested == "auto":
        return _choose_best(task, [row for row in table if dtype in row.dtypes], machine, dtype, measured, problem)
    named = next((row for row in table if row.name == requested), None)
    if named is None:
        choices = ", ".join(["auto", *(row.name for row in table)])
        raise ValueError(Settings.NO_CHOICE(name=task, value=requested, choices=choices))
    reason = why_not(named, machine, dtype, task)
    if reason is not None:
        raise _refusal(task, named, machine, reason)
    return Choice(task=task, backend=named)


def _choose_best(
    task: str, rows: Sequence[Backend], machine: Machine, dtype: str, measured: Mapping[str, float], problem: str
) -> Choice:
    """Take the first by rank, unless one after it was measured to be clearly faster."""
    ranked = sorted(rows, key=lambda row: row.rank_on(machine.capability), reverse=True)
    problems = {row.name: why_not(row, machine, dtype, task) for row in ranked}
    running = [row for row in ranked if problems[row.name] is None]
    if not running:
        raise NoCapableBackendError(task, {name: reason or "" for name, reason in problems.items()})
    best = running[0]
    for row in running[1:] if best.name in measured else ():
        if measured.get(row.name, math.inf) < measured[best.name] * _CLEARLY_FASTER:
            best = row
    better = ranked[: ranked.index(best)]
    return Choice(
        task=task,
        backend=best,
        passed_over={row.name: problems[row.name] or Running.SLOWER_HERE() for row in better},
        measured={row.name: measured[row.name] for row in running if row.name in measured},
        problem=problem,
    )


def why_not(backend: Backend, machine: Machine, dtype: str, task: str = "") -> str | None:
    """Return why `machine` cannot run `backend` on `dtype`, for `task` where trials are to count, or None."""
    if dtype not in backend.dtypes:
        return Running.OTHER_DTYPE(dtypes=", ".join(sorted(backend.dtypes)), dtype=dtype)
    return (
        _hardware_problem(backend, machine)
        or package_problem(backend, machine)
        or machine.failed_trials.get((task, backend))
    )


def _hardware_problem(backend: Backend, machine: Machine) -> str | None:
    if backend.systems and machine.system not in backend.systems:
        return Running.OTHER_SYSTEM(system=machine.system)
    if backend.min_capability is None:
        return None
    if machine.capability is None:
        return Running.NO_CUDA()
    if backend.min_capability <= machine.capability <= backend.max_capability:
        return _version_problem(backend, machine.capability, machine)
    low, high = _dotted(backend.min_capability), _dotted(backend.max_capability)
    wanted: str = low if low == high else Running.FROM_TO(low=low, high=high)
    if backend.max_capability[0] == 99:
        wanted = Running.OR_HIGHER(low=low)
    return Running.NEEDS_CAPABILITY(wanted=wanted, found=_dotted(machine.capability))


def _version_problem(backend: Backend, capability: Capability, machine: Machine) -> str | None:
    versions = {name: version for name, version in {**machine.packages, "torch": machine.torch}.items() if version}
    found = (find_refusal(kernel, capability, versions, machine.system) for kernel in backend.kernels)
    return next((reason for reason in found if reason), None)


def package_problem(backend: Backend, machine: Machine) -> str | None:
    """Return why the package that a back end needs cannot be used, or None."""
    if backend.package is None:
        return None
    if backend.package not in machine.packages:
        return machine.problems.get(backend.package, Running.NOT_INSTALLED(package=backend.package))
    version = machine.packages[backend.package]
    if version and _version_key(version) < _version_key(backend.min_version):
        return Running.TOO_OLD_PACKAGE(package=backend.package, min_version=backend.min_version, version=version)
    return None


def _refusal(task: str, backend: Backend, machine: Machine, problem: str) -> LightX2VError:
    sentence = Running.CANNOT_RUN(task=task, name=backend.name, problem=problem)
    if _hardware_problem(backend, machine) is None and package_problem(backend, machine) is not None:
        return MissingDependencyError(Running.INSTALL_OR_AUTO(sentence=sentence, install=backend.install))
    return UnsupportedHardwareError(Running.CHOOSE_AUTO(sentence=sentence))


def _version_key(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version.split("+")[0])[:3])


def _dotted(capability: Capability) -> str:
    return f"{capability[0]}.{capability[1]}"
