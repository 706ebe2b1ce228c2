"""The VAE decoder's Triton kernels against plain torch.

On a GPU, or with TRITON_INTERPRET=1 on a CPU. Triton's interpreter cuts BF16 off instead of rounding it, so there it is
fp32.
"""

import pytest
import torch
from lightx2v_pack.engine.backends.trials import confirm_vae_ops
from lightx2v_pack.engine.kernels.vae_ops import TorchOps
from support.tensors import normal
from support.triton_device import IS_INTERPRETED, triton_device

pytestmark = pytest.mark.gpu
DEVICE = triton_device()

from lightx2v_pack.engine.kernels.vae_triton import TritonOps  # noqa: E402

DTYPES = [torch.float32] if IS_INTERPRETED else [torch.bfloat16, torch.float16]
# Wan2.1's widths and LightVAE's; numbers of pixels that are a multiple of nothing.
SHAPES = [(3, 5, 96), (7, 11, 384), (1, 1, 24), (5, 7, 192)]


@pytest.fixture(params=DTYPES, ids=str)
def draw(request):
    def draw(*shape, seed=0):
        return normal(*shape, seed=seed).to(DEVICE, request.param)

    return draw


def check(found, expected):
    """Plain torch rounds to 16 bits between its steps, Triton once."""
    rounding = 1e-6 if IS_INTERPRETED else 0.02
    torch.testing.assert_close(found, expected, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_norm_silu_writes_into_a_ring(shape, has_bias, draw):
    height, width, channels = shape
    x, gamma = draw(*shape), draw(channels, seed=1)
    bias = draw(channels, seed=2) if has_bias else None
    x[0, 0] = 0
    rings = [draw(height, width, 3, channels, seed=3) for _ in range(2)]
    for ring, ops in zip(rings, (TritonOps(), TorchOps()), strict=True):
        ops.norm_silu(x, bias, gamma, ring[:, :, 1])
    check(*rings)
    assert torch.equal(rings[0][:, :, [0, 2]], draw(height, width, 3, channels, seed=3)[:, :, [0, 2]])
    assert has_bias or not rings[0][0, 0, 1].any()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_add(shape, draw):
    bias, shortcut = draw(shape[-1], seed=1), draw(*shape, seed=2)
    sums = [draw(*shape), draw(*shape)]
    for x, ops in zip(sums, (TritonOps(), TorchOps()), strict=True):
        ops.add(x, bias, shortcut)
    check(*sums)


@pytest.mark.skipif(IS_INTERPRETED or torch.version.hip is not None, reason="needs a CUDA device")
def test_triton_is_chosen_where_it_works():
    expected = TritonOps if torch.cuda.get_device_capability() >= (8, 0) else TorchOps
    assert isinstance(confirm_vae_ops(torch.device("cuda")), expected)
