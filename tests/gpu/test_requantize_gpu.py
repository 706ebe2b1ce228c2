"""FP8 weights to INT8 in place: Triton's bit for bit torch's, and what it costs beside FP8's own rounding.

On a GPU, or with TRITON_INTERPRET=1 on a CPU.
"""

import pytest
import torch
from support.triton_device import triton_device

pytestmark = pytest.mark.gpu
DEVICE = triton_device()

from lightx2v_pack.engine.kernels import requantize_triton  # noqa: E402
from lightx2v_pack.engine.kernels.requantize import requantize  # noqa: E402

FP8 = torch.float8_e4m3fn


def weights(rows, inner):
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(rows, inner, generator=generator) * 10.0 ** torch.randn(rows, 1, generator=generator)
    return wide.clamp(-448, 448).to(FP8).to(DEVICE), torch.rand(rows, 1, generator=generator).to(DEVICE)


@pytest.mark.parametrize("size", [(3, 16), (5, 4096), (2, 5120), (3, 13824)], ids=str)
def test_triton_is_torch_bit_for_bit(size):
    weight, scale = weights(*size)
    wanted_scale = scale.clone()
    wanted = requantize(weight.clone(), wanted_scale)
    found = requantize_triton.requantize(weight, scale)
    assert found.data_ptr() == weight.data_ptr() and found.dtype == torch.int8
    assert torch.equal(found, wanted) and torch.equal(scale, wanted_scale)


def test_every_code():
    codes = torch.arange(256).to(torch.uint8)
    finite = codes[(codes & 0x7F) != 0x7F].to(DEVICE).view(FP8)
    weight = torch.stack([finite, torch.zeros_like(finite.float()).to(FP8)])
    scale = torch.ones(2, 1, device=DEVICE)
    found = requantize_triton.requantize(weight.clone(), scale)
    assert torch.equal(found[0].cpu().float(), (finite.cpu().float() * (torch.tensor(127.0) / 448)).round())
    assert not found[1].any()
    torch.testing.assert_close(scale[0, 0].cpu(), torch.tensor(448 / 127))
