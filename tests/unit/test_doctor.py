"""The doctor's findings, here and on pretended machines."""

import json
import os
import shutil

import pytest
import torch
from lightx2v_pack.engine import system
from lightx2v_pack.engine.backends import remembered, trials
from lightx2v_pack.engine.backends.table import Machine
from lightx2v_pack.engine.checkpoints.published import PUBLISHED_IMAGE_MODELS, PUBLISHED_LORAS
from lightx2v_pack.engine.panel import doctor
from support import checkpoints
from support.pretended_card import pretend_card
from support.scripts import run_script

OWN_COMPUTE_ONLY = "not needed: only LightX2V's own compute (engine lightx2v) uses it"


@pytest.fixture
def models(tmp_path):
    """A models folder with a whole repository, one without text encoder, and a damaged one."""
    root = tmp_path / "models" / "lightx2v"
    repository = checkpoints.repository()
    shutil.copytree(repository, root / "whole")
    shutil.copytree(repository / "distill_fp8", root / "no text encoder")
    next((root / "no text encoder").glob("models_t5*")).unlink()
    shutil.copytree(repository / "distill_fp8", root / "damaged")
    block = root / "damaged" / "block_0.safetensors"
    os.truncate(block, block.stat().st_size - 1)
    return tmp_path / "models"


def run(*arguments):
    done = run_script("doctor.py", *arguments)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def test_the_command_lists_checkpoints_and_what_is_missing_from_each(models):
    done = run("--models-dir", models, "--json")
    items = {item["name"]: item for item in json.loads(done.stdout)}
    assert items["whole/distill_int8"]["state"] == "ok"
    assert "transformer int8 file, bf16 compute, 2 blocks" in items["whole/distill_int8"]["found"]
    assert "whole" not in items
    assert items["no text encoder"]["state"] == "missing"
    assert "The text encoder is missing" in items["no text encoder"]["remedy"]
    assert items["damaged"]["state"] == "warn" and "truncated" in items["damaged"]["remedy"]
    assert done.returncode == 1


def test_the_command_prints_a_table_with_remedies(tmp_path):
    done = run("--models-dir", tmp_path)
    assert "missing  Checkpoints" in done.stdout
    assert "-> Run in the pack's folder: python tools/download.py get fp8" in done.stdout
    for name in (
        "Card",
        "torch",
        "LightX2V",
        "Triton",
        "SageAttention",
        "q8_kernels",
        "sgl-kernel",
        "RAM",
        "Disk",
    ):
        assert f"  {name} " in done.stdout


def test_every_item_that_is_not_ok_has_a_one_line_remedy(models):
    for item in json.loads(run("--models-dir", models, "--json").stdout):
        assert item["found"] and "\n" not in item["remedy"]
        assert (item["state"] == "ok") == (item["remedy"] == "")


@pytest.mark.parametrize(
    "error", [FileNotFoundError(2, "No such file"), PermissionError(13, "denied"), OSError(5, "I/O")]
)
def test_a_drive_that_cannot_be_looked_at_is_an_item(monkeypatch, tmp_path, error):
    def fail(_):
        raise error

    monkeypatch.setattr(doctor.shutil, "disk_usage", fail)
    monkeypatch.setattr(doctor.os.path, "isdir", lambda _: False)
    items = {item.name: item for item in doctor.examine({}, tmp_path)}
    assert items["Disk"].state == "warn" and items["Disk"].found == f"cannot be looked at ({error})"
    assert items["Disk"].remedy == f"Check the models folder, {tmp_path}." and "RAM" in items


@pytest.mark.parametrize(("limit", "used", "found"), [(4, 1, "4.0 GiB (the limit of this"), (2, 2, "2.0 GiB (")])
def test_the_ram_is_what_this_process_may_have(monkeypatch, tmp_path, limit, used, found):
    monkeypatch.setattr(system, "_container_ram", lambda: system._Container(limit * 2**30, used * 2**30))
    items = {item.name: item for item in doctor.examine({}, tmp_path)}
    assert items["RAM"].found.startswith(found) and items["RAM"].state == "warn"
    assert items["RAM"].found.endswith(f", {limit - used}.0 free")
    monkeypatch.setattr(system, "_container_ram", lambda: None)
    assert "limit" not in {item.name: item for item in doctor.examine({}, tmp_path)}["RAM"].found


def speed_item(label, installed=None, **facts):
    row = next(row for name, _, row in doctor._SPEED_PACKAGES if name == label)
    return doctor._examine_speed(label, row, Machine(**facts), installed)


@pytest.mark.parametrize(
    ("label", "facts", "state", "found"),
    [
        ("SageAttention", {"capability": (9, 0), "packages": {"sageattention": "2.2.0"}}, "ok", "2.2.0"),
        ("SageAttention", {"capability": (8, 6)}, "ok", "not installed; not needed: the pack's own attention runs"),
        ("SageAttention", {"capability": (12, 0)}, "ok", "not installed; not needed: the pack's own attention runs"),
        ("SageAttention", {"capability": (10, 0)}, "warn", "not installed; this card would be faster with it"),
        ("SageAttention", {"capability": (8, 9)}, "ok", "not installed; not needed: the pack's own attention runs"),
        ("SageAttention", {"capability": (9, 0)}, "ok", "not installed; not needed: the pack's own attention runs"),
        ("SageAttention", {"capability": (7, 5)}, "ok", "needs compute capability 8.0 or higher"),
        ("SageAttention", {"capability": (9, 0), "packages": {"sageattention": "1.0.6"}}, "ok", "2 or newer"),
        ("q8_kernels", {"capability": (8, 9)}, "ok", OWN_COMPUTE_ONLY),
        ("q8_kernels", {"capability": (9, 0)}, "ok", "needs compute capability 8.9"),
        ("sgl-kernel", {"capability": (9, 0)}, "ok", OWN_COMPUTE_ONLY),
        ("Triton", {"capability": (8, 9)}, "warn", "not installed; this card would be faster with it"),
        ("sgl-kernel", {}, "ok", "there is no CUDA device"),
        ("Triton", {"capability": (9, 0), "packages": {"triton": "3.6.0"}}, "ok", "3.6.0"),
        ("Triton", {"capability": (8, 6), "packages": {"triton": "2.3.1"}}, "ok", "needs triton 3 or newer"),
        ("Triton", {}, "ok", "not installed; not used: there is no CUDA device"),
        ("Triton", {"installed": "3.6.0"}, "ok", "3.6.0; not used: there is no CUDA device"),
        ("q8_kernels", {"capability": (8, 9), "installed": "0.0.5"}, "ok", "0.0.5"),
    ],
)
def test_optional_packages_count_only_where_the_card_uses_them(label, facts, state, found):
    item = speed_item(label, **facts)
    assert item.state == state and found in item.found
    assert bool(item.remedy) == (state == "warn")


@pytest.mark.parametrize(
    ("name", "capability", "state"),
    [("NVIDIA GeForce RTX 4090", (8, 9), "ok"), ("NVIDIA GeForce RTX 2080 Ti", (7, 5), "missing")],
)
def test_a_card_is_described(monkeypatch, tmp_path, name, capability, state):
    pretend_card(monkeypatch, name, capability, 24, 22.5)
    items = {item.name: item for item in doctor.examine({}, tmp_path)}
    assert items["Card"].state == state
    dotted = ".".join(map(str, capability))
    assert items["Card"].found == f"{name}, 24.0 GiB (22.5 free), compute capability {dotted}"
    assert items["Checkpoints"].state == "missing"
    assert items["LightX2V"].state == "ok" and "only engine lightx2v needs it" in items["LightX2V"].found


def test_a_checkpoint_says_what_this_card_computes_it_in(monkeypatch, tmp_path):
    repository = checkpoints.repository()
    files = {name: repository / f"distill_{name}" for name in ("fp8", "int8")}
    found = {}
    for capability in ((8, 6), (8, 9), (7, 5)):
        pretend_card(monkeypatch, "a card", capability, 24, 22.5)
        items = {item.name: item.found for item in doctor.examine(files, tmp_path)}
        found[capability] = [items[name].partition(", 2 blocks")[0] for name in files]
    assert found[8, 6] == ["transformer fp8 file, int8 compute", "transformer int8"]
    assert found[8, 9] == found[7, 5] == ["transformer fp8", "transformer int8"]


def test_one_package_that_makes_a_card_fast_is_enough(monkeypatch, tmp_path):
    pretend_card(monkeypatch, "NVIDIA GeForce RTX 4090", (8, 9), 24, 22.5)
    monkeypatch.setattr(doctor, "_find_package", lambda *_: None)
    items = {item.name: item for item in doctor.examine({}, tmp_path)}
    assert items["Triton"].state == "warn" and items["Triton"].remedy.startswith("pip install triton")
    assert items["SageAttention"].state == "ok"
    assert items["SageAttention"].found == "not installed; not needed: the pack's own attention runs on this card"


def test_what_was_found_out_about_kernels_is_shown(monkeypatch, tmp_path):
    pretend_card(monkeypatch, "NVIDIA GeForce RTX 4090", (8, 9), 24, 22.5, packages={"triton": "3.6.0"})

    def examine():
        return {item.name: item for item in doctor.examine({}, tmp_path)}

    assert "Measured" not in examine()
    remembered.keep_in(tmp_path / "kernels.jsonl")
    item = examine()["Measured"]
    assert item.state == "ok" and item.found.startswith("not measured yet")
    device = torch.device("cuda", 0)
    combination = trials.combination_of(trials.find_machine(device), device)
    notes = remembered.notes()
    notes.add_times(combination, "32768 tokens, 40 heads of 128, in triton blocks", {"triton": 0.0757, "sdpa": 0.0604})
    notes.add_times("another card", "32768 tokens", {"other": 1.0})
    assert examine()["Measured"].found == ("32768 tokens, 40 heads of 128, in triton blocks: sdpa 60.4 ms, triton 75.7")
    assert "Kernels" not in examine()
    notes.add_trial(combination, "attention: triton", "SIGABRT: LLVM ERROR: Cannot select")
    item = examine()["Kernels"]
    assert item.state == "warn" and "attention: triton (SIGABRT: LLVM ERROR: Cannot select)" in item.found
    assert item.remedy.startswith("Update the driver")


def test_models_for_image_to_video_are_named_and_what_is_missing_of_them(tmp_path):
    def found():
        return {item.name: item for item in doctor.examine({}, tmp_path)}["Image to video"].found

    assert "wan2.1-i2v-480p-fp8 25 GB," in found() and "wan2.2-i2v-int8 37 GB" in found()
    *parts, vision = PUBLISHED_IMAGE_MODELS["wan2.1-i2v-480p-fp8"].parts
    for part in parts:
        file = tmp_path / part.folder / part.patterns[0].rpartition("/")[2]
        file.parent.mkdir(exist_ok=True)
        file.touch()
    assert "wan2.1-i2v-480p-fp8 1.3 GB (CLIP Vision missing)" in found()
    (tmp_path / vision.folder).mkdir()
    (tmp_path / vision.folder / "clip_vision_h.safetensors").touch()
    assert "wan2.1-i2v-480p-fp8 here" in found()


def test_loras_that_distill_are_named_and_those_that_are_here(tmp_path):
    def found():
        return {item.name: item for item in doctor.examine({}, tmp_path)}["LoRAs for 4 steps"].found

    assert "not distilled" in found() and "wan2.1-t2v-lora 0.63 GB" in found() and "wan2.2-t2v-loras 1.2 GB" in found()
    for lora in ("wan2.1-t2v-lora", "wan2.2-t2v-loras"):
        file = tmp_path / "loras" / PUBLISHED_LORAS[lora].parts[0].patterns[0]
        file.parent.mkdir(exist_ok=True)
        file.touch()
    # Of two files one is not all.
    assert "wan2.1-t2v-lora here" in found() and "wan2.2-t2v-loras 0.61 GB (LoRA missing)" in found()
