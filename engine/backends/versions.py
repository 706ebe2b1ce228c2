"""Where a kernel is not offered, and why: versions of Triton and torch, cards and systems. Pure: facts in, reason out.

A trial run finds what raises or computes wrongly. These rows are for what it cannot find: a compiler that ends the
whole process, and code that is right and slow. Those on Triton are what `python tools cards compile` finds with that
version; what a row lets through is compiled for every card by tests/cards, with the Triton that is installed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..sentences.kernels import Running

# CUDA compute capability, (major, minor).
Capability = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """What a kernel needs at least."""

    lowest: Capability
    needs_triton: bool = True


KERNELS: Mapping[str, Kernel] = {
    "block_ops": Kernel(lowest=(8, 0)),
    "block_ops_fp8": Kernel(lowest=(8, 9)),
    "vae_ops": Kernel(lowest=(8, 0)),
    "int8_matmul": Kernel(lowest=(8, 0)),
    "requantize": Kernel(lowest=(8, 0)),
    "attention_int8": Kernel(lowest=(8, 0)),
    "attention_fp8": Kernel(lowest=(8, 9)),
    "fp8_matmul": Kernel(lowest=(8, 9)),
    "scales": Kernel(lowest=(8, 9)),
    "scaled_mm": Kernel(lowest=(8, 9), needs_triton=False),
    "scaled_mm_tensor": Kernel(lowest=(8, 9), needs_triton=False),
    "sdpa_cudnn": Kernel(lowest=(8, 0), needs_triton=False),
}
"""By name: the pack's Triton kernels by module, scaled_mm is torch._scaled_mm with a scale per row, scaled_mm_tensor
with one a tensor, and sdpa_cudnn cuDNN's attention in torch, which runs from 8.0 on by PyTorch's
aten/src/ATen/native/transformers/cuda/sdp_utils.cpp, check_cudnn_hardware_support."""

_TRITON = frozenset(name for name, kernel in KERNELS.items() if kernel.needs_triton)


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Where kernels are not offered. A row applies where everything that it names does."""

    kernels: frozenset[str]
    reason: str
    lowest: Capability = (0, 0)
    highest: Capability = (99, 0)
    package: str = "triton"
    """Whose versions it is about; "" for none."""
    since: str = "0"
    """The first version of the package that the row applies to."""
    before: str = ""
    """The first version that it does not apply to any more; every later one when empty."""
    system: str = ""
    """As sys.platform; every system when empty."""


REFUSALS: tuple[Refusal, ...] = (
    Refusal(
        kernels=_TRITON,
        lowest=(12, 0),
        before="3.3",
        reason=Running.TRITON_BEFORE_3_3(),
    ),
    Refusal(
        kernels=frozenset({"attention_fp8", "fp8_matmul"}),
        lowest=(12, 0),
        before="3.5",
        reason=Running.TRITON_BEFORE_3_5(),
    ),
    Refusal(
        kernels=frozenset({"attention_fp8"}),
        lowest=(9, 0),
        highest=(9, 0),
        before="3.4",
        reason=Running.TRITON_BEFORE_3_4(),
    ),
    Refusal(
        kernels=frozenset({"attention_fp8", "attention_int8"}),
        lowest=(10, 0),
        highest=(11, 99),
        package="",
        reason=Running.ATTENTION_NOT_COMPILED(),
    ),
    Refusal(
        kernels=frozenset({"attention_int8"}),
        lowest=(8, 6),
        highest=(8, 9),
        before="3.2",
        reason=Running.TRITON_BEFORE_3_2(),
    ),
    Refusal(
        kernels=frozenset({"scaled_mm"}),
        package="torch",
        system="win32",
        reason=Running.WINDOWS_WITHOUT_ROW_SCALES(),
    ),
    Refusal(
        kernels=frozenset({"scaled_mm"}),
        package="torch",
        highest=(8, 9),
        before="2.7",
        reason=Running.PYTORCH_BEFORE_2_7(),
    ),
    Refusal(
        kernels=frozenset({"scaled_mm"}),
        package="torch",
        lowest=(12, 0),
        before="2.8",
        reason=Running.PYTORCH_BEFORE_2_8(),
    ),
    Refusal(
        kernels=frozenset({"scaled_mm_tensor"}),
        package="torch",
        system="win32",
        before="2.4",
        reason=Running.WINDOWS_WITHOUT_FP8(),
    ),
)


TORCH_WITH_TRITON = (
    ("2.6", "3.2"), ("2.7", "3.3"), ("2.8", "3.4"), ("2.9", "3.5"), ("2.10", "3.6"), ("2.11", "3.6"), ("2.12", "3.7"),
    ("2.13", "3.7"),
)  # fmt: skip
"""Every PyTorch that was looked at and the Triton that comes with it (on Windows: the triton-windows that fits it)."""

NEWEST_TRIED: Mapping[str, str] = {"torch": TORCH_WITH_TRITON[-1][0], "triton": "3.9"}
"""By package, the newest version that anything of the pack was run or compiled with: docs/cards.md."""


def newest_tried(package: str, version: str) -> str:
    """Return the newest version of a package that was tried where this one is newer, else ""."""
    newest = NEWEST_TRIED.get(package, "")
    return newest if newest and _key(version) > _key(newest) else ""


def why_refused(kernel: str, capability: Capability, versions: Mapping[str, str], system: str) -> str | None:
    """Return why a kernel is not offered, or None.

    Args:
        kernel: a name of KERNELS.
        capability: of the card.
        versions: by import name, of "torch" and "triton"; a package that is absent is not here.
        system: as sys.platform.

    Raises:
        KeyError: there is no such kernel.
    """
    needs = KERNELS[kernel]
    if capability < needs.lowest:
        return Running.NEEDS_CAPABILITY(wanted=_dotted(needs.lowest), found=_dotted(capability))
    if needs.needs_triton and "triton" not in versions:
        return Running.NOT_INSTALLED(package="triton")
    return find_refusal(kernel, capability, versions, system)


def find_refusal(kernel: str, capability: Capability, versions: Mapping[str, str], system: str) -> str | None:
    """Return what of REFUSALS says why a kernel is not offered, or None; see why_refused."""
    for row in REFUSALS:
        applies = kernel in row.kernels and row.lowest <= capability <= row.highest and row.system in ("", system)
        if applies and not row.package:
            return row.reason
        version = versions.get(row.package)
        if applies and version is not None and _is_between(version, row.since, row.before):
            return Running.FOUND_VERSION(reason=row.reason, package=row.package, version=version)
    return None


def _is_between(version: str, since: str, before: str) -> bool:
    return _key(since) <= _key(version) and (not before or _key(version) < _key(before))


def _key(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version.split("+")[0])[:2])


def _dotted(capability: Capability) -> str:
    return f"{capability[0]}.{capability[1]}"
