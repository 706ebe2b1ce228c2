"""Which published file is for which card: the fastest there. Doctor, download lists, README and templates ask here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..backends.choose import Wanted, choose, too_old
from ..backends.table import Machine
from ..backends.versions import Capability
from ..checkpoints.published import ALL_PUBLISHED, ARCHITECTURE, PUBLISHED, Variant
from ..constants import DEFAULT_HEIGHT, DEFAULT_NUM_FRAMES, DEFAULT_WIDTH
from ..memory.clip import Clip
from ..sentences.doctor import Doctor
from . import speed

# What the seconds are of.
CLIP = Clip(width=DEFAULT_WIDTH, height=DEFAULT_HEIGHT, num_frames=DEFAULT_NUM_FRAMES)
# A card of each compute capability whose rates are published, to compare files on cards that are not listed.
_STAND_INS: Mapping[Capability, str] = {
    (8, 0): "A100-SXM4-80GB",
    (8, 6): "RTX 3060",
    (8, 9): "RTX 4060",
    (9, 0): "H200",
    (12, 0): "RTX 5060 Ti",
    (12, 1): "RTX 5060 Ti",
}


# Another file is worth a download of its own, and a word, where a step takes so many times as long.
_WORTH_IT = 1.05


@dataclass(frozen=True, kw_only=True)
class Advice:
    """A published variant on a card."""

    variant: Variant
    numbers: str
    """What the file has and, where it is another one, what the card computes in."""
    step_seconds: float | None
    """Of a step of CLIP with all weights on the card; None where nothing is known about the card."""
    is_measured: bool
    """Whether the seconds come from kernels that were measured here."""

    def __str__(self) -> str:
        """Return e.g. "int8: about 26 s a step at 832x480, 81 frames (an estimate)"."""
        if self.step_seconds is None:
            return Doctor.FILE_WITH(name=self.variant.name, numbers=self.numbers)
        how = Doctor.KERNELS_MEASURED_HERE() if self.is_measured else Doctor.ESTIMATE()
        size = Doctor.SIZE(width=CLIP.width, height=CLIP.height, num_frames=CLIP.num_frames)
        seconds = f"{self.step_seconds:.1f}" if self.step_seconds < 10 else f"{self.step_seconds:.0f}"
        computed = "" if self.numbers == self.variant.precision else Doctor.COMPUTED(numbers=self.numbers)
        return Doctor.SECONDS_OF_STEP(name=self.variant.name, computed=computed, seconds=seconds, size=size, how=how)


def rank_files(machine: Machine, card: str, variants: Iterable[Variant] = PUBLISHED.values()) -> list[Advice]:
    """Return published variants, best first: folders before single files, of each the fastest on the card.

    Of two that are equally fast the one goes first whose numbers the card computes in: nothing is lost on the way.
    Where nothing is known about the card, and on one that is too old, they come as published.

    Args:
        machine: the facts about it; what was measured there goes before every estimate.
        card: its name, as torch reports it.
    """
    if too_old(machine):
        return [
            Advice(variant=variant, numbers=variant.precision, step_seconds=None, is_measured=False)
            for variant in variants
        ]
    found = [_advise(machine, card, variant) for variant in variants]
    stand_in = None if machine.capability is None else _STAND_INS.get(machine.capability)

    def key(advice: Advice) -> tuple[bool, float, bool]:
        variant, seconds = advice.variant, advice.step_seconds
        if seconds is None and stand_in is not None:
            seconds = _advise(machine, stand_in, variant).step_seconds
        return not variant.is_folder, round(seconds or 0.0, 3), advice.numbers != variant.precision

    return found if machine.capability is None else sorted(found, key=key)


def faster_files(names: Iterable[str], machine: Machine, card: str) -> dict[str, str]:
    """Return, by those of the names that are 8-bit transformers, the file of the same model that is faster on the card.

    Where nothing is known about the card, none is.
    """
    found = {}
    for name in names:
        for variant in ALL_PUBLISHED.values():
            places = [index for index, part in enumerate(variant.parts) if not part.is_companion and part.holds(name)]
            if not places or variant.is_folder or variant.is_lora or variant.precision == "bf16":
                continue
            family = [each for each in ALL_PUBLISHED.values() if each.family == variant.family]
            ranked = rank_files(machine, card, family)
            own = next(advice for advice in ranked if advice.variant == variant)
            if _times_as_fast(ranked[0], own) is not None:
                found[name] = ranked[0].variant.file_names[places[0]]
    return found


def faster_precision(precision: str, machine: Machine, card: str) -> tuple[str, float] | None:
    """Return the precision in which a model is clearly faster on the card than in this one, and how many times.

    None where there is none, or nothing is known about the card.
    """
    ranked = [advice for advice in rank_files(machine, card) if advice.variant.is_folder]
    own = next(advice for advice in ranked if advice.variant.precision == precision)
    times = _times_as_fast(ranked[0], own)
    return None if times is None else (ranked[0].variant.precision, times)


def _times_as_fast(one: Advice, other: Advice) -> float | None:
    """Return how many times as fast as another one a file is, None where that is not worth a word or not known."""
    if not one.step_seconds or not other.step_seconds or other.step_seconds <= _WORTH_IT * one.step_seconds:
        return None
    return other.step_seconds / one.step_seconds


def _advise(machine: Machine, card: str, variant: Variant) -> Advice:
    backends = choose(
        machine,
        Wanted(
            precision=variant.precision,
            dim=ARCHITECTURE.dim,
            ffn_dim=ARCHITECTURE.ffn_dim,
            num_heads=ARCHITECTURE.num_heads,
            tokens=CLIP.tokens,
        ),
    )
    setup = speed.setup_of(backends, card, ARCHITECTURE, "none", CLIP.tokens)
    return Advice(
        variant=variant,
        numbers=backends.numbers,
        step_seconds=speed.step_seconds(setup, CLIP.tokens),
        is_measured=setup.parts is not None,
    )
