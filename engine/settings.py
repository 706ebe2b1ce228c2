"""What a user chose, as frozen dataclasses. No behaviour beyond checking the values and doubting them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .backends.table import ATTENTION_CHOICES
from .constants import DISTILL_HIGH_STEPS, DISTILL_SHIFT, DISTILL_STEPS, MAX_GIB, MAX_STEPS
from .errors import check_choice
from .sentences.sampling import Sampling
from .sentences.settings import Settings

ENGINES = ("auto", "lightx2v", "portable")
OFFLOAD_MODES = ("auto", "none", "block", "phase", "disk")
TILING_MODES = ("auto", "on", "off")
SAMPLING_METHODS = ("lcm", "euler")
TEXT_DEVICES = ("cpu", "gpu")
COMPILE_MODES = ("auto", "on", "off")


# "2", or "0,2".
_GPUS = re.compile(r"[1-9]\d*|\d+(,\d+)+")


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """How the transformer is run."""

    engine: str = "auto"
    """auto and portable (the pack's own compute) | lightx2v (LightX2V's own, bit for bit)."""
    attention: str = "auto"
    """Name of an attention back end of backends/table.py, or auto."""
    compile: str = "auto"
    """Fused Triton kernels in the pack's own blocks: auto (where they work) | on | off (plain torch)."""

    def __post_init__(self) -> None:
        check_choice("engine", self.engine, ENGINES)
        check_choice("attention", self.attention, ATTENTION_CHOICES)
        check_choice("compile", self.compile, COMPILE_MODES)
        if self.engine == "lightx2v" and self.compile == "on":
            raise ValueError(Settings.COMPILE_WITH_LIGHTX2V())


@dataclass(frozen=True, kw_only=True)
class OffloadSettings:
    """Where weights rest while they are not needed."""

    mode: str = "auto"
    """auto (the fastest that fits) | none (all on the GPU) | block | phase (third of a block) | disk (blocks read
    when needed)."""
    vram_budget_gib: float = 0.0
    """GiB of VRAM that torch may reserve in all; 0 = what is free."""
    pinned_ram_limit_gib: float = 0.0
    """GiB of page-locked RAM the pack may use; 0 = the system's usual limit."""
    vae_tiling: str = "auto"
    """auto | on | off, for decoding and encoding; the decode node's own choice wins unless it is auto."""

    def __post_init__(self) -> None:
        check_choice(Settings.OFFLOAD_MODE(), self.mode, OFFLOAD_MODES)
        check_choice(Settings.VAE_TILING(), self.vae_tiling, TILING_MODES)
        for name, gib in (
            ("vram_budget_gib", self.vram_budget_gib),
            ("pinned_ram_limit_gib", self.pinned_ram_limit_gib),
        ):
            if not 0 <= gib <= MAX_GIB:
                raise ValueError(Settings.ODD_LIMIT(name=name, gib=gib, most=MAX_GIB))


@dataclass(frozen=True, kw_only=True)
class GpuSettings:
    """Which GPUs compute one clip together."""

    gpus: str = "1"
    """A number of GPUs, or auto (all there are, where they can), or the numbers of some, such as "0,2"."""

    def __post_init__(self) -> None:
        if self.gpus != "auto" and not _GPUS.fullmatch(self.gpus):
            raise ValueError(Settings.ODD_GPUS(gpus=self.gpus))

    @property
    def count(self) -> int | None:
        """How many there are to be; None is as many as there are."""
        if self.gpus == "auto":
            return None
        return len(self.named) or int(self.gpus)

    @property
    def named(self) -> tuple[int, ...]:
        """The numbers of those that are named."""
        return tuple(int(number) for number in self.gpus.split(",")) if "," in self.gpus else ()


SHIFTS = (0.001, 1000.0)
"""The least and the most; outside of these, noise levels in float32 are 0 or 1 alone."""


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """One run of the few-step sampler."""

    seed: int
    """Seed of the CPU noise generator; item i of a batch uses seed + i."""
    method: str = "lcm"
    """lcm (fresh noise each step) | euler (deterministic, as current LightX2V)."""
    steps: int = DISTILL_STEPS
    shift: float = DISTILL_SHIFT
    high_steps: int = DISTILL_HIGH_STEPS
    """Of two experts of Wan2.2, the first so many steps are the high-noise expert's."""

    def __post_init__(self) -> None:
        check_choice("method", self.method, SAMPLING_METHODS)
        if not 1 <= self.steps <= MAX_STEPS:
            raise ValueError(Settings.ODD_STEPS(steps=self.steps, most=MAX_STEPS))
        least, most = SHIFTS
        if not least <= self.shift <= most:
            raise ValueError(Settings.ODD_SHIFT(shift=self.shift, least=f"{least:g}", most=f"{most:g}"))
        if self.high_steps < 0:
            raise ValueError(Settings.ODD_HIGH_STEPS(high_steps=self.high_steps))

    def doubts(self, num_experts: int) -> list[str]:
        """Return what is unlike the distillation and may spoil the picture, one sentence each."""
        doubts: list[str] = []
        if self.steps != DISTILL_STEPS or self.shift != DISTILL_SHIFT:
            doubts.append(
                Sampling.UNUSUAL_STEPS(
                    steps=self.steps, shift=self.shift, distill_steps=DISTILL_STEPS, distill_shift=DISTILL_SHIFT
                )
            )
        if num_experts == 1 or 2 * self.high_steps == self.steps:
            return doubts
        if 0 < self.high_steps < self.steps:
            doubts.append(Sampling.UNUSUAL_BOUNDARY(high_steps=self.high_steps, steps=self.steps))
        else:
            expert = "low" if self.high_steps else "high"
            doubts.append(Sampling.IDLE_EXPERT(expert=expert, high_steps=self.high_steps, steps=self.steps))
        return doubts


@dataclass(frozen=True, kw_only=True)
class HostPolicy:
    """What the host's launch flags ask of a plan; the offload node's named modes go before it."""

    prefer: str = "speed"
    """speed (as much on the GPU as fits) | streaming (no resident blocks: --lowvram) | least (phases, tiled decode:
    --novram)."""
    reserved_vram_bytes: int | None = None
    """VRAM to leave to others (--reserve-vram); None leaves what is usual on the system."""
    pinned_limit_bytes: int | None = None
    """RAM that may be page-locked; 0 with --disable-pinned-memory, None for no limit."""
