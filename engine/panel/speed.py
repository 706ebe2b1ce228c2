"""How long a run will take: arithmetic on sizes, measured figures and published rates.

Seconds are those of sampling and decoding; loading depends on the disk and is left out. A speed that was
seen on this machine goes before every estimate, and a card without published rates gets no number.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..backends.choose import Backends
from ..backends.table import ATTENTION_BACKENDS, BLOCK_BACKENDS, LIGHTX2V_BLOCKS
from ..checkpoints.formats import WanArchitecture
from ..errors import MALFORMED
from ..memory.clip import Clip
from ..sentences.doctor import Doctor

logger = logging.getLogger(__name__)

# Of the file with the speeds that were seen, in the folder that the host gives.
FILE = "lightx2v_speeds.json"


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Seconds of a block's parts for a clip, measured on this card; None where they were not."""

    tokens: int
    attention: float | None
    linears: float | None


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Everything but the size of the clip that decides how fast a step is."""

    card: str
    """Name as torch reports it, or "CPU"."""
    architecture: WanArchitecture
    engine: str
    compute: str
    """What the linears multiply: fp8 | int8 | bf16."""
    attention: str
    matmul: str
    ops: str
    """What computes between the blocks' matmuls and attentions: triton | torch | lightx2v (its own blocks)."""
    offload: str
    system: str = sys.platform
    parts: Parts | None = field(default=None, compare=False)
    """What was measured, which goes before published rates."""


def setup_of(backends: Backends, card: str, architecture: WanArchitecture, offload: str, tokens: int) -> Setup:
    """Return what decides the speed of kernels that were chosen for a clip of so many tokens."""
    parts = Parts(tokens=tokens, attention=backends.attention_seconds(tokens), linears=backends.linear_seconds(tokens))
    return Setup(
        card=card,
        architecture=architecture,
        engine=backends.engine,
        compute=backends.inputs,
        attention=backends.attention.name,
        matmul=backends.matmul.name,
        ops=backends.blocks.name,
        offload=offload,
        parts=parts if backends.measured else None,
    )


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Published dense tensor core rates of a card, in TFLOP/s (TOP/s), accumulating in FP32."""

    bf16: float
    int8: float
    fp8: float | None = None

    def of(self, dtype: str) -> float | None:
        return {"bf16": self.bf16, "int8": self.int8, "fp8": self.fp8}[dtype]


def _geforce(fp32: float, *, has_fp8: bool) -> Rates:
    """Return the rates of a GeForce card, which stand in a fixed ratio to its shader rate."""
    return Rates(bf16=2 * fp32, int8=8 * fp32, fp8=4 * fp32 if has_fp8 else None)


# Shader FP32 TFLOP/s. Source: NVIDIA's product pages; the ratios of _geforce: appendix tables of its Ampere
# GA102, Ada and RTX Blackwell architecture papers (RTX 3090: 35.6 -> BF16 71, INT8 284; RTX 4090: 82.6 ->
# BF16 165, FP8 330, INT8 661; RTX 5090: 104.8 -> BF16 210, FP8 419, INT8 838).
_AMPERE = {
    "RTX 3060": 12.7, "RTX 3060 Ti": 16.2, "RTX 3070": 20.3, "RTX 3070 Ti": 21.7, "RTX 3080": 29.8,
    "RTX 3080 Ti": 34.1, "RTX 3090": 35.6, "RTX 3090 Ti": 40.0,
}  # fmt: skip
_ADA_AND_BLACKWELL = {
    "RTX 4060": 15.1, "RTX 4060 Ti": 22.1, "RTX 4070": 29.1, "RTX 4070 SUPER": 35.5, "RTX 4070 Ti": 40.1,
    "RTX 4070 Ti SUPER": 44.1, "RTX 4080": 48.7, "RTX 4080 SUPER": 52.2, "RTX 4090": 82.6, "RTX 4090 D": 73.5,
    "RTX 5060 Ti": 23.7, "RTX 5070": 30.9, "RTX 5070 Ti": 43.9, "RTX 5080": 56.3, "RTX 5090": 104.8,
}  # fmt: skip
_HOPPER = Rates(bf16=989, int8=1979, fp8=1979)
_A100 = Rates(bf16=312, int8=624)
# Source: NVIDIA's datasheets; figures given with sparsity are halved.
CARDS: dict[str, Rates] = {
    **{name: _geforce(fp32, has_fp8=False) for name, fp32 in _AMPERE.items()},
    **{name: _geforce(fp32, has_fp8=True) for name, fp32 in _ADA_AND_BLACKWELL.items()},
    **dict.fromkeys(("H200", "H100 80GB HBM3", "H800", "GH200 480GB"), _HOPPER),
    "H100 PCIe": Rates(bf16=756, int8=1513, fp8=1513),
    "H20": Rates(bf16=148, int8=296, fp8=296),
    **dict.fromkeys(("A100-SXM4-40GB", "A100-SXM4-80GB", "A100-PCIE-40GB", "A100 80GB PCIe"), _A100),
    "L40S": Rates(bf16=362, int8=733, fp8=733),
    "L40": Rates(bf16=181, int8=362, fp8=362),
    "L4": Rates(bf16=121, int8=242, fp8=242),
    "A10": Rates(bf16=125, int8=250),
    "A40": Rates(bf16=150, int8=299),
    "RTX A6000": Rates(bf16=155, int8=310),
    "RTX A5000": Rates(bf16=111, int8=222),
    "RTX 6000 Ada Generation": Rates(bf16=364, int8=728, fp8=728),
}
_HOPPER_CARDS = ("H", "GH")

# Measured on an H200 (power cap 700 W) in one step at 832x480, 81 frames, of Wan2.1-14B: 32,760 tokens. A new
# measurement is a new number here; docs/benchmarks.md has the runs.
_LINEAR_OPS, _ATTENTION_OPS = 0.783e15, 0.879e15
# Seconds of what lies between the linears, where Triton's blocks compute it: the rest of such a step less its linears.
_BETWEEN_LINEARS = 0.12
# The seconds of its parts are in the rows of backends/table.py.
_ATTENTION = {row.name: row for row in ATTENTION_BACKENDS if row.seconds is not None}
_BLOCKS = {row.name: row for row in (*BLOCK_BACKENDS, LIGHTX2V_BLOCKS)}
# Decode of 81 frames, BF16: 0.74 s whole and 0.91 s tiled at 832x480, 1.67 and 2.63 s at 1280x720.
_DECODE_SECONDS_PER_PIXEL = 2.27e-8
_TILED_DECODE_FACTOR = 1.4


def find_rates(card: str) -> Rates | None:
    """Return the published rates of a card by the name torch reports, or None for one that is not listed."""
    return CARDS.get(card.removeprefix("NVIDIA ").removeprefix("GeForce "))


def step_seconds(setup: Setup, tokens: int) -> float | None:
    """Return the estimated seconds of one denoising step; None for a card without published rates or measurements."""
    rest, attention = _rest_seconds(setup, tokens), _attention_seconds(setup, tokens)
    return None if rest is None or attention is None else rest + attention


def _rest_seconds(setup: Setup, tokens: int) -> float | None:
    """Return the seconds of everything but self-attention."""
    sizes = setup.architecture
    there = _BLOCKS[setup.ops].rest_seconds[setup.compute]
    if setup.parts is not None and setup.parts.linears is not None:
        linears_there = _BLOCKS["triton"].rest_seconds[setup.compute] - _BETWEEN_LINEARS
        return setup.parts.linears * tokens / setup.parts.tokens * sizes.num_layers * there / linears_there
    rates, reference = find_rates(setup.card), _HOPPER.of(setup.compute)
    rate = None if rates is None else rates.of(setup.compute)
    if rate is None or reference is None:
        return None
    linear_ops = tokens * sizes.num_layers * (12 * sizes.dim**2 + 4 * sizes.dim * sizes.ffn_dim)
    return linear_ops / _LINEAR_OPS * there * reference / rate


def _attention_seconds(setup: Setup, tokens: int) -> float | None:
    sizes, rates = setup.architecture, find_rates(setup.card)
    if setup.parts is not None and setup.parts.attention is not None:
        return setup.parts.attention * (tokens / setup.parts.tokens) ** 2 * sizes.num_layers
    if rates is None or setup.attention not in _ATTENTION:
        return None
    operations = 4 * tokens**2 * sizes.dim * sizes.num_layers
    row = _ATTENTION[setup.attention]
    rate, reference = (each.of(row.unit) or 0 for each in (rates, _HOPPER))
    if setup.card.removeprefix("NVIDIA ").startswith(_HOPPER_CARDS):
        return operations / _ATTENTION_OPS * (row.seconds or 0) * reference / rate
    return operations / 1e12 / (rate * row.shares.get(setup.system, row.share))


def decode_seconds(card: str, clip: Clip, *, is_tiled: bool) -> float | None:
    """Return the estimated seconds of decoding one video, or None for a card without published rates."""
    rates = find_rates(card)
    if rates is None:
        return None
    return (
        clip.pixels * _DECODE_SECONDS_PER_PIXEL * _HOPPER.bf16 / rates.bf16 * (_TILED_DECODE_FACTOR if is_tiled else 1)
    )


# A size of less than so many times the work, more or less, tells about another; beyond it a guess is called one.
_NEAR = 8.0
# What the file of speeds can mean: seconds of a step or of a pixel, and tokens of a clip.
_LEAST_SECONDS, _MOST_SECONDS, _MOST_TOKENS = 1e-12, 1e9, 10**9


@dataclass(frozen=True, kw_only=True)
class Duration:
    """Predicted seconds of sampling and decoding, and of encoding a picture."""

    seconds: float | None
    """None: nothing is known about this card."""
    step_seconds: float | None
    basis: str
    """measured (this card, these settings, this size) | scaled (from other sizes, near in work) | kernels (measured
    here) | estimate (published rates) | rough (from much smaller or larger clips) | unknown."""


class History:
    """Speeds seen on this machine: seconds of a step, of a decoded pixel and of an encoded one.

    Kept in a file where one is given, so that a restart forgets nothing.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._steps: dict[str, dict[int, float]] = {}
        self._decodes: dict[str, float] = {}
        self._encodes: dict[str, float] = {}
        if path is not None:
            self._read(path)

    def add_steps(self, setup: Setup, tokens: int, clips: Iterable[Iterable[float]]) -> None:
        """Note the seconds of every step of every clip; the first step of all also warms up and is left out."""
        seconds = [step for clip in clips for step in clip]
        seconds = sorted(seconds[1:] or seconds)
        if seconds:
            self._steps.setdefault(_key(setup), {})[tokens] = seconds[len(seconds) // 2]
            self._write()

    def add_decode(self, card: str, clip: Clip, seconds: float, *, is_tiled: bool) -> None:
        """Note the seconds of decoding a whole batch."""
        self._decodes[_decode_key(card, is_tiled)] = seconds / (clip.pixels * clip.batch)
        self._write()

    def add_encode(self, card: str, clip: Clip, seconds: float) -> None:
        """Note the seconds of encoding what a clip begins or ends with, which the VAE reads as a whole clip."""
        self._encodes[card] = seconds / clip.pixels
        self._write()

    def predict(self, setup: Setup, clip: Clip, steps: int, *, is_tiled: bool, has_picture: bool = False) -> Duration:
        """Predict sampling in so many steps and decoding, from what was seen if anything fits, else from the tables.

        Args:
            has_picture: a picture is encoded before, once for a batch: counted where such was seen.
        """
        step, basis = self._predict_step(setup, clip.tokens)
        if step is None:
            return Duration(seconds=None, step_seconds=None, basis=basis)
        per_pixel = self._decodes.get(_decode_key(setup.card, is_tiled))
        if per_pixel is not None:
            decode: float | None = per_pixel * clip.pixels
        else:
            decode = decode_seconds(setup.card, clip, is_tiled=is_tiled)
        encode = self._encodes.get(setup.card, 0.0) * clip.pixels if has_picture else 0.0
        return Duration(seconds=encode + clip.batch * (steps * step + (decode or 0)), step_seconds=step, basis=basis)

    def _predict_step(self, setup: Setup, tokens: int) -> tuple[float | None, str]:
        seen = self._steps.get(_key(setup), {})
        if tokens in seen:
            return seen[tokens], "measured"
        work = {each: _relative_work(setup, each) for each in (*seen, tokens)}
        target = work[tokens]
        if any(1 / _NEAR <= target / work[each] <= _NEAR for each in seen):
            return _fitted([(work[each], seconds) for each, seconds in seen.items()], target), "scaled"
        estimate = step_seconds(setup, tokens)
        if estimate is not None:
            return estimate, "estimate" if setup.parts is None else "kernels"
        if seen:
            return _fitted([(work[each], seconds) for each, seconds in seen.items()], target), "rough"
        return None, "unknown"

    def _read(self, path: Path) -> None:
        """Take what the file has; one that is damaged is as good as none."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            steps = {
                str(key): {_tokens(tokens): _positive(seconds) for tokens, seconds in sizes.items()}
                for key, sizes in data["steps"].items()
            }
            # Files of earlier versions have no encodes.
            decodes, encodes = (
                {str(key): _positive(seconds) for key, seconds in each.items()}
                for each in (data["decodes"], data.get("encodes", {}))
            )
        except FileNotFoundError:
            return
        except (OSError, *MALFORMED) as error:
            logger.warning("LightX2V: %s", Doctor.SPEEDS_UNKNOWN(path=path, error=error))
            return
        self._steps, self._decodes, self._encodes = steps, decodes, encodes

    def _write(self) -> None:
        if self.path is None:
            return
        speeds = {"steps": self._steps, "decodes": self._decodes, "encodes": self._encodes}
        part = self.path.with_name(f"{self.path.name}.part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(speeds), encoding="utf-8")
            part.replace(self.path)
        except OSError as error:
            logger.warning("LightX2V: %s", Doctor.SPEEDS_FORGOTTEN(path=part, error=error))
            self.path = None


def _positive(number: Any) -> float:
    """Return seconds of a step, or of a pixel."""
    if not isinstance(number, float | int) or not _LEAST_SECONDS < number < _MOST_SECONDS:
        raise ValueError(Doctor.NO_DURATION(number=number))
    return float(number)


def _tokens(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < _MOST_TOKENS:
        raise ValueError(Doctor.NO_TOKENS(text=text[:40]))
    return int(text)


def _key(setup: Setup) -> str:
    """Return what decides the speed of a step, as text."""
    facts = {name: value for name, value in asdict(setup).items() if name != "parts"}
    return json.dumps(facts, sort_keys=True)


def _decode_key(card: str, is_tiled: bool) -> str:
    return f"{card}, {'tiled' if is_tiled else 'whole'}"


def _fitted(points: list[tuple[float, float]], target: float) -> float:
    """Return the seconds at `target` of (work, seconds): a constant part, as copies of weights are, and one that grows.

    By least squares of the relative errors, neither part below 0; one point alone is taken for growth only.
    """
    points = sorted(points)
    if len(points) == 1:
        ((work, seconds),) = points
        return seconds * target / work
    # Weighted least squares of (constant + slope * work) / seconds = 1.
    scaled = [(1 / seconds, work / seconds) for work, seconds in points]
    aa, ab, bb = (sum(x * y for x, y in pairs) for pairs in (
        [(a, a) for a, _ in scaled], scaled, [(b, b) for _, b in scaled],
    ))  # fmt: skip
    a, b = sum(a for a, _ in scaled), sum(b for _, b in scaled)
    determinant = aa * bb - ab * ab
    if determinant <= 1e-12 * aa * bb:
        return b / bb * target
    constant, slope = (a * bb - b * ab) / determinant, (b * aa - a * ab) / determinant
    if slope < 0:
        return a / aa
    return b / bb * target if constant < 0 else constant + slope * target


def _relative_work(setup: Setup, tokens: int) -> float:
    """Return how a step grows with the clip: as the card's estimate does, or as the operations do."""
    sizes = setup.architecture
    return step_seconds(setup, tokens) or tokens * (3 * sizes.dim + sizes.ffn_dim + tokens)
