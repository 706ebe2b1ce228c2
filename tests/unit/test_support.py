"""The tables of back ends: what a machine can run, what `auto` takes, and what a refusal says."""

import pytest
from lightx2v_pack.engine.backends.choose import attention_rows
from lightx2v_pack.engine.backends.table import (
    ATTENTION_BACKENDS,
    ATTENTION_CHOICES,
    BLOCK_BACKENDS,
    MATMUL_BACKENDS,
    Machine,
    choose_backend,
    why_not,
)
from lightx2v_pack.engine.errors import MissingDependencyError, NoCapableBackendError, UnsupportedHardwareError

SAGE2 = {"sageattention": "2.2.0"}
SAGE1 = {"sageattention": "1.0.6"}
TRITON = {"triton": "3.6.0"}
FLASH = {"flash_attn": "2.8.3", "flash_attn_interface": ""}


def choose_attention(machine, requested="auto", rows=ATTENTION_BACKENDS):
    return choose_backend("attention", rows, requested, machine, dtype="bf16")


def rows_of(*names):
    return [row for row in ATTENTION_BACKENDS if row.name in names]


@pytest.mark.parametrize(
    ("capability", "packages", "expected"),
    [
        (None, {}, "sdpa"),
        ((7, 5), SAGE2 | FLASH, "sdpa"),
        ((8, 6), {}, "sdpa_cudnn"),
        ((8, 6), FLASH, "flash_attn2"),
        ((8, 6), SAGE1, "sage_triton"),
        ((8, 6), SAGE2, "sage_attn2"),
        ((8, 9), SAGE2 | FLASH, "sage_attn2"),
        ((8, 0), TRITON, "triton_int8"),
        ((8, 6), TRITON, "triton_int8"),
        ((8, 6), TRITON | SAGE2 | FLASH, "triton_int8"),
        ((8, 6), {"triton": "3.1.0"}, "sdpa_cudnn"),
        ((8, 6), {"triton": "3.1.0"} | SAGE1 | FLASH, "sage_triton"),
        ((8, 9), TRITON, "triton_int8"),
        ((8, 9), SAGE1, "sage_triton"),
        ((8, 9), TRITON | SAGE2 | FLASH, "triton_int8"),
        ((8, 9), {"triton": "3.1.0"}, "triton"),
        ((8, 9), {"triton": "3.1.0"} | SAGE2, "sage_attn2"),
        ((9, 0), {}, "sdpa_cudnn"),
        ((9, 0), {"triton": "2.3.1"}, "sdpa_cudnn"),
        ((9, 0), TRITON, "triton"),
        ((9, 0), TRITON | SAGE1, "triton"),
        ((9, 0), TRITON | FLASH, "flash_attn3"),
        ((9, 0), TRITON | SAGE2, "sage_attn2"),
        ((10, 0), TRITON, "sdpa_cudnn"),
        ((12, 0), TRITON, "triton_int8"),
        ((12, 0), TRITON | SAGE2, "triton_int8"),
        ((12, 1), TRITON, "triton_int8"),
        ((12, 0), {"triton": "3.2.0"}, "sdpa_cudnn"),
        ((9, 0), SAGE1, "sdpa_cudnn"),
        ((9, 0), FLASH, "flash_attn3"),
        ((9, 0), SAGE2 | FLASH, "sage_attn2"),
        ((10, 0), FLASH, "sdpa_cudnn"),
        ((12, 0), SAGE2, "sage_attn2"),
        ((12, 0), {"sageattention": "2.2.0+cu128torch2.9"}, "sage_attn2"),
    ],
)
def test_auto_takes_the_fastest_attention(capability, packages, expected):
    assert choose_attention(Machine(capability=capability, packages=packages)).name == expected


def test_auto_says_why_not_the_better_ones_and_only_those():
    choice = choose_attention(Machine(capability=(9, 0), packages=SAGE1 | TRITON))
    assert set(choice.passed_over) == {"sage_attn2", "flash_attn3"}
    assert str(choice) == (
        "attention: triton (not sage_attn2: needs sageattention 2 or newer; found 1.0.6; "
        "not flash_attn3: package flash_attn_interface is not installed)"
    )


@pytest.mark.parametrize(
    ("requested", "is_fused", "expected"),
    [("auto", True, "triton"), ("auto", False, "sdpa_cudnn"), ("triton", True, "triton"), ("triton", False, "triton")],
)
def test_the_packs_own_attention_comes_with_its_other_kernels_or_by_name(requested, is_fused, expected):
    machine = Machine(capability=(9, 0), packages=TRITON)
    assert choose_attention(machine, requested, attention_rows(requested, is_fused=is_fused)).name == expected


def test_names_with_the_same_reason_are_joined():
    assert str(choose_attention(Machine())) == (
        "attention: sdpa (not sage_attn2, flash_attn3, triton, sdpa_cudnn, sage_triton, flash_attn2: "
        "there is no CUDA device)"
    )


@pytest.mark.parametrize(
    ("precision", "capability", "expected"),
    [
        ("fp8", None, "dequantize"),
        ("fp8", (8, 6), "int_mm"),
        ("fp8", (8, 9), "scaled_mm"),
        ("fp8", (12, 0), "scaled_mm"),
        ("int8", None, "dequantize"),
        ("int8", (7, 0), "dequantize"),
        ("int8", (8, 6), "int_mm"),
    ],
)
def test_auto_takes_the_fastest_matmul(precision, capability, expected):
    machine = Machine(capability=capability)
    assert choose_backend("matmul", MATMUL_BACKENDS, "auto", machine, dtype=precision).name == expected


def test_a_failed_trial_run_is_a_reason():
    (row,) = rows_of("sage_attn2")
    failed = {("attention", row): "its trial run failed (X: no image)"}
    machine = Machine(capability=(9, 0), packages=SAGE2, failed_trials=failed)
    choice = choose_attention(machine)
    assert choice.name == "sdpa_cudnn"
    assert "not sage_attn2: its trial run failed (X: no image)" in str(choice)
    with pytest.raises(UnsupportedHardwareError, match="no image"):
        choose_attention(machine, "sage_attn2")
    assert choose_backend("another task", ATTENTION_BACKENDS, "auto", machine, dtype="bf16").name == "sage_attn2"


def test_a_package_that_does_not_import_says_how_it_failed():
    machine = Machine(capability=(8, 6), problems={"sageattention": "sageattention does not import: no libcudart.so"})
    with pytest.raises(MissingDependencyError, match=r"no libcudart\.so.*pip install .*SageAttention"):
        choose_attention(machine, "sage_attn2")


@pytest.mark.parametrize(
    ("requested", "machine", "error", "message"),
    [
        ("sage_attn2", Machine(capability=(9, 0)), MissingDependencyError, "sageattention is not installed.*pip inst"),
        ("sage_attn2", Machine(capability=(9, 0), packages=SAGE1), MissingDependencyError, r"found 1\.0\.6.*pip inst"),
        ("flash_attn2", Machine(capability=(8, 0)), MissingDependencyError, "flash_attn is not installed.*flash-attn"),
        ("sage_attn2", Machine(packages=SAGE2), UnsupportedHardwareError, "no CUDA device.*Choose 'auto'"),
        (
            "flash_attn3",
            Machine(capability=(12, 0), packages=FLASH),
            UnsupportedHardwareError,
            r"needs compute capability 9\.0; this GPU has 12\.0",
        ),
        (
            "sdpa_cudnn",
            Machine(capability=(7, 5)),
            UnsupportedHardwareError,
            r"needs compute capability 8\.0 or higher; this GPU has 7\.5",
        ),
        ("xformers", Machine(), ValueError, "'xformers'; expected one of: auto, sage_attn2, flash_attn3"),
    ],
)
def test_a_named_back_end_is_refused_with_the_remedy(requested, machine, error, message):
    with pytest.raises(error, match=message):
        choose_attention(machine, requested)


def test_a_named_back_end_that_runs_is_taken():
    choice = choose_attention(Machine(capability=(9, 0), packages=SAGE2), "sdpa")
    assert (choice.name, choice.passed_over) == ("sdpa", {})


def test_the_choice_is_among_the_rows_that_are_given():
    machine = Machine(capability=(9, 0), packages=SAGE2)
    assert choose_attention(machine, rows=rows_of("sdpa", "flash_attn2")).name == "sdpa"
    with pytest.raises(ValueError, match=r"attention is 'sage_attn2'; expected one of: auto, sdpa\."):
        choose_attention(machine, "sage_attn2", rows_of("sdpa"))


def test_without_any_capable_back_end_every_reason_is_listed():
    with pytest.raises(NoCapableBackendError, match=r"sage_attn2: there is no CUDA device; flash_attn2: there is no"):
        choose_attention(Machine(), rows=rows_of("sage_attn2", "flash_attn2"))


def test_dtypes_are_a_reason():
    cudnn = next(backend for backend in ATTENTION_BACKENDS if backend.name == "sdpa_cudnn")
    assert why_not(cudnn, Machine(capability=(9, 0)), "fp32") == "computes on bf16, fp16, not on fp32"


@pytest.mark.parametrize(
    "table", [ATTENTION_BACKENDS, MATMUL_BACKENDS, BLOCK_BACKENDS], ids=["attention", "matmul", "blocks"]
)
def test_rows_are_well_formed(table):
    assert len({backend.name for backend in table}) == len(table)
    for backend in table:
        assert bool(backend.package) == bool(backend.install), f"{backend.name}: a package comes with its install line"
        rivals = [other for other in table if other is not backend and other.dtypes & backend.dtypes]
        assert backend.rank not in {rival.rank for rival in rivals}, f"{backend.name}: auto would depend on the order"


def test_the_attention_widget_offers_every_row():
    assert list(ATTENTION_CHOICES) == ["auto", *(backend.name for backend in ATTENTION_BACKENDS)]
