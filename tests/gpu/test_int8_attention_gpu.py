"""The attention in INT8 alone and its preparation, against plain torch.

On a GPU, or with TRITON_INTERPRET=1 on a CPU. Triton's interpreter cuts BF16 off instead of rounding it, so there the
result is fp32.
"""

import math

import pytest
import torch
from support import tensors
from support.tensors import relative_error
from support.triton_device import IS_INTERPRETED, triton_device

pytestmark = pytest.mark.gpu
DEVICE = triton_device(has_loops=True)
if not IS_INTERPRETED and torch.cuda.get_device_capability() < (8, 0):
    pytest.skip("INT8 attention needs compute capability 8.0", allow_module_level=True)

from lightx2v_pack.engine.kernels import (  # noqa: E402
    attention_int8_inputs,
    attention_int8_triton,
    ops_torch,
)
from lightx2v_pack.engine.kernels.attention import IN_PLACE  # noqa: E402
from lightx2v_pack.engine.kernels.attention_inputs import SAMPLE_ROWS, SAMPLE_STRIDE  # noqa: E402
from lightx2v_pack.engine.kernels.attention_int8_inputs import KEYS_A_SCALE  # noqa: E402
from lightx2v_pack.engine.kernels.ops import Rotary  # noqa: E402

FLOAT = torch.float32 if IS_INTERPRETED else torch.bfloat16
EPS = 1e-6
CONFIG = attention_int8_triton.Config(64, 4, 2) if IS_INTERPRETED else None
# Tokens and heads: one of each, half a block of keys and one more, whole blocks, a multiple of nothing.
SIZES = [(1, 1), (64, 1), (65, 2), (128, 1), (300, 2)] + ([] if IS_INTERPRETED else [(1001, 12), (3000, 40)])
SIZE = pytest.mark.parametrize("size", SIZES, ids=str)


def normal(*shape, seed=0):
    return tensors.uneven(*shape, seed=seed, has_mean=True).to(DEVICE, torch.bfloat16)


def problem(tokens, heads):
    """Return q, k, v, the weights of both norms and the rotary."""
    q, k, v = (normal(tokens, heads, 128, seed=seed) for seed in range(3))
    norms = tuple(1 + normal(1, heads * 128, seed=seed)[0] / 8 for seed in (3, 4))
    angles = torch.randn(tokens, 64, generator=torch.Generator().manual_seed(9)).to(DEVICE) * 3
    return q, k, v, norms, (angles.cos(), angles.sin())


def normed(x, weight, rotary):
    rows = x.float().flatten(1)
    ops_torch.rms_rotary(rows, weight.float(), EPS, x.shape[1], Rotary(*rotary))
    return rows.view(x.shape)


def exact_attention(q, k, v, norms, rotary):
    q, k = (normed(part, weight, rotary) for part, weight in zip((q, k), norms, strict=True))
    parts = (part.float().transpose(0, 1) for part in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(*parts).transpose(0, 1)


def hadamard(size):
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)], 0)
    return matrix.to(DEVICE) / math.sqrt(size)


def run(parts, norms, rotary):
    prepared = attention_int8_inputs.prepare(*parts, norms, EPS, rotary)
    out = torch.full(parts[2].shape, float("nan"), dtype=FLOAT, device=DEVICE)
    attention_int8_triton.attend(prepared, out, CONFIG)
    return prepared, out


def by_the_rules(prepared, tokens):
    """The kernel's arithmetic on its inputs, in float64: weights in whole numbers against each block's largest."""
    heads = prepared.q.shape[1]
    key_scales = prepared.key_scales.double().repeat_interleave(KEYS_A_SCALE, 1)[:, :tokens]
    places = [t // 16 * 16 + t % 16 // 8 * 2 + t % 8 // 2 * 4 + t % 2 for t in range(tokens)]
    values = prepared.values[..., places].double()
    scores = prepared.q.double().transpose(0, 1) @ prepared.k.double().permute(1, 2, 0)
    scores *= prepared.query_scales.double()[..., None] * key_scales[:, None] * math.log2(math.e) / math.sqrt(128)
    highest = scores.amax(2, keepdim=True)
    result, total = torch.zeros(heads, tokens, 128, dtype=torch.float64, device=DEVICE), 0
    for start in range(0, tokens, 2 * KEYS_A_SCALE):
        block = scores[..., start : start + 2 * KEYS_A_SCALE]
        largest = block.amax(2, keepdim=True)
        weights = 127 * 2 ** (block - largest)
        unit = 2 ** (largest - highest)
        result += weights.round() @ values[..., start : start + 2 * KEYS_A_SCALE].transpose(1, 2) * unit
        total = total + weights.sum(2, keepdim=True) * unit
    steps, means = (part.double().view(heads, 1, 128) for part in (prepared.value_steps, prepared.value_means))
    return (result / total * steps + means).transpose(0, 1)


def test_some_heads_with_the_factors_of_whole_rows_are_as_they_are_among_all():
    """As the GPUs have them that share a clip: rows are measured where they are, heads prepared elsewhere."""
    q, k, v, norms, rotary = problem(300, 3)
    measured = [
        IN_PLACE["triton_int8"].measure_rows(q[run], k[run], norms, EPS, None)
        for run in (slice(0, 128), slice(128, 300))
    ]
    whole = attention_int8_inputs.prepare(q.clone(), k.clone(), v, norms, EPS, rotary)
    for heads in (slice(0, 2), slice(2, 3)):
        columns = slice(heads.start * 128, heads.stop * 128)
        own = [part[:, heads].contiguous() for part in (q, k, v)]
        own_norms = tuple(weight[columns] for weight in norms)
        found = attention_int8_inputs.prepare(*own, own_norms, EPS, rotary, factors=torch.cat(measured))
        expected = whole.of_heads(heads)
        for name in ("q", "query_scales"):
            assert torch.equal(getattr(found, name), getattr(expected, name)), name
        # Sums over rows are torch's, whose order depends on the number of columns.
        for name in ("key_scales", "value_steps", "value_means"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-6)
        assert (found.k.int() - expected.k.int()).abs().max() <= 1
        assert (found.values.int() - expected.values.int()).abs().max() <= 1


@SIZE
def test_queries_and_keys_are_turned_and_quantized_in_their_own_memory(size):
    q, k, v, norms, rotary = problem(*size)
    sample = torch.arange(len(k), device=DEVICE) % SAMPLE_STRIDE < SAMPLE_ROWS
    exact_q, exact_k = normed(q, norms[0], rotary), normed(k, norms[1], rotary)
    turn = hadamard(128)
    exact_q, exact_k = exact_q @ turn, (exact_k - exact_k[sample].mean(0)) @ turn
    found = attention_int8_inputs.prepare(q, k, v, norms, EPS, rotary)
    wanted = exact_q.abs().amax(2).T / 127
    torch.testing.assert_close(found.query_scales, wanted, rtol=2e-3, atol=1e-6)
    runs = torch.nn.functional.pad(exact_k.abs().amax(2).T, (0, -len(k) % (2 * KEYS_A_SCALE)))
    wanted = runs.unflatten(1, (-1, KEYS_A_SCALE)).amax(2).clamp(min=1e-12) / 127
    torch.testing.assert_close(found.key_scales, wanted, rtol=2e-3, atol=1e-6)
    key_steps = found.key_scales.repeat_interleave(KEYS_A_SCALE, 1)[:, : len(k)]
    for codes, steps, exact, part in (
        (found.q, found.query_scales, exact_q, q),
        (found.k, key_steps, exact_k, k),
    ):
        assert codes.dtype == torch.int8 and codes.data_ptr() == part.data_ptr()
        # Sums of the rotation are of TF32's 10 bits: codes may be a tenth of a step further off than rounding.
        assert ((codes * steps.T[..., None] - exact).abs() <= 0.6 * steps.T[..., None] + 1e-5).all()


@SIZE
def test_values_are_centred_and_transposed_in_the_order_of_their_use(size):
    _, _, v, _, _ = problem(*size)
    means, steps = attention_int8_inputs.find_spread(v)
    wide = v.float()
    torch.testing.assert_close(means, wide.mean(0).flatten(), rtol=1e-4, atol=1e-5)
    wanted = (wide - wide.mean(0)).abs().amax(0).flatten() / 127
    torch.testing.assert_close(steps, wanted, rtol=1e-4, atol=1e-6)
    found = attention_int8_inputs.transpose_values(v, means, steps)
    assert found.dtype == torch.int8 and found.shape == (size[1], 128, -(-size[0] // 128) * 128)
    places = [t // 16 * 16 + t % 16 // 8 * 2 + t % 8 // 2 * 4 + t % 2 for t in range(len(v))]
    apart = ((wide - means.view(v.shape[1:])) / steps.view(v.shape[1:])).permute(1, 2, 0)
    assert ((found[..., places] - apart).abs() <= 0.501).all()
    others = sorted(set(range(found.shape[2])) - set(places))
    assert not found[..., others].any()


@SIZE
def test_the_kernel_does_what_its_description_says(size):
    *parts, norms, rotary = problem(*size)
    prepared, out = run(parts, norms, rotary)
    # A weight that lies between two whole numbers may go to the other one.
    assert relative_error(out, by_the_rules(prepared, size[0])) < (1e-3 if IS_INTERPRETED else 4e-3)


@SIZE
def test_close_to_exact_attention(size):
    *parts, norms, rotary = problem(*size)
    wanted = exact_attention(*parts, norms, rotary)
    assert relative_error(run(parts, norms, rotary)[1], wanted) < 0.02


def test_scores_far_apart():
    # One key takes nearly all of the weight: what is far below the highest score is nothing, not noise.
    *parts, norms, rotary = problem(300, 2)
    wide = (norms[0] * 4, norms[1] * 4)
    wanted = exact_attention(*parts, wide, rotary)
    _, out = run(parts, wide, rotary)
    assert torch.isfinite(out).all() and relative_error(out, wanted) < 0.2


@pytest.mark.parametrize("tokens", [1, 63, 65, 129, 200])
def test_scores_close_together(tokens):
    # All keys weigh about the same, so that one too many in the last block would show.
    *parts, norms, rotary = problem(tokens, 2)
    small = (norms[0] / 16, norms[1] / 16)
    wanted = exact_attention(*parts, small, rotary)
    assert relative_error(run(parts, small, rotary)[1], wanted) < 0.02


@pytest.mark.parametrize("tokens", [40, 70])
def test_all_scores_below_zero(tokens):
    # Keys that do not exist score nothing, not zero: zero would be the highest there.
    *parts, norms, rotary = problem(tokens, 1)
    prepared = attention_int8_inputs.prepare(*parts, norms, EPS, rotary)
    prepared.q.fill_(100)
    prepared.k.fill_(-100)
    out = torch.full(parts[2].shape, float("nan"), dtype=FLOAT, device=DEVICE)
    attention_int8_triton.attend(prepared, out, CONFIG)
    assert relative_error(out, by_the_rules(prepared, tokens)) < (1e-4 if IS_INTERPRETED else 4e-3)


def test_a_channel_that_is_far_larger_than_the_others_costs_nothing():
    # What the rotation is for: the same inputs, unturned, would have a step 30 times as large.
    q, k, v, norms, rotary = problem(200, 1)
    still = (torch.ones_like(rotary[0]), torch.zeros_like(rotary[1]))
    loud = torch.ones(128, device=DEVICE, dtype=torch.bfloat16)
    loud[5] = 30
    weights = (norms[0] / loud.float().norm() * math.sqrt(128) * loud, norms[1] * loud / 30)
    wanted = exact_attention(q, k, v, weights, still)
    assert relative_error(run((q, k, v), weights, still)[1], wanted) < 0.03


def test_rows_may_lie_apart():
    """Parts of a larger region, what lies between which is left alone."""
    q, k, v, norms, rotary = problem(77, 2)
    _, whole = run((q.clone(), k.clone(), v), norms, rotary)
    region = torch.full((3, 77, 768), 3.0, device=DEVICE, dtype=torch.bfloat16)
    parts = [memory[:, 256:512].unflatten(1, (2, 128)) for memory in region]
    for part, values in zip(parts, (q, k, v), strict=True):
        part.copy_(values)
    _, out = run(parts, norms, rotary)
    assert torch.equal(out, whole)
    assert (region[..., :256] == 3).all() and (region[..., 512:] == 3).all()


@pytest.mark.parametrize("tokens", [65, 130])
def test_heads_one_after_the_other_are_bit_for_bit_all_at_once(tokens):
    *parts, norms, rotary = problem(tokens, 3)
    prepared = attention_int8_inputs.prepare(*parts, norms, EPS, rotary)
    whole, out = (torch.zeros(tokens, 3, 128, device=DEVICE, dtype=FLOAT) for _ in range(2))
    attention_int8_triton.attend(prepared, whole, CONFIG)
    for heads in (slice(0, 1), slice(1, 3)):
        attention_int8_triton.attend(prepared.of_heads(heads), out[:, heads], CONFIG)
    assert torch.equal(out, whole) and whole.isfinite().all()


@pytest.mark.skipif(IS_INTERPRETED, reason="the interpreter takes no GPU memory")
def test_in_place_and_with_little_memory():
    *parts, norms, rotary = problem(20_000, 8)
    wanted = run([part.clone() for part in parts], norms, rotary)[1]
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = IN_PLACE["triton_int8"](*parts, norms, EPS, rotary)
    assert out.data_ptr() == parts[2].data_ptr() and torch.equal(out, wanted)
    assert torch.cuda.max_memory_allocated() - before < 1.2 * out.numel()


@pytest.mark.skipif(IS_INTERPRETED, reason="the interpreter does not compile")
def test_a_new_number_of_rows_compiles_nothing():
    modules = (attention_int8_inputs, attention_int8_triton)
    kernels = [kernel for module in modules for name, kernel in vars(module).items() if name.endswith("_kernel")]
    if not hasattr(kernels[0], "device_caches"):
        pytest.skip("this Triton keeps its compiled kernels elsewhere")

    def counts(tokens):
        # A number of heads that no other test has: nothing is compiled for it yet.
        *parts, norms, rotary = problem(tokens, 7)
        IN_PLACE["triton_int8"](*parts, norms, EPS, rotary)
        return [len(kernel.device_caches[torch.cuda.current_device()][0]) for kernel in kernels]

    before = counts(160)
    assert all(counts(tokens) == before for tokens in (1, 16, 17, 1024, 32_760))
