"""Commands that let several ranks compute: a clip of a list, and the benchmark."""

import json
import signal
import tempfile

import numpy as np
import pytest
from lightx2v_pack.tools.bench import cli
from lightx2v_pack.tools.clips.maker import ClipMaker
from support import examples

SIZE = ["LightX2VEmptyLatent.width=96", "LightX2VEmptyLatent.height=64", "LightX2VEmptyLatent.num_frames=5"]


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory):
    return examples.write_models(tmp_path_factory.mktemp("models"))


def test_a_worker_s_clip_is_computed_by_as_many_gpus_as_it_has(two_devices, models_dir, tmp_path, monkeypatch):
    """As with --gpus-per-clip: the workflow has no LightX2V GPUs, and the clip is that of one. No file stays."""
    (tmp_path / "own").mkdir()
    frames, plans = [], []
    for gpus in (None, 2):
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(tempfile, "tempdir", str(tmp_path / "own"))
            maker = ClipMaker(
                models_dir=str(models_dir), workflow=examples.TEXT_TO_VIDEO.read_bytes(), timeout=None, gpus=gpus
            )
        kind, found = maker.make("clip", SIZE)
        assert kind == "made", found
        ((_, content),), facts = found
        (tmp_path / "clip.mp4").write_bytes(content)
        frames.append(examples.frames_of(tmp_path / "clip.mp4"))
        plans.append(facts["plan"])
        assert not list((tmp_path / "own").rglob("*.mp4"))
        del maker
        assert not list((tmp_path / "own").iterdir())
    assert np.array_equal(*frames)
    assert "rank 0 and rank 1: " in plans[1] and "rank" not in plans[0]


@pytest.fixture
def own_signals():
    """A program of its own ends at SIGTERM; this one is to do so as before."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_the_benchmark_has_rows_of_both_and_of_many_clips(two_devices, own_signals, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LIGHTX2V_DIR", "")
    out = tmp_path / "gpus.jsonl"
    model = "--dim 256 --ffn-dim 512 --layers 2 --sizes 96x64 --frames 5 --steps 2"
    words = f"--gpus 1 2 --modes none --clips 1 {model} --folder {tmp_path} --out {out}"
    assert cli.main(["gpus", *words.split()]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["by"], row["gpus"]) for row in rows] == [
        ("ours", 1), ("ours", 2), ("clips", 1), ("clips", 2), ("lightx2v", 1),
    ]  # fmt: skip
    assert rows[1]["is_equal"] and rows[1]["is_same_again"] and rows[1]["frames_equal"]
    assert rows[0]["gain"] == 1 and rows[1]["gain"] > 0 and rows[3]["clips"] == 2 and rows[3]["clips_per_hour"] > 0
    assert rows[4]["problem"].startswith("not here: LightX2V")
    printed = capsys.readouterr().out
    assert "## Several GPUs" in printed and "clips an hour" in printed and "Did not run: " in printed
