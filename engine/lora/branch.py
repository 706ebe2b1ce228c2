"""Adds what LoRAs make of an input to what a linear layer has made of it; the tensors are compose.py's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch.nn import functional

from ..constants import FP8_BRANCH_PARTS
from ..kernels.joined import room_before
from ..kernels.matmul import Linear
from ..kernels.widen import widen
from .compose import input_of

Weights = Mapping[str, torch.Tensor]
Multiply = Callable[[torch.Tensor, torch.Tensor | None, Linear, torch.Tensor], None]
"""See kernels/matmul.py linear."""


class Branch(NamedTuple):
    """What is to be added to a layer's output: hidden @ up^T."""

    hidden: torch.Tensor
    """[M, r] BF16: the layer's input @ down^T."""
    up: torch.Tensor
    """[N, r] BF16."""
    balance: torch.Tensor | None
    """fp32 [r], for a layer in FP8; see kernels/joined.py."""

    def fits_beside(self, rows: torch.Tensor) -> bool:
        """Say whether rows [M, K] are so far apart that the branch has room before each of them."""
        return FP8_BRANCH_PARTS * self.hidden.shape[1] <= room_before(rows)


def branches_of(
    multiply: Multiply, inputs: tuple[torch.Tensor, torch.Tensor | None], weights: Weights, names: Sequence[str]
) -> dict[str, Branch]:
    """Return the branch of each of the layers that has one; they share their input, and one product.

    Args:
        multiply: the block's own kernel, which takes `down` as it takes the layers' weights.
        inputs: rows [M, K] in 8 bits and their scales [M, 1], or in BF16 and None.
        weights: of the block, LoRAs included.
    """
    path = input_of(names[0])
    down = weights.get(f"{path}.lora_down")
    if down is None:
        return {}
    x, scale = inputs
    hidden = torch.empty(len(x), len(down), dtype=torch.bfloat16, device=x.device)
    layer = Linear(down, weights.get(f"{path}.lora_down_scale"), weights[f"{path}.lora_bias"])
    multiply(x, scale, layer, hidden)
    found, start = {}, 0
    for name in names:
        up = weights.get(f"{name}.lora_up")
        if up is not None:
            part = hidden[:, start : start + up.shape[1]]
            found[name] = Branch(part, up, weights.get(f"{name}.lora_balance"))
            start += up.shape[1]
    return found


def add_branch_of_heads(heads: torch.Tensor, weights: Weights, name: str, out: torch.Tensor) -> None:
    """Add to what a layer makes of each head alone, out [heads, M, N], what its branch makes of it.

    Args: heads: [M, heads, head_dim] BF16; all of a row together are what the layer takes.
    """
    down = weights.get(f"{name}.lora_down")
    if down is None:
        return
    scale = weights.get(f"{name}.lora_down_scale")
    wide = widen(down, heads.new_empty(down.shape)).view(-1, *heads.shape[1:])
    hidden = torch.bmm(heads.transpose(0, 1), wide.permute(1, 2, 0))
    if scale is not None:
        hidden.mul_(scale.flatten())
    out.view(-1, out.shape[-1]).addmm_(hidden.flatten(0, 1), weights[f"{name}.lora_up"].t())


def linear(x: torch.Tensor, weights: Weights, name: str) -> torch.Tensor:
    """Return the layer `name`, which is in no block, of x [..., K], in the dtype of its weights."""
    out = functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])
    down = weights.get(f"{name}.lora_down")
    if down is None:
        return out
    return out + functional.linear(functional.linear(x, down), weights[f"{name}.lora_up"])
