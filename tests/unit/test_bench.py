"""The benchmarks: what they write, what they check, and that each runs at a tiny size on a CPU."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightx2v_pack.engine.checkpoints.companions import resolve_text_encoder
from lightx2v_pack.engine.interfaces import Hooks
from lightx2v_pack.engine.umt5.encoder import Umt5Encoder
from lightx2v_pack.tools import make_tiny_checkpoint as tiny
from lightx2v_pack.tools.bench import gpus, gpus_lightx2v, harness, peers, weights
from lightx2v_pack.tools.bench.memory import caps, grid
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
# Each starts programs that write weights and measure; together they are a third of all tests' time.
SUITE = pytest.mark.skipif(
    not os.environ.get("LIGHTX2V_BENCH"),
    reason="LIGHTX2V_BENCH is not set: every benchmark at a tiny size, two minutes",
)
MODEL = "--dim 256 --ffn-dim 512 --layers 2"
CLIP = "--width 64 --height 64 --frames 5"


def bench(words, **environment):
    """Run a command of the benchmarks on the CPU."""
    return subprocess.run(
        [sys.executable, "tools", "bench", *words.split()],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "COMFYUI_DIR": "", "LIGHTX2V_DIR": "", **environment},
    )


def read_rows(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("precision", weights.PRECISIONS)
def test_blocks_differ_by_moved_rows(tmp_path, precision):
    options = argparse.Namespace(dim=256, ffn_dim=512, layers=3)

    folder = weights.ensure_transformer(tmp_path, options, precision)

    first, last = (load_file(folder / f"block_{index}.safetensors") for index in (0, 2))
    assert {name.replace("blocks.0.", "blocks.2.") for name in first} == last.keys()
    for name, tensor in first.items():
        found = last[name.replace("blocks.0.", "blocks.2.")]
        assert found.dtype == tensor.dtype and torch.equal(found.float(), tensor.float().roll(2, 0))
    assert not torch.equal(first["blocks.0.ffn.0.weight"].float(), last["blocks.2.ffn.0.weight"].float())
    whole = weights.full_model(weights.load_template(tmp_path, options), 3)
    assert whole.keys() >= {name for name in last if not name.endswith("weight_scale")}


@pytest.mark.parametrize("precision", weights.PRECISIONS)
def test_random_text_encoder_is_one_that_loads(tmp_path, precision):
    file = weights.ensure_text_encoder(tmp_path, precision, weights.SMALL_TEXT)

    encoder = Umt5Encoder(resolve_text_encoder(file, file.parent / tiny.TOKENIZER_FOLDER))
    encoder.load("cpu", Hooks())
    rows = encoder.encode_tokens([7, 5, 1], Hooks())
    assert rows.isfinite().all() and 0.5 < rows.std() < 2
    tensors = torch.load(file, weights_only=True)
    assert tensors["token_embedding.weight"].shape == (400, 4096)
    assert not torch.equal(tensors["blocks.3.ffn.fc1.weight"].float(), tensors["blocks.4.ffn.fc1.weight"].float())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        pytest.param("prompt_to_frames", f"{CLIP} --batch 1 2", 2, marks=SUITE),
        pytest.param("kernels", f"{CLIP} --tokens 64 --error-tokens 48 --seconds 0.001", None, marks=SUITE),
        pytest.param("grid", "--precision fp8 --sizes 64x64 --frames 5 9", 9, marks=SUITE),
        pytest.param("caps", "--sizes 64x64 --frames 5 --caps 8 --alternatives block", 3, marks=SUITE),
        pytest.param("loading", "--threads 2 1", 3, marks=SUITE),
        pytest.param("lora", f"{CLIP} --cases 4+4 8 --streamed 4 --rounds 1", 8, marks=SUITE),
        pytest.param("image_to_video", f"{CLIP} --kinds t2v i2v i2v-a14b --rounds 2", 6, marks=SUITE),
        pytest.param("gpus", "--gpus 1 --modes none --sizes 64x64 --frames 5 --clips 1", 3, marks=SUITE),
        pytest.param("experts", f"{CLIP} --rounds 1 --caps 8 12", 5, marks=SUITE),
        pytest.param("vae", "--sizes 64x64 --frames 5 --tiles 32", 8, marks=SUITE),
        pytest.param("text", "", 1, marks=SUITE),
        pytest.param("peers", f"{CLIP} --peers pack-bf16-sdpa pack comfyui pack-lightx2v", 4, marks=SUITE),
        pytest.param("peers", f"{CLIP} --peers pack-bf16-sdpa pack pack-pair --kind t2v i2v i2v-a14b", 9, marks=SUITE),
    ],
)
def test_it_runs_on_a_cpu(tmp_path, name, options, count):
    out = tmp_path / "rows.jsonl"

    done = bench(f"{name} {options} {MODEL} --folder {tmp_path} --out {out}")

    assert done.returncode == 0, done.stderr[-2000:]
    rows = read_rows(out)
    assert {row["part"].partition("-")[0] for row in rows} == {name}
    assert count is None or len(rows) == count
    assert all("problem" in row or row["machine"].startswith("CPU, ") for row in rows)
    assert all(row.get("is_finite", True) for row in rows)
    assert all(str(tmp_path) not in row["command"] and options in row["command"] for row in rows)
    assert "\n## " in done.stdout
    assert list(tmp_path.iterdir()) == [out]
    if name == "peers":
        by_name = {(row["part"], row["peer"]): row for row in rows}
        for part in {row["part"] for row in rows}:
            assert 0 < by_name[part, "pack"]["error"] < 0.1 and by_name[part, "pack"]["cosine"] > 0.99
        if "--kind" in options:
            assert by_name["peers-i2v", "pack-pair"]["problem"] == "not here: a model of kind i2v"
            assert len(by_name["peers-i2v-a14b", "pack-pair"]["step_seconds"]) == 4
        else:
            assert by_name["peers", "comfyui"]["problem"] == "not here: COMFYUI_DIR"
    if name == "caps":
        assert [row.get("same_latents") for row in rows] == ["yes", "yes", None]
    if name == "kernels":
        assert {row["kind"] for row in rows} == {"ops", "cross", "matmul", "attention", "profile"}


@SUITE
def test_a_peer_that_fails_is_a_row_that_says_why(tmp_path):
    (tmp_path / "comfy").mkdir()
    out = tmp_path / "rows.jsonl"

    done = bench(f"peers --peers comfyui pack {CLIP} {MODEL} --out {out}", COMFYUI_DIR=str(tmp_path))

    assert done.returncode == 0, done.stderr[-2000:]
    failed, ours = read_rows(out)
    assert failed["problem"].startswith("ModuleNotFoundError: No module named 'comfy")
    assert "step" in ours and "problem" not in ours
    assert "Did not run: ComfyUI, FP8 weights" in done.stdout


@SUITE
def test_what_there_is_no_time_for_is_left_out(tmp_path):
    out = tmp_path / "rows.jsonl"

    done = bench(f"peers --peers pack pack-int8 {CLIP} {MODEL} --time-limit 0.1 --out {out}")

    assert done.returncode == 0, done.stderr[-2000:]
    assert "left out, no time: pack, pack-int8\n" in done.stdout and not out.exists()


@SUITE
def test_all_runs_what_there_is_time_for(tmp_path):
    done = bench(f"all --small --minutes 3 --parts vae loading --out {tmp_path / 'rows'}")

    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(file.name for file in (tmp_path / "rows").iterdir()) == ["loading.jsonl", "vae.jsonl"]
    assert done.stdout.endswith("vae: ended with 0\nloading: ended with 0\n")

    done = bench(f"all --small --minutes 0.5 --parts vae --out {tmp_path / 'none'}")

    assert done.stdout.endswith("vae: left out, no time\n") and not list((tmp_path / "none").iterdir())


def test_a_child_that_takes_too_long_is_stopped(tmp_path):
    child = harness.Child(["-c", "import sys, time; sys.stdin.readline(); time.sleep(60)"], tmp_path / "log", {})
    child.begin()

    assert child.wait(0.2) == "stopped after 0 s"


@pytest.mark.slow
def test_a_child_ends_with_its_parent(tmp_path):
    waits = f"import runpy; runpy.run_path({str(ROOT / 'tools' / 'register_pack.py')!r}); "
    waits += "from lightx2v_pack.tools.bench.harness import wait_for_turn; wait_for_turn()"
    starts = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]], stdin=subprocess.PIPE)"

    # Its output stays open until the child has ended.
    done = subprocess.run([sys.executable, "-c", starts, waits], capture_output=True, text=True, timeout=60)

    assert done.stderr == "the process that started this one has ended\n"


def test_commands_are_shown_without_this_machines_paths():
    words = ["--weights", "/data/w", "--precision", "fp8", "--out", "x.jsonl", "--text-encoder", "/data/models_t5.pth"]

    shown = harness.shown("caps", words)

    assert shown == "python tools bench caps --precision fp8 --text-encoder models_t5.pth"


def test_the_commit_is_that_of_the_folder_itself(tmp_path, monkeypatch):
    def git(*words):
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a", *words], check=True)

    git("init", "-q")
    (tmp_path / "file").write_text("1")
    (tmp_path / "pack").mkdir()
    git("add", "file")
    git("commit", "-qm", "1")
    commit = harness.commit_of(tmp_path, "PACK_COMMIT")
    assert len(commit) >= 7 and int(commit, 16)
    (tmp_path / "file").write_text("2")
    assert harness.commit_of(tmp_path, "PACK_COMMIT") == f"{commit}-dirty"
    # A folder inside of somebody else's checkout.
    monkeypatch.delenv("PACK_COMMIT", raising=False)
    assert harness.commit_of(tmp_path / "pack", "PACK_COMMIT") == "of unknown commit"
    monkeypatch.setenv("PACK_COMMIT", "1234567")
    assert harness.commit_of(tmp_path / "pack", "PACK_COMMIT") == "1234567"


@pytest.mark.parametrize(
    ("words", "is_kept"),
    [((), False), (("--weights", "W"), True), (("--weights", "W", "--keep", "fp8"), False)],
)
def test_weights_are_dropped_after_the_last_row_that_reads_them(tmp_path, monkeypatch, words, is_kept):
    monkeypatch.chdir(tmp_path)
    run = harness.Bench("peers", words, harness.parse("peers", peers, words), tmp_path / "temporary")
    folder = run.folder / "weights-bf16-256x2"
    folder.mkdir(parents=True)

    run.drop_weights("bf16", {"bf16", "fp8"})
    assert folder.exists()
    run.drop_weights("bf16", {"fp8"})
    assert folder.exists() == is_kept


def grid_row(**changes):
    row = {"precision": "fp8", "mode": "block", "size": "832x480", "frames": 81, "stages": ["sample"]}
    row |= {"sample_planned_gib": 4.2, "sample_reserved_gib": 4.0, "predicted_ram_gib": 16.0, "ram_gib": 16.0}
    return row | {"step_seconds": [2.0, 1.8], "estimated_seconds": 1.8} | changes


@pytest.mark.parametrize(
    ("planned", "taken", "problems"),
    [(10.9, 10.0, 0), (9.1, 10.0, 0), (11.1, 10.0, 1), (8.9, 10.0, 1), (2.0, 1.0, 0)],
)
def test_vram_that_was_not_planned_is_said(planned, taken, problems):
    found = harness.vram_problems("i2v", {"sample_planned_gib": planned, "sample_reserved_gib": taken})
    assert found == [f"i2v: VRAM predicted {planned:.2f} GiB, measured {taken:.2f}"] * problems


LOADS = {"stages": ["load_transformer", "sample"], "load_transformer_planned_gib": 2.0}


@pytest.mark.parametrize(
    ("row", "missed"),
    [
        (grid_row(), None),
        (grid_row(**LOADS, load_transformer_reserved_gib=2.0), None),
        (grid_row(**LOADS, load_transformer_reserved_gib=3.0), "load transformer predicted 2.00 GiB, measured 3.00"),
        (grid_row(sample_planned_gib=3.7), "sample predicted 3.70 GiB, measured 4.00"),
        (grid_row(predicted_ram_gib=18.0), "RAM predicted 18.00 GiB"),
        (grid_row(predicted_ram_gib=0.5, ram_gib=0.9), None),  # too little to tell
        (grid_row(estimated_seconds=2.1), "the estimate is 2.100 s a step, measured 1.800"),
        (grid_row(estimated_seconds=2.1, step_seconds=[2.5]), None),
        (grid_row(estimated_seconds=None), None),
        ({**grid_row(), "problem": "OutOfMemoryError"}, "OutOfMemoryError"),
    ],
)
def test_grid_says_what_the_plan_missed(row, missed):
    problems = grid.check([row])

    assert len(problems) == (1 if missed else 0)
    assert not missed or (problems[0].startswith("fp8 832x480x81 block: ") and missed in problems[0])


def caps_row(**changes):
    row = {"precision": "fp8", "size": "832x480", "frames": 81, "cap_gib": 8.0, "mode": "auto", "ram_limit_gib": None}
    row |= {"step": 1.8, "offload": "block", "sample_reserved_gib": 4.0, "card_gib": 7.0, "context_gib": 0.5}
    return row | {"is_finite": True, "same_latents": "yes"} | changes


@pytest.mark.parametrize(
    ("rows", "missed"),
    [
        ([caps_row(cap_gib=0.0), caps_row()], None),
        ([caps_row(same_latents="NO")], "latents differ"),
        ([caps_row(is_finite=False)], "latents not finite"),
        ([caps_row(problem="stopped")], "stopped"),
        ([caps_row(card_gib=8.1)], "took 8.10 GiB of the card"),
        ([caps_row(cap_gib=0.0, step=1.7, offload="phase"), caps_row()], "phase takes 1.700 s a step"),
        ([caps_row(cap_gib=0.0, step=1.79), caps_row()], None),
        # Chosen by name, or because RAM is short.
        ([caps_row(cap_gib=0.0, mode="phase", step=1.7), caps_row(mode="disk")], None),
        ([caps_row(cap_gib=0.0, mode="phase", step=1.7), caps_row(ram_limit_gib=12.0)], None),
        # No card to choose for.
        ([caps_row(cap_gib=0.0, mode="phase", step=1.7, card="CPU"), caps_row(card="CPU")], None),
        # Does not fit the cap.
        ([caps_row(cap_gib=0.0, mode="none", step=1.7, sample_reserved_gib=7.9), caps_row()], None),
    ],
)
def test_caps_says_what_was_missed(rows, missed):
    problems = caps.check(rows)

    assert len(problems) == (1 if missed else 0)
    assert not missed or missed in problems[0]


def gpus_row(**changes):
    row = {"by": "ours", "size": "832x480", "precision": "fp8", "mode": "none", "gpus": 2, "step_seconds": 0.92}
    return row | {"gain": 1.92, "apart": 0.0, "is_same_again": True} | changes


def peers_row(peer, step, part="peers", **changes):
    return {"part": part, "peer": peer, "step": step, "is_finite": True, "card": "NVIDIA H200"} | changes


T2V = [peers_row("pack", 1.5), peers_row("comfyui-fast", 3.0), peers_row("lightx2v", 2.5)]  # 1.67 times as fast


@pytest.mark.parametrize(
    ("rows", "missed"),
    [
        ([peers_row("pack", 2.0), peers_row("comfyui-fast", 3.4)], None),
        ([peers_row("pack", 2.0), peers_row("comfyui-fast", 3.2)], "peers-i2v: 1.60 times as fast as the fastest"),
        # Its own rows, LoRAs, and what is no film do not count.
        (
            [
                peers_row("pack", 2.0),
                peers_row("diffusers", 3.4),
                peers_row("pack-int8", 2.1),
                peers_row("comfyui-fast-lora", 2.2),
                peers_row("lightx2v", 2.3, is_finite=False),
                peers_row("comfyui", 2.4, problem="stopped after 300 s"),
            ],
            None,
        ),
        ([peers_row("comfyui-fast", 2.0)], None),
        ([peers_row("pack", 2.0, problem="Error: no card"), peers_row("comfyui-fast", 2.0)], None),
        ([peers_row("pack", 2.0, is_finite=False)], "pack: latents are not finite"),
        ([peers_row("pack", 2.0), peers_row("comfyui-fast", 3.2, card="CPU")], None),
    ],
)
def test_peers_says_where_the_lead_is_less(rows, missed):
    problems = peers.check([*T2V, *(row | {"part": "peers-i2v"} for row in rows)])

    assert len(problems) == (1 if missed else 0)
    assert not missed or missed in problems[0]


@pytest.mark.parametrize("precision", ["fp8", "bf16"])
def test_experts_of_a_kind_are_two_models_of_its_shapes(tmp_path, precision):
    options = argparse.Namespace(dim=256, ffn_dim=512, layers=1)

    for kind, channels in (("t2v", 16), ("i2v-a14b", 36)):
        folder = weights.ensure_experts(tmp_path, options, precision, kind)
        high, low = (load_file(folder / f"{name}_noise_model" / "non_block.safetensors") for name in ("high", "low"))
        assert high["patch_embedding.weight"].shape[1] == low["patch_embedding.weight"].shape[1] == channels
        assert not torch.equal(high["patch_embedding.weight"], low["patch_embedding.weight"])


THEIRS = {"by": "lightx2v", "way": "ulysses+fusion", "size": "832x480", "precision": "fp8", "gpus": 2}


@pytest.mark.parametrize(
    ("rows", "missed"),
    [
        ([gpus_row(), THEIRS | {"step_seconds": 0.93}, THEIRS | {"problem": "no vllm"}], None),
        ([gpus_row(), THEIRS | {"step_seconds": 0.91}], "0.920 s a step, LightX2V's ulysses+fusion 0.910"),
        ([gpus_row(), THEIRS | {"step_seconds": 0.5, "gpus": 4}], None),
        ([gpus_row(gain=1.89)], "1.89 times as fast as one GPU; at least 1.9"),
        ([gpus_row(gain=1.89, mode="block")], None),
        ([gpus_row(gain=1.89, size="96x64")], None),
        ([gpus_row(gpus=8, gain=6.5)], "6.50 times as fast as one GPU; at least 6.6"),
        ([gpus_row(apart=0.003)], "latents are 0.0030 apart"),
        ([gpus_row(is_same_again=False)], "another run gives other latents"),
        ([{"by": "ours", "size": "832x480", "mode": "none", "gpus": 2, "problem": "a GPU has gone"}], "a GPU has gone"),
        (
            [{"by": "clips", "size": "832x480", "gpus": 2, "gain": 1.9}],
            "1.90 times the clips of one GPU; at least 1.95",
        ),
        ([{"by": "clips", "size": "832x480", "gpus": 2, "problem": "stopped"}], "clips on 2 GPUs: stopped"),
    ],
)
def test_gpus_says_what_was_missed(rows, missed):
    problems = gpus.check(rows)

    assert len(problems) == (1 if missed else 0)
    assert not missed or missed in problems[0]


def test_lightx2v_is_measured_in_every_way_that_its_options_go_together():
    ways = gpus_lightx2v.WAYS
    assert len(ways) == 22 and len(set(ways.values())) == 22
    assert {"ulysses", "ulysses+round-robin", "ulysses+fusion+triton+fp8+heads", "ring+fusion+fp8"} <= ways.keys()
    assert not {name for name in ways if "triton" in name and "fusion" not in name}
    assert not {name for name in ways if {"round-robin", "heads"} <= {*name.split("+")}}
