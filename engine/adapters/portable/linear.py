"""Linear layers whose weights stay in 8 bits."""

from __future__ import annotations

import torch
from torch import nn

from ..kernels.matmul import matmul_for


class QuantLinear(nn.Module):
    """A linear layer with an FP8 or INT8 weight [N, K], a scale per output channel [N, 1] and a bias [N].

    Made on the meta device: it says dtypes and shapes, and the weights come later. What it computes is
    x @ (weight * weight_scale)^T + bias, by the named matmul back end of adapters/kernels.
    """

    def __init__(self, in_features: int, out_features: int, dtype: torch.dtype, backend: str) -> None:
        super().__init__()
        self.weight = _parameter((out_features, in_features), dtype)
        self.weight_scale = _parameter((out_features, 1), torch.float32)
        self.bias = _parameter((out_features,), torch.bfloat16)
        self._matmul = matmul_for(backend, (out_features, in_features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map x [..., K] to [..., N]."""
        rows = self._matmul(x.flatten(0, -2), self.weight, self.weight_scale, self.bias)
        return rows.view(*x.shape[:-1], -1)


def full_scale(scale: torch.Tensor, out_features: int) -> torch.Tensor:
    """Return a stored scale, scalar or one per output channel, as fp32 [N, 1]."""
    return scale.float().reshape(-1, 1).expand(out_features, 1).contiguous()


def _parameter(shape: tuple[int, ...], dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"), requires_grad=False)
