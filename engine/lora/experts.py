"""A LoRA file for the experts of Wan2.2: which of them it goes to, and what its name says of that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..checkpoints.header import Header
from ..checkpoints.transformers import EXPERTS, word_of
from ..errors import CheckpointError, check_choice
from ..sentences.loras import Loras
from .changes import Lora
from .reader import other_expert, read_lora
from .report import LoraReport

EXPERT_CHOICES = ("both", *EXPERTS)


@dataclass(frozen=True, kw_only=True)
class ExpertLoras:
    """A LoRA as it applies to each expert of a checkpoint, which may be a single one."""

    each: tuple[Lora | None, ...]
    """None for an expert that it is not put on."""
    report: LoraReport

    @property
    def title(self) -> str:
        return self.report.title


def read_for_experts(path: Path, model: Header, names: Sequence[str], expert: str = "both") -> ExpertLoras:
    """Read a LoRA file for the experts of a checkpoint.

    A file that has a half for each expert gives each its own.

    Args:
        model: names and shapes of the checkpoint, native, without prefix; the same of all experts.
        names: of the experts, in their order; of a single transformer ("",), or high or low where that is known.
        expert: both | high | low: what it is to be put on.

    Raises:
        CheckpointError: see read_lora; or there is no such expert here.
    """
    check_choice("expert", expert, EXPERT_CHOICES)
    if expert != "both" and expert not in names:
        found = Loras.ONE_EXPERT(expert=names[0]) if names[0] else Loras.NO_PAIR()
        raise CheckpointError(Loras.NO_SUCH_EXPERT(name=path.name, expert=expert, found=found))
    each = tuple(
        read_lora(path, model, expert=name or "low", is_expert=bool(name)) if expert in ("both", name) else None
        for name in names
    )
    first = next(lora for lora in each if lora is not None)
    left_out = first.report.left_out
    if None not in each and len(each) > 1:
        left_out = {group: found for group, found in left_out.items() if group != other_expert("low")}
    notes = (*first.report.notes, *_notes(path, names, expert))
    is_idle = all(lora.report.is_idle for lora in each if lora is not None)
    report = replace(first.report, left_out=left_out, notes=notes, is_idle=is_idle)
    return ExpertLoras(each=tuple(lora and replace(lora, report=report) for lora in each), report=report)


def loras_of_experts(names: Sequence[str], facts: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Return what the report says of the LoRAs of all experts; of a single transformer its own, as they are."""
    if len(names) == 1:
        return [dict(lora) for lora in facts[0]]
    return [{**lora, "expert": name} for name, own in zip(names, facts, strict=True) for lora in own]


def _notes(path: Path, names: Sequence[str], expert: str) -> list[str]:
    said = word_of(Path(path.name))
    if len(names) > 1:
        where = Loras.BOTH_EXPERTS() if expert == "both" else Loras.EITHER_EXPERT(expert=expert)
        notes: list[str] = [Loras.PUT_ON(where=where)]
        if said and expert == "both":
            notes.append(Loras.NAMED_NOISE(said=said))
        elif said and said != expert:
            notes.append(Loras.WRONG_EXPERT(said=said))
        return notes
    if said and names[0] and said != names[0]:
        return [Loras.WRONG_NOISE(said=said, expert=names[0])]
    return []
