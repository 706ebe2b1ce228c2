"""Two folders of cases, side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from . import record

# Kinds of cases that are nothing without a tensor.
TENSORS = ("latents", "frames")


@dataclass(frozen=True)
class Expected:
    """Cases that may differ: by anything, or tensors by at most so much."""

    pattern: str
    limit: float | None = None

    @classmethod
    def parse(cls, text: str) -> Expected:
        """Read PATTERN or PATTERN:LIMIT, e.g. frames/*:1e-5."""
        pattern, _, limit = text.rpartition(":")
        return cls(pattern, float(limit)) if pattern else cls(text)

    def covers(self, difference: Difference) -> bool:
        fits = self.limit is None or (difference.distance is not None and difference.distance <= self.limit)
        return fits and fnmatchcase(difference.case, self.pattern)


@dataclass(frozen=True)
class Difference:
    """A case that is not equal on both sides."""

    case: str
    what: str
    distance: float | None = None
    """Largest absolute difference of two finite tensors of one shape; None for everything else."""


def compare(old: Path, new: Path) -> Iterator[Difference]:
    """Yield what differs between two folders of cases, in the order of the old one."""
    before, after = record.read(old), record.read(new)
    for name in [*before, *(name for name in after if name not in before)]:
        if name not in before or name not in after:
            yield Difference(name, "only the old side has it" if name in before else "only the new side has it")
        elif "tensor" in before[name] and "tensor" in after[name]:
            pair = (torch.load(side / cases[name]["tensor"]) for side, cases in ((old, before), (new, after)))
            yield from _compare_tensors(name, *pair)
        else:
            lines = list(_compare_data("", before[name].get("value", "a tensor"), after[name].get("value", "a tensor")))
            if lines:
                yield Difference(name, "\n".join(lines))


def _compare_tensors(name: str, old: torch.Tensor, new: torch.Tensor) -> Iterator[Difference]:
    if (old.shape, old.dtype) != (new.shape, new.dtype):
        yield Difference(name, f"{tuple(old.shape)} {old.dtype} -> {tuple(new.shape)} {new.dtype}")
        return
    bits = [each.contiguous().flatten().view(torch.uint8).view(-1, each.element_size()) for each in (old, new)]
    unequal = (bits[0] != bits[1]).any(1)
    if not unequal.any():
        return
    share = float(unequal.float().mean())
    distance = float((new.double() - old.double()).abs().max())
    if distance != distance or distance == float("inf"):
        counts = [int((~each.isfinite()).sum()) for each in (old, new)]
        yield Difference(name, f"{share:.1%} of the values; not finite: {counts[0]} -> {counts[1]}")
    else:
        yield Difference(name, f"{share:.1%} of the values, by at most {distance:.3g}", distance)


def _compare_data(place: str, old: Any, new: Any) -> Iterator[str]:
    """Yield a line for every leaf that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from _compare_data(f"{place}.{key}".lstrip("."), old.get(key, "(absent)"), new.get(key, "(absent)"))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, pair in enumerate(zip(old, new, strict=True)):
            yield from _compare_data(f"{place}[{index}]", *pair)
    elif old != new or type(old) is not type(new):
        yield f"{place or 'value'}\n    old: {old}\n    new: {new}"


def describe(old: Path, new: Path, expected: Sequence[Expected], *, limit: int) -> tuple[str, bool]:
    """Return a table, and whether something was compared and all that differs was expected.

    Args:
        limit: unexpected differences that are shown of each kind of case.
    """
    cases = record.read(old) | record.read(new)
    kinds = list(dict.fromkeys(map(_kind, cases)))
    lines: list[str] = []
    differing: Counter[str] = Counter()
    unexpected: Counter[str] = Counter()
    for difference in compare(old, new):
        kind = _kind(difference.case)
        differing[kind] += 1
        if any(each.covers(difference) for each in expected):
            continue
        unexpected[kind] += 1
        if unexpected[kind] <= limit:
            lines.append(f"{difference.case}: {difference.what}")
    lines += [f"{kind}: {count - limit} more, shown with --all" for kind, count in unexpected.items() if count > limit]
    lines.append(
        f"\n{'kind':14}{'cases':>7}{'equal':>7}{'expected':>10}{'DIFFERENT':>11}{'errors':>8}{'skipped':>9}{'CPU s':>7}"
    )
    for kind in kinds:
        these = [case for name, case in cases.items() if _kind(name) == kind]
        equal, known = len(these) - differing[kind], differing[kind] - unexpected[kind]
        errors, skipped = (sum(bool(_note(case, mark)) for case in these) for mark in ("error", "skipped"))
        line = f"{kind:14}{len(these):7}{equal:7}{known:10}{unexpected[kind]:11}{errors:8}{skipped:9}"
        lines.append(f"{line}{sum(case['seconds'] for case in these):7.1f}")
    # Refusals are what that kind is for; of others, only what works on both sides is worth something.
    reasons = Counter(
        f"{mark}: {_note(case, mark)[:160]}" for name, case in cases.items() for mark in ("error", "skipped")
        if _note(case, mark) and _kind(name) != "refusal"
    )  # fmt: skip
    lines += [f"{count} x {reason}" for reason, count in reasons.items()]
    empty = [
        kind for kind in kinds if kind in TENSORS and not any("tensor" in cases[n] for n in cases if _kind(n) == kind)
    ]
    lines += [f"NOTHING COMPARED of {kind}: no case gave a tensor" for kind in empty]
    if not cases:
        lines.append("NOTHING COMPARED: no case was asked for")
    return "\n".join(lines), bool(cases) and not unexpected and not empty


def _kind(case: str) -> str:
    return case.partition("/")[0]


def _note(case: dict[str, Any], mark: str) -> str:
    value = case.get("value")
    return str(value.get(mark, "")) if isinstance(value, dict) else ""
