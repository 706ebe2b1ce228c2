"""A transformer checkpoint of any layout as named tensors: what engines are filled from.

Native Wan names; scales of the blocks' linear layers as `.weight_scale` [N, 1] fp32, whatever the file calls them and
whether it has one a channel, one a tensor, or none: weights that were cast to FP8 are the numbers themselves, with a
scale of one. FP8 is E4M3; what is stored in E5M2 is moved there by a power of two a matrix, which the scale takes back.
Everything else is widened where it is in 8 bits. (LightX2V's own loader rounds scales to bfloat16, so that its resident
run differs from its disk run; here they stay fp32 in every mode.)
"""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import torch

from .checks import BLOCK_LINEAR, SCALE_SUFFIXES, find_unscaled, scale_of
from .content import ContentCheck, Look
from .header import Header
from .transformers import TransformerFiles
from .weights import FileRange, TensorSpec, open_weights

# How what is stored in 8 bits is computed with.
_EIGHT_BIT = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e4m3fn, "I8": torch.int8}
# The power of two of E4M3's largest numbers, and what an exponent of E5M2 is more than its power.
_LARGEST_POWER, _E5M2_BIAS = 8, 15
_SCALE = ".weight_scale"
# How names of parameters end.
_PARAMETERS = ("weight", "bias", "modulation", "emb_pos")


def list_specs(
    files: TransformerFiles, float32: str | None = None, eight_bit: torch.dtype | None = None
) -> dict[TensorSpec, str]:
    """Return the parameters of a transformer, and the name that its files have for each; by the headers alone.

    A scale that no file has is one; its name is "".

    Args:
        float32: pattern of the names that are to be in fp32; the rest is BF16, or 8-bit.
        eight_bit: the dtype of what is stored in 8 bits; None is the stored one.
    """
    specs: dict[TensorSpec, str] = {}
    for stored, info in files.header.items():
        base, _, leaf = stored.rpartition(".")
        if leaf in SCALE_SUFFIXES:
            if _is_kept(files.header, f"{base}.weight") and scale_of(files.header, f"{base}.weight") == stored:
                specs[_scale_spec(files.header, base)] = stored
        elif leaf in _PARAMETERS:
            plain = torch.float32 if float32 and re.search(float32, stored) else torch.bfloat16
            is_kept = _is_kept(files.header, stored)
            dtype = (eight_bit or _EIGHT_BIT[info.dtype]) if is_kept else plain
            specs[TensorSpec(stored, dtype, torch.Size(info.shape))] = stored
            if is_kept and scale_of(files.header, stored) is None:
                specs[_scale_spec(files.header, base)] = ""
    return specs


def _is_kept(header: Header, weight: str) -> bool:
    """Say whether a tensor is computed with as it is stored, in 8 bits and with a scale."""
    return weight in header and header[weight].dtype in _EIGHT_BIT and BLOCK_LINEAR.search(weight) is not None


def _scale_spec(header: Header, layer: str) -> TensorSpec:
    return TensorSpec(f"{layer}{_SCALE}", torch.float32, torch.Size((header[f"{layer}.weight"].shape[0], 1)))


class TransformerCheckpoint:
    """Tensors of a checkpoint, mapped from its files."""

    def __init__(
        self, files: TransformerFiles, float32: str | None = None, eight_bit: torch.dtype | None = None
    ) -> None:
        """Args: float32, eight_bit: see list_specs; what is stored in other 8 bits comes with its bytes as they are."""
        self._weights = open_weights(files.files, files.format.prefix)
        self._header = files.header
        specs = list_specs(files, float32, eight_bit)
        self._content = ContentCheck(files.format.architecture.num_layers, find_unscaled(files.header))
        self._stored_names = {spec.name: stored for spec, stored in specs.items()}
        self._powers: dict[str, int] = {}
        self.specs = tuple(specs)

    @property
    def others(self) -> list[TensorSpec]:
        """What is not in a block."""
        return [spec for spec in self.specs if not spec.name.startswith("blocks.")]

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors, as they are computed with."""
        return sum(spec.num_bytes for spec in self.specs)

    def read(self, spec: TensorSpec, elements: slice | None = None) -> torch.Tensor:
        """Return a CPU tensor of the spec's dtype and shape, mapped where nothing had to change.

        Args:
            elements: those to return instead, flat; of what is widened, in the dtype of the file.

        Raises:
            CheckpointError: what is read is damaged, see content.py.
        """
        if spec.name.endswith(_SCALE):
            scales = self._scales(spec)
            return scales if elements is None else scales.flatten()[elements]
        name = self._stored_names[spec.name]
        stored = self._weights[name]
        part = stored if elements is None else stored.flatten()[elements]
        self._content.look(name, self._weights.path_of(name), part, stored.dtype, elements.start if elements else 0)
        if spec.dtype.itemsize == 1:
            if stored.dtype == torch.float8_e5m2:
                part = _to_e4m3(part, self._power(name))
            return part.view(spec.dtype)
        scale = self._widening_scale(name, spec, elements)
        if scale is not None:
            part = part.float() * scale
        return part.to(spec.dtype) if elements is None else part

    def _scales(self, spec: TensorSpec) -> torch.Tensor:
        """Return the scales of a layer [N, 1]."""
        name = self._stored_names[spec.name]
        scales = torch.ones(spec.shape)
        if name:
            stored = self._weights[name]
            self._content.look(name, self._weights.path_of(name), stored, stored.dtype)
            scales = stored.reshape(-1, 1).expand(spec.shape).contiguous().to(spec.dtype)
        weight = self._moved_by(spec)
        return scales if weight is None else scales * 2.0 ** -self._power(weight)

    def _moved_by(self, spec: TensorSpec) -> str | None:
        """Return the weight in E5M2 that a scale belongs to; None of everything else."""
        weight = f"{spec.name.removesuffix(_SCALE)}.weight"
        return weight if spec.name.endswith(_SCALE) and self._header[weight].dtype == "F8_E5M2" else None

    def _power(self, weight: str) -> int:
        """Return the power of two that brings the largest number of a matrix in E5M2 among E4M3's largest.

        E4M3 then has all of its numbers that are within 2^14 of the largest one.
        """
        if weight not in self._powers:
            largest = int((self._weights[weight].view(torch.uint8) & 0x7F).max())
            self._powers[weight] = _LARGEST_POWER + _E5M2_BIAS - (largest >> 2)
        return self._powers[weight]

    def _widening_scale(self, name: str, spec: TensorSpec, elements: slice | None) -> torch.Tensor | None:
        """Return what a tensor outside of the blocks' linear layers, or a part of it, is multiplied with."""
        scale_name = scale_of(self._header, name)
        if scale_name is None:
            return None
        scale = self._weights[scale_name].float().flatten()
        self._content.look(scale_name, self._weights.path_of(scale_name), scale, scale.dtype)
        if elements is None:
            return scale.view(-1, *[1] * (len(spec.shape) - 1))
        rows = torch.arange(elements.start, elements.stop) // spec.shape[1:].numel()
        return scale[rows] if len(scale) > 1 else scale

    def location(self, spec: TensorSpec) -> FileRange | None:
        """Return where in a file the tensor's bytes lie as they are needed; None where `read` changes them."""
        stored = self._stored_names[spec.name]
        if not stored or self._weights.header[stored].shape != tuple(spec.shape) or self._moved_by(spec):
            return None
        dtype = spec.dtype
        if dtype.itemsize == 1:
            dtype = _EIGHT_BIT[self._weights.header[stored].dtype]
        elif not spec.name.endswith(_SCALE) and scale_of(self._header, stored) is not None:
            return None
        place = self._weights.location(stored, dtype)
        return place and replace(place, look=Look(self._content, stored, place.path, dtype))

    def close(self) -> None:
        """Drop the mappings; `read` opens them again."""
        self._weights.close()


def _to_e4m3(values: torch.Tensor, power: int) -> torch.Tensor:
    """Return numbers in E5M2, times a power of two, in E4M3."""
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e5m2).float()
    table = (every * 2.0**power).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    codes: np.ndarray = table.take(values.view(torch.uint8).numpy())
    return torch.from_numpy(codes).view(torch.float8_e4m3fn)
