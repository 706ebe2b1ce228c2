"""FP8 weights to INT8 in plain torch: in place, and as accurate as its description says."""

import pytest
import torch
from lightx2v_pack.engine.kernels.quantize import quantize
from lightx2v_pack.engine.kernels.requantize import requantization_error, requantize


def in_fp8(wide):
    codes, scale = torch.empty_like(wide, dtype=torch.float8_e4m3fn), torch.empty(len(wide), 1)
    quantize(wide, codes, scale)
    return codes, scale


def error(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


def test_it_stays_in_the_memory_of_the_weight():
    weight, scale = in_fp8(torch.randn(4, 32))
    before = scale.data_ptr()
    codes = requantize(weight, scale)
    assert codes.data_ptr() == weight.data_ptr() and scale.data_ptr() == before
    assert codes.abs().amax(1).tolist() == [127] * 4


@pytest.mark.parametrize("inner", [5120, 13824])
def test_normal_weights_are_little_further_off_than_in_fp8(inner):
    wide = torch.randn(32, inner, generator=torch.Generator().manual_seed(0))
    weight, scale = in_fp8(wide)
    before = error(weight.float() * scale, wide)
    moved = requantization_error(weight)
    after = error(requantize(weight, scale).float() * scale, wide)
    assert 0.025 < before < 0.027 and after < 1.1 * before
    assert ((moved > 0.007) & (moved < 0.011)).all()


def test_rows_with_outliers_say_so():
    wide = torch.randn(8, 5120, generator=torch.Generator().manual_seed(0))
    wide[0, 0] = 40
    moved = requantization_error(in_fp8(wide)[0])
    assert moved[0] > 0.06 and (moved[1:] < 0.011).all()


def test_the_error_is_measured_on_a_copy():
    weight, _ = in_fp8(torch.randn(4, 32))
    before = weight.clone()
    requantization_error(weight)
    assert torch.equal(weight.view(torch.int8), before.view(torch.int8))
