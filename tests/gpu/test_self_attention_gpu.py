"""SageAttention behind our own preparation: its pieces against plain torch, the whole against fp32 and SageAttention.

The pieces run on a GPU, or with TRITON_INTERPRET=1 on a CPU.
"""

import os

import pytest
import torch

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = pytest.mark.gpu
if not IS_INTERPRETED and not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)
pytest.importorskip("triton", reason="Triton is not installed")

from lightx2v_pack.engine.adapters.kernels import sage_fused  # noqa: E402
from lightx2v_pack.engine.adapters.kernels.attention import select_attention  # noqa: E402

DEVICE = torch.device("cpu" if IS_INTERPRETED else "cuda")
IS_HOPPER = not IS_INTERPRETED and torch.cuda.get_device_capability() == (9, 0)
HEADS, HEAD_DIM = 2, 128
TOKENS = pytest.mark.parametrize("tokens", [1, 77, 128, 300])


def normal(*shape, seed=0):
    """Values whose size differs from token to token, as real ones' does."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.rand(shape[0], *[1] * (len(shape) - 1), generator=generator) * 3
    return (torch.randn(shape, generator=generator) * sizes).to(DEVICE, torch.bfloat16)


def quantised_in_groups(x, group_of, groups, block):
    """Return codes and scales of x [tokens, H, D], where token t of a block shares its scale with group_of(t)."""
    blocks = -(-len(x) // block)
    index = torch.tensor([t // block * groups + group_of(t % block) for t in range(len(x))], device=x.device)
    largest = torch.zeros(x.shape[1], blocks * groups, device=x.device)
    largest.scatter_reduce_(1, index.expand(x.shape[1], -1), x.abs().amax(2).T, "amax")
    scales = largest.clamp(min=1e-12) / 127
    return x / scales[:, index].T[..., None], scales


def check_codes(x, scales, exact, exact_scales):
    codes = sage_fused._codes(x).float()
    torch.testing.assert_close(scales, exact_scales, rtol=1e-6, atol=0)
    assert ((codes - exact).abs() <= 0.5001).all()


@TOKENS
def test_queries_share_scales_as_sage_reads_them(tokens):
    q = normal(tokens, HEADS, HEAD_DIM)
    exact, exact_scales = quantised_in_groups(q.float(), lambda t: t // 16 * 8 + t % 8, groups=32, block=64)
    check_codes(q, sage_fused.quantise_queries(q), exact, exact_scales)


@TOKENS
def test_keys_are_smoothed_and_share_scales_as_sage_reads_them(tokens):
    k = normal(tokens, HEADS, HEAD_DIM) + 3
    mean = k.float().mean(0)
    exact, exact_scales = quantised_in_groups(k.float() - mean, lambda t: t % 8 // 2, groups=4, block=128)
    check_codes(k, sage_fused.quantise_keys(k, mean.flatten()), exact, exact_scales)


@TOKENS
def test_column_statistics(tokens):
    k, v = normal(2, tokens, HEADS * HEAD_DIM).unbind()
    mean, peaks = sage_fused.column_statistics(k, v)
    torch.testing.assert_close(mean, k.float().mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(peaks, v.float().abs().amax(0), rtol=0, atol=0)


@TOKENS
def test_values_are_transposed_in_the_order_of_their_use(tokens):
    v = normal(tokens, HEADS, HEAD_DIM)
    peaks = v.float().abs().amax(0).flatten()
    found = sage_fused.transpose_values(v, peaks, torch.float32)
    places = [t // 16 * 16 + t % 16 // 8 * 2 + t % 8 // 2 * 4 + t % 2 for t in range(tokens)]
    expected = torch.zeros_like(found)
    expected[..., places] = (v.float() * 448 / peaks.view(HEADS, HEAD_DIM)).permute(1, 2, 0)
    assert found.shape[2] == -(-tokens // 128) * 128
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@pytest.mark.skipif(not IS_HOPPER, reason="this way of SageAttention is for compute capability 9.0")
@pytest.mark.parametrize("tokens", [300, 1024, 5000])
def test_as_accurate_as_sage_itself(tokens):
    sageattention = pytest.importorskip("sageattention", reason="SageAttention is not installed")
    q, k, v = (normal(tokens, 4, HEAD_DIM, seed=seed)[None] for seed in range(3))
    k += normal(1, 4, HEAD_DIM, seed=9) * 3
    reference = torch.nn.functional.scaled_dot_product_attention(*(part.float().transpose(1, 2) for part in (q, k, v)))
    reference = reference.transpose(1, 2)

    def error(out):
        return float((out.float() - reference).norm() / reference.norm())

    theirs = error(sageattention.sageattn(q, k, v, tensor_layout="NHD"))
    name, attention = select_attention("sage_attn2", DEVICE, is_fused=True)
    ours = error(attention(q, k, v))
    assert name == "sage_attn2"
    assert ours < 1.05 * theirs + 0.001


@pytest.mark.skipif(not IS_HOPPER, reason="this way of SageAttention is for compute capability 9.0")
def test_it_needs_an_eighth_of_the_memory():
    pytest.importorskip("sageattention", reason="SageAttention is not installed")
    _, attention = select_attention("sage_attn2", DEVICE, is_fused=True)
    q, k, v = torch.randn(3, 1, 20_000, 8, HEAD_DIM, device=DEVICE, dtype=torch.bfloat16)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = attention(q, k, v)
    assert out.data_ptr() == v.data_ptr()
    assert torch.cuda.max_memory_allocated() - before < 1.2 * v.numel()
