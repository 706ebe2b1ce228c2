"""A transformer checkpoint of any layout as named tensors: what engines are filled from.

Native Wan names; scales as `.weight_scale` [N, 1] fp32, whatever the file calls them and whether it has one a channel
or one a tensor. (LightX2V's own loader rounds scales to bfloat16, so that its resident run differs from its disk run;
here they stay fp32 in every mode.)
"""

from __future__ import annotations

import re
from dataclasses import replace

import torch

from .content import ContentCheck, Look
from .transformers import TransformerFiles
from .weights import FileRange, TensorSpec, open_weights

_EIGHT_BIT = {"F8_E4M3": torch.float8_e4m3fn, "I8": torch.int8}
_SCALE = ".weight_scale"
# How names of parameters end.
_PARAMETERS = ("weight", "bias", "modulation", "emb_pos")


def list_specs(
    files: TransformerFiles, float32: str | None = None, eight_bit: torch.dtype | None = None
) -> dict[TensorSpec, str]:
    """Return the parameters of a transformer, and the name that its files have for each; by the headers alone.

    Args:
        float32: pattern of the names that are to be in fp32; the rest is BF16, or 8-bit.
        eight_bit: the dtype of what is stored in 8 bits; None is the stored one.
    """
    specs: dict[TensorSpec, str] = {}
    for stored, info in files.header.items():
        base, _, leaf = stored.rpartition(".")
        if leaf == files.format.scale_suffix:
            shape = torch.Size((files.header[f"{base}.weight"].shape[0], 1))
            specs[TensorSpec(f"{base}{_SCALE}", torch.float32, shape)] = stored
        elif leaf in _PARAMETERS:
            plain = torch.float32 if float32 and re.search(float32, stored) else torch.bfloat16
            dtype = (eight_bit or _EIGHT_BIT[info.dtype]) if info.dtype in _EIGHT_BIT else plain
            specs[TensorSpec(stored, dtype, torch.Size(info.shape))] = stored
    return specs


class TransformerCheckpoint:
    """Tensors of a checkpoint, mapped from its files."""

    def __init__(
        self, files: TransformerFiles, float32: str | None = None, eight_bit: torch.dtype | None = None
    ) -> None:
        """Args: float32, eight_bit: see list_specs; what is stored in other 8 bits comes with its bytes as they are."""
        self._weights = open_weights(files.files, files.format.prefix)
        specs = list_specs(files, float32, eight_bit)
        self._content = ContentCheck(files.format.architecture.num_layers)
        self._stored_names = {spec.name: stored for spec, stored in specs.items()}
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
            elements: those to return instead, flat, in the dtype of the file.

        Raises:
            CheckpointError: what is read is damaged, see content.py.
        """
        name = self._stored_names[spec.name]
        stored = self._weights[name]
        part = stored if elements is None else stored.flatten()[elements]
        self._content.look(name, self._weights.path_of(name), part, stored.dtype, elements.start if elements else 0)
        if stored.dtype in _EIGHT_BIT.values():
            stored = stored.view(spec.dtype)
        if spec.name.endswith(_SCALE):
            stored = stored.reshape(-1, 1).expand(spec.shape).contiguous()
        return stored.to(spec.dtype) if elements is None else stored.flatten()[elements]

    def location(self, spec: TensorSpec) -> FileRange | None:
        """Return where in a file the tensor's bytes lie as they are needed; None where `read` changes them."""
        stored = self._stored_names[spec.name]
        if self._weights.header[stored].shape != tuple(spec.shape):
            return None
        dtype = _EIGHT_BIT.get(self._weights.header[stored].dtype, spec.dtype)
        place = self._weights.location(stored, dtype)
        return place and replace(place, look=Look(self._content, stored, place.path, dtype))

    def close(self) -> None:
        """Drop the mappings; `read` opens them again."""
        self._weights.close()
