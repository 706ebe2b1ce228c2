"""A transformer checkpoint of any layout as named tensors: what both engines are filled from.

Native Wan names; scales as `.weight_scale` [N, 1] fp32, whatever the file calls them and whether it has one a channel
or one a tensor. (LightX2V's own loader rounds scales to bfloat16, so that its resident run differs from its disk run;
here they stay fp32 in every mode.)
"""

from __future__ import annotations

import re

import torch

from ..offload import TensorSpec
from .files import TransformerFiles
from .weights import FileRange, open_weights

_EIGHT_BIT = {"F8_E4M3": torch.float8_e4m3fn, "I8": torch.int8}
_SCALE = ".weight_scale"


class TransformerCheckpoint:
    """Tensors of a checkpoint, mapped from its files."""

    def __init__(self, files: TransformerFiles, float32: str | None = None) -> None:
        """Args: float32: pattern of the names that are to be in fp32; the rest is BF16, or 8-bit as it is stored."""
        self._weights = open_weights(files.files, files.format.prefix)
        self._stored_names: dict[str, str] = {}
        stored_scale = f".{files.format.scale_suffix}"
        specs = []
        for stored, info in self._weights.header.items():
            base, _, leaf = stored.rpartition(".")
            if stored.endswith(stored_scale):
                name = f"{base}{_SCALE}"
                shape = torch.Size((self._weights.header[f"{base}.weight"].shape[0], 1))
                spec = TensorSpec(name, torch.float32, shape)
            elif leaf in ("weight", "bias", "modulation"):
                plain = torch.float32 if float32 and re.search(float32, stored) else torch.bfloat16
                spec = TensorSpec(stored, _EIGHT_BIT.get(info.dtype, plain), torch.Size(info.shape))
            else:
                continue
            self._stored_names[spec.name] = stored
            specs.append(spec)
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
        """
        stored = self._weights[self._stored_names[spec.name]]
        if spec.name.endswith(_SCALE):
            stored = stored.reshape(-1, 1).expand(spec.shape).contiguous()
        return stored.to(spec.dtype) if elements is None else stored.flatten()[elements]

    def location(self, spec: TensorSpec) -> FileRange | None:
        """Return where in a file the tensor's bytes lie as they are needed; None where `read` changes them."""
        stored = self._stored_names[spec.name]
        if self._weights.header[stored].shape != tuple(spec.shape):
            return None
        return self._weights.location(stored, spec.dtype)

    def close(self) -> None:
        """Drop the mappings; `read` opens them again."""
        self._weights.close()
