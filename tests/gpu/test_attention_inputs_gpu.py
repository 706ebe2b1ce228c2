"""The preparation of attention inputs against plain torch.

On a GPU, or with TRITON_INTERPRET=1 on a CPU: but for the rounding to FP8, an instruction that the interpreter does not
have.
"""

import pytest
import torch
from support import tensors
from support.triton_device import IS_INTERPRETED, triton_device

pytestmark = pytest.mark.gpu
DEVICE = triton_device(has_loops=True)
if not IS_INTERPRETED and torch.cuda.get_device_capability() < (8, 9):
    pytest.skip("FP8 needs compute capability 8.9", allow_module_level=True)

from lightx2v_pack.engine.kernels import attention_inputs, ops_torch  # noqa: E402
from lightx2v_pack.engine.kernels.attention_inputs import (  # noqa: E402
    KEY_BLOCK,
    QUERY_BLOCK,
    QUERY_SCALES,
    SAMPLE_ROWS,
    SAMPLE_STRIDE,
)
from lightx2v_pack.engine.kernels.ops import Rotary  # noqa: E402

if IS_INTERPRETED:
    import triton
    import triton.language as tl

    @triton.jit
    def cut_to_fp8(values):
        """Stand for fp8_rounding.to_fp8; it does not round as that does."""
        return values.to(tl.float8e4nv)

    attention_inputs.to_fp8 = cut_to_fp8

DTYPES = [torch.float32, *([] if IS_INTERPRETED else [torch.float8_e4m3fn])]
EPS = 1e-6
# Tokens and heads: one of each, whole blocks, a multiple of nothing, the real width.
SIZES = [(1, 1), (77, 2), (128, 3), (300, 2), (5, 40)] + ([] if IS_INTERPRETED else [(1001, 12), (5000, 40)])
SIZE = pytest.mark.parametrize("size", SIZES, ids=str)
# For each number of scales a block of keys: which of them a token has.
KEY_GROUPS = {4: lambda t: t % 8 // 2, 1: lambda t: 0 * t}


def normal(*shape, seed=0):
    return tensors.uneven(*shape, seed=seed, has_mean=True).bfloat16()


def rotary_of(tokens):
    angles = torch.randn(tokens, 64, generator=torch.Generator().manual_seed(9)) * 3
    return Rotary(angles.cos().to(DEVICE), angles.sin().to(DEVICE))


def problem(tokens, heads):
    """Return q, k, v, the weights of both norms, the rotary, and q and k as they are to be quantized, in fp32."""
    q, k, v = (normal(tokens, heads, 128, seed=seed).to(DEVICE) for seed in range(3))
    norms = tuple(normal(1, heads * 128, seed=seed)[0].to(DEVICE) for seed in (3, 4))
    rotary = rotary_of(tokens)
    exact = []
    for part, weight in zip((q, k), norms, strict=True):
        rows = part.float().flatten(1)
        ops_torch.rms_rotary(rows, weight.float(), EPS, heads, rotary)
        exact.append(rows.view(part.shape))
    return q, k, v, norms, rotary, exact


def check_codes(codes, scales, exact, group_of, groups, block):
    """Token t of a block shares its scale with group_of(t)."""
    tokens = torch.arange(len(exact), device=DEVICE)
    index = (tokens // block * groups + group_of(tokens % block)).expand(exact.shape[1], -1)
    largest = torch.zeros(exact.shape[1], -(-len(exact) // block) * groups, device=DEVICE)
    largest.scatter_reduce_(1, index, exact.abs().amax(2).T.contiguous(), "amax")
    wanted = largest.clamp(min=1e-12) / 127
    # fp32 maths in another order: what is left of one token without its mean is not quite zero.
    torch.testing.assert_close(scales, wanted, rtol=1e-5, atol=3e-7)
    step = scales.gather(1, index).T[..., None]
    assert codes.dtype == torch.int8
    assert ((codes * step - exact).abs() <= 0.501 * step + 3e-5).all()


@SIZE
@pytest.mark.parametrize("key_groups", KEY_GROUPS)
def test_queries_and_keys_are_normalized_rotated_and_quantized_in_their_own_memory(size, key_groups):
    q, k, v, norms, rotary, (exact_q, exact_k) = problem(*size)
    found = attention_inputs.prepare(q, k, v, norms, EPS, rotary, key_groups=key_groups)
    check_codes(found.q, found.query_scales, exact_q, lambda t: t // 16 * 8 + t % 8, QUERY_SCALES, QUERY_BLOCK)
    sample = torch.arange(len(k), device=DEVICE) % SAMPLE_STRIDE < SAMPLE_ROWS
    smooth = exact_k - exact_k[sample].mean(0)
    check_codes(found.k, found.key_scales, smooth, KEY_GROUPS[key_groups], key_groups, KEY_BLOCK)
    for codes, part in ((found.q, q), (found.k, k)):
        assert codes.data_ptr() == part.data_ptr() and codes.stride() == (2 * part.stride(0), 256, 1)


@SIZE
def test_statistics_of_keys_and_values(size):
    _, k, v, norms, rotary, (_, exact) = problem(*size)
    factors = torch.empty(len(k), device=DEVICE)
    attention_inputs.find_factors(k.flatten(1), EPS, factors)
    torch.testing.assert_close(factors, torch.rsqrt(k.float().flatten(1).square().mean(1) + EPS), rtol=1e-5, atol=0)
    sample = attention_inputs.sum_sample(k, norms[1], factors, rotary)
    mean, peaks = attention_inputs.column_statistics(*sample, attention_inputs.find_peaks(v))
    summed = torch.arange(len(k), device=DEVICE) % SAMPLE_STRIDE < SAMPLE_ROWS
    torch.testing.assert_close(mean, exact[summed].mean(0).flatten(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(peaks, v.float().abs().amax(0).flatten(), rtol=0, atol=0)


def test_a_column_of_zeros_stays_zero():
    q, k, v, norms, rotary, _ = problem(20, 2)
    for part in (q, k, v):
        part[:, 1] = 0
    found = attention_inputs.prepare(q, k, v, norms, EPS, rotary, key_groups=1)
    assert not any(part[:, 1].any() for part in (found.q, found.k)) and not found.values[1].float().any()


@SIZE
def test_values_are_transposed_in_the_order_of_their_use(size):
    v = normal(*size, 128).to(DEVICE)
    peaks = v.float().abs().amax(0).flatten()
    places = [t // 16 * 16 + t % 16 // 8 * 2 + t % 8 // 2 * 4 + t % 2 for t in range(len(v))]
    for dtype in DTYPES:
        found = attention_inputs.transpose_values(v, peaks, dtype)
        assert found.shape == (size[1], 128, -(-size[0] // KEY_BLOCK) * KEY_BLOCK)
        expected = torch.zeros(found.shape, device=DEVICE)
        expected[..., places] = (v.float() * 448 / peaks.view(size[1], 128)).permute(1, 2, 0)
        rtol, atol = (1e-6, 0) if dtype == torch.float32 else (2.0**-4 * 1.001, 2.0**-10 * 1.001)
        torch.testing.assert_close(found.float(), expected, rtol=rtol, atol=atol)


def test_rows_may_lie_apart():
    """Parts of a larger region, what lies between which is left alone."""
    q, k, v, norms, rotary, _ = problem(77, 2)
    whole = attention_inputs.prepare(q.clone(), k.clone(), v, norms, EPS, rotary, key_groups=4)
    region = torch.full((3, 77, 768), 3.0, device=DEVICE, dtype=torch.bfloat16)
    parts = [memory[:, 256:512].unflatten(1, (2, 128)) for memory in region]
    for part, values in zip(parts, (q, k, v), strict=True):
        part.copy_(values)
    found = attention_inputs.prepare(*parts, norms, EPS, rotary, key_groups=4)
    for name in ("q", "k", "query_scales", "key_scales", "value_peaks"):
        assert torch.equal(getattr(found, name), getattr(whole, name))
    assert torch.equal(found.values.float(), whole.values.float())
    assert (region[..., :256] == 3).all() and (region[..., 512:] == 3).all()


@pytest.mark.parametrize("key_groups", KEY_GROUPS)
def test_some_heads_with_the_factors_of_whole_rows_are_as_they_are_among_all(key_groups):
    """As the GPUs have them that share a clip: rows are measured where they are, heads prepared elsewhere."""
    q, k, v, norms, rotary, _ = problem(300, 3)
    rows = [slice(0, 128), slice(128, 300)]
    factors = torch.cat([attention_inputs.norm_factors(q[run], k[run], EPS) for run in rows])
    whole = attention_inputs.prepare(q.clone(), k.clone(), v, norms, EPS, rotary, key_groups=key_groups)
    for heads in (slice(0, 2), slice(2, 3)):
        columns = slice(heads.start * 128, heads.stop * 128)
        own = [part[:, heads].contiguous() for part in (q, k, v)]
        own_norms = tuple(weight[columns] for weight in norms)
        found = attention_inputs.prepare(*own, own_norms, EPS, rotary, key_groups=key_groups, factors=factors)
        expected = whole.of_heads(heads)
        for name in ("q", "k", "query_scales", "key_scales", "value_peaks"):
            assert torch.equal(getattr(found, name), getattr(expected, name)), name
        assert torch.equal(found.values.float(), expected.values.float())


@pytest.mark.skipif(IS_INTERPRETED, reason="the interpreter does not compile")
def test_a_new_number_of_rows_compiles_nothing():
    kernels = [kernel for name, kernel in vars(attention_inputs).items() if name.endswith("_kernel")]

    def run(tokens):
        # A number of heads that no other test has: nothing is compiled for it yet.
        q, k, v, norms, rotary, _ = problem(tokens, 7)
        factors = attention_inputs.norm_factors(q, k, EPS)
        attention_inputs.prepare(q.clone(), k.clone(), v, norms, EPS, rotary, key_groups=1, factors=factors)
        attention_inputs.prepare(q, k, v, norms, EPS, rotary, key_groups=1)
        return [len(kernel.device_caches[torch.cuda.current_device()][0]) for kernel in kernels]

    if not hasattr(kernels[0], "device_caches"):
        pytest.skip("this Triton keeps its compiled kernels elsewhere")
    before = run(160)
    assert all(run(tokens) == before for tokens in (1, 16, 17, 1024, 32_760))
