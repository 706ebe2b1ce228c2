"""Where Triton's kernels run in this process: on a GPU, or with TRITON_INTERPRET=1 on the CPU."""

import os

import pytest
import torch

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def triton_device() -> torch.device:
    """Return the device, or skip the module that is being imported."""
    if not IS_INTERPRETED and not torch.cuda.is_available():
        pytest.skip("no CUDA device", allow_module_level=True)
    pytest.importorskip("triton", reason="Triton is not installed")
    return torch.device("cpu" if IS_INTERPRETED else "cuda")
