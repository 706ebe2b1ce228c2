"""Users name the folder that the pack lies in: `make test` passes in any."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("folder", ["ComfyUI-LightX2V", "my nodes/pack [1]", "lightx2v", "torch"])
def test_lint_does_not_judge_the_folder(folder, tmp_path):
    """The same code is clean wherever it lies: as usual for a node pack, under a blank, named as something imported."""
    pack = tmp_path / folder
    pack.mkdir(parents=True)
    for name in ("__init__.py", "pyproject.toml"):
        shutil.copy(ROOT / name, pack)
    for name in ("engine", "nodes"):
        shutil.copytree(ROOT / name, pack / name, ignore=shutil.ignore_patterns("__pycache__"))

    lint = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "concise", "."]
    done = subprocess.run(lint, cwd=pack, capture_output=True, text=True, encoding="utf-8")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "All checks passed" in done.stdout
