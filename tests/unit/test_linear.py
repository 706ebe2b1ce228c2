"""Linear layers with 8-bit weights, every back end against float64."""

import pytest
import torch
from lightx2v_pack.engine.backends.choose import Wanted, choose
from lightx2v_pack.engine.backends.table import Machine
from lightx2v_pack.engine.kernels import matmul
from lightx2v_pack.engine.kernels.matmul import Linear
from support.tensors import LARGEST, normal, quantized, relative_error, skip_without_scaled_mm

N, K = 96, 128
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


def make_layer(dtype, n=N, k=K):
    return Linear(*quantized(normal(n, k, seed=1), dtype), normal(n, seed=2).bfloat16())


def multiply(backend, layer, x):
    return matmul.MATMULS[backend](x, layer.weight, layer.weight_scale, layer.bias)


def expected(layer, x):
    weight = layer.weight.double() * layer.weight_scale.double()
    return x.double() @ weight.T + layer.bias.double()


@pytest.fixture(params=BACKENDS, ids=lambda param: f"{param[0]}-{param[1]}".replace("torch.", ""))
def backend_and_dtype(request):
    backend, dtype = request.param
    if backend == "scaled_mm":
        skip_without_scaled_mm()
    return backend, dtype


@pytest.mark.parametrize("rows", [1, 5, 40])
def test_agrees_with_float64(backend_and_dtype, rows):
    backend, dtype = backend_and_dtype
    layer = make_layer(dtype)
    x = normal(rows, K, seed=3).bfloat16()
    found = multiply(backend, layer, x)
    assert found.shape == (rows, N)
    assert found.dtype == torch.bfloat16
    assert relative_error(found, expected(layer, x)) < TOLERANCE[backend]


def test_a_large_row_does_not_change_the_others(backend_and_dtype):
    """Activations are quantized per token: one outlier token must not take the others' precision."""
    backend, dtype = backend_and_dtype
    layer = make_layer(dtype)
    x = normal(40, K, seed=3).bfloat16()
    alone = multiply(backend, layer, x)
    x[7] *= 1000
    found = multiply(backend, layer, x)
    others = [row for row in range(40) if row != 7]
    assert torch.equal(found[others], alone[others])
    assert relative_error(found[7], expected(layer, x)[7]) < TOLERANCE[backend]


def test_a_row_of_zeros_gives_the_bias(backend_and_dtype):
    backend, dtype = backend_and_dtype
    layer = make_layer(dtype)
    x = normal(20, K).bfloat16()
    x[3] = 0
    assert torch.equal(multiply(backend, layer, x)[3], layer.bias)


def test_splitting_rows_changes_nothing(backend_and_dtype, monkeypatch):
    backend, dtype = backend_and_dtype
    layer = make_layer(dtype)
    x = normal(100, K, seed=3).bfloat16()
    whole = multiply(backend, layer, x)
    monkeypatch.setattr(matmul, "_MAX_PRODUCT", 33 * N)
    assert torch.equal(multiply(backend, layer, x), whole)


def test_dequantize_uses_the_exact_weights():
    """With a unit matrix as input the output is the weight, rounded once to BF16."""
    for dtype in LARGEST:
        layer = make_layer(dtype)
        layer.bias.zero_()
        weight = (layer.weight.double() * layer.weight_scale.double()).float().bfloat16()
        assert torch.equal(multiply("dequantize", layer, torch.eye(K, dtype=torch.bfloat16)), weight.T)


@pytest.mark.parametrize(("precision", "dtype", "n", "k"), [("fp8", torch.float8_e4m3fn, 24, 40),
                                                            ("fp8", torch.float8_e4m3fn, 32, 40),
                                                            ("int8", torch.int8, 20, 36),
                                                            ("int8", torch.int8, 20, 64)])  # fmt: skip
def test_sizes_that_a_kernel_cannot_take_are_dequantized(precision, dtype, n, k):
    machine = Machine(capability=(9, 0), packages={"triton": "3.6.0"})
    backend = choose(machine, Wanted(precision=precision, dim=k, ffn_dim=n)).matmul.name
    assert backend == "dequantize"
    layer = make_layer(dtype, n, k)
    x = normal(4, k).bfloat16()
    assert relative_error(multiply(backend, layer, x), expected(layer, x)) < TOLERANCE["dequantize"]
