"""Linear layers with 8-bit weights, every back end against float64."""

import pytest
import torch
from lightx2v_pack.engine.adapters.kernels import matmul
from lightx2v_pack.engine.adapters.portable.linear import QuantLinear, full_scale

N, K = 96, 128
LARGEST = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}
# Relative L2 error against float64 on random normal data. dequantize: BF16 output rounded twice (2 ** -9 each).
# int_mm: activations in 8 bits of the row's largest value (about 4 standard deviations / 127). scaled_mm:
# activations with 3 mantissa bits, 2 ** -4 / sqrt(3) relative.
TOLERANCE = {"dequantize": 0.004, "int_mm": 0.012, "scaled_mm": 0.035}
BACKENDS = [
    ("dequantize", torch.float8_e4m3fn),
    ("dequantize", torch.int8),
    ("int_mm", torch.int8),
    ("scaled_mm", torch.float8_e4m3fn),
]


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def quantise(weight, dtype):
    scale = weight.abs().amax(dim=1, keepdim=True) / LARGEST[dtype]
    values = weight / scale
    return (values.round() if dtype == torch.int8 else values).to(dtype), scale


def make_layer(dtype, backend, n=N, k=K):
    layer = QuantLinear(k, n, dtype, backend)
    weight, scale = quantise(normal(n, k, seed=1), dtype)
    for name, tensor in {"weight": weight, "weight_scale": scale, "bias": normal(n, seed=2).bfloat16()}.items():
        setattr(layer, name, torch.nn.Parameter(tensor, requires_grad=False))
    return layer


def expected(layer, x):
    weight = layer.weight.double() * layer.weight_scale.double()
    return x.double() @ weight.T + layer.bias.double()


def relative_error(found, reference):
    return float((found.double() - reference).norm() / reference.norm())


@pytest.fixture(params=BACKENDS, ids=lambda param: f"{param[0]}-{param[1]}".replace("torch.", ""))
def backend_and_dtype(request):
    backend, dtype = request.param
    if backend == "scaled_mm":
        try:
            matmul._fp8_trial(matmul.scaled_mm, torch.device("cpu"))
        except RuntimeError as error:
            pytest.skip(f"this torch has no row-wise _scaled_mm on the CPU: {error}")
    return backend, dtype


@pytest.mark.parametrize("shape", [(1, K), (5, K), (40, K), (2, 30, K), (1, 3, 7, K)], ids=str)
def test_agrees_with_float64(backend_and_dtype, shape):
    backend, dtype = backend_and_dtype
    layer = make_layer(dtype, backend)
    x = normal(*shape, seed=3).bfloat16()
    found = layer(x)
    assert found.shape == (*shape[:-1], N)
    assert found.dtype == torch.bfloat16
    assert relative_error(found, expected(layer, x)) < TOLERANCE[backend]


def test_a_large_row_does_not_change_the_others(backend_and_dtype):
    """Activations are quantised per token: one outlier token must not take the others' precision."""
    backend, dtype = backend_and_dtype
    layer = make_layer(dtype, backend)
    x = normal(40, K, seed=3).bfloat16()
    alone = layer(x)
    x[7] *= 1000
    found = layer(x)
    others = [row for row in range(40) if row != 7]
    assert torch.equal(found[others], alone[others])
    assert relative_error(found[7], expected(layer, x)[7]) < TOLERANCE[backend]


def test_a_row_of_zeros_gives_the_bias(backend_and_dtype):
    backend, dtype = backend_and_dtype
    layer = make_layer(dtype, backend)
    x = normal(20, K).bfloat16()
    x[3] = 0
    assert torch.equal(layer(x)[3], layer.bias)


def test_splitting_rows_changes_nothing(backend_and_dtype, monkeypatch):
    backend, dtype = backend_and_dtype
    layer = make_layer(dtype, backend)
    x = normal(100, K, seed=3).bfloat16()
    whole = layer(x)
    monkeypatch.setattr(matmul, "_MAX_ELEMENTS", 33 * K)
    assert torch.equal(layer(x), whole)


def test_dequantize_uses_the_exact_weights():
    """With a unit matrix as input the output is the weight, rounded once to BF16."""
    for dtype in LARGEST:
        layer = make_layer(dtype, "dequantize")
        layer.bias.zero_()
        weight = (layer.weight.double() * layer.weight_scale.double()).float().bfloat16()
        assert torch.equal(layer(torch.eye(K, dtype=torch.bfloat16)), weight.T)


@pytest.mark.parametrize(("backend", "dtype", "n", "k"), [("scaled_mm", torch.float8_e4m3fn, 24, 40),
                                                          ("int_mm", torch.int8, 20, 36)])  # fmt: skip
def test_sizes_that_a_kernel_cannot_take_are_dequantised(backend, dtype, n, k):
    layer = make_layer(dtype, backend, n, k)
    x = normal(4, k).bfloat16()
    assert relative_error(layer(x), expected(layer, x)) < TOLERANCE["dequantize"]


@pytest.mark.parametrize("stored", [torch.tensor(0.25), torch.tensor([0.25]), torch.full((N, 1), 0.25).bfloat16()])
def test_scalar_and_per_channel_scales_become_one_form(stored):
    scale = full_scale(stored, N)
    assert scale.dtype == torch.float32
    assert torch.equal(scale, torch.full((N, 1), 0.25))


def test_the_layer_takes_no_memory_before_its_weights_come():
    layer = QuantLinear(5120, 13824, torch.float8_e4m3fn, "dequantize")
    assert {parameter.device.type for parameter in layer.parameters()} == {"meta"}
    assert not any(parameter.requires_grad for parameter in layer.parameters())
