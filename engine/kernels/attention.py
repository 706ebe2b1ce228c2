"""Attention functions by their names in backends/table.py, and self-attention in two halves around them.

Where the pack can prepare a back end's inputs itself, in place, its self-attention has halves of its own.

All are launched on the current stream, except SageAttention's CUDA kernels, which launch on the default
stream whatever is current. Compute therefore stays on the default stream in every engine of this pack;
only copies may have a stream of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from .ops import Ops, Rotary

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


Pair = tuple[torch.Tensor, torch.Tensor]


class SelfAttention:
    """Normalizes and rotates q and k, then attends, in two halves.

    Where rows and heads are on several GPUs, the first half is done in two parts, `measure_rows` and `prepare_heads`,
    between which rows are exchanged for heads; see wan/parallel.py.
    """

    leaves_rows = False
    """Whether `measure_rows` leaves q and k as they are, so that they may be on their way before."""

    def start(self, name: str, part: torch.Tensor, rotary: Rotary) -> None:
        """Take q, k or v [N, H, D], as its linear left it, before `prepare` gets all three; here there is no need."""

    def prepare(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, norms: Pair, eps: float, rotary: Rotary
    ) -> Any:
        """Return what `attend` takes; by rows, but for what smooths the keys.

        Args:
            q, k, v: [N, H, D] BF16 as their linears left them, which may be overwritten.
            norms: weights [H * D] of q's and of k's RMS norm over the row.
            eps: of the norms.
            rotary: the angles by which pairs (2i, 2i + 1) turn.
        """
        raise NotImplementedError

    def measure_rows(
        self, q: torch.Tensor, k: torch.Tensor, norms: Pair, eps: float, rotary: Rotary
    ) -> torch.Tensor | None:
        """Do with some rows of q and k what needs all of their heads.

        Returns:
            fp32 [rows, 2], what the norms multiply the rows of q and k with; None where that is done, and the rotation.
        """
        raise NotImplementedError

    def prepare_heads(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        norms: Pair,
        factors: torch.Tensor | None,
        eps: float,
        rotary: Rotary,
    ) -> Any:
        """Return what `attend` takes, of some heads of all rows.

        Args:
            norms: of those heads.
            factors: of all rows, from `measure_rows`.
        """
        raise NotImplementedError

    def attend(self, prepared: Any) -> torch.Tensor:
        """Return the attention [N, H, D] of what was prepared, maybe in the memory of v; by heads."""
        raise NotImplementedError

    def of_heads(self, prepared: Any, heads: slice) -> Any:
        """Return what `attend` takes for some of the heads."""
        raise NotImplementedError

    def __call__(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, norms: Pair, eps: float, rotary: Rotary
    ) -> torch.Tensor:
        return self.attend(self.prepare(q, k, v, norms, eps, rotary))


def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attend with torch's own choice of kernel; runs everywhere, and the best for few keys."""
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def _sdpa_cudnn(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return sdpa(q, k, v)


def _sage_attn2(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    from sageattention import sageattn

    out: torch.Tensor = sageattn(q.contiguous(), k.contiguous(), v.contiguous(), tensor_layout="NHD")
    return out


def _sage_triton(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    import sageattention

    # SageAttention 1 has the Triton kernel only, under its short name.
    kernel = getattr(sageattention, "sageattn_qk_int8_pv_fp16_triton", sageattention.sageattn)
    out: torch.Tensor = kernel(q.contiguous(), k.contiguous(), v.contiguous(), tensor_layout="NHD")
    return out


def _flash_attn2(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    from flash_attn import flash_attn_func

    out: torch.Tensor = flash_attn_func(q, k, v)
    return out


def _flash_attn3(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    from flash_attn_interface import flash_attn_func

    out: torch.Tensor | tuple[torch.Tensor, ...] = flash_attn_func(q, k, v)
    # Early versions return the log-sum-exp too.
    return out[0] if isinstance(out, tuple) else out


def _triton(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return _attend_copies(_TritonInPlace(), q, k, v)


def _triton_int8(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return _attend_copies(_Int8InPlace(), q, k, v)


def _attend_copies(kernel: SelfAttention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attend by a kernel that normalizes, rotates and overwrites, to what is normalized and rotated already."""
    # With so large an epsilon a norm is a constant factor, which its weights undo. Nothing is rotated.
    eps, weights = 2.0**100, q.new_full((q.shape[2] * q.shape[3],), 2.0**50)
    angles = torch.zeros(q.shape[1], q.shape[3] // 2, device=q.device)
    rotary = Rotary(angles.cos(), angles.sin())
    q, k, v = (part.clone(memory_format=torch.contiguous_format) for part in (q, k, v))
    for parts in zip(q, k, v, strict=True):
        kernel(*parts, (weights, weights), eps, rotary)
    return v


@dataclass(frozen=True)
class Normed(SelfAttention):
    """Self-attention by a back end that takes q and k normalized and rotated."""

    ops: Ops
    kernel: Attention

    def prepare(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, norms: Pair, eps: float, rotary: Rotary
    ) -> Any:
        return self.prepare_heads(q, k, v, norms, self.measure_rows(q, k, norms, eps, rotary), eps, rotary)

    def measure_rows(
        self, q: torch.Tensor, k: torch.Tensor, norms: Pair, eps: float, rotary: Rotary
    ) -> torch.Tensor | None:
        for part, weight in zip((q, k), norms, strict=True):
            self.ops.rms_rotary(part.view(len(part), -1), weight, eps, part.shape[1], rotary)
        return None

    def prepare_heads(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        norms: Pair,
        factors: torch.Tensor | None,
        eps: float,
        rotary: Rotary,
    ) -> Any:
        return q, k, v

    def attend(self, prepared: Any) -> torch.Tensor:
        q, k, v = prepared
        return self.kernel(q[None], k[None], v[None])[0]

    def of_heads(self, prepared: Any, heads: slice) -> Any:
        return tuple(part[:, heads] for part in prepared)


@dataclass(frozen=True)
class InParts(SelfAttention):
    """Self-attention in several launches, the results of which are those of one; they lie in the memory of v."""

    inner: SelfAttention
    launches: Callable[[torch.Tensor], list[slice]]
    """Returns the heads of each launch for v [N, H, D]; see launches.py."""

    @property
    def leaves_rows(self) -> bool:  # type: ignore[override]
        return self.inner.leaves_rows

    def prepare(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, norms: Pair, eps: float, rotary: Rotary
    ) -> Any:
        return v, self.inner.prepare(q, k, v, norms, eps, rotary)

    def measure_rows(
        self, q: torch.Tensor, k: torch.Tensor, norms: Pair, eps: float, rotary: Rotary
    ) -> torch.Tensor | None:
        return self.inner.measure_rows(q, k, norms, eps, rotary)

    def prepare_heads(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        norms: Pair,
        factors: torch.Tensor | None,
        eps: float,
        rotary: Rotary,
    ) -> Any:
        return v, self.inner.prepare_heads(q, k, v, norms, factors, eps, rotary)

    def attend(self, prepared: Any) -> torch.Tensor:
        v: torch.Tensor
        v, inputs = prepared
        launches = self.launches(v)
        if len(launches) == 1:
            return self.inner.attend(inputs)
        for heads in launches:
            # Of v, a launch reads its own heads only.
            part, out = v[:, heads], self.inner.attend(self.inner.of_heads(inputs, heads))
            if out.data_ptr() != part.data_ptr():
                part.copy_(out)
        return v

    def of_heads(self, prepared: Any, heads: slice) -> Any:
        v, inputs = prepared
        return v[:, heads], self.inner.of_heads(inputs, heads)


class _InPlace(SelfAttention):
    """A back end whose inputs the pack's Triton kernels prepare in the memory of q, k and v."""

    leaves_rows = True

    def of_heads(self, prepared: Any, heads: slice) -> Any:
        inputs, v = prepared
        return inputs.of_heads(heads), v[:, heads]

    @property
    def _kernel(self) -> Any:
        raise NotImplementedError

    def prepare(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, norms: Pair, eps: float, rotary: Rotary
    ) -> Any:
        return self.prepare_heads(q, k, v, norms, None, eps, rotary)

    def measure_rows(
        self, q: torch.Tensor, k: torch.Tensor, norms: Pair, eps: float, rotary: Rotary
    ) -> torch.Tensor | None:
        from .attention_inputs import norm_factors

        return norm_factors(q, k, eps)

    def prepare_heads(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        norms: Pair,
        factors: torch.Tensor | None,
        eps: float,
        rotary: Rotary,
    ) -> Any:
        from .attention_inputs import prepare

        return prepare(q, k, v, norms, eps, rotary, key_groups=self._kernel.KEY_GROUPS, factors=factors), v

    def attend(self, prepared: Any) -> torch.Tensor:
        inputs, v = prepared
        self._kernel.attend(inputs, out=v)
        result: torch.Tensor = v
        return result


class _SageInPlace(_InPlace):
    @property
    def _kernel(self) -> Any:
        from . import sage_sm90

        return sage_sm90


class _TritonInPlace(_InPlace):
    @property
    def _kernel(self) -> Any:
        from . import attention_triton

        return attention_triton


class _Int8InPlace(_InPlace):
    """All in INT8, of which the preparation is another one."""

    @property
    def _kernel(self) -> Any:
        from . import attention_int8_triton

        return attention_int8_triton

    def prepare_heads(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        norms: Pair,
        factors: torch.Tensor | None,
        eps: float,
        rotary: Rotary,
    ) -> Any:
        from .attention_int8_inputs import prepare

        return prepare(q, k, v, norms, eps, rotary, factors=factors), v


KERNELS: dict[str, Attention] = {
    "sdpa": sdpa,
    "sdpa_cudnn": _sdpa_cudnn,
    "sage_attn2": _sage_attn2,
    "sage_triton": _sage_triton,
    "flash_attn2": _flash_attn2,
    "flash_attn3": _flash_attn3,
    "triton": _triton,
    "triton_int8": _triton_int8,
}
IN_PLACE: dict[str, SelfAttention] = {
    "sage_attn2": _SageInPlace(),
    "triton": _TritonInPlace(),
    "triton_int8": _Int8InPlace(),
}


def fits_in_place(q: torch.Tensor) -> bool:
    """Tell whether q [N, H, D] has the form that functions in place take: their kernels' offsets are 32-bit."""
    return q.shape[2] == 128 and 2 * q.shape[0] * q.stride(0) < 2**31
