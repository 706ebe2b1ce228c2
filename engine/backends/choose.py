"""Which kernels a run computes with: one pure function from the machine and the settings to one value.

The memory plan carries the value, trials.py confirms it, and forecast, doctor, report and the transformer read it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..errors import LightX2VError, MissingDependencyError, UnsupportedHardwareError
from ..sentences.kernels import Running
from .table import (
    ATTENTION_BACKENDS,
    BLOCK_BACKENDS,
    LIGHTX2V_BLOCKS,
    LIGHTX2V_MATMUL_BACKENDS,
    MATMUL_BACKENDS,
    Backend,
    Choice,
    Machine,
    choose_backend,
)
from .versions import Capability

# Older cards have no attention for BF16 that does without all scores at once: flash attention and cuDNN need 8.0, and
# memory-efficient attention takes FP16 and FP32 there (PyTorch's aten/src/ATen/native/transformers/cuda/sdp_utils.cpp).
OLDEST: Capability = (8, 0)
# How to get a kernel that multiplies 8 bits on every supported card.
MATMUL_INSTALL = next(row.install for row in MATMUL_BACKENDS if row.package == "triton")
# What choices are for, in messages and in Machine.failed_trials.
BLOCKS, ATTENTION, IN_PLACE = Running.BLOCKS(), Running.ATTENTION(), Running.ATTENTION_IN_PLACE()
JOINED = Running.LORAS_JOINED()


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What decides the kernels of a run, beside the machine."""

    precision: str
    """fp8 | int8 | bf16, of the weights of the blocks' linears."""
    dim: int
    ffn_dim: int
    engine: str = "portable"
    """portable | lightx2v."""
    attention: str = "auto"
    fused_kernels: str = "auto"
    """auto | on | off, for the portable engine."""
    num_heads: int = field(default=0, compare=False)
    tokens: int = field(default=0, compare=False)
    """Of the clip; 0 where there is none. What was measured for about so many decides between back ends, nothing else,
    so that another clip is no other wish."""


@dataclass(frozen=True, kw_only=True)
class Backends:
    """The kernels of a run."""

    wanted: Wanted
    blocks: Choice
    """triton | torch, or lightx2v for LightX2V's own blocks."""
    attention: Choice
    is_in_place: bool
    """Whether the attention overwrites q, k and v, see kernels/attention.py."""
    matmul: Choice
    joins_loras: bool = False
    """Whether LoRAs go through the product of their layer, see kernels/joined.py: not where the matmul takes rows that
    lie side by side only."""

    @property
    def engine(self) -> str:
        return self.wanted.engine

    @property
    def precision(self) -> str:
        return self.wanted.precision

    @property
    def names(self) -> tuple[object, ...]:
        """What runs, without the reasons."""
        return self.wanted, self.blocks.name, self.attention.name, self.is_in_place, self.matmul.name, self.joins_loras

    @property
    def is_fused(self) -> bool:
        """Whether the blocks run the pack's Triton kernels."""
        return self.blocks.name == "triton"

    @property
    def inputs(self) -> str:
        """What the linears multiply: fp8 | int8 | bf16."""
        own = self.precision if self.engine == "lightx2v" and self.matmul.name != "dequantize" else "bf16"
        return self.matmul.backend.inputs or own

    @property
    def requantizes(self) -> bool:
        """Whether the weights of an FP8 file are put to INT8 where they arrive on the device."""
        return self.precision == "fp8" and self.inputs == "int8"

    @property
    def numbers(self) -> str:
        """What the file has and what the linears multiply, in words: "fp8", or "fp8 file, int8 compute"."""
        return (
            self.precision
            if self.inputs == self.precision
            else Running.FILE_AND_COMPUTE(precision=self.precision, inputs=self.inputs)
        )

    @property
    def attention_bytes(self) -> float:
        """Bytes per token and unit of width that self-attention takes beside q, k and v."""
        row = self.attention.backend
        return row.in_place_bytes if self.is_in_place else row.bytes

    @property
    def measured(self) -> Mapping[str, Mapping[str, float]]:
        """What was measured here of the choices, see Machine.measured."""
        return {choice.problem: choice.measured for choice in (self.attention, self.matmul) if choice.measured}

    def attention_seconds(self, tokens: int) -> float | None:
        """Return the seconds of a block's self-attention by what was measured here, or None."""
        seconds = self.attention.measured.get(self.attention.name)
        return seconds and seconds * (tokens / size_class(self.wanted.tokens)) ** 2

    def linear_seconds(self, tokens: int) -> float | None:
        """Return the seconds of a block's linears by what was measured here, or None."""
        seconds = self.matmul.measured.get(self.matmul.name)
        return seconds and seconds * tokens / LINEAR_TOKENS

    @property
    def reasons(self) -> tuple[str, ...]:
        """Each choice in words, with why the better ones were not taken."""
        reasons = [str(self.attention)]
        if self.precision != "bf16":
            reasons.append(str(self.matmul))
        if self.inputs != self.precision:
            how = Running.REQUANTIZED() if self.requantizes else Running.WIDENED()
            reasons.append(Running.WEIGHTS_ARE(numbers=self.numbers, how=how))
        if self.engine != "lightx2v":
            reasons.append(str(self.blocks))
        return tuple(reasons)

    @property
    def widening_problem(self) -> str:
        """What to do where weights in 8 bits are widened, which every supported card could multiply; "" elsewhere."""
        if self.matmul.name != "dequantize":
            return ""
        return Running.WIDENS(numbers=self.numbers, install=MATMUL_INSTALL, matmul=self.matmul)

    def as_facts(self) -> dict[str, object]:
        """Return the choices as the run report shows them."""
        return {
            "engine": self.engine,
            "precision": self.precision,
            "compute": self.inputs,
            "attention": self.attention.name,
            "attention_in_place": self.is_in_place,
            "matmul": self.matmul.name,
            "ops": self.blocks.name,
            "compile": self.is_fused,
            **({"measured": {name: dict(seconds) for name, seconds in self.measured.items()}} if self.measured else {}),
        }


def size_class(tokens: int) -> int:
    """Return the power of two that stands for clips of about so many tokens."""
    return int(2 ** round(math.log2(tokens)))


# Tokens for which the seconds of linears are given: they grow with the tokens, so that one number serves all clips.
LINEAR_TOKENS = 32_768


def attention_problem(wanted: Wanted, blocks: str) -> str:
    """Return what Machine.measured calls the self-attention of a block; "" where there is no clip.

    Args: blocks: what computes around it, and prepares its inputs.
    """
    if not wanted.tokens:
        return ""
    return Running.ATTENTION_OF(
        num_tokens=size_class(wanted.tokens),
        num_heads=wanted.num_heads,
        width=wanted.dim // wanted.num_heads,
        blocks=blocks,
    )


def matmul_problem(wanted: Wanted, inputs: str | None) -> str:
    """Return what Machine.measured calls the linears of a block that multiply in 8 bits, fp8 | int8."""
    if not wanted.tokens:
        return ""
    return Running.LINEARS_OF(num_tokens=LINEAR_TOKENS, rows=wanted.dim, columns=wanted.ffn_dim, inputs=inputs)


def choose(machine: Machine, wanted: Wanted) -> Backends:
    """Choose the kernels of a run.

    Raises:
        ValueError: no attention back end has the requested name.
        MissingDependencyError, UnsupportedHardwareError: the settings name what cannot run here; the card is too old.
    """
    if problem := too_old(machine):
        raise UnsupportedHardwareError(problem)
    blocks = _choose_blocks(machine, wanted)
    is_fused = blocks.name == "triton"
    rows = attention_rows(wanted.attention, is_fused=is_fused)
    problem = attention_problem(wanted, blocks.name)
    attention = choose_backend(ATTENTION, rows, wanted.attention, machine, dtype="bf16", problem=problem)
    matmul = _choose_matmul(machine, wanted, is_fused=is_fused)
    return Backends(
        wanted=wanted,
        blocks=blocks,
        attention=attention,
        is_in_place=is_fused and _may_run_in_place(attention.backend, machine),
        matmul=matmul,
        joins_loras=is_fused and may_join(matmul.backend, machine),
    )


def too_old(machine: Machine) -> str:
    """Return what to do about a card that no transformer runs on, or ""."""
    if machine.capability is None or machine.capability >= OLDEST:
        return ""
    major, minor = machine.capability
    return Running.CARD_TOO_OLD(major=major, minor=minor)


def choose_fused(task: str, machine: Machine) -> Choice:
    """Choose Triton's operations where they run, else plain torch's."""
    return choose_backend(task, BLOCK_BACKENDS, "auto", machine, dtype="bf16")


def attention_rows(requested: str, *, is_fused: bool) -> tuple[Backend, ...]:
    """Return the rows to choose an attention from.

    Args:
        is_fused: whether blocks run the pack's Triton kernels. Without them `auto` does not take its attention either;
            whoever names it gets it.
    """
    return tuple(row for row in ATTENTION_BACKENDS if is_fused or requested != "auto" or row.package != "triton")


def _choose_blocks(machine: Machine, wanted: Wanted) -> Choice:
    if wanted.engine == "lightx2v":
        return Choice(task=BLOCKS, backend=LIGHTX2V_BLOCKS)
    if wanted.fused_kernels == "off":
        return choose_backend(
            BLOCKS, [row for row in BLOCK_BACKENDS if row.name == "torch"], "auto", machine, dtype="bf16"
        )
    choice = choose_fused(BLOCKS, machine)
    if wanted.fused_kernels == "on" and choice.name != "triton":
        raise _refusal(choice, machine)
    return choice


def _refusal(choice: Choice, machine: Machine) -> LightX2VError:
    row = next(row for row in BLOCK_BACKENDS if row.name == "triton")
    sentence = Running.NOT_FUSED(problem=choice.passed_over[row.name])
    if machine.capability is not None and row.package not in machine.packages:
        return MissingDependencyError(Running.FUSED_INSTALL(sentence=sentence, install=row.install))
    return UnsupportedHardwareError(Running.FUSED_AUTO(sentence=sentence))


def _may_run_in_place(attention: Backend, machine: Machine) -> bool:
    """Say whether a back end can overwrite q, k and v beside fused kernels: yes until a trial run says no."""
    return machine.capability in attention.in_place_on and (IN_PLACE, attention) not in machine.failed_trials


def may_join(matmul: Backend, machine: Machine) -> bool:
    """Say whether a back end can take LoRAs beside its inputs: yes until a trial run says no."""
    if machine.capability is None or matmul.joins_from is None or machine.capability < matmul.joins_from:
        return False
    return (JOINED, matmul) not in machine.failed_trials


def _choose_matmul(machine: Machine, wanted: Wanted, *, is_fused: bool) -> Choice:
    task = Running.MATMUL(precision=wanted.precision)
    if wanted.precision == "bf16":
        return Choice(task=task, backend=Backend(name="bf16", dtypes=frozenset({"bf16"}), rank=0))
    rows = LIGHTX2V_MATMUL_BACKENDS if wanted.engine == "lightx2v" else matmul_rows(wanted, is_fused=is_fused)
    ranked = choose_backend(task, rows, "auto", machine, dtype=wanted.precision)
    if ranked.backend.inputs is None:
        return ranked
    # The ranks say what is multiplied, and what was measured of that which one does it.
    problem = matmul_problem(wanted, ranked.backend.inputs)
    return choose_backend(task, rows, "auto", machine, dtype=wanted.precision, problem=problem)


def matmul_rows(wanted: Wanted, *, is_fused: bool) -> tuple[Backend, ...]:
    """Return the rows to choose a matmul from: without fused kernels none of Triton's, and what takes these sizes."""
    sizes = (wanted.dim, wanted.ffn_dim)
    return tuple(
        row
        for row in MATMUL_BACKENDS
        if (is_fused or row.package != "triton") and not any(size % row.multiple for size in sizes)
    )
