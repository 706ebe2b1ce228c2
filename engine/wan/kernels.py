"""What the blocks are computed with on a device."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from ..backends.choose import Backends
from ..kernels import implementations
from ..kernels.attention import IN_PLACE, KERNELS, InParts, Normed, SelfAttention, fits_in_place
from ..kernels.joined import join
from ..kernels.launches import launches_for
from ..kernels.matmul import ACTIVATION_DTYPES, Linear, linear
from ..kernels.ops import Ops
from ..kernels.widen import widen
from ..lora.branch import add_branch_of_heads, branches_of
from .parallel import Exchange, Ulysses

# Of every norm of the model but the image embedding's.
EPS = 1e-6

Weights = Mapping[str, torch.Tensor]
Inputs = tuple[torch.Tensor, torch.Tensor | None]
"""What a linear layer takes: rows [M, K] in 8 bits and their scales [M, 1], or in BF16 and None."""


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """Functions for the parts of a block."""

    ops: Ops
    multiply: Callable[[torch.Tensor, torch.Tensor | None, Linear, torch.Tensor], None]
    """See kernels/matmul.py linear."""
    attention: SelfAttention
    """For rows of any form."""
    attention_in_place: SelfAttention | None
    """What overwrites q, k and v, where they fit; see kernels/attention.py."""
    quantized: torch.dtype | None
    """What the linears' inputs are quantized to: float8_e4m3fn or int8; None is BF16."""
    joins_loras: bool = False
    """Whether the workspace has room for LoRAs beside the linears' inputs; see Backends."""

    def attention_for(self, q: torch.Tensor) -> SelfAttention:
        """Return the self-attention for rows like q [N, H, D]."""
        if self.attention_in_place is not None and fits_in_place(q):
            return self.attention_in_place
        return self.attention

    def shared_by(self, exchange: Exchange) -> Kernels:
        """Return the functions for one of the ranks that share a clip."""
        in_place = self.attention_in_place
        return replace(
            self,
            attention=Ulysses(self.attention, exchange),
            attention_in_place=None if in_place is None else Ulysses(in_place, exchange),
        )

    def quantize(self, x: torch.Tensor, out: torch.Tensor, scales: torch.Tensor | None) -> Inputs:
        """Return x [M, K] BF16 as the linears take it: written to `out` and `scales`, or itself where that is BF16."""
        if scales is None:
            return x, None
        self.ops.quantize(x, out, scales)
        return out, scales

    def inputs_of(self, rows: torch.Tensor) -> Inputs:
        """Return a few rows [M, K] BF16 as the linears take them, in memory of their own where that is 8-bit."""
        if self.quantized is None:
            return rows, None
        scales = rows.new_empty(len(rows), 1, dtype=torch.float32)
        return self.quantize(rows, rows.new_empty(rows.shape, dtype=self.quantized), scales)

    def linear(self, inputs: Inputs, weights: Weights, name: str, out: torch.Tensor) -> None:
        """Write the linear layer `name` of inputs [M, K] to out [M, N], with its LoRAs."""
        self.linears(inputs, weights, {name: out})

    def linears(
        self,
        inputs: Inputs,
        weights: Weights,
        outs: Mapping[str, torch.Tensor],
        on_done: Callable[[str, torch.Tensor], None] | None = None,
    ) -> None:
        """Write linear layers of the same inputs [M, K] to their outs [M, N]; their LoRAs share a product.

        Args: on_done: told each name and its out, as soon as it is there.
        """
        branches = branches_of(self.multiply, inputs, weights, list(outs))
        rows, scales = inputs
        for name, out in outs.items():
            layer = Linear(weights[f"{name}.weight"], weights.get(f"{name}.weight_scale"), weights[f"{name}.bias"])
            branch = branches.get(name)
            if branch and scales is not None and branch.balance is not None and branch.fits_beside(rows):
                with_branch = join(self.ops, branch.hidden, branch.up, branch.balance, rows, scales, layer)
                self.multiply(*with_branch, out)
            else:
                self.multiply(rows, scales, layer, out)
                if branch:
                    self.ops.add_product(branch.hidden, branch.up, out)
            if on_done:
                on_done(name, out)

    def keys_values(
        self, inputs: Inputs, weights: Weights, query_norm: torch.Tensor, num_heads: int, source: str = ""
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a block's keys and values [rows, D] BF16 for the cross-attention, the keys times the weight of the
        queries' norm.

        Args:
            query_norm: [D], that weight.
            source: ends the names of the layers: "" of the text, "_img" of an image.
        """
        rows = inputs[0]
        k, v = (rows.new_empty(rows.shape, dtype=torch.bfloat16) for _ in range(2))
        self.linear(inputs, weights, f"cross_attn.k{source}", k)
        norm = weights[f"cross_attn.norm_k{source}.weight"].float() * query_norm
        self.ops.rms_rotary(k, norm, EPS, num_heads, None)
        self.linear(inputs, weights, f"cross_attn.v{source}", v)
        return k, v

    def linear_of_heads(self, heads: torch.Tensor, weights: Weights, name: str) -> torch.Tensor:
        """Return what the linear layer `name` makes of each head alone, without its bias, in BF16 [heads, M, N].

        Args: heads: [M, heads, head_dim] BF16; all of a row together are what the layer takes.
        """
        stored, scale = weights[f"{name}.weight"], weights.get(f"{name}.weight_scale")
        wide = widen(stored, heads.new_empty(stored.shape))
        out = torch.bmm(heads.transpose(0, 1), wide.view(-1, *heads.shape[1:]).permute(1, 2, 0))
        if scale is not None:
            # Both 8-bit types are exact in BF16, so the scale goes on the result, which is smaller.
            out.mul_(scale.flatten())
        add_branch_of_heads(heads, weights, name, out)
        return out


def build_kernels(backends: Backends) -> Kernels:
    """Return the functions of what was chosen and confirmed."""
    block_ops, matmul, row = (
        implementations.load_ops(backends.blocks.name),
        backends.matmul.name,
        backends.attention.backend,
    )
    launches = functools.partial(launches_for, unit=row.unit)
    return Kernels(
        ops=block_ops,
        multiply=functools.partial(linear, backend=matmul),
        attention=InParts(Normed(block_ops, KERNELS[row.name]), launches),
        attention_in_place=InParts(IN_PLACE[row.name], launches) if backends.is_in_place else None,
        quantized=ACTIVATION_DTYPES.get(matmul),
        joins_loras=backends.joins_loras,
    )
