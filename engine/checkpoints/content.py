"""Whether what is read of a file can be weights: no holes of zeros, as interrupted downloads leave, only numbers, and
such as a model of this family can have.

Small tensors (scales, norms, biases) are looked at in full, of large ones a few bytes in every part that is read
anyway; where these are zero, the part is looked at in full. Each part is looked at once. What cannot be right is an
error; what is only unheard of is a warning, once a kind and model, and stays in mind for the plan line and the doctor.
The bounds, and why they are where they are, are bounds.py.
"""

from __future__ import annotations

import logging
import math
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..errors import CheckpointError
from ..sentences import Said
from ..sentences.checkpoints import Content, Reading
from .bounds import (
    ABSURD,
    FEWEST,
    FEWEST_FOR_SIZE,
    LARGE,
    LARGE_MODULATION,
    LARGEST_CAST_RMS,
    LEAST,
    MOST_INT8_RMS,
    MOST_SKEW,
    MOST_SKEW_OUTSIDE,
    NEAR_ZERO,
    ONE_IN,
    POSSIBLE_RMS,
    USUAL_RMS,
)
from .checks import BLOCK_LINEAR, SCALE_SUFFIXES
from .disk import Stamp, reading, stamp

logger = logging.getLogger(__name__)

# Up to here a tensor is looked at in full.
SMALL_BYTES = 2**18
# Of larger ones, and of the form of small ones, a few bytes every so often.
_EVERY, _SAMPLE_BYTES = 2**19, 32
_MEDIUM_BYTES, _LEAST_SAMPLE = 2**21, 2**12
# Zeros in a row that are no weights: a hundred rows of the 14B model's.
_HOLE_BYTES = 2**19
_PAGE, _PART_BYTES = 4096, 2**24
_ALL_ZEROS, _NO_NUMBERS = Reading.ALL_ZEROS(), Reading.NO_NUMBERS()
_LARGE_SQUARE, _LEAST_SQUARE = 4.0**LARGE, 4.0**LEAST
# Of small tensors that are looked at together every so many numbers say how large each is.
_STEP = 16
_ONES = np.ones(2**13, np.float32)


class _Bits(NamedTuple):
    """How a format has its numbers; all but the first are bits of an exponent."""

    dtype: Any
    mask: int
    """All set in infinity and NaN; e4m3fn has NaN alone."""
    absurd: int
    large: int
    least: int
    odd_modulation: int


def _bits(dtype: Any, width: int, mantissa: int) -> _Bits:
    bias, mask = 2 ** (width - 1) - 1, 2**width - 1
    marks = (min(max(bias + exponent, 0), mask) for exponent in (ABSURD, LARGE, LEAST, LARGE_MODULATION))
    return _Bits(dtype, mask << mantissa, *(mark << mantissa for mark in marks))


_FORMATS: dict[torch.dtype, _Bits] = {
    torch.float32: _bits(np.uint32, 8, 23),
    torch.float16: _bits(np.uint16, 5, 10),
    torch.bfloat16: _bits(np.uint16, 8, 7),
    torch.float8_e4m3fn: _Bits(np.uint8, 0x7F, 0x7F, 0x7F, 0, 0x60),
    torch.float8_e5m2: _Bits(np.uint8, 0x7C, 0x7C, 0x7C, 0, 0x50),
}
_OTHERS = _Bits(np.uint8, 0xFF, 0x100, 0x100, 0, 0x100)
_E4M3 = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
_AS_NUMBERS: dict[torch.dtype, Callable[[Any], Any]] = {
    torch.float64: lambda raw: raw.view(np.float64).astype(np.float32),
    torch.float32: lambda raw: raw.view(np.float32),
    torch.float16: lambda raw: raw.view(np.float16).astype(np.float32),
    torch.bfloat16: lambda raw: (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32),
    torch.float8_e4m3fn: _E4M3.take,
    torch.float8_e5m2: lambda raw: (raw.astype(np.uint16) << 8).view(np.float16).astype(np.float32),
    torch.int8: lambda raw: raw.view(np.int8).astype(np.float32),
}
# What a file may be taken for whose header names another format.
_MIXED_UP = {
    torch.float8_e4m3fn: torch.int8,
    torch.int8: torch.float8_e4m3fn,
    torch.bfloat16: torch.float16,
    torch.float16: torch.bfloat16,
}
_NAMES = {torch.float8_e4m3fn: "FP8 E4M3", torch.int8: "INT8", torch.bfloat16: "BF16", torch.float16: "FP16"}
# Names of what is zero nowhere in a trained model; a bias may be.
_NEVER_ZERO = ("weight", *SCALE_SUFFIXES, "gamma")
_SCALES = tuple(f".{suffix}" for suffix in SCALE_SUFFIXES)
_MODULATION = re.compile(r"(^|\.)blocks\.\d+\.modulation$")
# Matrices outside of a transformer's blocks, and all kernels of a VAE, whose norms are called gamma.
_OTHER_MATRIX = re.compile(
    r"(^|\.)(text_embedding\.[02]|time_embedding\.[02]|time_projection\.1|head\.head|patch_embedding|img_emb\.proj\.[13])"
    r"\.weight$|^((encoder|decoder)\.(?!block|final)|conv[12]\.).*weight$"
)
# What the whole file has in common is looked for in some of its layers, some in each block.
_WHERE_FORM_SHOWS = re.compile(r"(^|\.)(self_attn|attn|SelfAttention)\.q\.|ffn\.(0|gate\.0)\.|wi_0\.")
_LARGEST_CODE = 448
_OF_TRANSFORMER = re.compile(r"\.(self_attn|cross_attn)\.|\.ffn\.[02]\.")
# What was found odd in files of this process, by file and what it was then.
_doubts: dict[tuple[Path, Stamp], dict[str, str]] = {}


def doubts_about(files: Iterable[Path]) -> tuple[str, ...]:
    """Return what was odd in files when this process last read them, a sentence each; nothing is read."""
    known = {path for path, _ in _doubts}
    return tuple(said for file in files if file in known for said in _doubts.get((file, stamp(file)), {}).values())


class ContentCheck:
    """Looks at the tensors of one model."""

    def __init__(self, num_blocks: int = 0, unscaled: Collection[str] = ()) -> None:
        """Describe the model.

        Args:
            num_blocks: blocks of the transformer that it is; 0 where it is none or their number is not known.
            unscaled: names of the FP8 weights that have no scale beside them, see checks.find_unscaled.
        """
        self._unscaled = unscaled
        self.seen: set[tuple[str, int]] = set()
        """Name of a tensor and beginning of a part of it, of what was looked at."""
        self._num_blocks = num_blocks
        self._zero_modulations: set[str] = set()
        # Some 8-bit weights, and how large their scales are, by layer; whichever comes second says what they give.
        self._codes: dict[str, tuple[bytes, torch.dtype]] = {}
        self._scales: dict[str, float] = {}
        self._said: set[str] = set()
        self._lock = threading.Lock()

    def look(self, name: str, path: Path, values: torch.Tensor, dtype: torch.dtype, start: int = 0) -> None:
        """Look at a tensor, or at a part of a large one.

        Args:
            values: on the CPU, contiguous, of any shape; its bytes are taken as `dtype`.
            start: where the part begins; the same part is looked at once.

        Raises:
            CheckpointError: it is damaged or no weights; names the file, the tensor and what to do.
        """
        if (name, start) in self.seen:
            return
        self.seen.add((name, start))
        self._tell(path, name, *self.find(name, values, dtype, start))

    def note_scale(self, name: str, level: float) -> None:
        """Take how large usual scales are."""
        self._scales[name.rpartition(".")[0]] = level

    def note_sample(self, name: str, path: Path, some: bytes, dtype: torch.dtype, start: int) -> None:
        """Look at a few bytes of a part that is no hole and has numbers only; see look."""
        self.seen.add((name, start))
        if start == 0 and _is_matrix(name):
            self._tell(path, name, *self._find_in_weights(name, some, dtype))

    def _tell(self, path: Path, name: str, fault: str, doubt: str) -> None:
        if fault:
            raise damaged(path, name, fault)
        if doubt:
            self._say(path, name, doubt)

    def find(self, name: str, values: torch.Tensor, dtype: torch.dtype, start: int = 0) -> tuple[str, str]:
        """Return what is wrong with a tensor or a part of one, and what is odd about it, each or ""."""
        flat = _bytes_of(values)
        if name.endswith(_SCALES):
            return self._find_in_scales(name, flat, dtype)
        # The short end of a large tensor may be rows that are zero.
        is_short_end = start > 0 and len(flat) <= SMALL_BYTES
        fault, doubt, some = _examine(flat, dtype, may_be_zero=is_short_end or may_be_zero(name))
        if start == 0 and _is_matrix(name):
            some = some or _sample(flat)
            if not fault:
                return self._find_in_weights(name, some, dtype)
            # What is a hole by itself says nothing about the numbers around it.
            return ("" if bytes(_SAMPLE_BYTES) in some else _other_format(some, dtype)) or fault, ""
        if fault:
            return fault, ""
        if _is_modulation(name) and not flat.any() and _MODULATION.search(name):
            return self._find_zero_modulation(name)
        if _is_modulation(name) and not doubt:
            size = _largest(flat, dtype)
            doubt = Content.LARGE(size=size) if size >= 2.0**LARGE_MODULATION else ""
        return "", doubt

    def _find_in_scales(self, name: str, flat: Any, dtype: torch.dtype) -> tuple[str, str]:
        numbers = flat.view(np.float32) if dtype == torch.float32 else _numbers(flat, dtype)
        if not len(numbers):
            return "", ""
        least, most = float(numbers.min()), float(numbers.max())
        if not 0 < least <= most < 2.0**ABSURD:
            fault, doubt = _examine_small(flat, dtype, may_be_zero=False)
            return fault or ("" if least > 0 else Content.NO_SCALE(least=least)), doubt
        layer = name.rpartition(".")[0]
        # A few rows are out of proportion: not their mean.
        level = math.sqrt(least * most)
        if not _is_usual_scale(level):
            level = float(np.median(numbers))
        self._scales[layer] = level
        fault, doubt = self._find_in_layer(layer)
        if most > USUAL_RMS[1] and _is_usual_scale(level):
            doubt = doubt or Content.ODD_SCALE(most=most, level=level)
        return fault, doubt

    def _find_in_weights(self, name: str, some: bytes, dtype: torch.dtype) -> tuple[str, str]:
        fault = doubt = ""
        layer = name.rpartition(".")[0]
        if dtype.itemsize == 1 and name in self._unscaled:
            fault, doubt = _find_in_cast(name, some, dtype)
        elif dtype.itemsize == 1:
            self._codes[layer] = some, dtype
            fault, doubt = self._find_in_layer(layer)
        is_in_block = BLOCK_LINEAR.search(name) is not None
        is_looked_at = dtype.itemsize > 1 or _WHERE_FORM_SHOWS.search(name)
        form = _form_of(some, dtype) if is_looked_at else None
        if form is None:
            return fault, doubt
        mixed_up = "" if form.is_usual else _other_format(some, dtype)
        if mixed_up:
            return mixed_up, ""
        if dtype.itemsize > 1:
            fault, doubt = _find_in_rms(name, form.rms)
        if dtype == torch.int8 and form.rms > MOST_INT8_RMS:
            doubt = doubt or Content.BY_CHANCE()
        is_odd = not form.is_usual if is_in_block else form.skew > MOST_SKEW_OUTSIDE
        return fault, doubt or (Content.ODD_FORM() if is_odd else "")

    def _find_in_layer(self, layer: str) -> tuple[str, str]:
        """Return the same of 8-bit weights whose scales are known too."""
        scale, (some, dtype) = self._scales.get(layer), self._codes.get(layer, (b"", torch.int8))
        if scale is None or not some or _is_usual_scale(scale):
            return "", ""
        form = _form_of(some, dtype, fewest=1)
        return _find_in_rms(f"{layer}.weight", form.rms * scale) if form is not None else ("", "")

    def _find_zero_modulation(self, name: str) -> tuple[str, str]:
        with self._lock:
            self._zero_modulations.add(name)
            is_every = len(self._zero_modulations) == self._num_blocks
        return (Content.NO_MODULATION(), "") if is_every else ("", _ALL_ZEROS)

    def _say(self, path: Path, name: str, doubt: str) -> None:
        """Log what is odd, once a kind, and keep it in mind."""
        kind = doubt.sentence.id if isinstance(doubt, Said) else doubt
        with self._lock:
            if kind in self._said:
                return
            self._said.add(kind)
        said = Content.DOUBTFUL(path=path, name=name, doubt=doubt)
        logger.warning("LightX2V: %s", said)
        now = (path, stamp(path))
        for stale in [key for key in _doubts if key[0] == path and key != now]:
            _doubts.pop(stale, None)
        _doubts.setdefault(now, {})[kind] = said


@dataclass(frozen=True)
class Look:
    """How the bytes of a tensor are looked at."""

    content: ContentCheck
    name: str
    path: Path
    dtype: torch.dtype
    """What they are."""

    def __call__(self, values: torch.Tensor, start: int = 0) -> None:
        """See ContentCheck.look."""
        self.content.look(self.name, self.path, values, self.dtype, start)


def look_together(tensors: Sequence[tuple[Look, int, int]], memory: torch.Tensor) -> None:
    """Look at small tensors that lie one after the other in a memory uint8, at all of them in a few looks; at each
    alone that these do not clear.

    Args: tensors: of one dtype; where each begins, and its bytes.

    Raises:
        CheckpointError: see ContentCheck.look.
    """
    content = tensors[0][0].content
    if {(look.name, 0) for look, _, _ in tensors} <= content.seen:
        return
    largest = _largest_of_each(tensors, memory)
    for (look, begin, size), number in zip(tensors, largest, strict=True):
        if number <= 0:
            look(memory[begin : begin + size])
        else:
            content.seen.add((look.name, 0))
            if look.name.endswith(_SCALES):
                content.note_scale(look.name, number)


def _largest_of_each(tensors: Sequence[tuple[Look, int, int]], memory: torch.Tensor) -> list[float]:
    """Return a measure of how large each of small tensors is; 0 where it has to be looked at alone.

    Of scales it is their mean, where all are usual; of others the largest exponent of some of the numbers.
    """
    names, dtype = [look.name for look, _, _ in tensors], tensors[0][0].dtype
    alone = [0.0] * len(tensors)
    bits, width = _FORMATS.get(dtype), dtype.itemsize
    if bits is None or any(map(_is_matrix, names)):
        return alone
    step = _STEP if all(begin % (_STEP * width) == 0 for _, begin, _ in tensors) else 1
    starts = [begin // width // step for _, begin, _ in tensors]
    if any(name.endswith(_SCALES) for name in names):
        numbers = _numbers(memory.numpy(), dtype)
        if not (all(name.endswith(_SCALES) for name in names) and 0 < numbers.min() <= numbers.max() < 2.0**LARGE):
            return alone
        few = numbers[::step]
        counts = np.diff([*starts, len(few)])
        levels = (np.add.reduceat(few, starts) / counts).tolist()
        return [level if _is_usual_scale(level) else 0.0 for level in levels]
    raw = memory.numpy().view(bits.dtype)
    # Without a copy of all of them: a sign is the highest bit, which makes a number the largest or below zero.
    sign = 1 << (8 * width - 1)
    largest = max(int(raw.max()) & (sign - 1), int(raw.view(f"i{width}").max()))
    if largest >= bits.large:
        return alone
    each = np.maximum.reduceat(raw[::step] & bits.mask, starts).tolist()
    return [
        float(bits.least < number < bits.odd_modulation if is_modulation else number > bits.least or may_be_zero(name))
        for name, number, is_modulation in zip(names, each, map(_is_modulation, names), strict=True)
    ]


class Samples:
    """A few bytes of parts of large tensors, which are looked at together when all are there.

    Where they show something, the part is read once more and looked at alone.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[Look, int, int, torch.Tensor]] = []

    def add(self, look: Look, memory: torch.Tensor, start: int, offset: int) -> None:
        """Add a part of a tensor.

        Args:
            memory: uint8 on any device, where it is and stays until it is looked at.
            start: where the part begins in the tensor.
            offset: where it lies in the file.
        """
        if (look.name, start) not in look.content.seen:
            self._parts.append((look, start, offset, memory))

    def look(self) -> None:
        """Look at what was added; waits for what writes it, where that is on the current stream of its device.

        Raises:
            CheckpointError: see ContentCheck.look.
        """
        if not self._parts:
            return
        # One gather for all: bytes that are far apart come from memory, not from a cache.
        few = [_few(memory) for *_, memory in self._parts]
        taken = torch.cat(few).cpu().numpy().tobytes()
        ends = np.cumsum([part.numel() for part in few]).tolist()
        found = [taken[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
        by_dtype: dict[torch.dtype, list[bytes]] = defaultdict(list)
        for (look, *_), some in zip(self._parts, found, strict=True):
            by_dtype[look.dtype].append(some)
        usual = {dtype for dtype, some in by_dtype.items() if _are_usual(b"".join(some), dtype)}
        for (look, start, offset, memory), some in zip(self._parts, found, strict=True):
            if look.dtype not in usual:
                with reading(look.path):
                    raw = np.fromfile(look.path, np.uint8, len(memory), offset=offset)
                look(torch.from_numpy(raw), start)
            else:
                look.content.note_sample(look.name, look.path, some, look.dtype, start)
        self._parts.clear()


def _are_usual(some: bytes, dtype: torch.dtype) -> bool:
    return bytes(_SAMPLE_BYTES) not in some and not _find_absurd(some, dtype)


def _is_matrix(name: str) -> bool:
    """Say whether a tensor of this name is the matrix or the kernel of a layer."""
    return name.endswith(".weight") and bool(BLOCK_LINEAR.search(name) or _OTHER_MATRIX.search(name))


def _is_modulation(name: str) -> bool:
    return name.endswith("modulation")


def may_be_zero(name: str) -> bool:
    """Say whether a tensor of this name may be zero everywhere."""
    return not name.endswith(_NEVER_ZERO)


def damaged(path: Path, name: str, fault: str) -> CheckpointError:
    """Return the sentence about a tensor whose content is no weights."""
    return CheckpointError(Reading.DAMAGED(path=path, name=name, fault=fault))


def find_fault(values: torch.Tensor, dtype: torch.dtype, *, may_be_zero: bool = False) -> str:
    """Return what is wrong with the content of a tensor by itself, or "".

    Args:
        values, dtype: see ContentCheck.look.
        may_be_zero: whether all of it may be zero.
    """
    return _examine(_bytes_of(values), dtype, may_be_zero=may_be_zero)[0]


def find_fault_in_full(values: torch.Tensor, dtype: torch.dtype, *, may_be_zero: bool = False) -> str:
    """Return the same after a look at every byte."""
    flat = _bytes_of(values)
    bits = _FORMATS.get(dtype)
    if bits is not None:
        parts = (flat[start : start + _PART_BYTES].view(bits.dtype) for start in range(0, len(flat), _PART_BYTES))
        largest = max(((part & bits.mask).max(initial=0) for part in parts), default=0)
        if largest >= bits.absurd:
            return _too_large(flat, dtype, largest)
    if may_be_zero or not len(flat):
        return ""
    if not flat.any():
        return _ALL_ZEROS
    hole = _longest_hole(flat)
    return Reading.HOLE(hole=hole) if hole >= _HOLE_BYTES else ""


def _examine(flat: Any, dtype: torch.dtype, *, may_be_zero: bool) -> tuple[str, str, bytes]:
    """Return what is wrong with the bytes of a tensor, what is odd, and some of a large one."""
    if len(flat) <= SMALL_BYTES:
        return *_examine_small(flat, dtype, may_be_zero=may_be_zero), b""
    some = _sample(flat)
    fault = _find_absurd(some, dtype)
    if fault:
        return fault, "", some
    # What is found may lie in two places.
    if may_be_zero or bytes(_SAMPLE_BYTES) not in some:
        return "", "", some
    hole = _longest_hole(flat)
    is_hole = hole >= min(_HOLE_BYTES, len(flat) // _PAGE * _PAGE)
    return Reading.HOLE(hole=hole) if is_hole else "", "", some


def _find_absurd(some: bytes, dtype: torch.dtype) -> str:
    """Return what is wrong with the size of numbers, or ""."""
    bits = _FORMATS.get(dtype)
    if bits is None:
        return ""
    if dtype == torch.float8_e4m3fn:
        # Bytes are searched faster than numbers are compared.
        return _NO_NUMBERS if b"\x7f" in some or b"\xff" in some else ""
    largest = (np.frombuffer(some, bits.dtype) & bits.mask).max(initial=0)
    return _too_large(some, dtype, largest) if largest >= bits.absurd else ""


def _examine_small(flat: Any, dtype: torch.dtype, *, may_be_zero: bool) -> tuple[str, str]:
    if dtype == torch.float32:
        numbers = flat.view(np.float32)
        with np.errstate(all="ignore"):
            # One number of all but a few good tensors says enough, in half of the time.
            if _LEAST_SQUARE < numbers.dot(numbers) < _LARGE_SQUARE:
                return "", ""
    bits = _FORMATS.get(dtype, _OTHERS)
    # One look says all: which bits of an exponent the largest number has.
    largest = (flat.view(bits.dtype) & bits.mask).max(initial=0)
    if largest >= bits.absurd:
        return _too_large(flat, dtype, largest), ""
    if largest >= bits.large:
        return "", Content.LARGE(size=_largest(flat, dtype))
    if largest <= bits.least and len(flat) and not may_be_zero:
        if not flat.any():
            return _ALL_ZEROS, ""
        if largest < bits.least:
            return Content.TOO_SMALL(size=_largest(flat, dtype)), ""
    return "", ""


def _too_large(some: Any, dtype: torch.dtype, largest: int) -> str:
    return _NO_NUMBERS if largest == _FORMATS[dtype].mask else Content.TOO_LARGE(size=_largest(some, dtype))


def _largest(some: Any, dtype: torch.dtype) -> float:
    return float(np.abs(_numbers(some, dtype)).max())


class _Form(NamedTuple):
    """What numbers look like."""

    rms: float
    skew: float
    """|mean| by the root mean square: 0 is as many of either sign, 1 a constant."""
    is_usual: bool
    """Whether they look like a trained matrix, see above."""


def _form_of(some: bytes, dtype: torch.dtype, fewest: int = FEWEST_FOR_SIZE) -> _Form | None:
    """Return what numbers look like; None of too few, or of another format."""
    if len(some) < fewest * dtype.itemsize or (dtype not in _FORMATS and dtype != torch.int8):
        return None
    numbers = _numbers(some, dtype)[: len(_ONES)]
    count = len(numbers)
    rms = math.sqrt(float(numbers.dot(numbers)) / count)
    if not USUAL_RMS[0] < rms < USUAL_RMS[1]:
        # One number is not to say how large all are.
        squares = np.sort(np.square(numbers, dtype=np.float64))[: max(count - count // ONE_IN, 1)]
        rms = math.sqrt(float(squares.mean()))
    if count < FEWEST:
        return _Form(rms, 0.0, is_usual=True)
    skew = abs(float(numbers.dot(_ONES[:count]))) / count / rms if rms else 1.0
    is_usual = skew < MOST_SKEW
    if is_usual and dtype.itemsize > 1:
        is_usual = USUAL_RMS[0] < rms < POSSIBLE_RMS[1]
    if is_usual and dtype == torch.float16:
        is_usual = bool(np.abs(numbers).min() < NEAR_ZERO * rms)
    return _Form(rms, skew, is_usual)


def _other_format(some: bytes, dtype: torch.dtype) -> str:
    """Return that odd numbers are usual ones of another format, or ""."""
    other = _MIXED_UP.get(dtype)
    if other is None or len(some) < FEWEST * other.itemsize:
        return ""
    with np.errstate(all="ignore"):
        form = _form_of(some, other)
    return Content.OTHER_FORMAT(said=_NAMES[dtype], found=_NAMES[other]) if form is not None and form.is_usual else ""


def _is_usual_scale(scale: float) -> bool:
    """Say whether a scale is one of usual weights, whatever their codes are, which are 1 and more, up to 448."""
    return USUAL_RMS[0] <= scale <= USUAL_RMS[1] / _LARGEST_CODE


def _find_in_rms(name: str, rms: float) -> tuple[str, str]:
    if not POSSIBLE_RMS[0] <= rms <= POSSIBLE_RMS[1]:
        return Content.NO_WEIGHTS(rms=rms), ""
    is_large = rms > USUAL_RMS[1] and _OF_TRANSFORMER.search(name)
    is_small = rms < USUAL_RMS[0] and not _OTHER_MATRIX.search(name)
    return "", Content.ODD_WEIGHTS(rms=rms) if is_large or is_small else ""


def _find_in_cast(name: str, some: bytes, dtype: torch.dtype) -> tuple[str, str]:
    """Return the same of FP8 weights that have no scale."""
    form = _form_of(some, dtype, fewest=1)
    if form is None:
        return "", ""
    most = LARGEST_CAST_RMS if _OF_TRANSFORMER.search(name) or _OTHER_MATRIX.search(name) else POSSIBLE_RMS[1]
    return (Content.LOST_SCALES(rms=form.rms), "") if form.rms > most else _find_in_rms(name, form.rms)


def _numbers(some: Any, dtype: torch.dtype) -> Any:
    """Return bytes in a format as float32."""
    return _AS_NUMBERS[dtype](np.frombuffer(some, np.uint8))


def _sample(flat: Any) -> bytes:
    """Return a few bytes in every part of a tensor, 4096 of a small one; whole numbers of any format."""
    some: bytes = _few(torch.from_numpy(flat)).numpy().tobytes()
    return some


def _few(flat: torch.Tensor) -> torch.Tensor:
    """Return the same as a view uint8 [parts, 32] of what is uint8 [bytes]."""
    step = _EVERY if len(flat) > _MEDIUM_BYTES else max(len(flat) // _LEAST_SAMPLE, 1) * _SAMPLE_BYTES
    return flat.as_strided(((len(flat) - _SAMPLE_BYTES) // step + 1, _SAMPLE_BYTES), (step, 1))


def _bytes_of(values: torch.Tensor) -> Any:
    if values.dtype != torch.uint8 or values.ndim != 1:
        values = values.detach().reshape(-1).view(torch.uint8)
    return values.numpy()


def _longest_hole(flat: Any) -> int:
    """Return the bytes of the longest row of pages of zeros."""
    pages = flat[: len(flat) // _PAGE * _PAGE].reshape(-1, _PAGE)
    filled = np.flatnonzero(pages.any(axis=1))
    edges = np.concatenate([[-1], filled, [len(pages)]])
    return int((np.diff(edges).max() - 1) * _PAGE)
