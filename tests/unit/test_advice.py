"""Which published file is for which card, as doctor and download list say it."""

import pytest
from lightx2v_pack.engine.backends.table import MATMUL_BACKENDS, Machine
from lightx2v_pack.engine.checkpoints.published import PUBLISHED
from lightx2v_pack.engine.panel import doctor
from lightx2v_pack.engine.panel.advice import faster_files, faster_precision, rank_files
from lightx2v_pack.tools import download_cli
from support.pretended_card import pretend_card

TRITON = {"triton": "3.6.0"}


def machine(capability, system="linux", packages=TRITON, **facts):
    return Machine(capability=capability, system=system, torch="2.11.0", packages=packages, **facts)


def names(found):
    return [advice.variant.name for advice in found]


CARDS = [
    ("NVIDIA GeForce RTX 3060", (8, 6), "int8"),
    ("NVIDIA GeForce RTX 3090", (8, 6), "int8"),
    ("NVIDIA A100-SXM4-80GB", (8, 0), "int8"),
    ("NVIDIA GeForce RTX 4060", (8, 9), "int8"),
    ("NVIDIA GeForce RTX 4090", (8, 9), "int8"),
    ("NVIDIA GeForce RTX 4090 Laptop GPU", (8, 9), "int8"),
    ("NVIDIA L40S", (8, 9), "fp8"),
    ("NVIDIA H100 80GB HBM3", (9, 0), "fp8"),
    ("NVIDIA H200", (9, 0), "fp8"),
    ("NVIDIA GeForce RTX 5090", (12, 0), "int8"),
]


@pytest.mark.parametrize("system", ["linux", "win32"])
@pytest.mark.parametrize(("card", "capability", "best"), CARDS)
def test_the_fastest_file_goes_first_on_every_system(card, capability, best, system):
    found = rank_files(machine(capability, system), card)
    assert found[0].variant.name == best and sorted(names(found)) == sorted(PUBLISHED)
    folders = [advice.variant.is_folder for advice in found]
    assert folders == sorted(folders, reverse=True)
    singles = [advice for advice in found if not advice.variant.is_folder]
    assert singles[0].variant.precision == best
    seconds = [advice.step_seconds for advice in found if advice.variant.is_folder]
    assert seconds == ([None] * 3 if "Laptop" in card else sorted(seconds))


def test_of_two_that_are_equally_fast_nothing_is_lost_with_the_first():
    int8, fp8, *_ = rank_files(machine((8, 6)), "NVIDIA GeForce RTX 3060")
    assert (int8.step_seconds, int8.numbers) == (fp8.step_seconds, "int8")
    assert fp8.numbers == "fp8 file, int8 compute"
    assert str(fp8) == (
        f"fp8 (fp8 file, int8 compute): about {fp8.step_seconds:.0f} s a step at 832x480, 81 frames (an estimate)"
    )


FP8_FILE, INT8_FILE = (
    f"wan2.1_i2v_480p_{precision}lightx2v_4step.safetensors" for precision in ("scaled_fp8_e4m3_", "int8_")
)
HIGH, LOW = (f"wan2.2_i2v_A14b_{noise}_noise_int8_lightx2v_4step.safetensors" for noise in ("high", "low"))


@pytest.mark.parametrize(
    ("card", "capability", "names", "faster"),
    [
        ("NVIDIA GeForce RTX 4090", (8, 9), [FP8_FILE, "wan_2.1_vae.safetensors"], {FP8_FILE: INT8_FILE}),
        ("NVIDIA GeForce RTX 4090", (8, 9), [INT8_FILE, "mine.safetensors", LOW], {}),
        # An FP8 file is as fast there: computed in INT8.
        ("NVIDIA GeForce RTX 3090", (8, 6), [FP8_FILE], {}),
        # Not worth a download.
        ("NVIDIA H200", (9, 0), [INT8_FILE], {}),
        ("NVIDIA L40S", (8, 9), [INT8_FILE], {}),
        # Who names BF16 wants it, and no other file of an ordinary model is published.
        ("NVIDIA H200", (9, 0), ["wan2.1_t2v_14b_lightx2v_4step.safetensors"], {}),
        ("NVIDIA GeForce RTX 4090", (8, 9), ["wan2.1_t2v_14B_fp8_scaled.safetensors"], {}),
        ("CPU", None, [FP8_FILE], {}),
    ],
)  # fmt: skip
def test_a_named_file_is_compared_with_the_same_model_in_other_numbers(card, capability, names, faster):
    assert faster_files(names, machine(capability), card) == faster


def test_without_int8_kernels_fp8_may_be_the_better_file():
    failed = {("int8 matmul", row): "its trial run failed" for row in MATMUL_BACKENDS if row.inputs == "int8"}
    without, card = machine((8, 9), failed_trials=failed), "NVIDIA GeForce RTX 4090"
    assert names(rank_files(without, card))[0] == "fp8"
    faster = faster_files([f"wan/{LOW}", HIGH, FP8_FILE], without, card)
    assert faster == {
        name: name.removeprefix("wan/").replace("int8", "scaled_fp8_e4m3") for name in (f"wan/{LOW}", HIGH)
    }


@pytest.mark.parametrize("capability", [None, (7, 5)])
def test_where_nothing_is_known_they_come_as_published(capability):
    found = rank_files(machine(capability), "CPU")
    assert names(found) == list(PUBLISHED) and not any(advice.step_seconds for advice in found)


def test_doctor_and_download_list_say_the_same(monkeypatch, tmp_path, capsys):
    pretend_card(monkeypatch, "NVIDIA GeForce RTX 4090", (8, 9), 24, 22.5, packages=TRITON)
    items = {item.name: item for item in doctor.examine({}, tmp_path)}
    found = items["File for this card"].found
    assert found.startswith("int8: about 3.9 s a step") and "20.7 GiB" in found and "fp8 " in found and "bf16 " in found
    assert items["Checkpoints"].remedy.endswith("download.py get int8")
    assert download_cli.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("int8 ") and "on this card int8: about 3.9 s" in lines[3]


def test_a_machine_without_a_card_is_told_no_seconds(tmp_path):
    items = {item.name: item for item in doctor.examine({}, tmp_path)}
    assert "File for this card" not in items and items["Checkpoints"].remedy.endswith("download.py get fp8")


@pytest.mark.parametrize(("card", "capability", "best"), CARDS)
def test_a_precision_that_is_clearly_faster_is_named(card, capability, best):
    known = machine(capability), card
    if "Laptop" in card:
        assert [faster_precision(precision, *known) for precision in ("fp8", "int8", "bf16")] == [None] * 3
        return
    assert faster_precision(best, *known) is None
    name, times = faster_precision("bf16", *known)
    assert name == best and times > 1.2
    of_fp8 = faster_precision("fp8", *known)
    # FP8 is computed in INT8 on 8.0 and 8.6.
    assert (of_fp8 is None) == (best == "fp8" or capability < (8, 9))


def test_without_a_card_no_precision_is_faster():
    assert faster_precision("bf16", machine(None), "CPU") is None
