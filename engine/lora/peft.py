"""The settings that PEFT saves with a LoRA: what its pairs are multiplied with, and whether they are this LoRA's.

They are in the file (diffusers), or in adapter_config.json beside it. That name is the same for every LoRA, and in a
folder of many it is one's at most: what it says is used only of a file that PEFT saved and that it fits.

Source: PEFT config.py, tuners/lora/config.py and tuners/tuners_utils.py (check_target_module_exists).
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoints.disk import read_small
from ..checkpoints.header import Header
from ..errors import MALFORMED, CheckpointError, in_words
from ..sentences.data import Data
from ..sentences.lora_files import LoraFiles
from .keys import without_wrappers

_CONFIG = "adapter_config.json"
# Of it, which names modules.
_MAX_CONFIG_BYTES = 4 * 2**20
# Of patterns in it: how often each may repeat something, how many may, and how much of a module's name is looked at.
_REPEAT, _MAX_REPEATS, _MAX_REPEATING, _MAX_MODULE_CHARACTERS = re.compile(r"[*+{]"), 2, 8, 100
_MAX_TARGETS = 1000
_OWN_NAME, _OWN_PREFIX = "adapter_model", "base_model.model."

Scale = Callable[[str, int], float]
"""alpha / rank of a pair, by its first name and its rank."""


@dataclass(frozen=True, kw_only=True)
class Peft:
    """What PEFT's settings say of a LoRA."""

    scale: Scale | None = None
    """None where nothing is said."""
    is_beside: bool = False
    """Whether it comes from a file beside the LoRA."""
    ignored: str = ""
    """Why settings beside it are not used."""


def read_peft(path: Path, metadata: Mapping[str, str], header: Header, expected: str) -> Peft:
    """Read the settings of PEFT in a LoRA file or beside it.

    What else training tools note about a file, such as ss_network_alpha, is in `.alpha` or folded into the weights.

    Args:
        metadata: of the file.
        expected: what a LoRA file has, for the sentence.

    Raises:
        CheckpointError: those in the file cannot be read; or they are of something else than plain LoRA.
    """
    names = [name for name in header if ".lora_A" in name]
    if "lora_adapter_metadata" in metadata:
        try:
            flat = json.loads(metadata["lora_adapter_metadata"])
            config = {name.removeprefix("transformer."): value for name, value in flat.items()}
            return _apply(config, path, names, header, expected, is_beside=False)
        except MALFORMED as error:
            raise CheckpointError(LoraFiles.PEFT_UNREADABLE(name=path.name, error=in_words(error))) from error
    beside = path.parent / _CONFIG
    if not names or not os.path.isfile(beside):
        return Peft()
    if path.stem != _OWN_NAME and not any(name.startswith(_OWN_PREFIX) for name in names):
        return Peft(ignored=LoraFiles.NOT_OF_PEFT())
    try:
        config = json.loads(read_small(beside, _MAX_CONFIG_BYTES, LoraFiles.PEFT_SETTINGS()))
        return _apply(config, path, names, header, expected, is_beside=True)
    except MALFORMED as error:
        return Peft(ignored=LoraFiles.SETTINGS_UNREADABLE(error=in_words(error)))
    except CheckpointError as error:
        if isinstance(error, _NotPlainError):
            raise
        return Peft(ignored=str(error))


class _NotPlainError(CheckpointError):
    """The settings fit, and say that the file is something else than plain LoRA."""


def _apply(config: Any, path: Path, names: list[str], header: Header, expected: str, *, is_beside: bool) -> Peft:
    """Return what settings say of the pairs whose first halves have these names.

    Raises:
        _NotPlainError: they fit, and are of another kind.
        Exception: one of MALFORMED, where they are no such settings.
    """
    problem = _other_rank(config, names, header) or (_other_modules(config, names) if is_beside else "")
    if problem:
        return Peft(ignored=problem)
    kind = config.get("peft_type") or "LORA"
    if config.get("use_dora") or str(kind).upper() != "LORA":
        kinds = LoraFiles.BY_SETTINGS(kind="DoRA" if config.get("use_dora") else str(kind)[:40])
        raise _NotPlainError(LoraFiles.NOT_EXACT(subject=f"LoRA {path.name}", kinds=kinds, expected=expected))
    if config.get("lora_alpha") is None:
        return Peft(ignored=LoraFiles.NO_LORA_ALPHA() if is_beside else "")
    return Peft(scale=_scale_of(config, len(header)), is_beside=is_beside)


def _other_rank(config: Any, names: list[str], header: Header) -> str:
    """Return a part of a sentence where settings are of pairs of other ranks, or ""."""
    ranks = {header[name].shape[0] for name in names if header[name].shape}
    said = {int(rank) for rank in (config.get("rank_pattern") or {}).values()}
    if config.get("r") and not ranks <= {int(config["r"]), *said}:
        own = ", ".join(map(str, sorted(ranks)))
        return LoraFiles.OTHER_RANK(rank=int(config["r"]), own=own)
    return ""


def _other_modules(config: Any, names: list[str]) -> str:
    """Return a part of a sentence where settings are of other modules, or ""."""
    targets = config.get("target_modules")
    if not targets or targets == "all-linear":
        return ""
    if isinstance(targets, str):
        try:
            pattern = _compiled(targets)
        except ValueError:
            # A pattern that is not looked for says nothing against them.
            return ""
        missed = next((name for name in map(_module, names) if not pattern.search(name)), "")
    elif len(targets) > _MAX_TARGETS or not all(isinstance(each, str) for each in targets):
        raise ValueError(Data.BUILT_OTHERWISE())
    else:
        ends = tuple(f".{each}" for each in targets)
        missed = next((name for name in map(_module, names) if not f".{name}".endswith(ends)), "")
    if not missed:
        return ""
    listed = [targets] if isinstance(targets, str) else sorted(targets)
    more = ", ..." if listed[3:] else ""
    return LoraFiles.OTHER_MODULES(targets=", ".join(each[:80] for each in listed[:3]), more=more, module=missed)


def _module(name: str) -> str:
    """Return the module of a pair's first half, as settings call it."""
    return without_wrappers(name.partition(".lora_")[0].removeprefix(_OWN_PREFIX)[-_MAX_MODULE_CHARACTERS:])


def _scale_of(config: Mapping[str, Any], num_tensors: int) -> Scale:
    alpha, is_rs = _finite(config["lora_alpha"]), bool(config.get("use_rslora"))
    patterns = config.get("alpha_pattern") or {}
    if len(patterns) > num_tensors or len(list(filter(_REPEAT.search, patterns))) > _MAX_REPEATING:
        raise ValueError(LoraFiles.MANY_PATTERNS(num_patterns=len(patterns)))
    alphas = {_compiled(name): _finite(value) for name, value in patterns.items()}

    def scale(name: str, rank: int) -> float:
        module = name.partition(".lora_")[0][-_MAX_MODULE_CHARACTERS:]
        own = next((value for pattern, value in alphas.items() if pattern.search(module)), alpha)
        return own / (math.sqrt(rank) if is_rs else rank)

    return scale


def _finite(value: Any) -> float:
    """Return a number of JSON data; raises one of MALFORMED where it is none."""
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(Data.BUILT_OTHERWISE())
    return number


def _compiled(name: str) -> re.Pattern[str]:
    """Return PEFT's pattern of modules; without what could take for ever to be looked for."""
    if re.search(r"\)[*+?{]", name) or len(_REPEAT.findall(name)) > _MAX_REPEATS:
        raise ValueError(LoraFiles.ODD_PATTERN(pattern=name[:80]))
    try:
        return re.compile(rf"(?:^|\.)(?:{name})$")
    except re.error as error:
        raise ValueError(LoraFiles.ODD_PATTERN(pattern=name[:80])) from error


def describe(peft: Peft, factors: Iterable[float]) -> str:
    """Return a sentence about the settings beside a file, or "".

    Args: factors: of the pairs that go by them.
    """
    if peft.ignored:
        return LoraFiles.PEFT_IGNORED(reason=peft.ignored)
    each = sorted({*factors})
    if not peft.is_beside or not each:
        return ""
    return LoraFiles.PEFT_USED(
        factors=", ".join(f"{factor:.4g}" for factor in each[:3]), more=", ..." if each[3:] else ""
    )
