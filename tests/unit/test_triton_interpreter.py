"""The Triton kernels without a GPU: their tests run in Triton's interpreter, in a process of its own."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", ["attention_inputs", "block_ops", "fp8", "int8_attention", "requantize"])
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_the_kernels_agree_with_plain_torch_in_the_interpreter(name):
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-c",
            TESTS / "pytest.ini",
            TESTS / "gpu" / f"test_{name}_gpu.py",
        ],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    if run.returncode == 5:  # everything is skipped
        pytest.skip(run.stdout.strip().splitlines()[-1])
    assert run.returncode == 0, run.stdout + run.stderr
