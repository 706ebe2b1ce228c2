"""Attention back ends of the machine that the tests run on."""

import pytest
from lightx2v_pack.engine.backends import trials
from lightx2v_pack.engine.backends.choose import Wanted
from lightx2v_pack.engine.backends.table import ATTENTION_BACKENDS
from lightx2v_pack.engine.errors import MissingDependencyError, UnsupportedHardwareError
from lightx2v_pack.engine.kernels.attention import KERNELS

ATTENTIONS = [backend.name for backend in ATTENTION_BACKENDS]


def attention_or_skip(name, device):
    """Return a back end's function, or skip the test where it does not run."""
    try:
        trials.confirm(Wanted(precision="bf16", dim=512, ffn_dim=512, attention=name, fused_kernels="off"), device)
    except (MissingDependencyError, UnsupportedHardwareError) as error:
        pytest.skip(str(error))
    return KERNELS[name]
