"""ComfyUI-Manager installs requirements.txt line by line: no line may change a package that ComfyUI has."""

import json
import subprocess
from pathlib import Path

import pytest
from support.comfy_server import comfyui_dir, comfyui_python

REQUIREMENTS = [
    line.strip()
    for line in (Path(__file__).resolve().parents[2] / "requirements.txt").read_text(encoding="utf-8").splitlines()
    if line.strip() and not line.startswith("#")
]


def pip(*arguments):
    done = subprocess.run([comfyui_python(), "-m", "pip", *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def installed():
    comfyui_dir()
    return {package["name"].lower().replace("_", "-") for package in json.loads(pip("list", "--format", "json"))}


@pytest.mark.parametrize("lines", [*([line] for line in REQUIREMENTS), REQUIREMENTS], ids=" ".join)
def test_installing_only_adds_packages(installed, tmp_path, lines):
    assert "torch" in installed
    report = tmp_path / "report.json"
    pip("install", "--dry-run", "--quiet", "--report", str(report), *lines)
    planned = [entry["metadata"] for entry in json.loads(report.read_text(encoding="utf-8"))["install"]]
    changed = [entry for entry in planned if entry["name"].lower().replace("_", "-") in installed]
    assert not changed, f"{lines} would change {changed}"


def test_the_lines_are_plain():
    """What ComfyUI-Manager can install: one requirement a line, no options, and not ComfyUI's own torch."""
    assert not [line for line in REQUIREMENTS if line.startswith(("-", "torch", "numpy")) or "://" in line]
