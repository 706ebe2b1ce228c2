"""Where Triton's kernels run in this process: on a GPU, or with TRITON_INTERPRET=1 on the CPU."""

import os
from importlib import metadata

import pytest
import torch

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def triton_device(*, has_loops: bool = False) -> torch.device:
    """Return the device, or skip the module that is being imported.

    Args: has_loops: its kernels loop up to what they are called with.
    """
    if not IS_INTERPRETED and not torch.cuda.is_available():
        pytest.skip("no CUDA device", allow_module_level=True)
    pytest.importorskip("triton", reason="Triton is not installed")
    if IS_INTERPRETED and has_loops and _version("triton") < (3, 7) and _version("numpy") >= (2, 4):
        pytest.skip("Triton before 3.7 interprets no loops with NumPy 2.4", allow_module_level=True)
    return torch.device("cpu" if IS_INTERPRETED else "cuda")


def _version(package: str) -> tuple[int, ...]:
    return tuple(int(part) for part in metadata.version(package).split(".")[:2])
