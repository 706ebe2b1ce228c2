"""What a block computes between its matmuls and attentions, as a small table of operations.

Rows are tokens. Activations are BF16 and all maths is fp32. Outputs are written where the caller says, so that a block
needs no memory of its own. ops_torch.py and ops_triton.py implement the same table.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch


class Rotary(NamedTuple):
    """Cosines and sines of the rotary embedding, each fp32 [rows, head_dim / 2]."""

    cos: torch.Tensor
    sin: torch.Tensor


class Ops(Protocol):
    """The operations. All launch on the current stream and never wait for the device.

    Rows are dense, their distance is free (views into a workspace). Where an operation takes `out` and `scale`, it
    writes BF16 if `scale` is None. Otherwise `out` is float8_e4m3fn or int8 and `scale` fp32 [rows, 1] takes what its
    values are to be multiplied with: the row's largest magnitude / 448 or / 127. INT8 rounds half to even.
    """

    def quantize(self, x: torch.Tensor, out: torch.Tensor, scale: torch.Tensor) -> None:
        """Write x [rows, D] to out [rows, D] in 8 bits. A row of zeros gets zeros and a tiny scale."""

    def norm(
        self,
        x: torch.Tensor,
        mul: torch.Tensor,
        add: torch.Tensor,
        eps: float,
        out: torch.Tensor,
        scale: torch.Tensor | None,
    ) -> None:
        """Write the layer norm of x [rows, D], times mul [D] plus add [D] (fp32), to out [rows, D]."""

    def residual(self, x: torch.Tensor, y: torch.Tensor, gate: torch.Tensor | None) -> None:
        """Add y [rows, D], times gate [D] (fp32) if there is one, to x [rows, D] in place."""

    def add_product(self, x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> None:
        """Add x [rows, r] @ weight [N, r]^T to out [rows, N] in place; r is a multiple of 16 and small."""

    def join_inputs(
        self, hidden: torch.Tensor, balance: torch.Tensor, x: torch.Tensor, scale: torch.Tensor, out: torch.Tensor
    ) -> None:
        """Write the columns that a LoRA adds to x [rows, K] FP8 with its scale [rows, 1] to out [rows, C] FP8.

        See joined.py. Rows of x and out are equally far apart. x and its scale change where a row of the LoRA would be
        too large, by a power of two.

        Args:
            hidden: [rows, r] BF16: x times scale @ down^T; 3 * r are C at most.
            balance: fp32 [r], powers of two.
        """

    def join_weight(
        self,
        up: torch.Tensor,
        balance: torch.Tensor,
        weight: torch.Tensor,
        scale: torch.Tensor,
        out: torch.Tensor,
        out_scale: torch.Tensor,
    ) -> None:
        """Write the same columns of weight [N, K] FP8 with its scale [N, 1], then the weight, to out [N, C + K].

        Args:
            up, balance: [N, r] BF16, and see join_inputs.
            out_scale: fp32 [N, 1] takes the scale of out: that of weight, but for powers of two.
        """

    def residual_norm(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        gate: torch.Tensor | None,
        mul: torch.Tensor,
        add: torch.Tensor,
        eps: float,
        out: torch.Tensor,
        scale: torch.Tensor | None,
    ) -> None:
        """Do `residual`, then `norm` of the new x, in one pass; out may be y if `scale` is None."""

    def gelu(self, h: torch.Tensor, out: torch.Tensor, scale: torch.Tensor | None) -> None:
        """Write the tanh-GELU of h [rows, F] to out [rows, F]; out may be h if `scale` is None."""

    def rms_rotary(self, x: torch.Tensor, weight: torch.Tensor, eps: float, heads: int, rotary: Rotary | None) -> None:
        """Normalize x [rows, heads * head_dim] in place by its root mean square over the whole row, times weight.

        Then, if there is a `rotary`, turn the pairs (2i, 2i + 1) of every head by its angles.
        """

    def row_factors(self, x: torch.Tensor, eps: float, out: torch.Tensor) -> None:
        """Write what `rms_rotary` multiplies each row of x [rows, D] with to out, fp32 [rows]."""

    def cross_attention(
        self,
        q: torch.Tensor,
        factors: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        repeats: int,
        out: torch.Tensor,
    ) -> None:
        """Attend from q [rows, heads, head_dim], times factors [rows] (fp32), to k, v [keys, heads, head_dim].

        The last key counts `repeats` times: the text's padding rows are all alike, and one of them stands for the rest.
        """

    def add_cross_attention(
        self, q: torch.Tensor, factors: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor
    ) -> None:
        """Add to out [rows, heads, head_dim], in place, what q times factors finds in other k, v, each counting once.

        See cross_attention; meant for hundreds of keys.
        """

    def cross_weights(
        self, q: torch.Tensor, factors: torch.Tensor, k: torch.Tensor, repeats: int, out: torch.Tensor
    ) -> None:
        """Write what `cross_attention` multiplies the values with to out [rows, heads, columns], contiguous.

        The last key's weight is that of all its repeats. columns is a multiple of 8; those after the keys get zeros.
        """
