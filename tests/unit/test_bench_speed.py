"""The benchmarks of speed: what they write and fit, and that each runs at a tiny size on a CPU."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.umt5.encoder import PortableTextEncoder
from lightx2v_pack.tools import make_tiny_checkpoint as tiny
from lightx2v_pack.tools.bench import full_size, text_weights
from safetensors.torch import load_file

BENCH = Path(full_size.__file__).parent
MODEL = ["--dim", "256", "--ffn-dim", "512", "--layers", "2"]
CLIP = ["--width", "64", "--height", "64", "--frames", "5"]


@pytest.mark.parametrize("precision", full_size.PRECISIONS)
def test_weights_are_written_as_safetensors_reads_them(tmp_path, precision):
    tensors = tiny.quantise_model(tiny.make_transformer(), precision, torch.float32)
    # An odd number of bytes before larger elements.
    tensors = {"odd": torch.arange(3, dtype=torch.int8), "blocks.0.view": torch.arange(6.0).view(2, 3).t(), **tensors}

    full_size.write_file(tensors, tmp_path / "file.safetensors")

    found = load_file(tmp_path / "file.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        assert torch.equal(found[name].float(), tensor.float())


def test_blocks_differ_by_a_moved_row(tmp_path):
    arguments = argparse.Namespace(dim=256, ffn_dim=512, layers=3)

    folder = full_size.ensure_weights(tmp_path, arguments, "bf16", torch.device("cpu"))

    first, last = (load_file(folder / f"block_{index}.safetensors") for index in (0, 2))
    assert torch.equal(first["blocks.0.ffn.0.weight"].roll(2, 0), last["blocks.2.ffn.0.weight"])


@pytest.mark.parametrize("scheme", text_weights.STORED)
def test_random_text_encoder_is_one_that_loads(tmp_path, scheme):
    file = text_weights.ensure_text_encoder(tmp_path, scheme, text_weights.SMALL)

    encoder = PortableTextEncoder(file, tmp_path / tiny.TOKENIZER_FOLDER)
    encoder.load("cpu", Hooks())
    rows = encoder.encode_tokens([7, 5, 1], Hooks())
    assert rows.isfinite().all() and 0.5 < rows.std() < 2
    weights = torch.load(file, weights_only=True)
    scale = weights.get("blocks.3.ffn.fc1.weight_scale", torch.ones(1))
    assert (weights["blocks.3.ffn.fc1.weight"].float() * scale).std() == pytest.approx(4096**-0.5, rel=0.05)
    assert not torch.equal(weights["blocks.3.ffn.fc1.weight"].float(), weights["blocks.4.ffn.fc1.weight"].float())


@pytest.mark.parametrize(
    ("script", "options", "parts"),
    [
        ("prompt_to_frames", [*MODEL, *CLIP, "--runs", "2"], {"prompt_to_frames"}),
        (
            "kernels",
            [*MODEL, *CLIP, "--tokens", "64", "--error-tokens", "48", "--seconds", "0.001", "--profile"],
            {"ops", "matmul", "attention", "cross", "profile"},
        ),
        ("loading", [*MODEL, "--threads", "2", "--touch-ram-gib", "0.01"], {"loading"}),
        ("scaling", [*MODEL, "--sizes", "64x64x5", "64x64x9", "128x64x9", "--batches", "2"], {"scaling"}),
    ],
)
def test_it_runs_on_a_cpu(tmp_path, script, options, parts):
    out = tmp_path / "rows.jsonl"
    command = [sys.executable, str(BENCH / f"{script}.py"), *options, "--folder", str(tmp_path), "--out", str(out)]

    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    )

    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert {row["part"] for row in rows} == parts
    assert all(row.get("is_finite", True) for row in rows)
    assert list(tmp_path.iterdir()) == [out]


def measured_and_estimated(factor, tmp_path):
    """Rows of an H200 as the estimate has them, times a factor."""
    code = f"""
import json, sys
sys.argv = ["scaling.py"]
sys.path.insert(0, {str(BENCH)!r})
import scaling
facts = dict(engine="lightx2v", attention="sage_attn2", matmul="scaled_mm", ops="triton")
arguments = scaling.parse_arguments()
for width, height, frames, tokens in ((832, 480, 17, 7800), (832, 480, 81, 32760), (1280, 720, 81, 75600)):
    for batch in (1, 2) if frames == 17 else (1,):
        row = dict(machine="today, NVIDIA H200, torch", precision="fp8", placement="none", batch=batch, facts=facts)
        row |= dict(width=width, height=height, frames=frames, tokens=tokens, reserved_gib=13 + tokens / 1e4)
        print(json.dumps(row | dict(step_seconds=[scaling.estimate_of(row, arguments) * {factor}])))
"""
    file = tmp_path / "measured.jsonl"
    file.write_text(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    return subprocess.run(
        [sys.executable, str(BENCH / "scaling.py"), "--from", str(file)], capture_output=True, text=True
    )


@pytest.mark.parametrize(("factor", "is_missed"), [(1.05, False), (1.2, True)])
def test_scaling_says_how_far_the_estimate_is_off(tmp_path, factor, is_missed):
    done = measured_and_estimated(factor, tmp_path)

    assert done.returncode == (1 if is_missed else 0), done.stderr
    assert ("missed: estimate.py" in done.stdout) == is_missed
    assert "(within 0.0%)" in done.stdout
    assert "seconds a step of all clips at 832x480x17 = " in done.stdout
