"""A transformer checkpoint of any layout as the tensors that LightX2V's modules take, by their own names.

Native Wan names; scales as `.weight_scale` [N, 1] fp32, whatever the file calls them and whether it has one
a channel or one a tensor. LightX2V's own loader rounds scales to bfloat16, so that its resident run differs from
its disk run; here they stay fp32 in every mode.
"""

from __future__ import annotations

import torch

from ...logic.checkpoint_files import TransformerFiles
from ..streaming import TensorSpec
from ..weights import open_weights

_EIGHT_BIT = {"F8_E4M3": torch.float8_e4m3fn, "I8": torch.int8}
_SCALE = ".weight_scale"


class TransformerCheckpoint:
    """Tensors of a checkpoint, mapped from its files."""

    def __init__(self, files: TransformerFiles) -> None:
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
                spec = TensorSpec(stored, _EIGHT_BIT.get(info.dtype, torch.bfloat16), torch.Size(info.shape))
            else:
                continue
            self._stored_names[spec.name] = stored
            specs.append(spec)
        self.specs = tuple(specs)

    def read(self, spec: TensorSpec) -> torch.Tensor:
        """Return a CPU tensor of the spec's dtype and shape; mapped where nothing had to change."""
        stored = self._weights[self._stored_names[spec.name]].to(spec.dtype)
        if spec.name.endswith(_SCALE):
            return stored.reshape(-1, 1).expand(spec.shape).contiguous()
        return stored

    def close(self) -> None:
        """Drop the mappings; `read` opens them again."""
        self._weights.close()
