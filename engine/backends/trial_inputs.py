"""What trial runs compute: small fixed problems, each with the back end of a name; trials.py compares results."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..kernels import attention, implementations, matmul, ops_torch
from ..kernels.joined import balance_of, join
from ..kernels.ops import Ops, Rotary
from ..kernels.quantize import LARGEST, quantize

_ROWS, _HEADS, _HEAD_DIM, _EPS = 48, 3, 128, 1e-6
# No multiple of what any kernel takes at a time.
_MORE_KEYS = 257
_DTYPES = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}


def run_ops(name: str, device: torch.device) -> torch.Tensor:
    """Return what every operation of the blocks makes of small random input, each result with a norm of one."""
    results = [result.float().flatten() for result in _run_all(implementations.load_ops(name), device)]
    return torch.cat([result / result.norm() for result in results])


def run_vae_ops(name: str, device: torch.device) -> torch.Tensor:
    """Return what both operations of the VAE make of small random input."""
    implementation, generator = implementations.load_vae_ops(name), torch.Generator().manual_seed(0)
    x, shortcut, out = (torch.randn(5, 7, 96, generator=generator).to(device, torch.bfloat16) for _ in range(3))
    bias, gamma = (torch.randn(96, generator=generator).to(device, torch.bfloat16) for _ in range(2))
    implementation.norm_silu(x, bias, gamma, out)
    implementation.add(x, bias, shortcut)
    return torch.stack([out, x])


def attend(name: str, device: torch.device) -> torch.Tensor:
    """Return the attention of random q, k and v [1, N, H, D]."""
    return attention.KERNELS[name](*(part[None] for part in _random_parts(device)))


def attend_in_place(name: str, device: torch.device) -> torch.Tensor:
    """Return the self-attention, norms and rotation included, by a back end in place; by plain torch without a name."""
    kernel = attention.IN_PLACE[name] if name else attention.Normed(ops_torch, attention.sdpa)
    q, k, v = _random_parts(device)
    generator = torch.Generator().manual_seed(1)
    norms = (1 + torch.randn(2, q[0].numel(), generator=generator) / 4).to(device, torch.bfloat16)
    angles = torch.randn(len(q), q.shape[2] // 2, generator=generator).to(device)
    return kernel(q, k + 1, v, (norms[0], norms[1]), _EPS, Rotary(angles.cos(), angles.sin()))


def multiply(precision: str, name: str, device: torch.device) -> torch.Tensor:
    """Return a product with random weights in 8 bits, requantized where the back end multiplies others."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(48, 64, generator=generator).to(device, torch.bfloat16)
    weight = (torch.randn(32, 64, generator=generator) * 20).round().to(device).to(_DTYPES[precision])
    scale = torch.rand(32, 1, generator=generator).to(device) + 0.5
    if precision == "fp8" and matmul.ACTIVATION_DTYPES.get(name) == torch.int8:
        weight = implementations.load_requantize("triton" if name == "int_triton" else "torch")(weight, scale)
    return matmul.MATMULS[name](x, weight, scale, torch.zeros(32, device=device, dtype=torch.bfloat16))


def multiply_joined(name: str, device: torch.device) -> torch.Tensor:
    """Return a product with random weights in FP8 and a LoRA as large, in one; by plain torch without a name."""
    generator = torch.Generator().manual_seed(0)
    x, weight, down = (torch.randn(rows, 128, generator=generator).to(device) for rows in (_ROWS, _ROWS, 16))
    up = torch.randn(_ROWS, 16, generator=generator).to(device, torch.bfloat16)
    if not name:
        return x @ (weight + up.float() @ down).T
    (rows, scales), (stored, weight_scale), (down_stored, down_scale) = map(_in_fp8, (x, weight, down))
    bias = torch.zeros(_ROWS, device=device, dtype=torch.bfloat16)
    hidden, out = (x.new_empty(_ROWS, size, dtype=torch.bfloat16) for size in (16, _ROWS))
    matmul.linear(rows, scales, matmul.Linear(down_stored, down_scale, bias[:16]), hidden, backend=name)
    layer, ops = matmul.Linear(stored, weight_scale, bias), implementations.load_ops("triton")
    joined = join(ops, hidden, up, balance_of(up, weight_scale, down, 128), rows, scales, layer)
    matmul.linear(*joined, out, backend=name)
    return out


def _in_fp8(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows in FP8, with room for 128 columns before each, and their scales."""
    rows = torch.zeros(len(values), 128 + values.shape[1], device=values.device, dtype=torch.float8_e4m3fn)[:, 128:]
    scales = values.new_empty(len(values), 1)
    quantize(values, rows, scales)
    return rows, scales


def _random_parts(device: torch.device) -> list[torch.Tensor]:
    """Return q, k and v [N, H, D] of several heads; N is not a multiple of any kernel's block."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(300, 3, 128, generator=generator).to(device, torch.bfloat16) for _ in range(3)]


def _run_all(ops: Ops, device: torch.device) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    width = _HEADS * _HEAD_DIM
    x, y = random(_ROWS, width), random(_ROWS, width)
    gate, mul, add = random(3, width, dtype=torch.float32)
    angles = random(_ROWS, _HEAD_DIM // 2, dtype=torch.float32)
    for dtype in _quantized_dtypes(device):
        out, scale = torch.empty_like(x, dtype=dtype), gate.new_empty(_ROWS, 1)
        ops.quantize(x, out, scale)
        yield out.float() * scale
        ops.residual_norm(x, y, gate, mul, add, _EPS, out, scale)
        yield out.float() * scale
        ops.gelu(y, out, scale)
        yield out.float() * scale
    ops.norm(x, mul, add, _EPS, y, None)
    ops.residual(x, y, gate)
    ops.rms_rotary(y, mul, _EPS, _HEADS, Rotary(angles.cos(), angles.sin()))
    yield from (x, y)
    factors = gate.new_empty(_ROWS)
    x.mul_(random(_ROWS, 1))
    ops.row_factors(x, _EPS, factors)
    q, k, v = (part.view(_ROWS, _HEADS, _HEAD_DIM) for part in (x, y, random(_ROWS, width)))
    attended = torch.empty_like(q)
    ops.cross_attention(q, factors, k, v, 464, attended)
    added = attended.clone()
    more, values = (random(_MORE_KEYS, width).view(_MORE_KEYS, _HEADS, _HEAD_DIM) for _ in range(2))
    ops.add_cross_attention(q, factors, more, values, added)
    # NaN: columns after the keys are to be written too.
    weights = attended.new_full((_ROWS, _HEADS, _ROWS + 8), torch.nan)
    ops.cross_weights(q, factors, k, 464, weights)
    # Columns of a wider tensor, as LoRAs of layers with one input have them.
    product = random(_ROWS, width)
    ops.add_product(random(_ROWS, 80)[:, 16:64], random(width, 48), product)
    yield from (factors, attended, added, weights, product)
    if torch.float8_e4m3fn in _quantized_dtypes(device):
        (rows, scales), (stored, weight_scale) = _in_fp8(x.float()), _in_fp8(y.float())
        layer = matmul.Linear(stored, weight_scale, weight_scale.flatten())
        hidden, up = random(_ROWS, 16), random(_ROWS, 16)
        balance = balance_of(up, weight_scale, random(16, width), width)
        joined, _, layer = join(ops, hidden, up, balance, rows, scales, layer)
        yield from (joined, layer.weight)


def _quantized_dtypes(device: torch.device) -> list[torch.dtype]:
    """Return the 8-bit types that the card multiplies."""
    has_fp8 = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)
    return [dtype for dtype in LARGEST if has_fp8 or dtype != torch.float8_e4m3fn]
