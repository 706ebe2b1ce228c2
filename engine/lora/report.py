"""How much of a LoRA applies to a checkpoint, for the log, the run report and the editor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..sentences import joined
from ..sentences.between import Between
from ..sentences.loras import Loras


@dataclass(frozen=True, kw_only=True)
class LoraReport:
    """What became of the tensors of a LoRA."""

    title: str
    matched: Mapping[str, int]
    """Tensors that apply, by the part of the model."""
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Names of tensors that apply to nothing here, by what they belong to."""
    ranks: tuple[int, ...] = ()
    """Of the pairs, ascending, each once."""
    factors: tuple[float, ...] = ()
    """alpha / rank of the pairs, ascending, each once."""
    notes: tuple[str, ...] = ()
    """Whole sentences."""
    is_idle: bool = False
    """Whether it changes nothing: what it would add is zero."""
    is_doubtful: bool = False
    """Whether settings that came with it are not used."""

    @property
    def num_matched(self) -> int:
        return sum(self.matched.values())

    @property
    def num_left_out(self) -> int:
        return sum(map(len, self.left_out.values()))

    def __str__(self) -> str:
        parts = (Loras.OF_GROUP(count=count, group=group) for group, count in self.matched.items())
        facts = {
            "title": self.title,
            "num_tensors": self.num_matched + self.num_left_out,
            "parts": joined(parts, Between.COMMA),
        }
        line: str = (
            Loras.APPLIES(num_matched=self.num_matched, **facts) if self.num_left_out else Loras.ALL_APPLY(**facts)
        )
        if self.ranks:
            line = Loras.WITH_RANKS(line=line, ranks=_span(self.ranks), factors=_span(self.factors))
        for group, names in self.left_out.items():
            more = ", ..." if len(names) > 3 else ""
            line = Loras.LEFT_OUT(line=line, num_names=len(names), group=group, names=", ".join(names[:3]), more=more)
        idle = [Loras.CHANGES_NOTHING(title=self.title)] if self.is_idle else []
        return joined([*idle, Loras.WHOLE(line=line), *self.notes], Between.BLANK)

    def as_data(self) -> dict[str, Any]:
        """Return it as JSON data."""
        return {
            "title": self.title,
            "matched": dict(self.matched),
            "left_out": {group: len(names) for group, names in self.left_out.items()},
            "ranks": list(self.ranks),
            "factors": list(self.factors),
            "notes": list(self.notes),
            "is_idle": self.is_idle,
            "line": str(self),
        }


def _span(numbers: Sequence[float]) -> str:
    first, last = f"{numbers[0]:.4g}", f"{numbers[-1]:.4g}"
    return first if first == last else Loras.SPAN(first=first, last=last)
