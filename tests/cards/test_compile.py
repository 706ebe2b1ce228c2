"""Every Triton kernel compiled for every card by the Triton that is installed, without a GPU.

`python tools cards compile` judges it: that it compiles, spills little, fits the shared memory, and multiplies FP8 as
FP8.
"""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
if not sys.platform.startswith("linux"):
    pytest.skip("ptxas is run as it comes with Triton for Linux", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[2]
ARCH = pytest.mark.parametrize("arch", [80, 86, 89, 90, 120], ids="sm_{}".format)
# The same in a process whose pack was changed first.
CHANGED = """
import runpy, sys
runpy.run_path({root!r} + "/tools/register_pack.py")
{change}
from lightx2v_pack.tools.cards.compile import compile_all
for found in compile_all([{arch}], only={only!r}, everything=True):
    print(found.problem or "fine")
"""


def python(*words):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TRITON_")}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment, cwd=ROOT)


@functools.cache
def compiled(arch):
    done = python("tools", "cards", "compile", "--json", "--arch", str(arch))
    assert done.returncode in (0, 1), done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def of(arch, kernel):
    found = [each for each in compiled(arch) if each["kernel"] == kernel]
    assert found, f"{kernel} is not compiled for sm_{arch}"
    return found


@ARCH
def test_everything_that_is_offered_is_fit_to_run(arch):
    failed = {f"{each['kernel']}, {each['launch']}": each["problem"] for each in compiled(arch) if each["problem"]}
    assert not failed and len(compiled(arch)) > 30


@ARCH
def test_int8_attention_multiplies_integers_alone(arch):
    for found in of(arch, "_int8_attention_kernel"):
        assert found["tensor_core"] and all(".s32.s8.s8" in name for name in found["tensor_core"])


@pytest.mark.parametrize("arch", [89, 90, 120], ids="sm_{}".format)
def test_fp8_is_rounded_once(arch):
    for kernel in ("_quantize_kernel", "_norm_kernel", "_gelu_kernel", "_values_kernel"):
        conversions = {name for each in of(arch, kernel) for name in each["to_fp8"]}
        assert conversions == {"cvt.rn.satfinite.e4m3x2.f32"}, kernel


def test_a_kernel_that_asks_for_too_much_shared_memory_fails():
    change = """
from lightx2v_pack.engine.kernels import fp8_triton
fp8_triton.CONFIGS = (((8, 9), fp8_triton.Config(128, 128, 128, 8, 5)),)
"""
    done = python("-c", CHANGED.format(root=str(ROOT), change=change, arch=89, only="^fp8_matmul 5120x5120"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("takes 128.0 KiB of shared memory of 99")


def test_a_kernel_with_too_few_registers_fails():
    change = """
from lightx2v_pack.engine.kernels import fp8_triton
fp8_triton.CONFIGS = (((8, 9), fp8_triton.Config(128, 256, 64, 4, 3)),)
"""
    done = python("-c", CHANGED.format(root=str(ROOT), change=change, arch=89, only="^fp8_matmul 5120x5120"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("spills ")


def test_what_a_card_lacks_does_not_compile():
    done = python("tools", "cards", "compile", "--json", "--all", "--arch", "86", "--only", "^quantize float8")
    assert done.returncode == 1
    assert "fp8e4nv not supported" in json.loads(done.stdout)["problem"]


def test_what_the_pack_does_not_offer_is_left_out():
    assert {each["kernel"] for each in compiled(86)}.isdisjoint({"_attention_kernel"})
    done = python("tools", "cards", "compile", "--json", "--arch", "86", "--only", "^fp8_matmul")
    assert done.returncode == 0 and not done.stdout
