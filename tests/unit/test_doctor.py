"""The doctor's findings, here and on pretended machines."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from lightx2v_pack.engine import system
from lightx2v_pack.engine.backends import remembered, trials
from lightx2v_pack.engine.backends.table import Machine
from lightx2v_pack.engine.checkpoints.published import ALL_PUBLISHED, PUBLISHED, PUBLISHED_IMAGE_MODELS
from lightx2v_pack.engine.panel import doctor
from support import checkpoints
from support.pretended_card import pretend_card
from support.scripts import TOOLS, run_script

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


@pytest.fixture
def comfyui(tmp_path):
    """A ComfyUI in which the pack is a link."""
    (tmp_path / "ComfyUI" / "custom_nodes").mkdir(parents=True)
    link = tmp_path / "ComfyUI" / "custom_nodes" / "LightX2V"
    link.symlink_to(TOOLS.parent, target_is_directory=True)
    return tmp_path / "ComfyUI"


def python(*arguments, folder, pwd, code=0):
    environment = os.environ | {"PWD": str(pwd)}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr
    return done.stdout


def test_the_command_prints_a_table_with_remedies_of_the_comfyui_beside_a_link(comfyui):
    (comfyui / "models").mkdir()
    printed = python("custom_nodes/LightX2V/tools/doctor.py", folder=comfyui, pwd=comfyui, code=1)
    assert f"none in {comfyui / 'models' / 'lightx2v'}" in printed
    assert "missing  Checkpoints" in printed
    assert "-> Run in the pack's folder: python tools/download.py get fp8" in printed
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
        assert f"  {name} " in printed


def test_every_item_that_is_not_ok_has_a_one_line_remedy(models):
    for item in json.loads(run("--models-dir", models, "--json").stdout):
        assert item["found"] and "\n" not in item["remedy"]
        assert (item["state"] in ("ok", "note")) == (item["remedy"] == "")


def test_the_pack_keeps_the_links_by_which_it_was_reached(comfyui):
    """By its whole path, from ComfyUI's folder, and from within the link, where only the shell's PWD has it."""
    link, folder = comfyui / "custom_nodes" / "LightX2V", TOOLS.parent
    program = "import runpy, sys; print(runpy.run_path(sys.argv[1])['pack'].__path__[0])"

    def place(script, folder, pwd=None):
        return python("-c", program, f"{script}/register_pack.py", folder=folder, pwd=folder if pwd is None else pwd)[
            :-1
        ]

    assert place(link / "tools", comfyui) == str(link)
    assert place("custom_nodes/LightX2V/tools", comfyui) == str(link)
    assert place("tools", link) == str(link)
    assert place(".", link / "tools") == place("../tools", link / "demo") == str(link)
    # Where the shell says nothing that is right.
    for wrong in ("", "/nowhere", comfyui, "tools"):
        assert place("tools", link, wrong) == str(folder)


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
        ("SageAttention", {"capability": (8, 6)}, "note", "not installed; not needed: the pack's own attention runs"),
        ("SageAttention", {"capability": (12, 0)}, "note", "not installed; not needed: the pack's own attention runs"),
        ("SageAttention", {"capability": (10, 0)}, "warn", "not installed; this card would be faster with it"),
        ("SageAttention", {"capability": (8, 9)}, "note", "not installed; not needed: the pack's own attention runs"),
        ("SageAttention", {"capability": (9, 0)}, "note", "not installed; not needed: the pack's own attention runs"),
        ("SageAttention", {"capability": (7, 5)}, "note", "needs compute capability 8.0 or higher"),
        ("SageAttention", {"capability": (9, 0), "packages": {"sageattention": "1.0.6"}}, "note", "2 or newer"),
        ("q8_kernels", {"capability": (8, 9)}, "note", OWN_COMPUTE_ONLY),
        ("q8_kernels", {"capability": (9, 0)}, "note", "needs compute capability 8.9"),
        ("sgl-kernel", {"capability": (9, 0)}, "note", OWN_COMPUTE_ONLY),
        ("Triton", {"capability": (8, 9)}, "warn", "not installed; this card would be faster with it"),
        ("sgl-kernel", {}, "note", "there is no CUDA device"),
        ("Triton", {"capability": (9, 0), "packages": {"triton": "3.6.0"}}, "ok", "3.6.0"),
        ("Triton", {"capability": (8, 6), "packages": {"triton": "2.3.1"}}, "note", "needs triton 3 or newer"),
        ("Triton", {}, "note", "not installed; not used: there is no CUDA device"),
        ("Triton", {"installed": "3.6.0"}, "note", "3.6.0; not used: there is no CUDA device"),
        ("q8_kernels", {"capability": (8, 9), "installed": "0.0.5"}, "ok", "0.0.5"),
        (
            "Triton",
            {"capability": (9, 0), "packages": {"triton": "3.12.1"}},
            "note",
            "3.12.1; newer than what was tried",
        ),
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
    assert items["LightX2V"].state == "note" and "only engine lightx2v needs it" in items["LightX2V"].found


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
    assert items["SageAttention"].state == "note"
    assert items["SageAttention"].found == "not installed; not needed: the pack's own attention runs on this card"


def test_what_was_found_out_about_kernels_is_shown(monkeypatch, tmp_path):
    pretend_card(monkeypatch, "NVIDIA GeForce RTX 4090", (8, 9), 24, 22.5, packages={"triton": "3.6.0"})

    def examine():
        return {item.name: item for item in doctor.examine({}, tmp_path)}

    assert "Measured" not in examine()
    remembered.keep_in(tmp_path / "kernels.jsonl")
    item = examine()["Measured"]
    assert item.state == "note" and item.found.startswith("not measured yet")
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


@pytest.mark.parametrize(
    ("version", "state", "words"),
    [
        ("2.13.1+cu130", "ok", ""),
        ("2.6.0+cu124", "ok", ""),
        ("2.14.1+cu130", "note", "; newer than what was tried (2.13)"),
        ("3.0.0a0+git12", "note", "; newer than what was tried (2.13)"),
        ("2.3.1", "warn", ""),
    ],
)
def test_a_torch_that_nobody_has_tried_is_a_note(monkeypatch, tmp_path, version, state, words):
    monkeypatch.setattr(doctor.torch, "__version__", version)
    item = {item.name: item for item in doctor.examine({}, tmp_path)}["torch"]
    assert (item.state, item.found.startswith(version)) == (state, True)
    assert item.found.endswith(words) and ("newer" in item.found) == bool(words)


def put(part, models, share=1.0, name=None):
    """Have a part, or a share of its bytes, as a file that takes no room."""
    file = models / part.folder / (name or part.patterns[0].rpartition("/")[2])
    file.parent.mkdir(exist_ok=True, parents=True)
    file.touch()
    os.truncate(file, int(share * part.num_bytes))


def published_items(models, **elsewhere):
    found = doctor.examine({}, models, elsewhere=elsewhere)
    return {item.name: (item.state, item.found, item.remedy) for item in found}


def test_nothing_is_called_ok_that_is_not_there(tmp_path):
    found = published_items(tmp_path)
    for name in ("Image to video", "LoRAs for 4 steps"):
        assert name not in found
        state, words, remedy = found[f"{name}, to download"]
        assert state == "note" and words.startswith("not here: ") and remedy == ""
    assert "wan2.1-i2v-480p-fp8 (23.5 GiB), " in found["Image to video, to download"][1]
    assert "wan2.2-t2v-loras (1.14 GiB)" in found["LoRAs for 4 steps, to download"][1]
    # No file of none byte either, such as a full drive leaves.
    for part in PUBLISHED_IMAGE_MODELS["wan2.1-i2v-480p-fp8"].parts:
        put(part, tmp_path, share=0)
    again = published_items(tmp_path)
    assert again.keys() == found.keys() and again["Image to video, to download"] == found["Image to video, to download"]


@pytest.mark.parametrize(
    ("variant", "lacking", "missing", "command"),
    [
        ("wan2.1-i2v-480p-fp8", [3], "CLIP Vision", "wan2.1-i2v-480p-fp8 --part clip-vision"),
        ("wan2.1-i2v-720p-int8", [1, 2], "text encoder, VAE", "wan2.1-i2v-720p-int8 --part text-encoder --part vae"),
        ("wan2.2-i2v-fp8", [1], "low-noise transformer", "wan2.2-i2v-fp8"),
        ("wan2.2-t2v-loras", [1], "wan2.2_t2v_A14b_low_noise_lora_rank64", "wan2.2-t2v-loras"),
    ],
)
def test_a_model_of_which_a_part_is_missing_is_a_problem_with_its_remedy(variant, lacking, missing, command, tmp_path):
    parts = ALL_PUBLISHED[variant].parts
    for index, part in enumerate(parts):
        if index not in lacking:
            put(part, tmp_path)
    state, words, remedy = published_items(tmp_path)[variant]
    assert state == "warn" and words.startswith(f"not whole; missing or cut short: {missing}")
    assert remedy.endswith(f"python tools/download.py get {command}")
    for index in lacking:
        put(parts[index], tmp_path)
    found = published_items(tmp_path)
    assert variant not in found
    here = [words for name, (state, words, _) in found.items() if state == "ok" and variant in words]
    assert len(here) == 1


def test_a_companion_of_another_model_serves_and_so_does_another_drive(tmp_path):
    models, other = tmp_path / "models", tmp_path / "other"
    transformer, _, vae, vision = PUBLISHED_IMAGE_MODELS["wan2.1-i2v-480p-fp8"].parts
    put(transformer, other)
    put(vae, models)
    put(vision, models)
    put(PUBLISHED["bf16-single"].parts[1], models)
    found = published_items(models, diffusion_models=[models / "diffusion_models", other / "diffusion_models"])
    assert found["Image to video"][1].startswith("wan2.1-i2v-480p-fp8;")
    assert "wan2.1-i2v-480p-fp8" not in published_items(models)
