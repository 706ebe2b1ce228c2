"""A checkpoint looked at in full: by the hub's hashes, and by content where there are none."""

import hashlib
import json
import os
import re
import shutil
import threading
from pathlib import Path

import pytest
import torch
from lightx2v_pack.engine.checkpoints.published import (
    COMFY_REPOSITORY,
    MODEL_REPOSITORY,
    SINGLE_FILE_REPOSITORY,
    WAN22_REPOSITORY,
)
from lightx2v_pack.engine.errors import CheckpointError
from lightx2v_pack.engine.panel.verify import Verification, Verifications, verify
from lightx2v_pack.tools import doctor_cli
from safetensors.torch import load_file, save_file
from support import checkpoints
from support.hub_server import HubServer

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    for name in ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    (tmp_path / "empty").mkdir()
    others = dict.fromkeys((SINGLE_FILE_REPOSITORY, COMFY_REPOSITORY, WAN22_REPOSITORY), tmp_path / "empty")
    with HubServer({MODEL_REPOSITORY: checkpoints.repository(), **others}) as server:
        yield server


@pytest.fixture
def folder(tmp_path) -> Path:
    """The folder of FP8 blocks, as published."""
    return shutil.copytree(checkpoints.repository() / "distill_fp8", tmp_path / "lightx2v" / "distill_fp8")


FILES = [
    "non_block.safetensors", "block_0.safetensors", "block_1.safetensors", "models_t5_umt5-xxl-enc-fp8.pth",
    "Wan2.1_VAE.pth", "tokenizer.json", "spiece.model",
]  # fmt: skip


def test_what_is_as_published_is_said_of_every_file(hub, folder) -> None:
    seen = []
    items = verify(folder, endpoint=hub.url, on_progress=lambda *each: seen.append(each))
    assert [(item.name, item.state) for item in items] == [(name, "ok") for name in FILES]
    for item in items:
        file = next(folder.rglob(item.name))
        assert item.found == f"as published; sha256 {hashlib.sha256(file.read_bytes()).hexdigest()}"
    total = sum(next(folder.rglob(name)).stat().st_size for name in FILES)
    assert [each[0] for each in seen] == sorted(each[0] for each in seen) and seen[-1][:2] == (total, total)


@pytest.mark.parametrize("name", ["block_1.safetensors", "models_t5_umt5-xxl-enc-fp8.pth", "spiece.model"])
def test_one_byte_of_difference_is_found(hub, folder, name) -> None:
    file = next(folder.rglob(name))
    content = bytearray(file.read_bytes())
    content[-3000 if name.endswith("pth") else -3] ^= 1
    file.write_bytes(content)
    states = {item.name: item for item in verify(folder, endpoint=hub.url)}
    assert {key for key, item in states.items() if item.state != "ok"} == {name}
    assert states[name].remedy.startswith(f"Fetch {name} anew: it has the size of the published file")


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (0, "is all zeros"),
        (float("nan"), "holds values that are NaN"),
        (float("inf"), "holds values that are NaN"),
        (1, "makes the weights of its layer"),
        (-0.001, "holds scales down to -0.001"),
        (1e6, "holds numbers up to 1e+06"),
    ],
)
def test_without_the_hub_the_content_is_looked_at(folder, value, found) -> None:
    file = folder / "block_1.safetensors"
    tensors = load_file(file)
    tensors["blocks.1.ffn.0.weight_scale"] = torch.full_like(tensors["blocks.1.ffn.0.weight_scale"], value)
    save_file(tensors, file)
    items = {item.name: item for item in verify(folder, endpoint=NOWHERE)}
    bad = items.pop(file.name)
    assert (
        bad.state == "missing"
        and re.search(rf"blocks\.1\.ffn\.0\.weight(_scale)? {re.escape(found)}", bad.found)
        and "download.py get" in bad.remedy
    )
    for item in items.values():
        assert item.state == "warn" and item.found.startswith("nothing wrong inside; the hub was not asked (")


@pytest.mark.parametrize("value", [3000.0, 20000.0, -60000.0])
def test_what_is_only_odd_is_a_warning(hub, tmp_path, value) -> None:
    file = Path(shutil.copy(checkpoints.single_file("fp8"), tmp_path / "mine.safetensors"))
    tensors = load_file(file)
    tensors["blocks.1.norm3.weight"][5] = value
    save_file(tensors, file)
    (item,) = verify(file, endpoint=hub.url)
    assert item.state == "warn" and "download.py get" in item.remedy
    assert item.found.startswith("maybe damaged or converted wrongly: blocks.1.norm3.weight holds numbers up to ")


def test_modulations_that_are_zero_in_every_file_are_found(folder) -> None:
    for index in range(2):
        file = folder / f"block_{index}.safetensors"
        tensors = load_file(file)
        tensors[f"blocks.{index}.modulation"].zero_()
        save_file(tensors, file)
    items = {item.name: item for item in verify(folder, endpoint=NOWHERE)}
    assert "blocks.0.modulation is all zeros" in items["block_0.safetensors"].found
    assert items["block_1.safetensors"].state == "missing"
    assert "and so is that of every other block" in items["block_1.safetensors"].found


def test_a_file_that_was_never_published_is_looked_at(hub, tmp_path) -> None:
    file = shutil.copy(checkpoints.single_file("int8"), tmp_path / "mine.safetensors")
    (item,) = verify(Path(file), endpoint=hub.url)
    assert item.state == "ok" and item.found.startswith("nothing wrong inside; no published file of this name")


@pytest.mark.parametrize("noise", ["high", "low"])
def test_both_experts_are_looked_at(tmp_path, noise) -> None:
    folder = shutil.copytree(checkpoints.experts(), tmp_path / "experts")
    file = folder / f"{noise}_noise_model" / "block_1.safetensors"
    tensors = load_file(file)
    tensors["blocks.1.ffn.0.weight_scale"] *= float("nan")
    save_file(tensors, file)
    found = {item.name: item.state for item in verify(folder, endpoint=NOWHERE)}
    names = [f"{each}_noise_model/{name}" for each in ("high", "low") for name in FILES[:3]]
    assert found == {name: "missing" if name == f"{noise}_noise_model/{file.name}" else "warn" for name in names}


def test_an_expert_as_published_is_known(hub, tmp_path) -> None:
    file = tmp_path / "wan2.2_i2v_A14b_high_noise_int8_lightx2v_4step.safetensors"
    shutil.copy(checkpoints.single_file("int8"), file)
    hub.repositories[WAN22_REPOSITORY] = shutil.copytree(tmp_path, tmp_path / "hub")
    (item,) = verify(file, endpoint=hub.url)
    assert item.state == "ok" and item.found.startswith("as published; ")


def test_one_check_at_a_time_and_it_can_be_stopped(hub, folder, monkeypatch) -> None:
    from lightx2v_pack.engine.panel import verify as module

    may_go_on, has_begun = threading.Event(), threading.Event()
    chunks = module._chunks

    def slow(file):
        has_begun.set()
        assert may_go_on.wait(30)
        yield from chunks(file)

    monkeypatch.setattr(module, "_chunks", slow)
    checks = Verifications()
    checks.start("fp8", folder, endpoint=hub.url)
    assert has_begun.wait(30) and checks.state.is_running
    with pytest.raises(ValueError, match="fp8 is being checked"):
        checks.start("other", folder)
    checks.stop()
    may_go_on.set()
    checks.wait()
    assert (checks.state.is_running, checks.state.problem, checks.state.items) == (False, "Stopped.", ())
    checks.start("fp8", folder, endpoint=hub.url)
    checks.wait()
    assert [item.name for item in checks.state.items] == FILES and not checks.state.problem


def test_a_thread_that_cannot_start_ends_the_check(tmp_path, monkeypatch) -> None:
    def refuse(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    checks = Verifications()
    checks.start("fp8", tmp_path)
    checks.wait()
    assert checks.state == Verification(name="fp8", problem="Restart ComfyUI: can't start new thread.")


def test_what_is_no_checkpoint_ends_the_check_with_its_sentence(tmp_path) -> None:
    with pytest.raises(CheckpointError, match="holds no transformer"):
        verify(tmp_path, endpoint=NOWHERE)
    checks = Verifications()
    checks.start("empty", tmp_path, endpoint=NOWHERE)
    checks.wait()
    assert "holds no transformer" in checks.state.problem and not checks.state.is_running


def test_the_command_checks_a_checkpoint(hub, folder, capsys, monkeypatch) -> None:
    models = ["--models-dir", str(folder.parent.parent), "--json", "--endpoint", hub.url, "--check"]
    assert doctor_cli.main([*models, "distill_fp8"]) == 0
    out, err = capsys.readouterr()
    assert (
        [item["state"] for item in json.loads(out)] == ["ok"] * len(FILES)
        and "100 % of 0.0 GB" not in err
        and "100 % of " in err
        and "iB, " in err
    )
    (folder / "Wan2.1_VAE.pth").write_bytes((folder / "Wan2.1_VAE.pth").read_bytes()[:-1] + b"x")
    assert doctor_cli.main([*models, "distill_fp8"]) == 1
    monkeypatch.chdir(folder.parent.parent.parent)
    assert doctor_cli.main([*models, os.path.relpath(folder)]) == 1
    assert doctor_cli.main([*models, "elsewhere"]) == 2
    assert "elsewhere does not exist" in capsys.readouterr().err
