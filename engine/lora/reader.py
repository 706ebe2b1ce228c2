"""Reads LoRA files, and LoRAs that came as patches: by their headers alone, but for the few numbers called alpha."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..checkpoints.disk import stamp
from ..checkpoints.header import Header, read_metadata
from ..checkpoints.kinds import identify_kind
from ..checkpoints.names import promises_distilled
from ..checkpoints.pth import is_pth
from ..checkpoints.weights import PthWeights, SafetensorsWeights, Weights
from ..errors import CheckpointError
from ..sentences import joined
from ..sentences.between import Between
from ..sentences.kinds import Kinds
from ..sentences.lora_files import LoraFiles
from .changes import Change, Lora, check_strength, fits
from .keys import Foreign, Name, Spellings, family_of
from .peft import Peft, Scale, describe, read_peft
from .report import LoraReport

_DTYPES = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})
_NUMBERS = _DTYPES | {"I64", "I32", "I16", "I8", "U8"}
# Metadata in which training tools say what a file is.
_TITLES = ("modelspec.title", "modelspec.architecture", "ss_output_name", "ss_base_model_version")
_EXPECTED = LoraFiles.EXPECTED()
# Part of the model, in reports -> start of its tensors' names within a block.
_PARTS = {
    LoraFiles.SELF_ATTENTION(): ("self_attn.",),
    LoraFiles.CROSS_ATTENTION(): ("cross_attn.",),
    LoraFiles.FEED_FORWARD(): ("ffn.",),
    LoraFiles.NORMS_MODULATION(): ("norm", "modulation"),
}
_WIDTHS = {1536: "Wan2.1 1.3B", 3072: "Wan2.2 5B", 5120: LoraFiles.WAN_MODEL_14B()}
_IMAGE_BRANCH = LoraFiles.IMAGE_BRANCH()
_IMAGE_INPUT = LoraFiles.INPUT_OF_36_CHANNELS()
_OTHER_SHAPE = LoraFiles.ANOTHER_SHAPE()
_NAMED_EXPERT = re.compile(r"(high|low)[ _-]?noise", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Patch:
    """What a host's own LoRA loader would add to one tensor of the model."""

    key: str
    """Name of the tensor, native, maybe with the prefix diffusion_model."""
    kind: str
    """lora | diff | set; anything else is refused by this name."""
    tensors: tuple[Any, ...]
    """lora: up [N, r], down [r, K], alpha or None, and what else its kind has, which must be None. diff, set: one."""
    strength: float = 1.0


def read_lora(path: Path, model: Header, *, expert: str = "low", is_expert: bool = False) -> Lora:
    """Read a LoRA file for a checkpoint.

    Args:
        path: .safetensors, or .pt, .pth or .bin with nothing but tensors.
        model: names and shapes of the checkpoint, native, without prefix.
        expert: low | high: which half is taken of a file for both experts of Wan2.2.
        is_expert: whether the checkpoint is known to be that expert.

    Raises:
        CheckpointError: the file is damaged or no LoRA, holds what cannot be applied exactly (LoHa, LoKr, DoRA ...), or
            is for another model, so that nothing applies.
    """
    size, changed = stamp(path)
    if is_pth(path):
        weights: Weights = PthWeights(path)
        metadata: dict[str, str] = {}
    else:
        weights, metadata = SafetensorsWeights([path]), read_metadata(path)
    titles = " ".join((path.name, *(metadata.get(key, "") for key in _TITLES)))
    reading = _Reading(f"LoRA {path.name}", weights.header, Spellings(model), model, titles, is_expert=is_expert)
    peft = read_peft(path, metadata, weights.header, _EXPECTED)
    changes = reading.changes(expert, peft, lambda name: weights[name])
    report = reading.report(path.name, changes, is_idle=_is_idle(changes, weights))
    weights.close()
    # The settings beside it may change where the file does not.
    identity = (str(path), size, changed, expert, hash(tuple(change.factor for change in changes)))
    return Lora(
        identity=identity,
        title=path.name,
        changes=tuple(changes),
        tensors=weights,
        report=report,
        may_distill=promises_distilled(titles),
        path=path,
        stamp=(size, changed),
    )


def lora_of_patches(patches: Sequence[Patch], model: Header, *, title: str, identity: Hashable) -> Lora:
    """Return the LoRA that a host's own loader has read, in the order in which it applies its patches.

    Args:
        model: names and shapes of the checkpoint, native, without prefix.
        identity: the same for the same patches.

    Raises:
        CheckpointError: a patch is of a kind that cannot be applied exactly, or of another shape than its tensor.
    """
    tensors: dict[str, torch.Tensor] = {}
    changes: dict[str, list[Change]] = defaultdict(list)
    for number, patch in enumerate(patches):
        target = patch.key.removeprefix("diffusion_model.")
        change, parts = _change_of_patch(patch, target, number, model)
        tensors |= parts
        if change.replaces:
            changes[target].clear()
        changes[target].append(change)
    flat = [change for group in changes.values() for change in group]
    report = _report(title, flat, is_idle=_is_idle(flat, tensors))
    return Lora(identity=identity, title=title, changes=tuple(flat), tensors=tensors, report=report)


def _change_of_patch(patch: Patch, target: str, number: int, model: Header) -> tuple[Change, dict[str, torch.Tensor]]:
    if patch.kind not in ("lora", "diff", "set"):
        raise CheckpointError(LoraFiles.OTHER_KIND(key=patch.key, kind=patch.kind, expected=_EXPECTED))
    if target not in model:
        raise CheckpointError(LoraFiles.NO_TARGET(key=patch.key))
    if patch.kind == "lora":
        up, down, alpha, *further = patch.tensors
        if any(each is not None for each in further):
            raise CheckpointError(LoraFiles.DORA(key=patch.key, expected=_EXPECTED))
        if not _is_pair(down.shape, up.shape):
            raise CheckpointError(LoraFiles.ODD_PATCH(key=patch.key, down=list(down.shape), up=list(up.shape)))
        parts = {f"{number}.down": down, f"{number}.up": up}
        factor = patch.strength * (1.0 if alpha is None else float(alpha) / len(down))
        change = Change(target=target, names=tuple(parts), rank=len(down), factor=factor)
    else:
        parts, replaces = {f"{number}.full": patch.tensors[0]}, patch.kind == "set"
        factor = 1.0 if replaces else patch.strength
        change = Change(target=target, names=tuple(parts), factor=factor, replaces=replaces)
    if not fits(change, [tuple(each.shape) for each in parts.values()], model):
        shapes = joined((str(list(each.shape)) for each in parts.values()), Between.AND)
        raise CheckpointError(LoraFiles.OTHER_SHAPE(key=patch.key, shapes=shapes, shape=list(model[target].shape)))
    check_strength(patch.strength, patch.key)
    _check_factor(change.factor, LoraFiles.FACTOR_FOR(key=patch.key))
    return change, parts


def _is_pair(down: Sequence[int], up: Sequence[int]) -> bool:
    """Say whether tensors of these shapes are the two halves of one matrix."""
    return len(down) > 0 and len(up) > 1 and down[0] == up[1] and down[0] > 0


class _Reading:
    """One file being read."""

    def __init__(
        self, subject: str, header: Header, spellings: Spellings, model: Header, titles: str, *, is_expert: bool
    ) -> None:
        """Args:
        subject: of sentences.
        titles: the file's name, and what it is called in itself.
        is_expert: see read_lora.
        """
        self.subject = subject
        self._titles = titles
        self._is_expert = is_expert
        self._header = header
        self._model = model
        self._left_out: dict[str, list[str]] = defaultdict(list)
        self.notes: list[str] = []
        self.is_doubtful = False
        self._by_settings: list[float] = []
        self._widths: set[int] = set()
        self._parts: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
        self._spelled: dict[str, str] = {}
        foreign: dict[str, list[str]] = defaultdict(list)
        behind: dict[str, list[tuple[str, Name]]] = defaultdict(list)
        for name in header:
            meaning = spellings.read(name)
            if isinstance(meaning, Foreign):
                foreign[meaning.kind].append(name)
            elif meaning.group:
                self._left_out[meaning.group].append(name)
            elif meaning.prefix:
                behind[meaning.prefix].append((name, meaning))
            else:
                self._add(name, meaning)
        if foreign:
            self._refuse(foreign)
        self._take(behind)

    def changes(self, expert: str, peft: Peft, read: Callable[[str], torch.Tensor]) -> list[Change]:
        """Return what the file changes."""
        self._leave_other_expert(expert)
        changes: list[Change] = []
        for (module, _), parts in self._parts.items():
            found = [*self._pair(module, parts, peft.scale, read), *self._differences(module, parts)]
            changes += found
            if "alpha" in parts and not any(change.rank for change in found) and "down" not in parts:
                self._left_out[LoraFiles.ALPHA_ALONE()].append(parts["alpha"])
        if not changes:
            raise CheckpointError(self._nothing())
        self._add_notes(peft)
        return changes

    def report(self, title: str, changes: Sequence[Change], *, is_idle: bool) -> LoraReport:
        """Return how much of the file applies."""
        found = _report(title, changes, self._left_out, tuple(self.notes), is_idle=is_idle)
        return replace(found, is_doubtful=self.is_doubtful)

    def _take(self, behind: Mapping[str, Sequence[tuple[str, Name]]]) -> None:
        """Take the modules behind a prefix that is not known, where there are no others."""
        if self._parts:
            for found in behind.values():
                self._left_out[LoraFiles.LACKED_MODULES()] += (name for name, _ in found)
            return
        if len(behind) > 1:
            prefixes, more = ", ".join(list(behind)[:3]), ", ..." if len(behind) > 3 else ""
            raise CheckpointError(
                LoraFiles.SEVERAL_LORAS(subject=self.subject, num_found=len(behind), prefixes=prefixes, more=more)
            )
        for name, meaning in (each for found in behind.values() for each in found):
            self._add(name, meaning)

    def _add(self, name: str, meaning: Name) -> None:
        parts = self._parts[meaning.module, meaning.expert]
        if meaning.part in parts:
            raise CheckpointError(LoraFiles.TWICE(subject=self.subject, part=parts[meaning.part], name=name))
        if self._header[name].dtype not in (_DTYPES if meaning.part != "alpha" else _NUMBERS):
            raise CheckpointError(LoraFiles.ODD_DTYPE(subject=self.subject, name=name, dtype=self._header[name].dtype))
        parts[meaning.part] = name

    def _refuse(self, foreign: Mapping[str, Sequence[str]]) -> None:
        kinds = joined(
            (LoraFiles.FOREIGN(kind=kind, num_tensors=len(names), example=names[0]) for kind, names in foreign.items()),
            Between.COMMA,
        )
        raise CheckpointError(LoraFiles.NOT_EXACT(subject=self.subject, kinds=kinds, expected=_EXPECTED))

    def _leave_other_expert(self, expert: str) -> None:
        """Of a file for both experts of Wan2.2, leave one out; what has no mark is the first one, as in diffusers."""
        experts = {marked for _, marked in self._parts}
        if len(experts) < 2:
            return
        for module, marked in list(self._parts):
            whose = marked or ("high" if "low" in experts else "low")
            if whose != expert:
                names = self._parts.pop((module, marked)).values()
                self._left_out[other_expert(whose)] += names
        whose = LoraFiles.ONE_HALF(expert=expert)
        self.notes.append(LoraFiles.BOTH_EXPERTS(each=LoraFiles.OWN_HALF() if self._is_expert else whose))

    def _pair(
        self,
        module: str,
        parts: Mapping[str, str],
        peft_scale: Scale | None,
        read: Callable[[str], torch.Tensor],
    ) -> Iterable[Change]:
        names = [parts[part] for part in ("down", "up") if part in parts]
        if not names:
            return
        if len(names) == 1:
            raise CheckpointError(LoraFiles.HALF_A_PAIR(subject=self.subject, names=names[0]))
        down, up = (self._header[name] for name in names)
        if not _is_pair(down.shape, up.shape):
            raise CheckpointError(
                LoraFiles.ODD_PAIR(
                    subject=self.subject,
                    down=names[0],
                    shape=list(down.shape),
                    up=names[1],
                    other_shape=list(up.shape),
                )
            )
        rank = down.shape[0]
        factor = 1.0
        if "alpha" in parts:
            factor = self._alpha(parts["alpha"], read) / rank
        elif peft_scale is not None:
            factor = peft_scale(names[0], rank)
            self._by_settings.append(factor)
        change = Change(target=self._target(module, "weight"), names=tuple(names), rank=rank, factor=factor)
        yield from self._fitting(change)

    def _differences(self, module: str, parts: Mapping[str, str]) -> Iterable[Change]:
        for part in ("weight", "bias", "modulation"):
            if part in parts:
                yield from self._fitting(Change(target=self._target(module, part), names=(parts[part],)))

    def _fitting(self, change: Change) -> Iterable[Change]:
        if change.target not in self._model:
            self._left_out[LoraFiles.LACKED_MODULES()] += change.names
        elif fits(change, [self._header[name].shape for name in change.names], self._model):
            yield change
        else:
            self._left_out[self._group_of_shape(change)] += change.names

    def _group_of_shape(self, change: Change) -> str:
        shape = self._header[change.names[0]].shape
        if change.rank and change.target.endswith("self_attn.q.weight"):
            self._widths.add(shape[-1])
        is_image = change.target == "patch_embedding.weight" and len(shape) > 1 and shape[1] == 36
        return _IMAGE_INPUT if is_image else _OTHER_SHAPE

    def _target(self, module: str, part: str) -> str:
        """Return the tensor's name; a file may name the tensor itself instead of its module."""
        return module if module in self._model else f"{module}.{part}"

    def _alpha(self, name: str, read: Callable[[str], torch.Tensor]) -> float:
        if math.prod(self._header[name].shape) != 1:
            raise CheckpointError(
                LoraFiles.ODD_ALPHA(subject=self.subject, name=name, shape=list(self._header[name].shape))
            )
        alpha = float(read(name).item())
        _check_factor(alpha, LoraFiles.ITS_NUMBER(subject=self.subject, name=name))
        return alpha

    def _add_notes(self, peft: Peft) -> None:
        is_peft = any(name.startswith("base_model.model.") for name in self._header)
        said = describe(peft, self._by_settings)
        if any("alpha" in parts for parts in self._parts.values()) and not self._by_settings:
            said = ""
        elif is_peft and peft == Peft():
            said = LoraFiles.PEFT_WITHOUT_ALPHA()
        if said:
            self.notes.append(said)
        self.is_doubtful = bool(said and peft.ignored)
        if _IMAGE_BRANCH in self._left_out or _IMAGE_INPUT in self._left_out:
            self.notes.append(LoraFiles.FOR_IMAGE())
        expert = _NAMED_EXPERT.search(self._titles)
        if expert and not self._is_expert:
            self.notes.append(LoraFiles.NAMED_EXPERT(lower=expert[1].lower()))

    def _nothing(self) -> str:
        """Return the sentence for a file of which nothing applies."""
        if not self._header:
            return LoraFiles.NO_TENSORS(subject=self.subject, expected=_EXPECTED)
        examples = ", ".join(sorted(self._header)[:3])
        if _OTHER_SHAPE in self._left_out:
            family = next((name for width, name in _WIDTHS.items() if width in self._widths), LoraFiles.ANOTHER_SIZE())
            own = self._model["patch_embedding.weight"].shape[0]
            return LoraFiles.OTHER_FAMILY(
                subject=self.subject,
                family=family,
                own=own,
                examples=examples,
                model=_WIDTHS.get(own, LoraFiles.MODEL_OF_WIDTH()),
            )
        groups = joined(
            (LoraFiles.OF_GROUP(num_names=len(names), group=group) for group, names in self._left_out.items()),
            Between.COMMA,
        )
        kind = identify_kind(self._header)
        if kind and kind[0] != Kinds.LORA():
            return LoraFiles.IS_MODEL(advice=kind[1], subject=self.subject, kind=kind[0], examples=examples)
        family = family_of(self._header)
        if family:
            return LoraFiles.OF_OTHER_FAMILY(subject=self.subject, family=family, examples=examples)
        return LoraFiles.APPLIES_TO_NOTHING(subject=self.subject, groups=groups, examples=examples, expected=_EXPECTED)


def _report(
    title: str,
    changes: Sequence[Change],
    left_out: Mapping[str, Sequence[str]] | None = None,
    notes: tuple[str, ...] = (),
    *,
    is_idle: bool,
) -> LoraReport:
    matched: dict[str, int] = defaultdict(int)
    for change in changes:
        matched[_part_of(change.target)] += len(change.names)
    pairs = [change for change in changes if change.rank]
    return LoraReport(
        title=title,
        matched=dict(matched),
        left_out={group: tuple(names) for group, names in (left_out or {}).items()},
        ranks=tuple(sorted({change.rank for change in pairs})),
        factors=tuple(sorted({change.factor for change in pairs})),
        notes=notes,
        is_idle=is_idle,
    )


def _is_idle(changes: Iterable[Change], tensors: Mapping[str, torch.Tensor]) -> bool:
    """Say whether nothing is added to the model: as a rule the first tensors say that something is.

    A half of each pair that is zero is what training begins with.
    """

    def adds(change: Change) -> bool:
        return change.replaces or (change.factor != 0 and all(_has_numbers(tensors[name]) for name in change.names))

    return not any(map(adds, changes))


def _has_numbers(tensor: torch.Tensor) -> bool:
    return bool(tensor.detach().float().any())


def _part_of(target: str) -> str:
    inner = re.sub(r"^blocks\.\d+\.", "", target)
    if inner == target:
        return LoraFiles.EMBEDDINGS_HEAD()
    return next(part for part, starts in _PARTS.items() if inner.startswith(starts))


def other_expert(expert: str) -> str:
    """Return what tensors belong to that are for the other expert of Wan2.2."""
    return LoraFiles.OF_OTHER_EXPERT(expert=expert)


def _check_factor(factor: float, what: str) -> None:
    if not math.isfinite(factor):
        raise CheckpointError(LoraFiles.NOT_FINITE(what=what, factor=factor))
