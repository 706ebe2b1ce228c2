"""The Triton kernels against plain torch.

On a GPU, or with TRITON_INTERPRET=1 on a CPU. Triton's interpreter cuts BF16 off instead of rounding it, so there it is
fp32; and its FP8 is its own.
"""

import pytest
import torch
from lightx2v_pack.engine.backends import trials
from lightx2v_pack.engine.backends.choose import Wanted
from lightx2v_pack.engine.kernels import matmul, ops_torch
from lightx2v_pack.engine.kernels.attention import Normed, sdpa
from lightx2v_pack.engine.kernels.joined import join
from lightx2v_pack.engine.kernels.ops import Rotary
from lightx2v_pack.engine.memory.activations import branch_room
from lightx2v_pack.engine.wan.kernels import Kernels, build_kernels
from support import tensors
from support.tensors import relative_error
from support.triton_device import IS_INTERPRETED, triton_device
from torch.nn import functional

pytestmark = pytest.mark.gpu
DEVICE = triton_device()

from lightx2v_pack.engine.kernels import (  # noqa: E402
    attention_inputs,
    int8_triton,
    ops_triton,
)

FLOAT = torch.float32 if IS_INTERPRETED else torch.bfloat16
FP8, INT8 = torch.float8_e4m3fn, torch.int8
HAS_FP8 = not IS_INTERPRETED and torch.cuda.get_device_capability() >= (8, 9)
DTYPES = [FLOAT, INT8, *([FP8] if HAS_FP8 else [])]
EIGHT_BIT = DTYPES[1:]
HEAD_DIM, EPS = 128, 1e-6
# Rows and heads: one of each, two of the real widths, numbers of rows that are a multiple of nothing.
SHAPES = [(1, 1), (37, 2), (5, 3), (3, 12), (2, 40)] if IS_INTERPRETED else [(1, 1), (37, 2), (131, 12), (1001, 40)]


@pytest.fixture(params=SHAPES, ids=str)
def size(request):
    """Rows, heads, columns."""
    rows, heads = request.param
    return rows, heads, heads * HEAD_DIM


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


def normal(*shape, seed=0, dtype=FLOAT):
    return tensors.normal(*shape, seed=seed).to(DEVICE, dtype)


def vectors(number, columns):
    return normal(number, columns, seed=9, dtype=torch.float32)


def outputs(shape, dtype):
    scale = None if dtype == FLOAT else torch.empty(shape[0], 1, device=DEVICE)
    return torch.empty(shape, dtype=dtype, device=DEVICE), scale


def check(found, wanted, found_scale=None, wanted_scale=None):
    """Equal but for fp32's order of summation, which now and then rounds a value to its neighbour."""
    if wanted_scale is not None:
        torch.testing.assert_close(found_scale, wanted_scale, rtol=2e-5, atol=1e-20)
    found, wanted, exact_dtype = found.double(), wanted.double(), found.dtype
    rtol, atol = {
        torch.float32: (1e-5, 1e-5),
        torch.bfloat16: (2.0**-7, 1e-5),
        INT8: (0.0, 1.0),
        FP8: (2.0**-3, 2.0**-9),
    }[exact_dtype]
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=atol)
    if exact_dtype != torch.float32:
        # Far in its tail GELU is what torch's 1 + tanh leaves after cancellation: no digit of that is right.
        assert ((found - wanted).abs() > 1e-6).double().mean() < 0.002


def both(call, *changed):
    """Run an operation of both kinds; returns what Triton and what torch made of the tensors that it changes."""
    results = []
    for ops in (ops_triton, ops_torch):
        copies = [None if tensor is None else tensor.clone() for tensor in changed]
        call(ops, *copies)
        results.append(copies)
    return results


@pytest.mark.parametrize("dtype", EIGHT_BIT, ids=str)
def test_quantize(size, dtype):
    rows, _, columns = size
    x = normal(rows, columns) * 3
    x[rows // 2] = 0
    (out, scale), (wanted, wanted_scale) = both(lambda ops, *to: ops.quantize(x, *to), *outputs(x.shape, dtype))
    check(out, wanted, scale, wanted_scale)


@pytest.mark.parametrize("dtype", EIGHT_BIT, ids=str)
def test_int8_rounds_half_to_even_and_the_largest_value_is_kept(dtype):
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -126.5, 126.0]], device=DEVICE).to(FLOAT)
    (out, scale), (wanted, wanted_scale) = both(lambda ops, *to: ops.quantize(x, *to), *outputs(x.shape, dtype))
    assert torch.equal(out.float(), wanted.float()) and torch.equal(scale, wanted_scale)


def test_norm(size, dtype):
    rows, _, columns = size
    x = normal(rows, columns) * 3 + 1
    mul, add = vectors(2, columns)
    (out, scale), (wanted, wanted_scale) = both(
        lambda ops, *to: ops.norm(x, mul, add, EPS, *to), *outputs(x.shape, dtype)
    )
    check(out, wanted, scale, wanted_scale)


@pytest.mark.parametrize("has_gate", [True, False], ids=["gate", "no gate"])
def test_residual(size, has_gate):
    rows, _, columns = size
    y = normal(rows, columns, seed=1)
    gate = vectors(1, columns)[0] if has_gate else None
    (found,), (wanted,) = both(lambda ops, x: ops.residual(x, y, gate), normal(rows, columns))
    check(found, wanted)


@pytest.mark.parametrize("has_gate", [True, False], ids=["gate", "no gate"])
def test_residual_norm(size, dtype, has_gate):
    rows, _, columns = size
    y = normal(rows, columns, seed=1)
    gate, mul, add = vectors(3, columns)
    gate = gate if has_gate else None
    # Sums that are exact in BF16: were they rounded to neighbours, the norms of both would differ.
    x, y = (normal(rows, columns, seed=seed).mul(4).round() for seed in range(2))
    gate = gate.round() if has_gate else None
    (x, out, scale), (wanted_x, wanted, wanted_scale) = both(
        lambda ops, x, *to: ops.residual_norm(x, y, gate, mul, add, EPS, *to), x, *outputs(x.shape, dtype)
    )
    assert torch.equal(x, wanted_x)
    check(out, wanted, scale, wanted_scale)


def test_residual_norm_may_write_where_the_change_is(size):
    rows, _, columns = size
    x, y = (normal(rows, columns, seed=seed) for seed in range(2))
    gate, mul, add = vectors(3, columns)
    out, separate = torch.empty_like(y), x.clone()
    ops_triton.residual_norm(separate, y, gate, mul, add, EPS, out, None)
    ops_triton.residual_norm(x, y, gate, mul, add, EPS, y, None)
    assert torch.equal(x, separate) and torch.equal(y, out)


def test_residual_norm_is_residual_and_norm_to_the_bit(size, dtype):
    """A block's last change is added with the next block's norm, and the last block's alone."""
    rows, _, columns = size
    x, y = (normal(rows, columns, seed=seed) for seed in range(2))
    gate, mul, add = vectors(3, columns)
    separate, (out, scale), (wanted, wanted_scale) = x.clone(), outputs(x.shape, dtype), outputs(x.shape, dtype)
    ops_triton.residual(separate, y, gate)
    ops_triton.norm(separate, mul, add, EPS, wanted, wanted_scale)
    ops_triton.residual_norm(x, y, gate, mul, add, EPS, out, scale)
    assert torch.equal(x, separate) and torch.equal(out.float(), wanted.float())


@pytest.mark.parametrize("columns", [2, 512, 1000, 8960, 13_824])
def test_gelu(columns, dtype):
    h = normal(3, columns) * 3
    (out, scale), (wanted, wanted_scale) = both(lambda ops, *to: ops.gelu(h, *to), *outputs(h.shape, dtype))
    check(out, wanted, scale, wanted_scale)
    if dtype == FLOAT:
        ops_triton.gelu(h, h, None)
        assert torch.equal(h, out)


@pytest.mark.skipif(not HAS_FP8, reason="needs FP8")
@pytest.mark.parametrize("rank", [16, 48, 160])
@pytest.mark.parametrize("strength", [0.01, 1.0, 1000.0])
def test_joined_loras(size, rank, strength):
    """What is in FP8 there is the same, also where rows shrink for it."""
    rows, _, columns = size
    room = branch_room(rank, joins_loras=True)
    x, weight = (normal(rows, columns, seed=seed) for seed in (1, 2))
    hidden, up = normal(rows, rank, seed=3) * strength, normal(rows, rank, seed=4) * strength
    balance = torch.exp2(vectors(1, rank)[0].round())
    found = []
    for ops in (ops_triton, ops_torch):
        inputs, scale = torch.zeros(rows, room + columns, device=DEVICE).to(FP8)[:, room:], vectors(rows, 1)
        stored, weight_scale = inputs.clone(), scale.clone()
        ops_torch.quantize(x, inputs, scale)
        ops_torch.quantize(weight, stored, weight_scale)
        layer = matmul.Linear(stored, weight_scale, up[:, 0])
        joined, scale, layer = join(ops, hidden, up, balance, inputs, scale, layer)
        found.append([joined.float() * scale, layer.weight.float() * layer.weight_scale])
    for one, other in zip(*found, strict=True):
        # Now and then a quotient rounds the other way; where it is a row's largest, by which it shrinks, in all of it.
        assert (one != other).float().mean() < 0.002
        assert relative_error(one, other) < 0.002


@pytest.mark.parametrize("rank", [16, 48, 80])
def test_add_product(size, rank):
    rows, _, columns = size
    wide, weight = normal(rows, 2 * rank + 16, seed=1), normal(columns, rank, seed=2)
    # A slice of columns, added to rows of a wider tensor, of which nothing else changes.
    out = normal(rows, columns + 8, seed=3)
    (found,), (wanted,) = both(lambda ops, to: ops.add_product(wide[:, 16 : 16 + rank], weight, to[:, :columns]), out)
    exact = out[:, :columns].double() + wide[:, 16 : 16 + rank].double() @ weight.double().t()
    for each in (found, wanted):
        assert torch.equal(each[:, columns:], out[:, columns:])
        assert relative_error(each[:, :columns], exact) < (1e-5 if IS_INTERPRETED else 0.004)


def test_gelu_of_large_values_is_finite():
    h = torch.tensor([[-1e4, -100.0, 0.0, 100.0, 1e4, 1.0, -1.0, 3.0]], device=DEVICE).to(FLOAT)
    (found,), (wanted,) = both(lambda ops, h: ops.gelu(h, h, None), h)
    check(found, wanted)


@pytest.mark.parametrize("is_rotated", [True, False], ids=["rotary", "plain"])
@pytest.mark.parametrize("weight_dtype", [torch.float32, FLOAT], ids=str)
def test_rms_rotary(size, is_rotated, weight_dtype):
    rows, heads, columns = size
    weight = vectors(1, columns)[0].to(weight_dtype)
    angles = normal(rows, HEAD_DIM // 2, seed=2, dtype=torch.float32) * 3
    rotary = Rotary(angles.cos(), angles.sin()) if is_rotated else None
    (found,), (wanted,) = both(lambda ops, x: ops.rms_rotary(x, weight, EPS, heads, rotary), normal(rows, columns))
    # A difference of products may cancel: its error is that of the terms.
    torch.testing.assert_close(found.float(), wanted.float(), rtol=2.0**-7, atol=1e-4)


@pytest.mark.parametrize("columns", [2, 254, 1026])
def test_row_factors(columns):
    """Of rows that lie apart, of very different sizes, one of zeros; BF16 is only read, in the interpreter too."""
    check_row_factors(37, columns)


def test_row_factors_of_real_widths(size):
    check_row_factors(size[0], size[2])


def check_row_factors(rows, columns):
    x = normal(rows, 3 * columns, dtype=torch.float32)
    x *= 10.0 ** torch.arange(-3, rows - 3, device=DEVICE).clamp(max=3)[:, None]
    x[-1] = 0
    x = x.bfloat16()[:, columns : 2 * columns]
    (found,), (wanted,) = both(lambda ops, out: ops.row_factors(x, EPS, out), torch.full((rows,), torch.nan).to(DEVICE))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0)


@pytest.mark.parametrize("keys", [1, 11, 64, 128, 129])
def test_cross_attention(keys):
    q, k, v = (normal(rows, 2, HEAD_DIM, seed=rows) for rows in (133, keys, keys))
    factors = vectors(1, 133)[0]
    (found,), (wanted,) = both(
        lambda ops, out: ops.cross_attention(q, factors, k, v, 513 - keys, out), torch.empty_like(q)
    )
    assert relative_error(found, wanted) < (1e-5 if IS_INTERPRETED else 0.006)


@pytest.mark.parametrize("keys", [1, 64, 257, 514])
def test_add_cross_attention(keys):
    """Keys of whole parts and of a rest; an image has 257, two have 514."""
    q, k, v = (normal(rows, 2, HEAD_DIM, seed=rows) for rows in (133, keys, keys + 1))
    factors, before = vectors(1, 133)[0], normal(133, 2, HEAD_DIM, seed=9)
    (found,), (wanted,) = both(lambda ops, out: ops.add_cross_attention(q, factors, k, v[:keys], out), before)
    assert relative_error(found - before, wanted - before) < (1e-5 if IS_INTERPRETED else 0.012)


@pytest.mark.parametrize("keys", [1, 11, 42, 64, 128, 129])
def test_cross_weights(keys):
    q, k = (normal(rows, 2, HEAD_DIM, seed=rows) for rows in (133, keys))
    factors = vectors(1, 133)[0]
    columns = -(-keys // 8) * 8
    (found,), (wanted,) = both(
        lambda ops, out: ops.cross_weights(q, factors, k, 513 - keys, out), q.new_full((133, 2, columns), torch.nan)
    )
    torch.testing.assert_close(found, wanted, rtol=1e-4 if IS_INTERPRETED else 2.0**-7, atol=1e-6)
    assert not found[..., keys:].any()


@pytest.mark.parametrize("keys", [1, 42, 64])
@pytest.mark.parametrize("precision", ["bf16", "int8", "fp8"])
def test_the_values_multiplied_first_give_the_same(keys, precision):
    """cross_attention and a linear layer, and cross_weights and the layer of the values' heads."""
    if precision == "fp8" and not HAS_FP8:
        pytest.skip("no FP8")
    q, k, v = (normal(rows, 2, HEAD_DIM, seed=rows + 1) for rows in (133, keys, keys))
    factors, scale = vectors(1, 133)[0], None
    weight = (normal(96, 2 * HEAD_DIM, seed=3) * 20).round()
    if precision != "bf16":
        weight, scale = weight.to({"int8": INT8, "fp8": FP8}[precision]), 0.5 + vectors(1, 96).T.abs()
    kernels = Kernels(
        ops=ops_triton,
        multiply=matmul.linear,
        attention=Normed(ops_triton, sdpa),
        attention_in_place=None,
        quantized=None,
    )
    weights = {"o.weight": weight} | ({} if scale is None else {"o.weight_scale": scale})
    columns = -(-keys // 8) * 8
    shares, attended = q.new_empty(133, 2, columns), torch.empty_like(q)
    ops_triton.cross_weights(q, factors, k, 500, shares)
    outputs = kernels.linear_of_heads(functional.pad(v, (0, 0, 0, 0, 0, columns - keys)), weights, "o")
    found = shares.flatten(1) @ outputs.flatten(0, 1)
    ops_triton.cross_attention(q, factors, k, v, 500, attended)
    wanted = attended.flatten(1).double() @ (weight.double() * (1 if scale is None else scale.double())).T
    assert relative_error(found, wanted) < (1e-4 if IS_INTERPRETED else 0.008)


@pytest.mark.parametrize("size_of_q", [1e-3, 1.0, 300.0])
def test_cross_attention_to_normalized_queries_is_that_of_rms_rotary(size_of_q):
    """The norm's weight in the keys and its factors in the scores are what a pass over q makes, to BF16's rounding."""
    q, k, v = (normal(rows, 2, HEAD_DIM, seed=rows) for rows in (133, 64, 64))
    q = (q * size_of_q).bfloat16()
    weight = 1 + 0.2 * vectors(1, 2 * HEAD_DIM)[0]
    factors = torch.empty(133, device=DEVICE)
    ops_triton.row_factors(q.flatten(1), EPS, factors)
    found = v.new_empty(q.shape)
    weighted = (k * weight.view(2, HEAD_DIM)).to(FLOAT)
    ops_triton.cross_attention(q.to(FLOAT), factors, weighted, v, 449, found)
    plain = q.double().flatten(1)
    plain = plain * (plain.square().mean(1, keepdim=True) + EPS) ** -0.5 * weight
    index = [*range(64), *[63] * 448]
    scores = torch.einsum("nhd,khd->hnk", plain.view(q.shape), k[index].double()) / HEAD_DIM**0.5
    wanted = torch.einsum("hnk,khd->nhd", scores.softmax(-1), v[index].double())
    assert relative_error(found, wanted) < (1e-5 if IS_INTERPRETED else 0.006)


def test_rows_may_lie_apart(dtype):
    """Operands are parts of a larger region, and what lies between them is left alone."""
    region, output = normal(3, 37, 768), torch.zeros(37, 768, device=DEVICE).to(dtype)
    mul, add = vectors(2, 256)
    angles = normal(37, HEAD_DIM // 2, seed=2, dtype=torch.float32)
    rotary = Rotary(angles.cos(), angles.sin())

    def run(ops, region, output, scale):
        x, y, q = region[0, :, 256:512], region[1, :, :256], region[2, :, 512:]
        ops.residual_norm(x, y, None, mul, add, EPS, output[:, 256:512], scale)
        ops.rms_rotary(q, mul, EPS, 2, rotary)
        heads = q.unflatten(1, (2, HEAD_DIM))
        ops.cross_attention(heads, mul[:37], heads[:5], heads[5:10], 3, y.unflatten(1, (2, HEAD_DIM)))

    scale = outputs((37, 256), dtype)[1]
    found, wanted = both(run, region, output, scale)
    torch.testing.assert_close(found[0], wanted[0], rtol=0.02, atol=0.02)
    check(found[1][:, 256:512], wanted[1][:, 256:512], found[2], wanted[2])
    untouched = torch.cat([found[1][:, :256], found[1][:, 512:]]).float()
    assert not untouched.any()
    assert torch.equal(found[0][0, :, :256], region[0, :, :256])


@pytest.mark.parametrize(("rows", "n", "k"), [(1, 32, 32), (77, 272, 208), (300, 512, 256), (129, 256, 512)])
def test_int8_matmul(rows, n, k):
    x, weight = (torch.randint(-127, 128, (size, k), device=DEVICE).to(INT8) for size in (rows, n))
    row_scale, column_scale = torch.rand(rows, 1, device=DEVICE), torch.rand(n, 1, device=DEVICE)
    bias = normal(n, seed=1) * 1000
    region = torch.zeros(rows + 2, n + 16, device=DEVICE, dtype=FLOAT)
    config = int8_triton.Config(64, 64, 64, 4, 2) if IS_INTERPRETED else None
    int8_triton.int8_matmul(x, row_scale, weight, column_scale, bias, region[1:-1, :n], config)
    exact = (x.double() @ weight.double().T) * row_scale.double() * column_scale.double().T + bias.double()
    torch.testing.assert_close(region[1:-1, :n].double(), exact, rtol=2.0**-8 * 1.01, atol=1e-2)
    assert not region[:: rows + 1].any() and not region[:, n:].any()


@pytest.mark.skipif(IS_INTERPRETED, reason="the interpreter does not compile")
def test_a_new_number_of_rows_compiles_nothing():
    def variants():
        cross = (
            ops_triton._cross_attention_kernel,
            ops_triton._cross_weights_kernel,
            ops_triton._add_cross_attention_kernel,
        )
        attention = (*cross, attention_inputs._factors_kernel)
        kernels = (ops_triton._norm_kernel, *attention, int8_triton._matmul_kernel)
        return [len(kernel.device_caches[torch.cuda.current_device()][0]) for kernel in kernels]

    def run(rows):
        x = normal(rows, 256)
        mul, add = vectors(2, 256)
        out, scale = outputs(x.shape, INT8)
        ops_triton.norm(x, mul, add, EPS, out, scale)
        heads = x.view(rows, 2, HEAD_DIM)
        factors = torch.empty_like(scale[:, 0])
        ops_triton.row_factors(x, EPS, factors)
        ops_triton.cross_attention(heads, factors, heads[:11], heads[:11], 500 - rows % 7, torch.empty_like(heads))
        image, added = normal(257, 2, HEAD_DIM), torch.zeros_like(heads)
        ops_triton.add_cross_attention(heads, factors, image, image, added)
        keys = heads[: 9 + rows % 7]
        ops_triton.cross_weights(heads, factors, keys, 500, x.new_empty(rows, 2, 16))
        weights = matmul.Linear(out[:16].contiguous(), scale[:16], mul[:16].to(FLOAT))
        matmul.linear(out, scale, weights, x[:, :16], backend="int_triton")

    if not hasattr(ops_triton._norm_kernel, "device_caches"):
        pytest.skip("this Triton keeps its compiled kernels elsewhere")
    run(160)
    before = variants()
    for rows in (16, 17, 1024, 32_760):
        run(rows)
    assert variants() == before


@pytest.mark.skipif(IS_INTERPRETED, reason="the interpreter is not chosen")
def test_the_kernels_are_chosen_on_this_card():
    for setting, name, ops in (
        ("auto", "triton", ops_triton),
        ("on", "triton", ops_triton),
        ("off", "torch", ops_torch),
    ):
        wanted = Wanted(precision="bf16", dim=256, ffn_dim=512, fused_kernels=setting)
        chosen = trials.confirm(wanted, DEVICE)
        assert chosen.blocks.name == name and build_kernels(chosen).ops is ops
