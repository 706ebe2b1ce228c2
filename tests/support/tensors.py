"""Random tensors by seed, how far two tensors are apart, and weights in 8 bits."""

import pytest
import torch
from lightx2v_pack.engine.backends import trial_inputs

LARGEST = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}


def normal(*shape, seed=0):
    """Return normal values in float32 on the CPU, the same ones for the same seed and shape."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def uneven(*shape, seed=0, has_mean=False):
    """Return values whose size differs from token to token (the first axis), as real ones' does.

    Args: has_mean: whether they have a mean, which differs by column.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.rand(shape[0], *[1] * (len(shape) - 1), generator=generator) * 3
    values = torch.randn(shape, generator=generator) * sizes
    return values + torch.randn(shape[1:], generator=generator) if has_mean else values


def relative_error(found, reference):
    """Return the relative L2 difference of two tensors of one shape."""
    assert found.shape == reference.shape
    return float((found.double() - reference.double()).norm() / reference.double().norm())


def quantized(weight, dtype):
    """Return (codes of `dtype`, scale [rows, 1] in float32): each row's largest value is the largest of the dtype."""
    scale = weight.abs().amax(dim=1, keepdim=True) / LARGEST[dtype]
    values = weight / scale
    return (values.round() if dtype == torch.int8 else values).to(dtype), scale


def skip_without_scaled_mm():
    """Skip the test where this torch multiplies no FP8 matrices with a scale a row on the CPU."""
    try:
        trial_inputs.multiply("fp8", "scaled_mm", torch.device("cpu"))
    except RuntimeError as error:
        pytest.skip(f"this torch has no row-wise _scaled_mm on the CPU: {error}")
