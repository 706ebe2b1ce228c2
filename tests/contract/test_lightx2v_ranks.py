"""LightX2V's sequence parallelism as the benchmark of several GPUs runs it: two ranks on the CPU, over gloo."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import lightx2v_cpu

ROOT = Path(__file__).resolve().parents[2]
# A rank: LightX2V for the CPU, then what the benchmark runs in it.
RANK = """
import runpy, sys
root, *words = sys.argv[1:]
sys.path[:0] = [root + "/tests"]
runpy.run_path(root + "/tools/register_pack.py")
from support import lightx2v_cpu
lightx2v_cpu.import_lightx2v()
from pathlib import Path
from lightx2v_pack.tools.bench import gpus, gpus_lightx2v, harness
options = harness.parse("gpus", gpus, words)
bench = harness.Bench("gpus", words, options, options.weights)
options.width, options.height = harness.parse_size(options.sizes[0])
gpus_lightx2v.measure(bench, int(options.child))
"""
SIZES = "--dim 256 --ffn-dim 512 --layers 2 --sizes 64x96 --frames 5 --steps 2 --precision bf16"


@pytest.fixture
def run(tmp_path):
    """run(count) -> the rows of so many ranks."""
    folder = lightx2v_cpu.source_folder_for_cpu()
    script = tmp_path / "rank.py"
    script.write_text(RANK)

    def call(count, *ways):
        row = tmp_path / f"{count}.json"
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"] if count > 1 else []
        words = [*SIZES.split(), "--weights", str(tmp_path), "--child", str(count), "--row", str(row)]
        words += ["--lightx2v", *ways] if ways else []
        done = subprocess.run(
            [sys.executable, *torchrun, str(script), str(ROOT), *words],
            capture_output=True, text=True, timeout=300,
            env={**os.environ, "LIGHTX2V_DIR": str(folder), "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return {row["way"]: row for row in json.loads(row.read_text())["rows"]}

    return call


def test_every_way_of_lightx2v_samples_or_says_why_not(run):
    (alone,) = run(1).values()
    assert alone["apart"] == 0 and alone["step_seconds"] > 0
    rows = run(2)
    works = {"ulysses", "ulysses+fusion", "ulysses+heads", "ulysses+fusion+heads", "ulysses+round-robin"}
    assert works <= {name for name, row in rows.items() if "problem" not in row}
    assert len(rows) == 22
    for name, row in rows.items():
        if "problem" in row:
            # What its kernels are for GPUs alone, or are of a package that is not here.
            assert {"triton", "fp8", "ring"} & {*name.split("+")}, (name, row["problem"])
        else:
            assert row["step_seconds"] > 0 and row["apart"] < 0.02, name
