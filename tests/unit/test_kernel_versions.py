"""Where kernels are not offered: versions of Triton and torch, cards and systems."""

import pytest
from lightx2v_pack.engine.backends.versions import KERNELS, REFUSALS, find_refusal, why_refused

NEW = {"torch": "2.11.0+cu130", "triton": "3.6.0"}
TRITON = [name for name, kernel in KERNELS.items() if kernel.needs_triton]


def refused(kernel, capability, system="linux", **versions):
    return why_refused(kernel, capability, {**NEW, **versions}, system)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("capability", [(8, 9), (9, 0), (12, 0)])
def test_new_versions_on_linux_have_everything_on_cards_with_fp8(kernel, capability):
    assert refused(kernel, capability) is None


@pytest.mark.parametrize("capability", [(8, 0), (8, 6)])
def test_cards_without_fp8_have_the_integer_kernels(capability):
    offered = {kernel for kernel in KERNELS if refused(kernel, capability) is None}
    assert offered == {"block_ops", "vae_ops", "int8_matmul", "requantize", "attention_int8", "sdpa_cudnn"}


def test_older_cards_have_none_and_are_told_what_is_needed():
    assert all(refused(kernel, (7, 5)) for kernel in KERNELS)
    assert refused("attention_int8", (7, 5)) == "needs compute capability 8.0; this GPU has 7.5"


@pytest.mark.parametrize("kernel", TRITON)
@pytest.mark.parametrize("version", ["3.1.0", "3.2.0"])
def test_no_kernel_is_compiled_where_it_ends_the_process(kernel, version):
    assert version in refused(kernel, (12, 0), triton=version)
    assert "ends the process" in refused(kernel, (12, 1), triton=version)
    assert refused("block_ops", (8, 9), triton=version) is None


@pytest.mark.parametrize("kernel", ["attention_fp8", "fp8_matmul"])
def test_fp8_that_would_be_widened_is_not_offered(kernel):
    assert "as FP16" in refused(kernel, (12, 0), triton="3.4.0")
    assert refused(kernel, (12, 0), triton="3.5.1") is None
    assert refused(kernel, (8, 9), triton="3.4.0") is None


@pytest.mark.parametrize(
    ("kernel", "capability", "first"), [("attention_int8", (8, 6), "3.2"), ("attention_fp8", (9, 0), "3.4")]
)
def test_an_attention_whose_registers_lie_in_memory_is_not_offered(kernel, capability, first):
    major, minor = first.split(".")
    assert "registers" in refused(kernel, capability, triton=f"{major}.{int(minor) - 1}.1")
    assert refused(kernel, capability, triton=f"{first}.0") is None
    assert refused(kernel, (8, 9), triton="3.2.0") is None


@pytest.mark.parametrize("kernel", ["attention_fp8", "attention_int8"])
@pytest.mark.parametrize("capability", [(10, 0), (10, 3), (11, 0)])
def test_an_attention_that_was_never_compiled_for_a_card_is_not_offered_there(kernel, capability):
    assert "not compiled" in refused(kernel, capability)
    assert "not compiled" in find_refusal(kernel, capability, {}, "linux")


def test_windows_has_the_form_with_one_scale_alone():
    assert "Windows" in refused("scaled_mm", (8, 9), "win32", torch="2.13.0")
    assert refused("scaled_mm_tensor", (8, 9), "win32", torch="2.4.0") is None
    assert "before 2.4" in refused("scaled_mm_tensor", (8, 9), "win32", torch="2.3.1")
    assert refused("scaled_mm_tensor", (8, 9), torch="2.3.1") is None


@pytest.mark.parametrize(("capability", "first"), [((8, 9), "2.7.0"), ((12, 0), "2.8.0"), ((9, 0), "2.5.1")])
def test_a_scale_per_row_came_later_to_some_cards(capability, first):
    assert refused("scaled_mm", capability, torch=first) is None
    major, minor, _ = (int(part) for part in first.split("."))
    if capability != (9, 0):
        assert refused("scaled_mm", capability, torch=f"{major}.{minor - 1}.1") is not None


def test_without_triton_what_needs_it_says_so():
    versions = {"torch": "2.11.0"}
    assert why_refused("requantize", (8, 6), versions, "linux") == "package triton is not installed"
    assert why_refused("scaled_mm_tensor", (8, 9), versions, "win32") is None


def test_versions_are_compared_as_numbers():
    assert refused("attention_fp8", (12, 0), triton="3.10.0") is None
    assert refused("scaled_mm", (8, 9), torch="2.10.0+cu128") is None


def test_rows_name_kernels_that_exist():
    assert all(row.kernels <= set(KERNELS) for row in REFUSALS)
