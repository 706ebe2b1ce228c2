"""The operations of a block in plain torch against float64, their choice, and linear layers on quantized rows."""

import logging

import pytest
import torch
from lightx2v_pack.engine.backends import trials
from lightx2v_pack.engine.backends.choose import Wanted, choose
from lightx2v_pack.engine.backends.table import Machine
from lightx2v_pack.engine.errors import LightX2VError, MissingDependencyError, UnsupportedHardwareError
from lightx2v_pack.engine.kernels import attention, implementations, matmul, ops_torch, quantize
from lightx2v_pack.engine.kernels.attention import Normed, SelfAttention
from lightx2v_pack.engine.kernels.matmul import Linear, linear
from lightx2v_pack.engine.kernels.ops import Rotary
from lightx2v_pack.engine.wan.kernels import build_kernels
from support.pretended_machine import pretend_machine
from support.tensors import LARGEST, normal, relative_error, skip_without_scaled_mm

FP8, INT8, BF16 = torch.float8_e4m3fn, torch.int8, torch.bfloat16
EPS = 1e-6
CPU = torch.device("cpu")
# Rows and columns: one of each, a real head, nothing that is a multiple of anything.
SHAPES = [(1, 2), (5, 128), (33, 254), (7, 1026)]
# Half a step of the last kept bit of 8 (BF16) and 4 (E4M3), the leading one included.
HALF_STEP = {BF16: 2.0**-8, FP8: 2.0**-4}


@pytest.fixture(params=SHAPES, ids=str)
def shape(request):
    return request.param


@pytest.fixture(params=[BF16, FP8, INT8], ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request):
    return request.param


def outputs(shape, dtype):
    return torch.empty(shape, dtype=dtype), None if dtype == BF16 else torch.empty(shape[0], 1)


def check(out, scale, exact):
    """`out` (times scale) is `exact` (float64), rounded once; 1.001 leaves room for the fp32 maths before it."""
    if scale is None:
        allowed = exact.abs() * HALF_STEP[BF16] + 1e-6
        found = out.double()
    else:
        limit = LARGEST[out.dtype]
        assert scale.dtype == torch.float32
        wanted_scale = exact.abs().amax(1, keepdim=True).clamp(min=1e-12) / limit
        torch.testing.assert_close(scale.double(), wanted_scale, rtol=1e-5, atol=1e-20)
        # E4M3's smallest step is 2 ** -9.
        step = 0.5 if out.dtype == INT8 else (exact / scale).abs().mul(HALF_STEP[FP8]).clamp(min=2.0**-10)
        allowed = step * scale.double() + wanted_scale * limit * 1e-5
        found = out.double() * scale.double()
    assert ((found - exact).abs() <= 1.001 * allowed).all()


def layer_norm(x, mul, add):
    x = x.double()
    variance = x.var(1, correction=0, keepdim=True)
    return (x - x.mean(1, keepdim=True)) / (variance + EPS).sqrt() * mul.double() + add.double()


def tanh_gelu(x):
    x = x.double()
    return x / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


# Operations


@pytest.mark.parametrize("dtype", [FP8, INT8], ids=str)
def test_quantize(shape, dtype):
    x = (normal(*shape) * 3).to(BF16)
    out, scale = outputs(shape, dtype)
    ops_torch.quantize(x, out, scale)
    check(out, scale, x.double())
    assert (out.float().abs().amax(1) == LARGEST[dtype]).all()


@pytest.mark.parametrize("dtype", [FP8, INT8], ids=str)
def test_a_row_of_zeros_stays_zero_and_disturbs_no_other(dtype):
    x = normal(3, 64).to(BF16)
    alone, alone_scale = outputs((3, 64), dtype)
    ops_torch.quantize(x, alone, alone_scale)
    x[1] = 0
    out, scale = outputs((3, 64), dtype)
    ops_torch.quantize(x, out, scale)
    assert (out[1].float() == 0).all() and 0 < scale[1] < 1e-9
    assert torch.equal(out[::2].float(), alone[::2].float()) and torch.equal(scale[::2], alone_scale[::2])


def test_int8_rounds_half_to_even():
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5]], dtype=BF16)
    out, scale = outputs(x.shape, INT8)
    ops_torch.quantize(x, out, scale)
    assert scale.item() == 1 and out.tolist() == [[127, 0, 2, 2, 0, -2]]


def test_norm(shape, dtype):
    x = (normal(*shape) * 3 + 1).to(BF16)
    mul, add = normal(2, shape[1], seed=1)
    out, scale = outputs(shape, dtype)
    before = x.clone()
    ops_torch.norm(x, mul, add, EPS, out, scale)
    check(out, scale, layer_norm(x, mul, add))
    assert torch.equal(x, before)


@pytest.mark.parametrize("has_gate", [True, False], ids=["gate", "no gate"])
def test_residual(shape, has_gate):
    x, y = normal(2, *shape).to(BF16)
    gate = normal(shape[1], seed=1) if has_gate else None
    exact = x.double() + y.double() * (gate.double() if has_gate else 1)
    ops_torch.residual(x, y, gate)
    check(x, None, exact)


@pytest.mark.parametrize("has_gate", [True, False], ids=["gate", "no gate"])
def test_residual_norm_normalizes_what_it_stores(shape, dtype, has_gate):
    x, y = normal(2, *shape).to(BF16)
    gate, mul, add = normal(3, shape[1], seed=1)
    gate = gate if has_gate else None
    exact = x.double() + y.double() * (gate.double() if has_gate else 1)
    out, scale = outputs(shape, dtype)
    ops_torch.residual_norm(x, y, gate, mul, add, EPS, out, scale)
    check(x, None, exact)
    check(out, scale, layer_norm(x, mul, add))


def test_gelu(shape, dtype):
    h = (normal(*shape) * 2).to(BF16)
    out, scale = outputs(shape, dtype)
    ops_torch.gelu(h, out, scale)
    check(out, scale, tanh_gelu(h))


def test_add_product_adds_to_rows_of_a_wider_tensor():
    x, weight, out = normal(7, 40, seed=1), normal(24, 16, seed=2), normal(7, 30, seed=3)
    before = out.clone()
    ops_torch.add_product(x[:, 8:24], weight, out[:, :24])
    assert torch.allclose(out[:, :24], before[:, :24] + x[:, 8:24] @ weight.t(), atol=1e-5)
    assert torch.equal(out[:, 24:], before[:, 24:])


def test_gelu_in_place():
    h = normal(9, 40).to(BF16)
    exact = tanh_gelu(h)
    ops_torch.gelu(h, h, None)
    check(h, None, exact)


def test_residual_norm_may_write_where_the_change_is(shape):
    x, y, mul, add = (normal(*shape, seed=seed) for seed in range(4))
    x, y, gate = x.to(BF16), y.to(BF16), normal(shape[1], seed=5)
    out, separate = torch.empty_like(y), x.clone()
    ops_torch.residual_norm(separate, y, gate, mul[0], add[0], EPS, out, None)
    ops_torch.residual_norm(x, y, gate, mul[0], add[0], EPS, y, None)
    assert torch.equal(x, separate) and torch.equal(y, out)


@pytest.mark.parametrize("heads", [1, 2, 3])
@pytest.mark.parametrize("is_rotated", [True, False], ids=["rotary", "plain"])
def test_rms_rotary_is_a_complex_product(heads, is_rotated):
    x = normal(11, heads * 64).to(BF16)
    weight = normal(heads * 64, seed=1)
    angles = normal(11, 32, seed=2) * 3
    exact = x.double() / (x.double().square().mean(1, keepdim=True) + EPS).sqrt() * weight.double()
    if is_rotated:
        pairs = torch.view_as_complex(exact.view(11, heads, 32, 2))
        exact = torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles).to(torch.complex128)[:, None])
    ops_torch.rms_rotary(x, weight, EPS, heads, Rotary(angles.cos(), angles.sin()) if is_rotated else None)
    torch.testing.assert_close(x.double(), exact.reshape(x.shape), rtol=HALF_STEP[BF16] * 1.001, atol=1e-5)


def test_row_factors_are_those_of_rms_rotary(shape):
    """Of rows that lie apart, of very different sizes, one of zeros."""
    x = torch.zeros(shape[0], 3 * shape[1], dtype=BF16)[:, shape[1] : 2 * shape[1]]
    x.copy_(normal(*shape) * 10.0 ** torch.arange(-3, shape[0] - 3).clamp(max=3)[:, None])
    x[-1:] = 0
    out = torch.empty(shape[0])
    ops_torch.row_factors(x, EPS, out)
    torch.testing.assert_close(out.double(), (x.double().square().mean(1) + EPS) ** -0.5, rtol=1e-6, atol=0)
    exact = x.double() * out.double()[:, None]
    ops_torch.rms_rotary(x, torch.ones(shape[1]), EPS, 1, None)
    check(x, None, exact)


@pytest.mark.parametrize("keys", [1, 11, 64])
def test_cross_attention_counts_the_last_key_as_often_as_it_stands_for(keys):
    q, k, v = (normal(rows, 2, 16, seed=rows).to(BF16) for rows in (9, keys, keys + 100))
    v = v[:keys]
    repeats, factors = 65 - keys, normal(9)
    before, out = q.clone(), torch.empty_like(q)
    ops_torch.cross_attention(q, factors, k, v, repeats, out)
    assert torch.equal(q, before)
    index = list(range(keys)) + [keys - 1] * (repeats - 1)
    scores = torch.einsum("nhd,khd->hnk", q.double() * factors.double()[:, None, None], k[index].double()) / 4
    exact = torch.einsum("hnk,khd->nhd", scores.softmax(-1), v[index].double())
    torch.testing.assert_close(out.double(), exact, rtol=0.02, atol=0.02)


def test_more_keys_are_attended_to_by_themselves():
    q, k, v = (normal(rows, 2, 16, seed=rows).to(BF16) for rows in (9, 21, 22))
    v, factors, before = v[:21], normal(9), normal(9, 2, 16, seed=3).to(BF16)
    out = before.clone()
    ops_torch.add_cross_attention(q, factors, k, v, out)
    scores = torch.einsum("nhd,khd->hnk", q.double() * factors.double()[:, None, None], k.double()) / 4
    exact = before.double() + torch.einsum("hnk,khd->nhd", scores.softmax(-1), v.double())
    torch.testing.assert_close(out.double(), exact, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("keys", [1, 11, 64])
@pytest.mark.parametrize("padding", [0, 3])
def test_cross_weights_are_those_of_a_softmax_over_all_repeats(keys, padding):
    q, k = (normal(rows, 2, 16, seed=rows).to(BF16) for rows in (9, keys))
    repeats, factors = 513 - keys, normal(9)
    before, out = q.clone(), torch.full((9, 2, keys + padding), torch.nan, dtype=BF16)
    ops_torch.cross_weights(q, factors, k, repeats, out)
    assert torch.equal(q, before)
    index = list(range(keys)) + [keys - 1] * (repeats - 1)
    scores = torch.einsum("nhd,khd->nhk", q.double() * factors.double()[:, None, None], k[index].double()) / 4
    exact = scores.softmax(-1)
    exact = torch.cat([exact[..., : keys - 1], exact[..., keys - 1 :].sum(-1, keepdim=True)], -1)
    torch.testing.assert_close(out[..., :keys].double(), exact, rtol=HALF_STEP[BF16] * 1.01, atol=1e-7)
    assert not out[..., keys:].any()


def test_rows_may_lie_apart(dtype):
    """Operands are parts of a larger region."""
    region = normal(3, 40, 192).to(BF16)
    x, y = region[0, :, :64], region[1, :, 64:128]
    gate, mul, add = normal(3, 64, seed=1)
    dense_x, dense_y = x.clone(), y.clone()
    wide = torch.zeros(40, 192, dtype=dtype)
    out, scale = wide[:, 128:], None if dtype == BF16 else torch.empty(40, 1)
    ops_torch.residual_norm(x, y, gate, mul, add, EPS, out, scale)
    dense_out, dense_scale = outputs((40, 64), dtype)
    ops_torch.residual_norm(dense_x, dense_y, gate, mul, add, EPS, dense_out, dense_scale)
    assert torch.equal(x, dense_x)
    assert torch.equal(out.float(), dense_out.float())
    assert not wide[:, :128].float().any()


def test_splitting_rows_changes_nothing(dtype, monkeypatch):
    x = normal(100, 64).to(BF16)
    mul, add = normal(2, 64, seed=1)
    results = []
    for rows in (100, 7):
        monkeypatch.setattr(quantize.row_chunks, "__defaults__", (rows * 64,))
        out, scale = outputs(x.shape, dtype)
        ops_torch.norm(x, mul, add, EPS, out, scale)
        results.append(out.float())
    assert torch.equal(*results)


def test_splitting_the_rows_of_a_cross_attention_changes_nothing(monkeypatch):
    q, k, v, factors = normal(100, 2, 32).to(BF16), *normal(2, 20, 2, 32, seed=1).to(BF16), normal(100, seed=2)
    results = []
    for rows in (100, 7):
        monkeypatch.setattr(quantize.row_chunks, "__defaults__", (rows * 64,))
        out = torch.empty_like(q)
        ops_torch.cross_attention(q, factors, k, v, 3, out)
        weights = q.new_empty(100, 2, 24)
        ops_torch.cross_weights(q, factors, k, 3, weights)
        results.append(torch.cat([out, weights], -1).double())
    torch.testing.assert_close(*results, rtol=2 * HALF_STEP[BF16], atol=1e-4)


# Linear layers


BACKENDS = [("scaled_mm", FP8), ("int_mm", INT8), ("dequantize", FP8), ("dequantize", INT8), ("bf16", BF16)]


@pytest.mark.parametrize("rows", [1, 5, 40, 333])
@pytest.mark.parametrize(("backend", "dtype"), BACKENDS, ids=str)
def test_linear_multiplies_what_it_is_given(backend, dtype, rows):
    """The reference is the product of the dequantized operands: only the sum and its rounding differ."""
    if backend == "scaled_mm":
        skip_without_scaled_mm()
    x = normal(rows, 64, seed=3).to(BF16)
    weight = (normal(48, 64, seed=1) * 20).round().to(dtype)
    weights = Linear(weight, None if dtype == BF16 else torch.rand(48, 1) + 0.5, normal(48, seed=2).to(BF16))
    scale, wide = None, x.double()
    if backend in matmul.ACTIVATION_DTYPES:
        quantized, scale = outputs(x.shape, dtype)
        ops_torch.quantize(x, quantized, scale)
        x, wide = quantized, quantized.double() * scale.double()
    exact_weight = weight.double() if dtype == BF16 else weight.double() * weights.weight_scale.double()
    exact = wide @ exact_weight.T + weights.bias.double()
    region = torch.zeros(rows + 2, 48, dtype=BF16)
    linear(x, scale, weights, region[1:-1])
    assert relative_error(region[1:-1], exact) < 0.004
    assert not region[:: rows + 1].any()


def test_splitting_the_product_changes_nothing(monkeypatch):
    x, scale = outputs((100, 64), INT8)
    ops_torch.quantize(normal(100, 64).to(BF16), x, scale)
    weights = Linear((normal(48, 64) * 20).to(INT8), torch.rand(48, 1), normal(48).to(BF16))
    whole, parts = torch.empty(2, 100, 48, dtype=BF16)
    linear(x, scale, weights, whole)
    monkeypatch.setattr(matmul, "_MAX_PRODUCT", 33 * 48)
    linear(x, scale, weights, parts)
    assert torch.equal(whole, parts)


# Choice


@pytest.fixture
def pretend(monkeypatch):
    """Return a function that makes the machine be what the test says."""
    trials.forget_trials()
    yield lambda machine: pretend_machine(monkeypatch, machine)
    trials.forget_trials()


TRITON = {"triton": "3.6.0"}
SAGE = TRITON | {"sageattention": "2.2.0"}


def wanted(**settings):
    return Wanted(precision="bf16", dim=256, ffn_dim=512, **settings)


def test_auto_without_a_gpu_is_plain_torch_and_says_why(caplog):
    with caplog.at_level(logging.INFO):
        chosen = trials.confirm(wanted(), CPU)
    assert chosen.blocks.name == "torch" and build_kernels(chosen).ops is ops_torch
    (message,) = [message for message in caplog.messages if "blocks" in message]
    assert message == "LightX2V: blocks: torch (not triton: there is no CUDA device)."


@pytest.mark.parametrize(("precision", "number"), [("bf16", 2), ("fp8", 4)])
def test_every_choice_is_logged_once(precision, number, caplog):
    with caplog.at_level(logging.INFO):
        chosen = trials.confirm(Wanted(precision=precision, dim=256, ffn_dim=512), CPU)
    assert caplog.messages == [f"LightX2V: {reason}." for reason in chosen.reasons]
    assert len(set(caplog.messages)) == number


def test_off_is_plain_torch(pretend):
    pretend(Machine(capability=(9, 0), packages=TRITON))
    chosen = trials.confirm(wanted(fused_kernels="off", attention="sdpa"), CPU)
    assert (chosen.blocks.name, chosen.is_fused) == ("torch", False)
    assert build_kernels(chosen).ops is ops_torch


def test_on_without_a_gpu_is_refused():
    with pytest.raises(UnsupportedHardwareError, match=r"compile is 'on'.*there is no CUDA device.*'auto'"):
        trials.confirm(wanted(fused_kernels="on"), CPU)


def test_on_without_triton_says_how_to_install_it(pretend):
    pretend(Machine(capability=(9, 0)))
    with pytest.raises(MissingDependencyError, match=r"package triton is not installed.*pip install triton"):
        trials.confirm(wanted(fused_kernels="on"), CPU)


class Forgetful:
    """Plain torch, but for one operation."""

    def __init__(self, **operation):
        vars(self).update(operation)

    def __getattr__(self, name):
        return getattr(ops_torch, name)


FORGETFUL = {
    "gate": Forgetful(residual=lambda x, y, gate: ops_torch.residual(x, y, None)),
    "rows": Forgetful(row_factors=lambda x, eps, out: out.fill_(x.float().square().mean() ** -0.5)),
    "factors": Forgetful(
        cross_attention=lambda q, factors, *rest: ops_torch.cross_attention(q, torch.ones_like(factors), *rest)
    ),
    "repeats": Forgetful(cross_weights=lambda *given: ops_torch.cross_weights(*given[:3], 1, given[4])),
    "padding": Forgetful(
        cross_weights=lambda *given: ops_torch.cross_weights(*given[:4], given[4][..., : len(given[2])])
    ),
}


def without_compiler():
    raise RuntimeError("Failed to find C compiler.")


@pytest.mark.parametrize(
    ("load", "reason"),
    [
        (lambda: ops_torch, None),
        (lambda: FORGETFUL["gate"], "off the plain torch result"),
        (lambda: FORGETFUL["rows"], "off the plain torch result"),
        (lambda: FORGETFUL["factors"], "off the plain torch result"),
        (lambda: FORGETFUL["repeats"], "off the plain torch result"),
        (lambda: FORGETFUL["padding"], "off the plain torch result"),
        (without_compiler, "its trial run failed (RuntimeError: Failed to find C compiler.)"),
    ],
    ids=["agrees", *FORGETFUL, "fails"],
)
def test_the_kernels_are_taken_only_if_a_trial_agrees(load, reason, pretend, monkeypatch):
    pretend(Machine(capability=(9, 0), packages=TRITON))
    monkeypatch.setattr(implementations, "load_ops", lambda name: load() if name == "triton" else ops_torch)
    chosen = trials.confirm(wanted(attention="sdpa"), CPU)
    assert chosen.blocks.name == ("torch" if reason else "triton")
    if reason:
        assert reason in chosen.blocks.passed_over["triton"]
        with pytest.raises(UnsupportedHardwareError) as refusal:
            trials.confirm(wanted(attention="sdpa", fused_kernels="on"), CPU)
        assert reason in str(refusal.value)
    else:
        assert trials.confirm(wanted(attention="sdpa", fused_kernels="on"), CPU).is_fused


class WithoutExtension(SelfAttention):
    def prepare(self, *_):
        raise ImportError("cannot import name '_qattn_sm90'")


@pytest.fixture
def sage(pretend, monkeypatch):
    """A card for SageAttention in place, with plain torch for what is compiled."""
    pretend(Machine(capability=(9, 0), packages=SAGE))
    monkeypatch.setattr(implementations, "load_ops", lambda name: ops_torch)
    monkeypatch.setitem(attention.KERNELS, "sage_attn2", attention.sdpa)


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        (Normed(ops_torch, attention.sdpa), None),
        (WithoutExtension(), "its trial run failed (ImportError: cannot import name '_qattn_sm90')"),
        (Normed(ops_torch, lambda q, k, v: attention.sdpa(q, k.flip(1), v)), "off the plain torch result"),
    ],
    ids=["agrees", "fails", "forgetful"],
)
def test_sage_prepares_its_inputs_itself_where_our_preparation_fails(kernel, reason, sage, monkeypatch, caplog):
    monkeypatch.setitem(attention.IN_PLACE, "sage_attn2", kernel)
    assert choose(trials.find_machine(CPU), wanted()).is_in_place
    with caplog.at_level(logging.INFO):
        chosen = trials.confirm(wanted(), CPU)
    assert chosen.attention.name == "sage_attn2" and chosen.is_in_place == (reason is None)
    in_place = build_kernels(chosen).attention_in_place
    assert in_place is None if reason else in_place.inner is kernel
    assert choose(trials.find_machine(CPU), wanted()) == chosen
    (message,) = [message for message in caplog.messages if "in place" in message]
    if reason:
        assert message.startswith("LightX2V: attention in place: not sage_attn2: ") and reason in message
    else:
        assert message == "LightX2V: sage_attn2 runs in place."


@pytest.mark.parametrize(
    ("capability", "packages", "names"),
    [
        ((9, 0), SAGE, {"sage_attn2", "triton", "triton_int8"}),
        ((8, 9), SAGE, {"triton", "triton_int8"}),
        ((12, 0), SAGE, {"triton", "triton_int8"}),
        ((10, 0), SAGE, set()),
        ((9, 0), {"sageattention": "2.2.0"}, set()),
        ((8, 0), SAGE, {"triton_int8"}),
        (None, {}, set()),
    ],
)
def test_what_may_run_in_place(capability, packages, names):
    machine, found = Machine(capability=capability, packages=packages), set()
    for name in attention.KERNELS:
        try:
            chosen = choose(machine, wanted(attention=name))
        except LightX2VError:
            continue  # does not run at all
        found |= {name} if chosen.is_in_place else set()
    assert found == names


@pytest.mark.parametrize(("compile", "is_in_place"), [("auto", True), ("off", False)])
def test_attention_is_in_place_beside_fused_operations_only(sage, monkeypatch, compile, is_in_place):
    monkeypatch.setitem(attention.IN_PLACE, "sage_attn2", Normed(ops_torch, attention.sdpa))
    facts = trials.confirm(wanted(fused_kernels=compile), CPU).as_facts()
    assert facts["attention"] == "sage_attn2"
    assert facts["attention_in_place"] == is_in_place
