"""Attention back ends of the machine that the tests run on."""

import pytest
from lightx2v_pack.engine.errors import MissingDependencyError, UnsupportedHardwareError
from lightx2v_pack.engine.kernels.attention import select_attention


def attention_or_skip(name, device):
    """Return a back end's function, or skip the test where it does not run."""
    try:
        return select_attention(name, device)[1]
    except (MissingDependencyError, UnsupportedHardwareError) as error:
        pytest.skip(str(error))
