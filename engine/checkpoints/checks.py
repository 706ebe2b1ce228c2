"""Checks of a header against a table of names and shapes, shared by the formats of formats.py."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence

from ..errors import CheckpointError
from ..sentences import joined
from ..sentences.between import Between
from ..sentences.checkpoints import Models
from .header import Header
from .kinds import USABLE_FILES

# A shape in numbers, names of sizes, and multiples of named sizes ("6 dim").
Shape = tuple["int | str", ...]

FLOAT_DTYPES = frozenset({"BF16", "F16", "F32"})
FP8_DTYPES = frozenset({"F8_E4M3", "F8_E5M2"})
_SCHEME_OF_DTYPE = {**dict.fromkeys(FLOAT_DTYPES, "bf16"), **dict.fromkeys(FP8_DTYPES, "fp8"), "I8": "int8"}
# LightX2V's and ComfyUI's names for the scale of X.weight.
SCALE_SUFFIXES = ("weight_scale", "scale_weight")
# What stands beside a weight and changes nothing of it.
_BESIDE = re.compile(r"\.(comfy_quant|input_scale|scale_input)$|(^|\.)(scaled_fp8|spiece_model)$")
_LORA_PART = re.compile(r"\.lora_|\.lora\.")
_BLOCK_NUMBER = re.compile(r"(?<=block\.)\d+(?=\.)|(?<=blocks\.)\d+(?=\.)")
# Of a scale, beside the numbers that a model has.
_SCALE_DTYPES = FLOAT_DTYPES | {"F64"}
# The matrices that 8-bit files quantize, in the blocks of transformers and of text encoders of either naming.
BLOCK_LINEAR = re.compile(
    r"block(s)?\.\d+\.((self_|cross_)?attn\.([qkvo]|[kv]_img)|ffn\.(0|2|gate\.0|fc1|fc2)"
    r"|layer\.0\.SelfAttention\.[qkvo]|layer\.1\.DenseReluDense\.w(i_0|i_1|o))\.weight$"
)


def scale_of(header: Header, weight: str) -> str | None:
    """Return the name of the scale beside a weight; None where its numbers are the weights themselves."""
    layer = weight.removesuffix("weight")
    return next((name for suffix in SCALE_SUFFIXES if (name := layer + suffix) in header), None)


def find_unscaled(header: Header) -> frozenset[str]:
    """Return the names of the FP8 weights that have no scale beside them: cast as they are, or damaged."""
    names = (name for name, info in header.items() if info.dtype in FP8_DTYPES and name.endswith(".weight"))
    return frozenset(name for name in names if scale_of(header, name) is None)


def find_prefix(
    header: Header, prefixes: Iterable[str], pattern: str, source: str, anywhere: str | None = None
) -> str | None:
    """Return what stands before the names that match a whole regular expression: the one of `prefixes` that is there,
    or else whatever stands before all of them.

    Args:
        source: subject of the sentence.
        anywhere: what to look for behind prefixes that are not known; None is `pattern`.

    Raises:
        CheckpointError: they stand behind several prefixes.
    """
    whole = re.compile(pattern)
    known = {
        prefix: {name for name in header if name.startswith(prefix) and whole.fullmatch(name, len(prefix))}
        for prefix in prefixes
    }
    found = [prefix for prefix, names in known.items() if names]
    # The same names may be read in two ways; other names are another model.
    found = [prefix for prefix in found if prefix == found[0] or known[prefix].isdisjoint(known[found[0]])]
    # Whatever else the names of a model stand behind is a second one.
    whole = re.compile(rf"(.+\.)(?:{anywhere or pattern})")
    read = set().union(*(known[prefix] for prefix in found))
    found += sorted({match[1] for name in header.keys() - read if (match := whole.fullmatch(name))})
    if len(found) > 1:
        raise CheckpointError(
            Models.SEVERAL_MODELS(
                source=source,
                num_found=len(found),
                prefixes=", ".join(each or Models.NO_PREFIX() for each in found[:3]),
                more=", ..." if found[3:] else "",
            )
        )
    return found[0] if found else None


def strip_prefix(header: Header, prefix: str) -> Header:
    """Return the tensors under `prefix`, named without it."""
    return {name.removeprefix(prefix): info for name, info in header.items() if name.startswith(prefix)}


def block_indices(header: Header, blocks: str) -> set[int]:
    """Return the numbers that follow `blocks` in tensor names, whatever the prefix."""
    # No model has 10,000 blocks; a number in a name is not to decide how much memory a message takes.
    found = (re.search(rf"(?:^|\.){re.escape(blocks)}\.(\d{{1,4}})\.", name) for name in header)
    return {int(match[1]) for match in found if match}


def missing_indices(present: set[int], published: int) -> list[int]:
    """Return which of blocks 0 to the last one are absent; the last is known where `published` is not 0."""
    return sorted(set(range(max({1, published, *(index + 1 for index in present)}))) - present)


def describe_blocks(indices: Iterable[int]) -> str:
    """Write block numbers with their verb: `block 3 is`, `blocks 1, 5-7, 39 are`."""
    runs: list[list[int]] = []
    for index in sorted(indices):
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    words = ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)
    return Models.ONE_BLOCK_IS(number=words) if words.isdigit() else Models.BLOCKS_ARE(numbers=words)


def read_sizes(header: Header, expected: Mapping[str, Shape], source: str) -> dict[str, int]:
    """Read named sizes off the shapes; the first tensor that has a size defines it, the rest must agree.

    Raises:
        CheckpointError: names the tensors that are missing, or the first one of another shape.
    """
    missing = [name for name in expected if name not in header]
    if missing:
        count = Models.SEVERAL_TENSORS(num_missing=len(missing)) if len(missing) > 1 else Models.ONE_TENSOR()
        more = ", ..." if len(missing) > 3 else ""
        raise CheckpointError(
            Models.TENSORS_MISSING(source=source, count=count, missing=", ".join(missing[:3]), more=more)
        )
    sizes: dict[str, int] = {}
    for name, shape in expected.items():
        found = header[name].shape
        if len(found) != len(shape) or not all(_agrees(*pair, sizes) for pair in zip(shape, found, strict=True)):
            known = [str(part if isinstance(part, int) else _multiple(part, sizes) or part) for part in shape]
            raise CheckpointError(
                Models.DOES_NOT_FIT(source=source, name=name, found=list(found), known=", ".join(known))
            )
    return sizes


def detect_scheme(header: Header, expected: Mapping[str, Shape], source: str, *, wanted: str) -> tuple[str, str | None]:
    """Return (scheme, scale suffix) of the blocks' linear weights after checking that all agree.

    Raises:
        CheckpointError: mixed or unknown dtypes, 8-bit weights whose scales are missing or odd, or other
            weights in 8 bits.
    """
    linears = [name for name in expected if name in header and BLOCK_LINEAR.search(name)]
    dtypes = sorted({header[name].dtype for name in linears})
    schemes = {_SCHEME_OF_DTYPE.get(dtype) for dtype in dtypes}
    scheme = schemes.pop() if len(schemes) == 1 else None
    if scheme is None:
        raise CheckpointError(
            Models.MIXED_DTYPES(source=source, dtypes=joined(dtypes, Between.AND), usable=USABLE_FILES[wanted])
        )
    suffix = None if scheme == "bf16" else _find_scales(header, linears, source, scheme, wanted)
    others = sorted(name for name in expected.keys() - {*linears} if name in header)
    if wanted == "transformer" or (scheme == "fp8" and suffix is None):
        # Plain casts hold more than the linear layers in FP8; it is widened where it is read.
        for name in others:
            _check_scale(header, name, scale_of(header, name), source, wanted)
        others = [name for name in others if header[name].dtype not in FP8_DTYPES]
    _check_others(header, others, source, wanted)
    return scheme, suffix


def _find_scales(header: Header, linears: list[str], source: str, scheme: str, wanted: str) -> str | None:
    """Return the suffix of the first scale; None for FP8 weights that were cast without scales."""
    found = next((scale for name in linears if (scale := scale_of(header, name))), None)
    if found is None:
        if scheme == "fp8":
            return None
        raise CheckpointError(
            Models.NO_SCALES(source=source, precision=scheme.upper(), weight=linears[0], usable=USABLE_FILES[wanted])
        )
    suffix = found.rpartition(".")[2]
    scaled = {_BLOCK_NUMBER.sub("", name) for name in linears if scale_of(header, name)}
    for linear in linears:
        name = scale_of(header, linear)
        # What has a scale in no block was cast without; in some blocks, it was lost in the others.
        is_cast = scheme == "fp8" and wanted == "transformer" and _BLOCK_NUMBER.sub("", linear) not in scaled
        if name is None and not is_cast:
            missing = linear.removesuffix("weight") + suffix
            raise CheckpointError(Models.SCALE_MISSING(source=source, name=missing))
        _check_scale(header, linear, name, source, wanted)
    return suffix


def _check_scale(header: Header, weight: str, name: str | None, source: str, wanted: str) -> None:
    """Raise where a scale is neither one number nor one a row of its weight."""
    if name is None:
        return
    scale, rows = header[name], next(iter(header[weight].shape), 1)
    if scale.dtype not in _SCALE_DTYPES or (
        math.prod(scale.shape) != 1 and scale.shape not in ((rows, 1), (rows,), (1, rows))
    ):
        raise CheckpointError(
            Models.ODD_SCALE(
                source=source,
                name=name,
                dtype=scale.dtype,
                shape=list(scale.shape),
                rows=rows,
                usable=USABLE_FILES[wanted],
            )
        )


def _check_others(header: Header, names: Iterable[str], source: str, wanted: str) -> None:
    found = [name for name in names if header[name].dtype not in FLOAT_DTYPES]
    if found:
        raise CheckpointError(
            Models.ODD_EIGHT_BIT(
                source=source, name=found[0], dtype=header[found[0]].dtype, usable=USABLE_FILES[wanted]
            )
        )


def find_others(header: Header, expected: Iterable[str], scale_suffix: str | None) -> list[str]:
    """Return the names of tensors that are neither expected nor beside what is."""
    scales = {scale_of(header, name) for name in expected} if scale_suffix else set()
    return sorted(name for name in header.keys() - set(expected) - scales if not _BESIDE.search(name))


def describe_others(others: Sequence[str], source: str) -> str:
    """Return a sentence about tensors that nothing here reads."""
    is_lora = any(_LORA_PART.search(name) for name in others)
    what = Models.UNMERGED_LORA() if is_lora else Models.STRANGE_TENSORS()
    return Models.LEFT_OVER(source=source, num_others=len(others), what=what, example=others[0])


def _agrees(part: int | str, found: int, sizes: dict[str, int]) -> bool:
    """Compare one dimension with the table; an unknown size takes its value from it."""
    if isinstance(part, int):
        return part == found
    factor, _, name = part.rpartition(" ")
    sizes.setdefault(name, found // int(factor or 1))
    return _multiple(part, sizes) == found


def _multiple(part: str, sizes: Mapping[str, int]) -> int:
    factor, _, name = part.rpartition(" ")
    return int(factor or 1) * sizes.get(name, 0)
