"""What `make demo` runs: an example workflow on a tiny checkpoint, without GPU, server or download.

Prints where the video, a contact sheet of its frames and the run's report are, and the report in short.
"""

# ruff: noqa: T201 - a script that prints
from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import av
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
WORKFLOW = Path("example_workflows/lightx2v_text_to_video_480p.json")
OUT = Path("out/demo")
MODELS = OUT / "models"
# The name that the example workflow has chosen in its loader.
CHECKPOINT = MODELS / "lightx2v" / "Wan2.1-T2V-14B-StepDistill-CfgDistill-Lightx2v"
REPORT = OUT / "report.json"
# A size that two CPU cores do in seconds; everything else is as the workflow says.
SETTINGS = ("LightX2VEmptyLatent.width=128", "LightX2VEmptyLatent.height=80", "LightX2VEmptyLatent.num_frames=17")

SHEET_COLUMNS = 4
SHEET_FRAMES = 8
SHEET_SCALE = 2


def main() -> None:
    os.chdir(ROOT)
    if not CHECKPOINT.exists():
        _run("tools/make_tiny_checkpoint.py", CHECKPOINT, "--precision", "fp8")
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    printed = _run(
        "tools/run_workflow.py", WORKFLOW, "--models-dir", MODELS, "--output-dir", OUT, "--report", REPORT, *settings
    )
    video = Path(printed.splitlines()[-1])
    sheet = write_contact_sheet(video, video.with_suffix(".png"))
    print_report(json.loads(REPORT.read_text(encoding="utf-8")))
    print(f"video:          {video}")
    print(f"contact sheet:  {sheet}")
    print(f"report:         {REPORT.resolve()}")


def _run(script: str, *arguments: str | Path) -> str:
    """Run one of the tools as a user would, showing the command; returns what it prints."""
    words = [script, *(str(argument) for argument in arguments)]
    print(f"$ python {shlex.join(words)}", flush=True)
    done = subprocess.run([sys.executable, *words], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def write_contact_sheet(video: Path, path: Path) -> Path:
    """Write a picture of frames of a video, evenly spaced and in reading order."""
    with av.open(str(video)) as container:
        frames = [frame.to_image() for frame in container.decode(video=0)]
    count = min(SHEET_FRAMES, len(frames))
    chosen = [frames[index * (len(frames) - 1) // max(count - 1, 1)] for index in range(count)]
    width, height = (side * SHEET_SCALE for side in chosen[0].size)
    columns = min(SHEET_COLUMNS, count)
    sheet = Image.new("RGB", (columns * width, -(-count // columns) * height))
    for index, frame in enumerate(chosen):
        row, column = divmod(index, columns)
        sheet.paste(frame.resize((width, height), Image.Resampling.NEAREST), (column * width, row * height))
    sheet.save(path)
    return path


def print_report(report: dict) -> None:
    """Print seconds and peak memory per stage."""
    print(f"\n{'stage':<20}{'seconds':>9}{'peak RAM GiB':>14}")
    for stage in report["engine"]["stages"]:
        print(f"{stage['stage']:<20}{stage['seconds']:>9.2f}{stage['peak_ram_bytes'] / 2**30:>14.2f}")
    print(f"{'whole command':<20}{report['seconds']:>9.2f}{report['peak_ram_bytes'] / 2**30:>14.2f}")
    print(f"{report['engine']['device']}\n")


if __name__ == "__main__":
    main()
