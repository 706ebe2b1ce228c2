"""What a file says itself about how its weights are quantized; names, dtypes and shapes do not tell everything.

Two places, of which newer files of ComfyUI have either: `_quantization_metadata` in the metadata of a safetensors
header ({"layers": {"blocks.0.self_attn.q": {"format": ...}}}), and a small JSON tensor `<layer>.comfy_quant` beside
each weight. Source: ComfyUI comfy/utils.py convert_old_quants and comfy/ops.py MixedPrecisionOps, comfy-kitchen.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import MALFORMED, CheckpointError, in_words
from ..sentences import joined
from ..sentences.between import Between
from ..sentences.checkpoints import Models
from .disk import DOWNLOAD_AGAIN, reading
from .header import Header, check_number, read_header_and_metadata
from .kinds import USABLE_FILES

_METADATA = "_quantization_metadata"
_TENSOR = ".comfy_quant"
_MAX_BYTES = 4096
# Of what a layer declares beside its format, so much is said.
_MAX_FURTHER = 8
# Formats that are what dtype and scales say -> precision.
_PLAIN = {"float8_e4m3fn": "fp8", "float8_e5m2": "fp8", "int8_tensorwise": "int8"}
# What may stand beside `format` without changing what a weight is.
_HARMLESS = frozenset({
    "format", "full_precision_matrix_mult", "orig_dtype", "orig_shape", "per_channel", "per_row", "axis",
    "convrot_groupsize", "group_size",
})  # fmt: skip


def check_declared(files: Sequence[Path], precision: str, source: str, *, wanted: str) -> None:
    """Read what safetensors files declare, and raise where it is not what their dtypes and scales say.

    Args:
        precision: bf16 | fp8 | int8, by dtypes and scales.
        source: subject of the sentences.
        wanted: key of kinds.USABLE_FILES.

    Raises:
        CheckpointError: a layer is declared in a format that is not computed here, is rotated, or is declared otherwise
            than it is stored; or a declaration cannot be read.
    """
    declared: dict[str, Mapping[str, Any]] = {}
    for file in files:
        if file.suffix.lower() == ".safetensors":
            declared |= _read(file)
    layers: dict[_Declared, list[str]] = defaultdict(list)
    for layer, said in declared.items():
        layers[_declared(said)].append(layer)
    # As many layers as can be; what is in order has none.
    for found in sorted(layers, key=lambda found: -len(layers[found])):
        problem = _problem(found, precision)
        if problem:
            raise CheckpointError(
                Models.DECLARED(
                    source=source,
                    num_layers=len(layers[found]),
                    example=layers[found][0],
                    problem=problem,
                    usable=USABLE_FILES[wanted],
                )
            )


class _Declared(NamedTuple):
    """What a layer is declared as."""

    format: str
    further: tuple[str, ...]
    """What changes the weight beside it, a few words each."""


def _declared(said: Mapping[str, Any]) -> _Declared:
    keys = [key for key in said if key not in _HARMLESS and said[key]][:_MAX_FURTHER]
    return _Declared(str(said.get("format"))[:60], tuple(sorted(f"{key} {said[key]}"[:60] for key in keys)))


def _problem(declared: _Declared, precision: str) -> str:
    """Return why a declared layer is not what it seems, or ""."""
    name = declared.format
    if declared.further:
        return Models.DECLARED_FURTHER(name=name, further=", ".join(declared.further))
    if name not in _PLAIN:
        return Models.DECLARED_UNKNOWN(name=name, known=joined(_PLAIN, Between.OR))
    if _PLAIN[name] != precision:
        return Models.DECLARED_OTHERWISE(name=name, precision=precision)
    return ""


def _read(file: Path) -> dict[str, Mapping[str, Any]]:
    """Return what a file declares, by layer."""
    try:
        header, metadata = read_header_and_metadata(file)
        told = json.loads(metadata.get(_METADATA, '{"layers": {}}'))["layers"]
        check_number(file, len(told))
        found = {str(layer): _mapping(said) for layer, said in told.items()}
        small = [name for name in header if name.endswith(_TENSOR)]
        for name, raw in zip(small, _read_bytes(file, header, small), strict=True):
            found[name.removesuffix(_TENSOR)] = _mapping(json.loads(raw))
    except MALFORMED as error:
        raise CheckpointError(
            Models.DECLARATION_UNREADABLE(file=file, error=in_words(error), download_again=DOWNLOAD_AGAIN)
        ) from error
    return found


def _mapping(said: Any) -> Mapping[str, Any]:
    if not isinstance(said, dict):
        raise TypeError(Models.NO_DECLARATION(said=str(said)[:60]))
    return said


def _read_bytes(file: Path, header: Header, names: Iterable[str]) -> list[bytes]:
    """Return the bytes of small tensors."""
    found = []
    with reading(file), file.open("rb") as opened:
        for name in names:
            info = header[name]
            if info.num_bytes > _MAX_BYTES:
                raise ValueError(Models.LONG_DECLARATION(name=name, num_bytes=info.num_bytes))
            opened.seek(info.offset or 0)
            found.append(opened.read(info.num_bytes).rstrip(b"\0"))
    return found
