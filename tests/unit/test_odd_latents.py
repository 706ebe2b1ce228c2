"""Latents that no video of Wan has are said after sampling, in the log and in the report; usual ones are not."""

import math
import re
from pathlib import Path

import pytest
import torch
from lightx2v_pack.engine import pipeline
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.latent_space import denormalize, doubt_about
from lightx2v_pack.engine.report import records_of
from lightx2v_pack.engine.settings import EngineSettings, OffloadSettings, SamplingSettings
from safetensors.torch import load_file, save_file
from support import checkpoints
from support.engine import conditioning_of
from support.tensors import normal

DEMO = Path(__file__).parents[2] / "demo/checkpoint/distill_fp8"


def wave(frames=3, height=16, width=16):
    """Return latents [1, 16, T, h, w] whose neighbours are alike, normalized."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    picture = torch.sin(rows / 3.0) + torch.cos(columns / 4.0)
    return (picture / picture.std(correction=0)).expand(1, 16, frames, height, width).clone()


BOARD = (torch.arange(16)[:, None] + torch.arange(16)) % 2 * 2.0 - 1
USUAL = {
    "a picture": wave(),
    "one frame": wave(1),
    "noise": normal(1, 16, 3, 16, 16, seed=1),
    "noise in a small frame": normal(1, 16, 1, 8, 8, seed=2),
    "a tiny frame": normal(1, 16, 1, 1, 2, seed=3),
    "one colour": torch.full((1, 16, 3, 16, 16), 2.5),
    "nothing": torch.zeros(1, 16, 1, 4, 4),
    "high contrast": 1.7 * wave(),
    "a bright channel": torch.cat([wave()[:, :1] * 2.5 + 3, wave()[:, 1:]], dim=1),
}
ODD = {
    "far too large": (30 * wave(), "standard deviation is 30"),
    "twice too large": (2.3 * normal(1, 16, 3, 16, 16, seed=1), r"standard deviation is 2\.3"),
    "one channel": (torch.cat([wave()[:, :1] * 6, wave()[:, 1:]], dim=1), r"of one channel 6"),
    "a shifted channel": (torch.cat([wave()[:, :1] - 9, wave()[:, 1:]], dim=1), "mean of one channel is 9"),
    "a chess board": (BOARD.expand(1, 16, 2, 16, 16), r"neighbours differ 2\.0"),
    "the second clip": (torch.cat([wave(), 30 * wave()]), "standard deviation is 30"),
}


@pytest.mark.parametrize("case", USUAL)
def test_usual_latents_raise_no_doubt(case):
    assert doubt_about(denormalize(USUAL[case])) == ""


@pytest.mark.parametrize("case", ODD)
def test_odd_latents_are_described(case):
    latents, message = ODD[case]
    found = doubt_about(denormalize(latents))
    assert re.search(message, found)


def sample(folder, caplog):
    handle = pipeline.load_transformer(
        folder, settings=EngineSettings(compile="off"), offload=OffloadSettings(mode="none")
    )
    settings = SamplingSettings(seed=1, method="lcm", steps=4, shift=5.0)
    text = conditioning_of(0.1 * normal(12, handle.architecture.text_dim, seed=5))
    caplog.clear()
    latents = pipeline.sample(handle, [text], torch.zeros(1, 16, 3, 8, 8), settings, hooks=Hooks())
    assert math.isfinite(latents.sum())
    (record,) = [record for record in records_of(latents) if record.stage == "sample"]
    warnings = [said for said in record.details.get("warnings", []) if "the latents are" in said]
    return warnings, [message for message in caplog.messages if "the latents are" in message]


def damaged(tmp_path, make):
    folder = tmp_path / "distill_fp8"
    folder.mkdir()
    for file in DEMO.glob("*block*.safetensors"):
        tensors = load_file(file)
        save_file({name: make(name, each).contiguous() for name, each in tensors.items()}, folder / file.name)
    return folder


def permuted(name, each):
    if each.dtype.itemsize > 1:
        return each
    order = torch.randperm(len(each), generator=torch.Generator().manual_seed(0))
    return each.view(torch.uint8)[order].view(each.dtype)


@pytest.mark.parametrize(
    "make",
    [
        permuted,
        lambda name, each: each * 100 if name.endswith("modulation") else each,
        lambda name, each: each / 3 if name.endswith("weight_scale") else each,
    ],
    ids=["rows of every layer in another order", "a hundredfold modulation", "a third of the scales"],
)
def test_what_no_look_at_the_file_tells_is_said_of_the_latents(tmp_path, make, caplog):
    warnings, logged = sample(damaged(tmp_path, make), caplog)
    assert len(warnings) == 1 and logged == [f"LightX2V: {warnings[0]}"]
    assert warnings[0].startswith(f"Check {tmp_path.name}/distill_fp8 in full (python tools/doctor.py --check NAME)")


@pytest.mark.parametrize("path", [DEMO, "tiny"], ids=["demo", "tiny"])
def test_nothing_is_said_of_a_whole_checkpoint(path, caplog):
    assert sample(checkpoints.distilled("fp8") if path == "tiny" else path, caplog) == ([], [])
