"""FP8: the two matrix multiplications beside torch's own with a scale per row, and the rounding to FP8.

On a GPU, or with TRITON_INTERPRET=1 on a CPU. Triton's interpreter cuts BF16 off instead of rounding it, so there the
result is fp32; and its rounding to FP8 is its own.
"""

import pytest
import torch
from support import tensors
from support.tensors import relative_error
from support.triton_device import IS_INTERPRETED, triton_device

pytestmark = pytest.mark.gpu
DEVICE = triton_device()
if not IS_INTERPRETED and torch.cuda.get_device_capability() < (8, 9):
    pytest.skip("FP8 needs compute capability 8.9", allow_module_level=True)

from lightx2v_pack.engine.kernels import (  # noqa: E402
    attention_inputs,
    fp8_tensor,
    fp8_triton,
    ops_triton,
    quantize,
)
from lightx2v_pack.engine.kernels.int8_triton import Config  # noqa: E402

FLOAT = torch.float32 if IS_INTERPRETED else torch.bfloat16
FP8 = torch.float8_e4m3fn
# Rows, N, K: one row, a multiple of nothing, inner dimensions that fill no tile.
SIZES = [(1, 32, 64), (37, 48, 96), (130, 144, 128)] + (
    [] if IS_INTERPRETED else [(1001, 5120, 5120), (300, 512, 13824)]
)
SIZE = pytest.mark.parametrize("size", SIZES, ids=str)
# Of the sum in FP32 or, as FP8 tensor cores do it, in fewer bits; and of one rounding to BF16.
CLOSE = 1e-6 if IS_INTERPRETED else 5e-3


def normal(*shape, seed=0, dtype=torch.float32):
    return tensors.normal(*shape, seed=seed).to(DEVICE, dtype)


def in_fp8(x):
    codes, scale = torch.empty_like(x, dtype=FP8), x.new_empty(len(x), 1)
    quantize.quantize(x, codes, scale)
    return codes, scale


def problem(rows, columns, inner):
    """Return codes, scales and bias, and their exact product; one column of x is far larger than the others."""
    x = normal(rows, inner)
    x[:, 7] *= 30
    (x, row_scale), (weight, column_scale) = in_fp8(x), in_fp8(normal(columns, inner, seed=1) / 50)
    bias = normal(columns, seed=2, dtype=FLOAT)
    exact = x.double() @ weight.double().T * row_scale.double() * column_scale.double().T + bias.double()
    return (x, row_scale, weight, column_scale, bias), exact


@SIZE
def test_triton_multiplies_scales_and_adds_the_bias(size):
    inputs, exact = problem(*size)
    region = torch.full((size[0] + 2, size[1] + 16), 7.0, dtype=FLOAT, device=DEVICE)
    out = region[1:-1, : size[1]]
    fp8_triton.fp8_matmul(*inputs, out, Config(64, 64, 64, 4, 2) if IS_INTERPRETED else None)
    assert relative_error(out, exact) < CLOSE
    assert (region[0] == 7).all() and (region[-1] == 7).all() and (region[:, size[1] :] == 7).all()


@SIZE
@pytest.mark.parametrize("scale", [fp8_tensor.apply_scales, fp8_triton.apply_scales], ids=["torch", "triton"])
def test_per_tensor_multiplies_scales_and_adds_the_bias(size, scale):
    if IS_INTERPRETED and scale is fp8_triton.apply_scales:
        pytest.skip("the interpreter cuts BF16 off")
    inputs, exact = problem(*size)
    inputs = (*inputs[:4], inputs[4].bfloat16())
    out = torch.empty(exact.shape, dtype=torch.bfloat16, device=DEVICE)
    fp8_tensor.tensor_matmul(*inputs, out, scale)
    assert relative_error(out, exact) < 5e-3


def test_triton_applies_scales_as_torch_does():
    out, bias = normal(77, 528, dtype=FLOAT), normal(528, seed=3, dtype=FLOAT)
    row_scale, column_scale = normal(77, 1, seed=1), normal(528, seed=2)
    wanted = out.double() * row_scale.double() * column_scale.double() + bias.double()
    for scale in (fp8_tensor.apply_scales, fp8_triton.apply_scales):
        found = out.clone()
        scale(found, row_scale, column_scale, bias)
        assert relative_error(found, wanted) < (1e-6 if IS_INTERPRETED else 4e-3)


def between_codes():
    """Return fp32 next to every midpoint of two E4M3 codes, on it, and on what FP16 rounds to it."""
    codes = torch.arange(127, dtype=torch.uint8).view(FP8).float()
    middle = (codes[1:] + codes[:-1]) / 2
    near = [middle * (1 + sign * 2.0**-power) for power in (11, 12, 13, 20, 23) for sign in (-1, 1)]
    values = torch.cat([middle, codes, *near, torch.rand(4096) * 448, torch.rand(4096) / 64]).clamp(max=448)
    return torch.cat([values, -values]).to(DEVICE)


@pytest.mark.skipif(IS_INTERPRETED, reason="the interpreter's FP8 is its own")
def test_operations_round_to_fp8_as_torch_does():
    values = between_codes()
    rows = torch.nn.functional.pad(values, (0, -len(values) % 127)).view(-1, 127)
    # The largest of each row is 448, so that nothing is scaled.
    rows = torch.nn.functional.pad(rows, (0, 1), value=448.0).contiguous()
    out, scale = torch.empty_like(rows, dtype=FP8), rows.new_empty(len(rows), 1)
    ops_triton.quantize(rows, out, scale)
    assert (scale == 1).all()
    assert torch.equal(out.view(torch.int8), rows.to(FP8).view(torch.int8))


@pytest.mark.skipif(IS_INTERPRETED, reason="the interpreter's FP8 is its own")
def test_values_of_an_attention_round_to_fp8_as_torch_does():
    v = normal(300, 2, 128, dtype=torch.bfloat16)
    peaks = v.float().abs().amax(0).flatten()
    places = [t // 16 * 16 + t % 16 // 8 * 2 + t % 8 // 2 * 4 + t % 2 for t in range(len(v))]
    found = attention_inputs.transpose_values(v, peaks, FP8)[..., places]
    wanted = (v.float() * (448 / peaks).view(v.shape[1:])).to(FP8).permute(1, 2, 0)
    # 448 / peaks is one of two neighbours in FP32: a value on the edge of two codes may fall to either side.
    assert (found.float() != wanted.float()).double().mean() < 1e-4
